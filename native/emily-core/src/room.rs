//! How far evaluations may schedule ahead of what is computed.
//!
//! MLX lets ten groups of operations be ahead in the whole process, so that little memory is taken before
//! it is needed. That costs a wake-up of the worker for each group, and several evaluations compete for
//! the room: one takes all of it, and the streams of the others wait for work although they have plenty.
//! So there is room for everything while only graphs are evaluated that take little memory even if all
//! of them are scheduled at once; beside a larger one, each evaluation brings room of its own.

use crate::memory;
use mlx_sys::mlx_vector_array;
use std::ffi::c_int;
use std::sync::Mutex;

/// The groups that an evaluation beside others may be ahead where one of them is large. Fewer let a stream
/// run dry now and then.
const OWN: c_int = 40;

/// More groups than any small graph has.
const ALL: c_int = 1 << 20;

/// The part of the memory limit that a small graph's results take at most, and what they take in any
/// case.
const PART: usize = 32;
const SMALL: usize = 64 << 20;

static RUNNING: Mutex<Running> = Mutex::new(Running { small: 0, large: 0 });

/// The evaluations that run. All share one room.
struct Running {
    small: c_int,
    large: c_int,
}

impl Running {
    /// The groups beyond MLX's own.
    fn groups(&self) -> c_int {
        match (self.small, self.large) {
            (0, 0) => 0,
            (_, 0) => ALL,
            (small, large) => OWN.saturating_mul(small + large - 1),
        }
    }

    fn change(&mut self, is_small: bool, by: c_int) {
        let before = self.groups();
        *(if is_small { &mut self.small } else { &mut self.large }) += by;
        let more = self.groups() - before;
        if more != 0 {
            // SAFETY: changes a number under its lock.
            unsafe { mlx_sys::emily_scheduler_add_room(more) };
        }
    }
}

/// An evaluation's part in the room, until it is dropped.
pub(crate) struct Room {
    is_small: bool,
    has_cpu: bool,
}

impl Room {
    /// For the evaluation of arrays, whose slot the calling thread holds.
    pub(crate) fn take(outputs: mlx_vector_array) -> Self {
        let small = SMALL.max(memory::limit().unwrap_or(0) / PART);
        let mut has_cpu = false;
        // SAFETY: live arrays that nobody else evaluates, and a flag.
        let bytes = unsafe { mlx_sys::emily_graph_bytes(outputs, small, &mut has_cpu) };
        let is_small = bytes <= small;
        change(is_small, 1);
        Room { is_small, has_cpu }
    }

    /// Whether the graph is small and a GPU computes all of it.
    pub(crate) fn is_small_and_of_gpu(&self) -> bool {
        self.is_small && !self.has_cpu
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        change(self.is_small, -1);
    }
}

fn change(is_small: bool, by: c_int) {
    let mut running = RUNNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    running.change(is_small, by);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::{Arrays, Build};
    use crate::device::Device;
    use crate::dtype::Dtype;
    use crate::op::Op;
    use crate::tensor::{evaluate, Tensor};

    #[test]
    fn results_of_a_graph_count_once_until_they_are_there() {
        let build = Build::for_this_thread();
        let x = Tensor::from_bytes(&[0; 400], &[100], Dtype::Float32, Device::Cpu).unwrap();
        let x = x.handle("Add").unwrap();
        let twice = Op::Add.build(&build, &[Some(&x), Some(&x)]).unwrap();
        let four = Op::Multiply.build(&build, &[Some(&twice), Some(&twice)]).unwrap();
        let outputs = Arrays::from_iter([&four, &twice]);
        let mut has_cpu = false;
        // SAFETY: live arrays that nobody evaluates, and a flag.
        let mut bytes =
            |most| unsafe { mlx_sys::emily_graph_bytes(outputs.as_raw(), most, &mut has_cpu) };
        assert_eq!(bytes(1 << 20), 800);
        assert!(bytes(500) > 500);
        evaluate("Add", [&twice]).unwrap();
        assert_eq!(bytes(1 << 20), 400);
        evaluate("Multiply", [&four]).unwrap();
        assert_eq!(bytes(1 << 20), 0);
    }

    #[test]
    fn a_large_evaluation_bounds_the_room_of_all() {
        let groups = |small, large| Running { small, large }.groups();
        assert_eq!(groups(0, 0), 0);
        assert_eq!([groups(1, 0), groups(5, 0)], [ALL, ALL]);
        assert_eq!([groups(0, 1), groups(1, 1), groups(2, 3)], [0, OWN, 4 * OWN]);
    }
}
