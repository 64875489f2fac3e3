//! Decompositions of matrices `{.., m, n}`, with `k = min(m, n)`. The batch axes come first in every
//! result.

use super::{Accepts, Matrices};
use crate::build::{Build, Describe};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::op::graph::{input, Graph};
use crate::op::{Eigh, Inputs, Triangle};
use mlx_rs::Array;
use mlx_sys::{mlx_array, mlx_stream};
use std::ffi::c_int;

/// `{permutation u32 {.., m}, L {.., m, k}, U {.., k, n}}`: the rows of `L` taken by the permutation,
/// times `U`, are the matrix. Refused: complex matrices.
pub(crate) fn lu(build: &Build, inputs: Inputs) -> Result<Vec<Array>> {
    const OP: &str = "LinalgLu";
    let graph = Graph::new(&build.on_cpu(), OP);
    let a = Matrices::new(&graph, "matrix", input(OP, inputs, 0)?, Accepts::Real)?;
    let (m, n) = (a.rows, a.cols);
    if a.is_empty() {
        let rows = graph.iota(m, Dtype::Uint32)?;
        return Ok(vec![
            graph.broadcast_to(&rows, &a.shape(&[m]))?,
            graph.zeros(&a.shape(&[m, m.min(n)]), a.dtype)?,
            graph.zeros(&a.shape(&[m.min(n), n]), a.dtype)?,
        ]);
    }
    // SAFETY: the handle is live.
    let mut parts = graph
        .build
        .arrays(OP, |res, s| unsafe { mlx_sys::mlx_linalg_lu(res, a.array.as_ptr(), s) })?;
    for part in &mut parts[1..] {
        *part = a.result(part)?;
    }
    Ok(parts)
}

/// `{U {.., m, m}, S {.., k}, Vt {.., n, n}}`, `S` descending; real for complex matrices.
pub(crate) fn svd(build: &Build, inputs: Inputs) -> Result<Vec<Array>> {
    const OP: &str = "LinalgSvd";
    let graph = Graph::new(&build.on_cpu(), OP);
    let a = Matrices::new(&graph, "matrix", input(OP, inputs, 0)?, Accepts::Complex)?
        .with_workspace("matrix")?;
    if a.is_empty() {
        let identity = |size: i32| -> Result<Array> {
            // SAFETY: takes no pointer but the result's.
            let eye = graph.call(|res, s| unsafe {
                mlx_sys::mlx_eye(res, size, size, 0, a.dtype.to_mlx(), s)
            })?;
            graph.broadcast_to(&eye, &a.shape(&[size, size]))
        };
        let values = graph.zeros(&a.shape(&[a.rows.min(a.cols)]), a.dtype)?;
        return Ok(vec![identity(a.rows)?, a.real_result(&values)?, identity(a.cols)?]);
    }
    // SAFETY: the handle is live.
    let parts = graph
        .build
        .arrays(OP, |res, s| unsafe { mlx_sys::mlx_linalg_svd(res, a.array.as_ptr(), true, s) })?;
    Ok(vec![a.result(&parts[0])?, a.real_result(&parts[1])?, a.result(&parts[2])?])
}

/// `{Q {.., m, k}, R {.., k, n}}`. Refused: complex matrices.
pub(crate) fn qr(build: &Build, inputs: Inputs) -> Result<Vec<Array>> {
    const OP: &str = "LinalgQr";
    let graph = Graph::new(&build.on_cpu(), OP);
    let a = Matrices::new(&graph, "matrix", input(OP, inputs, 0)?, Accepts::Real)?;
    if a.is_empty() {
        let k = a.rows.min(a.cols);
        return Ok(vec![
            graph.zeros(&a.shape(&[a.rows, k]), a.dtype)?,
            graph.zeros(&a.shape(&[k, a.cols]), a.dtype)?,
        ]);
    }
    // SAFETY: the handle is live.
    let (q, r) =
        pair(&graph, |q, r, s| unsafe { mlx_sys::mlx_linalg_qr(q, r, a.array.as_ptr(), s) })?;
    Ok(vec![a.result(&q)?, a.result(&r)?])
}

/// `{eigenvalues {.., n}, eigenvectors {.., n, n}}` of symmetric or Hermitian matrices, of which one
/// triangle is read; values ascending and real, vectors in columns.
pub(crate) fn eigh(build: &Build, attrs: &Eigh, inputs: Inputs) -> Result<Vec<Array>> {
    const OP: &str = "LinalgEigh";
    let graph = Graph::new(&build.on_cpu(), OP);
    let a = Matrices::square(&graph, "matrix", input(OP, inputs, 0)?, Accepts::Complex)?
        .with_workspace("matrix")?;
    if a.is_empty() {
        let values = graph.zeros(&a.shape(&[a.rows]), real(a.dtype))?;
        return Ok(vec![values, graph.zeros(&a.shape(&[a.rows, a.cols]), a.dtype)?]);
    }
    let triangle = if attrs.upper { c"U" } else { c"L" };
    // SAFETY: the handle is live and the text ends in NUL.
    let (values, vectors) = pair(&graph, |values, vectors, s| unsafe {
        mlx_sys::mlx_linalg_eigh(values, vectors, a.array.as_ptr(), triangle.as_ptr(), s)
    })?;
    Ok(vec![a.real_result(&values)?, a.result(&vectors)?])
}

