//! The same elements in another shape or order.

use super::creation::{check_broadcast_to, convert, fill};
use super::graph::{count, input, wide, Graph};
use super::integer::promote;
use super::{
    AsStrided, Axes, Axis, Diagonal, DiagonalOf, Flatten, Inputs, Pad, Repeat, Roll, Shape, Split,
    Swapaxes, Tile,
};
use crate::build::{Arrays, Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use mlx_rs::Array;

/// A shape of as many elements.
pub(super) fn reshape(build: &Build, attrs: &Shape, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Reshape");
    let x = input(graph.op, inputs, 0)?;
    let shape = check::shape(graph.op, &attrs.shape, x.dtype_of())?;
    let elements = count(x.shape_of());
    if count(&shape) != elements {
        return Err(Error::argument(graph.op, "shape", format!("{elements} elements"), shape));
    }
    graph.reshape(x, &shape)
}

/// Axes in another order: axis `i` of the result is axis `axes[i]`.
pub(super) fn transpose(build: &Build, attrs: &Axes, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Transpose");
    let x = input(graph.op, inputs, 0)?;
    check::length(graph.op, "axes", &attrs.axes, x.rank())?;
    let axes = check::axes(graph.op, "axes", &attrs.axes, x.rank())?;
    // SAFETY: the handle is live and the pointer has the length beside it.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_transpose_axes(res, x.as_ptr(), axes.as_ptr(), axes.len(), s)
    })
}

/// Swaps two axes.
pub(super) fn swapaxes(build: &Build, attrs: &Swapaxes, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Swapaxes");
    let x = input(graph.op, inputs, 0)?;
    let axis1 = check::axis(graph.op, "axis1", attrs.axis1, x.rank())?;
    let axis2 = check::axis(graph.op, "axis2", attrs.axis2, x.rank())?;
    // SAFETY: the handle is live.
    graph.call(|res, s| unsafe { mlx_sys::mlx_swapaxes(res, x.as_ptr(), axis1, axis2, s) })
}

/// Without axes, which must have size 1.
pub(super) fn squeeze(build: &Build, attrs: &Axes, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Squeeze");
    let x = input(graph.op, inputs, 0)?;
    let axes = check::axes(graph.op, "axes", &attrs.axes, x.rank())?;
    let shape = x.shape_of();
    if axes.iter().any(|&axis| shape[axis as usize] != 1) {
        let expected = format!("axes of size 1 in shape {shape:?}");
        return Err(Error::argument(graph.op, "axes", expected, &attrs.axes));
    }
    // SAFETY: the handle is live and the pointer has the length beside it.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_squeeze_axes(res, x.as_ptr(), axes.as_ptr(), axes.len(), s)
    })
}

/// New axes of size 1, counted in the result.
pub(super) fn expand_dims(build: &Build, attrs: &Axes, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "ExpandDims");
    let x = input(graph.op, inputs, 0)?;
    let axes = check::axes(graph.op, "axes", &attrs.axes, x.rank() + attrs.axes.len())?;
    // SAFETY: the handle is live and the pointer has the length beside it.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_expand_dims_axes(res, x.as_ptr(), axes.as_ptr(), axes.len(), s)
    })
}

/// A shape that the input's broadcasts to, as numpy's do.
pub(super) fn broadcast_to(build: &Build, attrs: &Shape, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "BroadcastTo");
    let x = input(graph.op, inputs, 0)?;
    let shape = check::shape(graph.op, &attrs.shape, x.dtype_of())?;
    check_broadcast_to(graph.op, x.shape_of(), &shape)?;
    graph.broadcast_to(x, &shape)
}

/// The inputs and the dtype they promote to.
fn all_inputs<'a>(op: &'static str, inputs: Inputs<'a>) -> Result<(Vec<&'a Array>, Dtype)> {
    let arrays: Vec<&Array> =
        (0..inputs.len()).map(|index| input(op, inputs, index)).collect::<Result<_>>()?;
    let dtype = arrays.iter().map(|array| array.dtype_of()).reduce(promote).unwrap_or(Dtype::Bool);
    Ok((arrays, dtype))
}

/// Joins along an axis; ranks and the other axes' sizes must agree. Dtypes promote.
pub(super) fn concatenate(build: &Build, attrs: &Axis, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Concatenate");
    let (arrays, dtype) = all_inputs(graph.op, inputs)?;
    let first = arrays[0].shape_of();
    let axis = check::axis(graph.op, "axis", attrs.axis, first.len())?;
    let mut joined: i64 = 0;
    for array in &arrays {
        let shape = array.shape_of();
        let agrees = shape.len() == first.len()
            && (0..)
                .zip(shape.iter().zip(first))
                .all(|(at, (own, other))| at == axis || own == other);
        if !agrees {
            let expected = format!("{first:?} apart from axis {axis}");
            return Err(Error::argument(graph.op, "shape of an input", expected, shape));
        }
        joined += i64::from(shape[axis as usize]);
    }
    let mut shape = wide(first);
    shape[axis as usize] = joined;
    join(&graph, &arrays, axis, &check::shape(graph.op, &shape, dtype)?, dtype)
}

