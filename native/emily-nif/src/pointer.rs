//! Addresses of tensors' elements, and tensors from addresses.

use crate::atoms;
use crate::error::{encode_result, wrong};
use crate::tensor::{decode, decode_dtype, decode_shape, TensorResource};
use crate::worker;
use emily_core::error::Result;
use emily_core::tensor::{Bytes, Tensor};
use rustler::{Binary, Encoder, Env, Resource, ResourceArc, Term};

/// Keeps the memory that an address points to.
pub struct KeeperResource(#[allow(dead_code)] Bytes);

#[rustler::resource_impl]
impl Resource for KeeperResource {}

/// What a keeper's binary says. The BEAM copies binaries of up to 64 bytes, and a copy keeps nothing.
const NOTICE: &str = "Emily.Backend keeps the memory of a pointer while this very binary is in use";
const _: () = assert!(NOTICE.len() > 64);

/// The address of a tensor's elements, their bytes, and a binary that keeps them there; `:pending`
/// where a worker has to evaluate them or to put them in order.
#[rustler::nif]
fn pointer<'a>(env: Env<'a>, tensor: Term<'a>) -> Term<'a> {
    let find = || {
        let Some(bytes) = decode("ToPointer", tensor)?.tensor.bytes()? else {
            return Ok(atoms::pending().encode(env));
        };
        let (address, size) = (bytes.address(), bytes.len());
        let keeper: Binary =
            ResourceArc::new(KeeperResource(bytes)).make_binary(env, |_| NOTICE.as_bytes());
        Ok((address, size, keeper).encode(env))
    };
    encode_result(env, find())
}

/// A tensor with a copy of the memory at an address.
#[rustler::nif(schedule = "DirtyCpu")]
fn from_pointer<'a>(
    env: Env<'a>,
    address: Term<'a>,
    size: Term<'a>,
    shape: Term<'a>,
    dtype: Term<'a>,
    device: Term<'a>,
) -> Term<'a> {
    let copy = || -> Result<_> {
        const OP: &str = "FromPointer";
        let number = |what, term: Term| {
            term.decode::<usize>().map_err(|_| wrong(OP, what, "an integer of 64 bits", term))
        };
        let (address, size) = (number("address", address)?, number("size", size)?);
        let shape = decode_shape(OP, shape)?;
        let dtype = decode_dtype(OP, dtype)?;
        let device = worker::decode_device(device)?;
        // SAFETY: what the caller of Nx.from_pointer/5 answers for.
        unsafe { Tensor::from_address(address, size, &shape, dtype, device) }
    };
    encode_result(env, copy().map(|tensor| TensorResource::new(tensor).encode(env)))
}
