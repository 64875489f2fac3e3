//! Tensors: MLX arrays that know where they are at home and whether they are ready.
//!
//! The rule that makes MLX's unlocked arrays sound: the inputs of a lazy array are lazy in the same
//! slot, or ready. A slot is evaluated by its holder alone, and a ready array is never written again.

use crate::build::{Build, Describe};
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::halt;
use crate::mlx;
use crate::op::Op;
use crate::reaper;
use crate::slot::{self, Slot};
use mlx_rs::Array;
use parking_lot::RwLock;
use smallvec::SmallVec;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// What is dropped with at most so many bytes and nodes is freed where it is dropped: that costs less
/// than handing it to another thread. More goes to the reaper.
const FREED_IN_PLACE: Weight = Weight { bytes: 1 << 16, nodes: 32 };

/// The most that freeing a tensor can free: the graph of a lazy one, and the buffers that it keeps.
#[derive(Clone, Copy)]
struct Weight {
    bytes: usize,
    nodes: usize,
}

impl Weight {
    fn is_light(self) -> bool {
        self.bytes <= FREED_IN_PLACE.bytes && self.nodes <= FREED_IN_PLACE.nodes
    }
}

/// An MLX array that any thread may hold.
#[derive(Clone)]
pub struct Tensor(Arc<Inner>);

struct Inner {
    /// `None` once deallocated.
    array: RwLock<Option<SharedArray>>,
    shape: Box<[i32]>,
    dtype: Dtype,
    device: Device,
    /// The slot whose holder evaluates it; ready tensors of no worker have none.
    home: Option<Arc<Slot>>,
    ready: AtomicBool,
    /// Of the graph that it was built with.
    graph: Weight,
}

struct SharedArray(Array);

// SAFETY: mlx_rs::Array is Send. Threads that share one only read its handle: shape and dtype never
// change, building copies a reference-counted pointer, and the fields that MLX writes without a lock
// (status, event, inputs, data) are written by the one holder of the home slot, while others use them
// only after `ready` was set with Release and read with Acquire.
unsafe impl Sync for SharedArray {}

impl Tensor {
    /// A tensor of an array just built on a slot's stream.
    pub(crate) fn lazy(array: Array, home: &Arc<Slot>, device: Device) -> Self {
        Self::of_graph(array, &[], home, device)
    }

    fn of_graph(
        array: Array,
        inputs: &[Option<&Tensor>],
        home: &Arc<Slot>,
        device: Device,
    ) -> Self {
        let mut graph = Weight { bytes: 0, nodes: 1 };
        for weight in inputs.iter().flatten().map(|input| input.weight()) {
            graph.bytes = graph.bytes.saturating_add(weight.bytes);
            graph.nodes = graph.nodes.saturating_add(weight.nodes);
        }
        Self::new(array, Some(Arc::clone(home)), device, graph)
    }

    /// A tensor of an evaluated array.
    pub(crate) fn ready(array: Array, device: Device) -> Self {
        Self::new(array, None, device, Weight { bytes: 0, nodes: 0 })
    }

    fn new(array: Array, home: Option<Arc<Slot>>, device: Device, graph: Weight) -> Self {
        Tensor(Arc::new(Inner {
            shape: array.shape_of().into(),
            dtype: array.dtype_of(),
            array: RwLock::new(Some(SharedArray(array))),
            device,
            ready: AtomicBool::new(home.is_none()),
            home,
            graph,
        }))
    }

    /// A ready tensor with a copy of `bytes`, row-major in the host's byte order.
    ///
    /// # Errors
    /// [`Error::Argument`] for a wrong shape or number of bytes.
    pub fn from_bytes(bytes: &[u8], shape: &[i64], dtype: Dtype, device: Device) -> Result<Self> {
        const OP: &str = "FromBinary";
        mlx::install_error_handler();
        let sizes = crate::check::shape(OP, shape, dtype)?;
        let expected = sizes.iter().map(|&size| size as usize).product::<usize>() * dtype.size();
        if bytes.len() != expected {
            return Err(Error::Argument {
                op: OP,
                what: "binary (binary size mismatch)",
                expected: format!("{expected} bytes for shape {shape:?} of {dtype}"),
                got: format!("{} bytes", bytes.len()),
            });
        }
        // SAFETY: MLX copies as many elements as the shape has, and there are that many.
        let made = unsafe {
            mlx_sys::mlx_array_new_data(
                bytes.as_ptr().cast(),
                sizes.as_ptr(),
                sizes.len() as i32,
                dtype.to_mlx(),
            )
        };
        if made.ctx.is_null() {
            return Err(mlx::last_error(OP));
        }
        // SAFETY: the handle is new and ours.
        Ok(Self::ready(unsafe { Array::from_ptr(made) }, device))
    }

