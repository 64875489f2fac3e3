//! Programs: compiled, run, and gone on with after a question to the caller.

use crate::atoms;
use crate::error::{encode_result, wrong};
use crate::tensor;
use crate::worker::{self, elsewhere, queue};
use emily_core::error::Result;
use emily_core::program::{can_fuse, Input, Mode, Program, Run, Step, Template};
use emily_core::tensor::Tensor;
use rustler::types::tuple::get_tuple;
use rustler::{Atom, Encoder, Env, Resource, ResourceArc, Term};
use std::sync::Arc;

const OP: &str = "Program";

/// A program's reference in Elixir.
pub struct ProgramResource(Arc<Program>);

#[rustler::resource_impl]
impl Resource for ProgramResource {}

/// The reference of a run that waits for its caller.
pub struct RunResource(pub Arc<Run>);

#[rustler::resource_impl]
impl Resource for RunResource {}

/// Compiles a program for the device of `worker`: its reference, `{:elsewhere, tensors}` where a
/// constant is not ready, or an error.
#[rustler::nif(schedule = "DirtyCpu")]
fn program_compile<'a>(
    env: Env<'a>,
    worker: Term<'a>,
    inputs: Term<'a>,
    constants: Term<'a>,
    steps: Term<'a>,
    outputs: Term<'a>,
    fuse: Term<'a>,
) -> Term<'a> {
    let compile = || {
        let worker = worker::decode(worker)?;
        let inputs = decode_list("inputs", inputs, decode_template)?;
        let constants = decode_list("constants", constants, decode_tensor)?;
        let lazy: Vec<_> = constants
            .iter()
            .filter(|constant| !constant.tensor.is_ready())
            .map(|constant| constant.term)
            .collect();
        if !lazy.is_empty() {
            return Ok((atoms::elsewhere(), lazy).encode(env));
        }
        let constants = cores(&constants);
        let steps = decode_list("steps", steps, decode_step)?;
        let outputs = decode_registers(outputs)?;
        let fuse: bool = fuse.decode().map_err(|_| wrong(OP, "fuse", "a boolean", fuse))?;
        let program = Program::new(inputs, constants, steps, outputs, fuse, worker.0.home())?;
        Ok(ResourceArc::new(ProgramResource(Arc::new(program))).encode(env))
    };
    encode_result(env, compile())
}

/// Queues a run, which answers when its outputs are computed (`:wait`) or when that is scheduled
/// (`:schedule`); the message is `{tag, {:ok, tensors}}` or `{tag, {:call, run, key, tensors}}`.
#[rustler::nif]
fn program_run<'a>(
    env: Env<'a>,
    worker: Term<'a>,
    program: Term<'a>,
    inputs: Term<'a>,
    mode: Term<'a>,
    tag: Term<'a>,
) -> Term<'a> {
    let submit = || {
        let worker = worker::decode(worker)?;
        let mode = match mode.decode::<Atom>() {
            Ok(atom) if atom == atoms::wait() => Mode::Wait,
            Ok(atom) if atom == atoms::schedule() => Mode::Schedule,
            _ => return Err(wrong(OP, "mode", ":wait or :schedule", mode)),
        };
        let program = decode_program(program)?;
        let inputs = decode_list("inputs", inputs, decode_run_input)?;
        if let Some(foreign) = elsewhere(env, &worker.0, inputs.iter().map(|(input, _)| *input)) {
            return Ok(foreign);
        }
        let inputs = inputs
            .into_iter()
            .map(|(input, donated)| Input { tensor: input.tensor.clone(), donated })
            .collect();
        Ok(queue(env, tag, |reply| worker.0.run(program, inputs, mode, reply)))
    };
    encode_result(env, submit())
}

/// Queues the rest of a run that asked, with the answer; the messages are those of `program_run`.
#[rustler::nif]
fn program_resume<'a>(
    env: Env<'a>,
    worker: Term<'a>,
    run: Term<'a>,
    tensors: Term<'a>,
    tag: Term<'a>,
) -> Term<'a> {
    let submit = || {
        let worker = worker::decode(worker)?;
        let run = decode_run(run)?;
        let answers = decode_list("answers", tensors, decode_tensor)?;
        run.0.check(&cores(&answers))?;
        if let Some(foreign) = elsewhere(env, &worker.0, answers.iter().copied()) {
            return Ok(foreign);
        }
        let answers = cores(&answers);
        Ok(queue(env, tag, |reply| worker.0.resume(Arc::clone(&run.0), answers, reply)))
    };
    encode_result(env, submit())
}

/// Gives a run up that waits for its caller.
#[rustler::nif]
fn program_abandon<'a>(env: Env<'a>, run: Term<'a>) -> Term<'a> {
    let abandon = |run: ResourceArc<RunResource>| {
        run.0.abandon();
        atoms::ok().encode(env)
    };
    encode_result(env, decode_run(run).map(abandon))
}

