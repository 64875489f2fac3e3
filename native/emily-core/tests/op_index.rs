//! Slices, gathers and scatters against elements picked by hand, with indices of every kind.

mod support;

use emily_core::dtype::Dtype;
use emily_core::op::{
    Axes, Axis, Gather, Op, Slice, SliceDynamic, SliceUpdate as SliceUpdateAttrs,
};
use mlx_rs::Array;
use support::*;

/// 0, 1, 2, .. as f32.
fn numbers(shape: &[i64]) -> Array {
    let count: i64 = shape.iter().product();
    tensor(&(0..count).map(|number| number as f32).collect::<Vec<_>>(), shape)
}

fn slice(starts: &[i64], stops: &[i64], strides: &[i64]) -> Op {
    let (starts, stops, strides) = (starts.to_vec(), stops.to_vec(), strides.to_vec());
    Op::Slice(Slice { starts, stops, strides })
}

fn slice_update(starts: &[i64], strides: &[i64]) -> Op {
    Op::SliceUpdate(SliceUpdateAttrs { starts: starts.to_vec(), strides: strides.to_vec() })
}

fn slice_dynamic(axes: &[i64], sizes: &[i64]) -> Op {
    Op::SliceDynamic(SliceDynamic { axes: axes.to_vec(), sizes: sizes.to_vec() })
}

fn take(axis: i64) -> Op {
    Op::Take(Axis { axis })
}

fn take_along_axis(axis: i64) -> Op {
    Op::TakeAlongAxis(Axis { axis })
}

fn gather(axes: &[i64], slice_sizes: &[i64]) -> Op {
    Op::Gather(Gather { axes: axes.to_vec(), slice_sizes: slice_sizes.to_vec() })
}

fn axes(axes: &[i64]) -> Axes {
    Axes { axes: axes.to_vec() }
}

#[test]
fn slices() {
    let a = numbers(&[3, 4]);
    check(slice(&[1, 0], &[3, 4], &[1, 2]), &[&a], &[2, 2], &[4f32, 6.0, 8.0, 10.0]);
    check(slice(&[0, 0], &[3, 4], &[1, 1]), &[&a], &[3, 4], &read::<f32>(&a));
    check(slice(&[3, 1], &[3, 4], &[1, 1]), &[&a], &[0, 3], &[] as &[f32]);
    check(slice(&[0, 1], &[3, 2], &[i64::from(i32::MAX), 9]), &[&a], &[1, 1], &[1f32]);
    check(slice(&[], &[], &[]), &[&scalar(7i32)], &[], &[7]);
}

#[test]
fn slices_outside_the_tensor_are_refused() {
    let a = numbers(&[3, 4]);
    refuses(slice(&[0, 0], &[4, 4], &[1, 1]), &[&a]);
    refuses(slice(&[-1, 0], &[3, 4], &[1, 1]), &[&a]);
    refuses(slice(&[0, 0], &[-1, 4], &[1, 1]), &[&a]);
    refuses(slice(&[2, 0], &[1, 4], &[1, 1]), &[&a]);
    refuses(slice(&[0, 0], &[3, 4], &[0, 1]), &[&a]);
    refuses(slice(&[0, 0], &[3, 4], &[-1, 1]), &[&a]);
    refuses(slice(&[0, 0], &[3, 4], &[1 << 40, 1]), &[&a]);
    refuses(slice(&[0], &[3], &[1]), &[&a]);
    refuses(slice(&[0, 0], &[3, 4], &[1]), &[&a]);
}

