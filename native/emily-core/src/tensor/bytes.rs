//! What is read of a tensor.

use super::{free, Weight};
use crate::error::Result;
use crate::mlx;
use mlx_rs::Array;

/// The elements of a tensor, row-major in the host's byte order, which stay as long as this lives.
#[derive(Debug)]
pub struct Bytes {
    /// Keeps the buffer, and keeps MLX from reusing it for a result. `None` where `copy` has the bytes.
    array: Option<Array>,
    /// What was copied from a device whose memory the host does not read.
    copy: Box<[u8]>,
    start: *const u8,
    length: usize,
}

// SAFETY: the buffer of an evaluated array is not written again while a handle on it lives.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// Of an evaluated array, if its elements lie in order.
    pub(super) fn of(array: Array, length: usize) -> Option<Self> {
        let mut in_order = false;
        // SAFETY: the array is live; this reads a flag that evaluation has set.
        let status =
            unsafe { mlx_sys::_mlx_array_is_row_contiguous(&mut in_order, array.as_ptr()) };
        if status != 0 || !in_order {
            return None;
        }
        // SAFETY: the array is evaluated; MLX reinterprets its buffer whatever the dtype.
        let start = unsafe { mlx_sys::mlx_array_data_uint8(array.as_ptr()) };
        Some(Bytes { array: Some(array), copy: Box::default(), start, length })
    }

    /// Of a tensor without elements.
    pub(super) fn none() -> Self {
        Bytes { array: None, copy: Box::default(), start: std::ptr::null(), length: 0 }
    }

    /// A copy of an array that the calling thread has just evaluated, whose elements lie in order. The
    /// array's buffer stays as it is: other streams may be computing with it.
    pub(super) fn copied(array: &Array, length: usize) -> Result<Self> {
        let mut copy = vec![0; length].into_boxed_slice();
        // SAFETY: the array is evaluated and has `length` bytes; so has the copy.
        let status =
            unsafe { mlx_sys::emily_cuda_read(array.as_ptr(), copy.as_mut_ptr().cast(), length) };
        mlx::check("ToBinary", status)?;
        Ok(Bytes { array: None, copy, start: std::ptr::null(), length })
    }

    /// Where they are.
    pub fn address(&self) -> usize {
        self.start as usize
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.array.is_none() {
            return &self.copy;
        }
        if self.length == 0 {
            return &[];
        }
        // SAFETY: a row-contiguous array has its `length` bytes at `start`, and `array` keeps them.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(array) = self.array.take() {
            free(array, Weight { bytes: self.length, nodes: 0 });
        }
    }
}
