//! Programs against hand-computed numbers, and what is refused before it runs.

mod runtime;

use emily_core::dtype::Dtype;
use emily_core::error::{Error, Kind, Result};
use emily_core::op::{Cast, Op};
use emily_core::program::{Input, Mode, Program, Size, Step, Template};
use emily_core::reply::Value;
use emily_core::tensor::Tensor;
use emily_core::worker::Worker;
use runtime::{accepted, device, floats, matrix, read, read_f32, vector, worker};
use std::sync::Arc;

fn template(shape: &[i64], dtype: Dtype) -> Template {
    Template { shape: shape.to_vec(), dtype }
}

fn apply(op: Op, inputs: &[usize]) -> Step {
    Step::Apply(op, inputs.iter().map(|&register| Some(register)).collect(), 1)
}

fn scalar_i32(number: i32) -> Tensor {
    Tensor::from_bytes(&number.to_ne_bytes(), &[], Dtype::Int32, device()).unwrap()
}

fn scalar_f32(number: f32) -> Tensor {
    Tensor::from_bytes(&number.to_ne_bytes(), &[], Dtype::Float32, device()).unwrap()
}

fn program(
    worker: &Worker,
    inputs: Vec<Template>,
    constants: Vec<Tensor>,
    steps: Vec<Step>,
    outputs: Vec<usize>,
) -> Result<Arc<Program>> {
    Program::new(inputs, constants, steps, outputs, false, worker.home()).map(Arc::new)
}

fn kept(inputs: &[&Tensor]) -> Vec<Input> {
    inputs.iter().map(|&input| Input { tensor: input.clone(), donated: false }).collect()
}

fn run(worker: &Worker, program: &Arc<Program>, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    let inputs = kept(inputs);
    let answer =
        accepted(|reply| worker.run(Arc::clone(program), inputs, Mode::Wait, reply)).wait()?;
    match answer {
        Value::Tensors(tensors) => Ok(tensors),
        other => panic!("a program answered {other:?}"),
    }
}

fn i32_of(worker: &Worker, tensor: &Tensor) -> i32 {
    i32::from_ne_bytes(read(worker, tensor).unwrap()[..].try_into().unwrap())
}

/// The state `{count, value}`; registers behind it are the captures `{limit}`.
fn doubling(worker: &Worker) -> Arc<Program> {
    let state = vec![template(&[], Dtype::Int32), template(&[2], Dtype::Float32)];
    let inner = [state.clone(), vec![template(&[], Dtype::Int32)]].concat();
    let condition =
        program(worker, inner.clone(), vec![], vec![apply(Op::Less, &[0, 2])], vec![3]).unwrap();
    let steps = vec![apply(Op::Add, &[0, 3]), apply(Op::Add, &[1, 1])];
    let body = program(worker, inner, vec![scalar_i32(1)], steps, vec![4, 5]).unwrap();
    let inputs = [state, vec![template(&[], Dtype::Int32)]].concat();
    let step = Step::While { state: vec![0, 1], captures: vec![2], condition, body };
    program(worker, inputs, vec![], vec![step], vec![3, 4]).unwrap()
}

#[test]
fn ops_run_in_order_and_outputs_may_be_inputs_and_constants() {
    let worker = worker();
    let steps = vec![apply(Op::Multiply, &[0, 1]), apply(Op::Add, &[2, 0])];
    let inputs = vec![template(&[3], Dtype::Float32)];
    let made = program(&worker, inputs, vec![scalar_f32(10.0)], steps, vec![3, 0, 1, 3]).unwrap();
    assert_eq!(made.size(), Size { ops: 2, depth: 1 });

    let outputs = run(&worker, &made, &[&vector(&[1.0, 2.0, 3.0])]).unwrap();
    assert!(outputs.iter().all(Tensor::is_ready));
    let numbers: Vec<_> = outputs.iter().map(|output| read_f32(&worker, output)).collect();
    let sums = vec![11.0, 22.0, 33.0];
    assert_eq!(numbers, [sums.clone(), vec![1.0, 2.0, 3.0], vec![10.0], sums]);
}

