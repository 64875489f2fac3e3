//! Reductions over axes. With no axes nothing is reduced, and the result still has the reduction's dtype.
//!
//! A reduction over no elements gives the reduction's identity (NaN where there is none); the greatest
//! and least of no elements are refused.

use super::creation::{convert, fill};
use super::elementwise::{check_countable, truth};
use super::graph::{count, input, integer, Graph};
use super::{double, Inputs, Reduce, ReduceAxis, Softmax, Spread};
use crate::build::{Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use mlx_rs::Array;
use mlx_sys::{mlx_array, mlx_stream};
use std::ffi::c_int;

/// An mlx-c function that reduces axes.
type Function =
    unsafe extern "C" fn(*mut mlx_array, mlx_array, *const c_int, usize, bool, mlx_stream) -> c_int;

/// A reduction with its checked arguments.
struct Reduction<'a> {
    graph: Graph,
    x: &'a Array,
    /// Not negative, ascending.
    axes: Vec<i32>,
    keep_axes: bool,
}

impl<'a> Reduction<'a> {
    fn new(
        build: &Build,
        op: &'static str,
        axes: &[i64],
        keep_axes: bool,
        inputs: Inputs<'a>,
    ) -> Result<Self> {
        let x = input(op, inputs, 0)?;
        let mut axes = check::axes(op, "axes", axes, x.rank())?;
        axes.sort_unstable();
        check_countable(build, op, count(x.shape_of()) as i128)?;
        Ok(Reduction { graph: Graph::new(build, op), x, axes, keep_axes })
    }

    fn is_empty(&self) -> bool {
        self.x.shape_of().contains(&0)
    }

    /// The number of elements that each result is made of.
    fn reduced(&self) -> usize {
        self.axes.iter().map(|&axis| self.x.shape_of()[axis as usize] as usize).product()
    }

    /// An error where a result would be made of no elements.
    fn require_elements(&self) -> Result<()> {
        if self.reduced() > 0 {
            return Ok(());
        }
        let got = self.x.shape_of();
        Err(Error::argument(self.graph.op, "axes", "axes with elements to choose from", got))
    }

    /// The result of the reduction, of `value` throughout.
    fn constant(&self, value: &Array) -> Result<Array> {
        let shape: Vec<i32> = (0..)
            .zip(self.x.shape_of())
            .filter_map(|(axis, &size)| match self.axes.contains(&axis) {
                false => Some(size),
                true => self.keep_axes.then_some(1),
            })
            .collect();
        fill(&self.graph, &shape, value)
    }

    fn call(&self, function: Function, x: &Array) -> Result<Array> {
        self.call_keeping(self.keep_axes, function, x)
    }

    fn call_keeping(&self, keep: bool, function: Function, x: &Array) -> Result<Array> {
        let axes = &self.axes;
        // SAFETY: the functions are mlx-c's; the handle is live and the pointer has the length beside it.
        self.graph
            .call(|res, s| unsafe { function(res, x.as_ptr(), axes.as_ptr(), axes.len(), keep, s) })
    }

    /// `exp(x - max)` of f64, and the greatest elements, whose axes stay.
    fn shifted_exp(&self, x: &Array) -> Result<(Array, Array)> {
        let greatest = self.call_keeping(true, mlx_sys::mlx_max_axes, x)?;
        let shifted = self.graph.binary(mlx_sys::mlx_subtract, x, &greatest)?;
        Ok((double::exp(&self.graph, &shifted)?, greatest))
    }
}

/// The dtype that is added and multiplied in: int32 or uint32 at least.
fn accumulator(dtype: Dtype) -> Dtype {
    match dtype {
        Dtype::Bool | Dtype::Int8 | Dtype::Int16 => Dtype::Int32,
        Dtype::Uint8 | Dtype::Uint16 => Dtype::Uint32,
        dtype => dtype,
    }
}

/// The dtype of a function of real numbers.
fn inexact(dtype: Dtype) -> Dtype {
    if dtype.is_inexact() {
        dtype
    } else {
        Dtype::Float32
    }
}

fn accumulate(reduction: Reduction, function: Function, identity: i64) -> Result<Array> {
    let dtype = accumulator(reduction.x.dtype_of());
    if reduction.axes.is_empty() {
        return reduction.graph.astype(reduction.x, dtype);
    }
    if reduction.is_empty() {
        return reduction.constant(&reduction.graph.scalar(identity as f64, dtype)?);
    }
    reduction.call(function, reduction.x)
}

/// Sums; integers narrower than 32 bits and booleans are added up in 32 bits.
pub(super) fn sum(build: &Build, attrs: &Reduce, inputs: Inputs) -> Result<Array> {
    let reduction = Reduction::new(build, "Sum", &attrs.axes, attrs.keep_axes, inputs)?;
    accumulate(reduction, mlx_sys::mlx_sum_axes, 0)
}

