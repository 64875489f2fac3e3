//! Random numbers: reproducible by their key, of the distribution asked for.

mod support;

use emily_core::dtype::Dtype;
use emily_core::op::{
    Cast, Op, RandomBits, RandomCategorical, RandomNormal, RandomShape, RandomSplit, Shape,
};
use mlx_rs::Array;
use support::*;

const N: i64 = 20_000;

fn key() -> Array {
    vector(&[7u32, 42])
}

fn attrs(shape: &[i64], dtype: Dtype) -> RandomShape {
    RandomShape { shape: shape.to_vec(), dtype }
}

fn bits(shape: &[i64], width: i64) -> Op {
    Op::RandomBits(RandomBits { shape: shape.to_vec(), width })
}

fn normal(shape: &[i64], dtype: Dtype, loc: f64, scale: f64) -> Op {
    Op::RandomNormal(RandomNormal { shape: shape.to_vec(), dtype, loc, scale })
}

fn bernoulli(shape: &[i64]) -> Op {
    Op::RandomBernoulli(Shape { shape: shape.to_vec() })
}

fn categorical(axis: i64, num_samples: i64) -> Op {
    Op::RandomCategorical(RandomCategorical { axis, num_samples })
}

fn floats(array: &Array) -> Vec<f32> {
    read(&run(Op::Astype(Cast { dtype: Dtype::Float32 }), &[array]).unwrap())
}

fn mean(numbers: &[f32]) -> f64 {
    numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / numbers.len() as f64
}

fn deviation(numbers: &[f32]) -> f64 {
    let mean = mean(numbers);
    let squares: f64 = numbers.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    (squares / numbers.len() as f64).sqrt()
}

/// Threefry-2x32 with 20 rounds, as Salmon et al. define it.
fn threefry(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD1_1BDA];
    let mut x = [counter[0].wrapping_add(keys[0]), counter[1].wrapping_add(keys[1])];
    for round in 0..5u32 {
        for rotation in ROTATIONS[round as usize % 2] {
            x[0] = x[0].wrapping_add(x[1]);
            x[1] = x[1].rotate_left(rotation) ^ x[0];
        }
        let next = round as usize + 1;
        x[0] = x[0].wrapping_add(keys[next % 3]);
        x[1] = x[1].wrapping_add(keys[(next + 1) % 3]).wrapping_add(next as u32);
    }
    x
}

#[test]
fn bits_are_those_of_threefry() {
    // The reference vector of the algorithm's authors.
    assert_eq!(threefry([0, 0], [0, 0]), [0x6B20_0159, 0x99BA_4EFE]);
    // MLX pairs the counters i and i + half.
    let expected: Vec<u32> = (0..4)
        .map(|i| threefry([7, 42], [i, i + 4])[0])
        .chain((0..4).map(|i| threefry([7, 42], [i, i + 4])[1]))
        .collect();
    check(bits(&[2, 4], 4), &[&key()], &[2, 4], &expected);
    assert_eq!(dtype(&run(bits(&[3], 2), &[&key()]).unwrap()), Dtype::Uint16);
    assert_eq!(dtype(&run(bits(&[3], 1), &[&key()]).unwrap()), Dtype::Uint8);
    check(bits(&[0, 2], 4), &[&key()], &[0, 2], &[] as &[u32]);
    // Keys are bits too, each different.
    let keys: Vec<u32> = read(&run(Op::RandomSplit(RandomSplit { num: 4 }), &[&key()]).unwrap());
    assert_eq!(keys, expected);
    check(Op::RandomSplit(RandomSplit { num: 0 }), &[&key()], &[0, 2], &[] as &[u32]);
}

