//! Fourier transforms and convolutions against plain loops in f64.

mod support;

use emily_core::dtype::Dtype;
use emily_core::op::{Cast, ConvGeneral, Fft, Op};
use mlx_rs::Array;
use std::f64::consts::TAU;
use support::*;

fn numbers(count: i64, seed: u64) -> Vec<f64> {
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

fn doubles(array: &Array) -> Vec<f64> {
    let array = run(Op::Astype(Cast { dtype: Dtype::Float32 }), &[array]).unwrap();
    read::<f32>(&array).iter().map(|&x| x.into()).collect()
}

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (at, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-4, "element {at}: expected {b}, got {a}");
    }
}

fn attrs(sizes: &[i64], axes: &[i64]) -> Fft {
    Fft { sizes: sizes.to_vec(), axes: axes.to_vec() }
}

type Complex = (f64, f64);

/// The transform of one row, by its definition.
fn dft(row: &[Complex], inverse: bool) -> Vec<Complex> {
    let n = row.len() as f64;
    let (sign, scale) = if inverse { (1.0, 1.0 / n) } else { (-1.0, 1.0) };
    (0..row.len())
        .map(|k| {
            let sum = row.iter().enumerate().fold((0.0, 0.0), |sum, (j, x)| {
                let (sin, cos) = (sign * TAU * (j * k) as f64 / n).sin_cos();
                (sum.0 + x.0 * cos - x.1 * sin, sum.1 + x.0 * sin + x.1 * cos)
            });
            (sum.0 * scale, sum.1 * scale)
        })
        .collect()
}

#[track_caller]
fn assert_complex(array: &Array, expected_shape: &[i64], expected: &[Complex]) {
    assert_eq!(dtype(array), Dtype::Complex64);
    assert_eq!(shape(array), expected_shape);
    let part = |op: Op| doubles(&run(op, &[array]).unwrap());
    assert_close(&part(Op::Real), &expected.iter().map(|x| x.0).collect::<Vec<_>>());
    assert_close(&part(Op::Imag), &expected.iter().map(|x| x.1).collect::<Vec<_>>());
}

#[test]
fn transforms_of_rows() {
    for n in [1, 2, 5, 8, 12] {
        let row: Vec<Complex> = numbers(n, 1).into_iter().zip(numbers(n, 2)).collect();
        let elements: Vec<_> = row.iter().map(|x| complex(x.0 as f32, x.1 as f32)).collect();
        let a = vector(&elements);
        let result = run(Op::Fftn(attrs(&[n], &[0])), &[&a]).unwrap();
        assert_complex(&result, &[n], &dft(&row, false));
        let result = run(Op::Ifftn(attrs(&[n], &[-1])), &[&a]).unwrap();
        assert_complex(&result, &[n], &dft(&row, true));
        // Cut and padded with zeros.
        let mut longer = row.clone();
        longer.extend([(0.0, 0.0); 3]);
        let result = run(Op::Fftn(attrs(&[n + 3], &[0])), &[&a]).unwrap();
        assert_complex(&result, &[n + 3], &dft(&longer, false));
        if n > 2 {
            let result = run(Op::Fftn(attrs(&[n - 2], &[0])), &[&a]).unwrap();
            assert_complex(&result, &[n - 2], &dft(&row[..n as usize - 2], false));
        }
    }
}

#[test]
fn transforms_of_real_rows() {
    for n in [1, 2, 5, 8] {
        let data = numbers(n, 3);
        let full = dft(&data.iter().map(|&x| (x, 0.0)).collect::<Vec<_>>(), false);
        let half = &full[..n as usize / 2 + 1];
        let result = run(Op::Rfftn(attrs(&[n], &[0])), &[&array(&data, &[n])]).unwrap();
        assert_complex(&result, &[n / 2 + 1], half);
        let back = run(Op::Irfftn(attrs(&[n], &[0])), &[&result]).unwrap();
        assert_eq!(dtype(&back), Dtype::Float32);
        assert_close(&doubles(&back), &data);
    }
}

