//! The rival of `bench/gpu.exs`: plain threads, each with a stream of its own, and nothing between them
//! and mlx-c.
//!
//! A step is decode-like: `x = x + tanh(x w)` for every layer, in bf16, for one row. Threads share the
//! weights and build their own graphs.
//!
//! `cargo run --release --package emily-core --example streams -- SECONDS LAYERS SIZE [WAY...] [STREAMS...]`
//!
//! A way is `ahead` (a step is scheduled before the one before it is waited for), `apart` (another thread
//! evaluates than the one that builds) or `kept` (what a step computes on its way lives until the next one has
//! been built): the last two tell what it costs to build elsewhere, and to let a garbage collector free.
//!
//! MLX is prepared as emily-core does it; with `MLX_AS_IT_COMES=1` in the environment it is not.

use emily_core::reaper;
use mlx_sys::{mlx_array, mlx_stream};
use std::ffi::c_int;
use std::hint::spin_loop;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

/// A handle that is freed. Threads share those that are evaluated.
struct Array(mlx_array);

// SAFETY: the arrays that threads share are evaluated and only read.
unsafe impl Send for Array {}
// SAFETY: as above.
unsafe impl Sync for Array {}

impl Drop for Array {
    fn drop(&mut self) {
        // SAFETY: ours alone and not used again.
        unsafe { mlx_sys::mlx_array_free(self.0) };
    }
}

#[derive(Clone, Copy)]
struct Stream(mlx_stream);

// SAFETY: one thread at a time uses a stream; the handle itself is only read.
unsafe impl Send for Stream {}

fn made(call: impl FnOnce(*mut mlx_array) -> c_int) -> Array {
    // SAFETY: makes an empty handle.
    let mut array = Array(unsafe { mlx_sys::mlx_array_new() });
    assert_eq!(call(&mut array.0), 0);
    array
}

fn eval(array: &Array) {
    // SAFETY: a live handle of this thread's stream.
    assert_eq!(unsafe { mlx_sys::mlx_array_eval(array.0) }, 0);
}

const BF16: u32 = mlx_sys::mlx_dtype__MLX_BFLOAT16;

fn random(shape: [c_int; 2], scale: f32, seed: u64, stream: Stream) -> Array {
    // SAFETY: live handles, and a shape of two sizes.
    let array = made(|res| unsafe {
        let mut key = mlx_sys::mlx_array_new();
        assert_eq!(mlx_sys::mlx_random_key(&mut key, seed), 0);
        let (sizes, rank) = (shape.as_ptr(), shape.len());
        let status = mlx_sys::mlx_random_normal(res, sizes, rank, BF16, 0.0, scale, key, stream.0);
        mlx_sys::mlx_array_free(key);
        status
    });
    eval(&array);
    array
}

/// How steps are taken.
#[derive(Clone, Copy, Default)]
struct Way {
    ahead: bool,
    apart: bool,
    kept: bool,
}

enum Work {
    /// Compute and wait.
    Evaluate,
    /// Schedule and do not wait.
    Schedule,
    /// Wait for what was scheduled.
    Wait,
}

fn perform(work: &Work, array: &Array) {
    // SAFETY: a live handle of this thread's stream.
    unsafe {
        match work {
            Work::Evaluate => assert_eq!(mlx_sys::mlx_array_eval(array.0), 0),
            Work::Wait => assert_eq!(mlx_sys::_mlx_array_wait(array.0), 0),
            Work::Schedule => {
                let arrays = mlx_sys::mlx_vector_array_new_value(array.0);
                assert_eq!(mlx_sys::mlx_async_eval(arrays), 0);
                mlx_sys::mlx_vector_array_free(arrays);
            }
        }
    }
}

/// Looks for what comes without sleeping.
fn next<T>(from: &Receiver<T>) -> Option<T> {
    loop {
        match from.try_recv() {
            Ok(found) => return Some(found),
            Err(std::sync::mpsc::TryRecvError::Disconnected) => return None,
            Err(std::sync::mpsc::TryRecvError::Empty) => spin_loop(),
        }
    }
}

/// Who evaluates.
enum Evaluator {
    Here,
    Apart(Sender<(Work, Arc<Array>)>, Receiver<()>),
}

impl Evaluator {
    fn of(way: Way, stream: Stream) -> Self {
        if !way.apart {
            return Evaluator::Here;
        }
        let (jobs, queue) = channel::<(Work, Arc<Array>)>();
        let (done, answers) = channel();
        thread::spawn(move || {
            // SAFETY: a live stream, on which this thread alone evaluates.
            unsafe { mlx_sys::mlx_set_default_stream({ stream }.0) };
            while let Some((work, array)) = next(&queue) {
                perform(&work, &array);
                drop(array);
                if !matches!(work, Work::Schedule) && done.send(()).is_err() {
                    return;
                }
            }
        });
        Evaluator::Apart(jobs, answers)
    }

    fn ask(&self, work: Work, array: &Arc<Array>) {
        match self {
            Evaluator::Here => perform(&work, array),
            Evaluator::Apart(jobs, answers) => {
                let waits = !matches!(work, Work::Schedule);
                jobs.send((work, Arc::clone(array))).expect("the evaluator lives");
                if waits {
                    next(answers).expect("the evaluator answers");
                }
            }
        }
    }
}

/// One stream's steps.
struct Steps<'a> {
    weights: &'a [Array],
    stream: Stream,
    way: Way,
    evaluator: Evaluator,
    /// What was scheduled and not waited for.
    before: Option<Arc<Array>>,
    kept: Vec<Array>,
}