#[test]
fn ops_with_several_outputs_fill_several_registers() {
    let worker = worker();
    let steps = vec![Step::Apply(Op::LinalgQr, vec![Some(0)], 2), apply(Op::Matmul, &[1, 2])];
    let inputs = vec![template(&[4, 4], Dtype::Float32)];
    let made = program(&worker, inputs, vec![], steps, vec![3]).unwrap();

    let a = matrix(4, 4);
    let product = read_f32(&worker, &run(&worker, &made, &[&a]).unwrap()[0]);
    for (got, expected) in product.iter().zip(read_f32(&worker, &a)) {
        assert!((got - expected).abs() < 1e-5, "{got} {expected}");
    }
}

#[test]
fn a_loop_runs_while_its_condition_holds() {
    let worker = worker();
    let made = doubling(&worker);
    for (limit, count, value) in [(10, 10, 1024.0), (1, 1, 2.0), (0, 0, 1.0)] {
        let inputs = [&scalar_i32(0), &vector(&[1.0, -1.0]), &scalar_i32(limit)];
        let outputs = run(&worker, &made, &inputs).unwrap();
        assert_eq!(i32_of(&worker, &outputs[0]), count);
        assert_eq!(read_f32(&worker, &outputs[1]), [value, -value]);
    }
}

#[test]
fn a_loop_leaves_its_inputs_as_they_were() {
    let worker = worker();
    let made = doubling(&worker);
    let start = vector(&[1.0, 3.0]);
    for _ in 0..3 {
        let outputs = run(&worker, &made, &[&scalar_i32(0), &start, &scalar_i32(3)]).unwrap();
        assert_eq!(read_f32(&worker, &outputs[1]), [8.0, 24.0]);
    }
    assert_eq!(read_f32(&worker, &start), [1.0, 3.0]);
}

#[test]
fn a_condition_takes_one_branch() {
    let worker = worker();
    let one = vec![template(&[2], Dtype::Float32)];
    let on_true =
        program(&worker, one.clone(), vec![], vec![apply(Op::Negative, &[0])], vec![1]).unwrap();
    let on_false = program(&worker, one, vec![], vec![apply(Op::Square, &[0])], vec![1]).unwrap();
    let inputs = vec![template(&[], Dtype::Int32), template(&[2], Dtype::Float32)];
    let step = Step::Cond { predicate: 0, captures: vec![1], on_true, on_false };
    let made = program(&worker, inputs, vec![], vec![step], vec![2]).unwrap();

    for (predicate, expected) in [(1, [-3.0, 4.0]), (-5, [-3.0, 4.0]), (0, [9.0, 16.0])] {
        let outputs =
            run(&worker, &made, &[&scalar_i32(predicate), &vector(&[3.0, -4.0])]).unwrap();
        assert_eq!(read_f32(&worker, &outputs[0]), expected, "{predicate}");
    }
}

#[test]
fn wrong_programs_are_refused() {
    let worker = worker();
    let float = || vec![template(&[3], Dtype::Float32)];
    let refused = |inputs, steps, outputs| {
        let error = program(&worker, inputs, vec![], steps, outputs).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        error.to_string()
    };

    let text = refused(float(), vec![apply(Op::Add, &[0, 1])], vec![0]);
    assert!(text.contains("program: wrong register") && text.ends_with("got 1"), "{text}");
    assert!(refused(float(), vec![], vec![1]).contains("wrong output"));
    assert!(refused(float(), vec![apply(Op::Add, &[0])], vec![1]).contains("add: wrong number"));
    assert!(refused(float(), vec![apply(Op::BitwiseAnd, &[0, 0])], vec![1]).contains("bitwise_and"));
    let two_expected = vec![Step::Apply(Op::Exp, vec![Some(0)], 2)];
    assert!(refused(float(), two_expected, vec![1]).contains("number of outputs"));
    refused(vec![template(&[-1], Dtype::Float32)], vec![], vec![0]);
    refused(vec![template(&[1 << 31], Dtype::Float32)], vec![], vec![0]);
}

