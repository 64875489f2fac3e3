//! Shapes, creation and casts against elements written out by hand.

mod support;

use emily_core::dtype::Dtype;
use emily_core::op::*;
use support::*;

fn axes(axes: &[i64]) -> Axes {
    Axes { axes: axes.to_vec() }
}

fn to(shape: &[i64]) -> Shape {
    Shape { shape: shape.to_vec() }
}

/// 0 to 5 in two rows.
fn rows() -> mlx_rs::Array {
    tensor(&[0i32, 1, 2, 3, 4, 5], &[2, 3])
}

#[test]
fn the_same_elements_in_another_shape() {
    let x = rows();
    let all = [0i32, 1, 2, 3, 4, 5];
    check(Op::Reshape(to(&[3, 2])), &[&x], &[3, 2], &all);
    check(Op::Reshape(to(&[])), &[&vector(&[7i32])], &[], &[7i32]);
    check(Op::Reshape(to(&[1, 1])), &[&scalar(7i32)], &[1, 1], &[7i32]);
    check(Op::Reshape(to(&[3, 0])), &[&tensor::<i32>(&[], &[0])], &[3, 0], &[0i32; 0]);
    check(Op::ExpandDims(axes(&[0, -1])), &[&x], &[1, 2, 3, 1], &all);
    check(Op::ExpandDims(axes(&[0])), &[&scalar(7i32)], &[1], &[7i32]);
    check(Op::Squeeze(axes(&[1])), &[&tensor(&all, &[2, 1, 3])], &[2, 3], &all);
    check(Op::Squeeze(axes(&[])), &[&scalar(7i32)], &[], &[7i32]);
    let flatten = |start_axis, end_axis| Op::Flatten(Flatten { start_axis, end_axis });
    check(flatten(0, -1), &[&x], &[6], &all);
    check(flatten(1, 2), &[&tensor(&all, &[1, 2, 3])], &[1, 6], &all);
    check(flatten(0, -1), &[&scalar(7i32)], &[1], &[7i32]);
    check(flatten(0, 0), &[&scalar(7i32)], &[1], &[7i32]);
    check(Op::Contiguous, &[&x], &[2, 3], &all);
}

#[test]
fn axes_in_another_order() {
    let x = rows();
    check(Op::Transpose(axes(&[1, 0])), &[&x], &[3, 2], &[0i32, 3, 1, 4, 2, 5]);
    check(Op::Transpose(axes(&[-1, 0])), &[&x], &[3, 2], &[0i32, 3, 1, 4, 2, 5]);
    check(Op::Transpose(axes(&[])), &[&scalar(7i32)], &[], &[7i32]);
    let swap = Swapaxes { axis1: 0, axis2: -1 };
    check(Op::Swapaxes(swap), &[&x], &[3, 2], &[0i32, 3, 1, 4, 2, 5]);
    check(Op::Flip(axes(&[0])), &[&x], &[2, 3], &[3i32, 4, 5, 0, 1, 2]);
    check(Op::Flip(axes(&[-1, 0])), &[&x], &[2, 3], &[5i32, 4, 3, 2, 1, 0]);
    check(Op::Flip(axes(&[])), &[&scalar(7i32)], &[], &[7i32]);
    check(Op::Flip(axes(&[0, 1])), &[&tensor::<i32>(&[], &[0, 1])], &[0, 1], &[0i32; 0]);
    // Elementwise on a reversed view.
    let reversed = run(Op::Flip(axes(&[1])), &[&x]).unwrap();
    check(Op::Negative, &[&reversed], &[2, 3], &[-2i32, -1, 0, -5, -4, -3]);
    check(Op::Add, &[&reversed, &x], &[2, 3], &[2i32, 2, 2, 8, 8, 8]);
    let roll = |shift, axis| Op::Roll(Roll { shift, axis });
    check(roll(1, 1), &[&x], &[2, 3], &[2i32, 0, 1, 5, 3, 4]);
    check(roll(-1, 1), &[&x], &[2, 3], &[1i32, 2, 0, 4, 5, 3]);
    check(roll(3, 0), &[&x], &[2, 3], &[3i32, 4, 5, 0, 1, 2]);
    check(roll(i64::MIN, 1), &[&x], &[2, 3], &[2i32, 0, 1, 5, 3, 4]);
    check(roll(1, 0), &[&tensor::<i32>(&[], &[0])], &[0], &[0i32; 0]);
}

