//! Quantised weights against plain loops over the packed bits.

mod support;

use emily_core::dtype::Dtype;
use emily_core::error::Kind;
use emily_core::op::{Cast, Dequantize, GatherQmm, Op, Quantize, QuantizedMatmul};
use mlx_rs::Array;
use support::*;

fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 33) as f64 / (1u64 << 30) as f64 - 1.0) as f32 as f64
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

/// Group size, bits, mode.
type Scheme = (i64, i64, &'static str);

const AFFINE: Scheme = (64, 4, "affine");
const MICROSCALED: [Scheme; 3] = [(32, 4, "mxfp4"), (32, 8, "mxfp8"), (16, 4, "nvfp4")];

fn schemes() -> Vec<Scheme> {
    let mut all: Vec<Scheme> = [2, 3, 4, 5, 6, 8].map(|bits| (64, bits, "affine")).to_vec();
    all.extend([(32, 4, "affine"), (128, 8, "affine"), (32, 3, "affine")]);
    all.extend(MICROSCALED);
    all
}

fn quantize((group_size, bits, mode): Scheme) -> Op {
    Op::Quantize(Quantize { group_size, bits, mode: mode.into() })
}

fn dequantize((group_size, bits, mode): Scheme) -> Op {
    Op::Dequantize(Dequantize { group_size, bits, mode: mode.into() })
}

fn matmul((group_size, bits, mode): Scheme, transpose: bool) -> Op {
    Op::QuantizedMatmul(QuantizedMatmul { transpose, group_size, bits, mode: mode.into() })
}

fn gather((group_size, bits, mode): Scheme, transpose: bool) -> Op {
    let (mode, sorted) = (mode.into(), false);
    Op::GatherQmm(GatherQmm { transpose, group_size, bits, mode, sorted })
}

fn quantized(scheme: Scheme, weight: &Array) -> Vec<Array> {
    quantize(scheme).build_all(&build(), &[Some(weight)]).unwrap()
}

/// The weight that packed bits stand for, read by the formats' definitions.
fn unpacked(scheme: Scheme, parts: &[Array]) -> Vec<f64> {
    let (group_size, bits, mode) = scheme;
    let words: Vec<u32> = read(&parts[0]);
    let bit = |at: usize| words[at / 32] >> (at % 32) & 1;
    let bits = bits as usize;
    let code = |index: usize| (0..bits).map(|i| bit(index * bits + i) << i).sum::<u32>();
    let float = |sign: u32, exponent: u32, mantissa: u32, bias: i32, width: u32| {
        let fraction = f64::from(mantissa) / f64::from(1u32 << width);
        let value = match exponent {
            0 => fraction * 2f64.powi(1 - bias),
            _ => (1.0 + fraction) * 2f64.powi(exponent as i32 - bias),
        };
        if sign == 1 {
            -value
        } else {
            value
        }
    };
    let e4m3 = |code: u32| float(code >> 7, code >> 3 & 15, code & 7, 7, 3);
    let e2m1 = |code: u32| float(code >> 3, code >> 1 & 3, code & 1, 1, 1);
    let scales = doubles(&parts[1]);
    let biases = parts.get(2).map(doubles);
    (0..words.len() * 32 / bits)
        .map(|index| {
            let group = index / group_size as usize;
            if let Some(biases) = &biases {
                return f64::from(code(index)) * scales[group] + biases[group];
            }
            let exponent = scales[group] as u32;
            let scale =
                if mode == "nvfp4" { e4m3(exponent) } else { 2f64.powi(exponent as i32 - 127) };
            scale * if bits == 8 { e4m3(code(index)) } else { e2m1(code(index)) }
        })
        .collect()
}

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64], precision: f64) {
    assert_eq!(got.len(), expected.len());
    for (at, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= precision, "element {at}: expected {b}, got {a}");
    }
}

/// `x {m, k}` times the transpose of `weight {n, k}`.
fn product(x: &[f64], weight: &[f64], k: usize) -> Vec<f64> {
    x.chunks(k)
        .flat_map(|x| {
            weight
                .chunks(k)
                .map(|row| x.iter().zip(row).map(|(a, b)| a * b).sum())
                .collect::<Vec<f64>>()
        })
        .collect()
}

fn transposed(a: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    (0..rows * cols).map(|flat| a[flat % rows * cols + flat / rows]).collect()
}

