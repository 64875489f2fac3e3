//! Workers: started, closed, asked for work.

use crate::atoms;
use crate::error::{encode, encode_result, wrong};
use crate::reply::to_caller;
use crate::tensor::{self, decode_input, Input, TensorResource};
use emily_core::device::Device;
use emily_core::error::{Error, Result};
use emily_core::memory::should_collect;
use emily_core::op::Op;
use emily_core::reply::Reply;
use emily_core::retired::{free_some, A_FEW};
use emily_core::tensor::Tensor;
use emily_core::worker::{make_ready as queue_make_ready, Owner, Refused, Worker};
use heck::ToSnakeCase;
use rustler::schedule::consume_timeslice;
use rustler::{Atom, Encoder, Env, MapIterator, Resource, ResourceArc, Term};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A worker's reference in Elixir. The worker ends, after its queued jobs, when this is collected.
pub struct WorkerResource(pub Owner);

#[rustler::resource_impl]
impl Resource for WorkerResource {}

/// Most ops have few inputs.
type Inputs<'a> = SmallVec<[Option<Input<'a>>; 4]>;

/// Decodes `:cpu` or `:gpu`.
pub fn decode_device(term: Term) -> Result<Device> {
    match term.decode::<Atom>() {
        Ok(atom) if atom == atoms::cpu() => Ok(Device::Cpu),
        Ok(atom) if atom == atoms::gpu() => Ok(Device::Gpu),
        _ => Err(wrong("Stream", "device", ":cpu or :gpu", term)),
    }
}

/// Decodes a worker's reference, which the call's terms keep.
pub fn decode<'a>(term: Term<'a>) -> Result<&'a WorkerResource> {
    term.decode().map_err(|_| wrong("Stream", "stream", "a worker reference", term))
}

fn decode_inputs<'a>(op: &'static str, term: Term<'a>) -> Result<Inputs<'a>> {
    decode_list(op, "inputs", term, |input| decode_input(op, input))
}

/// Decodes the elements of a list. Rustler's iterator panics at the end of an improper one.
pub fn decode_list<'a, T, C: Default + Extend<T>>(
    op: &'static str,
    what: &'static str,
    term: Term<'a>,
    mut decode: impl FnMut(Term<'a>) -> Result<T>,
) -> Result<C> {
    let mut elements = C::default();
    let mut rest = term;
    while let Ok((element, tail)) = rest.list_get_cell() {
        elements.extend([decode(element)?]);
        rest = tail;
    }
    if rest.is_empty_list() {
        Ok(elements)
    } else {
        Err(wrong(op, what, "a list", term))
    }
}

/// Decodes an op with its attributes.
pub fn decode_op(term: Term) -> Result<Cow<'static, Op>> {
    if let Some(op) = plain(term) {
        return Ok(Cow::Borrowed(op));
    }
    let wrong = || wrong("Apply", "op", "an op of the table with all its attributes", term);
    if let Ok((_name, attributes)) = term.decode::<(Term, Term)>() {
        let mut values = MapIterator::new(attributes).into_iter().flatten();
        if !values.all(|(_key, value)| proper(value).is_some()) {
            return Err(wrong());
        }
    }
    term.decode().map(Cow::Owned).map_err(|_| wrong())
}

/// The op without attributes that an atom names. The derived decoder compares it with one name after
/// another, which takes longer than the rest of the decoding.
fn plain(term: Term) -> Option<&'static Op> {
    static OPS: OnceLock<Vec<(usize, Op)>> = OnceLock::new();
    let ops = OPS.get_or_init(|| {
        let env = term.get_env();
        let named = |name: &&str| {
            let atom = Atom::from_str(env, &name.to_snake_case()).ok()?;
            Some((atom.as_c_arg(), atom.to_term(env).decode().ok()?))
        };
        let mut ops: Vec<(usize, Op)> = Op::ALL.iter().filter_map(named).collect();
        ops.sort_unstable_by_key(|(atom, _)| *atom);
        ops
    });
    let found = ops.binary_search_by_key(&term.as_c_arg(), |(atom, _)| *atom).ok()?;
    Some(&ops[found].1)
}

