//! How far evaluations may schedule ahead of what is computed.
//!
//! MLX lets ten groups of operations be ahead in the whole process, so that little memory is taken before
//! it is needed. Several evaluations compete for that room: one takes all of it, and the streams of
//! the others wait for work although they have plenty. So each that begins beside others brings its own.

use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The groups that an evaluation beside others may be ahead. Fewer let a stream run dry now and then.
const OWN: c_int = 40;

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// An evaluation's room, until it is dropped.
pub(crate) struct Room {
    groups: c_int,
}

impl Room {
    /// Takes what MLX gives anyway if no evaluation runs, and adds to it otherwise.
    pub(crate) fn take() -> Self {
        let is_alone = RUNNING.fetch_add(1, Ordering::Relaxed) == 0;
        let groups = if is_alone { 0 } else { OWN };
        add(groups);
        Room { groups }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        add(-self.groups);
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

fn add(groups: c_int) {
    if groups != 0 {
        // SAFETY: changes a number under its lock.
        unsafe { mlx_sys::emily_scheduler_add_room(groups) };
    }
}
