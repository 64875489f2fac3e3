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
use crate::place::{self, is_computed};
use crate::reaper;
use crate::retired;
use crate::risk::Risks;
use crate::slot::{self, Home, Slot};
use mlx_rs::Array;
use parking_lot::RwLock;
use smallvec::SmallVec;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

mod bytes;
mod evaluation;
mod flight;
pub use bytes::Bytes;
pub(crate) use evaluation::{evaluate, schedule};
pub(crate) use flight::InFlight;
use flight::{is_in_flight, is_shared};

/// What is dropped with at most so many bytes and nodes is freed where it is dropped: that costs less
/// than handing it to another thread. More goes to the reaper.
const FREED_IN_PLACE: Weight = Weight { bytes: 1 << 16, nodes: 32 };

/// Nodes of a graph for which a collection of garbage, some microseconds, is worth it.
const MUCH: usize = 32;

/// The most that freeing a tensor can free: the graph of a lazy one, and the buffers that it keeps.
#[derive(Clone, Copy)]
struct Weight {
    bytes: usize,
    nodes: usize,
}

impl Weight {
    /// An evaluated tensor has no graph.
    const NOTHING: Weight = Weight { bytes: 0, nodes: 0 };

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
    shape: SmallVec<[i32; 4]>,
    dtype: Dtype,
    device: Device,
    /// Where it was made, and where it is evaluated while it is lazy. One made from bytes has none.
    home: Option<Arc<Home>>,
    ready: AtomicBool,
    /// Whether somebody has asked for its computation and does not wait for it.
    scheduled: AtomicBool,
    /// Of the graph that it was built with.
    graph: Weight,
    risks: Risks,
}

struct SharedArray(Array);

// SAFETY: mlx_rs::Array is Send. Threads that share one only read its handle: shape and dtype never
// change, building copies a reference-counted pointer, and the fields that MLX writes without a lock
// (status, event, inputs, data) are written by the one holder of the home slot, while others use them
// only after `ready` was set with Release and read with Acquire.
unsafe impl Sync for SharedArray {}

impl Tensor {
    /// A tensor of an array just built on a stream of `home`, with its own risks.
    pub(crate) fn lazy(array: Array, home: &Arc<Home>, risks: Risks) -> Self {
        Self::of_graph(array, &[], home, risks)
    }

    fn of_graph(
        array: Array,
        inputs: &[Option<&Tensor>],
        home: &Arc<Home>,
        mut risks: Risks,
    ) -> Self {
        let mut graph = Weight { bytes: 0, nodes: 1 };
        for input in inputs.iter().flatten() {
            let weight = input.weight();
            graph.bytes = graph.bytes.saturating_add(weight.bytes);
            graph.nodes = graph.nodes.saturating_add(weight.nodes);
            if weight.nodes > 0 {
                risks.join(&input.0.risks);
            }
        }
        Self::new(array, Some(home), home.device(), graph, risks)
    }

    /// A tensor of an evaluated array.
    pub(crate) fn ready(array: Array, home: &Arc<Home>) -> Self {
        Self::new(array, Some(home), home.device(), Weight::NOTHING, Risks::default())
    }

    /// A tensor of an array whose computation is scheduled on a stream of `home`.
    pub(crate) fn scheduled(array: Array, home: &Arc<Home>) -> Self {
        let graph = Weight { bytes: array.byte_size(), nodes: 1 };
        let tensor = Self::new(array, Some(home), home.device(), graph, Risks::default());
        tensor.0.scheduled.store(true, Ordering::Release);
        tensor
    }

    fn new(
        array: Array,
        home: Option<&Arc<Home>>,
        device: Device,
        graph: Weight,
        risks: Risks,
    ) -> Self {
        let tensor = Tensor(Arc::new(Inner {
            shape: array.shape_of().into(),
            dtype: array.dtype_of(),
            array: RwLock::new(Some(SharedArray(array))),
            device,
            home: home.cloned(),
            ready: AtomicBool::new(graph.nodes == 0),
            scheduled: AtomicBool::new(false),
            graph,
            risks,
        }));
        if let Some(home) = home {
            home.add(tensor.byte_size());
        }
        tensor
    }

