//! Lazy tensors that cross workers: evaluated at home, whatever has become of the worker there.

mod runtime;

use emily_core::error::Error;
use emily_core::op::Op;
use emily_core::reply::Value;
use emily_core::tensor::Tensor;
use emily_core::worker::{make_ready, Owner, Worker};
use runtime::*;
use std::sync::{Arc, Barrier, Mutex, MutexGuard};
use std::thread;

/// Which worker holds which slot is what these tests are about, so that no other may take one.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A worker that holds the slot of one that has ended.
fn worker_in_slot_of(ended: &Worker) -> Owner {
    // Other slots may be free too; they are kept until this one comes.
    let mut others = Vec::new();
    loop {
        let worker = worker();
        if Arc::ptr_eq(worker.slot(), ended.slot()) {
            return worker;
        }
        others.push(worker);
    }
}

#[test]
fn lazy_at_a_worker_that_lives() {
    let _alone = alone();
    let (a, b) = (worker(), worker());
    let x = matrix(16, 16);
    let y = chain(&a, &x);
    let z = build(&b, &Op::Negative, &[&y]).unwrap();
    assert!(y.is_ready() && !z.is_ready());
    let expected: Vec<f32> = floats(&chain_alone(&x)).iter().map(|number| -number).collect();
    assert_eq!(read_f32(&b, &z), expected);
}

#[test]
fn lazy_at_a_worker_that_is_closed_and_still_runs_a_job() {
    let _alone = alone();
    let (a, b) = (worker(), worker());
    let x = matrix(16, 16);
    let y = chain(&a, &x);
    let gate = Gate::hold(&a);
    a.close();
    let answer = accepted(|reply| make_ready(vec![y.clone()], &b, reply));
    // What waits for the slot does not hold the guest.
    run(&b, || Ok(Value::Done)).wait().unwrap();
    run(&b, || Ok(Value::Done)).wait().unwrap();
    assert!(!y.is_ready());
    gate.open().unwrap();
    answer.wait().unwrap();
    assert_eq!(&read(&b, &y).unwrap()[..], chain_alone(&x));
}

#[test]
fn lazy_at_a_worker_that_is_closed_with_the_evaluation_in_its_queue() {
    let _alone = alone();
    let (a, b) = (worker(), worker());
    let x = matrix(16, 16);
    let (y, z) = (chain(&a, &x), chain(&a, &x));
    let gate = Gate::hold(&a);
    let of_b = accepted(|reply| make_ready(vec![y.clone()], &b, reply));
    let of_a = accepted(|reply| make_ready(vec![z.clone()], &a, reply));
    assert_eq!(a.queue_depth(), 2);
    a.close();
    gate.open().unwrap();
    // Who closes a worker gives up its own jobs, not those of others.
    of_b.wait().unwrap();
    assert_eq!(of_a.wait().unwrap_err(), Error::Stopped);
    assert_eq!(&read(&b, &y).unwrap()[..], chain_alone(&x));
    assert_eq!(&read(&b, &z).unwrap()[..], chain_alone(&x));
}

#[test]
fn lazy_at_a_worker_whose_guest_is_closed() {
    let _alone = alone();
    let (a, b, c) = (worker(), worker(), worker());
    let x = matrix(16, 16);
    let y = chain(&a, &x);
    let ended = Arc::clone(&a);
    drop(a);
    until_ended(&ended);
    let gate = Gate::hold(&b);
    let answer = accepted(|reply| make_ready(vec![y.clone()], &b, reply));
    b.close();
    gate.open().unwrap();
    assert_eq!(answer.wait().unwrap_err(), Error::Stopped);
    assert_eq!(&read(&c, &y).unwrap()[..], chain_alone(&x));
}

#[test]
fn lazy_at_a_worker_that_is_dropped_and_joined() {
    let _alone = alone();
    let (a, b) = (worker(), worker());
    let x = matrix(16, 16);
    let y = chain(&a, &x);
    let ended = Arc::clone(&a);
    drop(a);
    until_ended(&ended);
    assert!(!y.is_ready());
    assert_eq!(&read(&b, &y).unwrap()[..], chain_alone(&x));
    // The guest has gone home.
    let z = chain(&b, &x);
    assert_eq!(&read(&b, &z).unwrap()[..], chain_alone(&x));
}

