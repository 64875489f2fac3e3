//! What building an op costs, and what a worker adds: `cargo bench --package emily-core`.

use emily_core::build::Build;
use emily_core::device::Device;
use emily_core::dtype::Dtype;
use emily_core::error::Result;
use emily_core::op::Op;
use emily_core::reaper;
use emily_core::reply::{Recipient, Reply, Value};
use emily_core::tensor::Tensor;
use emily_core::worker::{make_ready, Owner, Worker};
use std::sync::mpsc::{sync_channel, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

/// Each line is measured so often; the table shows the median and the extremes.
const SAMPLES: usize = 21;

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

fn wait(submit: impl FnOnce(Reply) -> emily_core::worker::Refused) {
    let (sender, answer) = sync_channel(1);
    assert!(submit(Reply::to(Caller(sender))).is_ok());
    answer.recv().unwrap().unwrap();
}

/// Prints one line: time per call of `work`, which does `count` calls.
fn line(name: &str, count: usize, mut work: impl FnMut()) {
    work();
    let mut times: Vec<Duration> = (0..SAMPLES)
        .map(|_| {
            let begin = Instant::now();
            work();
            begin.elapsed() / count as u32
        })
        .collect();
    times.sort();
    let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
    println!(
        "{name:<48} {:>9.3} {:>9.3} {:>9.3}",
        micros(times[SAMPLES / 2]),
        micros(times[0]),
        micros(times[SAMPLES - 1])
    );
}

fn add(worker: &Worker, a: &Tensor, b: &Tensor) -> Tensor {
    worker.build(&Op::Add, &[Some(a), Some(b)]).unwrap()
}

fn evaluate(worker: &Worker, tensor: Tensor) {
    wait(|reply| make_ready(vec![tensor], worker, reply));
}

fn main() {
    reaper::start().unwrap();
    let device = Device::preferred();
    let worker = Owner::start(device, 1024).unwrap();
    let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_ne_bytes()).collect();
    let x = Tensor::from_bytes(&bytes, &[4], Dtype::Float32, device).unwrap();

    println!("device {}, tensors of 4 f32; us per call", device.name());
    println!("{:<48} {:>9} {:>9} {:>9}", "", "median", "least", "most");
    // The floor: the same node without a tensor of ours, on this thread's own stream.
    let build = Build::for_this_thread();
    let array = mlx_rs::Array::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[4]);
    line("add, an MLX array alone", 10_000, || {
        for _ in 0..10_000 {
            Op::Add.build(&build, &[Some(&array), Some(&array)]).unwrap();
        }
    });
    line("add, a tensor on a worker's stream", 10_000, || {
        for _ in 0..10_000 {
            add(&worker, &x, &x);
        }
    });
    line("add in a chain of 20, per op, evaluated at its end", 20 * 100, || {
        for _ in 0..100 {
            let last = (0..20).fold(x.clone(), |sum, _| add(&worker, &sum, &x));
            evaluate(&worker, last);
        }
    });
    line("a job that does nothing, there and back", 1_000, || {
        for _ in 0..1_000 {
            wait(|reply| worker.call(reply, |_| Ok(Value::Done)));
        }
    });
    line("add, evaluated", 1_000, || {
        for _ in 0..1_000 {
            evaluate(&worker, add(&worker, &x, &x));
        }
    });
    line("add, read", 1_000, || {
        for _ in 0..1_000 {
            let sum = add(&worker, &x, &x);
            wait(|reply| worker.read(sum, reply));
        }
    });
    line("bytes of a ready tensor", 10_000, || {
        for _ in 0..10_000 {
            assert!(device != Device::Cpu || x.bytes().unwrap().is_some());
        }
    });
    for workers in [2, 4] {
        let owners: Vec<_> = (0..workers).map(|_| Owner::start(device, 1024).unwrap()).collect();
        line(&format!("add, evaluated, by {workers} workers at once"), 500 * workers, || {
            thread::scope(|scope| {
                for owner in &owners {
                    scope.spawn(|| {
                        for _ in 0..500 {
                            evaluate(owner, add(owner, &x, &x));
                        }
                    });
                }
            });
        });
    }
    line("a worker made, used and dropped", 100, || {
        for _ in 0..100 {
            let short = Owner::start(device, 16).unwrap();
            evaluate(&short, add(&short, &x, &x));
        }
    });
}