#[test]
fn transforms_of_several_axes() {
    let (rows, cols) = (3usize, 4usize);
    let data = numbers(12, 4);
    let mut expected: Vec<Vec<Complex>> = data
        .chunks(cols)
        .map(|row| dft(&row.iter().map(|&x| (x, 0.0)).collect::<Vec<_>>(), false))
        .collect();
    for col in 0..cols {
        let column: Vec<Complex> = expected.iter().map(|row| row[col]).collect();
        for (row, x) in dft(&column, false).into_iter().enumerate() {
            expected[row][col] = x;
        }
    }
    let a = array(&data, &[3, 4]);
    let result = run(Op::Fftn(attrs(&[3, 4], &[0, 1])), &[&a]).unwrap();
    assert_complex(&result, &[3, 4], &expected.concat());
    let back = run(Op::Ifftn(attrs(&[4, 3], &[1, 0])), &[&result]).unwrap();
    assert_close(&doubles(&run(Op::Real, &[&back]).unwrap()), &data);
    // Half of the last of the given axes, which is the first of the tensor.
    let result = run(Op::Rfftn(attrs(&[4, 3], &[1, 0])), &[&a]).unwrap();
    assert_complex(&result, &[2, 4], &expected[..rows / 2 + 1].concat());
    // One axis of two, in a batch of integers.
    let result = run(Op::Fftn(attrs(&[2], &[0])), &[&tensor(&[1i32, 2, 3, 4], &[2, 2])]).unwrap();
    assert_complex(&result, &[2, 2], &[(4.0, 0.0), (6.0, 0.0), (-2.0, 0.0), (-2.0, 0.0)]);
    let empty = run(Op::Fftn(attrs(&[2], &[1])), &[&array(&[], &[0, 3])]).unwrap();
    assert_complex(&empty, &[0, 2], &[]);
    let zeros = run(Op::Irfftn(attrs(&[2], &[0])), &[&array(&[], &[0])]).unwrap();
    assert_eq!(read::<f32>(&zeros), [0.0, 0.0]);
}

#[test]
fn transforms_that_make_no_sense_are_refused() {
    let a = array(&[0.0; 6], &[2, 3]);
    for op in [Op::Fftn, Op::Ifftn, Op::Rfftn, Op::Irfftn] {
        refuses(op(attrs(&[0], &[0])), &[&a]);
        refuses(op(attrs(&[-1], &[0])), &[&a]);
        refuses(op(attrs(&[1 << 40], &[0])), &[&a]);
        refuses(op(attrs(&[2, 3], &[1, -1])), &[&a]);
        refuses(op(attrs(&[2], &[2])), &[&a]);
        refuses(op(attrs(&[2, 3], &[0])), &[&a]);
        refuses(op(attrs(&[], &[])), &[&a]);
        refuses(op(attrs(&[1], &[0])), &[&scalar(1f32)]);
    }
    refuses(Op::Rfftn(attrs(&[1], &[0])), &[&vector(&[complex(0.0, 0.0)])]);
}

fn conv(spatial: usize) -> ConvGeneral {
    ConvGeneral {
        strides: vec![1; spatial],
        padding_low: vec![0; spatial],
        padding_high: vec![0; spatial],
        kernel_dilation: vec![1; spatial],
        input_dilation: vec![1; spatial],
        groups: 1,
        flip: false,
    }
}

/// Every index of a shape, in row-major order.
fn indices(shape: &[i64]) -> Vec<Vec<i64>> {
    shape.iter().fold(vec![vec![]], |all, &size| {
        all.iter().flat_map(|start| (0..size).map(move |i| [&start[..], &[i]].concat())).collect()
    })
}

fn offset(shape: &[i64], index: &[i64]) -> usize {
    index.iter().zip(shape).fold(0, |offset, (i, n)| offset * n + i) as usize
}

