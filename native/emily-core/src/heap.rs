//! The heap of MLX's nodes and of what the core keeps of each.
//!
//! A node is built on a scheduler, and as a rule the worker or the reaper frees it. glibc has the heap of the thread that
//! allocated a block locked while another frees it, which takes milliseconds where it joins what was freed before, and
//! whoever builds waits meanwhile. jemalloc gives threads blocks by the hundred and takes them back so. Where it
//! cannot be put before MLX (macOS, musl, a program with an allocator of its own) nodes stay in the C library's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::env;

/// With `system` in it nodes stay in the C library's heap: for tools that look into that, and to compare.
const VARIABLE: &str = "EMILY_ALLOCATOR";

/// The largest alignment of its blocks.
const ALIGNMENT: usize = 16;

/// Has the nodes allocated in a heap of their own from here on, unless the variable `EMILY_ALLOCATOR` is `system`. What
/// was allocated before is freed where it was. Returns whether it is so.
pub fn start() -> bool {
    // SAFETY: takes nothing.
    env::var_os(VARIABLE).is_none_or(|name| name != "system")
        && unsafe { mlx_sys::emily_heap_start() }
}

/// Bytes that it has asked the system for, given back or not: 0 where there is none.
pub fn taken() -> usize {
    // SAFETY: takes nothing.
    unsafe { mlx_sys::emily_heap_taken() }
}

/// Gives the system back what is free in it.
pub(crate) fn trim() {
    // SAFETY: takes nothing.
    unsafe { mlx_sys::emily_heap_trim() };
}

/// Rust's allocator, to be a program's global one: small blocks in the heap, once it has begun, the others in the C
/// library's.
pub struct Allocator;

// SAFETY: a block is of one of two heaps and freed in that one. Those of the nodes' heap have the layout's size or more,
// of which the alignment is as large as asked for.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= ALIGNMENT {
            // SAFETY: takes any number of bytes.
            let block = unsafe { mlx_sys::emily_heap_allocate(layout.pad_to_align().size()) };
            if !block.is_null() {
                return block.cast();
            }
        }
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: a block of either heap that nobody uses any more.
        if unsafe { !mlx_sys::emily_heap_free(block.cast()) } {
            // SAFETY: then it is of the C library's.
            unsafe { System.dealloc(block, layout) };
        }
    }
}