impl<'a> Steps<'a> {
    fn new(weights: &'a [Array], stream: Stream, way: Way) -> Self {
        let evaluator = Evaluator::of(way, stream);
        Steps { weights, stream, way, evaluator, before: None, kept: Vec::new() }
    }

    /// Builds a step, and has it computed or, a step ahead, the one before.
    fn step(&mut self, x: &Array) -> Arc<Array> {
        let mut kept = Vec::new();
        let mut keep = |array| {
            if self.way.kept {
                kept.push(array);
            }
        };
        let mut last: Option<Array> = None;
        for w in self.weights {
            let from = last.as_ref().unwrap_or(x);
            let stream = self.stream.0;
            // SAFETY: live handles throughout.
            let (product, tanh, sum) = unsafe {
                let product = made(|res| mlx_sys::mlx_matmul(res, from.0, w.0, stream));
                let tanh = made(|res| mlx_sys::mlx_tanh(res, product.0, stream));
                let sum = made(|res| mlx_sys::mlx_add(res, from.0, tanh.0, stream));
                (product, tanh, sum)
            };
            keep(product);
            keep(tanh);
            if let Some(from) = last.replace(sum) {
                keep(from);
            }
        }
        self.kept = kept;
        let y = Arc::new(last.expect("there is a layer"));
        if self.way.ahead {
            self.evaluator.ask(Work::Schedule, &y);
            if let Some(before) = self.before.replace(Arc::clone(&y)) {
                self.evaluator.ask(Work::Wait, &before);
            }
        } else {
            self.evaluator.ask(Work::Evaluate, &y);
        }
        y
    }

    fn finish(&mut self) {
        if let Some(before) = self.before.take() {
            self.evaluator.ask(Work::Wait, &before);
        }
    }

    /// The result of 21 steps, each from the one before.
    fn chain(&mut self, x: &Array) -> f32 {
        let mut y = self.step(x);
        for _ in 0..20 {
            y = self.step(&y);
        }
        self.finish();
        sum(&y, self.stream)
    }
}

fn sum(x: &Array, stream: Stream) -> f32 {
    // SAFETY: live handles; the result is one f32 that the stream has computed.
    unsafe {
        let wide =
            made(|res| mlx_sys::mlx_astype(res, x.0, mlx_sys::mlx_dtype__MLX_FLOAT32, stream.0));
        let sum = made(|res| mlx_sys::mlx_sum(res, wide.0, false, stream.0));
        eval(&sum);
        let mut value = 0.0;
        assert_eq!(mlx_sys::mlx_array_item_float32(&mut value, sum.0), 0);
        value
    }
}

fn main() {
    let mut way = Way::default();
    let mut numbers = Vec::new();
    for word in std::env::args().skip(1) {
        match word.as_str() {
            "ahead" => way.ahead = true,
            "apart" => way.apart = true,
            "kept" => way.kept = true,
            number => numbers.push(number.parse::<usize>().expect("a number or a way")),
        }
    }
    let &[seconds, layers, size, ref counts @ ..] = numbers.as_slice() else {
        panic!("expected SECONDS LAYERS SIZE [WAY...] [STREAMS...]");
    };
    let counts = if counts.is_empty() { &[1, 2, 4, 8][..] } else { counts };
    if std::env::var_os("MLX_AS_IT_COMES").is_none() {
        reaper::start().expect("MLX starts");
    }
    // SAFETY: no evaluation runs while the streams are made.
    let streams: Vec<Stream> = unsafe {
        let mut device = mlx_sys::mlx_device_new();
        assert_eq!(mlx_sys::mlx_get_default_device(&mut device), 0);
        (0..8).map(|_| Stream(mlx_sys::mlx_stream_new_thread_unsafe(device))).collect()
    };
    let side = size as c_int;
    let scale = 1.0 / (size as f32).sqrt();
    // SAFETY: a live stream.
    unsafe { mlx_sys::mlx_set_default_stream(streams[0].0) };
    let weights: Arc<Vec<Array>> =
        Arc::new((0..layers).map(|n| random([side, side], scale, n as u64, streams[0])).collect());
    let x = Arc::new(random([1, side], 1.0, 1 << 40, streams[0]));
    let expected = Steps::new(&weights, streams[0], Way::default()).chain(&x);

    for &count in counts {
        let barrier = Arc::new(Barrier::new(count));
        let threads: Vec<_> = (0..count)
            .map(|n| {
                let (weights, x, barrier, stream) =
                    (Arc::clone(&weights), Arc::clone(&x), Arc::clone(&barrier), streams[n]);
                thread::spawn(move || {
                    // SAFETY: a live stream, of this thread alone.
                    unsafe { mlx_sys::mlx_set_default_stream({ stream }.0) };
                    let mut steps = Steps::new(&weights, stream, way);
                    let result = steps.chain(&x);
                    assert_eq!(result.to_bits(), expected.to_bits(), "not as on one stream");
                    barrier.wait();
                    let mut times = Vec::new();
                    let begin = Instant::now();
                    while begin.elapsed() < Duration::from_secs(seconds as u64) {
                        let start = Instant::now();
                        steps.step(&x);
                        times.push(start.elapsed());
                    }
                    steps.finish();
                    (times, begin.elapsed())
                })
            })
            .collect();
        let runs: Vec<_> = threads.into_iter().map(|t| t.join().expect("no panic")).collect();
        let rate: f64 =
            runs.iter().map(|(times, span)| times.len() as f64 / span.as_secs_f64()).sum();
        let mut all: Vec<Duration> = runs.into_iter().flat_map(|(times, _)| times).collect();
        all.sort();
        let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        println!(
            "rust {count} streams: {rate:.0} steps/s, p50 {:.3} ms, p99 {:.3} ms",
            at(0.5),
            at(0.99)
        );
    }
}
