//! Slices, and elements picked by index.

mod bounds;
mod start;
mod update;

pub(super) use bounds::clamped_unsigned;
pub(crate) use start::Sharing;
pub(super) use update::{
    put_along_axis, scatter, scatter_add, scatter_add_axis, scatter_max, scatter_min,
    scatter_positions, scatter_prod,
};

use super::graph::{broadcast_shape, count, input, integers, range, wide, Graph};
use super::{Axes, Axis, Gather, Inputs, Slice, SliceDynamic, SliceUpdate};
use crate::build::{Arrays, Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use bounds::clamped;
use mlx_rs::Array;

/// The elements `starts..stops` by `strides`, one entry an axis. Refused: bounds outside the axis, a
/// stop before its start, strides that are not positive.
pub(super) fn slice(build: &Build, attrs: &Slice, inputs: Inputs) -> Result<Array> {
    const OP: &str = "Slice";
    let a = input(OP, inputs, 0)?;
    let shape = a.shape_of();
    check::length(OP, "starts", &attrs.starts, shape.len())?;
    check::length(OP, "stops", &attrs.stops, shape.len())?;
    check::length(OP, "strides", &attrs.strides, shape.len())?;
    let starts = check::sizes(OP, "starts", &attrs.starts)?;
    let stops = check::sizes(OP, "stops", &attrs.stops)?;
    let mut strides = check::positives(OP, "strides", &attrs.strides)?;
    for axis in 0..shape.len() {
        if stops[axis] > shape[axis] {
            return Err(Error::argument(OP, "stops", format!("at most {shape:?}"), &attrs.stops));
        }
        if starts[axis] > stops[axis] {
            let expected = format!("at most the stops {stops:?}");
            return Err(Error::argument(OP, "starts", expected, &attrs.starts));
        }
        // A stride beyond the part picks its first element only, and would overflow MLX's sums.
        strides[axis] = strides[axis].min((stops[axis] - starts[axis]).max(1));
    }
    Graph::new(build, OP).slice(a, &starts, &stops, &strides)
}

/// The tensor with the part that begins at `starts` and steps by `strides` replaced by the second
/// input, of the same rank, converted to the tensor's dtype. Refused: a part that leaves the tensor.
pub(super) fn slice_update(build: &Build, attrs: &SliceUpdate, inputs: Inputs) -> Result<Array> {
    const OP: &str = "SliceUpdate";
    let (a, update) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?);
    let (shape, part) = (a.shape_of(), update.shape_of());
    check::length(OP, "starts", &attrs.starts, shape.len())?;
    check::length(OP, "strides", &attrs.strides, shape.len())?;
    check::length(OP, "shape of the update", part, shape.len())?;
    let starts = check::sizes(OP, "starts", &attrs.starts)?;
    let mut strides = check::positives(OP, "strides", &attrs.strides)?;
    let mut stops = Vec::with_capacity(shape.len());
    for axis in 0..shape.len() {
        let size = i64::from(part[axis]);
        let span = if size == 0 { 0 } else { (size - 1) * i64::from(strides[axis]) + 1 };
        if i64::from(starts[axis]) + span > i64::from(shape[axis]) {
            let expected = format!("one that fits {shape:?} from {starts:?} by {strides:?}");
            return Err(Error::argument(OP, "shape of the update", expected, part));
        }
        stops.push(starts[axis] + span as i32);
        strides[axis] = strides[axis].min(span.max(1) as i32);
    }
    if update.count() == 0 {
        return Ok(a.clone());
    }
    Graph::new(build, OP).slice_update(a, update, &starts, &stops, &strides)
}

