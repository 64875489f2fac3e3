//! The evaluation of arrays by the thread that holds their slot.

use crate::build::{Arrays, Describe};
use crate::device::Device;
use crate::error::Result;
use crate::look;
use crate::mlx;
use crate::room::Room;
use crate::shortage;
use crate::slot;
use mlx_rs::Array;
use std::ffi::c_uint;

/// Computes arrays and waits for them. Only the holder of their slot may.
pub(crate) fn evaluate<'a>(
    op: &'static str,
    arrays: impl IntoIterator<Item = &'a Array> + Clone,
) -> Result<()> {
    let outputs = Arrays::from_iter(arrays.clone());
    let asked = arrays.clone().into_iter().map(Describe::byte_size).sum();
    shortage::retry(op, asked, || {
        let _gate = slot::evaluating();
        let room = Room::take(outputs.as_raw());
        // MLX lets the thread sleep until the card's interrupt wakes it, which comes long after the end of
        // many small kernels.
        let ends_soon = Device::Gpu.is_cuda() && room.is_small_and_of_gpu();
        if let Some(_turn) = ends_soon.then(look::Turn::take).flatten() {
            let limit = look::time().as_micros() as c_uint;
            // SAFETY: a live vector of arrays whose slot the caller holds.
            let status =
                slot::while_scheduling(|| unsafe { mlx_sys::mlx_async_eval(outputs.as_raw()) });
            mlx::check(op, status)?;
            // SAFETY: as above.
            return mlx::check(op, unsafe { mlx_sys::emily_wait_awake(outputs.as_raw(), limit) });
        }
        // SAFETY: as above.
        let status = slot::while_scheduling(|| unsafe { mlx_sys::mlx_eval(outputs.as_raw()) });
        mlx::check(op, status)
    })?;
    for array in arrays {
        // What was scheduled before has an event, which has to go before other threads use the array.
        // SAFETY: the array is live and scheduled.
        mlx::check(op, unsafe { mlx_sys::_mlx_array_wait(array.as_ptr()) })?;
    }
    Ok(())
}

/// Has arrays computed, without waiting. Only the holder of their slot may.
pub(crate) fn schedule<'a>(
    op: &'static str,
    arrays: impl IntoIterator<Item = &'a Array>,
) -> Result<()> {
    let outputs = Arrays::from_iter(arrays);
    let _gate = slot::scheduling();
    let _room = Room::take(outputs.as_raw());
    // SAFETY: a live vector of arrays whose slot the caller holds.
    let status = slot::while_scheduling(|| unsafe { mlx_sys::mlx_async_eval(outputs.as_raw()) });
    mlx::check(op, status)
}
