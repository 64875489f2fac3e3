//! MLX's allocator.

use crate::atoms;
use crate::error::{encode_result, wrong};
use emily_core::memory::{self, Limit, Stats};
use rustler::{Atom, Encoder, Env, Term};

/// Bytes in use, at the most and kept, as a map.
#[rustler::nif]
fn memory_stats(env: Env) -> Term {
    let encode = |stats: Stats| {
        let keys = [atoms::active(), atoms::peak(), atoms::cache()];
        let values = [stats.active, stats.peak, stats.cache];
        Term::map_from_term_arrays(
            env,
            &keys.map(|key| key.encode(env)),
            &values.map(|value| value.encode(env)),
        )
        .expect("the keys are distinct")
    };
    encode_result(env, memory::stats().map(encode))
}

/// Starts a new peak.
#[rustler::nif]
fn memory_reset_peak(env: Env) -> Term {
    encode_result(env, memory::reset_peak().map(|()| atoms::ok().encode(env)))
}

/// Gives the cache back. MLX waits for running evaluations first.
#[rustler::nif(schedule = "DirtyIo")]
fn memory_clear_cache(env: Env) -> Term {
    encode_result(env, memory::clear_cache().map(|()| atoms::ok().encode(env)))
}

/// Sets a limit and returns the one before. MLX waits for running evaluations first.
#[rustler::nif(schedule = "DirtyIo")]
fn memory_set_limit<'a>(env: Env<'a>, limit: Term<'a>, bytes: Term<'a>) -> Term<'a> {
    let set = || {
        let kind = match limit.decode::<Atom>() {
            Ok(atom) if atom == atoms::cache() => Limit::Cache,
            Ok(atom) if atom == atoms::memory() => Limit::Memory,
            Ok(atom) if atom == atoms::wired() => Limit::Wired,
            _ => return Err(wrong("Memory", "limit", ":cache, :memory or :wired", limit)),
        };
        let bytes =
            bytes.decode().map_err(|_| wrong("Memory", "bytes", "a number of bytes", bytes))?;
        memory::set_limit(kind, bytes)
    };
    encode_result(env, set().map(|before| before.encode(env)))
}

/// The memory limit.
#[rustler::nif]
fn memory_limit(env: Env) -> Term {
    encode_result(env, memory::limit().map(|bytes| bytes.encode(env)))
}

/// Sets the active bytes from which on `apply` tells callers to collect.
#[rustler::nif]
fn memory_collect_above<'a>(env: Env<'a>, bytes: Term<'a>) -> Term<'a> {
    let set = || {
        let bytes =
            bytes.decode().map_err(|_| wrong("Memory", "bytes", "a number of bytes", bytes))?;
        memory::set_collect_above(bytes);
        Ok(atoms::ok().encode(env))
    };
    encode_result(env, set())
}
