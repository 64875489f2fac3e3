//! MLX's allocator, which is one for the whole process.

use crate::error::Result;
use crate::mlx;

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

/// Gives the cache back to the system. Waits for running evaluations on a CPU.
///
/// # Errors
/// MLX's reason.
pub fn clear_cache() -> Result<()> {
    mlx::install_error_handler();
    // SAFETY: takes nothing.
    mlx::check("Memory", unsafe { mlx_sys::mlx_clear_cache() })
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
