//! Clamped starts of parts, which the ops of a program share: a decoding step writes all its caches at one
//! start, and clamping takes more nodes than writing.

use crate::error::Result;
use crate::tensor::copy_handle;
use mlx_rs::Array;
use std::cell::RefCell;

thread_local! {
    /// Of the ops that this thread builds at the moment, if they are a program's.
    static SHARED: RefCell<Option<Vec<Clamped>>> = const { RefCell::new(None) };
}

struct Clamped {
    /// Kept, so that no other array gets its identity.
    start: Array,
    limits: Vec<i64>,
    clamped: Array,
}

/// While this lives, ops that this thread builds share starts among them.
pub(crate) struct Sharing(Option<Vec<Clamped>>);

impl Sharing {
    /// Begins with none. What was shared before goes on afterwards: a program may be traced within another.
    pub(crate) fn begin() -> Self {
        Sharing(SHARED.replace(Some(Vec::new())))
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        SHARED.set(self.0.take());
    }
}

/// A start clamped to limits, made by `clamp` where it is not there yet.
pub(super) fn shared(
    op: &'static str,
    start: &Array,
    limits: &[i64],
    clamp: impl FnOnce() -> Result<Array>,
) -> Result<Array> {
    let known = SHARED.with_borrow(|shared| {
        let found = shared
            .as_ref()?
            .iter()
            .find(|known| id(&known.start) == id(start) && known.limits == limits)?;
        Some(copy_handle(op, &found.clamped))
    });
    if let Some(known) = known {
        return known;
    }
    let clamped = clamp()?;
    let entry = Clamped {
        start: copy_handle(op, start)?,
        limits: limits.to_vec(),
        clamped: copy_handle(op, &clamped)?,
    };
    SHARED.with_borrow_mut(|shared| shared.as_mut().map(|shared| shared.push(entry)));
    Ok(clamped)
}

fn id(array: &Array) -> usize {
    // SAFETY: the handle holds an array.
    unsafe { mlx_sys::emily_array_id(array.as_ptr()) }
}
