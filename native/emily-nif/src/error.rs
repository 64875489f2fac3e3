//! Errors on the wire: `{:error, {kind, text}}`.

use crate::atoms;
use emily_core::error::{Error, Kind};
use rustler::{Encoder, Env, Term};

/// The wire form of an error.
pub fn encode<'a>(env: Env<'a>, error: &Error) -> Term<'a> {
    let kind = match error.kind() {
        Kind::InvalidArgument => atoms::invalid_argument(),
        Kind::Stopped => atoms::stopped(),
        Kind::QueueFull => atoms::queue_full(),
        Kind::Runtime => atoms::runtime(),
    };
    (atoms::error(), (kind, error.to_string())).encode(env)
}

/// The wire form of a result.
pub fn encode_result<'a>(env: Env<'a>, result: Result<Term<'a>, Error>) -> Term<'a> {
    result.unwrap_or_else(|error| encode(env, &error))
}

/// An argument that does not decode.
pub fn wrong(op: &'static str, what: &'static str, expected: &str, got: Term) -> Error {
    let mut text = format!("{got:?}");
    if text.len() > SHOWN {
        let end = (0..=SHOWN).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    Error::Argument { op, what, expected: expected.to_owned(), got: text }
}

/// The most bytes of a foreign term in a message.
const SHOWN: usize = 200;
