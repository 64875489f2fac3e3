//! The pool of streams. MLX never frees a stream, so that streams live in *slots* that are leased to
//! workers and come back when the workers end. A slot has a stream of the CPU and, where there is a
//! GPU, one of the GPU: a worker computes on one of them, and what a GPU lacks is done on the other.
//!
//! Who holds a slot's lease, and nobody else, evaluates nodes of its streams. Anybody may build nodes.

use crate::build::Build;
use crate::device::Device;
use crate::early::Unscheduled;
use crate::error::{Error, Result};
use crate::mlx;
use crate::worker::Worker;
use mlx_rs::Array;
use mlx_sys::mlx_stream;
use std::cell::RefCell;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};
use std::time::{Duration, Instant};

/// Slots that are made at a time: making some excludes every running evaluation.
const BATCH: usize = 16;

/// The most slots. Metal refuses streams somewhere above 600, and each slot that has computed on the
/// CPU keeps a thread.
const MOST: usize = 512;

/// How long a new worker waits for the slot of one that is ending, which comes within microseconds
/// unless a long job still runs. Otherwise each burst of short lives would warm more slots, and a
/// slot that has computed on the CPU keeps a thread.
const PATIENCE: Duration = Duration::from_millis(10);

/// The same where no other slot can be made.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// MLX looks streams up without a lock while it evaluates. Evaluations hold this gate for reading,
/// and making a stream holds it for writing.
static GATE: RwLock<()> = RwLock::new(());

/// Enters the gate for an evaluation.
pub(crate) fn evaluating() -> RwLockReadGuard<'static, ()> {
    GATE.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Whether anything was ever scheduled that nobody waited for at once.
static SCHEDULED: AtomicBool = AtomicBool::new(false);

/// Enters the gate to schedule work that nobody waits for.
pub(crate) fn scheduling() -> RwLockReadGuard<'static, ()> {
    let gate = evaluating();
    SCHEDULED.store(true, Ordering::Relaxed);
    gate
}

thread_local! {
    /// The slot whose nodes this thread evaluates.
    static OWN: RefCell<Option<Arc<Slot>>> = const { RefCell::new(None) };
}

/// Schedules nodes of the slot that this thread holds.
pub(crate) fn while_scheduling<T>(schedule: impl FnOnce() -> T) -> T {
    let own = OWN.with_borrow(Clone::clone);
    let _scheduling = own.as_ref().map(|slot| slot.scheduling.lock());
    schedule()
}

/// Whether there may be work that nobody waits for.
pub(crate) fn has_scheduled() -> bool {
    SCHEDULED.load(Ordering::Relaxed)
}

/// Waits for what was scheduled on a slot that the caller holds. MLX looks the streams up for it, so that
/// none may be made meanwhile.
pub(crate) fn synchronize(slot: &Slot) -> Result<()> {
    if !has_scheduled() {
        return Ok(());
    }
    let _gate = evaluating();
    slot.synchronize()
}

/// Waits until MLX has cleared away what evaluations on a stream used, whose slot the caller holds.
pub(crate) fn clear_away(stream: mlx_stream) -> Result<()> {
    let _gate = evaluating();
    // SAFETY: a live stream, whose slot the caller holds.
    mlx::check("Stream", unsafe { mlx_sys::mlx_synchronize(stream) })
}

/// Waits for what was scheduled on all slots. No evaluation may run.
pub(crate) fn synchronize_all() {
    let slots = pool().all.clone();
    // What failed has nobody to be told.
    slots.iter().for_each(|slot| drop(slot.synchronize()));
}

/// Closes the gate to evaluations, if none runs.
pub(crate) fn close_gate() -> Option<RwLockWriteGuard<'static, ()>> {
    GATE.try_write().ok()
}

/// The streams that one worker evaluates on.
pub struct Slot {
    cpu: mlx_stream,
    gpu: Option<mlx_stream>,
    /// Its number, which stays.
    index: usize,
    occupancy: Mutex<Occupancy>,
    /// Told whenever the slot becomes free.
    freed: Condvar,
    /// Held while nodes of its streams are being scheduled.
    scheduling: parking_lot::Mutex<()>,
    /// Arrays that nobody refers to any more, until the reaper takes them.
    dropped: parking_lot::Mutex<Vec<Array>>,
}

/// Who may evaluate on the slot.
enum Occupancy {
    Free,
    /// A worker's for its lifetime; `None` until the worker is made.
    Leased(Option<Weak<Worker>>),
    /// Borrowed for one evaluation of tensors whose worker is gone.
    Borrowed,
}

/// Who stands in the way of borrowing a slot.
pub(crate) enum Occupied {
    /// This worker holds it and takes jobs.
    By(Arc<Worker>),
    /// A worker that is ending, or another borrower: it will be free.
    Passing,
}