#[test]
fn a_state_and_branches_keep_their_types() {
    let worker = worker();
    let float = vec![template(&[], Dtype::Float32)];
    let to_int = apply(Op::Astype(Cast { dtype: Dtype::Int32 }), &[0]);
    let same = program(&worker, float.clone(), vec![], vec![], vec![0]).unwrap();
    let cast = program(&worker, float.clone(), vec![], vec![to_int], vec![1]).unwrap();
    let none = program(&worker, float.clone(), vec![], vec![], vec![]).unwrap();

    let steps = |condition: &Arc<Program>, body: &Arc<Program>| Step::While {
        state: vec![0],
        captures: vec![],
        condition: Arc::clone(condition),
        body: Arc::clone(body),
    };
    let refused = |step| program(&worker, float.clone(), vec![], vec![step], vec![1]).unwrap_err();
    assert!(refused(steps(&same, &cast)).to_string().contains("wrong state"));
    assert!(refused(steps(&none, &same)).to_string().contains("wrong condition"));

    let branches = Step::Cond { predicate: 0, captures: vec![0], on_true: same, on_false: cast };
    assert!(refused(branches).to_string().contains("wrong branches"));
}

#[test]
fn a_run_checks_its_inputs() {
    let worker = worker();
    let inputs = vec![template(&[2], Dtype::Float32)];
    let made = program(&worker, inputs, vec![], vec![apply(Op::Exp, &[0])], vec![1]).unwrap();
    for inputs in [vec![], vec![scalar_i32(1)], vec![vector(&[1.0; 3])]] {
        let inputs: Vec<_> = inputs.iter().collect();
        assert_eq!(run(&worker, &made, &inputs).unwrap_err().kind(), Kind::InvalidArgument);
    }
    assert_eq!(
        read_f32(&worker, &run(&worker, &made, &[&vector(&[0.0; 2])]).unwrap()[0]),
        [1.0; 2]
    );
}

#[test]
fn a_loop_without_an_end_stops_when_nobody_waits_and_when_the_worker_is_closed() {
    let endless = |worker: &Worker| {
        let state = vec![template(&[], Dtype::Float32)];
        let always = program(worker, state.clone(), vec![scalar_i32(1)], vec![], vec![1]).unwrap();
        let body =
            program(worker, state.clone(), vec![], vec![apply(Op::Sin, &[0])], vec![1]).unwrap();
        let step = Step::While { state: vec![0], captures: vec![], condition: always, body };
        program(worker, state, vec![], vec![step], vec![1]).unwrap()
    };

    let first = worker();
    let made = endless(&first);
    let answer = accepted(|reply| {
        first.run(Arc::clone(&made), kept(&[&scalar_f32(1.0)]), Mode::Wait, reply)
    });
    answer.give_up();
    // The worker is free again: a job behind the loop is answered.
    assert!(accepted(|reply| first.call(reply, |_| Ok(Value::Done))).wait().is_ok());

    let answer = accepted(|reply| {
        first.run(Arc::clone(&made), kept(&[&scalar_f32(1.0)]), Mode::Wait, reply)
    });
    first.close();
    assert_eq!(answer.wait().unwrap_err(), Error::Stopped);
}

#[test]
fn one_program_runs_on_four_workers_at_once_with_the_same_bits() {
    let first = worker();
    let inputs = vec![template(&[64, 64], Dtype::Float32)];
    let steps = vec![
        apply(Op::Matmul, &[0, 1]),
        apply(Op::Tanh, &[2]),
        apply(Op::Matmul, &[3, 0]),
        apply(Op::Add, &[4, 1]),
    ];
    let made = program(&first, inputs, vec![matrix(64, 64)], steps, vec![5]).unwrap();
    let x = matrix(64, 64);
    let serial = read(&first, &run(&first, &made, &[&x]).unwrap()[0]).unwrap().to_vec();
    assert!(floats(&serial).iter().any(|number| *number != 0.0));

    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let own = worker();
                for _ in 0..250 {
                    let output = &run(&own, &made, &[&x]).unwrap()[0];
                    assert!(read(&own, output).unwrap()[..] == serial[..]);
                }
            });
        }
    });
}
