//! The bounded queue between callers and a worker's thread, with the stop protocol:
//!
//! 1. `submit` puts a job in or gives it back, never waits.
//! 2. `finish` takes the only sender away: no job comes in any more, those inside are still run.
//! 3. `stop` says so first in `stopping`: those inside are taken out unrun.
//! 4. `serve` ends when the sender is gone and the queue is empty, whichever way, so that every job
//!    that `submit` accepted has been run or taken out.
//!
//! The sender stands alone in its mutex because a bounded crossbeam channel keeps its backlog for as
//! long as any sender lives, even when nobody receives any more.

#[cfg(feature = "shuttle")]
use shuttle::sync::{
    atomic::{AtomicBool, AtomicUsize, Ordering},
    mpsc::{sync_channel as bounded, Receiver, SyncSender as Sender, TrySendError},
    Mutex,
};

#[cfg(not(feature = "shuttle"))]
use crate::look;
#[cfg(not(feature = "shuttle"))]
use crossbeam_channel::{bounded, Receiver, Sender, TryRecvError, TrySendError};
#[cfg(not(feature = "shuttle"))]
use std::sync::{
    atomic::{AtomicBool, AtomicUsize, Ordering},
    Mutex,
};

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many jobs wait as may.
    Full,
    /// The queue was finished or stopped.
    Stopped,
}

/// The callers' end.
pub struct Queue<J> {
    sender: Mutex<Option<Sender<J>>>,
    /// Whether the sender is there, for those who only ask.
    open: AtomicBool,
    stopping: AtomicBool,
    /// Jobs inside, the running one not counted.
    waiting: AtomicUsize,
    running: AtomicBool,
    capacity: usize,
}

/// The worker's end.
pub struct Jobs<J>(Receiver<J>);

impl<J> Jobs<J> {
    /// Waits for a job; `None` where no more can come.
    #[cfg(feature = "shuttle")]
    fn next(&self) -> Option<J> {
        self.0.recv().ok()
    }

    /// The same, awake for a while first.
    #[cfg(not(feature = "shuttle"))]
    fn next(&self) -> Option<J> {
        // Who reads a result often asks again at once.
        let found = look::until(look::time(), || match self.0.try_recv() {
            Ok(job) => Some(Some(job)),
            Err(TryRecvError::Disconnected) => Some(None),
            Err(TryRecvError::Empty) => None,
        });
        found.unwrap_or_else(|| self.0.recv().ok())
    }
}

impl<J> Queue<J> {
    /// A queue for at most `capacity` waiting jobs.
    pub fn new(capacity: usize) -> (Self, Jobs<J>) {
        let (sender, receiver) = bounded(capacity);
        let queue = Queue {
            sender: Mutex::new(Some(sender)),
            open: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            running: AtomicBool::new(false),
            capacity,
        };
        (queue, Jobs(receiver))
    }

    /// Puts a job in; gives it back where that cannot be.
    ///
    /// # Errors
    /// The job and why it was refused.
    pub fn submit(&self, job: J) -> Result<(), (J, Refusal)> {
        let sender = self.sender.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(sender) = sender.as_ref() else { return Err((job, Refusal::Stopped)) };
        // Counted before it is inside, or `serve` could take it out first and count below zero.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        sender.try_send(job).map_err(|refused| {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            match refused {
                TrySendError::Full(job) => (job, Refusal::Full),
                TrySendError::Disconnected(job) => (job, Refusal::Stopped),
            }
        })
    }

    /// No job comes in any more; those inside are run.
    pub fn finish(&self) {
        self.open.store(false, Ordering::Release);
        self.sender.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    }

    /// No job comes in any more; those inside are taken out unrun.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.finish();
    }

    /// Whether jobs are taken.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Jobs that wait, the running one not counted.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether no job is inside and none runs.
    pub fn is_idle(&self) -> bool {
        self.waiting() == 0 && !self.running.load(Ordering::Relaxed)
    }

    /// The most jobs that may wait.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Hands every job to `run`, or to `refuse` once the queue is stopping, until no more can come.
    pub fn serve(&self, jobs: &Jobs<J>, mut run: impl FnMut(J), mut refuse: impl FnMut(J)) {
        while let Some(job) = jobs.next() {
            self.running.store(true, Ordering::Relaxed);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            if self.stopping.load(Ordering::Acquire) {
                refuse(job);
            } else {
                run(job);
            }
            self.running.store(false, Ordering::Relaxed);
        }
    }
}