    /// A random key from a seed: u32, shape {2}, ready.
    ///
    /// # Errors
    /// What MLX finds wrong.
    pub fn random_key(seed: u64, device: Device) -> Result<Self> {
        let bytes = [(seed >> 32) as u32, seed as u32].map(u32::to_ne_bytes).concat();
        Self::from_bytes(&bytes, &[2], Dtype::Uint32, device)
    }

    /// Builds a single-output op on a slot's stream. Inputs must be ready or at home in that slot;
    /// see [`Tensor::is_usable_in`].
    ///
    /// # Errors
    /// The op's own checks, MLX's, and [`Error::Deallocated`].
    pub fn build(
        op: &Op,
        inputs: &[Option<&Tensor>],
        home: &Arc<Slot>,
        device: Device,
    ) -> Result<Self> {
        with_arrays(op.name(), inputs, |arrays| op.build(&home.build(device), arrays))
            .map(|array| Self::of_graph(array, inputs, home, device))
    }

    /// Builds an op with several outputs and evaluates them, on the thread that holds the slot.
    pub(crate) fn build_all(
        op: &Op,
        inputs: &[Option<&Tensor>],
        home: &Arc<Slot>,
        device: Device,
    ) -> Result<Vec<Self>> {
        let arrays =
            with_arrays(op.name(), inputs, |arrays| op.build_all(&home.build(device), arrays))?;
        evaluate(op.name(), arrays.iter())?;
        Ok(arrays.into_iter().map(|array| Self::ready(array, device)).collect())
    }

    /// Sizes of the axes.
    pub fn shape(&self) -> &[i32] {
        &self.0.shape
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    /// The device it was made for.
    pub fn device(&self) -> Device {
        self.0.device
    }

    /// Bytes of its elements.
    pub fn byte_size(&self) -> usize {
        self.shape().iter().map(|&size| size as usize).product::<usize>() * self.dtype().size()
    }

    fn weight(&self) -> Weight {
        if self.is_ready() {
            Weight { bytes: self.byte_size(), nodes: 0 }
        } else {
            self.0.graph
        }
    }

    /// Whether it is evaluated.
    pub fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Acquire)
    }

    /// Whether nodes of a slot may have it as an input: it is ready, or lazy in the same slot.
    pub fn is_usable_in(&self, slot: &Arc<Slot>) -> bool {
        self.is_ready() || self.home().is_some_and(|home| Arc::ptr_eq(home, slot))
    }

    pub(crate) fn home(&self) -> Option<&Arc<Slot>> {
        self.0.home.as_ref()
    }

    /// Gives the memory back now; later uses are errors. A buffer that others share stays.
    ///
    /// Returns whether there was anything to give back.
    pub fn deallocate(&self) -> bool {
        let taken = self.0.array.write().take();
        match taken {
            Some(SharedArray(array)) => {
                drop(array);
                true
            }
            None => false,
        }
    }

    /// Evaluates tensors that are at home in the slot that the calling thread holds.
    pub(crate) fn evaluate(tensors: &[Tensor]) -> Result<()> {
        let pending: Vec<_> = tensors.iter().filter(|tensor| !tensor.is_ready()).collect();
        let handles: Vec<Array> =
            pending.iter().map(|tensor| tensor.array("Eval", 0)).collect::<Result<_>>()?;
        evaluate("Eval", handles.iter())?;
        for tensor in pending {
            tensor.0.ready.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Its elements, if that needs no work: it is ready, its elements lie in order and in memory
    /// that the host reads.
    ///
    /// # Errors
    /// [`Error::Deallocated`].
    pub fn bytes(&self) -> Result<Option<Bytes>> {
        if !self.is_ready() || self.device() != Device::Cpu {
            return Ok(None);
        }
        let array = self.array("ToBinary", 0)?;
        Ok(Bytes::of(array, self.byte_size()))
    }

    /// Its elements in order, on the thread that holds `home`.
    pub(crate) fn read(&self, build: &Build) -> Result<Bytes> {
        const OP: &str = "ToBinary";
        let array = self.array(OP, 0)?;
        let contiguous = crate::op::Op::Contiguous.build(build, &[Some(&array)])?;
        evaluate(OP, [&contiguous])?;
        Bytes::of(contiguous, self.byte_size())
            .ok_or_else(|| Error::Mlx { op: OP, message: "MLX made no contiguous copy".into() })
    }

    /// A handle of its own on the array.
    fn array(&self, op: &'static str, index: usize) -> Result<Array> {
        let guard = self.0.array.read();
        let shared = guard.as_ref().ok_or(Error::Deallocated { op, index })?;
        copy_handle(op, &shared.0)
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?}, ready: {})", self.dtype(), self.shape(), self.is_ready())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(SharedArray(array)) = self.array.get_mut().take() else { return };
        let weight = if self.ready.load(Ordering::Acquire) {
            Weight { bytes: array.count() * self.dtype.size(), nodes: 0 }
        } else {
            self.graph
        };
        free(array, weight);
    }
}

