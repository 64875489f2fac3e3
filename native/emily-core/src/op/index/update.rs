//! Updates scattered by index. MLX writes wherever an index points, so an update out of range goes
//! where it does no harm: a sum gets a zero in its place, everything else a region behind the tensor
//! that is cut off again.

use super::bounds::positions;
use super::{common_shape, index_tensors};
use crate::build::{Arrays, Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::graph::{broadcast_shape, input, integer, Graph};
use crate::op::{Axes, Axis, Inputs};
use mlx_rs::Array;
use mlx_sys::{mlx_array, mlx_stream, mlx_vector_array};
use std::ffi::c_int;

type Scatter = unsafe extern "C" fn(
    *mut mlx_array,
    mlx_array,
    mlx_vector_array,
    mlx_array,
    *const c_int,
    usize,
    mlx_stream,
) -> c_int;

type AlongAxis = unsafe extern "C" fn(
    *mut mlx_array,
    mlx_array,
    mlx_array,
    mlx_array,
    c_int,
    mlx_stream,
) -> c_int;

/// The tensor, the first input, with slots replaced by updates, the last input. Between them stand
/// index tensors of integer dtypes, one for each of `axes`, that broadcast. The updates have the
/// indices' shape followed by a slot's, which has the tensor's rank and is at most as large; they
/// are converted to the tensor's dtype. A slot that would leave the tensor is dropped whole. Of
/// updates to one place a CPU keeps the last, a GPU any.
pub(crate) fn scatter(build: &Build, attrs: &Axes, inputs: Inputs) -> Result<Array> {
    scatter_beside("Scatter", mlx_sys::mlx_scatter, build, attrs, inputs)
}

/// As `scatter`; keeps the greatest of an element and its updates.
pub(crate) fn scatter_max(build: &Build, attrs: &Axes, inputs: Inputs) -> Result<Array> {
    scatter_beside("ScatterMax", mlx_sys::mlx_scatter_max, build, attrs, inputs)
}

/// As `scatter`; keeps the least of an element and its updates.
pub(crate) fn scatter_min(build: &Build, attrs: &Axes, inputs: Inputs) -> Result<Array> {
    scatter_beside("ScatterMin", mlx_sys::mlx_scatter_min, build, attrs, inputs)
}

/// As `scatter`; multiplies.
pub(crate) fn scatter_prod(build: &Build, attrs: &Axes, inputs: Inputs) -> Result<Array> {
    scatter_beside("ScatterProd", mlx_sys::mlx_scatter_prod, build, attrs, inputs)
}

/// As `scatter`; adds.
pub(crate) fn scatter_add(build: &Build, attrs: &Axes, inputs: Inputs) -> Result<Array> {
    const OP: &str = "ScatterAdd";
    let Some(checked) = Checked::new(OP, build, attrs, inputs)? else {
        return input(OP, inputs, 0).cloned();
    };
    let Checked { graph, a, axes, updates, slot, .. } = &checked;
    let mut inside: Option<Array> = None;
    let mut indices = Vec::with_capacity(axes.len());
    for (position, &axis) in checked.positions()?.iter().zip(axes) {
        let size = a.shape_of()[axis as usize];
        let limit = integer(size.into(), Dtype::Uint32);
        let here = graph.binary(mlx_sys::mlx_less, position, &limit)?;
        inside = Some(match inside {
            Some(others) => graph.binary(mlx_sys::mlx_logical_and, &others, &here)?,
            None => here,
        });
        let last = integer((size - slot[axis as usize]).into(), Dtype::Uint32);
        indices.push(graph.binary(mlx_sys::mlx_minimum, position, &last)?);
    }
    let Some(inside) = inside else {
        return scatter_positions(graph, mlx_sys::mlx_scatter_add, a, &[], updates, &[]);
    };
    let mut shape = inside.shape_of().to_vec();
    shape.resize(updates.rank(), 1);
    let inside = graph.reshape(&inside, &shape)?;
    let updates = graph.select(&inside, updates, &graph.scalar(0.0, updates.dtype_of())?)?;
    scatter_positions(graph, mlx_sys::mlx_scatter_add, a, &indices, &updates, axes)
}

fn scatter_beside(
    op: &'static str,
    function: Scatter,
    build: &Build,
    attrs: &Axes,
    inputs: Inputs,
) -> Result<Array> {
    let Some(checked) = Checked::new(op, build, attrs, inputs)? else {
        return input(op, inputs, 0).cloned();
    };
    let Checked { graph, a, axes, updates, slot, .. } = &checked;
    let indices = checked.positions()?;
    let mut beside = vec![0; a.rank()];
    for &axis in axes {
        beside[axis as usize] = slot[axis as usize];
    }
    let padded = padded(graph, a, &beside)?;
    let scattered = scatter_positions(graph, function, &padded, &indices, updates, axes)?;
    graph.slice(&scattered, &vec![0; a.rank()], a.shape_of(), &vec![1; a.rank()])
}

/// Scatters to positions that are inside the tensor.
pub(crate) fn scatter_positions(
    graph: &Graph,
    function: Scatter,
    a: &Array,
    positions: &[Array],
    updates: &Array,
    axes: &[i32],
) -> Result<Array> {
    let capable = on_capable_device(graph, a.dtype_of());
    let here = |array: &Array| match capable.build.is_cpu() {
        true => graph.copy_for_host(array),
        false => Ok(array.clone()),
    };
    let (a, updates) = (here(a)?, here(updates)?);
    let positions = positions.iter().map(here).collect::<Result<Vec<_>>>()?;
    let positions = Arrays::from_iter(&positions);
    // SAFETY: the functions are mlx-c's; the handles are live and the pointer has the length beside it.
    capable.call(|res, s| unsafe {
        function(
            res,
            a.as_ptr(),
            positions.as_raw(),
            updates.as_ptr(),
            axes.as_ptr(),
            axes.len(),
            s,
        )
    })
}

/// GPUs lack atomics of 8 bytes, and MLX refuses to scatter such elements there.
fn on_capable_device(graph: &Graph, dtype: Dtype) -> Graph {
    let build = if dtype.size() == 8 { graph.build.on_cpu() } else { graph.build };
    Graph { build, ..*graph }
}

fn padded(graph: &Graph, a: &Array, beside: &[i32]) -> Result<Array> {
    let sizes: Vec<i64> = a
        .shape_of()
        .iter()
        .zip(beside)
        .map(|(&size, &more)| i64::from(size) + i64::from(more))
        .collect();
    check::shape(graph.op, &sizes, a.dtype_of())?;
    graph.pad(a, &vec![0; beside.len()], beside, &graph.scalar(0.0, a.dtype_of())?)
}

/// The arguments of a scatter that has something to do.
struct Checked<'a> {
    graph: Graph,
    a: &'a Array,
    indices: Vec<&'a Array>,
    common: Vec<i32>,
    axes: Vec<i32>,
    updates: &'a Array,
    slot: Vec<i32>,
}

