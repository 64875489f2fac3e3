//! Workers: order, back-pressure, closing, dropping, panics.

mod runtime;

use emily_core::device::Device;
use emily_core::error::{Error, Kind};
use emily_core::op::Op;
use emily_core::reply::{Reply, Value};
use emily_core::tensor::Tensor;
use emily_core::worker::{Owner, Worker};
use runtime::*;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

#[test]
fn smoke() {
    let worker = worker();
    assert_eq!(worker.device(), device());
    assert!(worker.is_open());
    let x = vector(&[0.0, 1.0, 2.0]);
    let y = build(&worker, &Op::Square, &[&x]).unwrap();
    assert_eq!(read_f32(&worker, &y), [0.0, 1.0, 4.0]);
}

#[test]
fn a_device_that_the_host_lacks_is_an_error() {
    if Device::Gpu.is_present() {
        return;
    }
    let error = Owner::start(Device::Gpu, 1).err().expect("no GPU, no worker");
    assert_eq!(error.to_string(), "no gpu device, expected one of cpu");
    assert_eq!(error.kind(), Kind::InvalidArgument);
}

#[test]
fn scheduling_is_attended_where_jobs_wait_or_an_op_can_fail() {
    let worker = worker();
    let x = tensor(&[1.0, 2.0, 2.0, 4.0], &[2, 2]);
    let square = build(&worker, &Op::Square, &[&x]).unwrap();
    let inverse = build(&worker, &Op::LinalgInv, &[&x]).unwrap();
    assert!(worker.schedules_unattended(&[square.clone(), x.clone()]));
    assert!(!worker.schedules_unattended(&[square.clone(), inverse]));

    let gate = Gate::hold(&worker);
    assert!(worker.schedules_unattended(std::slice::from_ref(&square)), "a job runs, none waits");
    let tensors = vec![square.clone()];
    assert!(worker.schedule(tensors, Reply::to_nobody()).is_ok());
    assert!(!worker.schedules_unattended(std::slice::from_ref(&square)));
    gate.open().unwrap();
    assert_eq!(read_f32(&worker, &square), [1.0, 4.0, 4.0, 16.0]);
}

/// A chain of so many ops on `x`.
fn ops(worker: &Worker, x: &Tensor, count: usize) -> Tensor {
    (0..count).fold(x.clone(), |y, _| build(worker, &Op::Sin, &[&y]).unwrap())
}

/// As many ops as are begun unasked.
const PART: usize = 12;

#[test]
fn a_part_is_worth_beginning_once_enough_is_built_for_an_idle_worker() {
    let worker = worker();
    let x = vector(&[1.0]);
    let short = ops(&worker, &x, PART - 1);
    assert!(!worker.is_worth_a_part(&short));
    let part = build(&worker, &Op::Sin, &[&short]).unwrap();
    assert!(worker.is_worth_a_part(&part));
    assert!(worker.device() == Device::Gpu || !worker.begin_early(&part), "a CPU never does");
    let alone = build(&worker, &Op::Sin, &[&x]).unwrap();
    assert!(!worker.is_worth_a_part(&alone), "it is no part of what was built before");

    let gate = Gate::hold(&worker);
    let next = ops(&worker, &part, PART);
    assert!(!worker.is_worth_a_part(&next), "a job runs");
    gate.open().unwrap();
    let expected = (0..2 * PART).fold(1.0_f32, |y, _| y.sin());
    assert!((read_f32(&worker, &next)[0] - expected).abs() < 1e-5);
}

#[test]
fn what_was_begun_is_not_counted_again() {
    let worker = worker();
    let part = ops(&worker, &vector(&[1.0]), PART);
    assert!(worker.is_worth_a_part(&part));
    assert!(worker.schedule(vec![part.clone()], Reply::to_nobody()).is_ok());
    worker.close();
    until_ended(&worker);
    assert!(!worker.is_worth_a_part(&part));
}

#[test]
fn no_part_is_begun_that_can_fail_or_is_large() {
    let worker = worker();
    let x = tensor(&[2.0, 0.0, 0.0, 4.0], &[2, 2]);
    let inverse = build(&worker, &Op::LinalgInv, &[&x]).unwrap();
    let fails = ops(&worker, &inverse, PART);
    assert!(!worker.is_worth_a_part(&fails));
    let part = ops(&worker, &x, PART);
    assert!(worker.is_worth_a_part(&part));
    // 256 KiB each, which nobody computes.
    let large = matrix(256, 256);
    ops(&worker, &large, 4);
    let after = ops(&worker, &x, PART);
    assert!(!worker.is_worth_a_part(&after));
}