/// A part of the given sizes whose start along `axes` is the second input, an integer vector; along
/// other axes it starts at 0. A start that would leave the tensor is clamped, a negative one to 0.
pub(super) fn slice_dynamic(build: &Build, attrs: &SliceDynamic, inputs: Inputs) -> Result<Array> {
    const OP: &str = "SliceDynamic";
    let (a, start) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?);
    let graph = Graph::new(build, OP);
    check::length(OP, "sizes", &attrs.sizes, a.rank())?;
    let sizes = check::sizes(OP, "sizes", &attrs.sizes)?;
    let axes = check::axes(OP, "axes", &attrs.axes, a.rank())?;
    let room = room(OP, "sizes", a.shape_of(), &sizes)?;
    let start = clamped_start(&graph, start, &axes, &room)?;
    if axes.is_empty() || count(&sizes) == 0 {
        return graph.slice(a, &vec![0; sizes.len()], &sizes, &vec![1; sizes.len()]);
    }
    // SAFETY: the handles are live and each pointer has the length beside it.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_slice_dynamic(
            res,
            a.as_ptr(),
            start.as_ptr(),
            axes.as_ptr(),
            axes.len(),
            sizes.as_ptr(),
            sizes.len(),
            s,
        )
    })
}

/// The tensor with the part that begins at the third input, an integer vector with one entry for
/// each of `axes`, replaced by the second input, of the same rank, converted to the tensor's dtype.
/// Along other axes the part begins at 0. The start is clamped as in `slice_dynamic`.
pub(super) fn slice_update_dynamic(build: &Build, attrs: &Axes, inputs: Inputs) -> Result<Array> {
    const OP: &str = "SliceUpdateDynamic";
    let (a, update) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?);
    let graph = Graph::new(build, OP);
    let what = "shape of the update";
    check::length(OP, what, update.shape_of(), a.rank())?;
    let axes = check::axes(OP, "axes", &attrs.axes, a.rank())?;
    let room = room(OP, what, a.shape_of(), update.shape_of())?;
    let start = clamped_start(&graph, input(OP, inputs, 2)?, &axes, &room)?;
    if update.count() == 0 {
        return Ok(a.clone());
    }
    if axes.is_empty() {
        let zeros = vec![0; a.rank()];
        return graph.slice_update(a, update, &zeros, update.shape_of(), &vec![1; a.rank()]);
    }
    if build.is_cuda() && a.dtype_of().size() < 8 {
        return scatter_part(&graph, a, update, &start, &axes);
    }
    // SAFETY: the handles are live and the pointer has the length beside it.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_slice_update_dynamic(
            res,
            a.as_ptr(),
            update.as_ptr(),
            start.as_ptr(),
            axes.as_ptr(),
            axes.len(),
            s,
        )
    })
}

/// Replaces the part that begins at `start` by scattering it: MLX's CUDA kernel for parts writes them as often as
/// they go into the whole tensor, and takes a kernel more. Scatters are not there for 8 bytes an element.
fn scatter_part(
    graph: &Graph,
    a: &Array,
    update: &Array,
    start: &Array,
    axes: &[i32],
) -> Result<Array> {
    let positions: Vec<_> = match axes {
        [_] => vec![start.clone()],
        _ => (0..axes.len() as i32)
            .map(|axis| graph.slice(start, &[axis], &[axis + 1], &[1]))
            .collect::<Result<_>>()?,
    };
    let update = graph.astype(update, a.dtype_of())?;
    // SAFETY: the handle is live; one axis.
    let update = graph.call(|res, s| unsafe {
        mlx_sys::mlx_expand_dims_axes(res, update.as_ptr(), [0].as_ptr(), 1, s)
    })?;
    scatter_positions(graph, mlx_sys::mlx_scatter, a, &positions, &update, axes)
}

/// How far a part can be moved along each axis.
fn room(op: &'static str, what: &'static str, shape: &[i32], part: &[i32]) -> Result<Vec<i64>> {
    if part.iter().zip(shape).any(|(part, size)| part > size) {
        return Err(Error::argument(op, what, format!("at most {shape:?}"), part));
    }
    Ok(shape.iter().zip(part).map(|(&size, &part)| i64::from(size - part)).collect())
}

