//! Tensors: lazy and ready, across workers that live and end, deallocated, shared.

mod runtime;

use emily_core::dtype::Dtype;
use emily_core::error::{Error, Kind};
use emily_core::op::{Axes, Axis, Op, Split};
use emily_core::reply::Value;
use emily_core::tensor::Tensor;
use emily_core::worker::Worker;
use runtime::*;
use std::sync::Barrier;
use std::thread;

#[test]
fn a_tensor_from_bytes_is_ready_everywhere() {
    let (a, b) = (worker(), worker());
    let x = tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
    assert!(x.is_ready() && x.is_usable_in(a.slot()) && x.is_usable_in(b.slot()));
    assert_eq!((x.shape(), x.dtype(), x.byte_size()), (&[2, 3][..], Dtype::Float32, 24));
    assert_eq!(x.device(), device());
    assert_eq!(read_f32(&a, &x), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
}

#[test]
fn a_built_tensor_is_lazy_at_home_and_ready_when_evaluated() {
    let (a, b) = (worker(), worker());
    let x = vector(&[1.0, 4.0]);
    let y = a.build(&Op::Sqrt, &[Some(&x)]).unwrap();
    assert!(!y.is_ready() && y.is_usable_in(a.slot()) && !y.is_usable_in(b.slot()));
    assert_eq!((y.shape(), y.dtype()), (&[2][..], Dtype::Float32));
    assert!(y.bytes().unwrap().is_none(), "nothing is read before it is evaluated");
    ready(&[&y], &a).unwrap();
    assert!(y.is_ready() && y.is_usable_in(b.slot()));
    assert_eq!(read_f32(&b, &y), [1.0, 2.0]);
    // Ready tensors are asked for too: somebody else may have been faster.
    ready(&[&y], &b).unwrap();
}

#[test]
fn several_tensors_are_made_ready_by_one_job() {
    let worker = worker();
    let x = vector(&[4.0]);
    let tensors: Vec<_> = [Op::Sqrt, Op::Square, Op::Negative]
        .iter()
        .map(|op| worker.build(op, &[Some(&x)]).unwrap())
        .collect();
    ready(&[&x, &tensors[0], &tensors[1], &tensors[2]], &worker).unwrap();
    assert!(tensors.iter().all(Tensor::is_ready));
    let values: Vec<_> = tensors.iter().map(|tensor| read_f32(&worker, tensor)[0]).collect();
    assert_eq!(values, [2.0, 16.0, -4.0]);
}

#[test]
fn a_failed_evaluation_fails_again() {
    let (a, b) = (worker(), worker());
    let x = build(&a, &Op::Negative, &[&tensor(&[1.0, 2.0, 2.0, 4.0], &[2, 2])]).unwrap();
    let inverse = build(&a, &Op::LinalgInv, &[&x]).unwrap();
    let (sum, exp) =
        (build(&a, &Op::Add, &[&inverse, &x]).unwrap(), build(&a, &Op::Exp, &[&inverse]).unwrap());
    let error = read(&a, &sum).unwrap_err();
    assert_eq!(error.kind(), Kind::Runtime);
    // MLX takes all of them for evaluated now, with memory that nobody wrote.
    for failed in [&sum, &inverse, &exp] {
        assert_eq!(read(&a, failed).unwrap_err(), error);
        assert_eq!(ready(&[failed], &a).unwrap_err(), error);
        assert_eq!(read(&b, failed).unwrap_err(), error);
        assert_eq!(a.build(&Op::Negative, &[Some(failed)]).unwrap_err(), error);
        assert!(!failed.is_ready());
    }
    // What does not come from the failure is as it was.
    assert_eq!(read_f32(&a, &x), [-1.0, -2.0, -2.0, -4.0]);
    let after = build(&a, &Op::Negative, &[&x]).unwrap();
    assert_eq!(read_f32(&b, &after), [1.0, 2.0, 2.0, 4.0]);
}

#[test]
fn an_input_that_fails_fails_its_job_and_later_uses() {
    let worker = worker();
    let singular = tensor(&[1.0, 2.0, 2.0, 4.0], &[2, 2]);
    let inverse = build(&worker, &Op::LinalgInv, &[&singular]).unwrap();
    let above = build(&worker, &Op::Negative, &[&inverse]).unwrap();
    let apply = || accepted(|reply| worker.apply(Op::LinalgQr, vec![Some(above.clone())], reply));
    let error = apply().wait().unwrap_err();
    assert_eq!(error.kind(), Kind::Runtime);
    assert_eq!(apply().wait().unwrap_err(), error);
    assert_eq!(read(&worker, &inverse).unwrap_err(), error);
}

#[test]
fn a_failure_spares_what_was_computed_before() {
    let worker = worker();
    let regular = tensor(&[2.0, 0.0, 0.0, 4.0], &[2, 2]);
    let inverse = build(&worker, &Op::LinalgInv, &[&regular]).unwrap();
    let above = build(&worker, &Op::Abs, &[&inverse]).unwrap();
    ready(&[&above], &worker).unwrap();
    // A singular matrix made of the inverse: one element of it, everywhere.
    let zeros = tensor(&[0.0; 4], &[2, 2]);
    let singular = build(&worker, &Op::Multiply, &[&inverse, &zeros]).unwrap();
    let fails = build(&worker, &Op::LinalgInv, &[&singular]).unwrap();
    assert!(read(&worker, &fails).is_err());
    assert_eq!(read_f32(&worker, &inverse), [0.5, 0.0, 0.0, 0.25]);
}

#[test]
fn deallocating_is_once_and_for_all() {
    let worker = worker();
    let x = vector(&[1.0, 2.0]);
    assert!(x.deallocate());
    assert!(!x.deallocate());
    assert_eq!(x.shape(), [2]);
    let gone = |op| Error::Deallocated { op, index: 0 };
    assert_eq!(worker.build(&Op::Exp, &[Some(&x)]).unwrap_err(), gone("Exp"));
    assert_eq!(read(&worker, &x).unwrap_err(), gone("ToBinary"));
    assert_eq!(gone("Exp").kind(), Kind::InvalidArgument);
    let y = vector(&[1.0, 2.0]);
    let error = worker.build(&Op::Add, &[Some(&y), Some(&x)]).unwrap_err();
    assert_eq!(error, Error::Deallocated { op: "Add", index: 1 });
}

#[test]
fn deallocating_a_lazy_tensor_spares_what_was_built_on_it() {
    let (a, b) = (worker(), worker());
    let x = matrix(16, 16);
    let y = chain(&a, &x);
    let z = build(&a, &Op::Negative, &[&y]).unwrap();
    assert!(y.deallocate());
    assert_eq!(ready(&[&y], &a).unwrap_err(), Error::Deallocated { op: "Eval", index: 0 });
    let expected: Vec<f32> = floats(&chain_alone(&x)).iter().map(|number| -number).collect();
    assert_eq!(read_f32(&b, &z), expected);
}

#[test]
fn deallocating_while_others_read_and_build() {
    const READERS: usize = 4;
    let workers: Vec<_> = (0..READERS).map(|_| worker()).collect();
    for round in 0..200 {
        let x = vector(&[round as f32; 1000]);
        let start = Barrier::new(READERS + 2);
        let freed = thread::scope(|scope| {
            for worker in &workers {
                let (x, start) = (&x, &start);
                scope.spawn(move || {
                    start.wait();
                    match build(worker, &Op::Negative, &[x]).and_then(|y| read(worker, &y)) {
                        Ok(bytes) => assert_eq!(floats(&bytes), [-(round as f32); 1000]),
                        Err(error) => assert_eq!(error.kind(), Kind::InvalidArgument, "{error}"),
                    }
                });
            }
            let free = || {
                start.wait();
                x.deallocate()
            };
            let (first, second) = (scope.spawn(free), scope.spawn(free));
            [first.join().unwrap(), second.join().unwrap()]
        });
        assert_eq!(freed.iter().filter(|&&freed| freed).count(), 1);
    }
}

#[test]
fn bytes_outlive_their_tensor() {
    let worker = worker();
    let numbers: Vec<f32> = (0..100_000).map(|i| i as f32).collect();
    let x = vector(&numbers);
    let y = build(&worker, &Op::Negative, &[&x]).unwrap();
    ready(&[&y], &worker).unwrap();
    let (of_x, of_y) = (read(&worker, &x).unwrap(), read(&worker, &y).unwrap());
    assert!(x.deallocate());
    drop(y);
    // MLX would reuse the buffers for these.
    for _ in 0..20 {
        let z = build(&worker, &Op::Exp, &[&vector(&numbers)]).unwrap();
        ready(&[&z], &worker).unwrap();
    }
    assert_eq!(floats(&of_x), numbers);
    assert!(floats(&of_y).iter().zip(&numbers).all(|(got, number)| *got == -number));
}

#[test]
fn a_view_is_read_in_order() {
    let worker = worker();
    let x = tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
    let axes = Axes { axes: vec![1, 0] };
    let transposed = build(&worker, &Op::Transpose(axes), &[&x]).unwrap();
    ready(&[&transposed], &worker).unwrap();
    assert!(transposed.bytes().unwrap().is_none(), "its elements do not lie in order");
    assert_eq!(read_f32(&worker, &transposed), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
}

#[test]
fn hostile_shapes_are_errors() {
    let refuses = |bytes: &[u8], shape: &[i64]| {
        let error = Tensor::from_bytes(bytes, shape, Dtype::Float32, device()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{shape:?}: {error}");
        assert!(error.to_string().starts_with("from_binary: wrong "), "{error}");
    };
    refuses(&[], &[-1]);
    refuses(&[0; 4], &[-1, -1]);
    refuses(&[], &[1 << 31]);
    refuses(&[], &[i64::MAX]);
    refuses(&[], &[i64::MIN]);
    refuses(&[], &[0, 1 << 31]);
    refuses(&[], &[1 << 30, 1 << 30, 1 << 30]);
    // 2^64 bytes, which is 0 when it wraps.
    refuses(&[], &[1 << 30, 1 << 30, 4]);
    refuses(&[0; 7], &[2]);
    refuses(&[0; 12], &[2]);
    refuses(&[], &[2]);
    refuses(&[], &[]);
    refuses(&[0; 4], &[0]);
}

#[test]
fn shapes_without_elements() {
    let worker = worker();
    for shape in [&[0][..], &[0, 3], &[2, 0, 2]] {
        let x = Tensor::from_bytes(&[], shape, Dtype::Float32, device()).unwrap();
        assert_eq!((x.byte_size(), x.shape().len()), (0, shape.len()));
        assert!(read(&worker, &x).unwrap().is_empty());
        let y = build(&worker, &Op::Exp, &[&x]).unwrap();
        assert!(read(&worker, &y).unwrap().is_empty());
    }
    let scalar = tensor(&[7.0], &[]);
    assert!(scalar.shape().is_empty());
    assert_eq!(read_f32(&worker, &scalar), [7.0]);
}

#[test]
fn all_dtypes_come_back_as_they_went_in() {
    let worker = worker();
    for &dtype in Dtype::ALL {
        if dtype == Dtype::Float64 && device() != emily_core::device::Device::Cpu {
            continue;
        }
        // Booleans are 0 and 1.
        let bytes: Vec<u8> = (0..6 * dtype.size()).map(|i| (i % 2) as u8).collect();
        let x = Tensor::from_bytes(&bytes, &[2, 3], dtype, device()).unwrap();
        assert_eq!((x.dtype(), x.byte_size()), (dtype, bytes.len()));
        assert_eq!(&read(&worker, &x).unwrap()[..], bytes, "{dtype}");
    }
}

#[test]
fn ops_with_several_outputs_answer_ready_tensors() {
    let (a, b) = (worker(), worker());
    let x = build(&a, &Op::Negative, &[&matrix(4, 6)]).unwrap();
    let answer = accepted(|reply| a.apply(Op::LinalgQr, vec![Some(x.clone())], reply));
    let Value::Tensors(outputs) = answer.wait().unwrap() else { panic!("tensors") };
    let [q, r] = &outputs[..] else { panic!("two outputs") };
    assert!(q.is_ready() && r.is_ready());
    assert_eq!((q.shape(), r.shape()), (&[4, 4][..], &[4, 6][..]));
    let product = build(&b, &Op::Matmul, &[q, r]).unwrap();
    let (got, expected) = (read_f32(&b, &product), read_f32(&a, &x));
    assert!(got.iter().zip(&expected).all(|(got, expected)| (got - expected).abs() < 1e-5));

    let error = a.build(&Op::LinalgQr, &[Some(&x)]).unwrap_err();
    assert_eq!(error, Error::SeveralOutputs { op: "LinalgQr" });
    // An op with one output answers one.
    let answer = accepted(|reply| a.apply(Op::Abs, vec![Some(x.clone())], reply));
    let Value::Tensors(outputs) = answer.wait().unwrap() else { panic!("tensors") };
    assert!(outputs.len() == 1 && outputs[0].is_ready());
    // What is wrong is the job's answer.
    let answer = accepted(|reply| a.apply(Op::LinalgQr, vec![], reply));
    assert_eq!(answer.wait().unwrap_err().kind(), Kind::InvalidArgument);
}

#[test]
fn parts_of_a_split_are_used_by_several_workers_at_once() {
    let a = worker();
    let x = matrix(8, 32);
    let split = Op::Split(Split { parts: 4, axis: 1 });
    let answer = accepted(|reply| a.apply(split, vec![Some(x)], reply));
    let Value::Tensors(parts) = answer.wait().unwrap() else { panic!("tensors") };
    let join = Op::Concatenate(Axis { axis: 1 });
    let together = |worker: &Worker| {
        let parts: Vec<_> = parts.iter().collect();
        read(worker, &build(worker, &join, &parts).unwrap()).unwrap().to_vec()
    };
    let expected = together(&a);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let worker = worker();
                for _ in 0..50 {
                    assert_eq!(together(&worker), expected);
                }
            });
        }
    });
}