#[test]
fn slice_updates() {
    let a = numbers(&[2, 4]);
    let op = slice_update(&[1, 1], &[1, 2]);
    check(
        op,
        &[&a, &tensor(&[50f32, 70.0], &[1, 2])],
        &[2, 4],
        &[0f32, 1.0, 2.0, 3.0, 4.0, 50.0, 6.0, 70.0],
    );
    // The update is converted, an empty one changes nothing, one element has no stride.
    check(
        slice_update(&[0, 3], &[1, 1 << 30]),
        &[&a, &tensor(&[9u8], &[1, 1])],
        &[2, 4],
        &[0f32, 1.0, 2.0, 9.0, 4.0, 5.0, 6.0, 7.0],
    );
    check(slice_update(&[2, 0], &[1, 1]), &[&a, &numbers(&[0, 4])], &[2, 4], &read::<f32>(&a));
    refuses(slice_update(&[0, 2], &[1, 2]), &[&a, &numbers(&[1, 2])]);
    refuses(slice_update(&[2, 0], &[1, 1]), &[&a, &numbers(&[1, 1])]);
    refuses(slice_update(&[-1, 0], &[1, 1]), &[&a, &numbers(&[1, 1])]);
    refuses(slice_update(&[0, 0], &[1, 0]), &[&a, &numbers(&[1, 1])]);
    refuses(slice_update(&[0, 0], &[1, 1]), &[&a, &numbers(&[4])]);
}

#[test]
fn dynamic_starts_are_clamped() {
    let a = numbers(&[3, 4]);
    for (start, row) in [(0, 0), (1, 1), (2, 1), (3, 1), (i32::MAX, 1), (-1, 0), (i32::MIN, 0)] {
        let first = 4.0 * row as f32 + 1.0;
        let expected = [first, first + 1.0, first + 4.0, first + 5.0];
        let start = vector(&[start, 1]);
        check(slice_dynamic(&[0, 1], &[2, 2]), &[&a, &start], &[2, 2], &expected);
        // Axes in any order, starts of any dtype.
        let swapped = vector(&[1, read::<i32>(&start)[0] as i64]);
        check(slice_dynamic(&[1, -2], &[2, 2]), &[&a, &swapped], &[2, 2], &expected);
    }
    check(slice_dynamic(&[1], &[1, 2]), &[&a, &scalar(200u8)], &[1, 2], &[2f32, 3.0]);
    check(slice_dynamic(&[1], &[1, 2]), &[&a, &scalar(u64::MAX)], &[1, 2], &[2f32, 3.0]);
    check(slice_dynamic(&[1], &[1, 2]), &[&a, &scalar(-7i8)], &[1, 2], &[0f32, 1.0]);
    let long = numbers(&[1000]);
    check(slice_dynamic(&[0], &[1]), &[&long, &scalar(127i8)], &[1], &[127f32]);
    check(slice_dynamic(&[0], &[1]), &[&long, &scalar(i16::MAX)], &[1], &[999f32]);
    check(slice_dynamic(&[], &[1, 2]), &[&a, &vector::<i32>(&[])], &[1, 2], &[0f32, 1.0]);
    check(slice_dynamic(&[0], &[0, 2]), &[&a, &vector(&[9])], &[0, 2], &[] as &[f32]);
}

#[test]
fn dynamic_updates_are_clamped() {
    let a = numbers(&[2, 3]);
    let update = tensor(&[70f32, 80.0], &[1, 2]);
    for (start, expected) in [
        ([0, 0], [70f32, 80.0, 2.0, 3.0, 4.0, 5.0]),
        ([1, 1], [0.0, 1.0, 2.0, 3.0, 70.0, 80.0]),
        ([i64::MAX, i64::MAX], [0.0, 1.0, 2.0, 3.0, 70.0, 80.0]),
        ([i64::MIN, 1], [0.0, 70.0, 80.0, 3.0, 4.0, 5.0]),
    ] {
        let inputs = [&a, &update, &vector(&start)];
        check(Op::SliceUpdateDynamic(axes(&[0, 1])), &inputs, &[2, 3], &expected);
    }
    let empty = numbers(&[0, 2]);
    let inputs = [&a, &empty, &vector(&[0])];
    check(Op::SliceUpdateDynamic(axes(&[0])), &inputs, &[2, 3], &read::<f32>(&a));
}

