//! What the tests of ops share: arrays from and to Rust's numbers, evaluated on the test's thread.

#![allow(dead_code)] // each test file uses a part

use emily_core::build::Build;
use emily_core::dtype::Dtype;
use emily_core::error::{Error, Kind, Result};
use emily_core::op::Op;
use mlx_rs::Array;
use std::ffi::c_int;
use std::fmt::Debug;

/// A Rust number that is an element of a dtype.
pub trait Element: Copy + PartialEq + Debug {
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident,)*) => {
        $(impl Element for $rust { const DTYPE: Dtype = Dtype::$dtype; })*
    };
}

elements! {
    bool => Bool, u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64,
    i8 => Int8, i16 => Int16, i32 => Int32, i64 => Int64, f32 => Float32, f64 => Float64,
}

impl Element for mlx_sys::mlx_complex64_t {
    const DTYPE: Dtype = Dtype::Complex64;
}

pub fn complex(re: f32, im: f32) -> mlx_sys::mlx_complex64_t {
    mlx_sys::mlx_complex64_t { re, im }
}

/// The dtypes in the order of MLX's numbers.
const DTYPES: [Dtype; 14] = [
    Dtype::Bool,
    Dtype::Uint8,
    Dtype::Uint16,
    Dtype::Uint32,
    Dtype::Uint64,
    Dtype::Int8,
    Dtype::Int16,
    Dtype::Int32,
    Dtype::Int64,
    Dtype::Float16,
    Dtype::Float32,
    Dtype::Float64,
    Dtype::Bfloat16,
    Dtype::Complex64,
];

pub fn build() -> Build {
    Build::for_this_thread()
}

/// An array of a dtype whose elements are as wide as `T`.
pub fn from_slice<T: Copy>(data: &[T], shape: &[i64], dtype: Dtype) -> Array {
    build();
    assert_eq!(size_of::<T>(), dtype.size());
    assert_eq!(shape.iter().product::<i64>(), data.len() as i64, "{shape:?}");
    let shape: Vec<c_int> = shape.iter().map(|&size| size as c_int).collect();
    let number = DTYPES.iter().position(|&other| other == dtype).unwrap() as mlx_sys::mlx_dtype;
    let (data, rank) = (data.as_ptr().cast(), shape.len() as c_int);
    // SAFETY: the shape has as many elements as the data, of the dtype's width.
    unsafe { Array::from_ptr(mlx_sys::mlx_array_new_data(data, shape.as_ptr(), rank, number)) }
}

pub fn tensor<T: Element>(data: &[T], shape: &[i64]) -> Array {
    from_slice(data, shape, T::DTYPE)
}

pub fn vector<T: Element>(data: &[T]) -> Array {
    tensor(data, &[data.len() as i64])
}

pub fn scalar<T: Element>(value: T) -> Array {
    tensor(&[value], &[])
}

pub fn tensor_f32(data: &[f32], shape: &[i64]) -> Array {
    tensor(data, shape)
}

pub fn dtype(array: &Array) -> Dtype {
    // SAFETY: the handle is live.
    DTYPES[unsafe { mlx_sys::mlx_array_dtype(array.as_ptr()) } as usize]
}

pub fn shape(array: &Array) -> Vec<i64> {
    // SAFETY: the handle is live and has as many sizes as its rank.
    (0..unsafe { mlx_sys::mlx_array_ndim(array.as_ptr()) })
        .map(|axis| i64::from(unsafe { mlx_sys::mlx_array_dim(array.as_ptr(), axis as c_int) }))
        .collect()
}

/// The elements in row-major order, which evaluates.
pub fn read<T: Element>(array: &Array) -> Vec<T> {
    assert_eq!(dtype(array), T::DTYPE);
    let array = run(Op::Contiguous, &[array]).unwrap();
    // SAFETY: the handle is live; once it is evaluated its data has as many elements as its size, in
    // row-major order, and the pointer's type does not matter.
    unsafe {
        assert_eq!(mlx_sys::mlx_array_eval(array.as_ptr()), 0);
        let size = mlx_sys::mlx_array_size(array.as_ptr());
        if size == 0 {
            return Vec::new();
        }
        std::slice::from_raw_parts(mlx_sys::mlx_array_data_uint8(array.as_ptr()).cast(), size)
            .to_vec()
    }
}

/// Builds an op.
pub fn run(op: Op, inputs: &[&Array]) -> Result<Array> {
    let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
    op.build(&build(), &inputs)
}

/// Evaluates an op and compares shape, dtype and elements exactly.
#[track_caller]
pub fn check<T: Element>(op: Op, inputs: &[&Array], expected_shape: &[i64], expected: &[T]) {
    let name = format!("{op:?}");
    let result = run(op, inputs).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(shape(&result), expected_shape, "{name}");
    assert_eq!(dtype(&result), T::DTYPE, "{name}");
    let got: Vec<T> = read(&result);
    // Debug says NaN and the zero's sign, which equality does not see.
    assert_eq!(format!("{got:?}"), format!("{expected:?}"), "{name}");
}

/// Evaluates an op of f32 and compares to a relative precision.
#[track_caller]
pub fn check_close(op: Op, inputs: &[&Array], expected: &[f32]) {
    let name = format!("{op:?}");
    let result = run(op, inputs).unwrap_or_else(|error| panic!("{name}: {error}"));
    let got: Vec<f32> = read(&result);
    let close = |(a, b): (&f32, &f32)| {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 2e-6 * b.abs().max(1e-3)
    };
    assert!(
        got.len() == expected.len() && got.iter().zip(expected).all(close),
        "{name}: expected {expected:?}, got {got:?}"
    );
}

/// Evaluates an op of f64 and compares to f64's precision.
#[track_caller]
pub fn check_close_f64(op: Op, inputs: &[&Array], expected: &[f64]) {
    let name = format!("{op:?}");
    let result = run(op, inputs).unwrap_or_else(|error| panic!("{name}: {error}"));
    let got: Vec<f64> = read(&result);
    let close = |(a, b): (&f64, &f64)| {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 4e-15 * b.abs().max(1e-1)
    };
    assert!(
        got.len() == expected.len() && got.iter().zip(expected).all(close),
        "{name}: expected {expected:?}, got {got:?}"
    );
}

/// Building an op must give an error of the caller's.
#[track_caller]
pub fn refuses(op: Op, inputs: &[&Array]) -> Error {
    let name = format!("{op:?}");
    match run(op, inputs) {
        Ok(array) => panic!("{name} with shapes {:?} gave an array", shape(&array)),
        Err(error) => {
            assert_eq!(error.kind(), Kind::InvalidArgument, "{name}: {error}");
            error
        }
    }
}
