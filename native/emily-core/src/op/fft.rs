//! Discrete Fourier transforms over several axes: unnormalised forward, divided by the lengths
//! backward. They compute in f32 and c64; f64 is rounded to that.

use super::elementwise::check_countable;
use super::graph::{count, input, wide, Graph};
use super::{Fft, Inputs};
use crate::build::{Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use mlx_rs::Array;
use mlx_sys::{mlx_array, mlx_fft_norm, mlx_stream};
use std::ffi::c_int;

type Transform = unsafe extern "C" fn(
    *mut mlx_array,
    mlx_array,
    *const c_int,
    usize,
    *const c_int,
    usize,
    mlx_fft_norm,
    mlx_stream,
) -> c_int;

/// What the last of the axes holds.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    /// As many elements before as after.
    Full,
    /// Half the spectrum and one, of real elements: after the transform.
    HalfAfter,
    /// The same before it.
    HalfBefore,
}

/// The transform along `axes` of the tensor cut or padded with zeros to `sizes` there; c64. Sizes
/// are positive, axes distinct.
pub(super) fn fftn(build: &Build, attrs: &Fft, inputs: Inputs) -> Result<Array> {
    transform("Fftn", mlx_sys::mlx_fft_fftn, Last::Full, build, attrs, inputs)
}

/// The inverse of `fftn`.
pub(super) fn ifftn(build: &Build, attrs: &Fft, inputs: Inputs) -> Result<Array> {
    transform("Ifftn", mlx_sys::mlx_fft_ifftn, Last::Full, build, attrs, inputs)
}

/// As `fftn` of a real tensor; along the last of the axes the result has `size / 2 + 1` elements.
/// Refused: complex tensors.
pub(super) fn rfftn(build: &Build, attrs: &Fft, inputs: Inputs) -> Result<Array> {
    transform("Rfftn", mlx_sys::mlx_fft_rfftn, Last::HalfAfter, build, attrs, inputs)
}

/// The inverse of `rfftn`, f32: the tensor has, or is cut or padded to, `size / 2 + 1` elements along
/// the last of the axes, the result `size`.
pub(super) fn irfftn(build: &Build, attrs: &Fft, inputs: Inputs) -> Result<Array> {
    transform("Irfftn", mlx_sys::mlx_fft_irfftn, Last::HalfBefore, build, attrs, inputs)
}

fn transform(
    op: &'static str,
    function: Transform,
    last: Last,
    build: &Build,
    attrs: &Fft,
    inputs: Inputs,
) -> Result<Array> {
    let a = input(op, inputs, 0)?;
    if last == Last::HalfAfter && a.dtype_of() == Dtype::Complex64 {
        return Err(Error::argument(op, "dtype", "a real one", format_args!("{}", a.dtype_of())));
    }
    let axes = check::axes(op, "axes", &attrs.axes, a.rank())?;
    check::length(op, "sizes", &attrs.sizes, axes.len())?;
    let sizes = check::positives(op, "sizes", &attrs.sizes)?;
    let Some(&last_axis) = axes.last() else {
        return Err(Error::argument(op, "axes", "one axis or more", axes));
    };
    let (mut before, mut after) = (a.shape_of().to_vec(), a.shape_of().to_vec());
    for (&axis, &size) in axes.iter().zip(&sizes) {
        before[axis as usize] = size;
        after[axis as usize] = size;
    }
    match last {
        Last::Full => {}
        Last::HalfAfter => after[last_axis as usize] = after[last_axis as usize] / 2 + 1,
        Last::HalfBefore => before[last_axis as usize] = before[last_axis as usize] / 2 + 1,
    }
    for shape in [&before, &after] {
        check::shape(op, &wide(shape), Dtype::Complex64)?;
        check_countable(build, op, count(shape) as i128)?;
    }
    let graph = Graph::new(build, op);
    let dtype = if last == Last::HalfAfter { Dtype::Float32 } else { Dtype::Complex64 };
    if count(&after) == 0 || a.count() == 0 {
        let dtype = if last == Last::HalfBefore { Dtype::Float32 } else { Dtype::Complex64 };
        return graph.zeros(&after, dtype);
    }
    // MLX would pad on the default device's stream.
    let a = fit(&graph, &graph.astype(a, dtype)?, &before)?;
    let norm = mlx_sys::mlx_fft_norm__MLX_FFT_NORM_BACKWARD;
    // SAFETY: the functions are mlx-c's; the handle is live and each pointer has the length beside it.
    graph.call(|res, s| unsafe {
        let (n, len) = (sizes.as_ptr(), sizes.len());
        function(res, a.as_ptr(), n, len, axes.as_ptr(), axes.len(), norm, s)
    })
}

/// Cuts or pads with zeros behind.
fn fit(graph: &Graph, a: &Array, shape: &[i32]) -> Result<Array> {
    let kept: Vec<i32> = a.shape_of().iter().zip(shape).map(|(&a, &b)| a.min(b)).collect();
    let ones = vec![1; shape.len()];
    let zeros = vec![0; shape.len()];
    let cut = graph.slice(a, &zeros, &kept, &ones)?;
    let high: Vec<i32> = kept.iter().zip(shape).map(|(kept, size)| size - kept).collect();
    graph.pad(&cut, &zeros, &high, &graph.scalar(0.0, a.dtype_of())?)
}