#[test]
fn a_refused_scheduling_leaves_the_tensor_as_it_was() {
    let worker = worker_with(1);
    let heavy = ops(&worker, &vector(&[1.0]), 100);
    let schedule = || worker.schedule(vec![heavy.clone()], Reply::to_nobody());
    assert!(!heavy.is_light(), "its graph is freed with it");
    let gate = Gate::hold(&worker);
    let queued = run(&worker, || Ok(Value::Done));
    let (reply, error) = schedule().unwrap_err();
    reply.forget();
    assert_eq!(error, Error::QueueFull { capacity: 1 });
    assert!(!heavy.is_light());
    gate.open().unwrap();
    queued.wait().unwrap();

    let gate = Gate::hold(&worker);
    assert!(schedule().is_ok());
    assert!(heavy.is_light(), "the graph goes when it is scheduled");
    worker.close();
    gate.open().unwrap();
    until_ended(&worker);
    assert!(!heavy.is_light(), "it was not");
}

#[test]
fn jobs_run_in_the_order_of_their_submission() {
    let worker = worker_with(256);
    let order = Arc::new(Mutex::new(Vec::new()));
    let gate = Gate::hold(&worker);
    let answers: Vec<_> = (0..200)
        .map(|job| {
            let order = Arc::clone(&order);
            run(&worker, move || {
                order.lock().unwrap().push(job);
                Ok(Value::Done)
            })
        })
        .collect();
    assert_eq!(worker.queue_depth(), 200);
    gate.open().unwrap();
    for answer in answers {
        answer.wait().unwrap();
    }
    assert_eq!(*order.lock().unwrap(), (0..200).collect::<Vec<_>>());
    assert_eq!(worker.queue_depth(), 0);
}

#[test]
fn a_full_queue_refuses_and_takes_again_when_drained() {
    let worker = worker_with(3);
    let gate = Gate::hold(&worker);
    let queued: Vec<_> = (0..3).map(|_| run(&worker, || Ok(Value::Done))).collect();
    assert_eq!(worker.queue_depth(), 3);
    let error = refused(|reply| worker.call(reply, |_| Ok(Value::Done)));
    assert_eq!(error, Error::QueueFull { capacity: 3 });
    assert_eq!(error.kind(), Kind::QueueFull);
    assert_eq!(worker.queue_depth(), 3);
    gate.open().unwrap();
    for answer in queued {
        answer.wait().unwrap();
    }
    run(&worker, || Ok(Value::Done)).wait().unwrap();
    assert_eq!(worker.queue_depth(), 0);
}

#[test]
fn closing_answers_the_backlog_and_lets_the_running_job_end() {
    let worker = worker();
    let gate = Gate::hold(&worker);
    let run_after = Arc::new(AtomicUsize::new(0));
    let queued: Vec<_> = (0..5)
        .map(|_| {
            let run_after = Arc::clone(&run_after);
            run(&worker, move || {
                run_after.fetch_add(1, SeqCst);
                Ok(Value::Done)
            })
        })
        .collect();
    worker.close();
    assert!(!worker.is_open());
    assert_eq!(refused(|reply| worker.call(reply, |_| Ok(Value::Done))), Error::Stopped);
    let x = vector(&[1.0]);
    assert_eq!(worker.build(&Op::Exp, &[Some(&x)]).unwrap_err(), Error::Stopped);
    assert!(matches!(gate.open(), Ok(Value::Done)));
    for answer in queued {
        assert_eq!(answer.wait().unwrap_err(), Error::Stopped);
    }
    assert_eq!(run_after.load(SeqCst), 0);
    until_ended(&worker);
    assert_eq!(worker.queue_depth(), 0);
}

#[test]
fn dropping_the_owner_runs_the_backlog() {
    let owner = worker();
    let worker = Arc::clone(&owner);
    let gate = Gate::hold(&worker);
    let queued: Vec<_> = (0..5).map(|_| run(&worker, || Ok(Value::Done))).collect();
    drop(owner);
    assert!(!worker.is_open());
    assert_eq!(refused(|reply| worker.call(reply, |_| Ok(Value::Done))), Error::Stopped);
    gate.open().unwrap();
    for answer in queued {
        assert!(matches!(answer.wait(), Ok(Value::Done)));
    }
    until_ended(&worker);
}

#[test]
fn closing_many_times_at_once_is_closing() {
    for _ in 0..50 {
        let owner = worker();
        let gate = Gate::hold(&owner);
        let queued = run(&owner, || Ok(Value::Done));
        let start = Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    owner.close();
                });
            }
        });
        gate.open().unwrap();
        assert_eq!(queued.wait().unwrap_err(), Error::Stopped);
        let worker = Arc::clone(&owner);
        drop(owner);
        until_ended(&worker);
    }
}

