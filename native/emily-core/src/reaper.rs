//! Ends things on a thread that may wait: threads are joined and large or unevaluated arrays freed
//! here, never on a scheduler that is collecting garbage.

use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::halt;
use crate::mlx;
use crate::op::{Fill, Op};
use crate::retired;
use crate::slot::{Lease, Slot};
use crate::tensor::{evaluate, InFlight};
use crossbeam_channel::{unbounded, Receiver, RecvTimeoutError, Sender};
use mlx_rs::Array;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What is to be ended.
enum Remains {
    Array(Array),
    /// Not an end: a slot keeps what its streams may still write to, or graphs of lazy arrays that hold such.
    Scheduled(Arc<Slot>),
    /// Something with arrays inside.
    Arrays(Box<dyn Send>),
    /// Not an end: look at what is retired, when its threads have had their time.
    Watch,
    /// A thread that has done its last work.
    Thread(JoinHandle<()>),
    /// Not an end: MLX is prepared on this thread.
    Start(Sender<Result<()>>),
    /// Somebody waits until everything before it has been ended.
    Flush(Sender<()>),
}

/// How long the reaper waits for a slot that is scheduling, as a rule for a millisecond. Seconds pass where a kernel
/// is compiled meanwhile, and other slots' arrays are not to wait for that.
const PATIENCE: Duration = Duration::from_millis(5);

/// Of the reaper's thread.
const NAME: &str = "emily-reaper";

/// How long the reaper gathers before it sleeps again. Waking a sleeping thread costs a scheduler
/// some microseconds, which this bounds to once in the time.
const GATHER: Duration = Duration::from_millis(1);

fn queue() -> &'static Sender<Remains> {
    static QUEUE: OnceLock<Sender<Remains>> = OnceLock::new();
    QUEUE.get_or_init(|| {
        let (sender, receiver) = unbounded();
        thread::Builder::new()
            .name(NAME.into())
            .spawn(move || reap(&receiver))
            .expect("the operating system has room for one thread when emily is loaded");
        sender
    })
}

/// Prepares MLX. Call it before anything else of this crate; later calls return the first one's result.
///
/// MLX treats the thread that touches it first as its main thread. That becomes the reaper, which
/// lives as long as the process.
///
/// # Errors
/// MLX's reason.
pub fn start() -> Result<()> {
    static STARTED: OnceLock<Result<()>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            let (sender, started) = crossbeam_channel::bounded(1);
            hand_over(Remains::Start(sender));
            started.recv().expect("the reaper answers")
        })
        .clone()
}

fn prepare() -> Result<()> {
    mlx::configure();
    mlx::install_error_handler();
    let device = Device::preferred();
    // SAFETY: a live device; nothing else of MLX runs yet.
    let status = device.with_raw(|raw| unsafe { mlx_sys::mlx_set_default_device(raw) });
    mlx::check("Device", status)?;
    Lease::prepare()?;
    // One evaluation, so that MLX's statics exist before the handler of the exit is registered.
    let lease = Lease::take()?;
    let build = lease.slot().build(device);
    let fill = Fill { shape: vec![1], dtype: Dtype::Float32 };
    let zero = Op::Zeros(fill).build(&build, &[])?;
    let one = Op::Exp.build(&build, &[Some(&zero)])?;
    // There and back between the devices, since that has statics too.
    let on_host = Op::Exp.build(&build.on_cpu(), &[Some(&one)])?;
    evaluate("Start", [&Op::Exp.build(&build, &[Some(&on_host)])?])?;
    if build.is_cuda() {
        // What CUDA's libraries make when they are first used ends before a handler that was registered
        // earlier, and may be in use then: the compiler of kernels, and the choice among products.
        // SAFETY: takes nothing.
        unsafe { mlx_sys::emily_cuda_prepare_compiler() };
        let fill = Fill { shape: vec![2, 2], dtype: Dtype::Float32 };
        let square = Op::Zeros(fill).build(&build, &[])?;
        evaluate("Start", [&Op::Matmul.build(&build, &[Some(&square), Some(&square)])?])?;
    }
    halt::register();
    Ok(())
}