#[test]
fn lazy_in_a_slot_that_another_worker_holds_now() {
    let _alone = alone();
    let (a, b) = (worker(), worker());
    let x = matrix(16, 16);
    let y = chain(&a, &x);
    let ended = Arc::clone(&a);
    drop(a);
    until_ended(&ended);
    let c = worker_in_slot_of(&ended);
    assert!(y.is_usable_in(c.slot()), "the new holder builds on it without waiting");
    let gate = Gate::hold(&c);
    let answer = accepted(|reply| make_ready(vec![y.clone()], &b, reply));
    assert_eq!(c.queue_depth(), 1, "the slot's holder evaluates, and nobody else");
    gate.open().unwrap();
    answer.wait().unwrap();
    assert_eq!(&read(&b, &y).unwrap()[..], chain_alone(&x));
}

#[test]
fn lazy_in_a_slot_that_changes_hands_while_a_guest_asks() {
    let _alone = alone();
    let (a, b) = (worker(), worker());
    let x = matrix(16, 16);
    let y = chain(&a, &x);
    let ended = Arc::clone(&a);
    drop(a);
    until_ended(&ended);
    // The job is in the guest's queue when somebody else gets the slot.
    let gate = Gate::hold(&b);
    let answer = accepted(|reply| make_ready(vec![y.clone()], &b, reply));
    let c = worker_in_slot_of(&ended);
    gate.open().unwrap();
    answer.wait().unwrap();
    assert!(y.is_ready());
    drop(c);
    assert_eq!(&read(&b, &y).unwrap()[..], chain_alone(&x));
}

/// Sixteen workers use a lazy tensor at the same time while its own lives, is closed, is dropped, or
/// is dropped and its slot goes to another worker.
#[test]
fn lazy_at_a_worker_that_ends_while_sixteen_others_ask() {
    let _alone = alone();
    const GUESTS: usize = 16;
    const ROUNDS: usize = 1_000;
    let weights: Vec<_> = (0..4).map(|i| matrix(8 + i, 8 + i)).collect();
    let expected: Vec<Vec<u8>> = weights
        .iter()
        .map(|x| {
            let worker = worker();
            let y = build(&worker, &Op::Sqrt, &[&chain(&worker, x)]).unwrap();
            read(&worker, &y).unwrap().to_vec()
        })
        .collect();
    let shared = Mutex::new(None::<Tensor>);
    let (start, end) = (Barrier::new(GUESTS + 1), Barrier::new(GUESTS + 1));
    // A panic between barriers would leave the others waiting.
    let wrong = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..GUESTS {
            scope.spawn(|| {
                let guest = worker();
                for round in 0..ROUNDS {
                    start.wait();
                    let y = shared.lock().unwrap().clone().unwrap();
                    let got = build(&guest, &Op::Sqrt, &[&y]).and_then(|z| read(&guest, &z));
                    match got {
                        Ok(bytes) if bytes[..] == expected[round % 4] => {}
                        Ok(_) => wrong.lock().unwrap().push(format!("{round}: other bits")),
                        Err(error) => wrong.lock().unwrap().push(format!("{round}: {error}")),
                    }
                    end.wait();
                }
            });
        }
        for round in 0..ROUNDS {
            let home = worker();
            *shared.lock().unwrap() = Some(chain(&home, &weights[round % 4]));
            start.wait();
            let _kept = match round % 5 {
                0 => Some(home),
                1 => {
                    home.close();
                    Some(home)
                }
                2 => None,
                3 => {
                    drop(home);
                    Some(worker())
                }
                _ => {
                    home.close();
                    let next = worker();
                    next.close();
                    Some(next)
                }
            };
            end.wait();
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}: {:?}", wrong.len(), ROUNDS * GUESTS, wrong.first());
}
