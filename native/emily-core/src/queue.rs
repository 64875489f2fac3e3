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
use crossbeam_channel::{bounded, Receiver, Sender, TrySendError};
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
        if let Some(_turn) = eager::Turn::take() {
            let begin = std::time::Instant::now();
            while begin.elapsed() < eager::time() {
                match self.0.try_recv() {
                    Ok(job) => return Some(job),
                    Err(crossbeam_channel::TryRecvError::Disconnected) => return None,
                    Err(crossbeam_channel::TryRecvError::Empty) => std::hint::spin_loop(),
                }
            }
        }
        self.0.recv().ok()
    }
}

/// Workers that have just done a job and look for the next one before they sleep: waking a thread takes
/// tens of microseconds on a virtual machine, and who reads a result often asks again at once.
#[cfg(not(feature = "shuttle"))]
mod eager {
    use crate::device::Device;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::OnceLock;
    use std::time::Duration;

    /// How long one looks. Who computes on a GPU builds the next graph meanwhile, and needs the host's
    /// cores for little else.
    pub(super) fn time() -> Duration {
        Duration::from_micros(if Device::Gpu.is_present() { 300 } else { 30 })
    }

    static LOOKING: AtomicUsize = AtomicUsize::new(0);

    /// The right to look. Only some workers have it at a time, since they take cores from others.
    pub(super) struct Turn;

    impl Turn {
        pub(super) fn take() -> Option<Self> {
            static MOST: OnceLock<usize> = OnceLock::new();
            let most = *MOST.get_or_init(|| {
                let share = if Device::Gpu.is_present() { 2 } else { 4 };
                std::thread::available_parallelism().map_or(1, |cores| (cores.get() / share).max(1))
            });
            let turn = Turn;
            (LOOKING.fetch_add(1, Ordering::Relaxed) < most).then_some(turn)
        }
    }

    impl Drop for Turn {
        fn drop(&mut self) {
            LOOKING.fetch_sub(1, Ordering::Relaxed);
        }
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

    /// The most jobs that may wait.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Hands every job to `run`, or to `refuse` once the queue is stopping, until no more can come.
    pub fn serve(&self, jobs: &Jobs<J>, mut run: impl FnMut(J), mut refuse: impl FnMut(J)) {
        while let Some(job) = jobs.next() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            if self.stopping.load(Ordering::Acquire) {
                refuse(job);
            } else {
                run(job);
            }
        }
    }
}
