//! Sorting along one axis, ascending and with NaN last; indices are uint32.

use super::elementwise::check_countable;
use super::graph::{count, input, Graph};
use super::{Axis, Inputs, Partition, Searchsorted, Topk};
use crate::build::{Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use mlx_rs::Array;

/// The input, the axis and its size.
fn along<'a>(
    build: &Build,
    op: &'static str,
    axis: i64,
    inputs: Inputs<'a>,
) -> Result<(&'a Array, i32, i32)> {
    let x = input(op, inputs, 0)?;
    let axis = check::axis(op, "axis", axis, x.rank())?;
    check_countable(build, op, count(x.shape_of()) as i128)?;
    Ok((x, axis, x.shape_of()[axis as usize]))
}

/// A position from 0 to a size, or from its end where negative.
fn position(op: &'static str, kth: i64, size: i32) -> Result<i32> {
    let size = i64::from(size);
    if !(-size..size).contains(&kth) {
        let expected = format!("a position along an axis of size {size}");
        return Err(Error::argument(op, "kth", expected, kth));
    }
    Ok(kth.rem_euclid(size) as i32)
}

/// Sorts; equal elements keep their order.
pub(super) fn sort(build: &Build, attrs: &Axis, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Sort");
    let (x, axis, _) = along(build, graph.op, attrs.axis, inputs)?;
    if x.count() == 0 {
        return Ok(x.clone());
    }
    // SAFETY: the handle is live.
    graph.call(|res, s| unsafe { mlx_sys::mlx_sort_axis(res, x.as_ptr(), axis, s) })
}

/// The positions of the sorted elements; those of equal elements ascend.
pub(super) fn argsort(build: &Build, attrs: &Axis, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Argsort");
    let (x, axis, _) = along(build, graph.op, attrs.axis, inputs)?;
    if x.count() == 0 {
        return graph.zeros(x.shape_of(), Dtype::Uint32);
    }
    // SAFETY: the handle is live.
    graph.call(|res, s| unsafe { mlx_sys::mlx_argsort_axis(res, x.as_ptr(), axis, s) })
}

/// Puts the element at `kth` that sorting would, smaller ones before it and greater ones behind.
pub(super) fn partition(build: &Build, attrs: &Partition, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Partition");
    let (x, axis, size) = along(build, graph.op, attrs.axis, inputs)?;
    let kth = position(graph.op, attrs.kth, size)?;
    if x.count() == 0 {
        return Ok(x.clone());
    }
    // SAFETY: the handle is live.
    graph.call(|res, s| unsafe { mlx_sys::mlx_partition_axis(res, x.as_ptr(), kth, axis, s) })
}

/// The positions of the partitioned elements.
pub(super) fn argpartition(build: &Build, attrs: &Partition, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Argpartition");
    let (x, axis, size) = along(build, graph.op, attrs.axis, inputs)?;
    let kth = position(graph.op, attrs.kth, size)?;
    if x.count() == 0 {
        return graph.zeros(x.shape_of(), Dtype::Uint32);
    }
    // SAFETY: the handle is live.
    graph.call(|res, s| unsafe { mlx_sys::mlx_argpartition_axis(res, x.as_ptr(), kth, axis, s) })
}

/// The `k` greatest elements, in no order; `k` is from 0 to the axis' size.
pub(super) fn topk(build: &Build, attrs: &Topk, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Topk");
    let (x, axis, size) = along(build, graph.op, attrs.axis, inputs)?;
    let k = check::size(graph.op, "k", attrs.k)?;
    if k > size {
        let expected = format!("at most the axis' size, {size}");
        return Err(Error::argument(graph.op, "k", expected, k));
    }
    if k == 0 || x.count() == 0 {
        let mut shape = x.shape_of().to_vec();
        shape[axis as usize] = k;
        return graph.zeros(&shape, x.dtype_of());
    }
    // SAFETY: the handle is live.
    graph.call(|res, s| unsafe { mlx_sys::mlx_topk_axis(res, x.as_ptr(), k, axis, s) })
}

/// Where the second input's elements belong in the first, a sorted vector, so that it stays sorted.
pub(super) fn searchsorted(build: &Build, attrs: &Searchsorted, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Searchsorted");
    let (sorted, values) = (input(graph.op, inputs, 0)?, input(graph.op, inputs, 1)?);
    if sorted.rank() != 1 {
        return Err(Error::argument(graph.op, "rank of input 0", "a vector", sorted.rank()));
    }
    let side = if attrs.right { c"right" } else { c"left" };
    // SAFETY: both handles are live and the text ends in NUL.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_searchsorted(res, sorted.as_ptr(), values.as_ptr(), side.as_ptr(), s)
    })
}
