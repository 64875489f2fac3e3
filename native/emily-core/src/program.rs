//! Programs: checked lists of ops, made once and replayed on a worker by one job.
//!
//! A program computes in *registers*. The first ones hold its inputs, the next its constants, and each
//! step appends its outputs. Loops and conditions have programs of their own, whose inputs are the
//! state (or nothing) followed by registers that they capture.
//!
//! A program is checked by building it once, without computing anything, from placeholders of its
//! inputs' shapes and dtypes: every op checks its arguments, states and branches must keep their types.
//! So a program that was accepted fails only where data or memory make it fail.

use crate::build::{Build, Describe};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::{Fill, Op};
use crate::slot::Home;
use crate::tensor::{evaluate, Tensor};
use mlx_rs::Array;
use std::sync::Arc;

/// The most registers of a program, its programs inside not counted.
const MOST_REGISTERS: usize = 1 << 24;

/// How deep loops and conditions may nest. Each level takes some of the worker's stack.
const DEEPEST: usize = 64;

/// The shape and dtype of an input.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "nif", derive(rustler::NifTuple))]
pub struct Template {
    /// Sizes of the axes.
    pub shape: Vec<i64>,
    /// Type of the elements.
    pub dtype: Dtype,
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
}

/// A checked list of steps.
#[derive(Debug)]
pub struct Program {
    inputs: Vec<Template>,
    constants: Vec<Tensor>,
    steps: Vec<Step>,
    outputs: Vec<usize>,
    /// For each step, the registers that nobody reads after it.
    expiring: Vec<Vec<usize>>,
    depth: usize,
}

/// Asked between steps: whether the program is to go on.
pub type GoOn<'a> = &'a dyn Fn() -> bool;

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
        let depth = 1 + steps.iter().map(Step::depth).max().unwrap_or(0);
        if depth > DEEPEST {
            return Err(wrong("depth", format!("at most {DEEPEST} levels"), depth));
        }
        if let Some(index) = constants.iter().position(|constant| !constant.is_ready()) {
            return Err(wrong("constant", "an evaluated tensor", index));
        }
        let mut program =
            Program { inputs, constants, steps, outputs, expiring: Vec::new(), depth };
        program.check_registers()?;
        program.expiring = program.last_uses();
        program.dry_run(&home.build())?;
        Ok(program)
    }

    /// Shapes and dtypes of its inputs.
    pub fn inputs(&self) -> &[Template] {
        &self.inputs
    }

    /// How many ops one run builds at least once, those of loops and branches counted once.
    pub fn op_count(&self) -> usize {
        self.steps.iter().map(Step::op_count).sum()
    }

    /// Runs on the thread that holds the slot; returns the outputs, ready.
    ///
    /// # Errors
    /// [`Error::Argument`] for inputs of other shapes or dtypes, [`Error::Stopped`] where `go_on` says no, and
    /// what data and memory make fail.
    pub(crate) fn run(
        &self,
        inputs: &[Tensor],
        home: &Arc<Home>,
        go_on: GoOn,
    ) -> Result<Vec<Tensor>> {
        self.check_inputs(inputs)?;
        Tensor::settle_risks(inputs.iter())?;
        let handles = inputs.iter().map(|input| input.handle(OP)).collect::<Result<Vec<_>>>()?;
        let outputs = self.replay(handles, &home.build(), Mode::Compute(go_on))?;
        evaluate(OP, &outputs)?;
        Ok(outputs.into_iter().map(|array| Tensor::ready(array, home)).collect())
    }

    fn check_inputs(&self, inputs: &[Tensor]) -> Result<()> {
        if inputs.len() != self.inputs.len() {
            let expected = format!("{} inputs", self.inputs.len());
            return Err(Error::Arity { op: OP, expected, got: inputs.len() });
        }
        for (input, template) in inputs.iter().zip(&self.inputs) {
            let same = input.dtype() == template.dtype
                && input
                    .shape()
                    .iter()
                    .map(|&size| i64::from(size))
                    .eq(template.shape.iter().copied());
            if !same {
                return Err(wrong("input", format!("{template:?}"), input));
            }
        }
        Ok(())
    }

    fn check_registers(&self) -> Result<()> {
        let mut made = self.inputs.len() + self.constants.len();
        for step in &self.steps {
            let (read, appended) = (step.reads(), step.output_count());
            if let Some(register) = read.into_iter().find(|&register| register >= made) {
                return Err(wrong(
                    "register",
                    format!("one of the {made} before the step"),
                    register,
                ));
            }
            made += appended;
            if made > MOST_REGISTERS {
                return Err(wrong("program", format!("at most {MOST_REGISTERS} registers"), made));
            }
        }
        match self.outputs.iter().find(|&&register| register >= made) {
            Some(register) => Err(wrong("output", format!("one of {made} registers"), register)),
            None => Ok(()),
        }
    }

    /// The registers that each step is the last to read. Outputs are kept to the end, and a register
    /// that nobody reads goes with the step that made it.
    fn last_uses(&self) -> Vec<Vec<usize>> {
        let first = self.inputs.len() + self.constants.len();
        let mut made = first;
        let mut last: Vec<Option<usize>> = vec![None; first];
        for (index, step) in self.steps.iter().enumerate() {
            for register in step.reads() {
                last[register] = Some(index);
            }
            made += step.output_count();
            last.resize(made, Some(index));
        }
        for &output in &self.outputs {
            last[output] = None;
        }
        let mut expiring = vec![Vec::new(); self.steps.len()];
        for (register, step) in last.into_iter().enumerate() {
            if let Some(step) = step {
                expiring[step].push(register);
            }
        }
        expiring
    }

    /// Builds everything from placeholders, which nobody evaluates. Returns the outputs.
    fn dry_run(&self, build: &Build) -> Result<Vec<Array>> {
        let placeholders = self
            .inputs
            .iter()
            .map(|input| placeholder(build, input))
            .collect::<Result<Vec<_>>>()?;
        self.replay(placeholders, build, Mode::Check)
    }

    fn replay(&self, inputs: Vec<Array>, build: &Build, mode: Mode) -> Result<Vec<Array>> {
        let mut registers: Vec<Option<Array>> = inputs.into_iter().map(Some).collect();
        for constant in &self.constants {
            registers.push(Some(constant.handle(OP)?));
        }
        for (step, expiring) in self.steps.iter().zip(&self.expiring) {
            if let Mode::Compute(go_on) = mode {
                if !go_on() {
                    return Err(Error::Stopped);
                }
            }
            let made = step.perform(&registers, build, mode)?;
            registers.extend(made.into_iter().map(Some));
            for &register in expiring {
                registers[register] = None;
            }
        }
        self.outputs.iter().map(|&register| copy(&registers, register)).collect()
    }
}

