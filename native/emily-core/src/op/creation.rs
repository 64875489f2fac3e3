//! New tensors, and the same elements in another dtype.

use super::elementwise::truth;
use super::graph::{input, integer, range, wide, Graph};
use super::{Arange, Cast, Eye, Fill, Inputs};
use crate::build::{Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use mlx_rs::Array;

/// Zeros of a shape.
pub(super) fn zeros(build: &Build, attrs: &Fill, _: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Zeros");
    graph.zeros(&check::shape(graph.op, &attrs.shape, attrs.dtype)?, attrs.dtype)
}

/// Ones of a shape.
pub(super) fn ones(build: &Build, attrs: &Fill, _: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Ones");
    let one = graph.scalar(1.0, attrs.dtype)?;
    fill(&graph, &check::shape(graph.op, &attrs.shape, attrs.dtype)?, &one)
}

/// A shape filled with the input, which broadcasts to it and is converted as by `Astype`.
pub(super) fn full(build: &Build, attrs: &Fill, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Full");
    let value = input(graph.op, inputs, 0)?;
    let shape = check::shape(graph.op, &attrs.shape, attrs.dtype)?;
    check_broadcast_to(graph.op, value.shape_of(), &shape)?;
    fill(&graph, &shape, &convert(&graph, value, attrs.dtype)?)
}

/// A shape filled with a value, whose shape broadcasts to it.
pub(super) fn fill(graph: &Graph, shape: &[i32], value: &Array) -> Result<Array> {
    if shape.contains(&0) {
        return graph.zeros(shape, value.dtype_of());
    }
    let dtype = value.dtype_of().to_mlx();
    // SAFETY: the handle is live and the pointer has the length beside it.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_full(res, shape.as_ptr(), shape.len(), value.as_ptr(), dtype, s)
    })
}

/// A shape broadcasts to another one, and not both to a third.
pub(super) fn check_broadcast_to(op: &'static str, from: &[i32], to: &[i32]) -> Result<()> {
    let fits = from.len() <= to.len()
        && from.iter().rev().zip(to.iter().rev()).all(|(&from, &to)| from == to || from == 1);
    if fits {
        Ok(())
    } else {
        Err(Error::argument(op, "shape", format!("one that {from:?} broadcasts to"), to))
    }
}

/// A vector of the numbers `start + i * step` before `stop`, computed in f32 (f64 for f64) where the
/// dtype is inexact. Refused are a step of zero, numbers that are not finite or not of the dtype, more
/// than an int32 counts, and `Bool`. Integers above 2^53 lose bits, as the attributes are floats.
pub(super) fn arange(build: &Build, attrs: &Arange, _: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Arange");
    let &Arange { start, stop, step, dtype } = attrs;
    for (what, value) in [("start", start), ("stop", stop), ("step", step)] {
        if !value.is_finite() {
            return Err(Error::argument(graph.op, what, "a finite number", value));
        }
    }
    if step == 0.0 {
        return Err(Error::argument(graph.op, "step", "a number other than 0", step));
    }
    if dtype == Dtype::Bool {
        return Err(Error::argument(graph.op, "dtype", "numbers", format_args!("{dtype}")));
    }
    let length = ((stop - start) / step).ceil().max(0.0);
    if length > f64::from(i32::MAX) {
        return Err(Error::argument(graph.op, "length", "at most 2147483647", length));
    }
    let length = length as i32;
    if length == 0 {
        return graph.zeros(&[0], dtype);
    }
    let last = start + step * f64::from(length - 1);
    if !dtype.is_inexact() {
        let (least, greatest) = range(dtype);
        for (what, value) in [("start", start), ("last number", last)] {
            // From 2^63 on the bound is not a float, but neither is a number between it and 2^63.
            if value < least as f64 || value as i128 > greatest {
                let expected = format!("a number from {least} to {greatest}");
                return Err(Error::argument(graph.op, what, expected, value));
            }
        }
        return range_of(&graph, start, stop, step, dtype);
    }
    // MLX adds up the step on the CPU, in the dtype itself. That is exact for whole numbers which the
    // dtype holds; others are multiplied.
    let exact = match dtype {
        Dtype::Float32 => f64::from(1 << 24),
        Dtype::Float64 => (1i64 << 53) as f64,
        _ => 0.0,
    };
    if start.fract() == 0.0 && step.fract() == 0.0 && start.abs().max(last.abs()) < exact {
        return range_of(&graph, start, stop, step, dtype);
    }
    let wide = if dtype == Dtype::Float64 { dtype } else { Dtype::Float32 };
    let index = graph.astype(&graph.iota(length, Dtype::Int32)?, wide)?;
    let scaled = graph.binary(mlx_sys::mlx_multiply, &index, &graph.scalar(step, wide)?)?;
    let shifted = graph.binary(mlx_sys::mlx_add, &scaled, &graph.scalar(start, wide)?)?;
    graph.astype(&shifted, dtype)
}