/// The start of a part as i32, clamped along each of `axes` to the room there.
fn clamped_start(graph: &Graph, start: &Array, axes: &[i32], room: &[i64]) -> Result<Array> {
    let dtype = start.dtype_of();
    check::integer(graph.op, "dtype of the start", dtype)?;
    if start.rank() > 1 || start.count() != axes.len() {
        let expected = format!("{:?}, one entry an axis", [axes.len()]);
        return Err(Error::argument(graph.op, "shape of the start", expected, start.shape_of()));
    }
    // In the start's own dtype no limit can overflow: what it cannot hold limits nothing.
    let greatest = range(dtype).1.min(i64::MAX.into()) as i64;
    let limits: Vec<i64> = axes.iter().map(|&axis| room[axis as usize].min(greatest)).collect();
    start::shared(graph.op, start, &limits, || {
        let start = graph.reshape(start, &[axes.len() as i32])?;
        let start = graph.binary(mlx_sys::mlx_minimum, &start, &integers(&limits, dtype))?;
        let start = if dtype.is_signed_integer() {
            graph.binary(mlx_sys::mlx_maximum, &start, &integers(&vec![0; axes.len()], dtype))?
        } else {
            start
        };
        graph.astype(&start, Dtype::Int32)
    })
}

/// Elements along an axis: the shape of the indices, of any integer dtype, takes the axis' place.
/// Negative indices count from the end, and what lies beyond the axis is clamped. Refused: an empty axis
/// with indices.
pub(super) fn take(build: &Build, attrs: &Axis, inputs: Inputs) -> Result<Array> {
    const OP: &str = "Take";
    let (a, indices) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?);
    let graph = Graph::new(build, OP);
    check::integer(OP, "dtype of the indices", indices.dtype_of())?;
    let axis = check::axis(OP, "axis", attrs.axis, a.rank())?;
    let at = axis as usize;
    let size = a.shape_of()[at];
    not_from_empty_axis(OP, size, indices)?;
    let shape = [&a.shape_of()[..at], indices.shape_of(), &a.shape_of()[at + 1..]].concat();
    let shape = check::shape(OP, &wide(&shape), a.dtype_of())?;
    if count(&shape) == 0 {
        return graph.zeros(&shape, a.dtype_of());
    }
    if graph.build.is_cpu() {
        // SAFETY: both handles are live; the axis has elements and the indices are integers.
        return graph.call(|res, s| unsafe {
            mlx_sys::emily_clamped_take(res, a.as_ptr(), indices.as_ptr(), axis, s)
        });
    }
    let indices = clamped(&graph, indices, size)?;
    // SAFETY: both handles are live.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_take_axis(res, a.as_ptr(), indices.as_ptr(), axis, s)
    })
}

/// For each index the element at that place of the axis, all else equal. Tensor and indices, of any
/// integer dtype, have the same rank, and their other axes broadcast. Refused: an empty axis with
/// indices.
pub(super) fn take_along_axis(build: &Build, attrs: &Axis, inputs: Inputs) -> Result<Array> {
    const OP: &str = "TakeAlongAxis";
    let (a, indices) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?);
    let graph = Graph::new(build, OP);
    check::integer(OP, "dtype of the indices", indices.dtype_of())?;
    let axis = check::axis(OP, "axis", attrs.axis, a.rank())?;
    let at = axis as usize;
    check::length(OP, "shape of the indices", indices.shape_of(), a.rank())?;
    let mut source = a.shape_of().to_vec();
    source[at] = indices.shape_of()[at];
    if check::broadcast(OP, &source, indices.shape_of()).is_err() {
        let expected = format!("one that broadcasts with {:?} off axis {at}", a.shape_of());
        return Err(Error::argument(OP, "shape of the indices", expected, indices.shape_of()));
    }
    let size = a.shape_of()[at];
    not_from_empty_axis(OP, size, indices)?;
    let shape = wide(&broadcast_shape(&source, indices.shape_of()));
    let shape = check::shape(OP, &shape, a.dtype_of())?;
    if count(&shape) == 0 {
        return graph.zeros(&shape, a.dtype_of());
    }
    let indices = clamped(&graph, indices, size)?;
    // SAFETY: both handles are live.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_take_along_axis(res, a.as_ptr(), indices.as_ptr(), axis, s)
    })
}

