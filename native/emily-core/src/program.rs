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
mod fuse;
mod fused;
mod machine;
mod run;

pub(crate) use fused::clear_traces;
pub use fused::{can_fuse, Fused};
pub use run::{Input, Mode, Question, Run};

use crate::build::Describe;
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::Op;
use crate::risk;
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
    /// A run of ops in one, which only [`Program::new`] makes.
    Fused(Vec<usize>, Arc<Fused>),
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
    /// How many registers there are in all.
    register_count: usize,
    /// The device that it was checked for.
    device: Device,
    size: Size,
    /// Whether computing it can fail, memory apart.
    can_fail: bool,
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
    /// Checks a program. Constants must be ready. With `is_fused`, runs of ops are compiled where
    /// [`can_fuse`] says so: results may differ in the last places then.
    ///
    /// # Errors
    /// [`Error::Argument`] for registers that do not exist, a constant that is not ready, a state or
    /// branches whose types differ, too many registers or levels; and what the ops find wrong.
    pub fn new(
        inputs: Vec<Template>,
        constants: Vec<Tensor>,
        steps: Vec<Step>,
        outputs: Vec<usize>,
        is_fused: bool,
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
            register_count: 0,
            device: home.device(),
            size,
            can_fail: false,
        };
        program.can_fail = program.steps.iter().any(Step::can_fail);
        program.check_registers()?;
        program.plan_registers();
        let types = program.dry_run(&home.build())?;
        program.results = program.outputs.iter().map(|&register| types[register].clone()).collect();
        if is_fused && can_fuse(program.device) {
            (program.steps, program.outputs) = fuse::fuse(&program, &types, home)?;
            program.plan_registers();
        }
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

impl Program {
    /// Handles of their own on the constants.
    fn constants(&self) -> Result<Vec<Array>> {
        self.constants.iter().map(|constant| constant.handle(OP)).collect()
    }
}

impl Step {
    fn reads(&self) -> Vec<usize> {
        match self {
            Step::Apply(_, inputs, _) => inputs.iter().flatten().copied().collect(),
            Step::Fused(inputs, _) => inputs.clone(),
            Step::While { state, captures, .. } => [state.as_slice(), captures].concat(),
            Step::Cond { predicate, captures, .. } => [&[*predicate], captures.as_slice()].concat(),
            Step::Call { inputs, .. } => inputs.clone(),
        }
    }

    fn output_count(&self) -> usize {
        match self {
            Step::Apply(_, _, count) => *count,
            Step::Fused(_, fused) => fused.output_count(),
            Step::While { state, .. } => state.len(),
            Step::Cond { on_true, .. } => on_true.outputs.len(),
            Step::Call { outputs, .. } => outputs.len(),
        }
    }

    fn can_fail(&self) -> bool {
        match self {
            Step::Apply(op, ..) => op.has_several_outputs() || risk::can_fail(op),
            other => other.parts().into_iter().flatten().any(|part| part.can_fail),
        }
    }

    /// The programs inside.
    fn parts(&self) -> Option<[&Arc<Program>; 2]> {
        match self {
            Step::Apply(..) | Step::Fused(..) | Step::Call { .. } => None,
            Step::While { condition, body, .. } => Some([condition, body]),
            Step::Cond { on_true, on_false, .. } => Some([on_true, on_false]),
        }
    }
}

const OP: &str = "Program";

fn wrong(what: &'static str, expected: impl std::fmt::Display, got: impl std::fmt::Debug) -> Error {
    Error::argument(OP, what, expected, got)
}
