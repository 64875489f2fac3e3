//! The MLX calls that several families compose their ops from. Arguments are trusted: the family's
//! function has checked them.

use super::Inputs;
use crate::build::{Build, Describe};
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use mlx_rs::Array;
use mlx_sys::{mlx_array, mlx_stream};
use std::ffi::{c_int, c_void};

/// An mlx-c function of one array.
pub(super) type Unary = unsafe extern "C" fn(*mut mlx_array, mlx_array, mlx_stream) -> c_int;
/// An mlx-c function of two arrays.
pub(super) type Binary =
    unsafe extern "C" fn(*mut mlx_array, mlx_array, mlx_array, mlx_stream) -> c_int;

/// The nodes of one op.
#[derive(Clone, Copy)]
pub(super) struct Graph {
    /// Where they go.
    pub(super) build: Build,
    /// The op, for errors.
    pub(super) op: &'static str,
}

/// An input that must be there.
pub(super) fn input<'a>(op: &'static str, inputs: Inputs<'a>, index: usize) -> Result<&'a Array> {
    optional(inputs, index).ok_or(Error::MissingInput { op, index })
}

/// An input that may be left out or absent.
pub(super) fn optional<'a>(inputs: Inputs<'a>, index: usize) -> Option<&'a Array> {
    inputs.get(index).copied().flatten()
}

/// What mlx-c takes for an optional array.
pub(super) fn or_null(array: Option<&Array>) -> mlx_array {
    array.map_or(mlx_array { ctx: std::ptr::null_mut() }, Array::as_ptr)
}

/// The number of elements of a shape.
pub(super) fn count(shape: &[i32]) -> usize {
    shape.iter().map(|&size| size as usize).product()
}

/// The shape that two shapes broadcast to; they must.
pub(super) fn broadcast_shape(a: &[i32], b: &[i32]) -> Vec<i32> {
    let rank = a.len().max(b.len());
    let size = |shape: &[i32], axis: usize| {
        (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis])
    };
    (0..rank)
        .map(|axis| match (size(a, axis), size(b, axis)) {
            (1, size) => size,
            (size, _) => size,
        })
        .collect()
}

/// A shape as the checks take it.
pub(super) fn wide(shape: &[i32]) -> Vec<i64> {
    shape.iter().map(|&size| i64::from(size)).collect()
}

impl Graph {
    pub(super) fn new(build: &Build, op: &'static str) -> Self {
        Graph { build: *build, op }
    }

    pub(super) fn call(
        &self,
        call: impl FnOnce(*mut mlx_array, mlx_stream) -> c_int,
    ) -> Result<Array> {
        self.build.array(self.op, call)
    }

    pub(super) fn unary(&self, function: Unary, a: &Array) -> Result<Array> {
        // SAFETY: the functions are mlx-c's, which take live handles.
        self.call(|res, s| unsafe { function(res, a.as_ptr(), s) })
    }

    pub(super) fn binary(&self, function: Binary, a: &Array, b: &Array) -> Result<Array> {
        // SAFETY: the functions are mlx-c's, which take live handles.
        self.call(|res, s| unsafe { function(res, a.as_ptr(), b.as_ptr(), s) })
    }

    pub(super) fn astype(&self, a: &Array, dtype: Dtype) -> Result<Array> {
        if a.dtype_of() == dtype {
            return Ok(a.clone());
        }
        // SAFETY: the handle is live.
        self.call(|res, s| unsafe { mlx_sys::mlx_astype(res, a.as_ptr(), dtype.to_mlx(), s) })
    }

    pub(super) fn reshape(&self, a: &Array, shape: &[i32]) -> Result<Array> {
        if a.shape_of() == shape {
            return Ok(a.clone());
        }
        // SAFETY: the handle is live and the pointer has the length beside it.
        self.call(|res, s| unsafe {
            mlx_sys::mlx_reshape(res, a.as_ptr(), shape.as_ptr(), shape.len(), s)
        })
    }

    /// Exchanges the last two axes.
    pub(super) fn swap_last(&self, a: &Array) -> Result<Array> {
        // SAFETY: the handle is live.
        self.call(|res, s| unsafe { mlx_sys::mlx_swapaxes(res, a.as_ptr(), -1, -2, s) })
    }

    pub(super) fn broadcast_to(&self, a: &Array, shape: &[i32]) -> Result<Array> {
        if a.shape_of() == shape {
            return Ok(a.clone());
        }
        // SAFETY: the handle is live and the pointer has the length beside it.
        self.call(|res, s| unsafe {
            mlx_sys::mlx_broadcast_to(res, a.as_ptr(), shape.as_ptr(), shape.len(), s)
        })
    }

    pub(super) fn contiguous(&self, a: &Array) -> Result<Array> {
        // SAFETY: the handle is live.
        self.call(|res, s| unsafe { mlx_sys::mlx_contiguous(res, a.as_ptr(), false, s) })
    }

    /// One entry an axis in each list.
    pub(super) fn slice(
        &self,
        a: &Array,
        starts: &[i32],
        stops: &[i32],
        strides: &[i32],
    ) -> Result<Array> {
        // SAFETY: the handle is live and each pointer has the length beside it.
        self.call(|res, s| unsafe {
            mlx_sys::mlx_slice(
                res,
                a.as_ptr(),
                starts.as_ptr(),
                starts.len(),
                stops.as_ptr(),
                stops.len(),
                strides.as_ptr(),
                strides.len(),
                s,
            )
        })
    }

    /// A part of one axis.
    pub(super) fn slice_axis(
        &self,
        a: &Array,
        axis: usize,
        start: i32,
        stop: i32,
        stride: i32,
    ) -> Result<Array> {
        let mut starts = vec![0; a.rank()];
        let mut stops = a.shape_of().to_vec();
        let mut strides = vec![1; a.rank()];
        (starts[axis], stops[axis], strides[axis]) = (start, stop, stride);
        self.slice(a, &starts, &stops, &strides)
    }

