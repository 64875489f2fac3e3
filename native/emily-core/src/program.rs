//! Programs: checked lists of ops, made once and replayed on a worker by one job.
//!
//! A program computes in *registers*. The first ones hold its inputs, the next its constants, and each
//! step appends its outputs. Loops and conditions have programs of their own, whose inputs are the
//! state (or nothing) followed by registers that they capture.
//!
//! A program is checked by building it once, without computing anything, from placeholders of its
//! inputs' shapes and dtypes (see `check`). What was accepted fails only where data or memory make it
//! fail. A `machine` then performs the steps; where the caller is asked something in the middle, the
//! machine waits in a [`Run`].

mod check;
mod machine;
mod run;

pub use run::{Input, Question, Run};

use crate::build::Describe;
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::Op;
use crate::slot::Home;
use crate::tensor::Tensor;
use mlx_rs::Array;
use std::sync::Arc;

/// The shape and dtype of an input.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// Sizes of the axes.
    pub shape: Vec<i64>,
    /// Type of the elements.
    pub dtype: Dtype,
}

impl Template {
    fn of(array: &Array) -> Self {
        let shape = array.shape_of().iter().map(|&size| i64::from(size)).collect();
        Template { shape, dtype: array.dtype_of() }
    }

    fn fits(&self, shape: &[i32], dtype: Dtype) -> bool {
        let sizes = shape.iter().map(|&size| i64::from(size));
        self.dtype == dtype && sizes.eq(self.shape.iter().copied())
    }
}

/// One step of a program; numbers are registers.
#[derive(Clone, Debug)]
pub enum Step {
    /// An op. Its outputs, of which there are so many, become registers.
    Apply(Op, Vec<Option<usize>>, usize),
    /// Replaces a state by what `body` makes of it while `condition` says so. The final state becomes
    /// registers.
    While {
        /// The first state.
        state: Vec<usize>,
        /// What both programs take behind the state.
        captures: Vec<usize>,
        /// Gives one scalar.
        condition: Arc<Program>,
        /// Gives the next state.
        body: Arc<Program>,
    },
    /// One of two programs, by a scalar. Its outputs become registers.
    Cond {
        /// The scalar.
        predicate: usize,
        /// What both programs take.
        captures: Vec<usize>,
        /// Taken where the scalar is not zero.
        on_true: Arc<Program>,
        /// Taken where it is.
        on_false: Arc<Program>,
    },
    /// Asks the caller; the run waits in a [`Run`] for the answer, which becomes registers.
    Call {
        /// What the caller is shown, computed.
        inputs: Vec<usize>,
        /// What it is asked, in its own terms.
        key: i64,
        /// What it has to answer with.
        outputs: Vec<Template>,
    },
}

/// A checked list of steps.
#[derive(Debug)]
pub struct Program {
    inputs: Vec<Template>,
    constants: Vec<Tensor>,
    steps: Vec<Step>,
    outputs: Vec<usize>,
    /// Types of the outputs.
    results: Vec<Template>,
    /// For each step, the registers that nobody reads after it.
    expiring: Vec<Vec<usize>>,
    /// The device that it was checked for.
    device: Device,
    size: Size,
}

/// How large a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Ops that one run builds at least once; those of loops and branches are counted once.
    pub ops: usize,
    /// Levels of programs inside each other, 1 for one without loops and branches.
    pub depth: usize,
}

impl Program {
    /// Checks a program. Constants must be ready.
    ///
    /// # Errors
    /// [`Error::Argument`] for registers that do not exist, a constant that is not ready, a state or
    /// branches whose types differ, too many registers or levels; and what the ops find wrong.
    pub fn new(
        inputs: Vec<Template>,
        constants: Vec<Tensor>,
        steps: Vec<Step>,
        outputs: Vec<usize>,
        home: &Arc<Home>,
    ) -> Result<Self> {
        let size = check::size(&steps)?;
        if let Some(index) = constants.iter().position(|constant| !constant.is_ready()) {
            return Err(wrong("constant", "an evaluated tensor", index));
        }
        let mut program = Program {
            inputs,
            constants,
            steps,
            outputs,
            results: Vec::new(),
            expiring: Vec::new(),
            device: home.device(),
            size,
        };
        program.check_registers()?;
        program.expiring = program.last_uses();
        program.results = program.dry_run(&home.build())?;
        Ok(program)
    }

    /// Shapes and dtypes of its inputs.
    pub fn inputs(&self) -> &[Template] {
        &self.inputs
    }

    /// Shapes and dtypes of its outputs.
    pub fn results(&self) -> &[Template] {
        &self.results
    }

    /// How large it is.
    pub fn size(&self) -> Size {
        self.size
    }
}

impl Step {
    fn reads(&self) -> Vec<usize> {
        match self {
            Step::Apply(_, inputs, _) => inputs.iter().flatten().copied().collect(),
            Step::While { state, captures, .. } => [state.as_slice(), captures].concat(),
            Step::Cond { predicate, captures, .. } => [&[*predicate], captures.as_slice()].concat(),
            Step::Call { inputs, .. } => inputs.clone(),
        }
    }

    fn output_count(&self) -> usize {
        match self {
            Step::Apply(_, _, count) => *count,
            Step::While { state, .. } => state.len(),
            Step::Cond { on_true, .. } => on_true.outputs.len(),
            Step::Call { outputs, .. } => outputs.len(),
        }
    }

    /// The programs inside.
    fn parts(&self) -> Option<[&Arc<Program>; 2]> {
        match self {
            Step::Apply(..) | Step::Call { .. } => None,
            Step::While { condition, body, .. } => Some([condition, body]),
            Step::Cond { on_true, on_false, .. } => Some([on_true, on_false]),
        }
    }
}

const OP: &str = "Program";

fn wrong(what: &'static str, expected: impl std::fmt::Display, got: impl std::fmt::Debug) -> Error {
    Error::argument(OP, what, expected, got)
}
