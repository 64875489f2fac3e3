//! MLX's allocator, which is one for the whole process.

use crate::error::Result;
use crate::heap;
use crate::mlx;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that MLX holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// In tensors that live.
    pub active: usize,
    /// The most that was active since the last reset.
    pub peak: usize,
    /// Kept for reuse.
    pub cache: usize,
}

/// Bytes that MLX holds now.
///
/// # Errors
/// MLX's reason.
pub fn stats() -> Result<Stats> {
    mlx::install_error_handler();
    let read = |get: unsafe extern "C" fn(*mut usize) -> i32| {
        let mut bytes = 0;
        // SAFETY: each of these functions writes one size.
        mlx::check("Memory", unsafe { get(&mut bytes) }).map(|()| bytes)
    };
    Ok(Stats {
        active: read(mlx_sys::mlx_get_active_memory)?,
        peak: read(mlx_sys::mlx_get_peak_memory)?,
        cache: read(mlx_sys::mlx_get_cache_memory)?,
    })
}

/// Starts a new peak.
///
/// # Errors
/// MLX's reason.
pub fn reset_peak() -> Result<()> {
    mlx::install_error_handler();
    // SAFETY: takes nothing.
    mlx::check("Memory", unsafe { mlx_sys::mlx_reset_peak_memory() })
}

/// Gives the cache back to the system, and what the heaps keep of freed memory. Waits for running evaluations
/// on a CPU.
///
/// # Errors
/// MLX's reason.
pub fn clear_cache() -> Result<()> {
    mlx::install_error_handler();
    // SAFETY: takes nothing.
    mlx::check("Memory", unsafe { mlx_sys::mlx_clear_cache() })?;
    heap::trim();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes the bytes to keep at the end of the main heap.
    unsafe {
        libc::malloc_trim(0)
    };
    Ok(())
}

/// What can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Bytes kept for reuse.
    Cache,
    /// Bytes in use before an evaluation waits for others to end.
    Memory,
    /// Bytes that Metal keeps resident.
    Wired,
}

/// Sets a limit in bytes and returns the one before. Waits for running evaluations on a CPU.
///
/// # Errors
/// MLX's reason.
pub fn set_limit(limit: Limit, bytes: usize) -> Result<usize> {
    mlx::install_error_handler();
    let set = match limit {
        Limit::Cache => mlx_sys::mlx_set_cache_limit,
        Limit::Memory => mlx_sys::mlx_set_memory_limit,
        Limit::Wired => mlx_sys::mlx_set_wired_limit,
    };
    let mut before = 0;
    // SAFETY: each of these functions writes one size.
    mlx::check("Memory", unsafe { set(&mut before, bytes) }).map(|()| before)
}

/// The memory limit in bytes.
///
/// # Errors
/// MLX's reason.
pub fn limit() -> Result<usize> {
    mlx::install_error_handler();
    let mut bytes = 0;
    // SAFETY: writes one size.
    mlx::check("Memory", unsafe { mlx_sys::mlx_get_memory_limit(&mut bytes) }).map(|()| bytes)
}

/// Tensors up to this size do not count: there would have to be very many.
const SMALL: usize = 1 << 12;

/// Bytes built since somebody was last told to collect.
static BUILT: AtomicUsize = AtomicUsize::new(0);

/// Active bytes below which nobody is told to collect.
static COLLECT_ABOVE: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Sets the active bytes from which on processes are told to collect garbage.
pub fn set_collect_above(bytes: usize) {
    COLLECT_ABOVE.store(bytes, Ordering::Relaxed);
}

/// Whether a caller that has built a tensor of so many bytes should collect its garbage.
///
/// The BEAM sees a few words where MLX holds megabytes, and would not collect. Whoever builds the tensor
/// with which a quarter of the budget has been built since the last time is told, if more than the
/// budget is active: as a rule one that builds much, and so drops much.
pub fn should_collect(bytes: usize) -> bool {
    if bytes <= SMALL {
        return false;
    }
    let budget = COLLECT_ABOVE.load(Ordering::Relaxed);
    if BUILT.fetch_add(bytes, Ordering::Relaxed) < budget / 4 {
        return false;
    }
    BUILT.store(0, Ordering::Relaxed);
    stats().is_ok_and(|stats| stats.active > budget)
}