// SAFETY: stream handles are written before the slot is shared, never freed and only read by MLX.
unsafe impl Send for Slot {}
// SAFETY: as above; the rest is locked.
unsafe impl Sync for Slot {}

impl Slot {
    /// Its number, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How nodes are built on its stream of a device.
    pub fn build(&self, device: Device) -> Build {
        Build::new(device, self.cpu, self.gpu)
    }

    /// Whether nodes of its streams are being scheduled, which may not have their events yet; otherwise what `look`
    /// says, while nobody schedules.
    pub(crate) fn is_scheduling_or(&self, look: impl FnOnce() -> bool) -> bool {
        // To have the lock is to see what was written under it.
        self.scheduling.try_lock().is_none_or(|_quiet| look())
    }

    /// Keeps an array of its streams that nobody refers to any more. Returns whether it is the first since they
    /// were taken.
    pub(crate) fn keep(&self, array: Array) -> bool {
        let mut dropped = self.dropped.lock();
        dropped.push(array);
        dropped.len() == 1
    }

    /// Takes what it keeps, all at once, since the next scheduling may take as long again, and what `look` says of it
    /// while nobody schedules; `None` where nodes of its streams are being scheduled all the time that the caller
    /// waits.
    pub(crate) fn take_kept<T>(
        &self,
        patience: Duration,
        look: impl FnOnce(&[Array]) -> T,
    ) -> Option<(Vec<Array>, T)> {
        let _quiet = self.scheduling.try_lock_for(patience)?;
        let arrays = mem::take(&mut *self.dropped.lock());
        let found = look(&arrays);
        Some((arrays, found))
    }

    /// Waits for what was scheduled and never waited for. No stream may be made meanwhile.
    fn synchronize(&self) -> Result<()> {
        for stream in [Some(self.cpu), self.gpu].into_iter().flatten() {
            // SAFETY: a live stream, whose slot the caller holds.
            mlx::check("Stream", unsafe { mlx_sys::mlx_synchronize(stream) })?;
        }
        Ok(())
    }

    /// The worker that holds the slot and takes jobs, if there is one.
    pub(crate) fn worker(&self) -> Option<Arc<Worker>> {
        match &*self.occupancy() {
            Occupancy::Leased(Some(worker)) => worker.upgrade().filter(|worker| worker.is_open()),
            _ => None,
        }
    }

    /// Whether it is still held by a worker that takes no more jobs.
    fn is_ending(&self) -> bool {
        match &*self.occupancy() {
            Occupancy::Leased(Some(worker)) => !worker.upgrade().is_some_and(|w| w.is_open()),
            _ => false,
        }
    }

    fn occupancy(&self) -> MutexGuard<'_, Occupancy> {
        self.occupancy.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A worker's time in a slot: what its tensors remember.
pub struct Home {
    slot: Arc<Slot>,
    device: Device,
    /// Of the tensors that were made here and live.
    bytes: AtomicUsize,
    unscheduled: Unscheduled,
}

impl Home {
    pub(crate) fn new(slot: &Arc<Slot>, device: Device) -> Self {
        Home {
            slot: Arc::clone(slot),
            device,
            bytes: AtomicUsize::new(0),
            unscheduled: Unscheduled::default(),
        }
    }

    /// The slot.
    pub fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// The device that is computed on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// How nodes are built here.
    pub fn build(&self) -> Build {
        self.slot.build(self.device)
    }