/// Products, in the dtypes of sums.
pub(super) fn prod(build: &Build, attrs: &Reduce, inputs: Inputs) -> Result<Array> {
    let reduction = Reduction::new(build, "Prod", &attrs.axes, attrs.keep_axes, inputs)?;
    accumulate(reduction, mlx_sys::mlx_prod_axes, 1)
}

fn extreme(reduction: Reduction, function: Function) -> Result<Array> {
    reduction.require_elements()?;
    if reduction.axes.is_empty() {
        return Ok(reduction.x.clone());
    }
    if reduction.is_empty() {
        return reduction.constant(&reduction.graph.scalar(0.0, reduction.x.dtype_of())?);
    }
    reduction.call(function, reduction.x)
}

/// The greatest elements; NaN where there is one.
pub(super) fn max(build: &Build, attrs: &Reduce, inputs: Inputs) -> Result<Array> {
    let reduction = Reduction::new(build, "Max", &attrs.axes, attrs.keep_axes, inputs)?;
    extreme(reduction, mlx_sys::mlx_max_axes)
}

/// The least elements; NaN where there is one.
pub(super) fn min(build: &Build, attrs: &Reduce, inputs: Inputs) -> Result<Array> {
    let reduction = Reduction::new(build, "Min", &attrs.axes, attrs.keep_axes, inputs)?;
    extreme(reduction, mlx_sys::mlx_min_axes)
}

fn quantify(reduction: Reduction, function: Function, identity: bool) -> Result<Array> {
    if reduction.is_empty() {
        return reduction.constant(&Array::from_bool(identity));
    }
    let x = truth(&reduction.graph, reduction.x)?;
    if reduction.axes.is_empty() {
        return Ok(x);
    }
    reduction.call(function, &x)
}

/// Whether all elements are not zero; a boolean.
pub(super) fn all(build: &Build, attrs: &Reduce, inputs: Inputs) -> Result<Array> {
    let reduction = Reduction::new(build, "All", &attrs.axes, attrs.keep_axes, inputs)?;
    quantify(reduction, mlx_sys::mlx_all_axes, true)
}

/// Whether any element is not zero; a boolean.
pub(super) fn any(build: &Build, attrs: &Reduce, inputs: Inputs) -> Result<Array> {
    let reduction = Reduction::new(build, "Any", &attrs.axes, attrs.keep_axes, inputs)?;
    quantify(reduction, mlx_sys::mlx_any_axes, false)
}

/// Means; f32 for integers, which are added up in 64 bits.
pub(super) fn mean(build: &Build, attrs: &Reduce, inputs: Inputs) -> Result<Array> {
    let reduction = Reduction::new(build, "Mean", &attrs.axes, attrs.keep_axes, inputs)?;
    let (graph, dtype) = (&reduction.graph, reduction.x.dtype_of());
    if reduction.is_empty() {
        return reduction.constant(&graph.scalar(f64::NAN, inexact(dtype))?);
    }
    if reduction.axes.is_empty() {
        return graph.astype(reduction.x, inexact(dtype));
    }
    let sum = match dtype {
        dtype if dtype.is_inexact() => dtype,
        dtype if dtype.is_signed_integer() => Dtype::Int64,
        _ => Dtype::Uint64,
    };
    reduction.call(mlx_sys::mlx_mean_axes, &graph.astype(reduction.x, sum)?)
}

/// `log(sum(exp(x)))` without overflow; f32 for integers.
pub(super) fn logsumexp(build: &Build, attrs: &Reduce, inputs: Inputs) -> Result<Array> {
    let reduction = Reduction::new(build, "Logsumexp", &attrs.axes, attrs.keep_axes, inputs)?;
    let (graph, dtype) = (&reduction.graph, inexact(reduction.x.dtype_of()));
    if reduction.is_empty() {
        return reduction.constant(&graph.scalar(f64::NEG_INFINITY, dtype)?);
    }
    let x = graph.astype(reduction.x, dtype)?;
    if reduction.axes.is_empty() {
        return Ok(x);
    }
    if dtype != Dtype::Float64 {
        return reduction.call(mlx_sys::mlx_logsumexp_axes, &x);
    }
    let (exp, greatest) = reduction.shifted_exp(&x)?;
    let sum = reduction.call(mlx_sys::mlx_sum_axes, &exp)?;
    let greatest = graph.reshape(&greatest, sum.shape_of())?;
    let log = graph.unary(mlx_sys::mlx_log, &sum)?;
    let result = graph.binary(mlx_sys::mlx_add, &log, &greatest)?;
    // The difference of two infinities is none.
    graph.select(&graph.unary(mlx_sys::mlx_isinf, &greatest)?, &greatest, &result)
}

