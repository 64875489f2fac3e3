//! Leaving the process: with the exit code that was asked for, whatever is queued or running.
//!
//! `exit` runs the destructors of MLX's statics while our threads and the BEAM's still run. A handler
//! registered after those statics were made runs before them:
//!
//! 1. It raises a flag: building stops (the thread sleeps for ever) and nothing is freed any more.
//! 2. It closes the gate of evaluations, which waits for those that run, and keeps it closed.
//! 3. It waits for what was scheduled on the streams.
//! 4. Where that takes longer than `PATIENCE`, it ends the process at once with the exit code. So it
//!    does with CUDA in any case: MLX's destructors synchronise its streams, and abort because the
//!    driver is shutting down.

use crate::device::Device;
use crate::slot;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long the exit waits for running evaluations.
const PATIENCE: Duration = Duration::from_secs(2);

/// Time for builders that had passed the flag: building an op takes microseconds.
const BUILDERS: Duration = Duration::from_millis(5);

static HALTING: AtomicBool = AtomicBool::new(false);

/// Whether the process is being left.
pub(crate) fn is_halting() -> bool {
    HALTING.load(Ordering::Relaxed)
}

/// Does not return once the process is being left: MLX must not be touched any more.
pub(crate) fn park_if_halting() {
    while is_halting() {
        std::thread::park();
    }
}

/// Frees a value, or leaves it to the operating system once the process is being left.
pub(crate) fn free<T>(value: T) {
    if is_halting() {
        std::mem::forget(value);
    } else {
        drop(value);
    }
}

/// Stops everything of ours. Returns whether all evaluations came to their end.
fn quiesce() -> bool {
    HALTING.store(true, Ordering::SeqCst);
    let begin = Instant::now();
    let quiet = loop {
        if let Some(closed) = slot::close_gate() {
            std::mem::forget(closed);
            break true;
        }
        if begin.elapsed() > PATIENCE {
            break false;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    std::thread::sleep(BUILDERS);
    quiet && has_computed_all(PATIENCE.saturating_sub(begin.elapsed()))
}

/// Waits for what was scheduled without anybody waiting. Returns whether that came to its end in time.
fn has_computed_all(patience: Duration) -> bool {
    if !slot::has_scheduled() {
        return true;
    }
    let (done, computed) = crossbeam_channel::bounded(1);
    let waiting = std::thread::Builder::new().spawn(move || {
        slot::synchronize_all();
        let _ = done.send(());
    });
    waiting.is_ok() && computed.recv_timeout(patience).is_ok()
}

/// Registers the handler. To be called once, after MLX has been used.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn register() {
    use std::ffi::{c_int, c_void};

    extern "C" {
        // glibc's atexit whose handler is told the exit code.
        fn on_exit(handler: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
        fn fflush(stream: *mut c_void) -> c_int;
        fn _exit(status: c_int) -> !;
    }

    extern "C" fn leave(status: c_int, _: *mut c_void) {
        if !quiesce() || Device::Gpu.is_present() {
            // SAFETY: writes what C's streams hold, then ends the process without running destructors,
            // which is the point.
            unsafe {
                fflush(std::ptr::null_mut());
                _exit(status);
            }
        }
    }

    // SAFETY: the handler is a static function; it stays mapped, because the library is linked with
    // `nodelete`.
    unsafe { on_exit(leave, std::ptr::null_mut()) };
}

/// Registers the handler. To be called once, after MLX has been used.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn register() {
    extern "C" {
        fn atexit(handler: extern "C" fn()) -> std::ffi::c_int;
    }

    extern "C" fn leave() {
        // Without the exit code an evaluation that does not end can only be left running.
        quiesce();
    }

    // SAFETY: the handler is a static function.
    unsafe { atexit(leave) };
}