#[test]
fn repetitions() {
    let x = vector(&[1i32, 2]);
    check(Op::BroadcastTo(to(&[2, 2])), &[&x], &[2, 2], &[1i32, 2, 1, 2]);
    check(Op::BroadcastTo(to(&[0, 2])), &[&x], &[0, 2], &[0i32; 0]);
    check(Op::BroadcastTo(to(&[2])), &[&scalar(7i32)], &[2], &[7i32, 7]);
    let tile = |reps: &[i64]| Op::Tile(Tile { reps: reps.to_vec() });
    check(tile(&[3]), &[&x], &[6], &[1i32, 2, 1, 2, 1, 2]);
    check(tile(&[2, 1]), &[&x], &[2, 2], &[1i32, 2, 1, 2]);
    check(tile(&[2]), &[&rows()], &[2, 6], &[0i32, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]);
    check(tile(&[]), &[&scalar(7i32)], &[], &[7i32]);
    check(tile(&[2, 2]), &[&scalar(7i32)], &[2, 2], &[7i32; 4]);
    check(tile(&[0]), &[&x], &[0], &[0i32; 0]);
    let repeat = |count, axis| Op::Repeat(Repeat { count, axis });
    check(repeat(2, 0), &[&x], &[4], &[1i32, 1, 2, 2]);
    check(repeat(2, -1), &[&tensor(&[1i32, 2], &[2, 1])], &[2, 2], &[1i32, 1, 2, 2]);
    check(repeat(1, 0), &[&x], &[2], &[1i32, 2]);
    check(repeat(0, 0), &[&x], &[0], &[0i32; 0]);
}

#[test]
fn joins_and_cuts() {
    let (x, y) = (rows(), tensor(&[9i32, 8], &[2, 1]));
    let along = |axis| Axis { axis };
    check(Op::Concatenate(along(1)), &[&x, &y], &[2, 4], &[0i32, 1, 2, 9, 3, 4, 5, 8]);
    check(Op::Concatenate(along(-2)), &[&y, &y], &[4, 1], &[9i32, 8, 9, 8]);
    check(Op::Concatenate(along(0)), &[&y], &[2, 1], &[9i32, 8]);
    let none = tensor::<i32>(&[], &[0, 1]);
    check(Op::Concatenate(along(0)), &[&none, &y, &none], &[2, 1], &[9i32, 8]);
    check(Op::Concatenate(along(0)), &[&none, &none], &[0, 1], &[0i32; 0]);
    let (narrow, wide) = (vector(&[1u8]), vector(&[0.5f32]));
    check(Op::Concatenate(along(0)), &[&narrow, &wide], &[2], &[1f32, 0.5]);
    let (a, b) = (vector(&[1i32, 2]), vector(&[3i32, 4]));
    check(Op::Stack(along(0)), &[&a, &b], &[2, 2], &[1i32, 2, 3, 4]);
    check(Op::Stack(along(-1)), &[&a, &b], &[2, 2], &[1i32, 3, 2, 4]);
    check(Op::Stack(along(0)), &[&scalar(1i32), &scalar(2i32)], &[2], &[1i32, 2]);
    check(Op::Stack(along(0)), &[&narrow, &wide], &[2, 1], &[1f32, 0.5]);
    check(Op::Stack(along(1)), &[&a], &[2, 1], &[1i32, 2]);

    let cut = |parts, axis| Op::Split(Split { parts, axis });
    let parts = cut(3, 1).build_all(&build(), &[Some(&x)]).unwrap();
    let parts: Vec<Vec<i32>> = parts.iter().map(read).collect();
    assert_eq!(parts, [[0, 3], [1, 4], [2, 5]]);
    assert_eq!(cut(1, 0).build_all(&build(), &[Some(&none)]).unwrap().len(), 1);
    for (parts, axis) in [(2, 1), (0, 0), (-1, 0), (4, 0), (i64::MAX, 0), (1, 2)] {
        let error = cut(parts, axis).build_all(&build(), &[Some(&x)]).unwrap_err();
        assert_eq!(error.kind(), emily_core::error::Kind::InvalidArgument, "{error}");
    }
    assert!(cut(1 << 30, 0).build_all(&build(), &[Some(&none)]).is_err());
}

