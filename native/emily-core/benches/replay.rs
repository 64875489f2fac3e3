//! What replaying a program costs beside building the same graph by hand: `cargo bench --bench replay`.

use emily_core::device::Device;
use emily_core::dtype::Dtype;
use emily_core::error::Result;
use emily_core::op::Op;
use emily_core::program::{Input, Mode, Program, Step, Template};
use emily_core::reaper;
use emily_core::reply::{Recipient, Reply, Value};
use emily_core::tensor::Tensor;
use emily_core::worker::{Owner, Refused, Worker};
use std::sync::mpsc::{sync_channel, SyncSender};
use std::sync::Arc;
use std::time::Instant;

/// Lines are measured in turn, so often; the table shows the least and the median.
const ROUNDS: usize = 41;

/// Ops of a chain, iterations of a loop.
const COUNT: usize = 1_000;

struct Caller(SyncSender<Result<Value>>);

impl Recipient for Caller {
    fn is_waiting(&self) -> bool {
        true
    }

    fn deliver(self: Box<Self>, answer: Result<Value>) {
        // The caller waits for it.
        let _ = self.0.send(answer);
    }
}

fn wait(submit: impl FnOnce(Reply) -> Refused) -> Value {
    let (sender, answer) = sync_channel(1);
    assert!(submit(Reply::to(Caller(sender))).is_ok());
    answer.recv().unwrap().unwrap()
}

fn floats(numbers: &[f32]) -> Tensor {
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_ne_bytes()).collect();
    let shape: &[i64] = if numbers.len() == 1 { &[] } else { &[4] };
    Tensor::from_bytes(&bytes, shape, Dtype::Float32, Device::preferred()).unwrap()
}

fn integer(number: i32) -> Tensor {
    Tensor::from_bytes(&number.to_ne_bytes(), &[], Dtype::Int32, Device::preferred()).unwrap()
}

fn run(worker: &Worker, program: &Arc<Program>, inputs: &[&Tensor]) {
    let kept = |&tensor: &&Tensor| Input { tensor: tensor.clone(), donated: false };
    wait(|reply| {
        worker.run(Arc::clone(program), inputs.iter().map(kept).collect(), Mode::Wait, reply)
    });
}

fn apply(op: Op, inputs: [usize; 2]) -> Step {
    Step::Apply(op, inputs.iter().map(|&register| Some(register)).collect(), 1)
}

fn step_of_chain(index: usize) -> Step {
    let last = if index == 0 { 0 } else { index + 1 };
    if index.is_multiple_of(2) {
        apply(Op::Add, [last, 0])
    } else {
        apply(Op::Multiply, [last, 1])
    }
}

/// The chain built op by op and evaluated by one job: what no replay can be faster than.
fn by_hand(worker: &Worker, x: &Tensor, half: &Tensor) {
    let last = (0..COUNT).fold(x.clone(), |y, index| {
        let (op, other) = if index.is_multiple_of(2) { (Op::Add, x) } else { (Op::Multiply, half) };
        worker.build(&op, &[Some(&y), Some(other)]).unwrap()
    });
    wait(|reply| emily_core::worker::make_ready(vec![last], worker, reply));
}

fn looping(worker: &Worker) -> Arc<Program> {
    let program = |inputs: &[Template], constants, steps, outputs| {
        Arc::new(
            Program::new(inputs.to_vec(), constants, steps, outputs, false, worker.home()).unwrap(),
        )
    };
    let count = Template { shape: vec![], dtype: Dtype::Int32 };
    let four = Template { shape: vec![4], dtype: Dtype::Float32 };
    let inner = [count.clone(), four.clone(), count.clone(), four.clone()];
    let condition = program(&inner, vec![], vec![apply(Op::Less, [0, 2])], vec![4]);
    let steps = vec![apply(Op::Add, [0, 4]), apply(Op::Add, [1, 3]), apply(Op::Multiply, [7, 5])];
    let body = program(&inner, vec![integer(1), floats(&[0.5])], steps, vec![6, 8]);
    let step = Step::While { state: vec![0, 1], captures: vec![2, 1], condition, body };
    program(&[count.clone(), four, count], vec![], vec![step], vec![3, 4])
}

fn main() {
    reaper::start().unwrap();
    let device = Device::preferred();
    let worker = Owner::start(device, 1024).unwrap();
    let (x, half) = (floats(&[0.5, 0.25, 0.125, 1.0]), floats(&[0.5]));
    let (zero, limit) = (integer(0), integer(COUNT as i32));
    let four = || vec![Template { shape: vec![4], dtype: Dtype::Float32 }];
    let program = |constants, steps, outputs| {
        Arc::new(Program::new(four(), constants, steps, outputs, false, worker.home()).unwrap())
    };
    let chain =
        program(vec![half.clone()], (0..COUNT).map(step_of_chain).collect(), vec![COUNT + 1]);
    let one = program(vec![], vec![apply(Op::Add, [0, 0])], vec![1]);
    let identity = program(vec![], vec![], vec![0]);
    let loops = looping(&worker);

    let repeat = |count: usize, work: &dyn Fn()| (0..count).for_each(|_| work());
    let lines: [(&str, usize, &dyn Fn()); 7] = [
        ("a chain of 1,000 ops, per op: by hand", COUNT, &|| by_hand(&worker, &x, &half)),
        ("the same, replayed", COUNT, &|| run(&worker, &chain, &[&x])),
        ("1,000 iterations of a loop, per iteration", COUNT, &|| {
            run(&worker, &loops, &[&zero, &x, &limit]);
        }),
        ("a job that does nothing, there and back", 500, &|| {
            repeat(500, &|| drop(wait(|reply| worker.call(reply, |_| Ok(Value::Done)))));
        }),
        ("identity", 500, &|| repeat(500, &|| run(&worker, &identity, &[&x]))),
        ("one op by hand", 500, &|| {
            repeat(500, &|| {
                let sum = worker.build(&Op::Add, &[Some(&x), Some(&x)]).unwrap();
                wait(|reply| emily_core::worker::make_ready(vec![sum], &worker, reply));
            });
        }),
        ("one op replayed", 500, &|| repeat(500, &|| run(&worker, &one, &[&x]))),
    ];
    let mut times = vec![Vec::new(); lines.len()];
    for _ in 0..ROUNDS {
        for ((_, count, work), times) in lines.iter().zip(&mut times) {
            let begin = Instant::now();
            work();
            times.push(begin.elapsed().as_nanos() as f64 / 1e3 / *count as f64);
        }
    }
    println!("device {}; us, least and median of {ROUNDS}", device.name());
    for ((name, ..), mut times) in lines.iter().zip(times) {
        times.sort_by(f64::total_cmp);
        println!("{name:<48} {:>9.3} {:>9.3}", times[0], times[ROUNDS / 2]);
    }
}