impl<'a> Checked<'a> {
    /// Nothing if there are no updates.
    fn new(
        op: &'static str,
        build: &Build,
        attrs: &Axes,
        inputs: Inputs<'a>,
    ) -> Result<Option<Self>> {
        let a = input(op, inputs, 0)?;
        let last = inputs.len() - 1;
        let updates = input(op, inputs, last)?;
        let axes = check::axes(op, "axes", &attrs.axes, a.rank())?;
        let indices = index_tensors(op, &inputs[1..last], &axes)?;
        let common = common_shape(op, &indices)?;
        let fits = updates.rank() == common.len() + a.rank()
            && updates.shape_of().starts_with(&common)
            && updates.shape_of()[common.len()..].iter().zip(a.shape_of()).all(|(u, n)| u <= n);
        if !fits {
            let expected = format!("{common:?} followed by at most {:?}", a.shape_of());
            return Err(Error::argument(op, "shape of the updates", expected, updates.shape_of()));
        }
        if updates.count() == 0 {
            return Ok(None);
        }
        let slot = updates.shape_of()[common.len()..].to_vec();
        let graph = Graph::new(build, op);
        Ok(Some(Checked { graph, a, indices, common, axes, updates, slot }))
    }

    /// One tensor of positions an axis, all of one shape.
    fn positions(&self) -> Result<Vec<Array>> {
        let mut all = Vec::with_capacity(self.axes.len());
        for (indices, &axis) in self.indices.iter().zip(&self.axes) {
            let at = axis as usize;
            let here = positions(&self.graph, indices, self.a.shape_of()[at], self.slot[at])?;
            all.push(self.graph.broadcast_to(&here, &self.common)?);
        }
        Ok(all)
    }
}