#[test]
fn dynamic_slices_that_do_not_fit_are_refused() {
    let a = numbers(&[3, 4]);
    let start = vector(&[0, 0]);
    refuses(slice_dynamic(&[0, 1], &[4, 1]), &[&a, &start]);
    refuses(slice_dynamic(&[0, 1], &[-1, 1]), &[&a, &start]);
    refuses(slice_dynamic(&[0, 0], &[1, 1]), &[&a, &start]);
    refuses(slice_dynamic(&[0, 2], &[1, 1]), &[&a, &start]);
    refuses(slice_dynamic(&[0], &[1, 1]), &[&a, &start]);
    refuses(slice_dynamic(&[0, 1], &[1]), &[&a, &start]);
    refuses(slice_dynamic(&[0, 1], &[1, 1]), &[&a, &vector(&[0f32, 0.0])]);
    refuses(slice_dynamic(&[0, 1], &[1, 1]), &[&a, &tensor(&[0, 0], &[2, 1])]);
    refuses(Op::SliceUpdateDynamic(axes(&[0, 1])), &[&a, &numbers(&[4, 1]), &start]);
    refuses(Op::SliceUpdateDynamic(axes(&[0, 1])), &[&a, &numbers(&[4]), &start]);
}

#[test]
fn take_puts_the_indices_in_place_of_the_axis() {
    let a = numbers(&[2, 3]);
    let indices = tensor(&[2, 0], &[2, 1]);
    check(take(1), &[&a, &indices], &[2, 2, 1], &[2f32, 0.0, 5.0, 3.0]);
    check(take(-2), &[&a, &scalar(1u8)], &[3], &[3f32, 4.0, 5.0]);
    check(take(0), &[&a, &vector::<i64>(&[])], &[0, 3], &[] as &[f32]);
    check(take(0), &[&numbers(&[0, 3]), &vector::<i64>(&[])], &[0, 3], &[] as &[f32]);
    check(take(1), &[&numbers(&[0, 3]), &vector(&[1, 9])], &[0, 2], &[] as &[f32]);
    refuses(take(0), &[&numbers(&[0, 3]), &vector(&[0])]);
    refuses(take(0), &[&numbers(&[0, 0]), &vector(&[0])]);
    refuses(take(2), &[&a, &vector(&[0])]);
    refuses(take(0), &[&scalar(1f32), &vector(&[0])]);
    refuses(take(0), &[&a, &vector(&[0f32])]);
    refuses(take(0), &[&a, &vector(&[true])]);
}

/// Index tensors of each integer dtype, and the elements that they must pick from 5 in a row.
fn indices_of_every_dtype() -> Vec<(Array, Vec<f32>)> {
    vec![
        (vector(&[0u8, 4, 5, 255]), vec![0.0, 4.0, 4.0, 4.0]),
        (vector(&[0u16, 4, 5, u16::MAX]), vec![0.0, 4.0, 4.0, 4.0]),
        (vector(&[0u32, 4, 5, u32::MAX]), vec![0.0, 4.0, 4.0, 4.0]),
        (vector(&[0u64, 4, 1 << 32, u64::MAX]), vec![0.0, 4.0, 4.0, 4.0]),
        (vector(&[-1i8, -5, -6, i8::MIN, i8::MAX]), vec![4.0, 0.0, 0.0, 0.0, 4.0]),
        (vector(&[-1i16, -5, -6, i16::MIN, i16::MAX]), vec![4.0, 0.0, 0.0, 0.0, 4.0]),
        (vector(&[-1i32, -5, -6, i32::MIN, i32::MAX]), vec![4.0, 0.0, 0.0, 0.0, 4.0]),
        (vector(&[-1i64, -5, 1 << 32, i64::MIN, i64::MAX]), vec![4.0, 0.0, 4.0, 0.0, 4.0]),
    ]
}

#[test]
fn indices_that_read_are_clamped() {
    let a = numbers(&[5]);
    for (indices, expected) in indices_of_every_dtype() {
        let length = [expected.len() as i64];
        check(take(0), &[&a, &indices], &length, &expected);
        check(take_along_axis(0), &[&a, &indices], &length, &expected);
        check(gather(&[0], &[1]), &[&a, &indices], &[length[0], 1], &expected);
    }
    // An axis longer than the dtype of the indices counts.
    let long = numbers(&[1000]);
    check(take(0), &[&long, &vector(&[-128i8, 127])], &[2], &[872f32, 127.0]);
    check(take(0), &[&long, &vector(&[255u8])], &[1], &[255f32]);
}

