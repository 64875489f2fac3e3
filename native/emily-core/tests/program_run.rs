//! Runs of programs: questions in the middle, donated inputs, outputs that are only scheduled.

mod runtime;

use emily_core::dtype::Dtype;
use emily_core::error::{Error, Kind, Result};
use emily_core::op::{Axes, Op};
use emily_core::program::{Input, Mode, Program, Question, Run, Size, Step, Template};
use emily_core::reaper;
use emily_core::reply::Value;
use emily_core::tensor::Tensor;
use emily_core::worker::Worker;
use runtime::{accepted, device, read, read_f32, tensor, vector, worker, Gate};
use std::sync::Arc;

fn template(shape: &[i64], dtype: Dtype) -> Template {
    Template { shape: shape.to_vec(), dtype }
}

fn number() -> Template {
    template(&[], Dtype::Int32)
}

fn integer(number: i32) -> Tensor {
    Tensor::from_bytes(&number.to_ne_bytes(), &[], Dtype::Int32, device()).unwrap()
}

fn integer_of(worker: &Worker, tensor: &Tensor) -> i32 {
    i32::from_ne_bytes(read(worker, tensor).unwrap()[..].try_into().unwrap())
}

fn apply(op: Op, inputs: &[usize]) -> Step {
    Step::Apply(op, inputs.iter().map(|&register| Some(register)).collect(), 1)
}

fn call(inputs: &[usize], key: i64, outputs: &[Template]) -> Step {
    Step::Call { inputs: inputs.to_vec(), key, outputs: outputs.to_vec() }
}

fn program(
    worker: &Worker,
    inputs: &[Template],
    constants: &[Tensor],
    steps: Vec<Step>,
    outputs: &[usize],
) -> Arc<Program> {
    let (inputs, constants) = (inputs.to_vec(), constants.to_vec());
    Program::new(inputs, constants, steps, outputs.to_vec(), false, worker.home())
        .map(Arc::new)
        .unwrap()
}

fn begin(
    worker: &Worker,
    program: &Arc<Program>,
    inputs: &[(&Tensor, bool)],
    mode: Mode,
) -> Result<Value> {
    let input = |&(tensor, donated): &(&Tensor, bool)| Input { tensor: tensor.clone(), donated };
    let inputs = inputs.iter().map(input).collect();
    accepted(|reply| worker.run(Arc::clone(program), inputs, mode, reply)).wait()
}

fn resume(worker: &Worker, run: &Arc<Run>, answers: &[Tensor]) -> Result<Value> {
    accepted(|reply| worker.resume(Arc::clone(run), answers.to_vec(), reply)).wait()
}

#[track_caller]
fn question(value: Result<Value>) -> (Arc<Run>, i64, Vec<Tensor>) {
    match value.unwrap() {
        Value::Asks(Question { run, key, tensors }) => (Arc::new(run), key, tensors),
        other => panic!("expected a question, got {other:?}"),
    }
}

#[track_caller]
fn outputs(value: Result<Value>) -> Vec<Tensor> {
    match value.unwrap() {
        Value::Tensors(tensors) => tensors,
        other => panic!("expected outputs, got {other:?}"),
    }
}

/// count and sum: asks 1 about each count below the limit, and adds the answer to the sum.
fn summing(worker: &Worker) -> Arc<Program> {
    let inner = [number(), number(), number()];
    let condition = program(worker, &inner, &[], vec![apply(Op::Less, &[0, 2])], &[3]);
    let asking = program(worker, &[number()], &[], vec![call(&[0], 1, &[number()])], &[1]);
    let same = program(worker, &[number()], &[], vec![], &[0]);
    // Even counts are asked about, odd ones answer for themselves.
    let steps = vec![
        apply(Op::Remainder, &[0, 4]),
        Step::Cond { predicate: 5, captures: vec![0], on_true: same, on_false: asking },
        apply(Op::Add, &[1, 6]),
        apply(Op::Add, &[0, 3]),
    ];
    let body = program(worker, &inner, &[integer(1), integer(2)], steps, &[8, 7]);
    let step = Step::While { state: vec![0, 1], captures: vec![2], condition, body };
    program(worker, &inner, &[], vec![step], &[3, 4])
}

