//! Performs the steps of programs, with a stack of its own instead of recursion: a question to the caller
//! suspends the machine wherever it stands, inside loops and branches too.

use super::check::{copies, read};
use super::{Program, Step, Template, OP};
use crate::build::{Build, Describe};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::{Cast, Op, Sharing};
use crate::place::{is_computed, let_go};
use crate::tensor::{copy_handle, evaluate};
use mlx_rs::Array;
use smallvec::SmallVec;
use std::sync::Arc;

/// Asked now and then: whether the program is to go on.
pub(super) type GoOn<'a> = &'a dyn Fn() -> bool;

/// Steps between two times that this is asked; each takes about a microsecond.
const UNASKED: usize = 64;

/// A program in the middle of its work.
pub(super) struct Machine {
    /// The last one works, each other one waits at a step for what the level above it makes.
    levels: Vec<Level>,
}

struct Level {
    program: Arc<Program>,
    frame: Frame,
    role: Role,
}

/// What becomes of a level's outputs.
enum Role {
    /// They are the run's.
    Main,
    /// They are those of the step that waits.
    Branch,
    /// The one output says whether the loop that waits goes on from this state.
    Condition { state: Vec<Array> },
    /// They are the next state of the loop that waits.
    Body,
}

/// Where a machine has come to.
pub(super) enum Progress {
    /// The outputs, to be computed.
    Done(Vec<Array>),
    /// A question, with what the caller is shown. The step that asks waits.
    Asks(i64, Vec<Array>),
}

impl Machine {
    pub(super) fn new(program: &Arc<Program>, inputs: Vec<Array>) -> Result<Self> {
        let mut machine = Machine { levels: Vec::new() };
        machine.enter(program, inputs, Role::Main)?;
        Ok(machine)
    }

    fn enter(&mut self, program: &Arc<Program>, inputs: Vec<Array>, role: Role) -> Result<()> {
        let frame = Frame::new(program, inputs, program.constants()?);
        self.levels.push(Level { program: Arc::clone(program), frame, role });
        Ok(())
    }

    /// Works on until the end or a question.
    pub(super) fn go(&mut self, build: &Build, go_on: GoOn) -> Result<Progress> {
        loop {
            if !go_on() {
                return Err(Error::Stopped);
            }
            let Level { program, frame, .. } = self.working();
            let program = Arc::clone(program);
            frame.apply_ops(&program, build, go_on)?;
            match program.steps.get(frame.position) {
                Some(Step::Call { inputs, key, .. }) => {
                    let shown = copies(&frame.registers, inputs)?;
                    frame.expire(&program, &[]);
                    return Ok(Progress::Asks(*key, shown));
                }
                Some(Step::Cond { predicate, captures, on_true, on_false }) => {
                    let predicate = truth(build, read(&frame.registers, *predicate)?)?;
                    let captured = copies(&frame.registers, captures)?;
                    frame.expire(&program, &[]);
                    evaluate(OP, [&predicate])?;
                    let branch = if is_true(&predicate)? { on_true } else { on_false };
                    self.enter(branch, captured, Role::Branch)?;
                }
                Some(Step::While { state, captures, condition, .. }) => {
                    let first = copies(&frame.registers, state)?;
                    let captured = copies(&frame.registers, captures)?;
                    frame.expire(&program, captures);
                    self.decide(condition, first, captured)?;
                }
                Some(Step::Apply(..) | Step::Fused(..)) => unreachable!("ops are applied"),
                None => {
                    let level = self.levels.pop().expect("the level that works");
                    if let Some(outputs) = self.leave(level, build)? {
                        return Ok(Progress::Done(outputs));
                    }
                }
            }
        }
    }

    /// The level that works, or waits for the one that has just ended.
    fn working(&mut self) -> &mut Level {
        self.levels.last_mut().expect("a machine ends with its first level")
    }

    /// What the answer to a question must be.
    pub(super) fn expected_answer(&self) -> &[Template] {
        let asking = self.levels.last().map(|level| &level.program.steps[level.frame.position]);
        match asking {
            Some(Step::Call { outputs, .. }) => outputs,
            _ => unreachable!("a question waits"),
        }
    }

    /// Appends what the step that waits has made.
    pub(super) fn answer(&mut self, made: Vec<Array>) {
        let Level { program, frame, .. } = self.working();
        frame.registers.extend(made.into_iter().map(Some));
        frame.finish_step(program);
    }

