//! Fused programs beside the same programs op by op.

mod runtime;

use emily_core::dtype::Dtype;
use emily_core::op::{ArgExtreme, Axis, Cast, Epsilon, Op, Reduce, RopeInt};
use emily_core::program::{can_fuse, Input, Mode, Program, Step, Template};
use emily_core::reply::Value;
use emily_core::tensor::Tensor;
use emily_core::worker::Worker;
use runtime::{accepted, device, matrix, read_f32, tensor, vector, worker};
use std::sync::Arc;

fn template(shape: &[i64], dtype: Dtype) -> Template {
    Template { shape: shape.to_vec(), dtype }
}

fn floats(shape: &[i64]) -> Template {
    template(shape, Dtype::Float32)
}

fn apply(op: Op, inputs: &[usize]) -> Step {
    Step::Apply(op, inputs.iter().map(|&register| Some(register)).collect(), 1)
}

fn scalar(number: f32) -> Tensor {
    tensor(&[number], &[])
}

fn integer(number: i32) -> Tensor {
    Tensor::from_bytes(&number.to_ne_bytes(), &[], Dtype::Int32, device()).unwrap()
}

struct Recipe {
    inputs: Vec<Template>,
    constants: Vec<Tensor>,
    steps: Vec<Step>,
    outputs: Vec<usize>,
}

impl Recipe {
    fn program(&self, worker: &Worker, is_fused: bool) -> Arc<Program> {
        let Recipe { inputs, constants, steps, outputs } = self;
        let (inputs, constants) = (inputs.clone(), constants.clone());
        Program::new(inputs, constants, steps.clone(), outputs.clone(), is_fused, worker.home())
            .map(Arc::new)
            .unwrap()
    }
}

fn run(worker: &Worker, program: &Arc<Program>, inputs: &[&Tensor]) -> Vec<Tensor> {
    let kept = |&tensor: &&Tensor| Input { tensor: tensor.clone(), donated: false };
    let inputs = inputs.iter().map(kept).collect();
    match accepted(|reply| worker.run(Arc::clone(program), inputs, Mode::Wait, reply))
        .wait()
        .unwrap()
    {
        Value::Tensors(tensors) => tensors,
        other => panic!("a program answered {other:?}"),
    }
}

/// The distance of two floats in units of the last place.
fn ulps(a: f32, b: f32) -> u32 {
    let ordered = |x: f32| {
        let bits = x.to_bits() as i32;
        if bits < 0 {
            i32::MIN - bits
        } else {
            bits
        }
    };
    ordered(a).abs_diff(ordered(b))
}

#[track_caller]
fn same(worker: &Worker, recipe: &Recipe, inputs: &[&Tensor]) {
    let plain = run(worker, &recipe.program(worker, false), inputs);
    let fused = recipe.program(worker, true);
    // Once traced, once from the cache.
    for _ in 0..2 {
        for (plain, fused) in plain.iter().zip(run(worker, &fused, inputs)) {
            assert_eq!(plain.shape(), fused.shape());
            let (plain, fused) = (read_f32(worker, plain), read_f32(worker, &fused));
            assert!(plain.iter().any(|&x| x != 0.0), "{plain:?}");
            for (&a, &b) in plain.iter().zip(&fused) {
                assert!(ulps(a, b) <= 4, "{a} {b}");
            }
        }
    }
}

/// Elementwise ops around a product and a reduction, with a single number and a row for constants.
fn block() -> Recipe {
    Recipe {
        inputs: vec![floats(&[8, 8]), floats(&[8, 8])],
        constants: vec![scalar(0.75), vector(&[0.5, -1.0, 2.0, 0.25, 1.0, 3.0, -0.5, 1.5])],
        steps: vec![
            apply(Op::Multiply, &[0, 2]),
            apply(Op::Add, &[4, 3]),
            apply(Op::Tanh, &[5]),
            apply(Op::Matmul, &[6, 1]),
            apply(Op::Sum(Reduce { axes: vec![0], keep_axes: true }), &[7]),
            apply(Op::Subtract, &[7, 8]),
            apply(Op::Multiply, &[9, 2]),
        ],
        outputs: vec![10, 5, 0],
    }
}

#[test]
fn fused_ops_give_the_same_numbers() {
    let worker = worker();
    assert!(can_fuse(worker.device()), "the tests need g++ in PATH");
    let (a, b) = (matrix(8, 8), matrix(8, 8));
    same(&worker, &block(), &[&a, &b]);
    // One array for both inputs.
    same(&worker, &block(), &[&a, &a]);
}

