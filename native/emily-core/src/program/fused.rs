//! A run of ops as a closure that MLX compiles, joining elementwise ops into one kernel.
//!
//! MLX keeps what it has compiled in a cache of each thread, under a number that the caller chooses,
//! until somebody erases it. `mlx_compile` takes addresses for numbers, which come back after a free and
//! then find another function's graph; ours are counted and never used again.
//!
//! In a trace MLX runs the ops on placeholders. Arrays that are captured and not passed become part of
//! the compiled graph, and single numbers part of the kernels; a captured array that is passed as well
//! is refused. So single numbers are captured as copies of their own, and everything else is passed.

use super::machine::Frame;
use super::{Program, OP};
use crate::build::{Arrays, Build};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::mlx;
use crate::reaper;
use crate::tensor::evaluate;
use mlx_rs::Array;
use mlx_sys::{mlx_closure, mlx_compile_cache, mlx_vector_array};
use parking_lot::Mutex;
use std::cell::{OnceCell, RefCell};
use std::ffi::{c_int, c_void};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// mlx-rs counts from 1.
const FIRST_ID: usize = 1 << 62;

/// Whether MLX can fuse ops of a device. On a CPU it needs a C++ compiler, called `g++`.
pub fn can_fuse(device: Device) -> bool {
    static COMPILER: OnceLock<bool> = OnceLock::new();
    device == Device::Gpu
        || *COMPILER.get_or_init(|| {
            heed_children();
            let quiet = Command::new("g++").arg("--version").stdout(Stdio::null()).status();
            quiet.is_ok_and(|status| status.success())
        })
}

/// Lets this process ask how its children ended. The BEAM, whose ports are children of a process of their
/// own, ignores SIGCHLD, and so MLX would take every run of the compiler for a failure. A handler that
/// somebody has installed stays.
fn heed_children() {
    // SAFETY: a struct of integers and pointers, for which zeros are values.
    let mut current: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only reads the disposition, into a struct of ours.
    let known = unsafe { libc::sigaction(libc::SIGCHLD, std::ptr::null(), &mut current) } == 0;
    if known && current.sa_sigaction == libc::SIG_IGN {
        // SAFETY: the default disposition runs no code.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    }
}

/// A run of ops that MLX has compiled.
pub struct Fused {
    body: Arc<Program>,
    id: usize,
    closure: Closure,
    /// The threads' caches that hold a trace.
    traced: Mutex<Vec<Weak<Cache>>>,
}

impl Fused {
    /// Has MLX compile the ops of `body`, when they are first applied.
    pub(super) fn new(body: Arc<Program>) -> Result<Fused> {
        static NEXT: AtomicUsize = AtomicUsize::new(FIRST_ID);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let payload = Arc::into_raw(Arc::clone(&body)).cast_mut().cast();
        // SAFETY: the payload is an Arc's, which `release` gives back; both functions never unwind.
        let traced = Closure(unsafe {
            mlx_sys::mlx_closure_new_func_payload(Some(trace), payload, Some(release))
        });
        // SAFETY: makes an empty handle.
        let mut closure = Closure(unsafe { mlx_sys::mlx_closure_new() });
        // SAFETY: both handles are live, and there are no constants.
        let status = unsafe {
            mlx_sys::mlx_detail_compile(&mut closure.0, traced.0, id, false, std::ptr::null(), 0)
        };
        mlx::check(OP, status)?;
        Ok(Fused { body, id, closure, traced: Mutex::new(Vec::new()) })
    }

    /// How many outputs it has.
    pub(super) fn output_count(&self) -> usize {
        self.body.outputs.len()
    }

    /// Builds the compiled graph on a worker's thread, tracing the ops where this thread has not.
    pub(super) fn apply(&self, inputs: &[&Array], build: &Build) -> Result<Vec<Array>> {
        let constants = if self.is_traced_here() { Vec::new() } else { self.own_constants(build)? };
        build.set_default();
        let arguments = Arrays::from_iter(inputs.iter().copied());
        let mut made = Arrays::new();
        TRACE.set(Some(Trace { build: *build, constants, error: None }));
        // SAFETY: live handles; the thread holds the slot whose streams the trace bakes in.
        let status = unsafe {
            mlx_sys::mlx_closure_apply(made.as_mut(), self.closure.0, arguments.as_raw())
        };
        let trace = TRACE.take();
        if status != 0 {
            let reason = mlx::last_error(OP);
            // A trace that failed may have left an entry that looks like a whole one.
            self.forget();
            return Err(trace.and_then(|trace| trace.error).unwrap_or(reason));
        }
        made.into_vec(OP)
    }

    /// Whether this thread's cache has a trace; if not, it is about to get one.
    fn is_traced_here(&self) -> bool {
        let here = Cache::here();
        let mut traced = self.traced.lock();
        if traced.iter().any(|cache| std::ptr::eq(cache.as_ptr(), Arc::as_ptr(&here))) {
            return true;
        }
        traced.retain(|cache| cache.strong_count() > 0);
        traced.push(Arc::downgrade(&here));
        false
    }

    /// Copies of the constants that are nobody else's, computed.
    fn own_constants(&self, build: &Build) -> Result<Vec<Array>> {
        let copy = |constant: &Array| {
            // SAFETY: the handle is live.
            build.array(OP, |res, s| unsafe { mlx_sys::mlx_copy(res, constant.as_ptr(), s) })
        };
        let copies = self.body.constants()?.iter().map(copy).collect::<Result<Vec<_>>>()?;
        evaluate(OP, &copies)?;
        Ok(copies)
    }

    fn forget(&self) {
        drop(self.traces());
    }

    /// What erases the traces when it is dropped.
    fn traces(&self) -> Traces {
        let caches = std::mem::take(&mut *self.traced.lock());
        Traces { id: self.id, caches: caches.iter().filter_map(Weak::upgrade).collect() }
    }
}

impl Drop for Fused {
    fn drop(&mut self) {
        let traces = self.traces();
        if !traces.caches.is_empty() {
            reaper::release(traces);
        }
    }
}

impl std::fmt::Debug for Fused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.body.fmt(f)
    }
}

