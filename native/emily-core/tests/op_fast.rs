//! Fused kernels against plain loops in f64.

mod support;

use emily_core::dtype::Dtype;
use emily_core::error::Kind;
use emily_core::op::{Attention, Axes, Cast, Epsilon, Op, Rope, RopeInt, Shape, Slice};
use mlx_rs::Array;
use support::*;

fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1u64 << 30) as f64 - 1.0
        })
        .collect()
}

fn array(data: &[f64], shape: &[i64]) -> Array {
    tensor(&data.iter().map(|&x| x as f32).collect::<Vec<_>>(), shape)
}

fn cast(array: &Array, dtype: Dtype) -> Array {
    run(Op::Astype(Cast { dtype }), &[array]).unwrap()
}

fn doubles(array: &Array) -> Vec<f64> {
    read::<f32>(&cast(array, Dtype::Float32)).iter().map(|&x| x.into()).collect()
}

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64], precision: f64) {
    assert_eq!(got.len(), expected.len());
    for (at, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= precision, "element {at}: expected {b}, got {a}");
    }
}

fn transposed(array: &Array, axes: &[i64]) -> Array {
    run(Op::Transpose(Axes { axes: axes.to_vec() }), &[array]).unwrap()
}

/// Inputs that may be absent.
fn run_some(op: Op, inputs: &[Option<&Array>]) -> Array {
    let name = format!("{op:?}");
    op.build(&build(), inputs).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[track_caller]
fn refuses_some(op: Op, inputs: &[Option<&Array>]) {
    let error = op.build(&build(), inputs).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
}

#[test]
fn rms_norm_of_rows() {
    let (rows, features, eps) = (3usize, 8usize, 1e-3);
    let (x, weight) = (numbers(rows * features, 1), numbers(features, 2));
    let normal: Vec<f64> = x
        .chunks(features)
        .flat_map(|row| {
            let square = row.iter().map(|x| x * x).sum::<f64>() / features as f64;
            row.iter().map(move |x| x / (square + eps).sqrt()).collect::<Vec<_>>()
        })
        .collect();
    let weighted: Vec<f64> =
        normal.iter().enumerate().map(|(i, x)| x * weight[i % features]).collect();
    let op = || Op::FastRmsNorm(Epsilon { eps });
    let (a, w) = (array(&x, &[3, 1, 8]), array(&weight, &[8]));
    let got = run(op(), &[&a, &w]).unwrap();
    assert_eq!(shape(&got), [3, 1, 8]);
    assert_close(&doubles(&got), &weighted, 1e-5);
    assert_close(&doubles(&run(op(), &[&a]).unwrap()), &normal, 1e-5);
    assert_close(&doubles(&run_some(op(), &[Some(&a), None])), &normal, 1e-5);
    let half = run(op(), &[&cast(&a, Dtype::Bfloat16), &cast(&w, Dtype::Bfloat16)]).unwrap();
    assert_eq!(dtype(&half), Dtype::Bfloat16);
    assert_close(&doubles(&half), &weighted, 0.03);
    assert_eq!(dtype(&run(op(), &[&cast(&a, Dtype::Float16), &w]).unwrap()), Dtype::Float32);
    check(op(), &[&array(&[], &[0, 4])], &[0, 4], &[] as &[f32]);
    check(op(), &[&array(&[], &[4, 0])], &[4, 0], &[] as &[f32]);
}

#[test]
fn rms_norm_of_any_layout() {
    let (x, eps) = (numbers(40 * 3, 31), 1e-3);
    // Every third element is a row's, every second one a weight.
    let (a, spread) = (array(&x, &[3, 40]), array(&numbers(80, 32), &[40, 2]));
    let every_second = Slice { starts: vec![0, 1], stops: vec![40, 2], strides: vec![1, 1] };
    let weight = run(Op::Slice(every_second), &[&spread]).unwrap();
    let weight = run(Op::Squeeze(Axes { axes: vec![1] }), &[&weight]).unwrap();
    let op = || Op::FastRmsNorm(Epsilon { eps });
    let in_order = run(op(), &[&a, &array(&doubles(&weight), &[40])]).unwrap();
    let stored = run(Op::Contiguous, &[&transposed(&a, &[1, 0])]).unwrap();
    let elsewhere = run(op(), &[&transposed(&stored, &[1, 0]), &weight]).unwrap();
    assert_eq!(shape(&elsewhere), [3, 40]);
    assert_close(&doubles(&elsewhere), &doubles(&in_order), 1e-6);
    // In the memory of an input that nobody else has.
    let sum = run(Op::Add, &[&a, &scalar(0f32)]).unwrap();
    let in_place = run(op(), &[&sum, &weight]).unwrap();
    drop(sum);
    assert_close(&doubles(&in_place), &doubles(&in_order), 1e-6);
}

#[test]
fn layer_norm_of_rows() {
    let (rows, features, eps) = (2usize, 6usize, 1e-3);
    let (x, weight, bias) =
        (numbers(rows * features, 3), numbers(features, 4), numbers(features, 5));
    let normal: Vec<f64> = x
        .chunks(features)
        .flat_map(|row| {
            let mean = row.iter().sum::<f64>() / features as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / features as f64;
            row.iter().map(move |x| (x - mean) / (variance + eps).sqrt()).collect::<Vec<_>>()
        })
        .collect();
    let with = |weighted: bool, biased: bool| -> Vec<f64> {
        let w = |i: usize| if weighted { weight[i % features] } else { 1.0 };
        let b = |i: usize| if biased { bias[i % features] } else { 0.0 };
        normal.iter().enumerate().map(|(i, x)| x * w(i) + b(i)).collect()
    };
    let op = || Op::FastLayerNorm(Epsilon { eps });
    let (a, w, b) = (array(&x, &[2, 6]), array(&weight, &[6]), array(&bias, &[6]));
    assert_close(&doubles(&run(op(), &[&a, &w, &b]).unwrap()), &with(true, true), 1e-5);
    assert_close(&doubles(&run(op(), &[&a, &w]).unwrap()), &with(true, false), 1e-5);
    assert_close(&doubles(&run_some(op(), &[Some(&a), None, Some(&b)])), &with(false, true), 1e-5);
    assert_close(&doubles(&run(op(), &[&a]).unwrap()), &normal, 1e-5);
    let half = run(op(), &[&cast(&a, Dtype::Float16)]).unwrap();
    assert_eq!(dtype(&half), Dtype::Float16);
    assert_close(&doubles(&half), &normal, 0.01);
    let mixed = run_some(op(), &[Some(&cast(&a, Dtype::Float16)), None, Some(&b)]);
    assert_eq!(dtype(&mixed), Dtype::Float32);
    check(op(), &[&array(&[], &[0, 4])], &[0, 4], &[] as &[f32]);
}

#[test]
fn norms_that_make_no_sense_are_refused() {
    let a = array(&[0.0; 6], &[2, 3]);
    for op in [Op::FastRmsNorm, Op::FastLayerNorm] {
        let op = || op(Epsilon { eps: 1e-5 });
        refuses(op(), &[&scalar(1f32)]);
        refuses(op(), &[&tensor(&[1i32; 6], &[2, 3])]);
        refuses(op(), &[&a, &vector(&[1f32, 1.0])]);
        refuses(op(), &[&a, &array(&[1.0; 3], &[1, 3])]);
        refuses(op(), &[&a, &scalar(1f32)]);
        refuses(op(), &[&a, &vector(&[1i32, 1, 1])]);
        refuses_some(op(), &[None, Some(&a)]);
    }
    let op = Op::FastLayerNorm(Epsilon { eps: 1e-5 });
    refuses_some(op, &[Some(&a), None, Some(&vector(&[1f32, 1.0]))]);
}

fn rope(dims: i64, traditional: bool, base: Option<f64>, scale: f64) -> Op {
    Op::FastRope(Rope { dims, traditional, base, scale })
}

fn rope_int(dims: i64, traditional: bool, base: Option<f64>, scale: f64, offset: i64) -> Op {
    Op::FastRopeInt(RopeInt { dims, traditional, base, scale, offset })
}

/// Rotates rows `{batch, heads, positions, features}` by the definition; an offset a batch.
fn rotated(
    x: &[f64],
    sizes: [usize; 4],
    dims: usize,
    traditional: bool,
    frequency: impl Fn(usize) -> f64,
    offset: impl Fn(usize) -> f64,
    scale: f64,
) -> Vec<f64> {
    let [_, heads, positions, features] = sizes;
    let mut result = x.to_vec();
    for (row, x) in x.chunks(features).enumerate() {
        let batch = row / positions / heads;
        let position = ((row % positions) as f64 + offset(batch)) * scale;
        for pair in 0..dims / 2 {
            let (sin, cos) = (position * frequency(pair)).sin_cos();
            let (i, j) =
                if traditional { (2 * pair, 2 * pair + 1) } else { (pair, pair + dims / 2) };
            let out = &mut result[row * features..][..features];
            out[i] = x[i] * cos - x[j] * sin;
            out[j] = x[i] * sin + x[j] * cos;
        }
    }
    result
}

#[test]
fn rotary_embeddings() {
    let sizes = [2usize, 3, 4, 10];
    let x = numbers(240, 6);
    let a = array(&x, &[2, 3, 4, 10]);
    let (dims, base, scale) = (8usize, 100.0f64, 0.5);
    let frequency = |pair: usize| base.powf(-2.0 * pair as f64 / dims as f64);
    for traditional in [false, true] {
        let expected = rotated(&x, sizes, dims, traditional, frequency, |_| 3.0, scale);
        let got = run(rope_int(8, traditional, Some(base), scale, 3), &[&a]).unwrap();
        assert_eq!(shape(&got), [2, 3, 4, 10]);
        assert_close(&doubles(&got), &expected, 1e-5);
        // The offset as a tensor of any integer dtype.
        for offset in [scalar(3i32), scalar(3u32), scalar(3i64), scalar(3u8), vector(&[3i32])] {
            let got = run(rope(8, traditional, Some(base), scale), &[&a, &offset]).unwrap();
            assert_close(&doubles(&got), &expected, 1e-5);
        }
        let offsets = |batch: usize| [7.0, -2.0][batch];
        let expected = rotated(&x, sizes, dims, traditional, frequency, offsets, scale);
        let got = run(rope(8, traditional, Some(base), scale), &[&a, &vector(&[7, -2])]).unwrap();
        assert_close(&doubles(&got), &expected, 1e-5);
        // Frequencies that are given are divisors.
        let divisors = [1.0, 3.0, 9.0, 27.0];
        let given = array(&divisors, &[4]);
        let expected =
            rotated(&x, sizes, dims, traditional, |pair| 1.0 / divisors[pair], |_| 3.0, scale);
        let got = run(rope(8, traditional, None, scale), &[&a, &scalar(3), &given]).unwrap();
        assert_close(&doubles(&got), &expected, 1e-5);
        let got = run(rope_int(8, traditional, None, scale, 3), &[&a, &given]).unwrap();
        assert_close(&doubles(&got), &expected, 1e-5);
    }
    // Ranks of 2, 3 and 5; half types; nothing.
    let expected = rotated(
        &x[..40],
        [1, 1, 4, 10],
        10,
        false,
        |p| 10f64.powf(-(p as f64) / 5.0),
        |_| 1.0,
        1.0,
    );
    for shape in [&[4i64, 10][..], &[1, 4, 10], &[1, 1, 1, 4, 10]] {
        let got = run(rope_int(10, false, Some(10.0), 1.0, 1), &[&array(&x[..40], shape)]).unwrap();
        assert_eq!(support::shape(&got), shape);
        assert_close(&doubles(&got), &expected, 1e-5);
    }
    let half = run(rope_int(8, false, Some(base), 1.0, 0), &[&cast(&a, Dtype::Bfloat16)]).unwrap();
    assert_eq!(dtype(&half), Dtype::Bfloat16);
    check(
        rope_int(8, false, Some(base), 1.0, 0),
        &[&array(&[], &[0, 4, 10])],
        &[0, 4, 10],
        &[] as &[f32],
    );
}

#[test]
fn rotations_of_any_layout() {
    let (sizes, dims) = ([2usize, 3, 4, 10], 8usize);
    let x = numbers(240, 33);
    let a = array(&x, &[2, 3, 4, 10]);
    let stored = |axes: &[i64]| run(Op::Contiguous, &[&transposed(&a, axes)]).unwrap();
    let frequency = |pair: usize| 100f64.powf(-2.0 * pair as f64 / dims as f64);
    let offsets = |batch: usize| [5.0, 1000.0][batch];
    for traditional in [false, true] {
        let op = || rope(dims as i64, traditional, Some(100.0), 1.0);
        let expected = rotated(&x, sizes, dims, traditional, frequency, offsets, 1.0);
        // Heads behind positions, as a projection leaves them, and features that are not dense.
        let heads_last = transposed(&stored(&[0, 2, 1, 3]), &[0, 2, 1, 3]);
        let features_first = transposed(&stored(&[3, 0, 1, 2]), &[1, 2, 3, 0]);
        let sum = run(Op::Add, &[&a, &scalar(0f32)]).unwrap();
        for x in [heads_last, features_first, sum] {
            let got = run(op(), &[&x, &vector(&[5, 1000])]).unwrap();
            // The sum's memory is nobody else's then.
            drop(x);
            assert_eq!(shape(&got), [2, 3, 4, 10]);
            assert_close(&doubles(&got), &expected, 1e-5);
        }
    }
}

#[test]
fn rotations_that_make_no_sense_are_refused() {
    let a = array(&[0.0; 24], &[2, 3, 4]);
    let base = Some(100.0);
    for dims in [0, -2, 3, 6, i64::MAX] {
        refuses(rope_int(dims, false, base, 1.0, 0), &[&a]);
        refuses(rope(dims, false, base, 1.0), &[&a, &scalar(0)]);
    }
    refuses(rope_int(4, false, base, 1.0, 1 << 31), &[&a]);
    refuses(rope_int(4, false, None, 1.0, 0), &[&a]);
    refuses(rope_int(4, false, Some(0.0), 1.0, 0), &[&a]);
    refuses(rope_int(4, false, Some(f64::NAN), 1.0, 0), &[&a]);
    let frequencies = vector(&[1f32, 2.0]);
    refuses(rope_int(4, false, base, 1.0, 0), &[&a, &frequencies]);
    refuses(rope_int(4, false, None, 1.0, 0), &[&a, &vector(&[1f32])]);
    refuses(rope_int(4, false, None, 1.0, 0), &[&a, &vector(&[1i32, 2])]);
    refuses(rope_int(4, false, base, 1.0, 0), &[&vector(&[0f32; 4])]);
    refuses(rope_int(4, false, base, 1.0, 0), &[&tensor(&[0i32; 24], &[2, 3, 4])]);
    refuses(rope(4, false, base, 1.0), &[&a, &scalar(0f32)]);
    refuses(rope(4, false, base, 1.0), &[&a, &vector(&[0, 0, 0])]);
    refuses(rope(4, false, base, 1.0), &[&a, &tensor(&[0, 0], &[2, 1])]);
    refuses(rope(4, false, base, 1.0), &[&a, &vector::<i32>(&[])]);
}

fn attention(scale: f64, causal: bool) -> Op {
    Op::FastScaledDotProductAttention(Attention { scale, causal })
}

/// Sizes of a batch, query heads, key heads, queries, keys, depth, width.
struct Sizes {
    b: usize,
    h: usize,
    n: usize,
    q: usize,
    k: usize,
    d: usize,
    e: usize,
}

/// Attention by its definition; `score` changes a scaled score given batch, head, query, key.
fn attended(
    sizes: &Sizes,
    (q, k, v): (&[f64], &[f64], &[f64]),
    scale: f64,
    sinks: Option<&[f64]>,
    score: impl Fn(f64, [usize; 4]) -> f64,
) -> Vec<f64> {
    let mut result = vec![];
    for batch in 0..sizes.b {
        for head in 0..sizes.h {
            let shared = batch * sizes.n + head / (sizes.h / sizes.n);
            for query in 0..sizes.q {
                let row = &q[((batch * sizes.h + head) * sizes.q + query) * sizes.d..][..sizes.d];
                let scores: Vec<f64> = (0..sizes.k)
                    .map(|key| {
                        let column = &k[(shared * sizes.k + key) * sizes.d..][..sizes.d];
                        let dot: f64 = row.iter().zip(column).map(|(a, b)| a * b).sum();
                        score(dot * scale, [batch, head, query, key])
                    })
                    .collect();
                let sink = sinks.map_or(0.0, |sinks| sinks[head].exp());
                let total: f64 = scores.iter().map(|s| s.exp()).sum::<f64>() + sink;
                for e in 0..sizes.e {
                    let value = |key: usize| v[(shared * sizes.k + key) * sizes.e + e];
                    result
                        .push((0..sizes.k).map(|key| scores[key].exp() / total * value(key)).sum());
                }
            }
        }
    }
    result
}

#[test]
fn attention_with_all_its_options() {
    // Few queries and, on a CPU, more than its own kernel takes.
    for (h, n, q, k) in [(2, 2, 3, 3), (4, 2, 3, 5), (3, 1, 1, 4), (4, 2, 9, 10)] {
        let sizes = Sizes { b: 2, h, n, q, k, d: 4, e: 5 };
        let queries = numbers(2 * h * q * 4, 7);
        let keys = numbers(2 * n * k * 4, 8);
        let values = numbers(2 * n * k * 5, 9);
        let [hs, ns, qs, ks] = [h, n, q, k].map(|size| size as i64);
        let (a, b, c) = (
            array(&queries, &[2, hs, qs, 4]),
            array(&keys, &[2, ns, ks, 4]),
            array(&values, &[2, ns, ks, 5]),
        );
        let data = (&queries[..], &keys[..], &values[..]);
        let scale = 0.7;
        let plain = attended(&sizes, data, scale, None, |s, _| s);
        let got = run(attention(scale, false), &[&a, &b, &c]).unwrap();
        assert_eq!(shape(&got), [2, hs, qs, 5]);
        assert_close(&doubles(&got), &plain, 1e-5);
        let got = run_some(attention(scale, false), &[Some(&a), Some(&b), Some(&c), None, None]);
        assert_close(&doubles(&got), &plain, 1e-5);
        let expected = attended(&sizes, data, scale, None, |s, [_, _, query, key]| {
            if key <= query + k - q {
                s
            } else {
                f64::NEG_INFINITY
            }
        });
        let got = run(attention(scale, true), &[&a, &b, &c]).unwrap();
        assert_close(&doubles(&got), &expected, 1e-5);
        // A float mask for each head, a boolean one for each key.
        let mask = numbers(h * q * k, 10);
        let expected = attended(&sizes, data, scale, None, |s, [_, head, query, key]| {
            s + mask[(head * q + query) * k + key]
        });
        let tensor_mask = array(&mask, &[1, hs, qs, ks]);
        let got = run(attention(scale, false), &[&a, &b, &c, &tensor_mask]).unwrap();
        assert_close(&doubles(&got), &expected, 1e-5);
        let seen: Vec<bool> = (0..k).map(|key| key % 2 == 0).collect();
        let expected =
            attended(
                &sizes,
                data,
                scale,
                None,
                |s, [.., key]| {
                    if seen[key] {
                        s
                    } else {
                        f64::NEG_INFINITY
                    }
                },
            );
        let got = run(attention(scale, false), &[&a, &b, &c, &vector(&seen)]).unwrap();
        assert_close(&doubles(&got), &expected, 1e-5);
        // Sinks, with and without a mask.
        let sinks = numbers(h, 11);
        let expected = attended(&sizes, data, scale, Some(&sinks), |s, _| s);
        for shape in [&[hs][..], &[1, hs, 1, 1]] {
            let given = array(&sinks, shape);
            let inputs = [Some(&a), Some(&b), Some(&c), None, Some(&given)];
            let got = run_some(attention(scale, false), &inputs);
            assert_close(&doubles(&got), &expected, 1e-5);
        }
        // Half types, with a mask that is not.
        let [a, b, c] = [&a, &b, &c].map(|array| cast(array, Dtype::Bfloat16));
        let got = run(attention(scale, false), &[&a, &b, &c, &scalar(1f32)]).unwrap();
        assert_eq!(dtype(&got), Dtype::Bfloat16);
        assert_close(&doubles(&got), &plain, 0.05);
    }
}

#[test]
fn attention_to_nothing() {
    let q = array(&[1.0; 8], &[1, 2, 1, 4]);
    let none = array(&[], &[1, 1, 0, 4]);
    check(attention(1.0, false), &[&q, &none, &none], &[1, 2, 1, 4], &[0f32; 8]);
    let empty = array(&[], &[1, 2, 0, 4]);
    let k = array(&[1.0; 4], &[1, 1, 1, 4]);
    check(attention(1.0, true), &[&empty, &k, &k], &[1, 2, 0, 4], &[] as &[f32]);
}

#[test]
fn attention_that_makes_no_sense_is_refused() {
    let zeros = |shape: &[i64]| array(&vec![0.0; shape.iter().product::<i64>() as usize], shape);
    let (q, k, v) = (zeros(&[2, 4, 3, 8]), zeros(&[2, 2, 5, 8]), zeros(&[2, 2, 5, 6]));
    let op = || attention(1.0, false);
    run(op(), &[&q, &k, &v]).unwrap();
    for (q, k, v) in [
        (&zeros(&[4, 3, 8]), &k, &v),
        (&q, &zeros(&[2, 5, 8]), &v),
        (&q, &k, &zeros(&[2, 5, 6])),
        (&zeros(&[1, 4, 3, 8]), &k, &v),
        (&zeros(&[2, 4, 3, 7]), &k, &v),
        (&zeros(&[2, 3, 3, 8]), &k, &v),
        (&q, &zeros(&[2, 0, 5, 8]), &zeros(&[2, 0, 5, 6])),
        (&q, &k, &zeros(&[2, 2, 4, 6])),
        (&q, &k, &zeros(&[2, 1, 5, 6])),
        (&q, &k, &zeros(&[1, 2, 5, 6])),
        (&tensor(&[0i32; 192], &[2, 4, 3, 8]), &k, &v),
    ] {
        refuses(op(), &[q, k, v]);
    }
    refuses(op(), &[&q, &k, &v, &zeros(&[3, 4])]);
    refuses(op(), &[&q, &k, &v, &zeros(&[1, 2, 4, 3, 5])]);
    refuses(op(), &[&q, &k, &v, &zeros(&[2, 2, 3, 5])]);
    refuses(op(), &[&q, &k, &v, &tensor(&[0i32; 5], &[5])]);
    refuses(attention(1.0, true), &[&q, &k, &v, &zeros(&[5])]);
    // More scores than can be counted, of operands that are views of one number.
    let long = |length| {
        let shape = vec![1, 1, length, 1];
        run(Op::BroadcastTo(Shape { shape }), &[&zeros(&[1, 1, 1, 1])]).unwrap()
    };
    let (q_long, k_long) = (long(1 << 20), long(1 << 12));
    refuses(op(), &[&q_long, &k_long, &k_long]);
    let sinks = |sinks: &Array| {
        refuses_some(op(), &[Some(&q), Some(&k), Some(&v), None, Some(sinks)]);
    };
    sinks(&zeros(&[3]));
    sinks(&zeros(&[1, 4]));
    sinks(&scalar(0f32));
    sinks(&vector(&[0i32; 4]));
    refuses_some(op(), &[Some(&q), Some(&k), None]);
}

/// The array, lying in memory with its axes in the opposite order.
fn turned(array: &Array) -> Array {
    let axes: Vec<i64> = (0..array.ndim() as i64).rev().collect();
    transposed(&run(Op::Contiguous, &[&transposed(array, &axes)]).unwrap(), &axes)
}

#[test]
fn inputs_of_any_strides_have_the_same_bits() {
    let same = |op: fn() -> Op, inputs: &[&Array]| {
        for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
            let plain: Vec<Array> = inputs.iter().map(|input| cast(input, dtype)).collect();
            let turned: Vec<Array> = plain.iter().map(turned).collect();
            let expected = run(op(), &plain.iter().collect::<Vec<_>>()).unwrap();
            let got = run(op(), &turned.iter().collect::<Vec<_>>()).unwrap();
            assert_eq!(doubles(&got), doubles(&expected), "{:?} of {dtype:?}", op());
        }
    };
    let (x, w) = (array(&numbers(120, 12), &[2, 3, 20]), array(&numbers(20, 13), &[20]));
    same(|| Op::FastRmsNorm(Epsilon { eps: 1e-5 }), &[&x, &w]);
    same(|| Op::FastLayerNorm(Epsilon { eps: 1e-5 }), &[&x, &w, &w]);
    same(|| rope_int(8, false, Some(100.0), 1.0, 3), &[&x]);
    same(|| rope_int(20, true, Some(100.0), 1.0, 3), &[&x]);
    let (q, k, v) = (
        array(&numbers(48, 14), &[2, 4, 2, 3]),
        array(&numbers(60, 15), &[2, 2, 5, 3]),
        array(&numbers(80, 16), &[2, 2, 5, 4]),
    );
    let mask = array(&numbers(20, 17), &[2, 1, 2, 5]);
    same(|| attention(0.5, false), &[&q, &k, &v, &mask]);
    same(|| attention(0.5, true), &[&q, &k, &v]);
}

