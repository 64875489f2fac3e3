//! The half types of mlx-c, which declares them on some targets only, as mlx-rs expects them.

use crate::{mlx_array, mlx_array_data_uint16, mlx_array_item_uint16};

/// IEEE 754 binary16, as its bits.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct float16_t(pub u16);

/// The upper half of an IEEE 754 binary32, as its bits.
pub type bfloat16_t = u16;

/// Reads the one element of an evaluated f16 array.
///
/// # Safety
/// `res` is writable and `arr` holds an array.
pub unsafe fn mlx_array_item_float16(res: *mut float16_t, arr: mlx_array) -> std::os::raw::c_int {
    // SAFETY: float16_t is a transparent u16, and MLX reads items by reinterpreting the buffer.
    unsafe { mlx_array_item_uint16(res.cast(), arr) }
}

/// Reads the one element of an evaluated bf16 array.
///
/// # Safety
/// `res` is writable and `arr` holds an array.
pub unsafe fn mlx_array_item_bfloat16(res: *mut bfloat16_t, arr: mlx_array) -> std::os::raw::c_int {
    // SAFETY: as for float16_t.
    unsafe { mlx_array_item_uint16(res, arr) }
}

/// The data of an evaluated f16 array.
///
/// # Safety
/// `arr` holds an evaluated array.
pub unsafe fn mlx_array_data_float16(arr: mlx_array) -> *const float16_t {
    // SAFETY: MLX reinterprets the buffer, whatever the dtype.
    unsafe { mlx_array_data_uint16(arr).cast() }
}

/// The data of an evaluated bf16 array.
///
/// # Safety
/// `arr` holds an evaluated array.
pub unsafe fn mlx_array_data_bfloat16(arr: mlx_array) -> *const bfloat16_t {
    // SAFETY: as for float16_t.
    unsafe { mlx_array_data_uint16(arr) }
}
