//! What MLX keeps of fused programs. Alone in its process, because the memory of all threads is counted.

mod runtime;

use emily_core::dtype::Dtype;
use emily_core::op::Op;
use emily_core::program::{can_fuse, Input, Mode, Program, Step, Template};
use emily_core::reaper;
use emily_core::tensor::Tensor;
use emily_core::worker::Worker;
use runtime::{accepted, read_f32, tensor, vector, worker};
use std::sync::Arc;

/// x times the number, plus the number: a trace keeps the number's buffer.
fn program(worker: &Worker, number: f32) -> Arc<Program> {
    let apply = |op, inputs: [usize; 2]| Step::Apply(op, inputs.map(Some).to_vec(), 1);
    let steps = vec![apply(Op::Multiply, [0, 1]), apply(Op::Add, [2, 1])];
    let inputs = vec![Template { shape: vec![3], dtype: Dtype::Float32 }];
    let constants = vec![tensor(&[number], &[])];
    Program::new(inputs, constants, steps, vec![3], true, worker.home()).map(Arc::new).unwrap()
}

fn run(worker: &Worker, program: &Arc<Program>, x: &Tensor) -> Vec<f32> {
    let input = Input { tensor: x.clone(), donated: false };
    match accepted(|reply| worker.run(Arc::clone(program), vec![input], Mode::Wait, reply))
        .wait()
        .unwrap()
    {
        emily_core::reply::Value::Tensors(tensors) => read_f32(worker, &tensors[0]),
        other => panic!("a program answered {other:?}"),
    }
}

#[test]
fn a_trace_is_erased_with_its_program_and_with_its_thread() {
    let worker = worker();
    assert!(can_fuse(worker.device()), "the tests need g++ in PATH");
    let x = vector(&[1.0, 2.0, -3.0]);
    let active = || {
        reaper::flush();
        emily_core::memory::stats().unwrap().active
    };
    let before = active();

    let kept: Vec<_> = (0..10).map(|_| program(&worker, 2.0)).collect();
    for program in &kept {
        assert_eq!(run(&worker, program, &x), [4.0, 6.0, -4.0]);
    }
    assert!(active() > before);
    drop(kept);
    assert_eq!(active(), before);

    // The thread ends before the program.
    let last = program(&worker, 2.0);
    let other = runtime::worker();
    assert_eq!(run(&other, &last, &x), [4.0, 6.0, -4.0]);
    let ended = Arc::clone(&other);
    drop(other);
    runtime::until_ended(&ended);
    drop(last);
    assert_eq!(active(), before);
}
