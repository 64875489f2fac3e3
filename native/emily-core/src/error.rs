//! Everything that can go wrong, with the op that it went wrong in.

use std::fmt;

/// What a caller can do about an error; the first element of the wire form `{kind, text}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The caller passed something wrong.
    InvalidArgument,
    /// The worker was closed or its stream is gone.
    Stopped,
    /// The worker's queue is full.
    QueueFull,
    /// MLX, the device or the file system failed.
    Runtime,
}

/// An error of the core. Messages read `op: what, expected ..., got ...`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A wrong number of inputs.
    #[error("{}: wrong number of inputs, expected {expected}, got {got}", Snake(op))]
    Arity {
        /// The op.
        op: &'static str,
        /// How many it takes.
        expected: String,
        /// How many it was given.
        got: usize,
    },
    /// An input that must be there is absent.
    #[error("{}: input {index} is absent, expected a tensor, got nil", Snake(op))]
    MissingInput {
        /// The op.
        op: &'static str,
        /// Which input, from 0.
        index: usize,
    },
    /// A single-output op was expected.
    #[error("{}: wrong kind of op, expected one output, got an op with several", Snake(op))]
    SeveralOutputs {
        /// The op.
        op: &'static str,
    },
    /// An attribute or an input that the op cannot take.
    #[error("{}: wrong {what}, expected {expected}, got {got}", Snake(op))]
    Argument {
        /// The op.
        op: &'static str,
        /// The attribute or property, such as `axis` or `dtype of input 1`.
        what: &'static str,
        /// What is accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// MLX found an argument invalid.
    #[error("{}: {message}", Snake(op))]
    MlxArgument {
        /// The op.
        op: &'static str,
        /// MLX's text.
        message: String,
    },
    /// MLX or the device failed.
    #[error("{}: {message}", Snake(op))]
    Mlx {
        /// The op.
        op: &'static str,
        /// MLX's text.
        message: String,
    },
    /// The device has no room, also after the cache was given back.
    #[error(
        "{}: out of memory: {asked} bytes were asked for, {free} bytes are free on the {device} \
         ({active} bytes are in use, the cache was given back)",
        Snake(op)
    )]
    OutOfMemory {
        /// The op.
        op: &'static str,
        /// What MLX asked for where it says so, else the bytes of what was to be computed.
        asked: usize,
        /// Where there is no room.
        device: &'static str,
        /// Free bytes of the device.
        free: usize,
        /// Bytes in tensors that live.
        active: usize,
    },
    /// The worker is closed.
    #[error("stream stopped: it was closed, or nobody holds it any more")]
    Stopped,
    /// The worker's queue holds as many jobs as it may.
    #[error("stream queue full: {capacity} jobs are waiting")]
    QueueFull {
        /// The most jobs that may wait.
        capacity: usize,
    },
    /// The tensor was deallocated.
    #[error("{}: input {index} was deallocated, expected a live tensor", Snake(op))]
    Deallocated {
        /// The op.
        op: &'static str,
        /// Which input, from 0.
        index: usize,
    },
    /// A device that this host lacks.
    #[error("no {device} device, expected one of {available}")]
    NoDevice {
        /// The device asked for.
        device: &'static str,
        /// What there is.
        available: String,
    },
    /// The operating system has no room for another thread or MLX for another stream.
    #[error("stream not made: {reason}")]
    NoStream {
        /// Why.
        reason: String,
    },
    /// A file that cannot be read as what its name says.
    #[error("load: {path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// A job panicked; the worker goes on.
    #[error("a job on the stream panicked, which is a bug of emily: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },
}

/// The result of anything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The class of the error.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Arity { .. }
            | Error::MissingInput { .. }
            | Error::SeveralOutputs { .. }
            | Error::Argument { .. }
            | Error::MlxArgument { .. }
            | Error::Deallocated { .. }
            | Error::NoDevice { .. } => Kind::InvalidArgument,
            Error::Stopped => Kind::Stopped,
            Error::QueueFull { .. } => Kind::QueueFull,
            Error::Mlx { .. }
            | Error::OutOfMemory { .. }
            | Error::NoStream { .. }
            | Error::File { .. }
            | Error::Panicked { .. } => Kind::Runtime,
        }
    }

    /// An [`Error::Argument`] from anything that can be shown.
    pub fn argument(
        op: &'static str,
        what: &'static str,
        expected: impl fmt::Display,
        got: impl fmt::Debug,
    ) -> Self {
        Error::Argument { op, what, expected: expected.to_string(), got: format!("{got:?}") }
    }
}

/// Shows the name of an op, which the table spells `FastRmsNorm`, as users write it: `fast_rms_norm`.
struct Snake<'a>(&'a str);

impl fmt::Display for Snake<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, c) in self.0.char_indices() {
            if c.is_ascii_uppercase() && index > 0 {
                f.write_str("_")?;
            }
            write!(f, "{}", c.to_ascii_lowercase())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_op_as_users_write_it() {
        let error = Error::argument("FastRmsNorm", "eps", "a finite number", f64::NAN);
        assert_eq!(
            error.to_string(),
            "fast_rms_norm: wrong eps, expected a finite number, got NaN"
        );
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }
}
