//! Tensors: made from binaries, described, read where that needs no work.

use crate::atoms;
use crate::error::{encode_result, wrong};
use crate::worker;
use emily_core::device::{Device, Property};
use emily_core::dtype::Dtype;
use emily_core::error::{Error, Result};
use emily_core::tensor::{Bytes, Tensor};
use rustler::{Atom, Binary, Encoder, Env, NewBinary, Resource, ResourceArc, Term};
use std::mem::MaybeUninit;

/// A tensor's reference in Elixir.
pub struct TensorResource(pub Tensor, IsLight, #[allow(dead_code)] Ballast);

/// Whether its tensor is light, kept here because that of one which is collected has left the caches.
type IsLight = bool;

/// Makes the BEAM count about as much for a reference as MLX keeps for its tensor. A process collects its
/// garbage when what its heap refers to adds up to some hundred kilobytes: with references of a few words
/// it would gather ten thousand tensors, which leave every cache and hold the scheduler for more than a
/// millisecond when they are freed.
type Ballast = MaybeUninit<[usize; 16]>;

#[rustler::resource_impl]
impl Resource for TensorResource {
    const IMPLEMENTS_DESTRUCTOR: bool = true;

    fn destructor(self, _env: Env) {
        if self.1 || self.0.is_light() {
            self.0.retire();
        }
    }
}

impl TensorResource {
    /// The reference of a tensor.
    pub fn new(tensor: Tensor) -> ResourceArc<Self> {
        let is_light = tensor.is_light();
        ResourceArc::new(TensorResource(tensor, is_light, Ballast::uninit()))
    }
}

/// What a binary that was read from a tensor points into.
pub struct BytesResource(Bytes);

#[rustler::resource_impl]
impl Resource for BytesResource {}

/// Bytes that are copied sooner than they are kept.
const COPIED: usize = 1 << 12;

impl BytesResource {
    /// A binary of a tensor's elements, without a copy where there are many.
    pub fn binary(env: Env, bytes: Bytes) -> Binary {
        if bytes.len() <= COPIED {
            let mut copy = NewBinary::new(env, bytes.len());
            copy.copy_from_slice(&bytes);
            return copy.into();
        }
        ResourceArc::new(BytesResource(bytes)).make_binary(env, |resource| &resource.0)
    }
}

/// A tensor among a call's terms. The call's terms keep it, so that nothing is counted.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    pub term: Term<'a>,
    pub tensor: &'a Tensor,
}

/// Decodes an input; `nil` is an absent one.
pub fn decode_input<'a>(op: &'static str, term: Term<'a>) -> Result<Option<Input<'a>>> {
    if let Some(TensorResource(tensor, ..)) = term.try_get_resource() {
        return Ok(Some(Input { term, tensor }));
    }
    match term.decode::<Atom>() {
        Ok(atom) if atom == atoms::nil() => Ok(None),
        _ => Err(wrong(op, "input", "a tensor reference", term)),
    }
}

/// Decodes a tensor.
pub fn decode<'a>(op: &'static str, term: Term<'a>) -> Result<Input<'a>> {
    decode_input(op, term)?.ok_or_else(|| wrong(op, "input", "a tensor reference", term))
}

fn make(
    bytes: Term,
    shape: Term,
    dtype: Term,
    device: Term,
) -> Result<ResourceArc<TensorResource>> {
    const OP: &str = "FromBinary";
    let binary: Binary = bytes.decode().map_err(|_| wrong(OP, "binary", "a binary", bytes))?;
    let sizes = decode_shape(OP, shape)?;
    let dtype = decode_dtype(OP, dtype)?;
    let device = worker::decode_device(device)?;
    Tensor::from_bytes(&binary, &sizes, dtype, device).map(TensorResource::new)
}

/// Decodes a list of sizes.
pub fn decode_shape(op: &'static str, term: Term) -> Result<Vec<i64>> {
    worker::proper(term)
        .and_then(|term| term.decode().ok())
        .ok_or_else(|| wrong(op, "shape", "a list of int32 sizes", term))
}

/// Decodes `{kind, bits}`.
pub fn decode_dtype(op: &'static str, term: Term) -> Result<Dtype> {
    term.decode().map_err(|_| Error::Argument {
        op,
        what: "dtype (unsupported dtype)",
        expected: "a dtype of MLX, such as {:f, 32}".to_owned(),
        got: format!("{term:?}"),
    })
}

