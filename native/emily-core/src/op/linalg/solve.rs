//! Inverses, systems of equations, determinants; of real matrices. A singular matrix is an error of
//! LAPACK's when the result is evaluated.

use super::{Accepts, Matrices};
use crate::build::{Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::graph::{broadcast_shape, input, Graph};
use crate::op::integer::promote;
use crate::op::{Inputs, Triangle};
use mlx_rs::Array;

/// The inverse of square matrices `{.., n, n}`.
pub(crate) fn inv(build: &Build, inputs: Inputs) -> Result<Array> {
    const OP: &str = "LinalgInv";
    let graph = Graph::new(&build.on_cpu(), OP);
    let a = Matrices::square(&graph, "matrix", input(OP, inputs, 0)?, Accepts::Real)?;
    if a.is_empty() {
        return graph.zeros(a.array.shape_of(), a.dtype);
    }
    a.result(&graph.unary(mlx_sys::mlx_linalg_inv, &a.array)?)
}

/// The inverse of triangular matrices `{.., n, n}`; the other triangle is not read.
pub(crate) fn tri_inv(build: &Build, attrs: &Triangle, inputs: Inputs) -> Result<Array> {
    const OP: &str = "LinalgTriInv";
    let graph = Graph::new(&build.on_cpu(), OP);
    let a = Matrices::square(&graph, "matrix", input(OP, inputs, 0)?, Accepts::Real)?;
    if a.is_empty() {
        return graph.zeros(a.array.shape_of(), a.dtype);
    }
    // SAFETY: the handle is live.
    let inverse = graph.call(|res, s| unsafe {
        mlx_sys::mlx_linalg_tri_inv(res, a.array.as_ptr(), attrs.upper, s)
    })?;
    a.result(&inverse)
}

/// The Moore-Penrose inverse `{.., n, m}` of matrices `{.., m, n}`.
pub(crate) fn pinv(build: &Build, inputs: Inputs) -> Result<Array> {
    const OP: &str = "LinalgPinv";
    let graph = Graph::new(&build.on_cpu(), OP);
    let a = Matrices::new(&graph, "matrix", input(OP, inputs, 0)?, Accepts::Real)?
        .with_workspace("matrix")?;
    if a.is_empty() {
        return graph.zeros(&a.shape(&[a.cols, a.rows]), a.dtype);
    }
    a.result(&graph.unary(mlx_sys::mlx_linalg_pinv, &a.array)?)
}

/// `x` with `a x = b`: `a` is `{.., n, n}`, `b` is `{.., n, m}`, or `{.., n}` if its rank is one less;
/// the batch axes broadcast.
pub(crate) fn solve(build: &Build, inputs: Inputs) -> Result<Array> {
    const OP: &str = "LinalgSolve";
    let graph = Graph::new(&build.on_cpu(), OP);
    System::new(&graph, inputs)?.solve(|a, b| graph.binary(mlx_sys::mlx_linalg_solve, a, b))
}

/// As `solve` for a triangular `a`, whose other triangle is not read.
pub(crate) fn solve_triangular(build: &Build, attrs: &Triangle, inputs: Inputs) -> Result<Array> {
    const OP: &str = "LinalgSolveTriangular";
    let graph = Graph::new(&build.on_cpu(), OP);
    System::new(&graph, inputs)?.solve(|a, b| {
        // SAFETY: the handles are live.
        graph.call(|res, s| unsafe {
            mlx_sys::mlx_linalg_solve_triangular(res, a.as_ptr(), b.as_ptr(), attrs.upper, s)
        })
    })
}

/// Square matrices and right sides of one dtype and one batch shape.
struct System {
    a: Matrices,
    /// `{.., n, m}`.
    b: Matrices,
    /// The shape of the solution, that of the right side but for the batch.
    shape: Vec<i32>,
    dtype: Dtype,
}

impl System {
    fn new(graph: &Graph, inputs: Inputs) -> Result<Self> {
        let (a, b) = (input(graph.op, inputs, 0)?, input(graph.op, inputs, 1)?);
        let a = Matrices::square(graph, "first input", a, Accepts::Real)?;
        let right = b.shape_of();
        let is_vector = b.rank() + 1 == a.array.rank();
        let columns = if is_vector { [right, &[1]].concat() } else { right.to_vec() };
        let [batch @ .., n, m] = &columns[..] else {
            let expected = "a vector or a matrix, or a batch of them";
            return Err(Error::argument(graph.op, "shape of input 1", expected, right));
        };
        if *n != a.rows || check::broadcast(graph.op, &a.batch, batch).is_err() {
            let expected =
                format!("{} rows, and batch axes that broadcast with {:?}", a.rows, a.batch);
            return Err(Error::argument(graph.op, "shape of input 1", expected, right));
        }
        let batch = broadcast_shape(&a.batch, batch);
        let shape =
            [&batch[..], &[*n], if is_vector { &[] } else { std::slice::from_ref(m) }].concat();
        let b = Matrices::new(graph, "second input", &graph.reshape(b, &columns)?, Accepts::Real)?;
        let dtype = promote(a.dtype, b.dtype);
        let computed = if dtype == Dtype::Float64 { dtype } else { Dtype::Float32 };
        let a = a.broadcast("first input", &batch, computed)?;
        let b = b.broadcast("second input", &batch, computed)?;
        Ok(System { a, b, shape, dtype })
    }

    fn solve(&self, solution: impl FnOnce(&Array, &Array) -> Result<Array>) -> Result<Array> {
        let graph = self.a.graph;
        if self.b.is_empty() || self.a.is_empty() {
            return graph.zeros(&self.shape, self.dtype);
        }
        let solution = solution(&self.a.array, &self.b.array)?;
        graph.astype(&graph.reshape(&solution, &self.shape)?, self.dtype)
    }
}

/// The determinant `{..}` of square matrices `{.., n, n}`.
pub(crate) fn det(build: &Build, inputs: Inputs) -> Result<Array> {
    const OP: &str = "LinalgDet";
    let graph = Graph::new(&build.on_cpu(), OP);
    let a = Matrices::square(&graph, "matrix", input(OP, inputs, 0)?, Accepts::Real)?;
    if a.is_empty() {
        // An empty product is 1; an empty batch has none.
        return graph.broadcast_to(&graph.scalar(1.0, a.dtype)?, &a.batch);
    }
    a.result(&graph.unary(mlx_sys::mlx_linalg_det, &a.array)?)
}