#[test]
fn a_packed_weight_is_near_the_dense_one() {
    let (n, k) = (4usize, 128usize);
    let dense = numbers(n * k, 1);
    for scheme in schemes() {
        let (group_size, bits, mode) = scheme;
        let parts = quantized(scheme, &array(&dense, &[n as i64, k as i64]));
        assert_eq!(parts.len(), if mode == "affine" { 3 } else { 2 }, "{scheme:?}");
        assert_eq!(shape(&parts[0]), [n as i64, k as i64 * bits / 32], "{scheme:?}");
        assert_eq!(shape(&parts[1]), [n as i64, k as i64 / group_size], "{scheme:?}");
        assert_eq!(dtype(&parts[0]), Dtype::Uint32);
        assert_eq!(dtype(&parts[1]), if mode == "affine" { Dtype::Float32 } else { Dtype::Uint8 });
        let meant = unpacked(scheme, &parts);
        // A step, since affine rounds one end of the range to a whole number of them from zero; the
        // widest of microscaled numbers up to 1, with a scale that is rounded too.
        let step = match mode {
            "affine" => 2.0 / f64::from((1 << bits) - 1),
            "mxfp8" => 0.08,
            _ => 0.4,
        };
        assert_close(&meant, &dense, step);
        let inputs: Vec<&Array> = parts.iter().collect();
        let back = run(dequantize(scheme), &inputs).unwrap();
        assert_eq!(shape(&back), [n as i64, k as i64]);
        assert_eq!(dtype(&back), if mode == "affine" { Dtype::Float32 } else { Dtype::Bfloat16 });
        assert_close(&doubles(&back), &meant, 1e-5);
    }
}

#[test]
fn products_with_a_packed_weight() {
    let (m, n, k) = (3usize, 64usize, 128usize);
    let (dense, x) = (numbers(n * k, 2), numbers(m * k, 3));
    for scheme in schemes() {
        let parts = quantized(scheme, &array(&dense, &[n as i64, k as i64]));
        let meant = unpacked(scheme, &parts);
        let mut inputs: Vec<&Array> = vec![];
        let rows = array(&x, &[m as i64, k as i64]);
        inputs.push(&rows);
        inputs.extend(&parts);
        let got = run(matmul(scheme, true), &inputs).unwrap();
        assert_eq!(shape(&got), [m as i64, n as i64]);
        assert_close(&doubles(&got), &product(&x, &meant, k), 1e-3);
        // Not transposed, the weight is n by k with n contracted.
        let narrow = array(&x[..m * n], &[m as i64, n as i64]);
        inputs[0] = &narrow;
        let got = run(matmul(scheme, false), &inputs).unwrap();
        assert_eq!(shape(&got), [m as i64, k as i64]);
        let expected = product(&x[..m * n], &transposed(&meant, n, k), n);
        assert_close(&doubles(&got), &expected, 1e-3);
        // A vector, and half types.
        let row = array(&x[..k], &[k as i64]);
        inputs[0] = &row;
        let got = run(matmul(scheme, true), &inputs).unwrap();
        assert_eq!(shape(&got), [n as i64]);
        assert_close(&doubles(&got), &product(&x[..k], &meant, k), 1e-3);
        let half = cast(&row, Dtype::Float16);
        inputs[0] = &half;
        let got = run(matmul(scheme, true), &inputs).unwrap();
        let affine = scheme.2 == "affine";
        assert_eq!(dtype(&got), if affine { Dtype::Float32 } else { Dtype::Float16 });
        assert_close(&doubles(&got), &product(&x[..k], &meant, k), 0.1);
    }
}

#[test]
fn half_precision_weights_keep_their_dtype() {
    for dtype in [Dtype::Float16, Dtype::Bfloat16] {
        let dense = cast(&array(&numbers(2 * 64, 4), &[2, 64]), dtype);
        let parts = quantized(AFFINE, &dense);
        assert_eq!(support::dtype(&parts[1]), dtype);
        let inputs: Vec<&Array> = parts.iter().collect();
        assert_eq!(support::dtype(&run(dequantize(AFFINE), &inputs).unwrap()), dtype);
        let x = cast(&array(&numbers(64, 5), &[1, 64]), dtype);
        let got = run(matmul(AFFINE, true), &[&x, &parts[0], &parts[1], &parts[2]]).unwrap();
        assert_eq!(support::dtype(&got), dtype);
        let expected = product(&doubles(&x), &unpacked(AFFINE, &parts), 64);
        assert_close(&doubles(&got), &expected, 0.1);
    }
}