/// MLX joins equal nodes where it compiles.
#[test]
fn ops_that_differ_in_an_attribute_stay_two() {
    let worker = worker();
    let cast = |dtype| Op::Astype(Cast { dtype });
    let extreme = |greatest, last, dtype| {
        Op::ArgExtreme(ArgExtreme { axis: 1, keep_axis: false, greatest, last, dtype })
    };
    let norm = |eps| Op::FastRmsNorm(Epsilon { eps });
    let rope = |offset, base| {
        let (traditional, scale, base) = (false, 1.0, Some(base));
        Op::FastRopeInt(RopeInt { dims: 4, traditional, base, scale, offset })
    };
    let pairs = [
        [cast(Dtype::Int8), cast(Dtype::Int16)],
        [extreme(true, false, Dtype::Int32), extreme(false, false, Dtype::Int32)],
        [extreme(true, false, Dtype::Int32), extreme(true, true, Dtype::Int32)],
        [norm(1e-3), norm(100.0)],
        [rope(1, 10.0), rope(1, 100.0)],
        [rope(1, 10.0), rope(2, 10.0)],
    ];
    let x = tensor(
        &[300.5, 2.0, 300.5, -1.0, 7.0, 8.0, 9.0, -9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 0.5],
        &[4, 4],
    );
    for [a, b] in pairs {
        let steps = vec![
            apply(a, &[0]),
            apply(b, &[0]),
            apply(cast(Dtype::Float32), &[1]),
            apply(cast(Dtype::Float32), &[2]),
            apply(Op::Subtract, &[3, 4]),
        ];
        let (inputs, constants) = (vec![floats(&[4, 4])], Vec::new());
        same(&worker, &Recipe { inputs, constants, steps, outputs: vec![5] }, &[&x]);
    }
    let take = |axis| apply(Op::Take(Axis { axis }), &[0, 1]);
    let recipe = Recipe {
        inputs: vec![floats(&[4, 4]), template(&[], Dtype::Int32)],
        constants: Vec::new(),
        steps: vec![take(0), take(1), apply(Op::Subtract, &[2, 3])],
        outputs: vec![4],
    };
    same(&worker, &recipe, &[&x, &integer(2)]);
}

#[test]
fn a_constant_may_be_an_input_too() {
    let worker = worker();
    let number = scalar(3.0);
    let row = vector(&[1.0, 2.0]);
    let recipe = Recipe {
        inputs: vec![floats(&[]), floats(&[2])],
        constants: vec![number.clone(), row.clone()],
        steps: vec![
            apply(Op::Add, &[0, 2]),
            apply(Op::Multiply, &[4, 1]),
            apply(Op::Multiply, &[5, 3]),
        ],
        outputs: vec![6],
    };
    same(&worker, &recipe, &[&number, &row]);
}

#[test]
fn what_only_passes_through_and_what_nobody_reads() {
    let worker = worker();
    let recipe = Recipe {
        inputs: vec![floats(&[2])],
        constants: vec![scalar(2.0)],
        steps: vec![
            apply(Op::Multiply, &[0, 1]),
            apply(Op::Exp, &[2]),
            apply(Op::StopGradient, &[0]),
            apply(Op::Negative, &[2]),
        ],
        outputs: vec![4, 5, 5, 1, 0],
    };
    same(&worker, &recipe, &[&vector(&[1.0, -2.0])]);
}

#[test]
fn ops_with_several_outputs_are_fused_too() {
    let worker = worker();
    let recipe = Recipe {
        inputs: vec![floats(&[4, 4])],
        constants: vec![scalar(2.0)],
        steps: vec![
            apply(Op::Multiply, &[0, 1]),
            Step::Apply(Op::LinalgQr, vec![Some(2)], 2),
            apply(Op::Matmul, &[3, 4]),
            apply(Op::Concatenate(Axis { axis: 0 }), &[5, 3]),
        ],
        outputs: vec![6, 4],
    };
    same(
        &worker,
        &recipe,
        &[&tensor(
            &[4.0, 1.0, 0.5, 2.0, 1.0, 3.0, 0.25, 1.0, 0.5, 0.25, 5.0, 0.125, 2.0, 1.0, 0.125, 6.0],
            &[4, 4],
        )],
    );
}

#[test]
fn bodies_of_loops_and_branches_are_fused() {
    let worker = worker();
    let loops = |is_fused: bool| {
        let inner = vec![template(&[], Dtype::Int32), floats(&[3]), floats(&[3])];
        let condition = Recipe {
            inputs: inner.clone(),
            constants: vec![integer(1), integer(21)],
            steps: vec![apply(Op::Add, &[0, 3]), apply(Op::Less, &[5, 4])],
            outputs: vec![6],
        };
        let body = Recipe {
            inputs: inner.clone(),
            constants: vec![integer(1), scalar(0.5)],
            steps: vec![
                apply(Op::Add, &[0, 3]),
                apply(Op::Add, &[1, 2]),
                apply(Op::Multiply, &[6, 4]),
                apply(Op::Sin, &[7]),
            ],
            outputs: vec![5, 8],
        };
        let step = Step::While {
            state: vec![0, 1],
            captures: vec![2],
            condition: condition.program(&worker, is_fused),
            body: body.program(&worker, is_fused),
        };
        let recipe =
            Recipe { inputs: inner, constants: vec![], steps: vec![step], outputs: vec![3, 4] };
        let program = recipe.program(&worker, is_fused);
        let (count, x) = (integer(0), vector(&[0.5, 1.0, -1.0]));
        let outputs = run(&worker, &program, &[&count, &x, &x]);
        read_f32(&worker, &outputs[1])
    };
    for (a, b) in loops(false).into_iter().zip(loops(true)) {
        assert!(ulps(a, b) <= 16, "{a} {b}");
    }
}

#[test]
fn four_workers_share_a_fused_program() {
    let first = worker();
    let program = block().program(&first, true);
    let (a, b) = (matrix(8, 8), matrix(8, 8));
    let serial = read_f32(&first, &run(&first, &program, &[&a, &b])[0]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let own = worker();
                for _ in 0..250 {
                    assert_eq!(read_f32(&own, &run(&own, &program, &[&a, &b])[0]), serial);
                }
            });
        }
    });
}
