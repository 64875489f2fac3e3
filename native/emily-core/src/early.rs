//! Early scheduling: a worker of a card begins with a graph while its caller is still building it.
//!
//! Launching a kernel takes longer than building its op. A worker that begins when a result is asked for
//! idles while the graph is built, and leaves its caller to idle while the kernels are launched. On a CPU one
//! thread computes what it is given, and a part that is computed early takes a core from other streams.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Ops that are built before a worker that has nothing to do begins with them. A part costs its worker an event
/// and a notice of its end, as much as some launches.
pub(crate) const ENOUGH_OPS: usize = 12;

/// The bytes of results up to which a part is begun. What has been begun takes memory, also what its caller has
/// dropped and not yet collected, or will never ask for; and kernels of large results take longer than
/// their launches.
pub(crate) const MOST_BYTES: usize = 1 << 20;

/// Other workers that may have a job when a part is begun. The driver bounds how many kernels all streams launch in a
/// second, and parts cost more calls: where more streams compute at the same time, the host has enough to do.
const MOST_AT_WORK: usize = 1;

/// Workers that have a job.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);

/// A worker that has a job, while this lives.
pub(crate) struct AtWork;

impl AtWork {
    pub(crate) fn begin() -> Self {
        AT_WORK.fetch_add(1, Ordering::Relaxed);
        AtWork
    }

    /// Whether few workers have a job.
    pub(crate) fn are_few() -> bool {
        AT_WORK.load(Ordering::Relaxed) <= MOST_AT_WORK
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        AT_WORK.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What was built for a worker since it was last given work.
#[derive(Default)]
pub(crate) struct Unscheduled {
    ops: AtomicUsize,
    bytes: AtomicUsize,
}

impl Unscheduled {
    /// Counts an op with a result of so many bytes.
    pub(crate) fn add(&self, bytes: usize) {
        self.ops.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts from the beginning.
    pub(crate) fn reset(&self) {
        self.ops.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }

    /// Whether it is enough for a part, and not too much.
    pub(crate) fn is_worth_a_part(&self) -> bool {
        self.ops.load(Ordering::Relaxed) >= ENOUGH_OPS
            && self.bytes.load(Ordering::Relaxed) <= MOST_BYTES
    }
}
