//! Products of vectors and matrices, of float and complex dtypes.

use crate::build::{Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::elementwise::check_countable;
use crate::op::graph::{broadcast_shape, count, input, optional, or_null, wide, Graph};
use crate::op::index::clamped_unsigned;
use crate::op::integer::promote;
use crate::op::{Addmm, Inputs, Sorted, Tensordot};
use mlx_rs::Array;

/// `{.., m, k}` times `{.., k, n}`; the batch axes broadcast. A vector is a row on the left, a column
/// on the right, and loses that axis in the result. Refused: scalars, two dtypes of which none is
/// inexact.
pub(crate) fn matmul(build: &Build, inputs: Inputs) -> Result<Array> {
    const OP: &str = "Matmul";
    let (a, b) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?);
    product(build, OP, a, b)
}

fn product(build: &Build, op: &'static str, a: &Array, b: &Array) -> Result<Array> {
    let dtype = inexact(op, &[a, b])?;
    let shape = product_shape(build, op, a, b)?;
    let graph = Graph::new(build, op);
    // With CUDA, MLX reads what an empty factor does not have.
    if count(&shape) == 0 || a.count() == 0 {
        return graph.zeros(&shape, dtype);
    }
    graph.binary(mlx_sys::mlx_matmul, a, b)
}

fn inexact(op: &'static str, arrays: &[&Array]) -> Result<Dtype> {
    let dtype = arrays.iter().map(|array| array.dtype_of()).reduce(promote).unwrap_or(Dtype::Bool);
    if dtype.is_inexact() {
        return Ok(dtype);
    }
    let dtypes: Vec<String> = arrays.iter().map(|array| array.dtype_of().to_string()).collect();
    Err(Error::argument(op, "dtypes", "a float or complex one", dtypes))
}

fn inexact_real(op: &'static str, arrays: &[&Array]) -> Result<Dtype> {
    let dtype = inexact(op, arrays)?;
    if dtype == Dtype::Complex64 {
        return Err(Error::argument(op, "dtypes", "real floats", format_args!("{dtype}")));
    }
    Ok(dtype)
}

/// The checked shape of a matrix product.
fn product_shape(build: &Build, op: &'static str, a: &Array, b: &Array) -> Result<Vec<i32>> {
    let (left, right) = (a.shape_of(), b.shape_of());
    let wrong = |expected: &str| Err(Error::argument(op, "shapes", expected, (left, right)));
    if left.is_empty() || right.is_empty() {
        return wrong("vectors, matrices or batches of matrices");
    }
    let (batch_a, row) = left.split_at(left.len().saturating_sub(2));
    let (batch_b, column) = right.split_at(right.len().saturating_sub(2));
    if row[row.len() - 1] != column[0] {
        return wrong("the last axis of the first to be as long as the last but one of the second");
    }
    if check::broadcast(op, batch_a, batch_b).is_err() {
        return wrong("batch axes that broadcast");
    }
    // MLX multiplies a batch by one matrix as if it were one tall matrix.
    let rows: i64 = left[..left.len() - 1].iter().map(|&size| i64::from(size)).product();
    if right.len() <= 2 && rows > i32::MAX.into() {
        return wrong("at most 2147483647 rows");
    }
    let mut shape = broadcast_shape(batch_a, batch_b);
    let batch = count(&shape);
    for matrix in [row, column] {
        check_countable(build, op, batch as i128 * count(matrix) as i128)?;
    }
    shape.extend(row.len().gt(&1).then(|| row[0]));
    shape.extend(column.get(1));
    check::shape(op, &wide(&shape), Dtype::Complex64)?;
    check_countable(build, op, count(&shape) as i128)?;
    Ok(shape)
}