fn range_of(graph: &Graph, start: f64, stop: f64, step: f64, dtype: Dtype) -> Result<Array> {
    // SAFETY: takes no pointer but the result's.
    graph.call(|res, s| unsafe { mlx_sys::mlx_arange(res, start, stop, step, dtype.to_mlx(), s) })
}

/// A matrix with ones on one diagonal; one outside the matrix gives zeros.
pub(super) fn eye(build: &Build, attrs: &Eye, _: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Eye");
    let rows = check::size(graph.op, "rows", attrs.rows)?;
    let cols = check::size(graph.op, "cols", attrs.cols)?;
    check::shape(graph.op, &[attrs.rows, attrs.cols], attrs.dtype)?;
    let k = attrs.k.clamp(-i64::from(rows), i64::from(cols)) as i32;
    // MLX scatters the ones, which GPUs do not do with elements of 64 bits.
    let wide = matches!(attrs.dtype, Dtype::Int64 | Dtype::Uint64 | Dtype::Complex64);
    let dtype = if wide && !build.is_cpu() { Dtype::Int32 } else { attrs.dtype };
    // SAFETY: takes no pointer but the result's.
    let eye =
        graph.call(|res, s| unsafe { mlx_sys::mlx_eye(res, rows, cols, k, dtype.to_mlx(), s) })?;
    graph.astype(&eye, attrs.dtype)
}

/// Converts elements. Floats lose their fraction on the way to integers and saturate, NaN becomes 0;
/// integers wrap; of complex numbers the real part stays; not zero is true.
pub(super) fn astype(build: &Build, attrs: &Cast, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Astype");
    convert(&graph, input(graph.op, inputs, 0)?, attrs.dtype)
}

/// As [`astype`].
pub(super) fn convert(graph: &Graph, x: &Array, dtype: Dtype) -> Result<Array> {
    match dtype {
        Dtype::Bool => truth(graph, x),
        _ if dtype.is_integer() && x.dtype_of().is_inexact() => to_integer(graph, x, dtype),
        _ => graph.astype(x, dtype),
    }
}

fn to_integer(graph: &Graph, x: &Array, dtype: Dtype) -> Result<Array> {
    let wide = if x.dtype_of() == Dtype::Float64 { Dtype::Float64 } else { Dtype::Float32 };
    let x = graph.astype(x, wide)?;
    if graph.build.is_cpu() {
        return graph.call(|res, s| {
            // SAFETY: the handle is live, and the dtypes are those that the function takes.
            unsafe { mlx_sys::emily_saturating_cast(res, x.as_ptr(), dtype.to_mlx(), s) }
        });
    }
    to_integer_by_parts(graph, &x, wide, dtype)
}

/// What C leaves undefined, numbers beyond the dtype and NaN, is taken care of before and after the cast.
fn to_integer_by_parts(graph: &Graph, x: &Array, wide: Dtype, dtype: Dtype) -> Result<Array> {
    let (least, greatest) = range(dtype);
    // A power of two, and the float before it, which is the greatest one that can be cast.
    let limit = (greatest + 1) as f64;
    let before = if wide == Dtype::Float64 {
        limit.next_down()
    } else {
        f64::from((limit as f32).next_down())
    };
    let clipped = graph.binary(mlx_sys::mlx_maximum, x, &graph.scalar(least as f64, wide)?)?;
    let clipped = graph.binary(mlx_sys::mlx_minimum, &clipped, &graph.scalar(before, wide)?)?;
    let mut number = graph.astype(&clipped, dtype)?;
    if (before as i128) < greatest {
        let beyond = graph.scalar(limit, wide)?;
        let beyond = graph.binary(mlx_sys::mlx_greater_equal, x, &beyond)?;
        // All ones is -1 in two's complement, the greatest number where there is no sign.
        let greatest = i64::try_from(greatest).unwrap_or(-1);
        number = graph.select(&beyond, &integer(greatest, dtype), &number)?;
    }
    let is_number = graph.binary(mlx_sys::mlx_equal, x, x)?;
    graph.select(&is_number, &number, &integer(0, dtype))
}

