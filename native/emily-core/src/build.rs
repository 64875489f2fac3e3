//! Building nodes of MLX's graph: which stream they go to and how a call becomes an array.

use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::mlx;
use mlx_rs::Array;
use mlx_sys::{mlx_array, mlx_stream, mlx_vector_array};
use std::cell::Cell;
use std::ffi::{c_int, c_void};

/// The streams that new nodes are bound to. Building is bookkeeping and needs no lock; any thread may do
/// it at any time.
#[derive(Clone, Copy)]
pub struct Build {
    stream: mlx_stream,
    /// Both streams of the slot, of which `stream` is one. On a host without a GPU there is no `gpu`.
    cpu: mlx_stream,
    gpu: Option<mlx_stream>,
}

// SAFETY: a stream handle points to an index and a device, written once before the pool hands it
// out, never freed (the pool lives as long as the process) and only read by MLX.
unsafe impl Send for Build {}
// SAFETY: as above.
unsafe impl Sync for Build {}

impl Build {
    /// The handles must live for the rest of the process, as the pool's do.
    pub(crate) fn new(device: Device, cpu: mlx_stream, gpu: Option<mlx_stream>) -> Self {
        let stream = match (device, gpu) {
            (Device::Gpu, Some(gpu)) => gpu,
            _ => cpu,
        };
        Build { stream, cpu, gpu }
    }

    /// For tests and benchmarks: nodes on a CPU stream of the calling thread, the only one that may
    /// evaluate them.
    pub fn for_this_thread() -> Self {
        thread_local! {
            static BUILD: Build = {
                mlx::install_error_handler();
                // SAFETY: takes a live device and makes a stream, which lives as long as the process.
                let cpu = Device::Cpu.with_raw(|raw| unsafe { mlx_sys::mlx_stream_new_device(raw) });
                Build::new(Device::Cpu, cpu, None)
            };
        }
        BUILD.with(|build| *build)
    }

    /// The same, with every node on the CPU: for what a GPU lacks.
    pub(crate) fn on_cpu(&self) -> Self {
        Build { stream: self.cpu, ..*self }
    }

    /// The same, with every node on the GPU, where there is one.
    pub(crate) fn on_gpu(&self) -> Self {
        Build { stream: self.gpu.unwrap_or(self.cpu), ..*self }
    }

    /// The device that nodes are computed on.
    pub(crate) fn device(&self) -> Device {
        if self.is_cpu() {
            Device::Cpu
        } else {
            Device::Gpu
        }
    }

    /// Whether nodes are computed on a CPU.
    pub fn is_cpu(&self) -> bool {
        self.stream.ctx == self.cpu.ctx
    }

    /// Whether nodes are computed by CUDA.
    pub(crate) fn is_cuda(&self) -> bool {
        !self.is_cpu() && Device::Gpu.has_memory_of_its_own()
    }

    pub(crate) fn stream(&self) -> mlx_stream {
        self.stream
    }

    /// Makes the slot's streams this thread's defaults. Some MLX ops put an inner node on the calling
    /// thread's default stream whatever stream they are given, and it has to be one of this slot's.
    ///
    /// Nothing else sets a default, so that what this thread had last is known: an op built is mostly
    /// of the stream of the one before.
    pub(crate) fn set_default(&self) {
        thread_local! {
            static LAST: Cell<*mut c_void> = const { Cell::new(std::ptr::null_mut()) };
        }
        // Every slot has a CPU stream of its own, which tells it.
        if LAST.replace(self.cpu.ctx) == self.cpu.ctx {
            return;
        }
        // SAFETY: a live stream of the pool. Setting cannot fail for a device that has one.
        unsafe { mlx_sys::mlx_set_default_stream(self.cpu) };
        if let Some(gpu) = self.gpu {
            // SAFETY: as above.
            unsafe { mlx_sys::mlx_set_default_stream(gpu) };
        }
    }

