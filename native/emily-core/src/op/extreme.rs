//! Positions of extremes with a rule for equal elements and NaNs, in one pass where the CPU computes.

use super::creation::convert;
use super::elementwise::check_countable;
use super::graph::{count, input, integer, Graph};
use super::{ArgExtreme, Inputs};
use crate::build::{Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use mlx_rs::Array;

/// Positions of the greatest or least elements of an axis: of equal ones the first or the last, of NaNs,
/// which count above all, the last. Refused: an empty axis with results to find, complex numbers.
pub(super) fn arg_extreme(build: &Build, attrs: &ArgExtreme, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "ArgExtreme");
    let x = input(graph.op, inputs, 0)?;
    let axis = check::axis(graph.op, "axis", attrs.axis, x.rank())?;
    check_countable(build, graph.op, count(x.shape_of()) as i128)?;
    if x.dtype_of() == Dtype::Complex64 {
        let got = format_args!("{}", x.dtype_of());
        return Err(Error::argument(graph.op, "dtype", "real numbers", got));
    }
    let mut shape = x.shape_of().to_vec();
    if shape[axis as usize] == 0 {
        return Err(Error::argument(graph.op, "axis", "one with elements", &shape[..]));
    }
    shape[axis as usize] = 1;
    if !attrs.keep_axis {
        shape.remove(axis as usize);
    }
    if count(&shape) == 0 {
        return graph.zeros(&shape, attrs.dtype);
    }
    let positions = if build.is_cpu() {
        on_cpu(&graph, x, axis, attrs)?
    } else {
        composed(&graph, x, axis, attrs)?
    };
    graph.reshape(&convert(&graph, &positions, attrs.dtype)?, &shape)
}

fn on_cpu(graph: &Graph, x: &Array, axis: i32, attrs: &ArgExtreme) -> Result<Array> {
    let &ArgExtreme { greatest, last, dtype, .. } = attrs;
    let dtype = if dtype.is_integer() && dtype.size() >= 4 { dtype } else { Dtype::Uint32 };
    // SAFETY: the handle is live; the axis has elements, which are real, and the dtype is one of those that
    // the function takes.
    graph.call(|res, s| unsafe {
        mlx_sys::emily_arg_extreme(res, x.as_ptr(), axis, greatest, last, dtype.to_mlx(), s)
    })
}

/// The same of MLX's own operations, which give the first of equal elements and never find a NaN.
fn composed(graph: &Graph, x: &Array, axis: i32, attrs: &ArgExtreme) -> Result<Array> {
    let size = x.shape_of()[axis as usize];
    let first = |x: &Array, greatest: bool| {
        let function = if greatest { mlx_sys::mlx_argmax_axis } else { mlx_sys::mlx_argmin_axis };
        // SAFETY: the functions are mlx-c's and the handle is live.
        graph.call(|res, s| unsafe { function(res, x.as_ptr(), axis, false, s) })
    };
    let last = |x: &Array, greatest: bool| {
        // From the end on: a stop of -1 would count from the end.
        let reversed = match size {
            1 => x.clone(),
            _ => graph.slice_axis(x, axis as usize, size - 1, -size - 1, -1)?,
        };
        let behind = integer(i64::from(size) - 1, Dtype::Uint32);
        graph.binary(mlx_sys::mlx_subtract, &behind, &first(&reversed, greatest)?)
    };
    let found = if attrs.last { last(x, attrs.greatest)? } else { first(x, attrs.greatest)? };
    if !x.dtype_of().is_inexact() {
        return Ok(found);
    }
    let nan = graph.unary(mlx_sys::mlx_isnan, x)?;
    // SAFETY: the handle is live.
    let any =
        graph.call(|res, s| unsafe { mlx_sys::mlx_any_axis(res, nan.as_ptr(), axis, false, s) })?;
    graph.select(&any, &last(&graph.astype(&nan, Dtype::Uint8)?, true)?, &found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::tensor::{evaluate, Tensor};

    /// What a GPU computes is computed here too, and compared.
    #[test]
    fn both_ways_to_a_position_agree() {
        let build = Build::for_this_thread();
        let graph = Graph::new(&build, "ArgExtreme");
        let numbers = [3.0f32, f32::NAN, -0.0, 5.0, 5.0, -1.0, 0.0, f32::NAN, -1.0, 2.0, 2.0, 2.0];
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_ne_bytes()).collect();
        let x = Tensor::from_bytes(&bytes, &[3, 4], Dtype::Float32, Device::Cpu).unwrap();
        let x = x.handle("ArgExtreme").unwrap();
        let unsigned = |array: &Array| {
            evaluate("ArgExtreme", [array]).unwrap();
            // SAFETY: evaluated, in order, and of this many numbers.
            unsafe {
                let start = mlx_sys::mlx_array_data_uint32(array.as_ptr());
                std::slice::from_raw_parts(start, array.count()).to_vec()
            }
        };
        for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float64, Dtype::Int8, Dtype::Bool] {
            let x = convert(&graph, &x, dtype).unwrap();
            for (axis, greatest, last) in (0..8).map(|i| (i & 1, i & 2 == 0, i & 4 == 0)) {
                let dtype = Dtype::Uint32;
                let attrs =
                    ArgExtreme { axis: axis.into(), keep_axis: false, greatest, last, dtype };
                let once = unsigned(&on_cpu(&graph, &x, axis, &attrs).unwrap());
                let composed = composed(&graph, &x, axis, &attrs).unwrap();
                assert_eq!(once, unsigned(&graph.contiguous(&composed).unwrap()), "{attrs:?}");
            }
        }
    }
}