    /// A ready tensor with a copy of `bytes`, row-major in the host's byte order.
    ///
    /// Large ones are copied to the memory of a card that has its own, which takes as long as the copy.
    ///
    /// # Errors
    /// [`Error::Argument`] for a wrong shape or number of bytes; of a large one for a card also
    /// [`Error::OutOfMemory`].
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
        if place::is_for(device, dtype) && bytes.len() > place::LARGE {
            if let Some(array) = place::copy(OP, bytes, shape, dtype)? {
                return Ok(Self::new(array, None, device, Weight::NOTHING, Risks::default()));
            }
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
        let array = unsafe { Array::from_ptr(made) };
        Ok(Self::new(array, None, device, Weight::NOTHING, Risks::default()))
    }

    /// A random key from a seed: u32, shape {2}, ready.
    ///
    /// # Errors
    /// What MLX finds wrong.
    pub fn random_key(seed: u64, device: Device) -> Result<Self> {
        let bytes = [(seed >> 32) as u32, seed as u32].map(u32::to_ne_bytes).concat();
        Self::from_bytes(&bytes, &[2], Dtype::Uint32, device)
    }

    /// Builds a single-output op on a stream of `home`. Inputs must be ready or lazy in the same slot;
    /// see [`Tensor::is_usable_in`].
    ///
    /// # Errors
    /// The op's own checks, MLX's, [`Error::Deallocated`], and the error that evaluating an input had.
    pub fn build(op: &Op, inputs: &[Option<&Tensor>], home: &Arc<Home>) -> Result<Self> {
        with_arrays(op.name(), inputs, |arrays| op.build(&home.build(), arrays))
            .map(|array| Self::of_graph(array, inputs, home, Risks::of(op)))
    }

    /// Builds an op with several outputs and evaluates them, on the thread that holds the slot.
    pub(crate) fn build_all(
        op: &Op,
        inputs: &[Option<&Tensor>],
        home: &Arc<Home>,
    ) -> Result<Vec<Self>> {
        Self::settle_risks(inputs.iter().flatten().copied())?;
        let arrays = with_arrays(op.name(), inputs, |arrays| op.build_all(&home.build(), arrays))?;
        evaluate(op.name(), arrays.iter())?;
        Ok(arrays.into_iter().map(|array| Self::ready(array, home)).collect())
    }

