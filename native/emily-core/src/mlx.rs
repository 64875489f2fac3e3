//! The one way into MLX: calls that return a status become `Result`s with MLX's own text.

use crate::error::{Error, Result};
use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void, CStr};
use std::sync::Once;

extern "C" {
    // mlx-rs' own handler (error.rs), which keeps the text for its safe functions.
    fn default_mlx_error_handler(message: *const c_char, data: *mut c_void);
}

/// What the error handler heard last on this thread.
struct Failure {
    message: String,
    invalid_argument: bool,
}

thread_local! {
    static LAST: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

/// Replaces MLX's error handler by one that keeps the message and its class for the caller. Must run before anything else of MLX; later calls do nothing.
pub(crate) fn install_error_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // mlx-rs installs its handler at its first guarded call and would replace ours: let it go first.
        let _ = mlx_rs::memory::active_memory();
        // SAFETY: the handler is a static function and takes no data.
        unsafe { mlx_sys::mlx_set_error_handler(Some(on_error), std::ptr::null_mut(), None) };
    });
}

/// Sets what MLX reads from the environment, unless the user has, and mends what it does with CUDA's streams.
/// Must run once, before anything else of MLX.
pub(crate) fn configure() {
    let defaults = [
        // Each CUDA stream keeps executable graphs by their topology, 400 of them, and counts the
        // topologies that were new to it. From the 801st on, over the stream's whole life, MLX takes that
        // for thrashing and fails the evaluation. A server meets as many shapes in a day: old graphs
        // make room for new ones all the same.
        ("MLX_ENABLE_CACHE_THRASHING_CHECK", "0"),
        // Where several threads record CUDA graphs at once, a recording fails now and then, in a
        // destructor of MLX's, which ends the process.
        ("MLX_USE_CUDA_GRAPHS", "0"),
    ];
    for (name, value) in defaults {
        if std::env::var_os(name).is_none() {
            std::env::set_var(name, value);
        }
    }
    // SAFETY: nothing of MLX runs yet, and this is called once.
    unsafe { mlx_sys::emily_cuda_quiet_workers() };
    // SAFETY: as above.
    unsafe { mlx_sys::emily_cuda_keep_events() };
}

extern "C" fn on_error(message: *const c_char, data: *mut c_void) {
    // SAFETY: mlx-c passes a NUL-terminated text that lives for this call.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    // SAFETY: mlx-c calls the handler inside its catch block.
    let invalid_argument = unsafe { mlx_sys::emily_current_exception_is_invalid_argument() };
    let failure = Failure { message: text.into_owned(), invalid_argument };
    // The thread's locals may be gone when MLX frees something at its end; nobody asks then.
    let _ = LAST.try_with(|last| last.replace(Some(failure)));
    if LAST.try_with(|_| ()).is_ok() {
        // SAFETY: the same arguments that this handler was given.
        unsafe { default_mlx_error_handler(message, data) };
    }
}

/// Makes the error of a call that has just failed on this thread.
pub(crate) fn last_error(op: &'static str) -> Error {
    let failure = LAST.with(|last| last.take());
    match failure {
        Some(Failure { message, invalid_argument: true }) => Error::MlxArgument { op, message },
        Some(Failure { message, invalid_argument: false }) => Error::Mlx { op, message },
        None => Error::Mlx { op, message: "MLX failed without a message".into() },
    }
}

/// Turns the status of an mlx-c call into a `Result`.
pub(crate) fn check(op: &'static str, status: c_int) -> Result<()> {
    if status == 0 {
        Ok(())
    } else {
        Err(last_error(op))
    }
}