    /// Bytes of the tensors that were made here and live, computed or not.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// What was built here since its worker was last given work.
    pub(crate) fn unscheduled(&self) -> &Unscheduled {
        &self.unscheduled
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The right to evaluate on a slot; gives the slot back when dropped.
pub(crate) struct Lease(Arc<Slot>);

/// While it lives, its thread evaluates nodes of a slot that it holds.
pub(crate) struct Evaluating(Option<Arc<Slot>>);

impl Drop for Evaluating {
    fn drop(&mut self) {
        // The thread's locals are gone at its end.
        let _ = OWN.try_with(|own| own.replace(self.0.take()));
    }
}

impl Lease {
    /// Has the calling thread evaluate nodes of the slot.
    pub(crate) fn enter(&self) -> Evaluating {
        Evaluating(OWN.replace(Some(Arc::clone(&self.0))))
    }

    /// Makes the first slots.
    pub(crate) fn prepare() -> Result<()> {
        let mut pool = pool();
        if pool.all.is_empty() {
            pool.grow()?;
        }
        Ok(())
    }

    /// Leases a slot: one that has run and is free, or is about to be; otherwise a fresh one, making
    /// more where there is none.
    pub(crate) fn take() -> Result<Lease> {
        let mut pool = pool();
        let is_used_up = pool.fresh.is_empty() && pool.all.len() >= MOST;
        let deadline = Instant::now() + if is_used_up { LAST_PATIENCE } else { PATIENCE };
        while pool.warm.is_empty() && pool.all.iter().any(|slot| slot.is_ending()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = FREED.wait_timeout(pool, left);
            pool = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        pool.lease()
    }

    /// Leases a slot for an evaluation, without waiting for one.
    pub(crate) fn take_now() -> Result<Lease> {
        pool().lease()
    }

    /// Borrows one slot for an evaluation.
    pub(crate) fn borrow(slot: &Arc<Slot>) -> std::result::Result<Lease, Occupied> {
        let mut pool = pool();
        let occupancy = slot.occupancy();
        match &*occupancy {
            Occupancy::Free => {
                drop(occupancy);
                Ok(Self::borrow_free(slot, &mut pool))
            }
            Occupancy::Leased(Some(worker)) => match worker.upgrade() {
                Some(worker) if worker.is_open() => Err(Occupied::By(worker)),
                _ => Err(Occupied::Passing),
            },
            Occupancy::Leased(None) | Occupancy::Borrowed => Err(Occupied::Passing),
        }
    }

    /// Waits until the slot is free or has a worker that takes jobs. Only a thread that holds no
    /// slot may wait here, or two could wait for each other.
    pub(crate) fn wait(slot: &Arc<Slot>) -> std::result::Result<Lease, Arc<Worker>> {
        loop {
            match Self::borrow(slot) {
                Ok(lease) => return Ok(lease),
                Err(Occupied::By(worker)) => return Err(worker),
                Err(Occupied::Passing) => {
                    let occupancy = slot.occupancy();
                    // A lease without a worker gets one without a notice, hence the time limit.
                    if !matches!(*occupancy, Occupancy::Free) {
                        let limit = std::time::Duration::from_millis(1);
                        drop(slot.freed.wait_timeout(occupancy, limit));
                    }
                }
            }
        }
    }

    fn borrow_free(slot: &Arc<Slot>, pool: &mut Pool) -> Lease {
        // A tensor is at home there, so that it is not fresh.
        pool.warm.retain(|free| free.index != slot.index);
        *slot.occupancy() = Occupancy::Borrowed;
        Lease(Arc::clone(slot))
    }

    /// Names the worker that holds this lease.
    pub(crate) fn assign(&self, worker: &Arc<Worker>) {
        *self.0.occupancy() = Occupancy::Leased(Some(Arc::downgrade(worker)));
    }

    pub(crate) fn slot(&self) -> &Arc<Slot> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut pool = pool();
        *self.0.occupancy() = Occupancy::Free;
        pool.warm.push(Arc::clone(&self.0));
        self.0.freed.notify_all();
        FREED.notify_all();
    }
}

/// All slots. Locked before any slot's occupancy.
#[derive(Default)]
struct Pool {
    all: Vec<Arc<Slot>>,
    /// Free, and leased before.
    warm: Vec<Arc<Slot>>,
    /// Never leased: nothing of theirs runs yet.
    fresh: Vec<Arc<Slot>>,
}

/// Told whenever any slot becomes free; goes with the pool's lock.
static FREED: Condvar = Condvar::new();

impl Pool {
    fn lease(&mut self) -> Result<Lease> {
        if self.warm.is_empty() && self.fresh.is_empty() {
            self.grow()?;
        }
        let slot = self.warm.pop().or_else(|| self.fresh.pop()).expect("the pool has just grown");
        *slot.occupancy() = Occupancy::Leased(None);
        Ok(Lease(slot))
    }

    fn grow(&mut self) -> Result<()> {
        if self.all.len() >= MOST {
            return Err(Error::NoStream { reason: format!("{MOST} streams are in use") });
        }
        let _alone = GATE.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        for _ in 0..BATCH {
            let cpu = new_stream(Device::Cpu)?;
            let gpu = Device::Gpu.is_present().then(|| new_stream(Device::Gpu)).transpose()?;
            let slot = Arc::new(Slot {
                cpu,
                gpu,
                index: self.all.len(),
                occupancy: Mutex::new(Occupancy::Free),
                freed: Condvar::new(),
                scheduling: parking_lot::Mutex::new(()),
                dropped: parking_lot::Mutex::default(),
            });
            self.all.push(Arc::clone(&slot));
            self.fresh.push(slot);
        }
        Ok(())
    }
}

fn pool() -> MutexGuard<'static, Pool> {
    static POOL: OnceLock<Mutex<Pool>> = OnceLock::new();
    POOL.get_or_init(Default::default).lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Makes a stream that any thread may use, one at a time.
fn new_stream(device: Device) -> Result<mlx_stream> {
    mlx::install_error_handler();
    // SAFETY: the caller holds the gate for writing, so that no evaluation looks streams up.
    let stream = device.with_raw(|raw| unsafe { mlx_sys::mlx_stream_new_thread_unsafe(raw) });
    if stream.ctx.is_null() {
        return Err(mlx::last_error("Stream"));
    }
    Ok(stream)
}