/// Joins along a new axis, counted in the result; shapes must be the same. Dtypes promote.
pub(super) fn stack(build: &Build, attrs: &Axis, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Stack");
    let (arrays, dtype) = all_inputs(graph.op, inputs)?;
    let first = arrays[0].shape_of();
    let axis = check::axis(graph.op, "axis", attrs.axis, first.len() + 1)?;
    if let Some(other) = arrays.iter().find(|array| array.shape_of() != first) {
        let expected = format!("{first:?}, as the first");
        return Err(Error::argument(graph.op, "shape of an input", expected, other.shape_of()));
    }
    let mut shape = wide(first);
    shape.insert(axis as usize, arrays.len() as i64);
    let shape = check::shape(graph.op, &shape, dtype)?;
    let mut part = shape.clone();
    part[axis as usize] = 1;
    let parts: Vec<Array> =
        arrays.iter().map(|array| graph.reshape(array, &part)).collect::<Result<_>>()?;
    join(&graph, &parts.iter().collect::<Vec<_>>(), axis, &shape, dtype)
}

fn join(graph: &Graph, arrays: &[&Array], axis: i32, shape: &[i32], dtype: Dtype) -> Result<Array> {
    if shape.contains(&0) {
        return graph.zeros(shape, dtype);
    }
    if let [one] = arrays {
        return graph.astype(one, dtype);
    }
    let arrays = Arrays::from_iter(arrays.iter().copied());
    // SAFETY: the vector is live.
    graph.call(|res, s| unsafe { mlx_sys::mlx_concatenate_axis(res, arrays.as_raw(), axis, s) })
}

/// Joins the axes from one to another into one; a scalar becomes a vector.
pub(super) fn flatten(build: &Build, attrs: &Flatten, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Flatten");
    let x = input(graph.op, inputs, 0)?;
    // A scalar is flattened as if it were a vector.
    let rank = x.rank().max(1);
    let start = check::axis(graph.op, "start_axis", attrs.start_axis, rank)? as usize;
    let end = check::axis(graph.op, "end_axis", attrs.end_axis, rank)? as usize;
    if start > end {
        let expected = format!("at most end_axis, {}", attrs.end_axis);
        return Err(Error::argument(graph.op, "start_axis", expected, attrs.start_axis));
    }
    let mut shape = wide(x.shape_of());
    if !shape.is_empty() {
        let joined = shape[start..=end].iter().fold(1i64, |all, &size| all.saturating_mul(size));
        shape.splice(start..=end, [joined]);
    } else {
        shape.push(1);
    }
    graph.reshape(x, &check::shape(graph.op, &shape, x.dtype_of())?)
}

/// Repeats a whole tensor. Where there are more numbers than axes, axes of size 1 come before the
/// tensor's; where there are fewer, they are of the last axes.
pub(super) fn tile(build: &Build, attrs: &Tile, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Tile");
    let x = input(graph.op, inputs, 0)?;
    let reps = check::sizes(graph.op, "reps", &attrs.reps)?;
    let rank = reps.len().max(x.rank());
    let padded = |list: &[i32]| [&vec![1; rank - list.len()], list].concat();
    let (sizes, reps) = (padded(x.shape_of()), padded(&reps));
    let shape: Vec<i64> =
        sizes.iter().zip(&reps).map(|(&size, &times)| i64::from(size) * i64::from(times)).collect();
    let shape = check::shape(graph.op, &shape, x.dtype_of())?;
    if shape.contains(&0) {
        return graph.zeros(&shape, x.dtype_of());
    }
    let (mut apart, mut repeated) = (Vec::new(), Vec::new());
    for (&size, &times) in sizes.iter().zip(&reps) {
        if times != 1 {
            apart.push(1);
            repeated.push(times);
        }
        apart.push(size);
        repeated.push(size);
    }
    let x = graph.broadcast_to(&graph.reshape(x, &apart)?, &repeated)?;
    graph.reshape(&x, &shape)
}