/// The convolution by its definition: shape and elements.
fn convolved(
    at: &ConvGeneral,
    (a, shape): (&[f64], &[i64]),
    (weight, kernel): (&[f64], &[i64]),
) -> (Vec<i64>, Vec<f64>) {
    let spatial = shape.len() - 2;
    let mut result = vec![shape[0]];
    for axis in 0..spatial {
        let extent = (shape[axis + 1] - 1) * at.input_dilation[axis]
            + 1
            + at.padding_low[axis]
            + at.padding_high[axis];
        let span = (kernel[axis + 1] - 1) * at.kernel_dilation[axis] + 1;
        result.push(if span > extent { 0 } else { (extent - span) / at.strides[axis] + 1 });
    }
    result.push(kernel[0]);
    let data = indices(&result)
        .iter()
        .map(|place| {
            let group = place[spatial + 1] / (kernel[0] / at.groups);
            let mut sum = 0.0;
            for tap in indices(&kernel[1..]) {
                let mut source = vec![place[0]];
                let mut inside = true;
                for axis in 0..spatial {
                    let flipped =
                        if at.flip { kernel[axis + 1] - 1 - tap[axis] } else { tap[axis] };
                    let x = place[axis + 1] * at.strides[axis] + flipped * at.kernel_dilation[axis]
                        - at.padding_low[axis];
                    let i = x.div_euclid(at.input_dilation[axis]);
                    inside &= x.rem_euclid(at.input_dilation[axis]) == 0
                        && (0..shape[axis + 1]).contains(&i);
                    source.push(i);
                }
                if inside {
                    source.push(group * kernel[spatial + 1] + tap[spatial]);
                    let tap = [&[place[spatial + 1]], &tap[..]].concat();
                    sum += a[offset(shape, &source)] * weight[offset(kernel, &tap)];
                }
            }
            sum
        })
        .collect();
    (result, data)
}

#[track_caller]
fn check_conv(at: ConvGeneral, shape: &[i64], kernel: &[i64]) {
    let (a, weight) = (numbers(shape.iter().product(), 5), numbers(kernel.iter().product(), 6));
    let (expected_shape, expected) = convolved(&at, (&a, shape), (&weight, kernel));
    let name = format!("{at:?} {shape:?} {kernel:?}");
    let got = run(Op::ConvGeneral(at), &[&array(&a, shape), &array(&weight, kernel)])
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(support::shape(&got), expected_shape, "{name}");
    let got = doubles(&got);
    assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{name}");
}

#[test]
fn convolutions() {
    for flip in [false, true] {
        let plain = |spatial| ConvGeneral { flip, ..conv(spatial) };
        check_conv(plain(1), &[2, 7, 3], &[4, 3, 3]);
        check_conv(plain(2), &[2, 5, 6, 2], &[3, 2, 3, 2]);
        check_conv(plain(3), &[1, 3, 4, 3, 2], &[2, 2, 2, 2, 2]);
        let at = ConvGeneral {
            strides: vec![2],
            padding_low: vec![1],
            padding_high: vec![3],
            kernel_dilation: vec![2],
            input_dilation: vec![3],
            ..plain(1)
        };
        check_conv(at, &[2, 5, 3], &[4, 3, 3]);
        let at = ConvGeneral {
            strides: vec![2, 1],
            padding_low: vec![1, 0],
            padding_high: vec![0, 2],
            kernel_dilation: vec![1, 2],
            input_dilation: vec![2, 1],
            ..plain(2)
        };
        check_conv(at, &[2, 5, 6, 2], &[3, 2, 3, 2]);
        // Groups, as many as channels too.
        check_conv(ConvGeneral { groups: 2, ..plain(1) }, &[2, 7, 4], &[6, 3, 2]);
        check_conv(ConvGeneral { groups: 4, ..plain(1) }, &[1, 7, 4], &[4, 2, 1]);
        check_conv(ConvGeneral { groups: 3, ..plain(2) }, &[1, 4, 5, 3], &[6, 2, 2, 1]);
        let at = ConvGeneral { groups: 2, strides: vec![1, 2, 1], ..plain(3) };
        check_conv(at, &[1, 3, 4, 3, 4], &[4, 2, 2, 1, 2]);
        // Padding that cuts, on one side, on both, through a dilated input, and all of it.
        for (low, high, dilation) in [
            (-2, 0, 1),
            (0, -3, 1),
            (-1, -1, 1),
            (-1, 2, 2),
            (-3, -2, 3),
            (-7, 12, 1),
            (-20, 30, 3),
        ] {
            let at = ConvGeneral {
                padding_low: vec![low],
                padding_high: vec![high],
                input_dilation: vec![dilation],
                ..plain(1)
            };
            check_conv(at, &[2, 7, 2], &[3, 2, 2]);
        }
    }
    let at = ConvGeneral { strides: vec![i64::from(i32::MAX)], ..conv(1) };
    check_conv(at, &[1, 5, 1], &[1, 2, 1]);
}