/// The term, unless it is an improper list: Rustler panics where it decodes one.
pub fn proper(term: Term) -> Option<Term> {
    (!term.is_list() || term.list_length().is_ok()).then_some(term)
}

/// Starts a worker whose queue holds at most `capacity` jobs.
#[rustler::nif(schedule = "DirtyIo")]
fn worker_start<'a>(env: Env<'a>, device: Term<'a>, capacity: Term<'a>) -> Term<'a> {
    let start = || {
        let device = decode_device(device)?;
        let count = capacity.decode::<usize>().ok().filter(|&count| (1..=1 << 24).contains(&count));
        let count = count
            .ok_or_else(|| wrong("Stream", "queue limit", "an integer from 1 to 2^24", capacity))?;
        Owner::start(device, count).map(|owner| ResourceArc::new(WorkerResource(owner)))
    };
    encode_result(env, start().map(|worker| worker.encode(env)))
}

/// Closes a worker: queued jobs answer `:stopped`, later ones are refused.
#[rustler::nif]
fn worker_close<'a>(env: Env<'a>, worker: Term<'a>) -> Term<'a> {
    let close = |worker: &WorkerResource| {
        worker.0.close();
        atoms::ok().encode(env)
    };
    encode_result(env, decode(worker).map(close))
}

/// Its device, its waiting jobs, whether it is open and the bytes of its tensors.
#[rustler::nif]
fn worker_info<'a>(env: Env<'a>, worker: Term<'a>) -> Term<'a> {
    let info = |worker: &WorkerResource| {
        let worker: &Worker = &worker.0;
        let device = match worker.device() {
            Device::Cpu => atoms::cpu(),
            Device::Gpu => atoms::gpu(),
        };
        (device, worker.queue_depth(), worker.is_open(), worker.home().bytes()).encode(env)
    };
    encode_result(env, decode(worker).map(info))
}

/// Inputs that are lazy at another worker: the caller has them made ready there and asks again.
pub fn elsewhere<'a>(
    env: Env<'a>,
    worker: &Worker,
    inputs: impl Iterator<Item = Input<'a>>,
) -> Option<Term<'a>> {
    let mut foreign = inputs.filter(|input| !input.tensor.is_usable_in(worker.slot())).peekable();
    foreign.peek()?;
    let foreign: Vec<_> = foreign.map(|input| input.term).collect();
    Some((atoms::elsewhere(), foreign).encode(env))
}

/// Builds a single-output op: a tensor, `{:collect, tensor}` where the caller should collect its garbage,
/// `{:elsewhere, tensors}` or an error.
#[rustler::nif]
fn apply<'a>(env: Env<'a>, worker: Term<'a>, op: Term<'a>, inputs: Term<'a>) -> Term<'a> {
    let freed = free_some(A_FEW);
    let build = || {
        let worker = decode(worker)?;
        let op = decode_op(op)?;
        let inputs = decode_inputs(op.name(), inputs)?;
        if let Some(foreign) = elsewhere(env, &worker.0, inputs.iter().flatten().copied()) {
            return Ok(foreign);
        }
        let tensors: SmallVec<[Option<&Tensor>; 4]> =
            inputs.iter().map(|input| input.map(|input| input.tensor)).collect();
        let tensor = worker.0.build(&op, &tensors)?;
        let collect = should_collect(tensor.byte_size());
        account_for(env, BUILDING + FREEING * freed as u32);
        if worker.0.begin_early(&tensor) {
            account_for(env, WAKING);
        }
        let tensor = TensorResource::new(tensor).encode(env);
        Ok(if collect { (atoms::collect(), tensor).encode(env) } else { tensor })
    };
    encode_result(env, build())
}

/// Tells the BEAM that a call took `time`. It would count one of ours as it counts one of its own, which takes
/// a hundredth of the time: a process that calls in a loop would hold its scheduler for milliseconds.
fn account_for(env: Env, time: Duration) {
    // A slice is 1 ms.
    let percent = time.as_micros().div_ceil(10).clamp(1, 100);
    consume_timeslice(env, percent as i32);
}