#[test]
fn a_query_that_sees_no_key_sees_all_alike() {
    // The first of three queries comes before both keys.
    let (q, k) = (array(&[1.0; 3], &[1, 1, 3, 1]), array(&[1.0, 5.0], &[1, 1, 2, 1]));
    let v = array(&[2.0, 4.0], &[1, 1, 2, 1]);
    let got = run(attention(1.0, true), &[&q, &k, &v]).unwrap();
    let last = (2.0 + 4.0 * 4f64.exp()) / (1.0 + 4f64.exp());
    assert_close(&doubles(&got), &[3.0, 2.0, last], 1e-5);
    let none = vector(&[false, false]);
    let got = run(attention(1.0, false), &[&q, &k, &v, &none]).unwrap();
    assert_close(&doubles(&got), &[3.0; 3], 1e-5);
}

#[test]
fn numbers_that_are_none_stay_none() {
    let x = array(&[1.0, f64::NAN, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0], &[2, 4]);
    let got = doubles(&run(Op::FastRmsNorm(Epsilon { eps: 1.0 }), &[&x]).unwrap());
    assert!(got[..4].iter().all(|x| x.is_nan()), "{got:?}");
    assert_eq!(got[4..], [0.0; 4]);
    let k = array(&[1.0, f64::NAN], &[1, 1, 2, 1]);
    let q = array(&[1.0], &[1, 1, 1, 1]);
    let got = doubles(&run(attention(1.0, false), &[&q, &k, &k]).unwrap());
    assert!(got[0].is_nan());
}
