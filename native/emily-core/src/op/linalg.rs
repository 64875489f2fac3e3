//! Products of matrices, and linear algebra.
//!
//! What decomposes a matrix has no kernels on a GPU and runs on the CPU companion stream, conversions
//! included. LAPACK computes in f32, f64 and partly c64: half types are computed in f32 and converted
//! back. A matrix without elements never reaches LAPACK, which stops the process over it.

mod einsum;
mod factor;
mod product;
mod solve;

pub(super) use einsum::einsum;
pub(super) use factor::{cholesky, eig, eigh, lu, qr, svd};
pub(super) use product::{addmm, gather_mm, inner, matmul, outer, tensordot, Picked};
pub(super) use solve::{det, inv, pinv, solve, solve_triangular, tri_inv};

use super::graph::Graph;
use crate::build::Describe;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use mlx_rs::Array;

/// The greatest order whose workspace LAPACK can count, in int32, for SVDs and eigenvectors.
const MAX_ORDER: i32 = 16384;

/// A batch of matrices as LAPACK takes it.
struct Matrices {
    graph: Graph,
    /// In f32, f64 or c64.
    array: Array,
    /// The dtype that came in, and goes out.
    dtype: Dtype,
    /// Sizes of the axes before the matrices.
    batch: Vec<i32>,
    rows: i32,
    cols: i32,
}

/// What a function can decompose.
#[derive(Clone, Copy, PartialEq)]
enum Accepts {
    /// Matrices of reals.
    Real,
    /// Matrices of real or complex numbers.
    Complex,
}

impl Matrices {
    /// Refused: ranks below 2, integers, complex numbers if unsupported, more elements than LAPACK's
    /// int32 indices reach.
    fn new(graph: &Graph, what: &'static str, a: &Array, accepts: Accepts) -> Result<Self> {
        let op = graph.op;
        let (dtype, shape) = (a.dtype_of(), a.shape_of());
        let fits = dtype.is_float() || dtype == Dtype::Complex64 && accepts == Accepts::Complex;
        if !fits {
            let expected =
                if accepts == Accepts::Real { "a float dtype" } else { "a float or complex dtype" };
            return Err(Error::argument(op, what, expected, format_args!("{dtype}")));
        }
        let [batch @ .., rows, cols] = shape else {
            return Err(Error::argument(op, what, "a matrix or a batch of them", shape));
        };
        check_total(op, what, batch, *rows, *cols)?;
        let (batch, rows, cols) = (batch.to_vec(), *rows, *cols);
        let array = match dtype {
            Dtype::Float16 | Dtype::Bfloat16 => graph.astype(a, Dtype::Float32)?,
            _ => a.clone(),
        };
        Ok(Matrices { graph: *graph, array, dtype, batch, rows, cols })
    }

    /// The same matrices for each of a batch that their own broadcasts to, in a dtype.
    fn broadcast(mut self, what: &'static str, batch: &[i32], dtype: Dtype) -> Result<Self> {
        check_total(self.graph.op, what, batch, self.rows, self.cols)?;
        self.batch = batch.to_vec();
        let array = self.graph.astype(&self.array, dtype)?;
        self.array = self.graph.broadcast_to(&array, &self.shape(&[self.rows, self.cols]))?;
        Ok(self)
    }

    /// Refused besides: matrices that are not square.
    fn square(graph: &Graph, what: &'static str, a: &Array, accepts: Accepts) -> Result<Self> {
        let matrices = Self::new(graph, what, a, accepts)?;
        if matrices.rows != matrices.cols {
            let expected = "square matrices";
            return Err(Error::argument(graph.op, what, expected, a.shape_of()));
        }
        Ok(matrices)
    }

    /// Refused besides: an order whose workspace, of several squares, LAPACK cannot count.
    fn with_workspace(self, what: &'static str) -> Result<Self> {
        let order = self.rows.min(self.cols);
        if order > MAX_ORDER {
            let expected = format!("an order of at most {MAX_ORDER}");
            return Err(Error::argument(self.graph.op, what, expected, self.array.shape_of()));
        }
        Ok(self)
    }

    fn is_empty(&self) -> bool {
        self.array.count() == 0
    }

    /// The batch's sizes followed by others.
    fn shape(&self, last: &[i32]) -> Vec<i32> {
        [&self.batch, last].concat()
    }

    /// A result in the dtype that came in.
    fn result(&self, array: &Array) -> Result<Array> {
        self.graph.astype(array, self.dtype)
    }

    /// A result in the dtype that came in; real for complex input.
    fn real_result(&self, array: &Array) -> Result<Array> {
        match self.dtype {
            Dtype::Complex64 => Ok(array.clone()),
            dtype => self.graph.astype(array, dtype),
        }
    }
}

/// LAPACK's results are at most as large as squares of the longer side, and MLX finds its way in a
/// batch of them with int32.
fn check_total(
    op: &'static str,
    what: &'static str,
    batch: &[i32],
    rows: i32,
    cols: i32,
) -> Result<()> {
    let longer = i128::from(rows.max(cols));
    let total = batch
        .iter()
        .fold(longer * longer, |product, &size| product.saturating_mul(i128::from(size.max(1))));
    if total > i32::MAX.into() {
        let expected = "matrices of at most 2147483647 elements in all, filled up to squares";
        return Err(Error::argument(op, what, expected, (batch, rows, cols)));
    }
    Ok(())
}
