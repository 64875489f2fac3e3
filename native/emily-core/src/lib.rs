//! MLX for the BEAM, without the BEAM: this crate never sees a term, a pid or an env.
//!
//! A [`slot::Slot`] of the pool has the MLX streams; a [`worker::Worker`] is the thread that holds a
//! slot and evaluates there. A [`tensor::Tensor`] is an MLX array that knows its home slot and whether
//! it is ready. An [`op::Op`] builds a lazy tensor on whatever thread asks; a job queued on a worker
//! evaluates it and owes a [`reply::Reply`]. A [`program::Program`] is many ops that one job replays.

#[cfg(target_os = "linux")]
mod blas;
pub mod build;
mod check;
pub mod device;
pub mod dtype;
mod early;
pub mod error;
pub mod halt;
pub mod heap;
mod load;
mod look;
pub mod memory;
mod mlx;
pub mod op;
mod place;
mod pointer;
pub mod program;
pub mod queue;
pub mod reaper;
pub mod reply;
pub mod retired;
mod risk;
mod room;
mod shortage;
pub mod slot;
pub mod tensor;
pub mod worker;

pub use load::{Loaded, Metadata};
