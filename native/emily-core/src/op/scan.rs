//! Running reductions along one axis. With `inclusive` false an element counts those before it only, and
//! the first result is the reduction's identity.

use super::elementwise::check_countable;
use super::graph::{count, input, Graph};
use super::{Inputs, Scan};
use crate::build::{Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::Result;
use mlx_rs::Array;
use mlx_sys::{mlx_array, mlx_optional_dtype, mlx_stream};
use std::ffi::c_int;

/// An mlx-c function of a running reduction.
type Function =
    unsafe extern "C" fn(*mut mlx_array, mlx_array, c_int, bool, bool, mlx_stream) -> c_int;

/// One that can be asked for the result's dtype.
type TypedFunction = unsafe extern "C" fn(
    *mut mlx_array,
    mlx_array,
    c_int,
    bool,
    bool,
    mlx_optional_dtype,
    mlx_stream,
) -> c_int;

/// Calls `call` with the input in the dtype that `dtype` gives and the axis, unless there is nothing to do.
fn run(
    build: &Build,
    op: &'static str,
    attrs: &Scan,
    inputs: Inputs,
    dtype: impl FnOnce(Dtype) -> Dtype,
    call: impl FnOnce(*mut mlx_array, mlx_array, c_int, mlx_stream) -> c_int,
) -> Result<Array> {
    let graph = Graph::new(build, op);
    let x = input(op, inputs, 0)?;
    let axis = check::axis(op, "axis", attrs.axis, x.rank())?;
    check_countable(build, op, count(x.shape_of()) as i128)?;
    let x = graph.astype(x, dtype(x.dtype_of()))?;
    // MLX on the CPU divides by the axis' size, and by its stride, which is anything where there is
    // but one element.
    let size = x.shape_of()[axis as usize];
    if count(x.shape_of()) == 0 || (size == 1 && attrs.inclusive) {
        return Ok(x);
    }
    graph.call(|res, s| call(res, x.as_ptr(), axis, s))
}

fn number(dtype: Dtype) -> Dtype {
    if dtype == Dtype::Bool {
        Dtype::Int32
    } else {
        dtype
    }
}

fn accumulate(
    build: &Build,
    op: &'static str,
    function: TypedFunction,
    attrs: &Scan,
    inputs: Inputs,
) -> Result<Array> {
    let own = mlx_optional_dtype { value: Dtype::Float32.to_mlx(), has_value: false };
    run(build, op, attrs, inputs, number, |res, x, axis, s| {
        // SAFETY: the functions are mlx-c's and the handle is live.
        unsafe { function(res, x, axis, attrs.reverse, attrs.inclusive, own, s) }
    })
}

fn extreme(
    build: &Build,
    op: &'static str,
    function: Function,
    attrs: &Scan,
    inputs: Inputs,
) -> Result<Array> {
    run(
        build,
        op,
        attrs,
        inputs,
        |dtype| dtype,
        |res, x, axis, s| {
            // SAFETY: the functions are mlx-c's and the handle is live.
            unsafe { function(res, x, axis, attrs.reverse, attrs.inclusive, s) }
        },
    )
}

/// Running sums in the input's dtype, int32 for booleans.
pub(super) fn cumsum(build: &Build, attrs: &Scan, inputs: Inputs) -> Result<Array> {
    accumulate(build, "Cumsum", mlx_sys::mlx_cumsum_axis, attrs, inputs)
}

/// Running products in the input's dtype, int32 for booleans.
pub(super) fn cumprod(build: &Build, attrs: &Scan, inputs: Inputs) -> Result<Array> {
    accumulate(build, "Cumprod", mlx_sys::mlx_cumprod_axis, attrs, inputs)
}

/// The greatest element so far; NaN from the first NaN on.
pub(super) fn cummax(build: &Build, attrs: &Scan, inputs: Inputs) -> Result<Array> {
    extreme(build, "Cummax", mlx_sys::mlx_cummax_axis, attrs, inputs)
}

/// The least element so far; NaN from the first NaN on.
pub(super) fn cummin(build: &Build, attrs: &Scan, inputs: Inputs) -> Result<Array> {
    extreme(build, "Cummin", mlx_sys::mlx_cummin_axis, attrs, inputs)
}

/// Running `log(sum(exp(x)))` without overflow; f32 for integers.
pub(super) fn logcumsumexp(build: &Build, attrs: &Scan, inputs: Inputs) -> Result<Array> {
    let inexact = |dtype: Dtype| if dtype.is_inexact() { dtype } else { Dtype::Float32 };
    let function = mlx_sys::mlx_logcumsumexp_axis;
    run(build, "Logcumsumexp", attrs, inputs, inexact, |res, x, axis, s| {
        // SAFETY: the function is mlx-c's and the handle is live.
        unsafe { function(res, x, axis, attrs.reverse, attrs.inclusive, s) }
    })
}