/// `alpha * a b + beta * c`; inputs are c, which broadcasts to the product's shape, a and b, as for
/// `matmul`. The factors are computed in f32.
pub(crate) fn addmm(build: &Build, attrs: &Addmm, inputs: Inputs) -> Result<Array> {
    const OP: &str = "Addmm";
    let (c, a, b) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?, input(OP, inputs, 2)?);
    let dtype = inexact(OP, &[c, a, b])?;
    let shape = product_shape(build, OP, a, b)?;
    if check::broadcast(OP, c.shape_of(), &shape).is_err()
        || broadcast_shape(c.shape_of(), &shape) != shape
    {
        let expected = format!("one that broadcasts to {shape:?}");
        return Err(Error::argument(OP, "shape of input 0", expected, c.shape_of()));
    }
    let graph = Graph::new(build, OP);
    if count(&shape) == 0 {
        return graph.zeros(&shape, dtype);
    }
    let c = graph.astype(c, dtype)?;
    if a.count() == 0 {
        let beta = graph.scalar(attrs.beta, dtype)?;
        return graph.broadcast_to(&graph.binary(mlx_sys::mlx_multiply, &beta, &c)?, &shape);
    }
    let (a, b) = (graph.astype(a, dtype)?, graph.astype(b, dtype)?);
    if dtype == Dtype::Complex64 {
        let product = graph.binary(mlx_sys::mlx_matmul, &a, &b)?;
        let product =
            graph.binary(mlx_sys::mlx_multiply, &graph.scalar(attrs.alpha, dtype)?, &product)?;
        let c = graph.binary(mlx_sys::mlx_multiply, &graph.scalar(attrs.beta, dtype)?, &c)?;
        return graph.binary(mlx_sys::mlx_add, &product, &c);
    }
    let (alpha, beta) = (attrs.alpha as f32, attrs.beta as f32);
    // SAFETY: the handles are live.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_addmm(res, c.as_ptr(), a.as_ptr(), b.as_ptr(), alpha, beta, s)
    })
}

/// Products of matrices picked from two batches: inputs are `{.., m, k}`, `{.., k, n}` and for each
/// the indices of its matrices, counted over all batch axes, of integer dtypes; indices left out are
/// `0, 1, ..` in the batch's shape. The two index tensors broadcast; the result has their shape
/// followed by `m, n`. Indices are clamped. Without any it is `matmul`. Refused: complex dtypes.
pub(crate) fn gather_mm(build: &Build, attrs: &Sorted, inputs: Inputs) -> Result<Array> {
    const OP: &str = "GatherMm";
    let (a, b) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?);
    let graph = Graph::new(build, OP);
    let dtype = inexact_real(OP, &[a, b])?;
    let picked = Picked::new(&graph, (a, optional(inputs, 2)), (b, optional(inputs, 3)))?;
    let Some(picked) = picked else {
        return product(build, OP, a, b);
    };
    let ([.., m, k], [.., inner, n]) = (a.shape_of(), b.shape_of()) else {
        unreachable!("matrices were picked from both")
    };
    if k != inner {
        let expected = "the last axis of the first to be as long as the last but one of the second";
        return Err(Error::argument(OP, "shapes", expected, (a.shape_of(), b.shape_of())));
    }
    let shape = wide(&[&picked.shape[..], &[*m, *n]].concat());
    let shape = check::shape(OP, &shape, dtype)?;
    if count(&shape) == 0 || *k == 0 {
        return graph.zeros(&shape, dtype);
    }
    // The CPU has this kernel for f32 only.
    let computed = if build.is_cpu() { Dtype::Float32 } else { dtype };
    let (a, b) = (graph.astype(a, computed)?, graph.astype(b, computed)?);
    // SAFETY: the handles are live.
    let product = graph.call(|res, s| unsafe {
        mlx_sys::mlx_gather_mm(
            res,
            a.as_ptr(),
            b.as_ptr(),
            or_null(picked.left.as_ref()),
            or_null(picked.right.as_ref()),
            attrs.sorted,
            s,
        )
    })?;
    graph.astype(&product, dtype)
}

/// Indices of matrices in two batches.
pub(crate) struct Picked {
    /// Those of the first batch, u32 and inside it; absent for all in order.
    pub(crate) left: Option<Array>,
    /// Those of the second.
    pub(crate) right: Option<Array>,
    /// The shape of the picked pairs.
    pub(crate) shape: Vec<i32>,
}

impl Picked {
    /// Nothing if neither has indices. Refused: less than matrices, indices into an empty batch.
    pub(crate) fn new(
        graph: &Graph,
        (a, left): (&Array, Option<&Array>),
        (b, right): (&Array, Option<&Array>),
    ) -> Result<Option<Self>> {
        if left.is_none() && right.is_none() {
            return Ok(None);
        }
        let (left, left_shape) = picked(graph, a, left)?;
        let (right, right_shape) = picked(graph, b, right)?;
        check::broadcast(graph.op, &left_shape, &right_shape)?;
        let shape = broadcast_shape(&left_shape, &right_shape);
        check_countable(&graph.build, graph.op, count(&shape) as i128)?;
        Ok(Some(Picked { left, right, shape }))
    }
}