/// What a replay is for.
#[derive(Clone, Copy)]
enum Mode<'a> {
    /// Types alone: loops and conditions build each of their programs once.
    Check,
    /// Results.
    Compute(GoOn<'a>),
}

impl Step {
    fn reads(&self) -> Vec<usize> {
        match self {
            Step::Apply(_, inputs, _) => inputs.iter().flatten().copied().collect(),
            Step::While { state, captures, .. } => [state.as_slice(), captures].concat(),
            Step::Cond { predicate, captures, .. } => [&[*predicate], captures.as_slice()].concat(),
        }
    }

    fn output_count(&self) -> usize {
        match self {
            Step::Apply(_, _, count) => *count,
            Step::While { state, .. } => state.len(),
            Step::Cond { on_true, .. } => on_true.outputs.len(),
        }
    }

    fn depth(&self) -> usize {
        match self {
            Step::Apply(..) => 0,
            Step::While { condition, body, .. } => condition.depth.max(body.depth),
            Step::Cond { on_true, on_false, .. } => on_true.depth.max(on_false.depth),
        }
    }

    fn op_count(&self) -> usize {
        match self {
            Step::Apply(..) => 1,
            Step::While { condition, body, .. } => condition.op_count() + body.op_count(),
            Step::Cond { on_true, on_false, .. } => on_true.op_count() + on_false.op_count(),
        }
    }

    fn perform(
        &self,
        registers: &[Option<Array>],
        build: &Build,
        mode: Mode,
    ) -> Result<Vec<Array>> {
        match self {
            Step::Apply(op, inputs, count) => {
                let inputs: Vec<_> = inputs
                    .iter()
                    .map(|input| input.map(|register| read(registers, register)).transpose())
                    .collect::<Result<_>>()?;
                let made = op.build_all(build, &inputs)?;
                if made.len() != *count {
                    return Err(wrong("number of outputs", made.len(), count));
                }
                Ok(made)
            }
            Step::While { state, captures, condition, body } => {
                let state = copies(registers, state)?;
                let captures = copies(registers, captures)?;
                match mode {
                    Mode::Check => check_loop(state, &captures, condition, body, build),
                    Mode::Compute(_) => run_loop(state, &captures, condition, body, build, mode),
                }
            }
            Step::Cond { predicate, captures, on_true, on_false } => {
                let predicate = read(registers, *predicate)?;
                let captures = copies(registers, captures)?;
                match mode {
                    Mode::Check => {
                        scalar("predicate", predicate)?;
                        let made = on_true.check_with(&captures, build)?;
                        same_types("branches", &made, &on_false.check_with(&captures, build)?)?;
                        Ok(made)
                    }
                    Mode::Compute(_) => {
                        let predicate = truth(build, predicate)?;
                        evaluate(OP, [&predicate])?;
                        let branch = if is_true(&predicate)? { on_true } else { on_false };
                        branch.replay(captures, build, mode)
                    }
                }
            }
        }
    }
}