#[test]
fn take_reads_any_layout() {
    // [[[0, 2, 4], [1, 3, 5]], [[6, 8, 10], [7, 9, 11]]]: no axis lies dense.
    let a = transposed(&numbers(&[2, 3, 2]), &[0, 2, 1]);
    let rows = &[1f32, 3.0, 5.0, 0.0, 2.0, 4.0, 7.0, 9.0, 11.0, 6.0, 8.0, 10.0];
    check(take(1), &[&a, &vector(&[9, 0])], &[2, 2, 3], rows);
    check(take(2), &[&a, &scalar(-9i8)], &[2, 2], &[0f32, 1.0, 6.0, 7.0]);
    check(take(0), &[&a, &vector(&[-1])], &[1, 2, 3], &[6f32, 8.0, 10.0, 7.0, 9.0, 11.0]);
    // [[0, 2], [1, 0]]
    let indices = transposed(&tensor(&[0, 1, 2, 0], &[2, 2]), &[1, 0]);
    check(take(0), &[&vector(&[7u8, 8, 9]), &indices], &[2, 2], &[7u8, 9, 8, 7]);
    check(take(0), &[&vector(&[7u16, 8, 9]), &indices], &[2, 2], &[7u16, 9, 8, 7]);
    check(take(0), &[&vector(&[7i64, 8, 9]), &indices], &[2, 2], &[7i64, 9, 8, 7]);
    let c = [complex(1.0, 2.0), complex(3.0, 4.0)];
    check(take(0), &[&vector(&c), &vector(&[1u64])], &[1], &[complex(3.0, 4.0)]);
}

#[test]
fn take_of_many_rows() {
    // More indices than are read at once, some of each side outside; rows of more than a cache line.
    let indices: Vec<i32> = (0..600).map(|i| i * 7 % 90 - 40).collect();
    for width in [1i64, 3, 150] {
        let a = numbers(&[2, 20, width]);
        let mut expected = Vec::new();
        for outer in 0..2 {
            for &index in &indices {
                let row = match index {
                    ..-20 => 0,
                    -20..0 => index + 20,
                    0..20 => index,
                    20.. => 19,
                };
                let first = (outer * 20 + i64::from(row)) * width;
                expected.extend((first..first + width).map(|element| element as f32));
            }
        }
        check(take(1), &[&a, &vector(&indices)], &[2, 600, width], &expected);
    }
}

fn transposed(array: &Array, axes: &[i64]) -> Array {
    run(Op::Transpose(self::axes(axes)), &[array]).unwrap()
}

#[test]
fn take_along_axis_broadcasts_the_other_axes() {
    let a = numbers(&[2, 3]);
    check(
        take_along_axis(1),
        &[&a, &tensor(&[2, 0, 1, 1], &[2, 2])],
        &[2, 2],
        &[2f32, 0.0, 4.0, 4.0],
    );
    check(take_along_axis(1), &[&a, &tensor(&[-1], &[1, 1])], &[2, 1], &[2f32, 5.0]);
    check(
        take_along_axis(0),
        &[&numbers(&[2, 1]), &tensor(&[1, 0], &[1, 2])],
        &[1, 2],
        &[1f32, 0.0],
    );
    check(take_along_axis(0), &[&a, &tensor::<i32>(&[], &[0, 3])], &[0, 3], &[] as &[f32]);
    refuses(take_along_axis(1), &[&a, &vector(&[0])]);
    refuses(take_along_axis(1), &[&a, &tensor(&[0, 0, 0], &[3, 1])]);
    refuses(take_along_axis(1), &[&numbers(&[2, 0]), &tensor(&[0, 0], &[2, 1])]);
    refuses(take_along_axis(1), &[&a, &tensor(&[0f32, 0.0], &[2, 1])]);
}