#[test]
fn convolutions_of_half_types_and_nothing() {
    let (a, weight) = (tensor(&[1f32, 2.0, 3.0], &[1, 3, 1]), tensor(&[1f32, 10.0], &[1, 2, 1]));
    let half = run(Op::Astype(Cast { dtype: Dtype::Float16 }), &[&a]).unwrap();
    check(Op::ConvGeneral(conv(1)), &[&half, &weight], &[1, 2, 1], &[21f32, 32.0]);
    let got = run(Op::ConvGeneral(conv(1)), &[&half, &half]).unwrap();
    assert_eq!((dtype(&got), doubles(&got)), (Dtype::Float16, vec![14.0]));
    let op = || Op::ConvGeneral(conv(1));
    // A kernel that fits nowhere, no batch, no channels, no features.
    check(op(), &[&a, &array(&[0.0; 4], &[1, 4, 1])], &[1, 0, 1], &[] as &[f32]);
    check(op(), &[&array(&[], &[0, 3, 1]), &weight], &[0, 2, 1], &[] as &[f32]);
    check(op(), &[&array(&[], &[1, 3, 0]), &array(&[], &[1, 2, 0])], &[1, 2, 1], &[0f32, 0.0]);
    check(op(), &[&a, &array(&[], &[0, 2, 1])], &[1, 2, 0], &[] as &[f32]);
    let padded = ConvGeneral { padding_low: vec![3], ..conv(1) };
    check(Op::ConvGeneral(padded), &[&array(&[], &[1, 0, 1]), &weight], &[1, 2, 1], &[0f32, 0.0]);
}

#[test]
fn convolutions_that_make_no_sense_are_refused() {
    let (a, weight) = (array(&[0.0; 8], &[1, 4, 2]), array(&[0.0; 4], &[1, 2, 2]));
    let bad = [
        ConvGeneral { groups: 0, ..conv(1) },
        ConvGeneral { groups: -1, ..conv(1) },
        ConvGeneral { groups: 2, ..conv(1) },
        ConvGeneral { groups: 3, ..conv(1) },
        ConvGeneral { groups: i64::MAX, ..conv(1) },
        ConvGeneral { strides: vec![0], ..conv(1) },
        ConvGeneral { strides: vec![1, 1], ..conv(1) },
        ConvGeneral { strides: vec![1 << 40], ..conv(1) },
        ConvGeneral { kernel_dilation: vec![0], ..conv(1) },
        ConvGeneral { kernel_dilation: vec![i64::from(i32::MAX)], ..conv(1) },
        ConvGeneral { input_dilation: vec![-1], ..conv(1) },
        ConvGeneral { input_dilation: vec![i64::from(i32::MAX)], ..conv(1) },
        ConvGeneral { padding_low: vec![], ..conv(1) },
        ConvGeneral { padding_low: vec![-5], ..conv(1) },
        ConvGeneral { padding_high: vec![i64::from(i32::MAX)], ..conv(1) },
        ConvGeneral { padding_low: vec![i64::MIN], ..conv(1) },
    ];
    for at in bad {
        refuses(Op::ConvGeneral(at), &[&a, &weight]);
    }
    run(Op::ConvGeneral(conv(1)), &[&a, &weight]).unwrap();
    refuses(Op::ConvGeneral(conv(1)), &[&a, &array(&[0.0; 6], &[1, 2, 3])]);
    refuses(Op::ConvGeneral(conv(1)), &[&a, &array(&[0.0; 4], &[2, 2])]);
    refuses(Op::ConvGeneral(conv(2)), &[&a, &weight]);
    refuses(Op::ConvGeneral(conv(1)), &[&tensor(&[0i32; 8], &[1, 4, 2]), &weight]);
    refuses(Op::ConvGeneral(conv(0)), &[&array(&[0.0], &[1, 1]), &array(&[0.0], &[1, 1])]);
    let deep = array(&[0.0], &[1; 6]);
    refuses(Op::ConvGeneral(conv(4)), &[&deep, &deep]);
}
