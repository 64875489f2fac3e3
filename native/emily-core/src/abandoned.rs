//! Tensors that nobody refers to any more, on their way to the reaper.
//!
//! A garbage collection on a scheduler may drop very many tensors at once. Handing one over takes a
//! single exchange of a pointer: the list runs through the tensors themselves.

use crate::halt;
use crate::reaper;
use crate::tensor::Inner;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::Arc;

/// The tensor that was abandoned last; each names the one before.
static LAST: AtomicPtr<Inner> = AtomicPtr::new(ptr::null_mut());

/// Whether the reaper wants to be told of the next one.
static IS_AWAITED: AtomicBool = AtomicBool::new(false);

/// Adds the only reference that is left.
pub(crate) fn add(inner: Arc<Inner>) {
    let added = Arc::into_raw(inner).cast_mut();
    let mut before = LAST.load(Ordering::Relaxed);
    loop {
        // SAFETY: the reference just given up keeps it until the reaper takes it out of the list.
        unsafe { &*added }.before.store(before, Ordering::Relaxed);
        // Before the load below in the one order of all: see `await_next`.
        match LAST.compare_exchange_weak(before, added, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => break,
            Err(other) => before = other,
        }
    }
    if IS_AWAITED.load(Ordering::SeqCst) && IS_AWAITED.swap(false, Ordering::SeqCst) {
        reaper::wake();
    }
}

/// Frees those that are there, on the reaper's thread.
pub(crate) fn free_all() {
    let mut next = LAST.swap(ptr::null_mut(), Ordering::Acquire);
    while !next.is_null() {
        // SAFETY: `add` made the pointer from an Arc, and this alone takes it back.
        let inner = unsafe { Arc::from_raw(next) };
        next = inner.before.load(Ordering::Relaxed);
        if let Some(mut inner) = Arc::into_inner(inner) {
            inner.take_array().into_iter().for_each(halt::free);
        }
    }
}

/// Asks for [`reaper::wake`] at the next one; false if there is one already.
pub(crate) fn await_next() -> bool {
    // Either this sees a tensor that is added meanwhile, or whoever adds it sees this.
    IS_AWAITED.store(true, Ordering::SeqCst);
    LAST.load(Ordering::SeqCst).is_null() || !IS_AWAITED.swap(false, Ordering::SeqCst)
}