    /// What tells it from other tensors that live.
    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
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
        self.0.byte_size()
    }

    fn weight(&self) -> Weight {
        if self.is_ready() {
            Weight { bytes: self.byte_size(), nodes: 0 }
        } else if self.is_scheduled() {
            // The graph behind it goes when it is scheduled.
            Weight { bytes: self.byte_size(), nodes: 1 }
        } else {
            self.0.graph
        }
    }

    fn is_scheduled(&self) -> bool {
        self.0.scheduled.load(Ordering::Acquire)
    }

    /// Whether freeing it takes little. What is light stays so.
    pub fn is_light(&self) -> bool {
        self.weight().is_light()
    }

    /// Drops a light one a little later, for a thread that collects garbage and so drops many.
    pub fn retire(self) {
        retired::push(self);
    }

    /// Whether it is evaluated.
    pub fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Acquire)
    }

    /// Whether so much was built for it, and is not computed, that who built it should collect its garbage: MLX
    /// uses the buffer of a result on the way again where nobody refers to the result.
    pub fn has_much_on_its_way(&self) -> bool {
        self.has_on_its_way(MUCH)
    }

    /// Whether so many nodes, what is used twice counted twice, are built for it and not computed.
    pub(crate) fn has_on_its_way(&self, nodes: usize) -> bool {
        !self.is_ready() && self.0.graph.nodes >= nodes
    }

    /// Whether something in its graph can fail while it is computed.
    pub(crate) fn can_fail(&self) -> bool {
        !self.is_ready() && !self.0.risks.is_empty()
    }

    /// Whether nodes of a slot may have it as an input: it is ready, or lazy in the same slot.
    pub fn is_usable_in(&self, slot: &Arc<Slot>) -> bool {
        self.is_ready() || self.home().is_some_and(|home| Arc::ptr_eq(home.slot(), slot))
    }

    pub(crate) fn home(&self) -> Option<&Arc<Home>> {
        self.0.home.as_ref()
    }

    /// Gives the memory back now; later uses are errors. A buffer that others share stays.
    ///
    /// Returns whether there was anything to give back.
    pub fn deallocate(&self) -> bool {
        let taken = self.0.array.write().take();
        match taken {
            Some(SharedArray(array)) => {
                match self.0.in_flight(&array) {
                    Some(slot) => reaper::free_once_computed(array, slot),
                    None => halt::free(array),
                }
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
        let outcome = evaluate("Eval", handles.iter());
        if outcome.is_err() {
            // Nobody has waited for what it had scheduled before it failed.
            let computed = pending.iter().zip(&handles).filter(|(_, array)| is_computed(array));
            computed.for_each(|(tensor, _)| tensor.0.scheduled.store(true, Ordering::Release));
        }
        pending.iter().for_each(|tensor| tensor.settle(&outcome));
        outcome
    }

    /// Has tensors computed that are at home in the slot that the calling thread holds, without waiting.
    /// They stay lazy until somebody waits. Where something can fail it is waited for: its failure would
    /// be told to whoever waits next.
    pub(crate) fn schedule(tensors: &[Tensor]) -> Result<()> {
        const OP: &str = "AsyncEval";
        Self::settle_risks(tensors.iter())?;
        let pending = tensors.iter().filter(|tensor| !tensor.is_ready());
        let handles = pending.map(|tensor| tensor.array(OP, 0)).collect::<Result<Vec<_>>>()?;
        schedule(OP, &handles)
    }

    /// Evaluates those inputs of a job that can fail, on the thread that holds their slot: a failure of
    /// the job's own evaluation is not theirs then.
    pub(crate) fn settle_risks<'a>(inputs: impl Iterator<Item = &'a Tensor>) -> Result<()> {
        let risky: Vec<_> = inputs.filter(|tensor| tensor.can_fail()).cloned().collect();
        if risky.is_empty() {
            return Ok(());
        }
        Self::evaluate(&risky)
    }

    /// After an evaluation with this tensor in its graph.
    fn settle(&self, outcome: &Result<()>) {
        self.0.risks.settle(outcome);
        if outcome.is_ok() && !self.is_ready() {
            self.0.ready.store(true, Ordering::Release);
        }
    }

    /// The error that its evaluation had.
    fn check_risks(&self) -> Result<()> {
        if self.is_ready() {
            Ok(())
        } else {
            self.0.risks.check()
        }
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
        if self.byte_size() == 0 {
            // MLX's CUDA build gives some results without elements no buffer, and looks for it here.
            let outcome = evaluate(OP, [&array]);
            self.settle(&outcome);
            return outcome.map(|()| Bytes::none());
        }
        // No GPU computes with f64: what there is of it was made for the host.
        let build = match self.device() {
            _ if self.dtype() == Dtype::Float64 => &build.on_cpu(),
            Device::Gpu => &build.on_gpu(),
            Device::Cpu => build,
        };
        let contiguous = crate::op::Op::Contiguous.build(build, &[Some(&array)])?;
        let outcome = evaluate(OP, [&array, &contiguous]);
        self.settle(&outcome);
        outcome?;
        if self.device().has_memory_of_its_own() {
            return Bytes::copied(&contiguous, self.byte_size());
        }
        Bytes::of(contiguous, self.byte_size())
            .ok_or_else(|| Error::Mlx { op: OP, message: "MLX made no contiguous copy".into() })
    }

    /// A handle of its own on the array, for a program that is `op`.
    pub(crate) fn handle(&self, op: &'static str) -> Result<Array> {
        self.array(op, 0)
    }

    /// A handle of its own on the array.
    fn array(&self, op: &'static str, index: usize) -> Result<Array> {
        let guard = self.0.array.read();
        let shared = guard.as_ref().ok_or(Error::Deallocated { op, index })?;
        self.check_risks()?;
        copy_handle(op, &shared.0)
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?}, ready: {})", self.dtype(), self.shape(), self.is_ready())
    }
}