#[test]
fn gathers() {
    let a = numbers(&[2, 3, 4]);
    // Elements, rows, and slices that are shorter than the axis.
    let (rows, cols) = (vector(&[1, 0, 1]), vector(&[2u8, 0, 9]));
    check(
        gather(&[0, 1], &[1, 1, 2]),
        &[&a, &rows, &cols],
        &[3, 1, 1, 2],
        &[20f32, 21.0, 0.0, 1.0, 20.0, 21.0],
    );
    let (all, one) = (tensor(&[0, 1], &[2, 1]), tensor(&[2i64], &[1, 1]));
    check(
        gather(&[2, 0], &[1, 2, 1]),
        &[&a, &one, &all],
        &[2, 1, 1, 2, 1],
        &[2f32, 6.0, 14.0, 18.0],
    );
    check(gather(&[], &[1, 1, 2]), &[&a], &[1, 1, 2], &[0f32, 1.0]);
    check(gather(&[0], &[1, 0, 4]), &[&a, &rows], &[3, 1, 0, 4], &[] as &[f32]);
    // A signed and an unsigned 64-bit index have no common integer dtype.
    let (signed, unsigned) = (vector(&[-1i64]), vector(&[u64::MAX]));
    check(gather(&[0, 1], &[1, 1, 1]), &[&a, &signed, &unsigned], &[1, 1, 1, 1], &[20f32]);
}

#[test]
fn gathers_that_leave_the_tensor_are_refused() {
    let a = numbers(&[2, 3]);
    let index = vector(&[0]);
    refuses(gather(&[0], &[1, 4]), &[&a, &index]);
    refuses(gather(&[0], &[2, 3]), &[&a, &index]);
    refuses(gather(&[0], &[1, -1]), &[&a, &index]);
    refuses(gather(&[0], &[1]), &[&a, &index]);
    refuses(gather(&[2], &[1, 1]), &[&a, &index]);
    refuses(gather(&[0, 0], &[1, 1]), &[&a, &index, &index]);
    refuses(gather(&[0, 1], &[1, 1]), &[&a, &index]);
    refuses(gather(&[0, 1], &[1, 1]), &[&a, &vector(&[0, 0]), &vector(&[0, 0, 0])]);
    refuses(gather(&[0], &[1, 1]), &[&a, &vector(&[0.5f32])]);
    refuses(gather(&[0], &[1, 1]), &[&numbers(&[0, 3]), &index]);
}