/// A tensor with a copy of a binary.
#[rustler::nif]
fn from_binary<'a>(
    env: Env<'a>,
    bytes: Term<'a>,
    shape: Term<'a>,
    dtype: Term<'a>,
    device: Term<'a>,
) -> Term<'a> {
    encode_result(env, make(bytes, shape, dtype, device).map(|tensor| tensor.encode(env)))
}

/// The same for binaries whose copy takes longer than a scheduler should.
#[rustler::nif(schedule = "DirtyCpu")]
fn from_large_binary<'a>(
    env: Env<'a>,
    bytes: Term<'a>,
    shape: Term<'a>,
    dtype: Term<'a>,
    device: Term<'a>,
) -> Term<'a> {
    encode_result(env, make(bytes, shape, dtype, device).map(|tensor| tensor.encode(env)))
}

/// A random key.
#[rustler::nif]
fn random_key<'a>(env: Env<'a>, seed: Term<'a>, device: Term<'a>) -> Term<'a> {
    let key = || {
        let wrong = || wrong("RandomKey", "seed", "an integer of 64 bits", seed);
        let number: i128 = seed
            .decode::<i64>()
            .map(i128::from)
            .or_else(|_| seed.decode::<u64>().map(i128::from).map_err(|_| wrong()))?;
        Tensor::random_key(number as u64, worker::decode_device(device)?)
    };
    encode_result(env, key().map(|tensor| TensorResource::new(tensor).encode(env)))
}

/// Sizes of the axes.
#[rustler::nif]
fn shape<'a>(env: Env<'a>, tensor: Term<'a>) -> Term<'a> {
    encode_result(env, decode("Shape", tensor).map(|input| input.tensor.shape().encode(env)))
}

/// Type of the elements.
#[rustler::nif]
fn dtype<'a>(env: Env<'a>, tensor: Term<'a>) -> Term<'a> {
    encode_result(env, decode("Dtype", tensor).map(|input| input.tensor.dtype().encode(env)))
}

/// The device that it was made for.
#[rustler::nif]
fn device<'a>(env: Env<'a>, tensor: Term<'a>) -> Term<'a> {
    let name = |input: Input| encode_device(input.tensor.device()).encode(env);
    encode_result(env, decode("Device", tensor).map(name))
}

fn encode_device(device: Device) -> Atom {
    match device {
        Device::Cpu => atoms::cpu(),
        Device::Gpu => atoms::gpu(),
    }
}

/// Whether it is evaluated.
#[rustler::nif]
fn is_ready<'a>(env: Env<'a>, tensor: Term<'a>) -> Term<'a> {
    encode_result(env, decode("IsReady", tensor).map(|input| input.tensor.is_ready().encode(env)))
}

/// Its elements, or `:pending` where a worker has to read them.
#[rustler::nif]
fn bytes<'a>(env: Env<'a>, tensor: Term<'a>) -> Term<'a> {
    let read = || {
        Ok(match decode("ToBinary", tensor)?.tensor.bytes()? {
            Some(bytes) => BytesResource::binary(env, bytes).encode(env),
            None => atoms::pending().encode(env),
        })
    };
    encode_result(env, read())
}

/// Gives its memory back now; false where that was done before. The system takes milliseconds for a
/// large buffer.
#[rustler::nif(schedule = "DirtyIo")]
fn deallocate<'a>(env: Env<'a>, tensor: Term<'a>) -> Term<'a> {
    encode_result(
        env,
        decode("Deallocate", tensor).map(|input| input.tensor.deallocate().encode(env)),
    )
}

/// The devices of this host.
#[rustler::nif]
fn devices() -> Vec<Atom> {
    [Device::Cpu, Device::Gpu].into_iter().filter(|d| d.is_present()).map(encode_device).collect()
}

/// What MLX says of a device: pairs of a name and a text or a number.
#[rustler::nif]
fn device_info<'a>(env: Env<'a>, device: Term<'a>) -> Term<'a> {
    let info = |device: Device| {
        let pairs: Vec<(String, Term)> = device
            .info()?
            .into_iter()
            .map(|(name, property)| match property {
                Property::Text(text) => (name, text.encode(env)),
                Property::Size(size) => (name, size.encode(env)),
            })
            .collect();
        Ok(pairs.encode(env))
    };
    encode_result(env, worker::decode_device(device).and_then(info))
}

/// Waits until what was dropped before has been freed, and ended threads have been joined.
#[rustler::nif(schedule = "DirtyIo")]
fn flush() -> Atom {
    emily_core::reaper::flush();
    atoms::ok()
}
