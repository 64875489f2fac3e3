//! A core reply that is a message to a process: `{tag, answer}`.

use crate::atoms;
use crate::error;
use crate::program::RunResource;
use crate::tensor::{BytesResource, TensorResource};
use emily_core::error::Result;
use emily_core::program::Question;
use emily_core::reply::{Recipient, Reply, Value};
use emily_core::tensor::Tensor;
use emily_core::{Loaded, Metadata};
use rustler::env::SavedTerm;
use rustler::{Encoder, Env, LocalPid, OwnedEnv, Resource, ResourceArc, Term};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

const OWED: u8 = 0;
const ANSWERED: u8 = 1;
const CANCELLED: u8 = 2;

/// A caller's handle on its job, with which it can give up waiting.
pub struct JobResource(Arc<AtomicU8>);

#[rustler::resource_impl]
impl Resource for JobResource {}

/// Gives a job up. True: no message will come. False: it has come or is on its way.
#[rustler::nif]
fn cancel(job: ResourceArc<JobResource>) -> bool {
    settle(&job.0, CANCELLED)
}

/// Decides between the answer and giving up, whichever is first.
fn settle(state: &AtomicU8, outcome: u8) -> bool {
    state.compare_exchange(OWED, outcome, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

struct Caller {
    pid: LocalPid,
    env: OwnedEnv,
    tag: SavedTerm,
    state: Arc<AtomicU8>,
}

/// A reply to the calling process, tagged, and the handle to give it up with.
pub fn to_caller(env: Env, tag: Term) -> (Reply, ResourceArc<JobResource>) {
    let owned = OwnedEnv::new();
    let tag = owned.save(tag);
    let state = Arc::new(AtomicU8::new(OWED));
    let caller = Caller { pid: env.pid(), env: owned, tag, state: Arc::clone(&state) };
    (Reply::to(caller), ResourceArc::new(JobResource(state)))
}

impl Recipient for Caller {
    fn is_waiting(&self) -> bool {
        self.state.load(Ordering::Acquire) == OWED && self.env.run(|env| self.pid.is_alive(env))
    }

    fn deliver(mut self: Box<Self>, answer: Result<Value>) {
        if !settle(&self.state, ANSWERED) {
            return;
        }
        let Caller { pid, tag, .. } = &*self;
        let (pid, tag) = (*pid, tag.clone());
        // The caller may have died since: nobody is left to be told.
        let _ = self.env.send_and_clear(&pid, |env| (tag.load(env), encode(env, answer)));
    }
}

fn encode(env: Env, answer: Result<Value>) -> Term {
    match answer {
        Err(reason) => error::encode(env, &reason),
        Ok(Value::Done) => atoms::ok().encode(env),
        Ok(Value::Tensors(tensors)) => (atoms::ok(), references(tensors)).encode(env),
        Ok(Value::Asks(Question { run, key, tensors })) => {
            let run = ResourceArc::new(RunResource(Arc::new(run)));
            (atoms::call(), run, key, references(tensors)).encode(env)
        }
        Ok(Value::Bytes(bytes)) => (atoms::ok(), BytesResource::binary(env, bytes)).encode(env),
        Ok(Value::Loaded(loaded)) => (atoms::ok(), encode_loaded(env, loaded)).encode(env),
    }
}

fn references(tensors: Vec<Tensor>) -> Vec<ResourceArc<TensorResource>> {
    tensors.into_iter().map(TensorResource::new).collect()
}

fn encode_loaded(env: Env, loaded: Loaded) -> Term {
    let tensors: Vec<_> = loaded
        .tensors
        .into_iter()
        .map(|(name, tensor)| (name, TensorResource::new(tensor)))
        .collect();
    let metadata: Vec<_> = loaded
        .metadata
        .into_iter()
        .map(|(name, value)| {
            let value = match value {
                Metadata::Text(text) => text.encode(env),
                Metadata::Texts(texts) => texts.encode(env),
                Metadata::Numbers(tensor) => TensorResource::new(tensor).encode(env),
            };
            (name, value)
        })
        .collect();
    (tensors, metadata).encode(env)
}