/// Notes of tensors that their computation is asked for and nobody waits for it. Dropped, it takes back what it noted.
pub(crate) struct Mark(Vec<Tensor>);

impl Mark {
    pub(crate) fn of(tensors: &[Tensor]) -> Self {
        let is_new = |tensor: &&Tensor| !tensor.0.scheduled.swap(true, Ordering::AcqRel);
        Mark(tensors.iter().filter(is_new).cloned().collect())
    }

    /// Leaves the notes of what was scheduled, on the thread that holds the slot. Of a scheduling that failed that
    /// may be some.
    pub(crate) fn settle(mut self) {
        self.0.retain(|tensor| tensor.handle("AsyncEval").is_ok_and(|array| !is_computed(&array)));
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.0.iter().for_each(|tensor| tensor.0.scheduled.store(false, Ordering::Release));
    }
}

impl Inner {
    fn byte_size(&self) -> usize {
        self.shape.iter().map(|&size| size as usize).product::<usize>() * self.dtype.size()
    }

    /// Whether a stream may still write to what dropping its array frees.
    fn may_be_in_flight(&self) -> bool {
        self.device.has_memory_of_its_own()
            && !self.ready.load(Ordering::Acquire)
            && slot::has_scheduled()
            && !halt::is_halting()
    }

    /// The slot of a stream that writes, or may write, to what this handle of its array frees. MLX keeps the results
    /// on an evaluation's way until they are used, but not those that it was asked for.
    fn in_flight(&self, array: &Array) -> Option<&Arc<Slot>> {
        if !self.may_be_in_flight() || is_shared(array) {
            return None;
        }
        let is_computed = is_computed(array);
        if is_computed && !self.scheduled.load(Ordering::Acquire) {
            return None;
        }
        let slot = self.home.as_ref()?.slot();
        let is_long = !is_computed && !self.graph.is_light();
        // Before a scheduling has ended, what it has made so far cannot be asked.
        (is_long || slot.is_scheduling_or(|| is_in_flight(array))).then_some(slot)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let bytes = self.byte_size();
        if let Some(home) = &self.home {
            home.remove(bytes);
        }
        let Some(SharedArray(array)) = self.array.get_mut().take() else { return };
        let is_ready = self.ready.load(Ordering::Acquire);
        let weight = if is_ready { Weight { bytes, nodes: 0 } } else { self.graph };
        // As a rule the graph that was built on a shared one has it, and frees it.
        if weight.is_light() && !self.may_be_in_flight() || is_shared(&array) {
            halt::free(array);
        } else if let Some(slot) = self.in_flight(&array) {
            reaper::free_once_computed(array, slot);
        } else {
            // What was computed has no graph any more.
            let weight = if is_computed(&array) { Weight { bytes, nodes: 0 } } else { weight };
            free(array, weight);
        }
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

/// Calls `f` with the arrays of tensors, which stay allocated meanwhile.
fn with_arrays<T>(
    op: &'static str,
    inputs: &[Option<&Tensor>],
    f: impl FnOnce(&[Option<&Array>]) -> Result<T>,
) -> Result<T> {
    halt::park_if_halting();
    let mut guards = SmallVec::<[_; 4]>::new();
    for input in inputs {
        guards.push(match input {
            None => None,
            Some(tensor) => {
                tensor.check_risks()?;
                // Recursive, because an op may take the same tensor twice while somebody waits to deallocate it.
                Some(tensor.0.array.read_recursive())
            }
        });
    }
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

pub(crate) fn copy_handle(op: &'static str, array: &Array) -> Result<Array> {
    // SAFETY: an empty handle, then a reference-counted copy of a live array into it.
    let mut copy = unsafe { mlx_sys::mlx_array_new() };
    // SAFETY: both handles are live.
    let status = unsafe { mlx_sys::mlx_array_set(&mut copy, array.as_ptr()) };
    // SAFETY: the handle is ours alone.
    let copy = unsafe { Array::from_ptr(copy) };
    mlx::check(op, status).map(|()| copy)
}