/// How many ops it has and how deep its programs nest.
#[rustler::nif]
fn program_info<'a>(env: Env<'a>, program: Term<'a>) -> Term<'a> {
    let info = |program: Arc<Program>| {
        let size = program.size();
        (size.ops, size.depth).encode(env)
    };
    encode_result(env, decode_program(program).map(info))
}

/// Whether `fuse` does anything on the device of `worker`: on a CPU it needs a C++ compiler.
#[rustler::nif(schedule = "DirtyIo")]
fn program_fusion<'a>(env: Env<'a>, worker: Term<'a>) -> Term<'a> {
    encode_result(env, worker::decode(worker).map(|worker| can_fuse(worker.0.device()).encode(env)))
}

fn decode_program(term: Term) -> Result<Arc<Program>> {
    let program: ResourceArc<ProgramResource> =
        term.decode().map_err(|_| wrong(OP, "program", "a program reference", term))?;
    Ok(Arc::clone(&program.0))
}

fn decode_run(term: Term) -> Result<ResourceArc<RunResource>> {
    term.decode().map_err(|_| wrong(OP, "run", "the reference of a run that waits", term))
}

fn cores(inputs: &[tensor::Input]) -> Vec<Tensor> {
    inputs.iter().map(|input| input.tensor.clone()).collect()
}

fn decode_list<'a, T>(
    what: &'static str,
    term: Term<'a>,
    decode: impl FnMut(Term<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    worker::decode_list(OP, what, term, decode)
}

fn decode_tensor<'a>(term: Term<'a>) -> Result<tensor::Input<'a>> {
    tensor::decode(OP, term)
}

/// A tensor, or `{:donate, tensor}`.
fn decode_run_input<'a>(term: Term<'a>) -> Result<(tensor::Input<'a>, bool)> {
    match term.decode::<(Atom, Term)>() {
        Ok((atom, tensor)) if atom == atoms::donate() => Ok((decode_tensor(tensor)?, true)),
        _ => Ok((decode_tensor(term)?, false)),
    }
}

/// `{shape, dtype}`.
fn decode_template(term: Term) -> Result<Template> {
    let (shape, dtype) = term
        .decode::<(Term, Term)>()
        .map_err(|_| wrong(OP, "template", "a tuple {shape, dtype}", term))?;
    let size = |size: Term| size.decode().map_err(|_| wrong(OP, "size", "an int32 size", size));
    let shape = decode_list("shape", shape, size)?;
    Ok(Template { shape, dtype: tensor::decode_dtype(OP, dtype)? })
}

fn decode_register(term: Term) -> Result<usize> {
    term.decode().map_err(|_| wrong(OP, "register", "the number of a register", term))
}

fn decode_registers(term: Term) -> Result<Vec<usize>> {
    decode_list("registers", term, decode_register)
}

fn decode_step(term: Term) -> Result<Step> {
    const EXPECTED: &str = "a step {:apply, ...}, {:while, ...}, {:cond, ...} or {:call, ...}";
    let wrong = || wrong(OP, "step", EXPECTED, term);
    let parts = get_tuple(term).map_err(|_| wrong())?;
    let kind = parts.first().and_then(|kind| kind.decode::<Atom>().ok()).ok_or_else(wrong)?;
    match parts[1..] {
        [op, inputs, count] if kind == atoms::apply() => {
            let optional = |register: Term| {
                let absent = register.decode::<Atom>().is_ok_and(|atom| atom == atoms::nil());
                (!absent).then(|| decode_register(register)).transpose()
            };
            let inputs = decode_list("registers", inputs, optional)?;
            let count = count.decode().map_err(|_| wrong())?;
            Ok(Step::Apply(worker::decode_op(op)?.into_owned(), inputs, count))
        }
        [state, captures, condition, body] if kind == atoms::while_() => Ok(Step::While {
            state: decode_registers(state)?,
            captures: decode_registers(captures)?,
            condition: decode_program(condition)?,
            body: decode_program(body)?,
        }),
        [predicate, captures, on_true, on_false] if kind == atoms::cond() => Ok(Step::Cond {
            predicate: decode_register(predicate)?,
            captures: decode_registers(captures)?,
            on_true: decode_program(on_true)?,
            on_false: decode_program(on_false)?,
        }),
        [inputs, key, outputs] if kind == atoms::call() => Ok(Step::Call {
            inputs: decode_registers(inputs)?,
            key: key.decode().map_err(|_| wrong())?,
            outputs: decode_list("templates", outputs, decode_template)?,
        }),
        _ => Err(wrong()),
    }
}