fn not_from_empty_axis(op: &'static str, size: i32, indices: &Array) -> Result<()> {
    if size == 0 && indices.count() > 0 {
        let expected = "no indices, since the axis is empty";
        return Err(Error::argument(op, "shape of the indices", expected, indices.shape_of()));
    }
    Ok(())
}

/// Slices of the first input. The others are index tensors of integer dtypes, one for each of
/// `axes`, that broadcast; the result has their shape followed by `slice_sizes`, which must be 1 on
/// indexed axes. Refused: slices greater than the tensor, an empty indexed axis with indices.
pub(super) fn gather(build: &Build, attrs: &Gather, inputs: Inputs) -> Result<Array> {
    const OP: &str = "Gather";
    let a = input(OP, inputs, 0)?;
    let graph = Graph::new(build, OP);
    let axes = check::axes(OP, "axes", &attrs.axes, a.rank())?;
    check::length(OP, "slice_sizes", &attrs.slice_sizes, a.rank())?;
    let sizes = check::sizes(OP, "slice_sizes", &attrs.slice_sizes)?;
    let indices = index_tensors(OP, &inputs[1..], &axes)?;
    for (axis, (&slice, &size)) in sizes.iter().zip(a.shape_of()).enumerate() {
        if axes.contains(&(axis as i32)) {
            if slice != 1 {
                return Err(Error::argument(OP, "slice_sizes", "1 on indexed axes", sizes));
            }
            for indices in &indices {
                not_from_empty_axis(OP, size, indices)?;
            }
        } else if slice > size {
            let expected = format!("at most {:?}", a.shape_of());
            return Err(Error::argument(OP, "slice_sizes", expected, sizes));
        }
    }
    let common = common_shape(OP, &indices)?;
    let shape = wide(&[&common[..], &sizes[..]].concat());
    let shape = check::shape(OP, &shape, a.dtype_of())?;
    if count(&shape) == 0 {
        return graph.zeros(&shape, a.dtype_of());
    }
    let one_dtype = indices.windows(2).all(|pair| pair[0].dtype_of() == pair[1].dtype_of());
    let mut followed = Vec::with_capacity(indices.len());
    for (indices, &axis) in indices.iter().zip(&axes) {
        let mut indices = clamped(&graph, indices, a.shape_of()[axis as usize])?;
        if !one_dtype {
            indices = graph.astype(&indices, Dtype::Int32)?;
        }
        followed.push(graph.broadcast_to(&indices, &common)?);
    }
    let followed = Arrays::from_iter(&followed);
    // SAFETY: the handles are live and each pointer has the length beside it.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_gather(
            res,
            a.as_ptr(),
            followed.as_raw(),
            axes.as_ptr(),
            axes.len(),
            sizes.as_ptr(),
            sizes.len(),
            s,
        )
    })
}

/// The index tensors among the inputs, one for each of `axes`.
fn index_tensors<'a>(op: &'static str, inputs: Inputs<'a>, axes: &[i32]) -> Result<Vec<&'a Array>> {
    if inputs.len() != axes.len() {
        let expected = format!("one for each of the axes {axes:?}");
        return Err(Error::argument(op, "number of index tensors", expected, inputs.len()));
    }
    (0..axes.len())
        .map(|index| {
            let indices = input(op, inputs, index)?;
            check::integer(op, "dtype of the indices", indices.dtype_of())?;
            Ok(indices)
        })
        .collect()
}

/// The shape that index tensors broadcast to.
fn common_shape(op: &'static str, indices: &[&Array]) -> Result<Vec<i32>> {
    let mut common = Vec::new();
    for indices in indices {
        check::broadcast(op, &common, indices.shape_of())?;
        common = broadcast_shape(&common, indices.shape_of());
    }
    Ok(common)
}