#[test]
fn a_run_is_suspended_in_a_branch_in_a_loop() {
    let worker = worker();
    let program = summing(&worker);
    assert_eq!(program.size(), Size { ops: 4, depth: 3 });
    let (zero, limit) = (integer(0), integer(5));
    let mut value =
        begin(&worker, &program, &[(&zero, false), (&zero, false), (&limit, false)], Mode::Wait);
    for count in [0, 2, 4] {
        let (run, key, shown) = question(value);
        assert_eq!((key, integer_of(&worker, &shown[0])), (1, count));
        // The worker is free meanwhile.
        Gate::hold(&worker).open().unwrap();
        value = resume(&worker, &run, &[integer(100 + count)]);
    }
    let outputs = outputs(value);
    assert_eq!(integer_of(&worker, &outputs[0]), 5);
    assert_eq!(integer_of(&worker, &outputs[1]), 100 + 1 + 102 + 3 + 104);
}

#[test]
fn an_answer_is_checked_and_taken_once() {
    let (first, second) = (worker(), worker());
    let asking = program(&first, &[number()], &[], vec![call(&[0], -7, &[number()])], &[1]);
    let (run, key, _) = question(begin(&first, &asking, &[(&integer(1), false)], Mode::Wait));
    assert_eq!(key, -7);
    for wrong in [vec![], vec![vector(&[1.0])], vec![integer(1), integer(2)]] {
        assert_eq!(run.check(&wrong).unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(resume(&first, &run, &wrong).unwrap_err().kind(), Kind::InvalidArgument);
    }
    let elsewhere = resume(&second, &run, &[integer(2)]).unwrap_err();
    assert!(elsewhere.to_string().contains("one that this stream has begun"), "{elsewhere}");

    let results = outputs(resume(&first, &run, &[integer(2)]));
    assert_eq!(integer_of(&first, &results[0]), 2);
    let again = resume(&first, &run, &[integer(2)]).unwrap_err();
    assert!(again.to_string().contains("has gone on"), "{again}");

    let (run, ..) = question(begin(&first, &asking, &[(&integer(1), false)], Mode::Wait));
    run.abandon();
    assert!(resume(&first, &run, &[integer(2)]).is_err());

    let (run, ..) = question(begin(&first, &asking, &[(&integer(1), false)], Mode::Wait));
    first.close();
    let answer = runtime::refused(|reply| first.resume(run, vec![integer(2)], reply));
    assert_eq!(answer, Error::Stopped);
}

/// Where the elements of a ready tensor lie.
fn address(worker: &Worker, tensor: &Tensor) -> *const u8 {
    read(worker, tensor).unwrap().as_ptr()
}

#[test]
fn a_donated_buffer_is_written_in_place_and_a_kept_one_is_not() {
    let worker = worker();
    let cache = template(&[64, 128], Dtype::Float32);
    let inputs = [cache, template(&[1, 128], Dtype::Float32), template(&[1], Dtype::Int32)];
    let update = apply(Op::SliceUpdateDynamic(Axes { axes: vec![0] }), &[0, 1, 2]);
    let writing = program(&worker, &inputs, &[], vec![update], &[3]);
    let row = tensor(&[1.0; 128], &[1, 128]);
    let at = Tensor::from_bytes(&3i32.to_ne_bytes(), &[1], Dtype::Int32, device()).unwrap();

    let zeros = tensor(&[0.0; 64 * 128], &[64, 128]);
    let before = address(&worker, &zeros);
    let arguments = [(&zeros, false), (&row, false), (&at, false)];
    let kept = outputs(begin(&worker, &writing, &arguments, Mode::Wait));
    assert_ne!(address(&worker, &kept[0]), before);
    assert!(read_f32(&worker, &zeros).iter().all(|&x| x == 0.0));

    for mode in [Mode::Wait, Mode::Schedule] {
        let zeros = tensor(&[0.0; 64 * 128], &[64, 128]);
        let before = address(&worker, &zeros);
        let arguments = [(&zeros, true), (&row, false), (&at, false)];
        let written = outputs(begin(&worker, &writing, &arguments, mode));
        assert_eq!(address(&worker, &written[0]), before);
        let numbers = read_f32(&worker, &written[0]);
        assert_eq!(numbers.iter().sum::<f32>(), 128.0);
        assert!(numbers[3 * 128..4 * 128].iter().all(|&x| x == 1.0));
        assert_eq!(
            worker.build(&Op::Exp, &[Some(&zeros)]).unwrap_err(),
            Error::Deallocated { op: "Exp", index: 0 }
        );
    }
}

#[test]
fn a_tensor_that_is_donated_and_read_by_others_stays_theirs() {
    let worker = worker();
    let input = [template(&[1024], Dtype::Float32)];
    let negative = program(&worker, &input, &[], vec![apply(Op::Negative, &[0])], &[1]);
    let x = vector(&[2.0; 1024]);
    let bytes = x.bytes().unwrap().expect("the test's tensors lie in the host's memory");
    let result = outputs(begin(&worker, &negative, &[(&x, true)], Mode::Wait));
    assert_eq!(read_f32(&worker, &result[0]), [-2.0; 1024]);
    assert_eq!(runtime::floats(&bytes), [2.0; 1024]);
}

#[test]
fn a_donated_tensor_that_is_two_inputs_stays_its_owners() {
    let worker = worker();
    let inputs = [template(&[2], Dtype::Float32), template(&[2], Dtype::Float32)];
    let sum = program(&worker, &inputs, &[], vec![apply(Op::Add, &[0, 1])], &[2]);
    let (x, y) = (vector(&[2.0, 3.0]), vector(&[5.0, 7.0]));
    for arguments in [[(&x, true), (&x, true)], [(&x, true), (&x, false)]] {
        let result = outputs(begin(&worker, &sum, &arguments, Mode::Wait));
        assert_eq!(read_f32(&worker, &result[0]), [4.0, 6.0]);
        assert_eq!(read_f32(&worker, &x), [2.0, 3.0]);
    }
    let result = outputs(begin(&worker, &sum, &[(&x, true), (&y, false)], Mode::Wait));
    assert_eq!(read_f32(&worker, &result[0]), [7.0, 10.0]);
    assert!(worker.build(&Op::Exp, &[Some(&x)]).is_err());
    assert_eq!(read_f32(&worker, &y), [5.0, 7.0]);
}

#[test]
fn scheduled_outputs_are_lazy_until_somebody_waits() {
    let worker = worker();
    let input = [template(&[2], Dtype::Float32)];
    let double = program(&worker, &input, &[], vec![apply(Op::Add, &[0, 0])], &[1]);
    let mut x = vector(&[1.0, -3.0]);
    for _ in 0..10 {
        x = outputs(begin(&worker, &double, &[(&x, true)], Mode::Schedule)).remove(0);
        assert!(!x.is_ready());
    }
    assert_eq!(read_f32(&worker, &x), [1024.0, -3072.0]);
    assert!(x.is_ready());

    // The slot's next worker finds it finished.
    let last = outputs(begin(&worker, &double, &[(&x, false)], Mode::Schedule)).remove(0);
    let ended = Arc::clone(&worker);
    drop(worker);
    runtime::until_ended(&ended);
    let next = runtime::worker();
    assert_eq!(read_f32(&next, &last), [2048.0, -6144.0]);
}

#[test]
fn programs_that_share_parts_are_checked_in_no_time() {
    let worker = worker();
    let yes = template(&[], Dtype::Bool);
    let mut shared = program(&worker, &[yes.clone(), number()], &[], vec![], &[1]);
    for _ in 0..62 {
        let captures = vec![0, 1];
        let (on_true, on_false) = (Arc::clone(&shared), Arc::clone(&shared));
        let step = Step::Cond { predicate: 0, captures, on_true, on_false };
        shared = program(&worker, &[yes.clone(), number()], &[], vec![step], &[2]);
    }
    assert_eq!(shared.size(), Size { ops: 0, depth: 63 });
    let yes = Tensor::from_bytes(&[1], &[], Dtype::Bool, device()).unwrap();
    let arguments = [(&yes, false), (&integer(9), false)];
    let result = outputs(begin(&worker, &shared, &arguments, Mode::Wait));
    assert_eq!(integer_of(&worker, &result[0]), 9);
    drop(shared);
    reaper::flush();
}