#[test]
fn padding() {
    let pad = |axes: &[i64], low: &[i64], high: &[i64]| {
        let (axes, low, high) = (axes.to_vec(), low.to_vec(), high.to_vec());
        Op::Pad(Pad { axes, low, high })
    };
    let (x, nine) = (tensor(&[1i32, 2], &[1, 2]), scalar(9i32));
    check(pad(&[1], &[1], &[2]), &[&x, &nine], &[1, 5], &[9i32, 1, 2, 9, 9]);
    check(pad(&[-1, 0], &[0, 1], &[1, 0]), &[&x, &nine], &[2, 3], &[9i32, 9, 9, 1, 2, 9]);
    check(pad(&[0], &[0], &[0]), &[&x, &nine], &[1, 2], &[1i32, 2]);
    check(pad(&[], &[], &[]), &[&scalar(7i32), &nine], &[], &[7i32]);
    let none = tensor::<i32>(&[], &[0, 2]);
    check(pad(&[0], &[1], &[0]), &[&none, &nine], &[1, 2], &[9i32, 9]);
    check(pad(&[1], &[1], &[0]), &[&none, &nine], &[0, 3], &[0i32; 0]);
    // The value in the tensor's dtype, and as the only element of a tensor of any rank.
    let value = tensor(&[f32::NEG_INFINITY], &[1, 1, 1]);
    check(pad(&[1], &[1], &[0]), &[&x, &value], &[1, 3], &[i32::MIN, 1, 2]);

    refuses(pad(&[1], &[-1], &[0]), &[&x, &nine]);
    refuses(pad(&[1], &[0], &[i64::MAX]), &[&x, &nine]);
    refuses(pad(&[1], &[i64::from(i32::MAX)], &[0]), &[&x, &nine]);
    refuses(pad(&[2], &[0], &[0]), &[&x, &nine]);
    refuses(pad(&[1, 1], &[0, 0], &[0, 0]), &[&x, &nine]);
    refuses(pad(&[1], &[0, 0], &[0]), &[&x, &nine]);
    refuses(pad(&[0], &[0], &[0]), &[&nine, &nine]);
    refuses(pad(&[1], &[1], &[0]), &[&x, &vector(&[1i32, 2])]);
}