/// What building an op takes unless many processes build at the same time. To measure it would cost a
/// twentieth of that.
const BUILDING: Duration = Duration::from_micros(10);

/// What waking a worker takes, which may sleep.
const WAKING: Duration = Duration::from_micros(50);

/// What freeing a tensor takes that has left the caches.
const FREEING: Duration = Duration::from_micros(5);

/// Frees what the caller's collection has just found, which is in the caches, as far as a scheduler has time.
#[rustler::nif]
fn free_collected(env: Env) -> Atom {
    const AT_A_TIME: usize = 16;
    const LONGEST: Duration = Duration::from_micros(200);
    let begin = Instant::now();
    while free_some(AT_A_TIME) == AT_A_TIME && begin.elapsed() < LONGEST {}
    account_for(env, begin.elapsed());
    atoms::ok()
}

/// Queues a job: `{:ok, handle}`, or an error where it is refused.
pub fn queue<'a>(env: Env<'a>, tag: Term<'a>, submit: impl FnOnce(Reply) -> Refused) -> Term<'a> {
    let (reply, job) = to_caller(env, tag);
    queue_for(env, reply, submit, || (atoms::ok(), job).encode(env))
}

/// The same for a job that computes tensors: `{:collect, handle}` where the caller should collect its garbage
/// while it waits.
fn queue_for_tensors<'a>(
    env: Env<'a>,
    tag: Term<'a>,
    tensors: &[Tensor],
    submit: impl FnOnce(Reply) -> Refused,
) -> Term<'a> {
    let said = said_of(tensors);
    let (reply, job) = to_caller(env, tag);
    queue_for(env, reply, submit, || (said, job).encode(env))
}

/// The same for a job that nobody waits for: `:ok`, `:collect`, or an error.
fn queue_unattended<'a>(
    env: Env<'a>,
    tensors: &[Tensor],
    submit: impl FnOnce(Reply) -> Refused,
) -> Term<'a> {
    let said = said_of(tensors);
    queue_for(env, Reply::to_nobody(), submit, || said.encode(env))
}

fn said_of(tensors: &[Tensor]) -> Atom {
    if tensors.iter().any(Tensor::has_much_on_its_way) {
        atoms::collect()
    } else {
        atoms::ok()
    }
}

fn queue_for<'a>(
    env: Env<'a>,
    reply: Reply,
    submit: impl FnOnce(Reply) -> Refused,
    queued: impl FnOnce() -> Term<'a>,
) -> Term<'a> {
    // A worker that sleeps is woken, by a system call of tens of microseconds.
    let begin = Instant::now();
    let submitted = submit(reply);
    account_for(env, begin.elapsed());
    match submitted {
        Ok(()) => queued(),
        Err((reply, error)) => {
            reply.forget();
            encode(env, &error)
        }
    }
}

/// Queues an op with several outputs; the message is `{tag, {:ok, tensors}}`.
#[rustler::nif]
fn apply_all<'a>(
    env: Env<'a>,
    worker: Term<'a>,
    op: Term<'a>,
    inputs: Term<'a>,
    tag: Term<'a>,
) -> Term<'a> {
    let submit = || {
        let worker = decode(worker)?;
        let op = decode_op(op)?;
        let inputs = decode_inputs(op.name(), inputs)?;
        if let Some(foreign) = elsewhere(env, &worker.0, inputs.iter().flatten().copied()) {
            return Ok(foreign);
        }
        let inputs = cores(&inputs);
        Ok(queue(env, tag, |reply| worker.0.apply(op.into_owned(), inputs, reply)))
    };
    encode_result(env, submit())
}

