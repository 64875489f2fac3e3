//! Ops that can fail while they are computed: a singular matrix, a file that ends too early.
//!
//! On the CPU such an op fails on the stream's own thread. MLX tells the evaluation that waits, once,
//! and takes every array of that evaluation for computed: the next use of one would read memory that
//! nobody has written. So a lazy tensor remembers the risks in its graph, and what an evaluation finds
//! out about them holds for all later uses.

use crate::error::Result;
use crate::op::Op;
use std::sync::{Arc, OnceLock};

/// Whether something that can fail has: unknown until it is evaluated, then settled.
type Risk = OnceLock<Result<()>>;

/// The risks in the graph of a lazy tensor. As a rule there are none, which costs no allocation.
#[derive(Default)]
pub(crate) struct Risks(Vec<Arc<Risk>>);

impl Risks {
    /// A new one.
    pub(crate) fn one() -> Self {
        Risks(vec![Arc::default()])
    }

    /// Those of an op.
    pub(crate) fn of(op: &Op) -> Self {
        if can_fail(op) {
            Self::one()
        } else {
            Self::default()
        }
    }

    /// Adds those of an input.
    pub(crate) fn join(&mut self, input: &Risks) {
        for risk in &input.0 {
            let is_known = self.0.iter().any(|known| Arc::ptr_eq(known, risk));
            if !is_known && !matches!(risk.get(), Some(Ok(()))) {
                self.0.push(Arc::clone(risk));
            }
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The error of what has failed.
    pub(crate) fn check(&self) -> Result<()> {
        self.0.iter().filter_map(|risk| risk.get()).cloned().collect()
    }

    /// Tells the outcome of an evaluation with these risks in its graph.
    pub(crate) fn settle(&self, outcome: &Result<()>) {
        for risk in &self.0 {
            // What was settled before stays: it was not computed again.
            let _ = risk.set(outcome.clone());
        }
    }
}

/// Whether computing an op with one output can fail.
pub(crate) fn can_fail(op: &Op) -> bool {
    matches!(
        op,
        Op::LinalgCholesky(_)
            | Op::LinalgInv
            | Op::LinalgTriInv(_)
            | Op::LinalgPinv
            | Op::LinalgSolve
            | Op::LinalgSolveTriangular(_)
            | Op::LinalgDet
    )
}