#[test]
fn views() {
    let x = rows();
    let strided = |shape: &[i64], strides: &[i64], offset| {
        Op::AsStrided(AsStrided { shape: shape.to_vec(), strides: strides.to_vec(), offset })
    };
    check(strided(&[2, 2], &[1, 2], 1), &[&x], &[2, 2], &[1i32, 3, 2, 4]);
    check(strided(&[3], &[0], 5), &[&x], &[3], &[5i32, 5, 5]);
    check(strided(&[], &[], 4), &[&x], &[], &[4i32]);
    check(strided(&[0], &[100], 100), &[&x], &[0], &[0i32; 0]);
    check(strided(&[1], &[i64::MAX], 0), &[&scalar(7i32)], &[1], &[7i32]);
    // The elements that count are the view's, not those of the memory behind it.
    let gaps = run(Op::Flip(axes(&[0])), &[&vector(&[1i32, 2, 3])]).unwrap();
    check(strided(&[2], &[2], 0), &[&gaps], &[2], &[3i32, 1]);
    let transposed = run(Op::Transpose(axes(&[1, 0])), &[&x]).unwrap();
    check(strided(&[3], &[1], 0), &[&transposed], &[3], &[0i32, 3, 1]);

    refuses(strided(&[2, 2], &[1, 4], 1), &[&gaps]);
    refuses(strided(&[2], &[1], 5), &[&x]);
    refuses(strided(&[2], &[i64::MAX], 0), &[&x]);
    refuses(strided(&[i64::from(i32::MAX); 3], &[i64::MAX; 3], 0), &[&x]);
    refuses(strided(&[2], &[-1], 1), &[&x]);
    refuses(strided(&[1], &[1], -1), &[&x]);
    refuses(strided(&[1], &[1], i64::MAX), &[&x]);
    refuses(strided(&[-1], &[1], 0), &[&x]);
    refuses(strided(&[2], &[1, 1], 0), &[&x]);
}

#[test]
fn diagonals() {
    let x = tensor(&[1i32, 2, 3, 4, 5, 6, 7, 8, 9], &[3, 3]);
    let (tril, triu) = (|k| Op::Tril(Diagonal { k }), |k| Op::Triu(Diagonal { k }));
    check(tril(0), &[&x], &[3, 3], &[1i32, 0, 0, 4, 5, 0, 7, 8, 9]);
    check(tril(1), &[&x], &[3, 3], &[1i32, 2, 0, 4, 5, 6, 7, 8, 9]);
    check(tril(i64::MIN), &[&x], &[3, 3], &[0i32; 9]);
    check(tril(i64::MAX), &[&x], &[3, 3], &[1i32, 2, 3, 4, 5, 6, 7, 8, 9]);
    check(triu(0), &[&x], &[3, 3], &[1i32, 2, 3, 0, 5, 6, 0, 0, 9]);
    check(triu(-1), &[&x], &[3, 3], &[1i32, 2, 3, 4, 5, 6, 0, 8, 9]);
    check(triu(i64::MIN), &[&x], &[3, 3], &[1i32, 2, 3, 4, 5, 6, 7, 8, 9]);
    check(triu(i64::MAX), &[&x], &[3, 3], &[0i32; 9]);
    check(triu(0), &[&tensor::<i32>(&[], &[0, 2])], &[0, 2], &[0i32; 0]);

    let diagonal = |offset, axis1, axis2| Op::Diagonal(DiagonalOf { offset, axis1, axis2 });
    check(diagonal(0, 0, 1), &[&x], &[3], &[1i32, 5, 9]);
    check(diagonal(1, 0, 1), &[&x], &[2], &[2i32, 6]);
    check(diagonal(-1, -2, -1), &[&x], &[2], &[4i32, 8]);
    check(diagonal(1, 1, 0), &[&x], &[2], &[4i32, 8]);
    check(diagonal(i64::MIN, 0, 1), &[&x], &[0], &[0i32; 0]);
    check(diagonal(3, 0, 1), &[&x], &[0], &[0i32; 0]);
    let cube = tensor(&[0i32, 1, 2, 3, 4, 5, 6, 7], &[2, 2, 2]);
    check(diagonal(0, 0, 2), &[&cube], &[2, 2], &[0i32, 5, 2, 7]);
    check(diagonal(0, 0, 1), &[&tensor::<i32>(&[], &[0, 2, 3])], &[3, 0], &[0i32; 0]);

    for op in [tril(0), triu(0), diagonal(0, 0, 1)] {
        refuses(op.clone(), &[&scalar(1i32)]);
        refuses(op, &[&vector(&[1i32])]);
    }
    refuses(diagonal(0, 1, 1), &[&x]);
    refuses(diagonal(0, 1, -1), &[&x]);
    refuses(diagonal(0, 0, 2), &[&x]);
}

