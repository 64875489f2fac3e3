//! What the tests of the runtime have in common: callers that wait for answers, gates that hold a
//! worker, tensors from and to numbers.

#![allow(dead_code)] // each test file uses a part

use emily_core::device::Device;
use emily_core::dtype::Dtype;
use emily_core::error::Result;
use emily_core::op::{Op, Reduce};
use emily_core::reaper;
use emily_core::reply::{Recipient, Reply, Value};
use emily_core::tensor::{Bytes, Tensor};
use emily_core::worker::{make_ready, Owner, Refused, Worker};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;

/// Where the device's own streams are tested; the rest of the runtime is the same on all.
pub fn device() -> Device {
    Device::preferred()
}

pub fn worker() -> Owner {
    worker_with(64)
}

pub fn worker_with(capacity: usize) -> Owner {
    reaper::start().unwrap();
    Owner::start(device(), capacity).unwrap()
}

/// The caller's end of a reply.
pub struct Answer {
    answers: Receiver<Result<Value>>,
    waiting: Arc<AtomicBool>,
}

struct Caller {
    answers: Sender<Result<Value>>,
    waiting: Arc<AtomicBool>,
}

impl Recipient for Caller {
    fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    fn deliver(self: Box<Self>, answer: Result<Value>) {
        // The caller may have given up.
        let _ = self.answers.send(answer);
    }
}

pub fn reply() -> (Reply, Answer) {
    let (sender, answers) = channel();
    let waiting = Arc::new(AtomicBool::new(true));
    let caller = Caller { answers: sender, waiting: Arc::clone(&waiting) };
    (Reply::to(caller), Answer { answers, waiting })
}

impl Answer {
    /// The answer, which must come, and be the only one.
    #[track_caller]
    pub fn wait(self) -> Result<Value> {
        let answer = self.answers.recv().expect("a reply is answered");
        assert!(self.answers.recv().is_err(), "a reply is answered once");
        answer
    }

    /// Waits until the reply has gone without an answer.
    #[track_caller]
    pub fn wait_for_none(self) {
        assert!(self.answers.recv().is_err(), "nobody waits, so that nothing is answered");
    }

    pub fn give_up(&self) {
        self.waiting.store(false, Ordering::Release);
    }
}

/// Bytes of the process that are in memory, on Linux.
pub fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    // SAFETY: takes the name of a number.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize
}

/// Queues a job and returns where its answer comes.
#[track_caller]
pub fn accepted(submit: impl FnOnce(Reply) -> Refused) -> Answer {
    let (reply, answer) = reply();
    if let Err((reply, error)) = submit(reply) {
        reply.forget();
        panic!("a job was refused: {error}");
    }
    answer
}

/// Queues a job that is expected not to be taken; returns why.
#[track_caller]
pub fn refused(submit: impl FnOnce(Reply) -> Refused) -> emily_core::error::Error {
    let (reply, answer) = reply();
    let Err((reply, error)) = submit(reply) else { panic!("a job was taken") };
    reply.forget();
    answer.wait_for_none();
    error
}

pub fn run(worker: &Worker, work: impl FnOnce() -> Result<Value> + Send + 'static) -> Answer {
    accepted(|reply| worker.call(reply, |_| work()))
}

/// A job that holds its worker until it is opened.
pub struct Gate {
    open: Sender<()>,
    answer: Answer,
}

impl Gate {
    /// Returns once the job runs.
    pub fn hold(worker: &Worker) -> Gate {
        let (started, has_started) = channel();
        let (open, opened) = channel::<()>();
        let answer = run(worker, move || {
            started.send(()).unwrap();
            // Opened, or the gate is gone.
            let _ = opened.recv();
            Ok(Value::Done)
        });
        has_started.recv().unwrap();
        Gate { open, answer }
    }

    pub fn open(self) -> Result<Value> {
        self.open.send(()).unwrap();
        self.answer.wait()
    }
}

/// Makes tensors of one slot ready, where necessary, as a caller of `guest` does.
pub fn ready(tensors: &[&Tensor], guest: &Worker) -> Result<()> {
    let tensors = tensors.iter().map(|&tensor| tensor.clone()).collect();
    accepted(|reply| make_ready(tensors, guest, reply)).wait().map(|value| {
        assert!(matches!(value, Value::Done));
    })
}

/// Builds an op on a worker, with inputs from anywhere.
pub fn build(worker: &Worker, op: &Op, inputs: &[&Tensor]) -> Result<Tensor> {
    for input in inputs {
        if !input.is_usable_in(worker.slot()) {
            ready(&[input], worker)?;
        }
    }
    let inputs: Vec<_> = inputs.iter().map(|&input| Some(input)).collect();
    worker.build(op, &inputs)
}

/// Reads a tensor of any home through a worker.
pub fn read(worker: &Worker, tensor: &Tensor) -> Result<Bytes> {
    if !tensor.is_usable_in(worker.slot()) {
        ready(&[tensor], worker)?;
    }
    accepted(|reply| worker.read(tensor.clone(), reply)).wait().map(|value| match value {
        Value::Bytes(bytes) => bytes,
        other => panic!("read answered {other:?}"),
    })
}

pub fn read_f32(worker: &Worker, tensor: &Tensor) -> Vec<f32> {
    floats(&read(worker, tensor).unwrap())
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|chunk| f32::from_ne_bytes(chunk.try_into().unwrap())).collect()
}

/// A ready tensor.
pub fn tensor(numbers: &[f32], shape: &[i64]) -> Tensor {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
    Tensor::from_bytes(&bytes, shape, Dtype::Float32, device()).unwrap()
}

pub fn vector(numbers: &[f32]) -> Tensor {
    tensor(numbers, &[numbers.len() as i64])
}

/// A ready matrix of numbers that differ, between -1 and 1.
pub fn matrix(rows: usize, columns: usize) -> Tensor {
    let numbers: Vec<f32> =
        (0..rows * columns).map(|i| ((i * 7919 + 13) % 2003) as f32 / 1001.5 - 1.0).collect();
    tensor(&numbers, &[rows as i64, columns as i64])
}

/// Waits until a worker's thread has ended and been joined.
pub fn until_ended(worker: &Arc<Worker>) {
    // The thread holds the worker; its handle goes to the reaper after its last answer.
    while Arc::strong_count(worker) > 1 {
        reaper::flush();
    }
    reaper::flush();
}

fn sum() -> Op {
    Op::Sum(Reduce { axes: vec![-1], keep_axes: true })
}

/// exp(x x / 8) summed along rows: several nodes, of which only the last is held.
pub fn chain(worker: &Worker, x: &Tensor) -> Tensor {
    let product = build(worker, &Op::Matmul, &[x, x]).unwrap();
    let scaled = build(worker, &Op::Multiply, &[&product, &vector(&[0.125])]).unwrap();
    let exp = build(worker, &Op::Exp, &[&scaled]).unwrap();
    build(worker, &sum(), &[&exp]).unwrap()
}

/// The bytes of a chain evaluated alone.
pub fn chain_alone(x: &Tensor) -> Vec<u8> {
    let worker = worker();
    read(&worker, &chain(&worker, x)).unwrap().to_vec()
}