fn picked(
    graph: &Graph,
    matrices: &Array,
    indices: Option<&Array>,
) -> Result<(Option<Array>, Vec<i32>)> {
    let [batch @ .., _, _] = matrices.shape_of() else {
        let expected = "a matrix or a batch of them";
        return Err(Error::argument(graph.op, "shape", expected, matrices.shape_of()));
    };
    let Some(indices) = indices else { return Ok((None, batch.to_vec())) };
    check::integer(graph.op, "dtype of the indices", indices.dtype_of())?;
    let size = check::size(graph.op, "number of matrices", count(batch) as i64)?;
    if indices.count() == 0 {
        return Ok((Some(graph.astype(indices, Dtype::Uint32)?), indices.shape_of().to_vec()));
    }
    if size == 0 {
        let expected = "no indices, since the batch is empty";
        return Err(Error::argument(
            graph.op,
            "shape of the indices",
            expected,
            indices.shape_of(),
        ));
    }
    Ok((Some(clamped_unsigned(graph, indices, size)?), indices.shape_of().to_vec()))
}

/// All products of an element of the one with an element of the other, `{size of a, size of b}`.
pub(crate) fn outer(build: &Build, inputs: Inputs) -> Result<Array> {
    const OP: &str = "Outer";
    let (a, b) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?);
    let shape = [a.count() as i64, b.count() as i64];
    check::shape(OP, &shape, promote(a.dtype_of(), b.dtype_of()))?;
    check_countable(build, OP, i128::from(shape[0]) * i128::from(shape[1]))?;
    let graph = Graph::new(build, OP);
    let a = graph.reshape(a, &[shape[0] as i32, 1])?;
    let b = graph.reshape(b, &[1, shape[1] as i32])?;
    graph.binary(mlx_sys::mlx_multiply, &a, &b)
}

/// The sum of products over the last axes; with a scalar a product. Refused: two dtypes of which
/// none is inexact, unless one is a scalar.
pub(crate) fn inner(build: &Build, inputs: Inputs) -> Result<Array> {
    const OP: &str = "Inner";
    let (a, b) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?);
    if a.rank() == 0 || b.rank() == 0 {
        return Graph::new(build, OP).binary(mlx_sys::mlx_multiply, a, b);
    }
    contract(build, OP, (a, &[-1]), (b, &[-1]))
}

/// The sum of products over the axes of the first paired with those of the second; the result has
/// the other axes of the first, then of the second. Refused: two dtypes of which none is inexact.
pub(crate) fn tensordot(build: &Build, attrs: &Tensordot, inputs: Inputs) -> Result<Array> {
    const OP: &str = "Tensordot";
    let (a, b) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?);
    contract(build, OP, (a, &attrs.axes_a), (b, &attrs.axes_b))
}

fn contract(
    build: &Build,
    op: &'static str,
    (a, axes_a): (&Array, &[i64]),
    (b, axes_b): (&Array, &[i64]),
) -> Result<Array> {
    let dtype = inexact(op, &[a, b])?;
    let left = check::axes(op, "axes_a", axes_a, a.rank())?;
    let right = check::axes(op, "axes_b", axes_b, b.rank())?;
    check::length(op, "axes_b", axes_b, left.len())?;
    let sizes = |array: &Array, axes: &[i32]| -> Vec<i32> {
        axes.iter().map(|&axis| array.shape_of()[axis as usize]).collect()
    };
    let contracted = sizes(a, &left);
    if contracted != sizes(b, &right) {
        let got = (a.shape_of(), axes_a, b.shape_of(), axes_b);
        return Err(Error::argument(op, "shapes", "equal sizes on contracted axes", got));
    }
    let others = |array: &Array, axes: &[i32]| -> Vec<i32> {
        (0..array.rank() as i32).filter(|axis| !axes.contains(axis)).collect()
    };
    let (rows, cols) = (sizes(a, &others(a, &left)), sizes(b, &others(b, &right)));
    // MLX multiplies a by b as two matrices.
    check::size(op, "number of contracted elements", count(&contracted) as i64)?;
    check::size(op, "number of rows", count(&rows) as i64)?;
    check::size(op, "number of columns", count(&cols) as i64)?;
    let shape = check::shape(op, &wide(&[rows, cols].concat()), dtype)?;
    check_countable(build, op, count(&shape) as i128)?;
    let graph = Graph::new(build, op);
    // SAFETY: both handles are live and each pointer has the length beside it.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_tensordot(
            res,
            a.as_ptr(),
            b.as_ptr(),
            left.as_ptr(),
            left.len(),
            right.as_ptr(),
            right.len(),
            s,
        )
    })
}
