//! Memory that others own, by its address.

use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::ffi::{c_int, c_long, c_void};

extern "C" {
    fn msync(address: *mut c_void, length: usize, flags: c_int) -> c_int;
    fn getpagesize() -> c_int;
}

/// `MS_ASYNC` of Linux and macOS.
const CHECK_ONLY: c_int = 1;

impl Tensor {
    /// A ready tensor with a copy of the `size` bytes at `address`, row-major in the host's byte order.
    ///
    /// An address that is null or in memory that this process does not have is an error, not a fault.
    ///
    /// # Errors
    /// [`Error::Argument`] for such an address, a wrong shape, or a size that is not the shape's.
    ///
    /// # Safety
    /// Where the process has the memory, it may be read, and nobody writes to it or gives it back
    /// meanwhile.
    pub unsafe fn from_address(
        address: usize,
        size: usize,
        shape: &[i64],
        dtype: Dtype,
        device: Device,
    ) -> Result<Self> {
        if address == 0 || !is_mapped(address, size) {
            return Err(Error::Argument {
                op: "FromPointer",
                what: "address",
                expected: format!("{size} bytes of this process's memory"),
                got: format!("{address:#x}"),
            });
        }
        // SAFETY: the memory is there and, as the caller promises, stays as it is meanwhile.
        let bytes = unsafe { std::slice::from_raw_parts(address as *const u8, size) };
        Self::from_bytes(bytes, shape, dtype, device)
    }
}

/// Whether the process has every page of a range of addresses.
fn is_mapped(address: usize, size: usize) -> bool {
    // SAFETY: takes nothing.
    let page = c_long::from(unsafe { getpagesize() }) as usize;
    let first = address / page * page;
    let end = address.checked_add(size).filter(|&end| end <= isize::MAX as usize);
    let Some(length) = end.map(|end| end - first) else { return false };
    // SAFETY: asks the system to look at the pages; for ones that are not there it returns an error.
    unsafe { msync(first as *mut c_void, length, CHECK_ONLY) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(address: usize, size: usize, shape: &[i64]) -> Result<Tensor> {
        // SAFETY: the tests' addresses are of live vectors, or of no memory at all.
        unsafe { Tensor::from_address(address, size, shape, Dtype::Float32, Device::Cpu) }
    }

    #[test]
    fn copies_what_is_there() {
        let numbers = vec![1.5f32; 5000];
        let tensor = copy(numbers.as_ptr() as usize, 20_000, &[50, 100]).unwrap();
        drop(numbers);
        let bytes = tensor.bytes().unwrap().unwrap();
        assert!(bytes.chunks(4).all(|chunk| chunk == 1.5f32.to_ne_bytes()));
    }

    #[test]
    fn refuses_addresses_without_memory() {
        let number = 1.0f32;
        let here = &raw const number as usize;
        for (address, size) in [(0, 4), (8, 4), (1 << 46, 4), (usize::MAX - 3, 4), (here, 1 << 46)]
        {
            let Err(Error::Argument { what, .. }) = copy(address, size, &[1]) else {
                panic!("{address:#x} was taken");
            };
            assert_eq!(what, "address");
        }
    }

    #[test]
    fn refuses_another_size() {
        let numbers = [1.0f32, 2.0];
        let address = numbers.as_ptr() as usize;
        assert!(matches!(copy(address, 8, &[3]), Err(Error::Argument { .. })));
    }
}
