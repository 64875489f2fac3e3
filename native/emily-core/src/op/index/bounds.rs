//! Indices that cannot leave their axis, whatever the data: MLX follows them unchecked.

use crate::build::Describe;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::op::graph::{integer, range, Graph};
use mlx_rs::Array;

/// Indices of an axis of `size > 0`, for reading: `-size..size` stays, since MLX counts negative ones
/// from the end; what lies beyond is clamped. The dtype stays too, so that no index can overflow.
pub(super) fn clamped(graph: &Graph, indices: &Array, size: i32) -> Result<Array> {
    let dtype = indices.dtype_of();
    let (least, greatest) = range(dtype);
    let size = i64::from(size);
    let mut indices = indices.clone();
    if i128::from(-size) > least {
        indices = graph.binary(mlx_sys::mlx_maximum, &indices, &integer(-size, dtype))?;
    }
    if i128::from(size - 1) < greatest {
        indices = graph.binary(mlx_sys::mlx_minimum, &indices, &integer(size - 1, dtype))?;
    }
    Ok(indices)
}

/// The same as u32 in `0..size`, for kernels that read no others.
pub(crate) fn clamped_unsigned(graph: &Graph, indices: &Array, size: i32) -> Result<Array> {
    let indices = clamped(graph, indices, size)?;
    let indices = from_start(graph, &indices, size)?;
    graph.astype(&indices, Dtype::Uint32)
}

/// Positions u32 in `0..=size`, for writing a window of `window` elements: `size` for each index
/// whose window would leave the axis. Negative indices down to `-size` count from the end.
pub(super) fn positions(graph: &Graph, indices: &Array, size: i32, window: i32) -> Result<Array> {
    let indices = from_start(graph, indices, size)?;
    // What is still negative becomes greater than any size.
    let unsigned = match indices.dtype_of() {
        Dtype::Int32 => Dtype::Uint32,
        Dtype::Int64 => Dtype::Uint64,
        other => other,
    };
    let mut positions = graph.astype(&indices, unsigned)?;
    if i128::from(size) < range(unsigned).1 {
        let limit = integer(size.into(), unsigned);
        positions = graph.binary(mlx_sys::mlx_minimum, &positions, &limit)?;
    }
    let positions = graph.astype(&positions, Dtype::Uint32)?;
    if window <= 1 {
        return Ok(positions);
    }
    let last = integer((size - window).into(), Dtype::Uint32);
    let outside = graph.binary(mlx_sys::mlx_greater, &positions, &last)?;
    graph.select(&outside, &integer(size.into(), Dtype::Uint32), &positions)
}

/// Adds the size to negative indices; signed ones come back as i32 or i64.
fn from_start(graph: &Graph, indices: &Array, size: i32) -> Result<Array> {
    let dtype = match indices.dtype_of() {
        dtype if !dtype.is_signed_integer() => return Ok(indices.clone()),
        Dtype::Int64 => Dtype::Int64,
        // Wide enough for the sum of an index and any size.
        _ => Dtype::Int32,
    };
    let indices = graph.astype(indices, dtype)?;
    let negative = graph.binary(mlx_sys::mlx_less, &indices, &integer(0, dtype))?;
    let shifted = graph.binary(mlx_sys::mlx_add, &indices, &integer(size.into(), dtype))?;
    graph.select(&negative, &shifted, &indices)
}
