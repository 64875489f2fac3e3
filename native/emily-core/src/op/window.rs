//! Sliding windows, which MLX lacks. A reduction goes axis by axis over shifted copies of the tensor,
//! so that any stride and dilation is right and no window is ever materialised.

use super::graph::{count, input, integer, wide, Binary, Graph};
use super::index::scatter_positions;
use super::{check_room, Inputs, Window, WindowScatter};
use crate::build::{Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use mlx_rs::Array;
use mlx_sys::{mlx_array, mlx_stream};
use std::ffi::c_int;

/// From this window size on, doubling takes fewer nodes than one shifted copy an element.
const FEW_TAPS: i32 = 4;

/// The sum of each window and the second input, a scalar, which also pads. The result has the
/// tensor's dtype; along each axis as many elements as windows fit, none if not even one does.
pub(super) fn sum(build: &Build, attrs: &Window, inputs: Inputs) -> Result<Array> {
    reduce("WindowSum", mlx_sys::mlx_add, build, attrs, inputs)
}

/// As `sum`: the greatest element; NaN if there is one.
pub(super) fn max(build: &Build, attrs: &Window, inputs: Inputs) -> Result<Array> {
    reduce("WindowMax", mlx_sys::mlx_maximum, build, attrs, inputs)
}

/// As `sum`: the least element; NaN if there is one.
pub(super) fn min(build: &Build, attrs: &Window, inputs: Inputs) -> Result<Array> {
    reduce("WindowMin", mlx_sys::mlx_minimum, build, attrs, inputs)
}

/// As `sum`: the product.
pub(super) fn product(build: &Build, attrs: &Window, inputs: Inputs) -> Result<Array> {
    reduce("WindowProduct", mlx_sys::mlx_multiply, build, attrs, inputs)
}

fn reduce(
    op: &'static str,
    combine: Binary,
    build: &Build,
    attrs: &Window,
    inputs: Inputs,
) -> Result<Array> {
    let a = input(op, inputs, 0)?;
    let graph = Graph::new(build, op);
    let axes = Axes::new(
        op,
        a.shape_of(),
        &attrs.window,
        &attrs.strides,
        (&attrs.low, &attrs.high),
        &attrs.dilations,
    )?;
    let init = initial(&graph, input(op, inputs, 1)?, a.dtype_of())?;
    let shape = check::shape(op, &wide(&axes.windows), a.dtype_of())?;
    if count(&shape) == 0 {
        return graph.zeros(&shape, a.dtype_of());
    }
    check::shape(op, &wide(&axes.padded), a.dtype_of())?;
    check_room(build, op, &axes.padded, a.dtype_of())?;
    let mut reduced = graph.pad(a, &axes.low, &axes.high, &init)?;
    for axis in 0..shape.len() {
        reduced = axes.reduce(&graph, combine, &reduced, axis)?;
    }
    graph.binary(combine, &reduced, &init)
}

/// The value that pads, as a scalar of the tensor's dtype.
fn initial(graph: &Graph, init: &Array, dtype: Dtype) -> Result<Array> {
    if init.count() != 1 {
        let expected = "that of a scalar";
        return Err(Error::argument(
            graph.op,
            "shape of the initial value",
            expected,
            init.shape_of(),
        ));
    }
    graph.astype(&graph.reshape(init, &[])?, dtype)
}

/// The checked attributes, one entry an axis.
struct Axes {
    window: Vec<i32>,
    strides: Vec<i32>,
    dilations: Vec<i32>,
    low: Vec<i32>,
    high: Vec<i32>,
    /// Sizes of the padded tensor.
    padded: Vec<i32>,
    /// How many windows fit.
    windows: Vec<i32>,
}

impl Axes {
    fn new(
        op: &'static str,
        shape: &[i32],
        window: &[i64],
        strides: &[i64],
        (low, high): (&[i64], &[i64]),
        dilations: &[i64],
    ) -> Result<Self> {
        let rank = shape.len();
        check::length(op, "window", window, rank)?;
        check::length(op, "strides", strides, rank)?;
        check::length(op, "low", low, rank)?;
        check::length(op, "high", high, rank)?;
        check::length(op, "dilations", dilations, rank)?;
        let mut axes = Axes {
            window: check::positives(op, "window", window)?,
            strides: check::positives(op, "strides", strides)?,
            dilations: check::positives(op, "dilations", dilations)?,
            low: check::sizes(op, "low", low)?,
            high: check::sizes(op, "high", high)?,
            padded: Vec::with_capacity(rank),
            windows: Vec::with_capacity(rank),
        };
        for axis in 0..rank {
            let padded = i64::from(shape[axis]) + low[axis] + high[axis];
            axes.padded.push(check::size(op, "padding", padded)?);
            let span = (window[axis] - 1) * dilations[axis] + 1;
            let windows = if span > padded { 0 } else { (padded - span) / strides[axis] + 1 };
            axes.windows.push(windows as i32);
        }
        Ok(axes)
    }

    /// Reduces the windows along one axis of the padded tensor.
    fn reduce(&self, graph: &Graph, combine: Binary, a: &Array, axis: usize) -> Result<Array> {
        let (window, dilation) = (self.window[axis], self.dilations[axis]);
        let windows = self.windows[axis];
        // A stride that nobody steps by could overflow.
        let stride = if windows == 1 { 1 } else { self.strides[axis] };
        if window <= FEW_TAPS || windows == 1 && window <= 2 * FEW_TAPS {
            let span = (windows - 1) * stride + 1;
            let tap = |index: i32| {
                let start = index * dilation;
                graph.slice_axis(a, axis, start, start + span, stride)
            };
            return (1..window)
                .try_fold(tap(0)?, |sum, index| graph.binary(combine, &sum, &tap(index)?));
        }
        // Elements that start a window, whatever the stride.
        let dense = self.padded[axis] - (window - 1) * dilation;
        // Invariant: each element of `run` combines `length` elements from itself on.
        let (mut run, mut length) = (a.clone(), 1);
        let (mut sum, mut covered) = (None, 0);
        loop {
            if window & length != 0 {
                let start = covered * dilation;
                let part = graph.slice_axis(&run, axis, start, start + dense, 1)?;
                sum = Some(match sum {
                    Some(sum) => graph.binary(combine, &sum, &part)?,
                    None => part,
                });
                covered += length;
            }
            match sum {
                Some(sum) if covered == window => {
                    let span = (windows - 1) * stride + 1;
                    return graph.slice_axis(&sum, axis, 0, span, stride);
                }
                _ => {}
            }
            let shift = length * dilation;
            let rest = run.shape_of()[axis] - shift;
            let front = graph.slice_axis(&run, axis, 0, rest, 1)?;
            let behind = graph.slice_axis(&run, axis, shift, shift + rest, 1)?;
            run = graph.binary(combine, &front, &behind)?;
            length *= 2;
        }
    }
}

type ArgReduce = unsafe extern "C" fn(*mut mlx_array, mlx_array, c_int, bool, mlx_stream) -> c_int;

/// Adds each element of the second input to the place of the greatest element of its window, the
/// last one of equals. Every place starts with the third input, a scalar, which pads too; what falls
/// on padding is dropped. A NaN is passed over unless it is its window's first element. The second
/// input has one element a window; the result has its dtype and the first input's shape. Refused:
/// complex tensors.
pub(super) fn scatter_max(build: &Build, attrs: &WindowScatter, inputs: Inputs) -> Result<Array> {
    let least = f64::NEG_INFINITY;
    select_and_scatter("WindowScatterMax", mlx_sys::mlx_argmax_axis, least, build, attrs, inputs)
}

/// As `scatter_max` with the least element.
pub(super) fn scatter_min(build: &Build, attrs: &WindowScatter, inputs: Inputs) -> Result<Array> {
    let greatest = f64::INFINITY;
    select_and_scatter("WindowScatterMin", mlx_sys::mlx_argmin_axis, greatest, build, attrs, inputs)
}

fn select_and_scatter(
    op: &'static str,
    select: ArgReduce,
    never_selected: f64,
    build: &Build,
    attrs: &WindowScatter,
    inputs: Inputs,
) -> Result<Array> {
    let (a, source) = (input(op, inputs, 0)?, input(op, inputs, 1)?);
    let init = input(op, inputs, 2)?;
    let graph = Graph::new(build, op);
    for (what, dtype) in
        [("dtype of input 0", a.dtype_of()), ("dtype of input 1", source.dtype_of())]
    {
        if dtype == Dtype::Complex64 {
            return Err(Error::argument(op, what, "one that is ordered", format_args!("{dtype}")));
        }
    }
    let ones = vec![1; a.rank()];
    let padding = (&attrs.low[..], &attrs.high[..]);
    let axes = Axes::new(op, a.shape_of(), &attrs.window, &attrs.strides, padding, &ones)?;
    if source.shape_of() != axes.windows {
        let expected = format!("{:?}, one element a window", axes.windows);
        return Err(Error::argument(op, "shape of input 1", expected, source.shape_of()));
    }
    check::shape(op, &wide(&axes.padded), a.dtype_of())?;
    let elements = check::size(op, "number of padded elements", count(&axes.padded) as i64)?;
    let each = check::size(op, "number of elements of a window", count(&axes.window) as i64)?;
    let start = initial(&graph, init, source.dtype_of())?;
    if count(&axes.windows) == 0 {
        return graph.broadcast_to(&start, a.shape_of());
    }
    let all = check::size(op, "number of windows", count(&axes.windows) as i64)?;
    check::shape(op, &[all.into(), each.into()], a.dtype_of())?;
    check_room(build, op, &axes.padded, a.dtype_of())?;
    check_room(build, op, &[all, each], a.dtype_of())?;

    let padded = graph.pad(a, &axes.low, &axes.high, &initial(&graph, init, a.dtype_of())?)?;
    let places = axes.places();
    let steps: Vec<i64> =
        places.iter().zip(&axes.strides).map(|(p, &s)| p * i64::from(s)).collect();
    let view = graph.as_strided(
        &graph.contiguous(&padded)?,
        &[&axes.windows[..], &axes.window[..]].concat(),
        &[&steps[..], &places[..]].concat(),
    )?;
    let windows = graph.reshape(&view, &[all, each])?;
    let chosen = last_selected(&graph, select, never_selected, &windows)?;

    // The chosen place is where its window begins and where it is inside the window.
    let numbers = graph.iota(elements, Dtype::Uint32)?;
    let begins = graph.reshape(&graph.as_strided(&numbers, &axes.windows, &steps)?, &[all])?;
    let inside = graph.reshape(&graph.as_strided(&numbers, &axes.window, &places)?, &[each])?;
    // SAFETY: the handles are live.
    let inside = graph.call(|res, s| unsafe {
        mlx_sys::mlx_take_axis(res, inside.as_ptr(), chosen.as_ptr(), 0, s)
    })?;
    let place = graph.binary(mlx_sys::mlx_add, &begins, &inside)?;
    let zeros = graph.zeros(&[elements], source.dtype_of())?;
    let source = graph.reshape(source, &[all, 1])?;
    let scattered =
        scatter_positions(&graph, mlx_sys::mlx_scatter_add, &zeros, &[place], &source, &[0])?;
    let scattered = graph.reshape(&scattered, &axes.padded)?;
    let stops: Vec<i32> = axes.low.iter().zip(a.shape_of()).map(|(low, size)| low + size).collect();
    let scattered = graph.slice(&scattered, &axes.low, &stops, &vec![1; a.rank()])?;
    graph.binary(mlx_sys::mlx_add, &scattered, &start)
}

impl Axes {
    /// Elements from one to the next along each axis of the padded tensor, row by row.
    fn places(&self) -> Vec<i64> {
        let mut places = vec![1; self.padded.len()];
        for axis in (1..places.len()).rev() {
            places[axis - 1] = places[axis] * i64::from(self.padded[axis]);
        }
        places
    }
}

/// The last place in each row whose element the reduction selects, u32.
fn last_selected(
    graph: &Graph,
    select: ArgReduce,
    never_selected: f64,
    rows: &Array,
) -> Result<Array> {
    let each = rows.shape_of()[1];
    let (mut clean, mut first_is_nan) = (rows.clone(), None);
    if rows.dtype_of().is_float() {
        let nan = graph.unary(mlx_sys::mlx_isnan, rows)?;
        let never = graph.scalar(never_selected, rows.dtype_of())?;
        clean = graph.select(&nan, &never, rows)?;
        let first = graph.slice_axis(&nan, 1, 0, 1, 1)?;
        first_is_nan = Some(graph.reshape(&first, &[rows.shape_of()[0]])?);
    }
    // MLX selects the first of equals, so it gets the rows from behind. A stop below the start of
    // the axis is written as a negative number that stays negative when the size is added.
    let behind = graph.slice_axis(&clean, 1, each - 1, -each - 1, -1)?;
    // SAFETY: the functions are mlx-c's and the handle is live.
    let chosen = graph.call(|res, s| unsafe { select(res, behind.as_ptr(), 1, false, s) })?;
    let last = integer((each - 1).into(), Dtype::Uint32);
    let chosen = graph.binary(mlx_sys::mlx_subtract, &last, &chosen)?;
    match first_is_nan {
        Some(nan) => graph.select(&nan, &integer(0, Dtype::Uint32), &chosen),
        None => Ok(chosen),
    }
}