/// `{eigenvalues {.., n}, eigenvectors {.., n, n}}`, both c64, in no order, vectors in columns; NaN for
/// a matrix with an element that is not finite.
pub(crate) fn eig(build: &Build, inputs: Inputs) -> Result<Vec<Array>> {
    const OP: &str = "LinalgEig";
    let graph = Graph::new(&build.on_cpu(), OP);
    let a = Matrices::square(&graph, "matrix", input(OP, inputs, 0)?, Accepts::Complex)?;
    if a.is_empty() {
        return Ok(vec![
            graph.zeros(&a.shape(&[a.rows]), Dtype::Complex64)?,
            graph.zeros(&a.shape(&[a.rows, a.cols]), Dtype::Complex64)?,
        ]);
    }
    // MLX pairs an eigenvalue whose imaginary part is not zero with the next one, and writes behind
    // the last if that is a NaN.
    let finite = graph.unary(mlx_sys::mlx_isfinite, &a.array)?;
    let rows = graph.reshape(&finite, &a.shape(&[a.rows * a.cols]))?;
    // SAFETY: the handle is live.
    let finite =
        graph.call(|res, s| unsafe { mlx_sys::mlx_all_axis(res, rows.as_ptr(), -1, true, s) })?;
    let matrices = graph.reshape(&finite, &a.shape(&[1, 1]))?;
    let zero = graph.scalar(0.0, a.array.dtype_of())?;
    let safe = graph.select(&matrices, &a.array, &zero)?;
    // SAFETY: the handle is live.
    let (values, vectors) = pair(&graph, |values, vectors, s| unsafe {
        mlx_sys::mlx_linalg_eig(values, vectors, safe.as_ptr(), s)
    })?;
    let nan = graph.scalar(f64::NAN, Dtype::Complex64)?;
    Ok(vec![graph.select(&finite, &values, &nan)?, graph.select(&matrices, &vectors, &nan)?])
}

/// The triangle `L` with `L L*` the matrix, or `U` with `U* U`; the other triangle is zero. Of the
/// matrix one triangle is read. One that is not positive definite gives NaN, as in XLA. Refused:
/// complex matrices.
pub(crate) fn cholesky(build: &Build, attrs: &Triangle, inputs: Inputs) -> Result<Array> {
    const OP: &str = "LinalgCholesky";
    let graph = Graph::new(&build.on_cpu(), OP);
    let a = Matrices::square(&graph, "matrix", input(OP, inputs, 0)?, Accepts::Real)?;
    if a.is_empty() {
        return graph.zeros(a.array.shape_of(), a.dtype);
    }
    // SAFETY: the handle is live.
    let factor = graph.call(|res, s| unsafe {
        mlx_sys::mlx_linalg_cholesky(res, a.array.as_ptr(), attrs.upper, s)
    })?;
    // MLX does not look at LAPACK's verdict. Where it stopped, the diagonal is not positive.
    let dtype = a.array.dtype_of();
    // SAFETY: the handles are live.
    let diagonal = graph
        .call(|res, s| unsafe { mlx_sys::mlx_diagonal(res, factor.as_ptr(), 0, -2, -1, s) })?;
    let positive = graph.binary(mlx_sys::mlx_greater, &diagonal, &graph.scalar(0.0, dtype)?)?;
    // SAFETY: the handle is live.
    let definite = graph
        .call(|res, s| unsafe { mlx_sys::mlx_all_axis(res, positive.as_ptr(), -1, true, s) })?;
    let definite = graph.reshape(&definite, &a.shape(&[1, 1]))?;
    let factor = graph.select(&definite, &factor, &graph.scalar(f64::NAN, dtype)?)?;
    a.result(&factor)
}

fn real(dtype: Dtype) -> Dtype {
    if dtype == Dtype::Complex64 {
        Dtype::Float32
    } else {
        dtype
    }
}

/// Calls an mlx-c function that makes two arrays.
fn pair(
    graph: &Graph,
    call: impl FnOnce(*mut mlx_array, *mut mlx_array, mlx_stream) -> c_int,
) -> Result<(Array, Array)> {
    // SAFETY: makes an empty handle.
    let mut second = unsafe { mlx_sys::mlx_array_new() };
    let first = graph.call(|res, s| call(res, &mut second, s));
    // SAFETY: the handle is ours alone; an empty one is freed like any other.
    let second = unsafe { Array::from_ptr(second) };
    Ok((first?, second))
}