#[test]
fn a_worker_may_be_closed_and_dropped_on_its_own_thread() {
    let owner = worker();
    let worker = Arc::clone(&owner);
    let (told, owner_comes) = channel::<Owner>();
    let dropped = run(&worker, move || {
        let owner = owner_comes.recv().unwrap();
        owner.close();
        drop(owner);
        Ok(Value::Done)
    });
    told.send(owner).unwrap();
    dropped.wait().unwrap();
    until_ended(&worker);
}

#[test]
fn a_job_may_queue_another_on_its_own_worker() {
    let worker = worker_with(1);
    let (inner, answer) = reply();
    let outer = accepted(|reply| {
        worker.call(reply, move |own| {
            assert!(own.call(inner, |_| Ok(Value::Done)).is_ok());
            assert_eq!(
                refused(|reply| own.call(reply, |_| Ok(Value::Done))),
                Error::QueueFull { capacity: 1 }
            );
            Ok(Value::Done)
        })
    });
    outer.wait().unwrap();
    answer.wait().unwrap();
}

#[test]
fn a_panic_costs_its_job_only() {
    let worker = worker();
    let panicked = |message: &str| Error::Panicked { message: message.into() };
    // `panic!` would print.
    let by_text = run(&worker, || resume_unwind(Box::new("a text")));
    let by_string = run(&worker, || resume_unwind(Box::new(format!("the number {}", 7))));
    let by_other = run(&worker, || resume_unwind(Box::new(7)));
    let after = run(&worker, || Ok(Value::Done));
    assert_eq!(by_text.wait().unwrap_err(), panicked("a text"));
    assert_eq!(by_string.wait().unwrap_err(), panicked("the number 7"));
    assert_eq!(by_other.wait().unwrap_err(), panicked("no message"));
    after.wait().unwrap();
}

#[test]
fn an_evaluation_that_fails_costs_its_job_only() {
    let worker = worker();
    let singular = tensor(&[1.0, 2.0, 2.0, 4.0], &[2, 2]);
    let regular = tensor(&[2.0, 0.0, 0.0, 4.0], &[2, 2]);
    for _ in 0..20 {
        let fails = build(&worker, &Op::LinalgInv, &[&singular]).unwrap();
        let works = build(&worker, &Op::LinalgInv, &[&regular]).unwrap();
        let error = read(&worker, &fails).unwrap_err();
        assert_eq!(error.kind(), Kind::Runtime, "{error}");
        assert_eq!(read_f32(&worker, &works), [0.5, 0.0, 0.0, 0.25]);
    }
}

#[test]
fn a_job_that_nobody_waits_for_is_not_run() {
    let worker = worker();
    let gate = Gate::hold(&worker);
    let count = Arc::new(AtomicUsize::new(0));
    let job = || {
        let count = Arc::clone(&count);
        run(&worker, move || {
            count.fetch_add(1, SeqCst);
            Ok(Value::Done)
        })
    };
    let (given_up, wanted) = (job(), job());
    given_up.give_up();
    gate.open().unwrap();
    wanted.wait().unwrap();
    given_up.wait_for_none();
    assert_eq!(count.load(SeqCst), 1);
}

#[test]
fn callers_that_give_up_at_any_moment_leave_the_worker_working() {
    let worker = worker_with(1024);
    let x = matrix(64, 64);
    let expected = read_f32(&worker, &build(&worker, &Op::Matmul, &[&x, &x]).unwrap());
    let start = Barrier::new(8);
    thread::scope(|scope| {
        for caller in 0..8 {
            let (worker, x, start) = (&worker, &x, &start);
            scope.spawn(move || {
                start.wait();
                for round in 0..60 {
                    let y = worker.build(&Op::Matmul, &[Some(x), Some(x)]).unwrap();
                    let answer = accepted(|reply| worker.read(y, reply));
                    // Some while it is queued, some while it runs, some while it is answered.
                    if (caller + round) % 3 == 0 {
                        answer.give_up();
                    }
                    drop(answer);
                }
            });
        }
    });
    assert_eq!(read_f32(&worker, &build(&worker, &Op::Matmul, &[&x, &x]).unwrap()), expected);
    assert_eq!(worker.queue_depth(), 0);
}

#[test]
fn workers_that_live_at_the_same_time_hold_different_slots() {
    let workers: Vec<_> = (0..40).map(|_| worker()).collect();
    let mut slots: Vec<_> = workers.iter().map(|worker| worker.slot().index()).collect();
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots.len(), workers.len());
    // All at work at the same time.
    let gates: Vec<_> = workers.iter().map(|worker| Gate::hold(worker)).collect();
    for gate in gates {
        gate.open().unwrap();
    }
}