#[test]
fn creation() {
    let fill = |shape: &[i64], dtype| Fill { shape: shape.to_vec(), dtype };
    check(Op::Zeros(fill(&[2], Dtype::Int32)), &[], &[2], &[0i32, 0]);
    check(Op::Ones(fill(&[2, 1], Dtype::Float32)), &[], &[2, 1], &[1f32, 1.0]);
    check(Op::Ones(fill(&[], Dtype::Bool)), &[], &[], &[true]);
    check(Op::Ones(fill(&[0], Dtype::Uint8)), &[], &[0], &[0u8; 0]);
    let full = |shape: &[i64], dtype| Op::Full(fill(shape, dtype));
    check(full(&[2], Dtype::Uint8), &[&scalar(3.7f32)], &[2], &[3u8, 3]);
    check(full(&[2, 2], Dtype::Int32), &[&vector(&[1i32, 2])], &[2, 2], &[1i32, 2, 1, 2]);
    check(full(&[0, 2], Dtype::Int32), &[&scalar(1i32)], &[0, 2], &[0i32; 0]);

    let eye = |rows, cols, k| Op::Eye(Eye { rows, cols, k, dtype: Dtype::Int32 });
    check(eye(2, 3, 0), &[], &[2, 3], &[1i32, 0, 0, 0, 1, 0]);
    check(eye(2, 3, 1), &[], &[2, 3], &[0i32, 1, 0, 0, 0, 1]);
    check(eye(3, 2, -1), &[], &[3, 2], &[0i32, 0, 1, 0, 0, 1]);
    check(eye(2, 2, i64::MIN), &[], &[2, 2], &[0i32; 4]);
    check(eye(2, 2, i64::MAX), &[], &[2, 2], &[0i32; 4]);
    check(eye(0, 2, 0), &[], &[0, 2], &[0i32; 0]);
    for &dtype in Dtype::ALL {
        let two = run(Op::Eye(Eye { rows: 2, cols: 2, k: 0, dtype }), &[]).unwrap();
        check(
            Op::Astype(Cast { dtype: Dtype::Bool }),
            &[&two],
            &[2, 2],
            &[true, false, false, true],
        );
    }

    for shape in [&[-1i64][..], &[1 << 31], &[1 << 30, 1 << 30], &[i64::MAX, 0]] {
        refuses(Op::Zeros(fill(shape, Dtype::Uint8)), &[]);
        refuses(Op::Ones(fill(shape, Dtype::Float32)), &[]);
        refuses(full(shape, Dtype::Float32), &[&scalar(1f32)]);
        refuses(Op::BroadcastTo(to(shape)), &[&scalar(1f32)]);
        refuses(Op::Reshape(to(shape)), &[&scalar(1f32)]);
    }
    refuses(full(&[2], Dtype::Int32), &[&vector(&[1i32, 2, 3])]);
    refuses(full(&[1], Dtype::Int32), &[&vector(&[1i32, 2, 3])]);
    refuses(full(&[], Dtype::Int32), &[&vector(&[1i32])]);
    refuses(eye(-1, 2, 0), &[]);
    refuses(eye(2, 1 << 31, 0), &[]);
    refuses(eye(1 << 30, 1 << 30, 0), &[]);
}