#[test]
fn eight_threads_build_and_evaluate_through_one_worker() {
    let worker = worker_with(1024);
    let weights = matrix(32, 32);
    let expected = chain_alone(&weights);
    // Nodes that all of them build on, drop and evaluate.
    let common = chain(&worker, &weights);
    thread::scope(|scope| {
        for _ in 0..8 {
            let (worker, weights, common) = (&worker, &weights, &common);
            let expected = &expected;
            scope.spawn(move || {
                for _ in 0..200 {
                    let y = chain(worker, weights);
                    let both = build(worker, &Op::Subtract, &[&y, common]).unwrap();
                    drop(y);
                    assert!(read_f32(worker, &both).iter().all(|&number| number == 0.0));
                    let again = read(worker, &chain(worker, weights)).unwrap();
                    assert_eq!(again[..], expected[..]);
                }
            });
        }
    });
}

#[test]
fn workers_at_the_same_time_compute_the_bits_of_one() {
    // Large enough that the product is cut into blocks for all cores.
    let weights: Vec<_> = [64, 192, 257].into_iter().map(|size| matrix(size, size)).collect();
    let expected: Vec<_> = weights.iter().map(chain_alone).collect();
    let start = Barrier::new(6);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let worker = worker();
                start.wait();
                for _ in 0..15 {
                    for (x, expected) in weights.iter().zip(&expected) {
                        let bytes = read(&worker, &chain(&worker, x)).unwrap();
                        assert!(bytes[..] == expected[..], "other bits for {:?}", x.shape());
                    }
                }
            });
        }
    });
}
