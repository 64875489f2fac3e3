//! The C library's heap, from which MLX allocates its nodes.
//!
//! glibc puts small blocks that are freed aside, and joins all those of a heap with their neighbours when somebody
//! asks for a large block or frees one, while the heap is locked. Where another thread frees what a scheduler has built,
//! very many gather, and the scheduler waits for milliseconds. So a thread that builds asks for
//! a large block now and then, which finds few.

use std::cell::Cell;
use std::hint::black_box;

/// Ops after which it is time: little has been freed since, and what it takes is spread over them.
const OPS: u32 = 64;

/// Less than what glibc takes from the system instead of a heap.
const LARGE: usize = 120 << 10;

/// Has the blocks joined that others freed in the calling thread's heap, if it is time to. To be called for each op
/// that a scheduler builds.
pub(crate) fn tidy() {
    thread_local! {
        static OPS_LEFT: Cell<u32> = const { Cell::new(0) };
    }

    if cfg!(not(all(target_os = "linux", target_env = "gnu"))) {
        return;
    }
    OPS_LEFT.with(|left| {
        if left.get() > 0 {
            left.set(left.get() - 1);
        } else {
            left.set(OPS);
            // SAFETY: a block that nobody uses.
            unsafe { libc::free(black_box(libc::malloc(LARGE))) };
        }
    });
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;
    use std::thread;

    /// Bytes of the blocks that were put aside, in all heaps.
    fn aside() -> usize {
        // SAFETY: takes nothing.
        unsafe { libc::mallinfo2() }.fsmblks
    }

    #[test]
    fn what_others_freed_is_joined_after_some_ops() {
        const BLOCKS: usize = 100_000;
        const BYTES: usize = 64;
        let builds = || {
            let blocks: Vec<_> = (0..BLOCKS).map(|_| black_box(Box::new([0_u8; BYTES]))).collect();
            thread::spawn(move || drop(blocks)).join().unwrap();
            let before = aside();
            assert!(before > BLOCKS * BYTES / 2);
            (0..=OPS).for_each(|_| tidy());
            assert!(aside() < before - BLOCKS * BYTES / 2);
        };
        thread::spawn(builds).join().unwrap();
    }
}
