//! The NIF library: decodes terms, calls emily-core, encodes what comes back. It knows MLX only
//! through the core and decides nothing.

mod atoms;
mod error;
mod memory;
mod pointer;
mod program;
mod reply;
mod tensor;
mod worker;

use emily_core::heap;
use emily_core::op::Op;
use rustler::{Env, Term};

/// The names of the op table, as the enum spells them.
#[rustler::nif]
fn ops() -> Vec<&'static str> {
    Op::ALL.to_vec()
}

/// The names and arities of the library's functions, for the contract test of the stubs.
#[rustler::nif]
fn nifs() -> Vec<(&'static str, u32)> {
    rustler::codegen_runtime::inventory::iter::<rustler::Nif>()
        .map(|nif| {
            // SAFETY: rustler's macro makes the name from a NUL-terminated literal.
            let name = unsafe { std::ffi::CStr::from_ptr(nif.name.cast()) };
            (name.to_str().expect("names of functions are ASCII"), nif.arity)
        })
        .collect()
}

#[global_allocator]
static ALLOCATOR: heap::Allocator = heap::Allocator;

fn load(_env: Env, _info: Term) -> bool {
    heap::start();
    match emily_core::reaper::start() {
        Ok(()) => true,
        Err(error) => {
            eprintln!("emily: MLX does not start: {error}");
            false
        }
    }
}

rustler::init!("Elixir.Emily.Native.Nif", load = load);