#[test]
fn batches_of_weights_broadcast() {
    let (n, k) = (2usize, 64usize);
    let (dense, x) = (numbers(2 * n * k, 6), numbers(3 * k, 7));
    let parts = quantized(AFFINE, &array(&dense, &[2, n as i64, k as i64]));
    let meant = unpacked(AFFINE, &parts);
    let one = array(&x, &[1, 3, k as i64]);
    let got = run(matmul(AFFINE, true), &[&one, &parts[0], &parts[1], &parts[2]]).unwrap();
    assert_eq!(shape(&got), [2, 3, n as i64]);
    let expected = [product(&x, &meant[..n * k], k), product(&x, &meant[n * k..], k)].concat();
    assert_close(&doubles(&got), &expected, 1e-3);
    let flat = array(&x, &[3, k as i64]);
    refuses(matmul(AFFINE, true), &[&flat, &parts[0], &parts[1], &parts[2]]);
    let three = array(&x, &[3, 1, k as i64]);
    refuses(matmul(AFFINE, true), &[&three, &parts[0], &parts[1], &parts[2]]);
    // Many rows by one weight.
    let single = quantized(AFFINE, &array(&dense[..n * k], &[n as i64, k as i64]));
    let got = run(matmul(AFFINE, true), &[&three, &single[0], &single[1], &single[2]]).unwrap();
    assert_eq!(shape(&got), [3, 1, n as i64]);
    assert_close(&doubles(&got), &product(&x, &meant[..n * k], k), 1e-3);
}

#[test]
fn products_with_picked_weights() {
    let (n, k) = (2usize, 64usize);
    let (dense, x) = (numbers(3 * n * k, 8), numbers(2 * k, 9));
    for scheme in [AFFINE, (32, 4, "mxfp4"), (32, 8, "mxfp8")] {
        let parts = quantized(scheme, &array(&dense, &[3, n as i64, k as i64]));
        let meant = unpacked(scheme, &parts);
        let pair = |row: usize, weight: usize| {
            product(&x[row * k..][..k], &meant[weight * n * k..][..n * k], k)
        };
        let rows = array(&x, &[2, 1, k as i64]);
        let biases = parts.get(2);
        let build_with = |left: Option<&Array>, right: Option<&Array>| {
            let inputs = [Some(&rows), Some(&parts[0]), Some(&parts[1]), biases, left, right];
            gather(scheme, true).build(&build(), &inputs)
        };
        // Negative ones count from the end, others are clamped.
        let (left, right) = (vector(&[1i32, 0, 99, -99]), vector(&[-1i64, 1, i64::MAX, i64::MIN]));
        let got = build_with(Some(&left), Some(&right)).unwrap();
        assert_eq!(shape(&got), [4, 1, n as i64]);
        let expected = [pair(1, 2), pair(0, 1), pair(1, 2), pair(0, 0)].concat();
        assert_close(&doubles(&got), &expected, 1e-3);
        let got = build_with(None, Some(&vector(&[2u32, 0]))).unwrap();
        assert_close(&doubles(&got), &[pair(0, 2), pair(1, 0)].concat(), 1e-3);
        let none = vector::<i32>(&[]);
        assert_eq!(shape(&build_with(Some(&none), Some(&none)).unwrap()), [0, 1, n as i64]);
        for bad in [vector(&[0f32, 1.0]), vector(&[0f32; 0])] {
            let error = build_with(Some(&bad), None).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
        }
        let error = build_with(Some(&vector(&[0, 0])), Some(&vector(&[0, 0, 0]))).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }
}

#[test]
fn nothing_is_packed_into_nothing() {
    for scheme in [AFFINE, (16, 4, "nvfp4")] {
        let parts = quantized(scheme, &array(&[], &[0, 64]));
        assert_eq!(shape(&parts[0]), [0, 8]);
        let inputs: Vec<&Array> = parts.iter().collect();
        assert_eq!(shape(&run(dequantize(scheme), &inputs).unwrap()), [0, 64]);
        let x = array(&[0.0; 128], &[2, 64]);
        let inputs: Vec<&Array> = std::iter::once(&x).chain(&parts).collect();
        assert_eq!(shape(&run(matmul(scheme, true), &inputs).unwrap()), [2, 0]);
        let none = array(&[], &[2, 0]);
        let inputs: Vec<&Array> = std::iter::once(&none).chain(&parts).collect();
        assert_eq!(doubles(&run(matmul(scheme, false), &inputs).unwrap()), [0.0; 128]);
    }
}