impl Program {
    /// A dry run from arrays, which must have the types of the inputs.
    fn check_with(&self, inputs: &[Array], build: &Build) -> Result<Vec<Array>> {
        if inputs.len() != self.inputs.len() {
            return Err(wrong("number of captures", self.inputs.len(), inputs.len()));
        }
        for (array, template) in inputs.iter().zip(&self.inputs) {
            let shape = array.shape_of().iter().map(|&size| i64::from(size));
            if array.dtype_of() != template.dtype || !shape.eq(template.shape.iter().copied()) {
                let got = (array.shape_of(), array.dtype_of());
                return Err(wrong("capture", format!("{template:?}"), got));
            }
        }
        self.replay(duplicates(inputs)?, build, Mode::Check)
    }
}

fn check_loop(
    state: Vec<Array>,
    captures: &[Array],
    condition: &Program,
    body: &Program,
    build: &Build,
) -> Result<Vec<Array>> {
    let inputs: Vec<Array> =
        [duplicates(&state)?, duplicates(captures)?].into_iter().flatten().collect();
    match &condition.check_with(&inputs, build)?[..] {
        [one] => scalar("condition", one)?,
        others => return Err(wrong("condition", "one output", others.len())),
    }
    let next = body.check_with(&inputs, build)?;
    same_types("state", &state, &next)?;
    Ok(next)
}

/// State and condition are computed together, once for each iteration, so that the graph stays small.
fn run_loop(
    mut state: Vec<Array>,
    captures: &[Array],
    condition: &Program,
    body: &Program,
    build: &Build,
    mode: Mode,
) -> Result<Vec<Array>> {
    loop {
        let mut inputs = duplicates(&state)?;
        inputs.extend(duplicates(captures)?);
        let predicate = condition.replay(inputs, build, mode)?;
        let predicate = truth(build, &predicate[0])?;
        evaluate(OP, state.iter().chain([&predicate]))?;
        if !is_true(&predicate)? {
            return Ok(state);
        }
        // Moved, so that a state whose only user is the body can be overwritten in place.
        let mut inputs = state;
        inputs.extend(duplicates(captures)?);
        state = body.replay(inputs, build, mode)?;
    }
}

const OP: &str = "Program";

fn wrong(what: &'static str, expected: impl std::fmt::Display, got: impl std::fmt::Debug) -> Error {
    Error::argument(OP, what, expected, got)
}

fn placeholder(build: &Build, template: &Template) -> Result<Array> {
    let fill = Fill { shape: template.shape.clone(), dtype: template.dtype };
    Op::Zeros(fill).build(build, &[])
}

fn read(registers: &[Option<Array>], register: usize) -> Result<&Array> {
    registers[register]
        .as_ref()
        .ok_or_else(|| wrong("register", "one that is still kept", register))
}

fn copy(registers: &[Option<Array>], register: usize) -> Result<Array> {
    crate::tensor::copy_handle(OP, read(registers, register)?)
}

fn copies(registers: &[Option<Array>], chosen: &[usize]) -> Result<Vec<Array>> {
    chosen.iter().map(|&register| copy(registers, register)).collect()
}

fn duplicates(arrays: &[Array]) -> Result<Vec<Array>> {
    arrays.iter().map(|array| crate::tensor::copy_handle(OP, array)).collect()
}

fn scalar(what: &'static str, array: &Array) -> Result<()> {
    if array.shape_of().is_empty() {
        Ok(())
    } else {
        Err(wrong(what, "a scalar", array.shape_of()))
    }
}

fn same_types(what: &'static str, expected: &[Array], got: &[Array]) -> Result<()> {
    let types = |arrays: &[Array]| -> Vec<_> {
        arrays.iter().map(|array| (array.shape_of().to_vec(), array.dtype_of())).collect()
    };
    let (expected, got) = (types(expected), types(got));
    if expected == got {
        Ok(())
    } else {
        Err(wrong(what, format!("the types {expected:?}"), got))
    }
}

/// Whether a scalar is not zero, as a boolean that is still to be computed.
fn truth(build: &Build, scalar: &Array) -> Result<Array> {
    if scalar.dtype_of() == Dtype::Bool {
        return crate::tensor::copy_handle(OP, scalar);
    }
    Op::Astype(crate::op::Cast { dtype: Dtype::Bool }).build(build, &[Some(scalar)])
}

fn is_true(computed: &Array) -> Result<bool> {
    let mut value = false;
    // SAFETY: an evaluated scalar of booleans.
    crate::mlx::check(OP, unsafe { mlx_sys::mlx_array_item_bool(&mut value, computed.as_ptr()) })?;
    Ok(value)
}