/// Repeats each element along an axis.
pub(super) fn repeat(build: &Build, attrs: &Repeat, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Repeat");
    let x = input(graph.op, inputs, 0)?;
    let axis = check::axis(graph.op, "axis", attrs.axis, x.rank())? as usize;
    let times = check::size(graph.op, "count", attrs.count)?;
    let mut shape = wide(x.shape_of());
    shape[axis] *= i64::from(times);
    let shape = check::shape(graph.op, &shape, x.dtype_of())?;
    if shape.contains(&0) {
        return graph.zeros(&shape, x.dtype_of());
    }
    let mut apart = x.shape_of().to_vec();
    apart.insert(axis + 1, 1);
    let x = graph.reshape(x, &apart)?;
    apart[axis + 1] = times;
    graph.reshape(&graph.broadcast_to(&x, &apart)?, &shape)
}

/// Pads axes with a value, one element that is converted to the tensor's dtype as by `Astype`.
pub(super) fn pad(build: &Build, attrs: &Pad, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Pad");
    let (x, value) = (input(graph.op, inputs, 0)?, input(graph.op, inputs, 1)?);
    let axes = check::axes(graph.op, "axes", &attrs.axes, x.rank())?;
    check::length(graph.op, "low", &attrs.low, axes.len())?;
    check::length(graph.op, "high", &attrs.high, axes.len())?;
    let low = check::sizes(graph.op, "low", &attrs.low)?;
    let high = check::sizes(graph.op, "high", &attrs.high)?;
    if count(value.shape_of()) != 1 {
        let got = value.shape_of();
        return Err(Error::argument(graph.op, "shape of input 1", "one element", got));
    }
    let (mut all_low, mut all_high) = (vec![0; x.rank()], vec![0; x.rank()]);
    let mut shape = wide(x.shape_of());
    for (&axis, (&low, &high)) in axes.iter().zip(low.iter().zip(&high)) {
        let axis = axis as usize;
        (all_low[axis], all_high[axis]) = (low, high);
        shape[axis] += i64::from(low) + i64::from(high);
    }
    let shape = check::shape(graph.op, &shape, x.dtype_of())?;
    let value = convert(&graph, &graph.reshape(value, &[])?, x.dtype_of())?;
    if count(x.shape_of()) == 0 {
        return fill(&graph, &shape, &value);
    }
    graph.pad(x, &all_low, &all_high, &value)
}

/// Reverses axes; with none, the tensor as it is.
pub(super) fn flip(build: &Build, attrs: &Axes, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Flip");
    let x = input(graph.op, inputs, 0)?;
    let axes = check::axes(graph.op, "axes", &attrs.axes, x.rank())?;
    let (mut starts, mut stops) = (vec![0; x.rank()], x.shape_of().to_vec());
    let mut strides = vec![1; x.rank()];
    for axis in axes.into_iter().map(|axis| axis as usize) {
        let size = x.shape_of()[axis];
        if size < 2 {
            continue;
        }
        // A stop of -1 would count from the end.
        (starts[axis], stops[axis], strides[axis]) = (size - 1, -size - 1, -1);
    }
    if strides.iter().all(|&stride| stride == 1) {
        return Ok(x.clone());
    }
    graph.slice(x, &starts, &stops, &strides)
}

/// Rotates along an axis; what leaves at one end comes in at the other.
pub(super) fn roll(build: &Build, attrs: &Roll, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Roll");
    let x = input(graph.op, inputs, 0)?;
    let axis = check::axis(graph.op, "axis", attrs.axis, x.rank())?;
    let size = x.shape_of()[axis as usize];
    if count(x.shape_of()) == 0 || attrs.shift % i64::from(size) == 0 {
        return Ok(x.clone());
    }
    // Slices in place of MLX's own roll, which splits: outputs of one split may not be shared by threads.
    let cut = size - attrs.shift.rem_euclid(i64::from(size)) as i32;
    let behind = graph.slice_axis(x, axis as usize, cut, size, 1)?;
    let before = graph.slice_axis(x, axis as usize, 0, cut, 1)?;
    join(&graph, &[&behind, &before], axis, x.shape_of(), x.dtype_of())
}

