//! The heap of MLX's nodes: one test, since it begins once in a process.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

mod runtime;

use emily_core::dtype::Dtype;
use emily_core::op::{Fill, Op};
use emily_core::tensor::Tensor;
use emily_core::worker::Worker;
use emily_core::{heap, memory};
use runtime::*;
use std::alloc::{alloc, dealloc, Layout};
use std::{env, thread};

#[global_allocator]
static ALLOCATOR: heap::Allocator = heap::Allocator;

fn one(worker: &Worker) -> Tensor {
    let fill = Fill { shape: vec![1], dtype: Dtype::Float32 };
    worker.build(&Op::Ones(fill), &[]).unwrap()
}

/// 1 plus itself, so many times.
fn doubled(worker: &Worker, times: u32) -> Tensor {
    (0..times).fold(one(worker), |x, _| worker.build(&Op::Add, &[Some(&x), Some(&x)]).unwrap())
}

fn value(worker: &Worker, tensor: &Tensor) -> f32 {
    f32::from_ne_bytes(read(worker, tensor).unwrap()[..].try_into().unwrap())
}

fn blocks() -> Vec<(*mut u8, Layout)> {
    let sizes = [1, 8, 16, 24, 40, 1 << 10, 1 << 15, (1 << 15) + 1, 1 << 20];
    let layouts = sizes.iter().flat_map(|&size| {
        [1, 8, 16, 32, 4096].map(|align| Layout::from_size_align(size, align).unwrap())
    });
    let filled = layouts.map(|layout| {
        // SAFETY: no size is 0.
        let block = unsafe { alloc(layout) };
        assert!(!block.is_null() && block.addr() % layout.align() == 0, "{layout:?}");
        // SAFETY: the block has so many bytes.
        unsafe { block.write_bytes(layout.size() as u8, layout.size()) };
        (block, layout)
    });
    filled.collect()
}

fn free(blocks: Vec<(*mut u8, Layout)>) {
    for (block, layout) in blocks {
        // SAFETY: written by `blocks`, as long as that.
        let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
        assert!(bytes.iter().all(|&byte| byte == layout.size() as u8), "{layout:?}");
        // SAFETY: allocated by `blocks`, with this layout.
        unsafe { dealloc(block, layout) };
    }
}

#[test]
fn nodes_are_in_it_and_any_thread_frees_them() {
    const NODES: usize = 50_000;

    let worker = worker();
    let of_the_c_library = doubled(&worker, 5);
    let blocks_of_the_c_library = blocks();
    env::set_var("EMILY_ALLOCATOR", "system");
    assert!(!heap::start());
    drop(one(&worker));
    assert_eq!(heap::taken(), 0);
    env::remove_var("EMILY_ALLOCATOR");
    assert!(heap::start());
    assert!(heap::start(), "it has begun");
    assert_eq!(value(&worker, &of_the_c_library), 32.0);
    drop(of_the_c_library);
    free(blocks_of_the_c_library);
    (0..100).map(|_| blocks()).collect::<Vec<_>>().into_iter().for_each(free);

    let build_many = || (0..NODES).map(|_| one(&worker)).collect::<Vec<_>>();
    let nodes = build_many();
    let taken = heap::taken();
    assert!(taken > NODES * 64, "taken {taken} bytes");
    thread::spawn(move || drop(nodes)).join().unwrap();
    drop(build_many());
    assert!(heap::taken() < taken + taken / 2, "what others freed is used again");
    let before = resident();
    memory::clear_cache().unwrap();
    let given_back = before.saturating_sub(resident());
    assert!(given_back > taken / 2, "given back {given_back} of {taken} bytes");

    // Built by one thread, computed and freed by another, in several pairs at a time.
    let computes = || {
        let worker = worker_with(64);
        (0..200).for_each(|_| assert_eq!(value(&worker, &doubled(&worker, 20)), (1 << 20) as f32));
    };
    let pairs: Vec<_> = (0..4).map(|_| thread::spawn(computes)).collect();
    pairs.into_iter().for_each(|pair| pair.join().unwrap());

    // Strings and exceptions, which the C++ library allocates and frees in part.
    for name in ["/short.npy", "/a name that is longer than what a string keeps within itself.npy"]
        .repeat(200)
    {
        let error = accepted(|reply| worker.load(name.into(), reply)).wait().unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}
