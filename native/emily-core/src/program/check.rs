//! What a program must be before it is accepted.
//!
//! Every step is built once from placeholders, which nobody evaluates, so that every op checks its
//! arguments. A program inside was checked for itself: what it takes and gives is compared, and it is not
//! built again, which for programs that share parts would take time exponential in their depth.

use super::{wrong, Program, Size, Step, Template, OP};
use crate::build::{Build, Describe};
use crate::error::{Error, Result};
use crate::op::{Fill, Op};
use crate::tensor::{copy_handle, Tensor};
use mlx_rs::Array;
use smallvec::SmallVec;

/// The most registers of a program, its programs inside not counted.
const MOST_REGISTERS: usize = 1 << 24;

/// How deep loops and conditions may nest.
const DEEPEST: usize = 64;

/// How large the programs of some steps are.
pub(super) fn size(steps: &[Step]) -> Result<Size> {
    let mut size = Size { ops: 0, depth: 1 };
    for step in steps {
        if let Step::Apply(..) = step {
            size.ops = size.ops.saturating_add(1);
        }
        for part in step.parts().into_iter().flatten() {
            size.ops = size.ops.saturating_add(part.size.ops);
            size.depth = size.depth.max(1 + part.size.depth);
        }
    }
    if size.depth > DEEPEST {
        return Err(wrong("depth", format!("at most {DEEPEST} levels"), size.depth));
    }
    Ok(size)
}

impl Program {
    pub(super) fn check_registers(&self) -> Result<()> {
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
            made = made.saturating_add(appended);
            if made > MOST_REGISTERS {
                return Err(wrong("program", format!("at most {MOST_REGISTERS} registers"), made));
            }
        }
        match self.outputs.iter().find(|&&register| register >= made) {
            Some(register) => Err(wrong("output", format!("one of {made} registers"), register)),
            None => Ok(()),
        }
    }

    /// Finds the registers that each step is the last to read. Outputs are kept to the end, and a
    /// register that nobody reads goes with the step that made it.
    pub(super) fn plan_registers(&mut self) {
        let mut made = self.inputs.len() + self.constants.len();
        let mut last: Vec<Option<usize>> = vec![None; made];
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
        self.register_count = made;
        self.expiring = vec![Vec::new(); self.steps.len()];
        for (register, step) in last.into_iter().enumerate() {
            if let Some(step) = step {
                self.expiring[step].push(register);
            }
        }
    }

    /// Builds everything from placeholders. Returns the types of all registers.
    pub(super) fn dry_run(&self, build: &Build) -> Result<Vec<Template>> {
        let mut registers = Vec::new();
        for input in &self.inputs {
            registers.push(Some(placeholder(build, input)?));
        }
        registers.extend(self.constants()?.into_iter().map(Some));
        let mut types: Vec<_> = registers.iter().flatten().map(Template::of).collect();
        for (step, expiring) in self.steps.iter().zip(&self.expiring) {
            let made = step.dry_run(&registers, build)?;
            types.extend(made.iter().map(Template::of));
            registers.extend(made.into_iter().map(Some));
            for &register in expiring {
                registers[register] = None;
            }
        }
        Ok(types)
    }

    /// What it makes of arrays of these types.
    fn check_call(
        &self,
        what: &'static str,
        build: &Build,
        arrays: &[&Array],
    ) -> Result<Vec<Template>> {
        if self.device != build.device() {
            let expected = format!("a program checked for {}", build.device().name());
            return Err(wrong(what, expected, self.device.name()));
        }
        if arrays.len() != self.inputs.len() {
            let expected = format!("{} inputs", self.inputs.len());
            return Err(wrong(what, expected, arrays.len()));
        }
        for (array, template) in arrays.iter().zip(&self.inputs) {
            if !template.fits(array.shape_of(), array.dtype_of()) {
                return Err(wrong(what, format!("{template:?}"), Template::of(array)));
            }
        }
        Ok(self.results.clone())
    }

    /// Checks what a run is given.
    pub(super) fn check_inputs<'a>(
        &self,
        inputs: impl ExactSizeIterator<Item = &'a Tensor>,
    ) -> Result<()> {
        check_tensors("input", &self.inputs, inputs)
    }
}

