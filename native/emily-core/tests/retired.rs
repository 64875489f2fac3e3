//! What the BEAM's threads have collected is freed, whether they go on or not.

mod runtime;

use emily_core::dtype::Dtype;
use emily_core::op::{Fill, Op};
use emily_core::worker::Worker;
use std::sync::mpsc::channel;
use std::thread;

#[test]
fn what_a_thread_has_collected_is_freed_while_it_builds_nothing() {
    let owner = runtime::worker();
    let worker: &Worker = &owner;
    let (go_on, told) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let fill = Fill { shape: vec![100], dtype: Dtype::Float32 };
            for _ in 0..100 {
                worker.build(&Op::Zeros(fill.clone()), &[]).unwrap().retire();
            }
            let _ = told.recv();
        });
        // The thread does nothing meanwhile.
        while worker.home().bytes() > 0 {
            thread::yield_now();
        }
        go_on.send(()).unwrap();
    });
}