    /// Replaces a part of `a`, one entry an axis in each list.
    pub(super) fn slice_update(
        &self,
        a: &Array,
        update: &Array,
        starts: &[i32],
        stops: &[i32],
        strides: &[i32],
    ) -> Result<Array> {
        // SAFETY: both handles are live and each pointer has the length beside it.
        self.call(|res, s| unsafe {
            mlx_sys::mlx_slice_update(
                res,
                a.as_ptr(),
                update.as_ptr(),
                starts.as_ptr(),
                starts.len(),
                stops.as_ptr(),
                stops.len(),
                strides.as_ptr(),
                strides.len(),
                s,
            )
        })
    }

    /// Pads with a scalar, one entry an axis in both lists.
    pub(super) fn pad(&self, a: &Array, low: &[i32], high: &[i32], value: &Array) -> Result<Array> {
        if low.iter().chain(high).all(|&size| size == 0) {
            return Ok(a.clone());
        }
        let axes: Vec<i32> = (0..a.rank() as i32).collect();
        // SAFETY: both handles are live, each pointer has the length beside it, the mode ends in NUL.
        self.call(|res, s| unsafe {
            mlx_sys::mlx_pad(
                res,
                a.as_ptr(),
                axes.as_ptr(),
                axes.len(),
                low.as_ptr(),
                low.len(),
                high.as_ptr(),
                high.len(),
                value.as_ptr(),
                c"constant".as_ptr(),
                s,
            )
        })
    }

    /// A view of a row-contiguous array, whose elements it must not leave.
    pub(super) fn as_strided(&self, a: &Array, shape: &[i32], strides: &[i64]) -> Result<Array> {
        // SAFETY: the handle is live and each pointer has the length beside it.
        self.call(|res, s| unsafe {
            mlx_sys::mlx_as_strided(
                res,
                a.as_ptr(),
                shape.as_ptr(),
                shape.len(),
                strides.as_ptr(),
                strides.len(),
                0,
                s,
            )
        })
    }

    pub(super) fn zeros(&self, shape: &[i32], dtype: Dtype) -> Result<Array> {
        // SAFETY: the pointer has the length beside it.
        self.call(|res, s| unsafe {
            mlx_sys::mlx_zeros(res, shape.as_ptr(), shape.len(), dtype.to_mlx(), s)
        })
    }

    /// The numbers from 0 to `size - 1`.
    pub(super) fn iota(&self, size: i32, dtype: Dtype) -> Result<Array> {
        // SAFETY: takes no pointer but the result's.
        self.call(|res, s| unsafe {
            mlx_sys::mlx_arange(res, 0.0, f64::from(size), 1.0, dtype.to_mlx(), s)
        })
    }

    /// Elements of `x` where `condition` holds, of `y` elsewhere.
    pub(super) fn select(&self, condition: &Array, x: &Array, y: &Array) -> Result<Array> {
        // SAFETY: the handles are live.
        self.call(|res, s| unsafe {
            mlx_sys::mlx_where(res, condition.as_ptr(), x.as_ptr(), y.as_ptr(), s)
        })
    }

    /// A scalar of any dtype.
    pub(super) fn scalar(&self, value: f64, dtype: Dtype) -> Result<Array> {
        if dtype == Dtype::Float64 {
            return Ok(Array::from_f64(value));
        }
        self.astype(&Array::from_f32(value as f32), dtype)
    }

    /// What the host computes with on a device with memory of its own: a copy.
    ///
    /// MLX moves a buffer that the host reads to unified memory, and frees the device's, which kernels
    /// of other streams may be using.
    pub(super) fn copy_for_host(&self, array: &Array) -> Result<Array> {
        // No device has computed an f64.
        let is_of_host = self.build.is_cpu() || array.dtype_of() == Dtype::Float64;
        if is_of_host || !Device::Gpu.has_memory_of_its_own() {
            return Ok(array.clone());
        }
        // A selection is a new buffer, where MLX's own copy shares the old one.
        self.select(&self.scalar(1.0, Dtype::Bool)?, array, array)
    }
}

/// The least and the greatest number of an integer dtype.
pub(super) fn range(dtype: Dtype) -> (i128, i128) {
    let bits = dtype.bits();
    if dtype.is_signed_integer() {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

/// A scalar of an integer dtype, which holds the value.
pub(super) fn integer(value: i64, dtype: Dtype) -> Array {
    constants(&[value], &[], dtype)
}

/// A vector of an integer dtype, which holds the values.
pub(super) fn integers(values: &[i64], dtype: Dtype) -> Array {
    constants(values, &[values.len() as i32], dtype)
}

fn constants(values: &[i64], shape: &[i32], dtype: Dtype) -> Array {
    let make = |data: *const c_void| {
        // SAFETY: the buffer is aligned and holds as many elements as the shape says; MLX copies
        // them, and reads the shape's pointer for its length only.
        unsafe {
            let (dim, dtype) = (shape.len() as c_int, dtype.to_mlx());
            Array::from_ptr(mlx_sys::mlx_array_new_data(data, shape.as_ptr(), dim, dtype))
        }
    };
    // Two's complement: the low bits of a wider integer are the narrower one.
    match dtype.size() {
        1 => make(values.iter().map(|&value| value as u8).collect::<Vec<_>>().as_ptr().cast()),
        2 => make(values.iter().map(|&value| value as u16).collect::<Vec<_>>().as_ptr().cast()),
        4 => make(values.iter().map(|&value| value as u32).collect::<Vec<_>>().as_ptr().cast()),
        _ => make(values.as_ptr().cast()),
    }
}