/// The tensor with the element at each index' place of the axis replaced by the third input, all
/// else equal. The indices, of any integer dtype, have the tensor's rank and broadcast to its other
/// axes; the values broadcast to the indices and are converted to the tensor's dtype. Updates out of
/// range are dropped.
pub(crate) fn put_along_axis(build: &Build, attrs: &Axis, inputs: Inputs) -> Result<Array> {
    const OP: &str = "PutAlongAxis";
    let Some(along) = Along::new(OP, build, attrs, inputs)? else {
        return input(OP, inputs, 0).cloned();
    };
    let Along { graph, a, axis, positions, values } = &along;
    let at = *axis as usize;
    let mut beside = vec![0; a.rank()];
    beside[at] = 1;
    let padded = padded(graph, a, &beside)?;
    let put = along_axis(graph, mlx_sys::mlx_put_along_axis, &padded, positions, values, *axis)?;
    graph.slice_axis(&put, at, 0, a.shape_of()[at], 1)
}

/// As `put_along_axis`; adds.
pub(crate) fn scatter_add_axis(build: &Build, attrs: &Axis, inputs: Inputs) -> Result<Array> {
    const OP: &str = "ScatterAddAxis";
    let Some(along) = Along::new(OP, build, attrs, inputs)? else {
        return input(OP, inputs, 0).cloned();
    };
    let Along { graph, a, axis, positions, values } = &along;
    let size = a.shape_of()[*axis as usize];
    let inside =
        graph.binary(mlx_sys::mlx_less, positions, &integer(size.into(), Dtype::Uint32))?;
    let values = graph.select(&inside, values, &graph.scalar(0.0, values.dtype_of())?)?;
    let last = integer((size - 1).into(), Dtype::Uint32);
    let positions = graph.binary(mlx_sys::mlx_minimum, positions, &last)?;
    let graph = on_capable_device(graph, a.dtype_of());
    along_axis(&graph, mlx_sys::mlx_scatter_add_axis, a, &positions, &values, *axis)
}

fn along_axis(
    graph: &Graph,
    function: AlongAxis,
    a: &Array,
    positions: &Array,
    values: &Array,
    axis: i32,
) -> Result<Array> {
    // SAFETY: the functions are mlx-c's and the handles are live.
    graph.call(|res, s| unsafe {
        function(res, a.as_ptr(), positions.as_ptr(), values.as_ptr(), axis, s)
    })
}

/// The arguments of an update along an axis that has something to do.
struct Along<'a> {
    graph: Graph,
    a: &'a Array,
    axis: i32,
    positions: Array,
    values: Array,
}

impl<'a> Along<'a> {
    /// Nothing if there are no updates.
    fn new(
        op: &'static str,
        build: &Build,
        attrs: &Axis,
        inputs: Inputs<'a>,
    ) -> Result<Option<Self>> {
        let (a, indices) = (input(op, inputs, 0)?, input(op, inputs, 1)?);
        let values = input(op, inputs, 2)?;
        check::integer(op, "dtype of the indices", indices.dtype_of())?;
        let axis = check::axis(op, "axis", attrs.axis, a.rank())?;
        let mut shape = a.shape_of().to_vec();
        let size = shape[axis as usize];
        let off_axis = |shape: &[i32]| {
            (0..shape.len())
                .all(|at| at == axis as usize || shape[at] == 1 || shape[at] == a.shape_of()[at])
        };
        if indices.rank() != a.rank() || !off_axis(indices.shape_of()) {
            let expected = format!("one that broadcasts to {shape:?} off axis {axis}");
            return Err(Error::argument(op, "shape of the indices", expected, indices.shape_of()));
        }
        shape[axis as usize] = indices.shape_of()[axis as usize];
        if check::broadcast(op, values.shape_of(), &shape).is_err()
            || broadcast_shape(values.shape_of(), &shape) != shape
        {
            let expected = format!("one that broadcasts to {shape:?}");
            return Err(Error::argument(op, "shape of the values", expected, values.shape_of()));
        }
        if size == 0 || shape.contains(&0) {
            return Ok(None);
        }
        let graph = Graph::new(build, op);
        let positions = positions(&graph, indices, size, 1)?;
        let positions = graph.broadcast_to(&positions, &shape)?;
        let values = graph.broadcast_to(values, &shape)?;
        Ok(Some(Along { graph, a, axis, positions, values }))
    }
}