#[test]
fn uniform_numbers_fill_the_interval() {
    for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
        let op = || Op::RandomUniform(attrs(&[N], dtype));
        let result = run(op(), &[&scalar(-1f32), &scalar(3f32), &key()]).unwrap();
        assert_eq!(support::dtype(&result), dtype);
        let numbers = floats(&result);
        assert_eq!(numbers, floats(&run(op(), &[&scalar(-1f32), &scalar(3f32), &key()]).unwrap()));
        assert!(numbers.iter().all(|x| (-1.0..=3.0).contains(x)));
        assert!(dtype != Dtype::Float32 || numbers.iter().all(|&x| x < 3.0));
        assert!((mean(&numbers) - 1.0).abs() < 0.05, "{}", mean(&numbers));
        assert!((deviation(&numbers) - 4.0 / 12f64.sqrt()).abs() < 0.05);
        let other = run(op(), &[&scalar(-1f32), &scalar(3f32), &vector(&[7u32, 43])]).unwrap();
        assert_ne!(numbers, floats(&other));
    }
    // Bounds for each row.
    let (low, high) = (tensor(&[0f32, 10.0], &[2, 1]), tensor(&[1f32, 11.0], &[2, 1]));
    let op = Op::RandomUniform(attrs(&[2, 50], Dtype::Float32));
    let numbers = floats(&run(op, &[&low, &high, &key()]).unwrap());
    assert!(numbers[..50].iter().all(|x| (0.0..1.0).contains(x)));
    assert!(numbers[50..].iter().all(|x| (10.0..11.0).contains(x)));
}

#[test]
fn integers_stay_below_the_bound() {
    let op = Op::RandomRandint(attrs(&[N], Dtype::Int32));
    let numbers: Vec<i32> = read(&run(op, &[&scalar(-2i32), &scalar(3i32), &key()]).unwrap());
    for value in -2..3 {
        let share = numbers.iter().filter(|&&x| x == value).count() as f64 / N as f64;
        assert!((share - 0.2).abs() < 0.02, "{value}: {share}");
    }
    assert!(numbers.iter().all(|x| (-2..3).contains(x)));
    let op = Op::RandomRandint(attrs(&[3], Dtype::Uint8));
    check(op, &[&scalar(9u8), &scalar(10u8), &key()], &[3], &[9u8; 3]);
}

#[test]
fn normal_numbers_have_mean_and_deviation() {
    for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
        let numbers = floats(&run(normal(&[N], dtype, 2.0, 0.5), &[&key()]).unwrap());
        assert!((mean(&numbers) - 2.0).abs() < 0.02, "{dtype}: {}", mean(&numbers));
        assert!((deviation(&numbers) - 0.5).abs() < 0.02, "{dtype}: {}", deviation(&numbers));
        let within = numbers.iter().filter(|&&x| (x - 2.0).abs() < 0.5).count() as f64 / N as f64;
        assert!((within - 0.6827).abs() < 0.02, "{dtype}: {within}");
    }
    let complex = run(normal(&[5], Dtype::Complex64, 0.0, 1.0), &[&key()]).unwrap();
    assert_eq!((dtype(&complex), shape(&complex)), (Dtype::Complex64, vec![5]));
}

#[test]
fn events_have_their_probability() {
    let p = tensor(&[0f32, 0.25, 1.0], &[3, 1]);
    let events: Vec<bool> = read(&run(bernoulli(&[3, N]), &[&p, &key()]).unwrap());
    let share = |row: usize| {
        events[row * N as usize..][..N as usize].iter().filter(|&&x| x).count() as f64 / N as f64
    };
    assert_eq!((share(0), share(2)), (0.0, 1.0));
    assert!((share(1) - 0.25).abs() < 0.02);
}

#[test]
fn gumbel_numbers_have_their_mean() {
    let op = Op::RandomGumbel(attrs(&[N], Dtype::Float32));
    let numbers = floats(&run(op, &[&key()]).unwrap());
    assert!((mean(&numbers) - 0.5772).abs() < 0.05, "{}", mean(&numbers));
    assert!((deviation(&numbers) - 1.2825).abs() < 0.05, "{}", deviation(&numbers));
}