/// Checks tensors against their templates.
pub(super) fn check_tensors<'a>(
    what: &'static str,
    templates: &[Template],
    tensors: impl ExactSizeIterator<Item = &'a Tensor>,
) -> Result<()> {
    if tensors.len() != templates.len() {
        let expected = format!("{} {what}s", templates.len());
        return Err(Error::Arity { op: OP, expected, got: tensors.len() });
    }
    for (tensor, template) in tensors.zip(templates) {
        if !template.fits(tensor.shape(), tensor.dtype()) {
            return Err(wrong(what, format!("{template:?}"), tensor));
        }
    }
    Ok(())
}

impl Step {
    fn dry_run(&self, registers: &[Option<Array>], build: &Build) -> Result<Vec<Array>> {
        let chosen = |chosen: &[usize]| {
            chosen.iter().map(|&register| read(registers, register)).collect::<Result<Vec<_>>>()
        };
        let outputs = match self {
            Step::Apply(op, inputs, count) => {
                return apply(op, inputs, *count, registers, build);
            }
            Step::Fused(..) => {
                return Err(wrong("step", "one that is not fused yet", "a fused one"))
            }
            Step::While { state, captures, condition, body } => {
                let arrays = chosen(&[state.as_slice(), captures].concat())?;
                match &condition.check_call("condition", build, &arrays)?[..] {
                    [one] => check_scalar("condition", &one.shape)?,
                    others => return Err(wrong("condition", "one output", others.len())),
                }
                let types: Vec<_> =
                    arrays[..state.len()].iter().map(|array| Template::of(array)).collect();
                let next = body.check_call("body", build, &arrays)?;
                check_same("state", &types, &next)?;
                next
            }
            Step::Cond { predicate, captures, on_true, on_false } => {
                check_scalar("predicate", read(registers, *predicate)?.shape_of())?;
                let arrays = chosen(captures)?;
                let made = on_true.check_call("branch", build, &arrays)?;
                check_same("branches", &made, &on_false.check_call("branch", build, &arrays)?)?;
                made
            }
            Step::Call { outputs, .. } => outputs.clone(),
        };
        outputs.iter().map(|template| placeholder(build, template)).collect()
    }
}

/// Builds an op from registers.
pub(super) fn apply(
    op: &Op,
    inputs: &[Option<usize>],
    count: usize,
    registers: &[Option<Array>],
    build: &Build,
) -> Result<Vec<Array>> {
    let inputs: SmallVec<[Option<&Array>; 4]> = inputs
        .iter()
        .map(|input| input.map(|register| read(registers, register)).transpose())
        .collect::<Result<_>>()?;
    let made = op.build_all(build, &inputs)?;
    if made.len() != count {
        return Err(wrong("number of outputs", made.len(), count));
    }
    Ok(made)
}

fn placeholder(build: &Build, template: &Template) -> Result<Array> {
    let fill = Fill { shape: template.shape.clone(), dtype: template.dtype };
    Op::Zeros(fill).build(build, &[])
}

pub(super) fn read(registers: &[Option<Array>], register: usize) -> Result<&Array> {
    registers[register]
        .as_ref()
        .ok_or_else(|| wrong("register", "one that is still kept", register))
}

/// Handles of their own on some registers.
pub(super) fn copies(registers: &[Option<Array>], chosen: &[usize]) -> Result<Vec<Array>> {
    chosen.iter().map(|&register| copy_handle(OP, read(registers, register)?)).collect()
}

fn check_scalar<T: std::fmt::Debug>(what: &'static str, shape: &[T]) -> Result<()> {
    if shape.is_empty() {
        Ok(())
    } else {
        Err(wrong(what, "a scalar", shape))
    }
}

fn check_same(what: &'static str, expected: &[Template], got: &[Template]) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(wrong(what, format!("the types {expected:?}"), got))
    }
}