/// Medians, of an even number of elements the mean of the two in the middle; f32 for integers, NaN where
/// there is one. Complex numbers are refused.
pub(super) fn median(build: &Build, attrs: &Reduce, inputs: Inputs) -> Result<Array> {
    let reduction = Reduction::new(build, "Median", &attrs.axes, attrs.keep_axes, inputs)?;
    let (graph, dtype) = (&reduction.graph, reduction.x.dtype_of());
    if dtype == Dtype::Complex64 {
        return Err(Error::argument(graph.op, "dtype", "real numbers", format_args!("{dtype}")));
    }
    reduction.require_elements()?;
    if reduction.axes.is_empty() {
        return graph.astype(reduction.x, inexact(dtype));
    }
    if reduction.is_empty() {
        return reduction.constant(&graph.scalar(0.0, inexact(dtype))?);
    }
    reduction.call(mlx_sys::mlx_median_axes, reduction.x)
}

/// An mlx-c function of the spread along axes.
type SpreadFunction = unsafe extern "C" fn(
    *mut mlx_array,
    mlx_array,
    *const c_int,
    usize,
    bool,
    c_int,
    mlx_stream,
) -> c_int;

fn spread(
    build: &Build,
    op: &'static str,
    function: SpreadFunction,
    attrs: &Spread,
    inputs: Inputs,
) -> Result<Array> {
    let reduction = Reduction::new(build, op, &attrs.axes, attrs.keep_axes, inputs)?;
    let ddof = check::size(op, "ddof", attrs.ddof)?;
    let (graph, axes) = (&reduction.graph, &reduction.axes);
    let dtype = inexact(reduction.x.dtype_of());
    if reduction.is_empty() {
        let real = if dtype == Dtype::Complex64 { Dtype::Float32 } else { dtype };
        return reduction.constant(&graph.scalar(f64::NAN, real)?);
    }
    let x = graph.astype(reduction.x, dtype)?;
    // SAFETY: the functions are mlx-c's; the handle is live and the pointer has the length beside it.
    graph.call(|res, s| unsafe {
        function(res, x.as_ptr(), axes.as_ptr(), axes.len(), attrs.keep_axes, ddof, s)
    })
}

/// Variances; f32 for integers and complex numbers. A divisor of zero or less, where `ddof` takes all
/// elements away, gives infinity or NaN.
pub(super) fn var(build: &Build, attrs: &Spread, inputs: Inputs) -> Result<Array> {
    spread(build, "Var", mlx_sys::mlx_var_axes, attrs, inputs)
}

/// Standard deviations, the square roots of [`var`].
pub(super) fn std(build: &Build, attrs: &Spread, inputs: Inputs) -> Result<Array> {
    spread(build, "Std", mlx_sys::mlx_std_axes, attrs, inputs)
}

/// An mlx-c function of the position along an axis.
type PositionFunction =
    unsafe extern "C" fn(*mut mlx_array, mlx_array, c_int, bool, mlx_stream) -> c_int;

fn position(
    build: &Build,
    op: &'static str,
    function: PositionFunction,
    attrs: &ReduceAxis,
    inputs: Inputs,
) -> Result<Array> {
    let reduction = Reduction::new(build, op, &[attrs.axis], attrs.keep_axis, inputs)?;
    reduction.require_elements()?;
    if reduction.is_empty() {
        return reduction.constant(&integer(0, Dtype::Uint32));
    }
    let (x, axis) = (reduction.x, reduction.axes[0]);
    // SAFETY: the functions are mlx-c's and the handle is live.
    reduction.graph.call(|res, s| unsafe { function(res, x.as_ptr(), axis, attrs.keep_axis, s) })
}

/// Positions of the greatest elements, the first of equal ones; uint32.
pub(super) fn argmax(build: &Build, attrs: &ReduceAxis, inputs: Inputs) -> Result<Array> {
    position(build, "Argmax", mlx_sys::mlx_argmax_axis, attrs, inputs)
}

/// Positions of the least elements, the first of equal ones; uint32.
pub(super) fn argmin(build: &Build, attrs: &ReduceAxis, inputs: Inputs) -> Result<Array> {
    position(build, "Argmin", mlx_sys::mlx_argmin_axis, attrs, inputs)
}

/// Softmax over axes together, ones without axes; f32 for integers.
pub(super) fn softmax(build: &Build, attrs: &Softmax, inputs: Inputs) -> Result<Array> {
    let reduction = Reduction::new(build, "Softmax", &attrs.axes, true, inputs)?;
    let (graph, axes) = (&reduction.graph, &reduction.axes);
    let dtype = inexact(reduction.x.dtype_of());
    let x = convert(graph, reduction.x, dtype)?;
    if reduction.is_empty() {
        return Ok(x);
    }
    if dtype == Dtype::Float64 {
        let (exp, _) = reduction.shifted_exp(&x)?;
        let sum = reduction.call(mlx_sys::mlx_sum_axes, &exp)?;
        return graph.binary(mlx_sys::mlx_divide, &exp, &sum);
    }
    let precise = attrs.precise;
    // SAFETY: the handle is live and the pointer has the length beside it.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_softmax_axes(res, x.as_ptr(), axes.as_ptr(), axes.len(), precise, s)
    })
}
