//! Performs the steps of programs, with frames instead of recursion: a question to the caller suspends
//! the machine wherever it stands, inside loops and branches too.

use super::check::{apply, copies, read};
use super::{Program, Step, Template, OP};
use crate::build::{Build, Describe};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::{Cast, Op};
use crate::tensor::{copy_handle, evaluate};
use mlx_rs::Array;
use std::sync::Arc;

/// Asked now and then: whether the program is to go on.
pub(super) type GoOn<'a> = &'a dyn Fn() -> bool;

/// Steps between two times that this is asked; each takes about a microsecond.
const UNASKED: usize = 64;

/// A program in the middle of its work.
pub(super) struct Machine {
    /// The last one works, each other one waits at a step for what the frame above it makes.
    frames: Vec<Frame>,
}

struct Frame {
    program: Arc<Program>,
    registers: Vec<Option<Array>>,
    /// The step that is next, or that waits.
    position: usize,
    role: Role,
}

/// What becomes of a frame's outputs.
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
        let mut machine = Machine { frames: Vec::new() };
        machine.enter(program, inputs, Role::Main)?;
        Ok(machine)
    }

    fn enter(&mut self, program: &Arc<Program>, inputs: Vec<Array>, role: Role) -> Result<()> {
        let mut registers: Vec<Option<Array>> = inputs.into_iter().map(Some).collect();
        for constant in &program.constants {
            registers.push(Some(constant.handle(OP)?));
        }
        self.frames.push(Frame { program: Arc::clone(program), registers, position: 0, role });
        Ok(())
    }

    /// Works on until the end or a question.
    pub(super) fn go(&mut self, build: &Build, go_on: GoOn) -> Result<Progress> {
        loop {
            if !go_on() {
                return Err(Error::Stopped);
            }
            let frame = self.frames.last_mut().expect("a machine ends with its first frame");
            let program = Arc::clone(&frame.program);
            frame.apply_ops(&program, build, go_on)?;
            match program.steps.get(frame.position) {
                Some(Step::Call { inputs, key, .. }) => {
                    let shown = copies(&frame.registers, inputs)?;
                    frame.expire(&[]);
                    return Ok(Progress::Asks(*key, shown));
                }
                Some(Step::Cond { predicate, captures, on_true, on_false }) => {
                    let predicate = truth(build, read(&frame.registers, *predicate)?)?;
                    let captured = copies(&frame.registers, captures)?;
                    frame.expire(&[]);
                    evaluate(OP, [&predicate])?;
                    let branch = if is_true(&predicate)? { on_true } else { on_false };
                    self.enter(branch, captured, Role::Branch)?;
                }
                Some(Step::While { state, captures, .. }) => {
                    let first = copies(&frame.registers, state)?;
                    frame.expire(captures);
                    self.decide(first)?;
                }
                Some(Step::Apply(..)) => unreachable!("ops are applied"),
                None => {
                    let frame = self.frames.pop().expect("the frame that has ended");
                    if let Some(outputs) = self.leave(frame, build)? {
                        return Ok(Progress::Done(outputs));
                    }
                }
            }
        }
    }

    /// What the answer to a question must be.
    pub(super) fn expected_answer(&self) -> &[Template] {
        let asking = self.frames.last().map(|frame| &frame.program.steps[frame.position]);
        match asking {
            Some(Step::Call { outputs, .. }) => outputs,
            _ => unreachable!("a question waits"),
        }
    }

    /// The answer to a question.
    pub(super) fn answer(&mut self, answers: Vec<Array>) {
        self.frames.last_mut().expect("the frame that asked").finish_step(answers);
    }

    /// What a frame's end means. Returns the outputs of the run.
    fn leave(&mut self, frame: Frame, build: &Build) -> Result<Option<Vec<Array>>> {
        let outputs = copies(&frame.registers, &frame.program.outputs)?;
        drop(frame.registers);
        match frame.role {
            Role::Main => return Ok(Some(outputs)),
            Role::Branch => self.waiting().finish_step(outputs),
            Role::Body => self.decide(outputs)?,
            Role::Condition { state } => {
                let predicate = truth(build, &outputs[0])?;
                // Together, once for each iteration, so that the graph stays small.
                evaluate(OP, state.iter().chain([&predicate]))?;
                if is_true(&predicate)? {
                    self.repeat(state)?;
                } else {
                    self.waiting().finish_step(state);
                }
            }
        }
        Ok(None)
    }

    fn waiting(&mut self) -> &mut Frame {
        self.frames.last_mut().expect("the frame below waits")
    }

    /// Enters the condition of the loop that waits.
    fn decide(&mut self, state: Vec<Array>) -> Result<()> {
        let frame = self.waiting();
        let program = Arc::clone(&frame.program);
        let Step::While { captures, condition, .. } = &program.steps[frame.position] else {
            unreachable!("a loop waits")
        };
        let mut inputs =
            state.iter().map(|array| copy_handle(OP, array)).collect::<Result<Vec<_>>>()?;
        inputs.extend(copies(&frame.registers, captures)?);
        self.enter(condition, inputs, Role::Condition { state })
    }

    /// Enters the body of the loop that waits. The state is moved, so that what only the body uses can
    /// be overwritten in place.
    fn repeat(&mut self, state: Vec<Array>) -> Result<()> {
        let frame = self.waiting();
        let program = Arc::clone(&frame.program);
        let Step::While { captures, body, .. } = &program.steps[frame.position] else {
            unreachable!("a loop waits")
        };
        let mut inputs = state;
        inputs.extend(copies(&frame.registers, captures)?);
        self.enter(body, inputs, Role::Body)
    }
}

impl Frame {
    /// Builds ops of its program up to the next step of another kind.
    fn apply_ops(&mut self, program: &Program, build: &Build, go_on: GoOn) -> Result<()> {
        let mut unasked = 0;
        while let Some(Step::Apply(op, inputs, count)) = program.steps.get(self.position) {
            if unasked == UNASKED {
                unasked = 0;
                if !go_on() {
                    return Err(Error::Stopped);
                }
            }
            unasked += 1;
            let made = apply(op, inputs, *count, &self.registers, build)?;
            self.finish_step(made);
        }
        Ok(())
    }

    /// Appends what a step has made and goes on behind it.
    fn finish_step(&mut self, made: Vec<Array>) {
        self.registers.extend(made.into_iter().map(Some));
        self.expire(&[]);
        self.position += 1;
    }

    /// Gives up what nobody reads after the present step, so that MLX can reuse the buffers; some are
    /// kept as long as the step lasts.
    fn expire(&mut self, kept: &[usize]) {
        for register in &self.program.expiring[self.position] {
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