#[test]
fn unknown_schemes_are_refused() {
    let weight = array(&[0.0; 256], &[2, 128]);
    let parts = quantized(AFFINE, &weight);
    for scheme in [
        (16, 4, "affine"),
        (0, 4, "affine"),
        (-64, 4, "affine"),
        (64, 7, "affine"),
        (64, 0, "affine"),
        (64, -4, "affine"),
        (64, 1 << 32, "affine"),
        (64, 4, "mxfp4"),
        (32, 8, "mxfp4"),
        (32, 4, "mxfp8"),
        (32, 4, "nvfp4"),
        (16, 8, "nvfp4"),
        (64, 4, ""),
        (64, 4, "Affine"),
        (64, 4, "affine\0"),
    ] {
        let error = quantize(scheme).build_all(&build(), &[Some(&weight)]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{scheme:?}");
        refuses(dequantize(scheme), &[&parts[0], &parts[1], &parts[2]]);
        refuses(matmul(scheme, true), &[&weight, &parts[0], &parts[1], &parts[2]]);
        refuses(gather(scheme, true), &[&weight, &parts[0], &parts[1], &parts[2]]);
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let dense = array(&numbers(4 * 128, 10), &[4, 128]);
    let x = array(&numbers(128, 11), &[1, 128]);
    let parts = quantized(AFFINE, &dense);
    let (packed, scales, biases) = (&parts[0], &parts[1], &parts[2]);
    let reshaped = |array: &Array, shape: &[i64]| {
        run(Op::Reshape(emily_core::op::Shape { shape: shape.to_vec() }), &[array]).unwrap()
    };
    let refused = |packed: &Array, scales: &Array, biases: Option<&Array>| {
        let all = [
            (dequantize(AFFINE), vec![Some(packed), Some(scales), biases]),
            (matmul(AFFINE, true), vec![Some(&x), Some(packed), Some(scales), biases]),
            (gather(AFFINE, true), vec![Some(&x), Some(packed), Some(scales), biases]),
        ];
        for (op, inputs) in all {
            let error = op.build(&build(), &inputs).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        }
    };
    refused(&cast(packed, Dtype::Int32), scales, Some(biases));
    refused(&reshaped(packed, &[64]), scales, Some(biases));
    refused(&reshaped(packed, &[8, 8]), scales, Some(biases));
    refused(&reshaped(packed, &[16, 4]), &reshaped(scales, &[8]), Some(biases));
    refused(packed, &reshaped(scales, &[2, 4]), Some(biases));
    refused(packed, scales, Some(&reshaped(biases, &[8])));
    refused(packed, scales, None);
    refused(packed, &cast(scales, Dtype::Uint8), Some(biases));
    refused(packed, scales, Some(&cast(biases, Dtype::Int32)));
    refused(packed, &cast(scales, Dtype::Float64), Some(&cast(biases, Dtype::Float64)));
    // Fewer rows of scales than of the weight.
    let half = quantized(AFFINE, &array(&[0.5; 256], &[2, 128]));
    refused(packed, &half[1], Some(&half[2]));
    // Microscaled modes have scales of one byte and no biases.
    let micro = quantized((32, 4, "mxfp4"), &dense);
    let op = || dequantize((32, 4, "mxfp4"));
    run(op(), &[&micro[0], &micro[1]]).unwrap();
    refuses(op(), &[&micro[0], &cast(&micro[1], Dtype::Float32)]);
    refuses(op(), &[&micro[0], &micro[1], &scalar(0f32)]);
    // The other factor.
    for x in [
        array(&[0.0; 64], &[1, 64]),
        scalar(1f32),
        tensor(&[1i32; 128], &[1, 128]),
        cast(&x, Dtype::Float64),
    ] {
        refuses(matmul(AFFINE, true), &[&x, packed, scales, biases]);
    }
    // What cannot be packed.
    for weight in [
        array(&[0.0; 64], &[64]),
        scalar(1f32),
        array(&[0.0; 100], &[1, 100]),
        cast(&dense, Dtype::Float64),
        cast(&dense, Dtype::Int8),
    ] {
        let error = quantize(AFFINE).build_all(&build(), &[Some(&weight)]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    }
}
