//! Indices that cannot leave their axis, whatever the data: MLX follows them unchecked.

use crate::build::Describe;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::op::graph::{integer, range, Graph};
use mlx_rs::Array;

/// Indices of an axis of `size > 0`, for reading: negative ones count from the end, and what lies beyond is
/// clamped. They are of any integer dtype.
pub(super) fn clamped(graph: &Graph, indices: &Array, size: i32) -> Result<Array> {
    if graph.build.is_cpu() {
        return on_cpu(graph, indices, size, 0);
    }
    clamped_by_parts(graph, indices, size)
}

/// In one pass: u32 in `0..size` without a window, and in `0..=size` with one.
fn on_cpu(graph: &Graph, indices: &Array, size: i32, window: i32) -> Result<Array> {
    // SAFETY: the handle is live.
    graph.call(|res, s| unsafe { mlx_sys::emily_positions(res, indices.as_ptr(), size, window, s) })
}

/// `-size..size` stays, since MLX counts negative ones from the end. The dtype stays too, so that no index
/// can overflow.
fn clamped_by_parts(graph: &Graph, indices: &Array, size: i32) -> Result<Array> {
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
    if graph.build.is_cpu() {
        return on_cpu(graph, indices, size, window.max(1));
    }
    positions_by_parts(graph, indices, size, window)
}

fn positions_by_parts(graph: &Graph, indices: &Array, size: i32, window: i32) -> Result<Array> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::Build;
    use crate::device::Device;
    use crate::tensor::{evaluate, Tensor};

    fn unsigned(graph: &Graph, array: &Array) -> Vec<u32> {
        let array = graph.contiguous(&graph.astype(array, Dtype::Uint32).unwrap()).unwrap();
        evaluate("Take", [&array]).unwrap();
        // SAFETY: evaluated, in order, and of this many numbers.
        unsafe {
            let start = mlx_sys::mlx_array_data_uint32(array.as_ptr());
            std::slice::from_raw_parts(start, array.count()).to_vec()
        }
    }

    /// What a GPU computes is computed here too, and compared.
    #[test]
    fn both_ways_to_a_position_agree() {
        let build = Build::for_this_thread();
        let graph = Graph::new(&build, "Take");
        let hostile = [i64::MIN, -1 << 32, -301, -300, -6, -5, -4, -1, 0, 1, 3, 4, 5, 127, 255]
            .into_iter()
            .chain([299, 300, 301, 1 << 31, 1 << 32, i64::MAX]);
        let bytes: Vec<u8> = hostile.flat_map(i64::to_ne_bytes).collect();
        let shape = [bytes.len() as i64 / 8];
        let wide = Tensor::from_bytes(&bytes, &shape, Dtype::Int64, Device::Cpu).unwrap();
        let wide = wide.handle("Take").unwrap();
        for dtype in Dtype::ALL.iter().copied().filter(|dtype| dtype.is_integer()) {
            // Narrow dtypes keep the low bits, which are as hostile.
            let indices = graph.astype(&wide, dtype).unwrap();
            for size in [1, 5, 300] {
                let parts = clamped_by_parts(&graph, &indices, size).unwrap();
                let parts = from_start(&graph, &parts, size).unwrap();
                let once = clamped(&graph, &indices, size).unwrap();
                assert_eq!(unsigned(&graph, &once), unsigned(&graph, &parts), "{dtype} {size}");
                for window in [1, 2, 4].into_iter().filter(|&window| window <= size) {
                    let once = positions(&graph, &indices, size, window).unwrap();
                    let parts = positions_by_parts(&graph, &indices, size, window).unwrap();
                    let [once, parts] = [once, parts].map(|array| unsigned(&graph, &array));
                    assert_eq!(once, parts, "{dtype} {size} {window}");
                }
            }
        }
    }
}
