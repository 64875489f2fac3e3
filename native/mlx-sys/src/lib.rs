//! Raw bindings to MLX through mlx-c, in the shape of crates.io's `mlx-sys` 0.7.0.
//!
//! The library itself is the prebuilt one of the MLX wheels; see build.rs.
#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals)]
#![allow(missing_docs, unnecessary_transmutes, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

mod half;
pub use half::*;

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

    /// Lets evaluations schedule so many more groups of operations ahead of what is computed, or less if
    /// negative.
    pub fn emily_scheduler_add_room(groups: std::os::raw::c_int);

    /// The keys of a GGUF file's metadata, which mlx-c gives by key alone.
    pub fn emily_gguf_metadata_keys(
        keys: *mut mlx_vector_string,
        gguf: mlx_io_gguf,
    ) -> std::os::raw::c_int;

    /// What tells an array from all others that live. The handle must hold one.
    pub fn emily_array_id(array: mlx_array) -> usize;

    /// Whether an array whose last handle this is was scheduled and is still being computed. Of others it
    /// is false. The handle must hold an array.
    pub fn emily_array_is_in_flight(array: mlx_array) -> bool;

    /// Lets the threads that MLX's CUDA build starts for its streams sleep while there is nothing to do.
    /// Holds for streams that are made later; to be called once. Returns whether MLX is built so that it
    /// can be done.
    pub fn emily_cuda_quiet_workers() -> bool;

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