/// Frees here or on the reaper's thread, never long on a scheduler that collects garbage.
fn free(array: Array, weight: Weight) {
    if weight.is_light() {
        halt::free(array);
    } else {
        reaper::free(array);
    }
}

/// The elements of a tensor, row-major in the host's byte order, which stay as long as this lives.
#[derive(Debug)]
pub struct Bytes {
    /// Keeps the buffer, and keeps MLX from reusing it for a result.
    array: Option<Array>,
    start: *const u8,
    length: usize,
}

// SAFETY: the buffer of an evaluated array is not written again while a handle on it lives.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// Of an evaluated array, if its elements lie in order.
    fn of(array: Array, length: usize) -> Option<Self> {
        let mut in_order = false;
        // SAFETY: the array is live; this reads a flag that evaluation has set.
        let status =
            unsafe { mlx_sys::_mlx_array_is_row_contiguous(&mut in_order, array.as_ptr()) };
        if status != 0 || !in_order {
            return None;
        }
        // SAFETY: the array is evaluated; MLX reinterprets its buffer whatever the dtype.
        let start = unsafe { mlx_sys::mlx_array_data_uint8(array.as_ptr()) };
        Some(Bytes { array: Some(array), start, length })
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
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

/// Calls `f` with the arrays of tensors, which stay allocated meanwhile.
fn with_arrays<T>(
    op: &'static str,
    inputs: &[Option<&Tensor>],
    f: impl FnOnce(&[Option<&Array>]) -> Result<T>,
) -> Result<T> {
    halt::park_if_halting();
    // Recursive, because an op may take the same tensor twice while somebody waits to deallocate it.
    let guards: SmallVec<[_; 4]> =
        inputs.iter().map(|input| input.map(|tensor| tensor.0.array.read_recursive())).collect();
    let mut arrays = SmallVec::<[_; 4]>::new();
    for (index, guard) in guards.iter().enumerate() {
        arrays.push(match guard {
            None => None,
            Some(guard) => match guard.as_ref() {
                Some(shared) => Some(&shared.0),
                None => return Err(Error::Deallocated { op, index }),
            },
        });
    }
    f(&arrays)
}

fn copy_handle(op: &'static str, array: &Array) -> Result<Array> {
    // SAFETY: an empty handle, then a reference-counted copy of a live array into it.
    let mut copy = unsafe { mlx_sys::mlx_array_new() };
    // SAFETY: both handles are live.
    let status = unsafe { mlx_sys::mlx_array_set(&mut copy, array.as_ptr()) };
    // SAFETY: the handle is ours alone.
    let copy = unsafe { Array::from_ptr(copy) };
    mlx::check(op, status).map(|()| copy)
}

/// Computes arrays and waits for them. Only the holder of their slot may.
pub(crate) fn evaluate<'a>(
    op: &'static str,
    arrays: impl IntoIterator<Item = &'a Array>,
) -> Result<()> {
    let outputs = crate::build::Arrays::from_iter(arrays);
    let _gate = slot::evaluating();
    // SAFETY: a live vector of arrays whose slot the caller holds.
    mlx::check(op, unsafe { mlx_sys::mlx_eval(outputs.as_raw()) })
}
