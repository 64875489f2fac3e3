//! The pool of streams: what workers leave behind when they end. Alone in its process, because it
//! counts threads.
#![cfg(target_os = "linux")]

mod runtime;

use emily_core::error::{Error, Kind};
use emily_core::op::Op;
use emily_core::worker::{Owner, Worker};
use runtime::*;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard};

/// Each test counts the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn count(folder: &str) -> usize {
    fs::read_dir(folder).unwrap().count()
}

fn threads() -> usize {
    count("/proc/self/task")
}

fn files() -> usize {
    count("/proc/self/fd")
}

/// Makes a worker, has it compute, ends it one way or the other, without waiting for its end.
fn live(number: usize) -> Arc<Worker> {
    let owner = worker();
    if number.is_multiple_of(2) {
        let y = owner.build(&Op::Exp, &[Some(&vector(&[number as f32]))]).unwrap();
        assert_eq!(read_f32(&owner, &y).len(), 1);
    }
    if number.is_multiple_of(3) {
        owner.close();
    }
    Arc::clone(&owner)
}

fn live_and_end(numbers: std::ops::Range<usize>) {
    let mut last = None;
    for number in numbers {
        last = Some(live(number));
    }
    until_ended(&last.unwrap());
}

#[test]
fn workers_made_and_dropped_leave_threads_files_and_memory_flat() {
    let _alone = alone();
    live_and_end(0..200);
    let before = (threads(), files(), resident());
    live_and_end(0..2_000);
    let after = (threads(), files(), resident());
    println!("before {before:?}, after {after:?}");
    assert!(after.0 <= before.0 + 2, "threads: {} before, {} after", before.0, after.0);
    assert_eq!(after.1, before.1, "open files");
    assert!(after.2 <= before.2 + (20 << 20), "memory: {} before, {} after", before.2, after.2);
}

#[test]
fn more_workers_than_slots_are_an_error_until_some_end() {
    let _alone = alone();
    let mut workers = vec![worker()];
    let error = loop {
        match Owner::start(device(), 1) {
            Ok(worker) => workers.push(worker),
            Err(error) => break error,
        }
        assert!(workers.len() <= 4096, "the pool has no end");
    };
    assert!(matches!(error, Error::NoStream { .. }), "{error:?}");
    assert_eq!(error.kind(), Kind::Runtime);
    // Those that there are work on, all at the same time.
    let gates: Vec<_> = workers.iter().map(|worker| Gate::hold(worker)).collect();
    for gate in gates {
        gate.open().unwrap();
    }
    // One that is about to end is waited for.
    drop(workers.pop());
    workers.push(worker());
    assert!(workers.last().unwrap().is_open());
}
