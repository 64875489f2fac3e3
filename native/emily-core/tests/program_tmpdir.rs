//! Fusing where MLX cannot write its kernels. Alone in its process, because it changes the environment.

#![cfg(unix)]

mod runtime;

use emily_core::device::Device;
use emily_core::dtype::Dtype;
use emily_core::error::Kind;
use emily_core::op::Op;
use emily_core::program::{can_fuse, Input, Mode, Program, Step, Template};
use emily_core::reaper;
use emily_core::worker::Owner;
use runtime::{accepted, vector};
use std::sync::Arc;

#[test]
fn a_folder_that_cannot_be_written_is_an_error_of_the_job() {
    reaper::start().unwrap();
    let worker = Owner::start(Device::Cpu, 8).unwrap();
    assert!(can_fuse(Device::Cpu), "the tests need g++ in PATH");
    let apply =
        |op, inputs: &[usize]| Step::Apply(op, inputs.iter().copied().map(Some).collect(), 1);
    let inputs = vec![Template { shape: vec![3], dtype: Dtype::Float32 }];
    let steps = vec![apply(Op::Add, &[0, 0]), apply(Op::Arctan, &[1]), apply(Op::Square, &[2])];
    let program = Program::new(inputs, vec![], steps, vec![3], true, worker.home()).unwrap();
    let program = Arc::new(program);

    std::env::set_var("TMPDIR", "/dev/null/nowhere");
    let run = || {
        let input = Input { tensor: vector(&[0.0, 0.25, 0.5]), donated: false };
        accepted(|reply| worker.run(Arc::clone(&program), vec![input], Mode::Wait, reply)).wait()
    };
    for _ in 0..2 {
        let error = run().unwrap_err();
        assert_eq!(error.kind(), Kind::Runtime);
        assert!(error.to_string().contains("/dev/null/nowhere"), "{error}");
    }
    // The worker goes on, and so does the program once there is a folder.
    std::env::remove_var("TMPDIR");
    assert!(run().is_ok());
}
