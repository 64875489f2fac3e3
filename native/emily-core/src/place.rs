//! Arrays in a card's own memory.
//!
//! MLX's CUDA build leaves what comes from the host in memory that host and card share, which kernels read
//! half as fast, and which results inherit once it is free. And a stream clears away what an evaluation used a
//! while after its end.

use crate::build::{Build, Describe};
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::look;
use crate::mlx;
use crate::op::{Fill, Op};
use crate::slot::{self, Home, Lease};
use crate::tensor::evaluate;
use mlx_rs::Array;
use std::sync::Arc;

/// More bytes than this are worth it.
pub(crate) const LARGE: usize = 1 << 18;

/// Whether tensors of a device and dtype are placed. No card computes with f64.
pub(crate) fn is_for(device: Device, dtype: Dtype) -> bool {
    device.is_cuda() && dtype != Dtype::Float64
}

/// An evaluated array with a copy of `bytes`, made in any slot that is free; `None` where all are in use.
pub(crate) fn copy(
    op: &'static str,
    bytes: &[u8],
    shape: &[i64],
    dtype: Dtype,
) -> Result<Option<Array>> {
    let lease = match Lease::take_now() {
        Err(Error::NoStream { .. }) => return Ok(None),
        lease => lease?,
    };
    let fill = Fill { shape: shape.to_vec(), dtype };
    let array = Op::Zeros(fill).build(&lease.slot().build(Device::Gpu), &[])?;
    evaluate(op, [&array])?;
    let from = bytes.as_ptr().cast();
    // SAFETY: just evaluated, of as many bytes, and nobody else has it.
    mlx::check(op, unsafe { mlx_sys::emily_cuda_write(array.as_ptr(), from, bytes.len()) })?;
    Ok(Some(array))
}

/// What an array that the host makes is for workers of `home`: itself, or a copy that is still to be made.
pub(crate) fn placed(array: Array, home: &Arc<Home>) -> Result<Array> {
    if !is_for(home.device(), array.dtype_of()) || array.byte_size() <= LARGE {
        return Ok(array);
    }
    let always = Array::from_bool(true);
    // A selection is a new buffer, where MLX's own copy shares the old one.
    Op::Where.build(&home.build(), &[Some(&always), Some(&array), Some(&array)])
}

/// Whether an array was computed, or its computation was scheduled.
pub(crate) fn is_computed(array: &Array) -> bool {
    // SAFETY: the handle holds an array.
    unsafe { mlx_sys::emily_array_is_computed(array.as_ptr()) }
}

/// Waits until MLX has let go of computed arrays that are to be overwritten, on the thread that holds the
/// slot. A CUDA stream clears away what an evaluation used a while after its end, and what is asked for before
/// that is written to a copy. Small arrays are copied sooner than that.
pub(crate) fn let_go<'a>(arrays: impl Iterator<Item = &'a Array>, build: &Build) -> Result<()> {
    if !build.is_cuda() {
        return Ok(());
    }
    let large: Vec<_> =
        arrays.filter(|array| array.byte_size() > LARGE && is_computed(array)).collect();
    // SAFETY: the handle holds an array.
    let is_held = |array: &&Array| unsafe { !mlx_sys::emily_array_is_sole_owner(array.as_ptr()) };
    let free = || (!large.iter().any(is_held)).then_some(());
    if free().or_else(|| look::until(look::time(), free)).is_none() {
        // Then MLX is late, or somebody else holds them.
        slot::clear_away(build.stream())?;
    }
    Ok(())
}