#[test]
fn scatters() {
    let a = tensor(&[10f32, 20.0, 30.0, 40.0], &[4]);
    let indices = vector(&[3, 0, 3]);
    let updates = tensor(&[5f32, 15.0, 3.0], &[3, 1]);
    let inputs = [&a, &indices, &updates];
    check(Op::Scatter(axes(&[0])), &inputs, &[4], &[15f32, 20.0, 30.0, 3.0]);
    check(Op::ScatterAdd(axes(&[0])), &inputs, &[4], &[25f32, 20.0, 30.0, 48.0]);
    check(Op::ScatterMax(axes(&[0])), &inputs, &[4], &[15f32, 20.0, 30.0, 40.0]);
    check(Op::ScatterMin(axes(&[0])), &inputs, &[4], &[10f32, 20.0, 30.0, 3.0]);
    check(Op::ScatterProd(axes(&[0])), &inputs, &[4], &[150f32, 20.0, 30.0, 600.0]);

    // Two indexed axes of three, slots of two elements, updates that are converted.
    let a = numbers(&[2, 2, 2]);
    let updates = tensor(&[50i32, 60, 70, 80], &[2, 1, 2, 1]);
    let inputs = [&a, &vector(&[1, 0]), &tensor(&[1i64], &[1]), &updates];
    check(
        Op::Scatter(axes(&[0, 2])),
        &inputs,
        &[2, 2, 2],
        &[0f32, 70.0, 2.0, 80.0, 4.0, 50.0, 6.0, 60.0],
    );
    // Nothing indexed, nothing updated.
    let whole = tensor(&[9f32], &[1, 1, 1]);
    check(
        Op::Scatter(axes(&[])),
        &[&a, &whole],
        &[2, 2, 2],
        &[9f32, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
    );
    check(
        Op::ScatterAdd(axes(&[])),
        &[&a, &whole],
        &[2, 2, 2],
        &[9f32, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
    );
    let (none, empty) = (vector::<i32>(&[]), numbers(&[0, 1, 2, 2]));
    check(Op::Scatter(axes(&[0])), &[&a, &none, &empty], &[2, 2, 2], &read::<f32>(&a));
    let integers = tensor(&[1i64, 2], &[2]);
    let inputs = [&integers, &vector(&[1]), &tensor(&[40i64], &[1, 1])];
    check(Op::ScatterAdd(axes(&[0])), &inputs, &[2], &[1i64, 42]);
}

#[test]
fn updates_out_of_range_are_dropped() {
    let a = tensor(&[1f32, 2.0, 3.0], &[3]);
    let every_dtype: Vec<Array> = vec![
        vector(&[3u8, 255, 2]),
        vector(&[3u16, u16::MAX, 2]),
        vector(&[3u32, u32::MAX, 2]),
        vector(&[3u64, u64::MAX, 2]),
        vector(&[3i8, i8::MIN, -1]),
        vector(&[-4i16, i16::MAX, -1]),
        vector(&[3i32, i32::MIN, -1]),
        vector(&[-4i32, i32::MAX, 2]),
        vector(&[1i64 << 32, i64::MIN, -1]),
        vector(&[-4i64, i64::MAX, 2]),
    ];
    let updates = tensor(&[100f32, 200.0, 10.0], &[3, 1]);
    let low = tensor(&[-100f32, -200.0, -10.0], &[3, 1]);
    let along = tensor(&[100f32, 200.0, 10.0], &[3]);
    for indices in &every_dtype {
        let inputs = [&a, indices, &updates];
        check(Op::Scatter(axes(&[0])), &inputs, &[3], &[1f32, 2.0, 10.0]);
        check(Op::ScatterAdd(axes(&[0])), &inputs, &[3], &[1f32, 2.0, 13.0]);
        check(Op::ScatterMax(axes(&[0])), &inputs, &[3], &[1f32, 2.0, 10.0]);
        check(Op::ScatterProd(axes(&[0])), &inputs, &[3], &[1f32, 2.0, 30.0]);
        check(Op::ScatterMin(axes(&[0])), &[&a, indices, &low], &[3], &[1f32, 2.0, -10.0]);
        let inputs = [&a, indices, &along];
        check(Op::PutAlongAxis(Axis { axis: 0 }), &inputs, &[3], &[1f32, 2.0, 10.0]);
        check(Op::ScatterAddAxis(Axis { axis: 0 }), &inputs, &[3], &[1f32, 2.0, 13.0]);
    }
    // Not even where a dropped one is not a number.
    let nan = tensor(&[f32::NAN], &[1, 1]);
    let inputs = [&a, &vector(&[7]), &nan];
    check(Op::ScatterAdd(axes(&[0])), &inputs, &[3], &[1f32, 2.0, 3.0]);
}

#[test]
fn a_slot_out_of_range_in_one_axis_is_dropped_whole() {
    let a = numbers(&[3, 3]);
    let (rows, cols) = (vector(&[0, 1, 2, -3]), vector(&[1, 5, 2, 0]));
    let updates = tensor(&[100f32; 16], &[4, 2, 2]);
    // The second leaves on the right, the third below: their slots are of 2 by 2.
    let kept = [100f32, 100.0, 100.0, 100.0, 100.0, 100.0, 6.0, 7.0, 8.0];
    check(Op::Scatter(axes(&[0, 1])), &[&a, &rows, &cols, &updates], &[3, 3], &kept);
    let added = [100f32, 201.0, 102.0, 103.0, 204.0, 105.0, 6.0, 7.0, 8.0];
    check(Op::ScatterAdd(axes(&[0, 1])), &[&a, &rows, &cols, &updates], &[3, 3], &added);
}

#[test]
fn scatters_that_do_not_fit_are_refused() {
    let a = numbers(&[2, 3]);
    let index = vector(&[0]);
    for op in [Op::Scatter, Op::ScatterAdd, Op::ScatterMax, Op::ScatterMin, Op::ScatterProd] {
        refuses(op(axes(&[0])), &[&a, &index, &numbers(&[1, 3])]);
        refuses(op(axes(&[0])), &[&a, &index, &numbers(&[2, 1, 3])]);
        refuses(op(axes(&[0])), &[&a, &index, &numbers(&[1, 1, 4])]);
        refuses(op(axes(&[0])), &[&a, &index, &numbers(&[1, 3, 3])]);
        refuses(op(axes(&[0, 0])), &[&a, &index, &index, &numbers(&[1, 1, 1])]);
        refuses(op(axes(&[0, 1])), &[&a, &index, &numbers(&[1, 1, 1])]);
        refuses(op(axes(&[2])), &[&a, &index, &numbers(&[1, 1, 1])]);
        refuses(op(axes(&[0])), &[&a, &vector(&[0f32]), &numbers(&[1, 1, 1])]);
        refuses(op(axes(&[0])), &[&a, &vector(&[true]), &numbers(&[1, 1, 1])]);
    }
}

#[test]
fn updates_along_an_axis() {
    let a = numbers(&[2, 3]);
    let put = || Op::PutAlongAxis(Axis { axis: 1 });
    let add = || Op::ScatterAddAxis(Axis { axis: -1 });
    let indices = tensor(&[2, 0, 1, 1], &[2, 2]);
    let values = tensor(&[10i32, 20, 30, 40], &[2, 2]);
    let inputs = [&a, &indices, &values];
    check(put(), &inputs, &[2, 3], &[20f32, 1.0, 10.0, 3.0, 40.0, 5.0]);
    check(add(), &inputs, &[2, 3], &[20f32, 1.0, 12.0, 3.0, 74.0, 5.0]);
    // One row of indices for both, one value for all.
    let inputs = [&a, &tensor(&[-1, 9], &[1, 2]), &scalar(50f32)];
    check(put(), &inputs, &[2, 3], &[0f32, 1.0, 50.0, 3.0, 4.0, 50.0]);
    check(add(), &inputs, &[2, 3], &[0f32, 1.0, 52.0, 3.0, 4.0, 55.0]);
    // The first axis, and nothing to do.
    let inputs = [&a, &tensor(&[1, 0, 7], &[1, 3]), &scalar(9f32)];
    check(Op::PutAlongAxis(Axis { axis: 0 }), &inputs, &[2, 3], &[0f32, 9.0, 2.0, 9.0, 4.0, 5.0]);
    let empty = numbers(&[2, 0]);
    let inputs = [&empty, &tensor(&[0, 0], &[2, 1]), &scalar(1f32)];
    check(put(), &inputs, &[2, 0], &[] as &[f32]);
    for op in [put(), add()] {
        refuses(op.clone(), &[&a, &vector(&[0]), &scalar(1f32)]);
        refuses(op.clone(), &[&a, &tensor(&[0, 0, 0], &[3, 1]), &scalar(1f32)]);
        refuses(op.clone(), &[&a, &indices, &vector(&[1f32, 2.0, 3.0])]);
        refuses(op.clone(), &[&a, &indices, &tensor(&[1f32; 8], &[2, 2, 2])]);
        refuses(op, &[&a, &tensor(&[0f32, 0.0], &[2, 1]), &scalar(1f32)]);
    }
}

#[test]
fn views_are_followed_too() {
    // A transposed tensor, indices and updates: nothing is row-contiguous.
    let transposed = |array: &Array| run(Op::Transpose(axes(&[1, 0])), &[array]).unwrap();
    let a = transposed(&numbers(&[3, 2]));
    check(take(1), &[&a, &vector(&[2, 9])], &[2, 2], &[4f32, 4.0, 5.0, 5.0]);
    let indices = transposed(&tensor(&[0, 1, 2, -9], &[2, 2]));
    check(take_along_axis(1), &[&a, &indices], &[2, 2], &[0f32, 4.0, 3.0, 1.0]);
    let values = transposed(&tensor(&[10f32, 20.0, 30.0, 40.0], &[2, 2]));
    let op = Op::PutAlongAxis(Axis { axis: 1 });
    check(op, &[&a, &indices, &values], &[2, 3], &[10f32, 2.0, 30.0, 1.0, 20.0, 5.0]);
    let updates = transposed(&tensor(&[10f32, 20.0], &[1, 2]));
    let updates = run(Op::ExpandDims(axes(&[2])), &[&updates]).unwrap();
    let op = Op::ScatterAdd(axes(&[0]));
    check(op, &[&a, &vector(&[1, 2]), &updates], &[2, 3], &[0f32, 2.0, 4.0, 11.0, 3.0, 5.0]);
    assert_eq!(dtype(&a), Dtype::Float32);
}