fn reap(remains: &Receiver<Remains>) {
    let soon = || Instant::now() + retired::IDLE;
    let mut look_at: Option<Instant> = None;
    // Those that were still scheduling.
    let mut late = Vec::new();
    loop {
        late.retain(|slot| !has_freed_kept(slot));
        let again = (!late.is_empty()).then(|| Instant::now() + GATHER);
        let first = match look_at.into_iter().chain(again).min() {
            Some(at) if at <= Instant::now() => Err(RecvTimeoutError::Timeout),
            Some(at) => remains.recv_deadline(at),
            None => remains.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match first {
            Ok(first) => {
                end(first, &mut late);
                while let Ok(next) = remains.try_recv() {
                    end(next, &mut late);
                }
                look_at = look_at.or_else(|| retired::is_watched().then(soon));
                thread::sleep(GATHER);
            }
            Err(RecvTimeoutError::Timeout) => {
                if look_at.is_some_and(|at| at <= Instant::now()) {
                    look_at = retired::free_untouched().then(soon);
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Frees what a slot keeps; says no where it goes on scheduling.
fn has_freed_kept(slot: &Arc<Slot>) -> bool {
    let Some((arrays, in_flight)) = slot.take_kept(PATIENCE, InFlight::of) else { return false };
    // A buffer that is freed is somebody else's next: what a stream still writes to it has to be written.
    in_flight.wait();
    arrays.into_iter().for_each(halt::free);
    true
}

fn end(remains: Remains, late: &mut Vec<Arc<Slot>>) {
    match remains {
        Remains::Array(array) => halt::free(array),
        Remains::Scheduled(slot) => {
            if !has_freed_kept(&slot) {
                late.push(slot);
            }
        }
        Remains::Arrays(arrays) => halt::free(arrays),
        Remains::Thread(handle) => {
            // A panic of a worker's thread was reported by its jobs.
            let _ = handle.join();
        }
        // The loop looks when it has gathered.
        Remains::Watch => {}
        Remains::Start(done) => {
            let _ = done.send(prepare());
        }
        Remains::Flush(done) => {
            while !late.is_empty() {
                late.retain(|slot| !has_freed_kept(slot));
            }
            let _ = done.send(());
        }
    }
}

fn hand_over(remains: Remains) {
    // The reaper lives as long as the process, so that the send cannot fail.
    let _ = queue().send(remains);
}

/// Frees an array soon.
pub(crate) fn free(array: Array) {
    hand_over(Remains::Array(array));
}

/// Frees an array of a slot once what was scheduled of it and of its graph is computed.
pub(crate) fn free_once_computed(array: Array, slot: &Arc<Slot>) {
    if slot.keep(array) {
        hand_over(Remains::Scheduled(Arc::clone(slot)));
    }
}

/// Frees something with arrays inside soon.
pub(crate) fn release(arrays: impl Send + 'static) {
    hand_over(Remains::Arrays(Box::new(arrays)));
}

/// Has the lists of retired tensors looked at from now on.
pub(crate) fn watch_retired() {
    hand_over(Remains::Watch);
}

/// Joins a thread that is about to end.
pub(crate) fn join(handle: JoinHandle<()>) {
    hand_over(Remains::Thread(handle));
}

/// Waits until everything handed over before, and what is retired, has been freed or joined.
pub fn flush() {
    retired::free_all();
    // The reaper itself has nothing to wait for.
    if thread::current().name() == Some(NAME) {
        return;
    }
    let (done, flushed) = crossbeam_channel::bounded(1);
    hand_over(Remains::Flush(done));
    let _ = flushed.recv();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::while_scheduling;
    use crate::tensor::Tensor;

    /// `flush` would empty the lists of retired tensors of other tests, too.
    fn until_ended() {
        let (done, flushed) = crossbeam_channel::bounded(1);
        hand_over(Remains::Flush(done));
        flushed.recv().unwrap();
    }

    fn array() -> Array {
        let tensor = Tensor::from_bytes(&[0; 4], &[1], Dtype::Int32, Device::Cpu).unwrap();
        tensor.handle("Ones").unwrap()
    }

    fn is_held(array: &Array) -> bool {
        // SAFETY: the handle holds an array.
        unsafe { mlx_sys::emily_array_is_shared(array.as_ptr()) }
    }

    /// Tells when it is dropped.
    struct Witness(Sender<()>);

    impl Drop for Witness {
        fn drop(&mut self) {
            self.0.send(()).unwrap();
        }
    }

    #[test]
    fn a_slot_that_goes_on_scheduling_keeps_nothing_else_from_being_freed() {
        start().unwrap();
        let lease = Lease::take().unwrap();
        let _evaluating = lease.enter();
        let array = array();
        let (sender, told) = crossbeam_channel::bounded(1);
        while_scheduling(|| {
            free_once_computed(array.clone(), lease.slot());
            release(Witness(sender));
            told.recv_timeout(Duration::from_secs(30)).expect("freed meanwhile");
            assert!(is_held(&array));
        });
        until_ended();
        assert!(!is_held(&array));
    }

    #[test]
    fn what_is_dropped_while_a_slot_schedules_is_freed_when_it_has() {
        start().unwrap();
        let lease = Lease::take().unwrap();
        let _evaluating = lease.enter();
        let slot = lease.slot();
        let arrays = [array(), array(), array()];
        while_scheduling(|| {
            arrays.iter().for_each(|array| free_once_computed(array.clone(), slot));
            assert!(arrays.iter().all(is_held));
        });
        until_ended();
        assert!(!arrays.iter().any(is_held));
        // What comes later is handed over again.
        free_once_computed(arrays[0].clone(), slot);
        until_ended();
        assert!(!is_held(&arrays[0]));
    }
}