/// A view of the elements in row-major order, at `offset + sum(index * stride)`.
pub(super) fn as_strided(build: &Build, attrs: &AsStrided, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "AsStrided");
    let x = input(graph.op, inputs, 0)?;
    let shape = check::shape(graph.op, &attrs.shape, x.dtype_of())?;
    check::length(graph.op, "strides", &attrs.strides, shape.len())?;
    if attrs.strides.iter().any(|&stride| stride < 0) {
        let got = &attrs.strides;
        return Err(Error::argument(graph.op, "strides", "no negative stride", got));
    }
    let offset = usize::try_from(attrs.offset)
        .map_err(|_| Error::argument(graph.op, "offset", "a position from 0", attrs.offset))?;
    if shape.contains(&0) {
        return graph.zeros(&shape, x.dtype_of());
    }
    let elements = count(x.shape_of());
    let steps = shape.iter().zip(&attrs.strides);
    let last = steps.fold(offset as i128, |last, (&size, &stride)| {
        last.saturating_add(i128::from(size - 1) * i128::from(stride))
    });
    if last >= elements as i128 {
        let expected = format!("a view inside {elements} elements");
        return Err(Error::argument(graph.op, "strides", expected, format_args!("element {last}")));
    }
    check::size(graph.op, "number of elements", elements as i64)?;
    // MLX flattens its input, but leaves a vector with gaps as it is.
    let x = graph.contiguous(x)?;
    let strides = &attrs.strides;
    // SAFETY: the handle is live, each pointer has the length beside it, and the view stays inside.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_as_strided(
            res,
            x.as_ptr(),
            shape.as_ptr(),
            shape.len(),
            strides.as_ptr(),
            strides.len(),
            offset,
            s,
        )
    })
}

/// A matrix or a stack of them, its rows and columns; the diagonal is limited to those next to it.
fn matrix<'a>(
    op: &'static str,
    inputs: Inputs<'a>,
    k: i64,
    axes: (i64, i64),
) -> Result<(&'a Array, i32, [usize; 2])> {
    let x = input(op, inputs, 0)?;
    check::rank_at_least(op, "rank of input 0", x.rank(), 2)?;
    let checked = check::axes(op, "axes", &[axes.0, axes.1], x.rank())?;
    let axes = [checked[0] as usize, checked[1] as usize];
    let [rows, cols] = axes.map(|axis| i64::from(x.shape_of()[axis]));
    // MLX counts from row -k to column k in int32.
    check::size(op, "rows and columns together", rows + cols)?;
    Ok((x, k.clamp(-rows, cols) as i32, axes))
}

/// Zeros above a diagonal of the last two axes.
pub(super) fn tril(build: &Build, attrs: &Diagonal, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Tril");
    let (x, k, _) = matrix(graph.op, inputs, attrs.k, (-2, -1))?;
    if count(x.shape_of()) == 0 {
        return Ok(x.clone());
    }
    // SAFETY: the handle is live.
    graph.call(|res, s| unsafe { mlx_sys::mlx_tril(res, x.as_ptr(), k, s) })
}

/// Zeros below a diagonal of the last two axes.
pub(super) fn triu(build: &Build, attrs: &Diagonal, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Triu");
    let (x, k, _) = matrix(graph.op, inputs, attrs.k, (-2, -1))?;
    if count(x.shape_of()) == 0 {
        return Ok(x.clone());
    }
    // SAFETY: the handle is live.
    graph.call(|res, s| unsafe { mlx_sys::mlx_triu(res, x.as_ptr(), k, s) })
}

/// The elements on a diagonal of two axes, which become the last axis; none where it is outside.
pub(super) fn diagonal(build: &Build, attrs: &DiagonalOf, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Diagonal");
    let (x, k, axes) = matrix(graph.op, inputs, attrs.offset, (attrs.axis1, attrs.axis2))?;
    let [rows, cols] = axes.map(|axis| x.shape_of()[axis]);
    let length = (rows - (-k).max(0)).min(cols - k.max(0)).max(0);
    if length == 0 || count(x.shape_of()) == 0 {
        let others = (0..x.rank()).filter(|axis| !axes.contains(axis));
        let mut shape: Vec<i32> = others.map(|axis| x.shape_of()[axis]).collect();
        shape.push(length);
        return graph.zeros(&shape, x.dtype_of());
    }
    let [axis1, axis2] = axes.map(|axis| axis as i32);
    // SAFETY: the handle is live.
    graph.call(|res, s| unsafe { mlx_sys::mlx_diagonal(res, x.as_ptr(), k, axis1, axis2, s) })
}

/// Cuts an axis into parts, whose number divides its size.
pub(super) fn split(build: &Build, attrs: &Split, inputs: Inputs) -> Result<Vec<Array>> {
    let op = "Split";
    let x = input(op, inputs, 0)?;
    let axis = check::axis(op, "axis", attrs.axis, x.rank())?;
    let parts = check::positive(op, "parts", attrs.parts)?;
    let size = x.shape_of()[axis as usize];
    if size % parts != 0 || parts > size.max(1) {
        let expected = format!("a divisor of the axis' size, {size}");
        return Err(Error::argument(op, "parts", expected, parts));
    }
    // SAFETY: the handle is live.
    build.arrays(op, |res, s| unsafe { mlx_sys::mlx_split(res, x.as_ptr(), parts, axis, s) })
}