/// The same bits in another dtype. Where the widths differ the last axis changes its size, which must
/// come out whole; a scalar cannot. `Bool` as the new dtype is refused, since its bytes are 0 or 1.
pub(super) fn bitcast(build: &Build, attrs: &Cast, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Bitcast");
    let x = input(graph.op, inputs, 0)?;
    let (from, to) = (x.dtype_of(), attrs.dtype);
    if from == to {
        return Ok(x.clone());
    }
    if to == Dtype::Bool {
        let got = format_args!("{to}");
        return Err(Error::argument(graph.op, "dtype", "numbers", got));
    }
    if from.size() == to.size() {
        return view(&graph, x, to);
    }
    let Some((&last, before)) = x.shape_of().split_last() else {
        let expected = format!("{} bytes, since the tensor is a scalar", from.size());
        return Err(Error::argument(graph.op, "dtype", expected, format_args!("{to}")));
    };
    let bytes = last as usize * from.size();
    if !bytes.is_multiple_of(to.size()) {
        let expected = format!("a size that gives whole elements of {} bytes", to.size());
        return Err(Error::argument(graph.op, "last axis", expected, last));
    }
    let mut shape = wide(before);
    shape.push((bytes / to.size()) as i64);
    let shape = check::shape(graph.op, &shape, to)?;
    if shape.contains(&0) {
        return graph.zeros(&shape, to);
    }
    // MLX's view keeps the last axis' stride, which is anything where its size was 1, and reads elsewhere
    // once there are more elements. So the axis that changes is one whose stride a reshape has just set.
    let ratio = (to.size() / from.size()).max(1) as i32;
    let mut split = x.shape_of().to_vec();
    let axis = split.len() - 1;
    split[axis] /= ratio;
    split.push(ratio);
    graph.reshape(&view(&graph, &graph.reshape(x, &split)?, to)?, &shape)
}

fn view(graph: &Graph, x: &Array, dtype: Dtype) -> Result<Array> {
    // SAFETY: the handle is live.
    graph.call(|res, s| unsafe { mlx_sys::mlx_view(res, x.as_ptr(), dtype.to_mlx(), s) })
}

/// The same elements in row-major order in memory.
pub(super) fn contiguous(build: &Build, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Contiguous");
    let x = input(graph.op, inputs, 0)?;
    // Some of what MLX's CUDA build makes without elements has no buffer that it could look at.
    if x.count() == 0 {
        return Ok(x.clone());
    }
    graph.contiguous(x)
}

/// The same elements; MLX's own gradients end here.
pub(super) fn stop_gradient(build: &Build, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "StopGradient");
    graph.unary(mlx_sys::mlx_stop_gradient, input(graph.op, inputs, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::tensor::Tensor;

    /// What a GPU computes is computed here too, and compared.
    #[test]
    fn both_ways_to_an_integer_agree() {
        let hostile: Vec<f64> = [f64::NAN, f64::INFINITY, 0.0, 0.9, 1.5, 1e5, 1e19, 1e30]
            .into_iter()
            .chain([7, 8, 15, 16, 31, 32, 63, 64].map(|bits| 2f64.powi(bits)))
            .flat_map(|x| [x, x - 1.0, f64::from((x as f32).next_down()), x.next_down()])
            .flat_map(|x| [x, -x])
            .collect();
        let build = Build::for_this_thread();
        let graph = Graph::new(&build, "Astype");
        let bytes: Vec<u8> = hostile.iter().flat_map(|x| x.to_ne_bytes()).collect();
        let shape = [hostile.len() as i64];
        let doubles = Tensor::from_bytes(&bytes, &shape, Dtype::Float64, Device::Cpu).unwrap();
        let doubles = doubles.handle("Astype").unwrap();
        for wide in [Dtype::Float32, Dtype::Float64] {
            let x = graph.astype(&doubles, wide).unwrap();
            for dtype in Dtype::ALL.iter().copied().filter(|dtype| dtype.is_integer()) {
                let once = to_integer(&graph, &x, dtype).unwrap();
                let by_parts = to_integer_by_parts(&graph, &x, wide, dtype).unwrap();
                let [once, by_parts] = [once, by_parts].map(|numbers| {
                    crate::tensor::evaluate("Astype", [&numbers]).unwrap();
                    let bytes = hostile.len() * dtype.size();
                    // SAFETY: evaluated, contiguous and of this many bytes.
                    unsafe {
                        let start = mlx_sys::mlx_array_data_uint8(numbers.as_ptr());
                        std::slice::from_raw_parts(start, bytes).to_vec()
                    }
                });
                assert_eq!(once, by_parts, "{wide} to {dtype}");
            }
        }
    }
}