#[test]
fn categories_have_the_softmax_of_their_logits() {
    let logits = [0f32, 2f32.ln(), f32::NEG_INFINITY, 5f32.ln()];
    for (a, op, count) in [
        (vector(&logits), categorical(0, N), 1),
        (tensor(&[logits, logits].concat(), &[2, 4]), categorical(-1, N), 2),
    ] {
        let result = run(op, &[&a, &key()]).unwrap();
        assert_eq!(*shape(&result).last().unwrap(), N);
        let drawn: Vec<u32> = read(&result);
        for row in drawn.chunks(N as usize) {
            for (category, expected) in [0.125, 0.25, 0.0, 0.625].into_iter().enumerate() {
                let share = row.iter().filter(|&&x| x == category as u32).count() as f64 / N as f64;
                assert!((share - expected).abs() < 0.02, "{category}: {share}");
            }
        }
        assert_eq!(drawn.len(), count * N as usize);
    }
    // Along the first axis, one category each.
    let columns = tensor(&[9f32, -900.0, -900.0, 9.0], &[2, 2]);
    check(categorical(0, 3), &[&columns, &key()], &[2, 3], &[0u32, 0, 0, 1, 1, 1]);
    check(categorical(0, 0), &[&columns, &key()], &[2, 0], &[] as &[u32]);
    check(categorical(1, 2), &[&tensor(&[0f32; 0], &[0, 3]), &key()], &[0, 2], &[] as &[u32]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (low, high, p) = (scalar(0f32), scalar(1f32), scalar(0.5f32));
    for bad in [vector(&[1u32]), vector(&[1i32, 2]), tensor(&[1u32, 2], &[1, 2]), scalar(1u32)] {
        refuses(Op::RandomSplit(RandomSplit { num: 2 }), &[&bad]);
        refuses(bits(&[2], 4), &[&bad]);
        refuses(normal(&[2], Dtype::Float32, 0.0, 1.0), &[&bad]);
        refuses(Op::RandomUniform(attrs(&[2], Dtype::Float32)), &[&low, &high, &bad]);
        refuses(Op::RandomRandint(attrs(&[2], Dtype::Int32)), &[&low, &high, &bad]);
        refuses(Op::RandomGumbel(attrs(&[2], Dtype::Float32)), &[&bad]);
        refuses(bernoulli(&[2]), &[&p, &bad]);
        refuses(categorical(0, 1), &[&vector(&[0f32]), &bad]);
    }
    for shape in [&[-1i64][..], &[1 << 40], &[1 << 20, 1 << 20]] {
        refuses(bits(shape, 4), &[&key()]);
        refuses(Op::RandomUniform(attrs(shape, Dtype::Float32)), &[&low, &high, &key()]);
        refuses(bernoulli(shape), &[&p, &key()]);
    }
    for width in [0, 3, 8, -4] {
        refuses(bits(&[2], width), &[&key()]);
    }
    refuses(Op::RandomSplit(RandomSplit { num: -1 }), &[&key()]);
    refuses(Op::RandomSplit(RandomSplit { num: 1 << 31 }), &[&key()]);
    for dtype in [Dtype::Int32, Dtype::Float64, Dtype::Complex64] {
        refuses(Op::RandomUniform(attrs(&[2], dtype)), &[&low, &high, &key()]);
        refuses(Op::RandomGumbel(attrs(&[2], dtype)), &[&key()]);
    }
    refuses(normal(&[2], Dtype::Float64, 0.0, 1.0), &[&key()]);
    refuses(Op::RandomRandint(attrs(&[2], Dtype::Float32)), &[&low, &high, &key()]);
    let three = vector(&[0f32, 1.0, 2.0]);
    refuses(Op::RandomUniform(attrs(&[2], Dtype::Float32)), &[&three, &high, &key()]);
    refuses(Op::RandomUniform(attrs(&[], Dtype::Float32)), &[&vector(&[0f32]), &high, &key()]);
    refuses(bernoulli(&[2]), &[&three, &key()]);
    refuses(bernoulli(&[2]), &[&scalar(1i32), &key()]);
    refuses(categorical(1, 1), &[&three, &key()]);
    refuses(categorical(0, -1), &[&three, &key()]);
    refuses(categorical(0, 1), &[&vector::<f32>(&[]), &key()]);
    refuses(categorical(0, 1), &[&vector(&[1i32]), &key()]);
    refuses(categorical(0, 1), &[&scalar(1f32), &key()]);
    // A key left out.
    let error = bits(&[2], 4).build(&build(), &[None]).unwrap_err();
    assert_eq!(error.kind(), emily_core::error::Kind::InvalidArgument);
}