/// Queues the evaluation of tensors, for a caller that may collect meanwhile; the message is `{tag, :ok}`.
#[rustler::nif]
fn eval<'a>(env: Env<'a>, worker: Term<'a>, tensors: Term<'a>, tag: Term<'a>) -> Term<'a> {
    let submit = || {
        let worker = decode(worker)?;
        let inputs = decode_inputs("Eval", tensors)?;
        if let Some(index) = inputs.iter().position(Option::is_none) {
            return Err(Error::MissingInput { op: "Eval", index });
        }
        if let Some(foreign) = elsewhere(env, &worker.0, inputs.iter().flatten().copied()) {
            return Ok(foreign);
        }
        let pending: Vec<_> =
            cores(&inputs).into_iter().flatten().filter(|tensor| !tensor.is_ready()).collect();
        if pending.is_empty() {
            return Ok(atoms::ok().encode(env));
        }
        let make_ready = |reply| queue_make_ready(pending.clone(), &worker.0, reply);
        Ok(queue_for_tensors(env, tag, &pending, make_ready))
    };
    encode_result(env, submit())
}

/// Queues the scheduling of tensors: `:ok` or `:collect`, or the job's handle where the caller has to wait until they are
/// scheduled; the message is `{tag, :ok}`, before they are computed.
#[rustler::nif]
fn async_eval<'a>(env: Env<'a>, worker: Term<'a>, tensors: Term<'a>, tag: Term<'a>) -> Term<'a> {
    const OP: &str = "AsyncEval";
    let submit = || {
        let worker = decode(worker)?;
        let inputs = decode_inputs(OP, tensors)?;
        if let Some(index) = inputs.iter().position(Option::is_none) {
            return Err(Error::MissingInput { op: OP, index });
        }
        if let Some(foreign) = elsewhere(env, &worker.0, inputs.iter().flatten().copied()) {
            return Ok(foreign);
        }
        let tensors: Vec<_> = cores(&inputs).into_iter().flatten().collect();
        let unattended = worker.0.schedules_unattended(&tensors);
        let schedule = |reply| worker.0.schedule(tensors.clone(), reply);
        Ok(if unattended {
            queue_unattended(env, &tensors, schedule)
        } else {
            queue_for_tensors(env, tag, &tensors, schedule)
        })
    };
    encode_result(env, submit())
}

/// Queues the evaluation of one tensor at its home, or as a guest of `worker` where its own worker is
/// gone; the message is `{tag, :ok}`.
#[rustler::nif]
fn make_ready<'a>(env: Env<'a>, worker: Term<'a>, tensor: Term<'a>, tag: Term<'a>) -> Term<'a> {
    let submit = || {
        let worker = decode(worker)?;
        let tensor = tensor::decode("Eval", tensor)?.tensor.clone();
        if tensor.is_ready() {
            return Ok(atoms::ok().encode(env));
        }
        Ok(queue(env, tag, |reply| queue_make_ready(vec![tensor], &worker.0, reply)))
    };
    encode_result(env, submit())
}

/// Queues reading a tensor; the message is `{tag, {:ok, binary}}`.
#[rustler::nif]
fn read<'a>(env: Env<'a>, worker: Term<'a>, tensor: Term<'a>, tag: Term<'a>) -> Term<'a> {
    let submit = || {
        let worker = decode(worker)?;
        let input = tensor::decode("ToBinary", tensor)?;
        if let Some(foreign) = elsewhere(env, &worker.0, [input].into_iter()) {
            return Ok(foreign);
        }
        let tensor = input.tensor.clone();
        let read = |reply| worker.0.read(tensor.clone(), reply);
        Ok(queue_for_tensors(env, tag, std::slice::from_ref(&tensor), read))
    };
    encode_result(env, submit())
}

/// Queues loading a file; the message is `{tag, {:ok, {tensors, metadata}}}`.
#[rustler::nif]
fn load_file<'a>(env: Env<'a>, worker: Term<'a>, path: Term<'a>, tag: Term<'a>) -> Term<'a> {
    let submit = || {
        let worker = decode(worker)?;
        let path: String =
            path.decode().map_err(|_| wrong("Load", "file name", "a text in UTF-8", path))?;
        Ok(queue(env, tag, |reply| worker.0.load(path, reply)))
    };
    encode_result(env, submit())
}

fn cores(inputs: &[Option<Input>]) -> Vec<Option<Tensor>> {
    inputs.iter().map(|input| input.map(|input| input.tensor.clone())).collect()
}