struct Closure(mlx_closure);

// SAFETY: a closure is a constant std::function around an id and a body that is never written; it may be
// called by several threads at once, each with its own cache, and freed by any.
unsafe impl Send for Closure {}
// SAFETY: as above.
unsafe impl Sync for Closure {}

impl Drop for Closure {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and not used again.
        unsafe { mlx_sys::mlx_closure_free(self.0) };
    }
}

/// What a trace needs that MLX does not pass on.
struct Trace {
    build: Build,
    /// Empty where the thread has a trace already.
    constants: Vec<Array>,
    /// MLX replaces the reason of a failure by its own text.
    error: Option<Error>,
}

thread_local! {
    static TRACE: RefCell<Option<Trace>> = const { RefCell::new(None) };
    static CACHE: OnceCell<Arc<Cache>> = const { OnceCell::new() };
}

extern "C" fn trace(
    made: *mut mlx_vector_array,
    inputs: mlx_vector_array,
    payload: *mut c_void,
) -> c_int {
    let perform = || {
        // SAFETY: the payload is the Arc that `Fused::new` gave away, which the closure keeps.
        let body = unsafe { &*payload.cast::<Program>() };
        let (build, constants) = TRACE.with_borrow_mut(|trace| match trace {
            Some(trace) => Ok((trace.build, std::mem::take(&mut trace.constants))),
            None => Err(Error::Mlx { op: OP, message: "a trace that nobody asked for".into() }),
        })?;
        let constants = if constants.is_empty() { body.constants()? } else { constants };
        // SAFETY: a live vector, which MLX frees after the call.
        let inputs = unsafe { Arrays::read(OP, inputs) }?;
        let mut frame = Frame::new(body, inputs, constants);
        frame.apply_ops(body, &build, &|| true)?;
        let outputs = Arrays::from_iter(&frame.outputs(body)?);
        // SAFETY: both handles are live; the vector is copied.
        mlx::check(OP, unsafe { mlx_sys::mlx_vector_array_set(made, outputs.as_raw()) })
    };
    let error = match catch_unwind(AssertUnwindSafe(perform)) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error,
        Err(_) => Error::Panicked { message: "in a trace".into() },
    };
    TRACE.with_borrow_mut(|trace| {
        if let Some(trace) = trace {
            trace.error = Some(error);
        }
    });
    1
}

extern "C" fn release(payload: *mut c_void) {
    // SAFETY: the payload is an Arc's, and this is called once.
    let body = unsafe { Arc::from_raw(payload.cast::<Program>().cast_const()) };
    // A panic must not leave this function; a drop of tensors has none of its own.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(body)));
}

/// A thread's cache of what MLX has compiled: a weak reference, which is empty once the thread has ended.
struct Cache(mlx_compile_cache);

// SAFETY: the handle is written before it is shared; MLX locks the cache itself to erase.
unsafe impl Send for Cache {}
// SAFETY: as above.
unsafe impl Sync for Cache {}

impl Cache {
    fn here() -> Arc<Cache> {
        CACHE.with(|cache| {
            let make = || {
                // SAFETY: makes an empty handle.
                let mut handle = unsafe { mlx_sys::mlx_compile_cache_new() };
                // SAFETY: the handle is live. On failure it stays empty, and nothing is erased.
                unsafe { mlx_sys::mlx_detail_compile_cache(&mut handle) };
                Arc::new(Cache(handle))
            };
            Arc::clone(cache.get_or_init(make))
        })
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and not used again.
        unsafe { mlx_sys::mlx_compile_cache_free(self.0) };
    }
}

/// The traces of something fused that nobody needs any more; dropping this erases them.
struct Traces {
    id: usize,
    caches: Vec<Arc<Cache>>,
}

impl Drop for Traces {
    fn drop(&mut self) {
        for cache in &self.caches {
            // SAFETY: the handle is live; MLX locks the cache, and keeps a trace that is in use.
            unsafe { mlx_sys::mlx_detail_compile_erase(cache.0, self.id) };
        }
    }
}

/// Frees what MLX has compiled on this thread, which is about to end.
pub(crate) fn clear_traces() {
    CACHE.with(|cache| {
        if let Some(cache) = cache.get() {
            // SAFETY: the handle is live, and the thread runs nothing compiled.
            unsafe { mlx_sys::mlx_detail_compile_clear_cache(cache.0) };
        }
    });
}