    /// Calls an mlx-c function that makes one array.
    pub(crate) fn array(
        &self,
        op: &'static str,
        call: impl FnOnce(*mut mlx_array, mlx_stream) -> c_int,
    ) -> Result<Array> {
        self.set_default();
        // SAFETY: makes an empty handle.
        let mut made = unsafe { mlx_sys::mlx_array_new() };
        let status = call(&mut made, self.stream);
        // SAFETY: the handle is ours alone; an empty one is freed like any other.
        let array = unsafe { Array::from_ptr(made) };
        mlx::check(op, status).map(|()| array)
    }

    /// Calls an mlx-c function that fills a vector of arrays.
    pub(crate) fn arrays(
        &self,
        op: &'static str,
        call: impl FnOnce(*mut mlx_vector_array, mlx_stream) -> c_int,
    ) -> Result<Vec<Array>> {
        self.set_default();
        let mut made = Arrays::new();
        mlx::check(op, call(&mut made.0, self.stream))?;
        made.into_vec(op)
    }
}

/// An mlx-c vector of arrays.
pub(crate) struct Arrays(mlx_vector_array);

impl Arrays {
    pub(crate) fn new() -> Self {
        // SAFETY: makes an empty vector.
        Arrays(unsafe { mlx_sys::mlx_vector_array_new() })
    }

    /// The vector that mlx-c takes as an argument.
    pub(crate) fn from_iter<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Self {
        let vector = Self::new();
        for array in arrays {
            // SAFETY: both handles are live; the vector keeps its own reference. Appending can
            // only fail for want of memory, which aborts in C++'s allocator before a status.
            unsafe { mlx_sys::mlx_vector_array_append_value(vector.0, array.as_ptr()) };
        }
        vector
    }

    pub(crate) fn as_raw(&self) -> mlx_vector_array {
        self.0
    }

    pub(crate) fn as_mut(&mut self) -> *mut mlx_vector_array {
        &mut self.0
    }

    pub(crate) fn into_vec(self, op: &'static str) -> Result<Vec<Array>> {
        // SAFETY: the vector is live.
        unsafe { Self::read(op, self.0) }
    }

    /// Handles of their own on a vector's arrays.
    ///
    /// # Safety
    /// The vector must be live.
    pub(crate) unsafe fn read(op: &'static str, vector: mlx_vector_array) -> Result<Vec<Array>> {
        // SAFETY: the vector is live.
        let count = unsafe { mlx_sys::mlx_vector_array_size(vector) };
        (0..count)
            .map(|index| {
                // SAFETY: makes an empty handle.
                let mut made = unsafe { mlx_sys::mlx_array_new() };
                // SAFETY: both handles are live and the index is inside the vector.
                let status = unsafe { mlx_sys::mlx_vector_array_get(&mut made, vector, index) };
                // SAFETY: the handle is ours alone.
                let array = unsafe { Array::from_ptr(made) };
                mlx::check(op, status).map(|()| array)
            })
            .collect()
    }
}

impl Drop for Arrays {
    fn drop(&mut self) {
        // SAFETY: the vector is ours and not used again.
        unsafe { mlx_sys::mlx_vector_array_free(self.0) };
    }
}

/// What can be asked of an array without evaluating it.
pub(crate) trait Describe {
    fn dtype_of(&self) -> Dtype;
    fn shape_of(&self) -> &[i32];
    fn rank(&self) -> usize {
        self.shape_of().len()
    }
    /// Number of elements.
    fn count(&self) -> usize {
        self.shape_of().iter().map(|&size| size as usize).product()
    }
    /// Bytes of its elements.
    fn byte_size(&self) -> usize {
        self.count() * self.dtype_of().size()
    }
}

impl Describe for Array {
    fn dtype_of(&self) -> Dtype {
        // SAFETY: the handle holds an array; dtype and shape never change once it is made.
        Dtype::from_mlx(unsafe { mlx_sys::mlx_array_dtype(self.as_ptr()) })
    }

    fn shape_of(&self) -> &[i32] {
        // SAFETY: as above; the shape lives as long as the array.
        unsafe {
            let rank = mlx_sys::mlx_array_ndim(self.as_ptr());
            if rank == 0 {
                return &[];
            }
            std::slice::from_raw_parts(mlx_sys::mlx_array_shape(self.as_ptr()), rank)
        }
    }
}
