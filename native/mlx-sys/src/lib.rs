//! Raw bindings to MLX through mlx-c, in the shape of crates.io's `mlx-sys` 0.7.0.
//!
//! The library itself is the prebuilt one of the MLX wheels; see build.rs.
#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals)]
#![allow(missing_docs, unnecessary_transmutes, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

mod half;
pub use half::*;

// heap.cpp calls it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
use tikv_jemalloc_sys as _;

extern "C" {
    /// Whether the C++ exception that is being handled is a `std::invalid_argument`. Only an error
    /// handler of mlx-c, called inside the catch block, can ask.
    pub fn emily_current_exception_is_invalid_argument() -> bool;

    /// Casts f32 or f64 to an integer dtype on a CPU stream: the fraction is lost, NaN becomes 0, and what
    /// lies beyond becomes the nearest limit.
    pub fn emily_saturating_cast(
        res: *mut mlx_array,
        a: mlx_array,
        dtype: mlx_dtype,
        s: mlx_stream,
    ) -> std::os::raw::c_int;

    /// Elements of `a` along an axis that has some, on a CPU stream: the shape of the indices, of any
    /// integer dtype, takes the axis' place. An index from `-size` on counts from the end; what lies beyond
    /// the axis becomes its first or last element.
    pub fn emily_clamped_take(
        res: *mut mlx_array,
        a: mlx_array,
        indices: mlx_array,
        axis: std::os::raw::c_int,
        s: mlx_stream,
    ) -> std::os::raw::c_int;

    /// Indices of any integer dtype as positions u32 inside an axis, on a CPU stream. With a window of 0
    /// they are those that `emily_clamped_take` reads, of an axis that has elements. Else they are where so
    /// many elements are written: `size` for an index whose window would leave the axis.
    pub fn emily_positions(
        res: *mut mlx_array,
        indices: mlx_array,
        size: std::os::raw::c_int,
        window: std::os::raw::c_int,
        s: mlx_stream,
    ) -> std::os::raw::c_int;

    /// Positions of the greatest or least real numbers along an axis that has elements, on a CPU stream: of
    /// equal ones the first or the last, of NaNs, which count above all, the last. The axis goes; the dtype
    /// is one of integers of 4 or 8 bytes.
    pub fn emily_arg_extreme(
        res: *mut mlx_array,
        a: mlx_array,
        axis: std::os::raw::c_int,
        greatest: bool,
        last: bool,
        dtype: mlx_dtype,
        s: mlx_stream,
    ) -> std::os::raw::c_int;

    /// `mlx_fast_rms_norm` on a CPU stream. `x` is f32, f16 or bf16; so is the weight, a vector of the last
    /// axis or null.
    pub fn emily_rms_norm(
        res: *mut mlx_array,
        x: mlx_array,
        weight: mlx_array,
        eps: f32,
        s: mlx_stream,
    ) -> std::os::raw::c_int;

    /// `mlx_fast_layer_norm` on a CPU stream. `x` is f32, f16 or bf16; so are weight and bias, vectors of the
    /// last axis or null.
    pub fn emily_layer_norm(
        res: *mut mlx_array,
        x: mlx_array,
        weight: mlx_array,
        bias: mlx_array,
        eps: f32,
        s: mlx_stream,
    ) -> std::os::raw::c_int;

    /// `mlx_fast_rope_dynamic` on a CPU stream. `x`, of rank 2 or more, is f32, f16 or bf16, the offset an
    /// s32 or a vector with one for each of the first axis, the frequencies f32 or null; then the base
    /// counts.
    pub fn emily_rope(
        res: *mut mlx_array,
        x: mlx_array,
        dims: std::os::raw::c_int,
        traditional: bool,
        base: f32,
        scale: f32,
        offset: mlx_array,
        frequencies: mlx_array,
        s: mlx_stream,
    ) -> std::os::raw::c_int;

    /// `mlx_fast_scaled_dot_product_attention` on a CPU stream. Queries, keys and values have elements and are
    /// f32, f16 or bf16; so is the mask, or boolean, of rank 4 at most; so are the sinks, a vector of the
    /// heads. Mask and sinks may be null.
    pub fn emily_attention(
        res: *mut mlx_array,
        queries: mlx_array,
        keys: mlx_array,
        values: mlx_array,
        scale: f32,
        causal: bool,
        mask: mlx_array,
        sinks: mlx_array,
        s: mlx_stream,
    ) -> std::os::raw::c_int;

    /// `softmax(scores + mask)` along the last axis, on a CPU stream, as attention takes it: the scores, f32
    /// `{batch, heads, queries, keys}`, with `causal`, mask and sinks as in `emily_attention`.
    pub fn emily_attention_weights(
        res: *mut mlx_array,
        scores: mlx_array,
        causal: bool,
        mask: mlx_array,
        sinks: mlx_array,
        s: mlx_stream,
    ) -> std::os::raw::c_int;

    /// `mlx_exp` of f32 on a CPU stream.
    pub fn emily_exp(res: *mut mlx_array, x: mlx_array, s: mlx_stream) -> std::os::raw::c_int;

    /// `mlx_erf` of f32 on a CPU stream.
    pub fn emily_erf(res: *mut mlx_array, x: mlx_array, s: mlx_stream) -> std::os::raw::c_int;

    /// `mlx_sigmoid` of f32 on a CPU stream.
    pub fn emily_sigmoid(res: *mut mlx_array, x: mlx_array, s: mlx_stream) -> std::os::raw::c_int;

    /// Lets evaluations schedule so many more groups of operations ahead of what is computed, or less if
    /// negative.
    pub fn emily_scheduler_add_room(groups: std::os::raw::c_int);

    /// The bytes of the results that an evaluation of arrays computes on its way, or, once they are more than
    /// `most`, some number above it; and whether a CPU computes some of what was counted. No other thread may
    /// evaluate the arrays meanwhile.
    pub fn emily_graph_bytes(outputs: mlx_vector_array, most: usize, has_cpu: *mut bool) -> usize;

    /// The keys of a GGUF file's metadata, which mlx-c gives by key alone.
    pub fn emily_gguf_metadata_keys(
        keys: *mut mlx_vector_string,
        gguf: mlx_io_gguf,
    ) -> std::os::raw::c_int;

    /// What tells an array from all others that live. The handle must hold one.
    pub fn emily_array_id(array: mlx_array) -> usize;

    /// Waits for arrays whose computation is scheduled on a GPU's streams alone. The thread looks for the end so
    /// long before it sleeps until it is told.
    pub fn emily_wait_awake(
        outputs: mlx_vector_array,
        microseconds: std::os::raw::c_uint,
    ) -> std::os::raw::c_int;

    /// Whether an array was computed, or its computation was scheduled. The handle must hold an array.
    pub fn emily_array_is_computed(array: mlx_array) -> bool;

    /// Whether nothing else holds the buffer of a computed array: no other array, and no evaluation of which
    /// MLX still has to clear away what it used. The handle must hold an array.
    pub fn emily_array_is_sole_owner(array: mlx_array) -> bool;

    /// Whether an array was scheduled or computed and its elements are in a card's own memory, of MLX's CUDA
    /// build. The handle must hold an array.
    pub fn emily_cuda_has(array: mlx_array) -> bool;

    /// Overwrites the first `bytes` bytes of an evaluated, row-contiguous array of MLX's CUDA build, which nobody
    /// else uses, and waits until they are there. To be called where the array has just been evaluated.
    pub fn emily_cuda_write(
        array: mlx_array,
        from: *const std::os::raw::c_void,
        bytes: usize,
    ) -> std::os::raw::c_int;

    /// Whether anything else holds the array: another handle, a graph, an evaluation. The handle must hold one.
    pub fn emily_array_is_shared(array: mlx_array) -> bool;

    /// Whether dropping this handle frees what is still being computed: the array, or one that the graph behind
    /// it alone holds. Of what others hold it is false. The handle must hold an array, and no thread may be
    /// scheduling nodes of its stream.
    pub fn emily_array_is_in_flight(array: mlx_array) -> bool;

    /// Appends what [`emily_array_is_in_flight`] speaks of, for handles that are dropped together, and maybe what is
    /// there already.
    pub fn emily_arrays_find_in_flight(
        dropped: *const mlx_array,
        count: usize,
        found: mlx_vector_array,
    );

    /// Waits for arrays that have been scheduled.
    pub fn emily_arrays_wait(arrays: mlx_vector_array);

    /// Has MLX's nodes allocated in a heap of their own from here on. Returns whether it is done: not where the C++
    /// library or MLX is built otherwise, or the program has another allocator already.
    pub fn emily_heap_start() -> bool;

    /// A block of this heap, aligned to the smaller of its size and 16 bytes. Null before it begins, and for what is
    /// too large for it.
    pub fn emily_heap_allocate(bytes: usize) -> *mut std::os::raw::c_void;

    /// Frees a block if it is of this heap, and says whether it is.
    pub fn emily_heap_free(block: *mut std::os::raw::c_void) -> bool;

    /// Bytes that this heap has asked the system for, given back or not.
    pub fn emily_heap_taken() -> usize;

    /// Gives what is free in this heap back to the system, but for what other threads keep for themselves.
    pub fn emily_heap_trim();

    /// Lets the threads that MLX's CUDA build starts for its streams sleep while there is nothing to do.
    /// Holds for streams that are made later; to be called once. Returns whether MLX is built so that it
    /// can be done.
    pub fn emily_cuda_quiet_workers() -> bool;

    /// Has the events of CUDA that are given back used again, where MLX is built so that it can be done. To be
    /// called once, before anything of CUDA. Returns whether it is done.
    pub fn emily_cuda_keep_events() -> bool;

    /// Has the compiler of CUDA's kernels make its statics, where MLX is built for CUDA. What is registered
    /// for the exit after that runs before they end.
    pub fn emily_cuda_prepare_compiler();

    /// Copies the first `bytes` bytes of an evaluated, row-contiguous array of MLX's CUDA build. To be
    /// called where the array has just been evaluated: the thread has the device's context then.
    pub fn emily_cuda_read(
        array: mlx_array,
        into: *mut std::os::raw::c_void,
        bytes: usize,
    ) -> std::os::raw::c_int;
}