    /// What a level's end means. Returns the outputs of the run.
    fn leave(&mut self, level: Level, build: &Build) -> Result<Option<Vec<Array>>> {
        let outputs = level.frame.outputs(&level.program)?;
        match level.role {
            Role::Main => return Ok(Some(outputs)),
            Role::Branch => self.answer(outputs),
            Role::Body => {
                let (condition, _, captured) = self.waiting_loop()?;
                self.decide(&condition, outputs, captured)?;
            }
            Role::Condition { state } => {
                let predicate = truth(build, &outputs[0])?;
                let made: Vec<_> = state.iter().filter(|array| !is_computed(array)).collect();
                // Together, once for each iteration, so that the graph stays small. What is computed stays out: a
                // CUDA stream holds whatever an evaluation is asked for, so that the body would write to a copy.
                evaluate(OP, made.iter().copied().chain([&predicate]))?;
                if is_true(&predicate)? {
                    let_go(made.into_iter(), build)?;
                    // Moved, so that what only the body uses can be overwritten in place.
                    let mut inputs = state;
                    let (_, body, captured) = self.waiting_loop()?;
                    inputs.extend(captured);
                    self.enter(&body, inputs, Role::Body)?;
                } else {
                    self.answer(state);
                }
            }
        }
        Ok(None)
    }

    /// Condition, body and captures of the loop that waits.
    fn waiting_loop(&mut self) -> Result<(Arc<Program>, Arc<Program>, Vec<Array>)> {
        let Level { program, frame, .. } = self.working();
        match &program.steps[frame.position] {
            Step::While { captures, condition, body, .. } => {
                let captured = copies(&frame.registers, captures)?;
                Ok((Arc::clone(condition), Arc::clone(body), captured))
            }
            _ => unreachable!("a loop waits"),
        }
    }

    /// Enters the condition of the loop that waits.
    fn decide(
        &mut self,
        condition: &Arc<Program>,
        state: Vec<Array>,
        captured: Vec<Array>,
    ) -> Result<()> {
        let mut inputs = Vec::with_capacity(state.len() + captured.len());
        for array in &state {
            inputs.push(copy_handle(OP, array)?);
        }
        inputs.extend(captured);
        self.enter(condition, inputs, Role::Condition { state })
    }
}

/// The registers of a program in the middle of its work.
pub(super) struct Frame {
    registers: Vec<Option<Array>>,
    /// The step that is next, or that waits.
    position: usize,
}

impl Frame {
    pub(super) fn new(program: &Program, inputs: Vec<Array>, constants: Vec<Array>) -> Self {
        let mut registers = Vec::with_capacity(program.register_count);
        registers.extend(inputs.into_iter().chain(constants).map(Some));
        Frame { registers, position: 0 }
    }

    /// Builds ops up to the next step of another kind.
    pub(super) fn apply_ops(
        &mut self,
        program: &Program,
        build: &Build,
        go_on: GoOn,
    ) -> Result<()> {
        let _sharing = Sharing::begin();
        let mut unasked = 0;
        while let Some(step) = program.steps.get(self.position) {
            match step {
                Step::Apply(op, inputs, _) if op.has_several_outputs() => {
                    let made = op.build_all(build, &self.operands(inputs)?)?;
                    self.registers.extend(made.into_iter().map(Some));
                }
                Step::Apply(op, inputs, _) => {
                    let made = op.build(build, &self.operands(inputs)?)?;
                    self.registers.push(Some(made));
                }
                Step::Fused(inputs, fused) => {
                    let inputs = inputs.iter().map(|&register| read(&self.registers, register));
                    let made = fused.apply(&inputs.collect::<Result<Vec<_>>>()?, build)?;
                    self.registers.extend(made.into_iter().map(Some));
                }
                Step::While { .. } | Step::Cond { .. } | Step::Call { .. } => break,
            }
            self.finish_step(program);
            unasked += 1;
            if unasked == UNASKED {
                unasked = 0;
                if !go_on() {
                    return Err(Error::Stopped);
                }
            }
        }
        Ok(())
    }

    fn operands(&self, inputs: &[Option<usize>]) -> Result<SmallVec<[Option<&Array>; 4]>> {
        inputs
            .iter()
            .map(|input| input.map(|register| read(&self.registers, register)).transpose())
            .collect()
    }

    /// The outputs of a program whose steps are done.
    pub(super) fn outputs(self, program: &Program) -> Result<Vec<Array>> {
        copies(&self.registers, &program.outputs)
    }

    /// Goes on behind a step whose outputs are appended.
    fn finish_step(&mut self, program: &Program) {
        self.expire(program, &[]);
        self.position += 1;
    }

    /// Gives up what nobody reads after the present step, so that MLX can reuse the buffers; some are
    /// kept as long as the step lasts.
    fn expire(&mut self, program: &Program, kept: &[usize]) {
        for register in &program.expiring[self.position] {
            if !kept.contains(register) {
                if let Some(expired) = self.registers.get_mut(*register) {
                    *expired = None;
                }
            }
        }
    }
}

/// Whether a scalar is not zero, as a boolean that is still to be computed.
fn truth(build: &Build, scalar: &Array) -> Result<Array> {
    if scalar.dtype_of() == Dtype::Bool {
        return copy_handle(OP, scalar);
    }
    Op::Astype(Cast { dtype: Dtype::Bool }).build(build, &[Some(scalar)])
}

fn is_true(computed: &Array) -> Result<bool> {
    let mut value = false;
    // SAFETY: an evaluated scalar of booleans.
    crate::mlx::check(OP, unsafe { mlx_sys::mlx_array_item_bool(&mut value, computed.as_ptr()) })?;
    Ok(value)
}