#[test]
fn ranges() {
    let range = |start, stop, step, dtype| Op::Arange(Arange { start, stop, step, dtype });
    check(range(0.0, 3.0, 1.0, Dtype::Int32), &[], &[3], &[0i32, 1, 2]);
    check(range(3.0, 0.0, -2.0, Dtype::Float32), &[], &[2], &[3f32, 1.0]);
    check(range(0.0, 0.0, 1.0, Dtype::Int64), &[], &[0], &[0i64; 0]);
    check(range(0.0, -5.0, 1.0, Dtype::Complex64), &[], &[0], &[] as &[mlx_sys::mlx_complex64_t]);
    check(range(0.0, 1.0, 0.25, Dtype::Float64), &[], &[4], &[0f64, 0.25, 0.5, 0.75]);
    check(range(255.0, 252.0, -1.0, Dtype::Uint8), &[], &[3], &[255u8, 254, 253]);
    check(
        range(1.0, 3.0, 1.0, Dtype::Complex64),
        &[],
        &[2],
        &[complex(1.0, 0.0), complex(2.0, 0.0)],
    );
    // Adding the step up would drift, and in half precision stand still at 2048.
    let hundred: Vec<f32> = read(&run(range(1000.0, 1001.0, 0.001, Dtype::Float32), &[]).unwrap());
    assert_eq!(hundred.len(), 1000);
    assert!((hundred[999] - 1000.999).abs() < 1e-4, "{}", hundred[999]);
    let half = run(range(0.0, 4096.0, 1.0, Dtype::Float16), &[]).unwrap();
    let half: Vec<f32> = read(&run(Op::Astype(Cast { dtype: Dtype::Float32 }), &[&half]).unwrap());
    assert_eq!(half[4094], 4094.0);

    let (inf, nan) = (f64::INFINITY, f64::NAN);
    for (start, stop, step) in [
        (0.0, 1.0, 0.0),
        (nan, 1.0, 1.0),
        (0.0, inf, 1.0),
        (-inf, 1.0, 1.0),
        (0.0, 1.0, inf),
        (0.0, 1.0, nan),
        (0.0, 1e18, 1.0),
        (-1e308, 1e308, 1.0),
        (0.0, 1.0, 1e-300),
    ] {
        refuses(range(start, stop, step, Dtype::Float32), &[]);
    }
    refuses(range(0.0, 3.0, 1.0, Dtype::Bool), &[]);
    refuses(range(0.0, 300.0, 1.0, Dtype::Uint8), &[]);
    refuses(range(-1.0, 3.0, 1.0, Dtype::Uint64), &[]);
    refuses(range(1e20, 2e20, 1e20, Dtype::Int64), &[]);
    refuses(range(9223372036854775808.0, 1e19, 1e18, Dtype::Int64), &[]);
}

#[test]
fn casts() {
    let cast = |dtype| Op::Astype(Cast { dtype });
    let x = vector(&[1.9f32, -1.9, 300.0, -300.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    check(cast(Dtype::Uint8), &[&x], &[7], &[1u8, 0, 255, 0, 255, 0, 0]);
    check(cast(Dtype::Int8), &[&x], &[7], &[1i8, -1, 127, -128, 127, -128, 0]);
    check(cast(Dtype::Int16), &[&x], &[7], &[1i16, -1, 300, -300, i16::MAX, i16::MIN, 0]);
    check(cast(Dtype::Int32), &[&x], &[7], &[1i32, -1, 300, -300, i32::MAX, i32::MIN, 0]);
    check(cast(Dtype::Uint32), &[&x], &[7], &[1u32, 0, 300, 0, u32::MAX, 0, 0]);
    check(cast(Dtype::Int64), &[&x], &[7], &[1i64, -1, 300, -300, i64::MAX, i64::MIN, 0]);
    check(cast(Dtype::Uint64), &[&x], &[7], &[1u64, 0, 300, 0, u64::MAX, 0, 0]);
    check(cast(Dtype::Bool), &[&x], &[7], &[true; 7]);
    // The same for every position in MLX's loops, and from every inexact dtype.
    let many = vector(&[1e30f32; 37]);
    check(cast(Dtype::Uint8), &[&many], &[37], &[255u8; 37]);
    let y = vector(&[2147483647.5f64, -1e300, f64::NAN, 4294967295.9]);
    check(cast(Dtype::Int32), &[&y], &[4], &[i32::MAX, i32::MIN, 0, i32::MAX]);
    check(cast(Dtype::Uint32), &[&y], &[4], &[2147483647u32, 0, 0, u32::MAX]);
    for dtype in [Dtype::Float16, Dtype::Bfloat16, Dtype::Complex64] {
        let x = run(cast(dtype), &[&x]).unwrap();
        check(cast(Dtype::Int8), &[&x], &[7], &[1i8, -1, 127, -128, 127, -128, 0]);
    }
    check(cast(Dtype::Uint8), &[&scalar(-1i32)], &[], &[255u8]);
    check(cast(Dtype::Int8), &[&scalar(200u8)], &[], &[-56i8]);
    check(cast(Dtype::Float32), &[&scalar(complex(1.5, 2.0))], &[], &[1.5f32]);
    check(cast(Dtype::Bool), &[&vector(&[0i32, 2])], &[2], &[false, true]);
}

#[test]
fn bitcasts() {
    let cast = |dtype| Op::Bitcast(Cast { dtype });
    check(cast(Dtype::Uint32), &[&scalar(1f32)], &[], &[0x3f80_0000u32]);
    check(cast(Dtype::Int32), &[&vector(&[u32::MAX])], &[1], &[-1i32]);
    check(cast(Dtype::Uint8), &[&scalar(true)], &[], &[1u8]);
    check(cast(Dtype::Float32), &[&scalar(1f32)], &[], &[1f32]);
    let words = tensor(&[0x0102_0304u32, 0x0506_0708], &[2, 1]);
    check(cast(Dtype::Uint16), &[&words], &[2, 2], &[0x0304u16, 0x0102, 0x0708, 0x0506]);
    let bytes = tensor(&[1u8, 0, 2, 0, 3, 0, 4, 0], &[2, 4]);
    check(cast(Dtype::Uint16), &[&bytes], &[2, 2], &[1u16, 2, 3, 4]);
    check(cast(Dtype::Uint32), &[&bytes], &[2, 1], &[0x0002_0001u32, 0x0004_0003]);
    // Elements that are apart in memory: transposed, reversed, and a single one of a longer vector.
    let transposed =
        run(Op::Transpose(axes(&[1, 0])), &[&tensor(&[1u16, 2, 3, 4], &[2, 2])]).unwrap();
    check(cast(Dtype::Uint8), &[&transposed], &[2, 4], &[1u8, 0, 3, 0, 2, 0, 4, 0]);
    let reversed = run(Op::Flip(axes(&[0])), &[&vector(&[1u8, 2])]).unwrap();
    check(cast(Dtype::Uint16), &[&reversed], &[1], &[0x0102u16]);
    let view = AsStrided { shape: vec![1], strides: vec![2], offset: 1 };
    let one = run(Op::AsStrided(view), &[&vector(&[1u32, 0x0005_0004, 3])]).unwrap();
    check(cast(Dtype::Uint16), &[&one], &[2], &[4u16, 5]);
    // A column whose stride is that of the row it was: MLX's own view would read beyond the tensor.
    let column = tensor(&[1u32, 0x0005_0004, 3, 9], &[1, 4]);
    let column = run(Op::Transpose(axes(&[1, 0])), &[&column]).unwrap();
    let halves = run(cast(Dtype::Uint16), &[&column]).unwrap();
    check(Op::Transpose(axes(&[1, 0])), &[&halves], &[2, 4], &[1u16, 4, 3, 9, 0, 5, 0, 0]);
    check(cast(Dtype::Uint16), &[&tensor::<u32>(&[], &[0, 2])], &[0, 4], &[0u16; 0]);

    refuses(cast(Dtype::Uint16), &[&scalar(1f32)]);
    refuses(cast(Dtype::Uint32), &[&vector(&[1u8, 2, 3])]);
    refuses(cast(Dtype::Bool), &[&scalar(1u8)]);
    let shape = vec![i64::from(i32::MAX)];
    let long = run(Op::BroadcastTo(Shape { shape }), &[&scalar(1f32)]).unwrap();
    refuses(cast(Dtype::Uint8), &[&long]);
}

#[test]
fn hostile_arguments_are_refused() {
    let (x, one) = (rows(), scalar(1i32));
    let long = i64::from(i32::MAX);
    refuses(Op::Reshape(to(&[-1, 6])), &[&x]);
    refuses(Op::Reshape(to(&[4])), &[&x]);
    refuses(Op::Reshape(to(&[0])), &[&x]);
    for bad in [&[0i64][..], &[0, 0], &[0, 2], &[-3, 0], &[0, 1, 2], &[]] {
        refuses(Op::Transpose(axes(bad)), &[&x]);
    }
    refuses(Op::Transpose(axes(&[0])), &[&one]);
    refuses(Op::Swapaxes(Swapaxes { axis1: 0, axis2: 2 }), &[&x]);
    refuses(Op::Swapaxes(Swapaxes { axis1: -3, axis2: 0 }), &[&x]);
    refuses(Op::Squeeze(axes(&[0])), &[&x]);
    refuses(Op::Squeeze(axes(&[0])), &[&one]);
    refuses(Op::ExpandDims(axes(&[3])), &[&x]);
    refuses(Op::ExpandDims(axes(&[0, 0])), &[&x]);
    refuses(Op::ExpandDims(axes(&[0, -4])), &[&x]);
    refuses(Op::BroadcastTo(to(&[3])), &[&x]);
    refuses(Op::BroadcastTo(to(&[2, 1])), &[&x]);
    refuses(Op::BroadcastTo(to(&[2, 4])), &[&x]);
    for (start_axis, end_axis) in [(1, 0), (2, 2), (0, 2), (-3, 1), (0, i64::MAX)] {
        refuses(Op::Flatten(Flatten { start_axis, end_axis }), &[&x]);
    }
    refuses(Op::Flatten(Flatten { start_axis: 1, end_axis: 1 }), &[&one]);
    let view = run(Op::BroadcastTo(to(&[long, 2])), &[&one]).unwrap();
    refuses(Op::Flatten(Flatten { start_axis: 0, end_axis: 1 }), &[&view]);
    refuses(Op::Concatenate(Axis { axis: 0 }), &[&view, &view]);
    refuses(Op::Concatenate(Axis { axis: 0 }), &[&one, &one]);
    refuses(Op::Concatenate(Axis { axis: 2 }), &[&x, &x]);
    refuses(Op::Concatenate(Axis { axis: 2 }), &[&x]);
    refuses(Op::Concatenate(Axis { axis: 0 }), &[&x, &vector(&[1i32])]);
    refuses(Op::Concatenate(Axis { axis: 0 }), &[&x, &tensor(&[1i32, 2], &[1, 2])]);
    refuses(Op::Concatenate(Axis { axis: 0 }), &[]);
    refuses(Op::Stack(Axis { axis: 3 }), &[&x, &x]);
    refuses(Op::Stack(Axis { axis: 0 }), &[&x, &one]);
    refuses(Op::Stack(Axis { axis: 0 }), &[]);
    refuses(Op::Tile(Tile { reps: vec![-1] }), &[&x]);
    refuses(Op::Tile(Tile { reps: vec![long] }), &[&x]);
    refuses(Op::Tile(Tile { reps: vec![long, long, long] }), &[&one]);
    refuses(Op::Repeat(Repeat { count: -1, axis: 0 }), &[&x]);
    refuses(Op::Repeat(Repeat { count: long, axis: 0 }), &[&x]);
    refuses(Op::Repeat(Repeat { count: i64::MAX, axis: 0 }), &[&x]);
    refuses(Op::Repeat(Repeat { count: 1, axis: 2 }), &[&x]);
    refuses(Op::Repeat(Repeat { count: 1, axis: 0 }), &[&one]);
    for bad in [&[2i64][..], &[0, 0], &[0, -2]] {
        refuses(Op::Flip(axes(bad)), &[&x]);
    }
    refuses(Op::Flip(axes(&[0])), &[&one]);
    refuses(Op::Roll(Roll { shift: 1, axis: 2 }), &[&x]);
    refuses(Op::Roll(Roll { shift: 1, axis: 0 }), &[&one]);
}
