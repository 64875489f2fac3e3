//! The answer to a job: owed exactly once.

use crate::error::{Error, Result};
use crate::load::Loaded;
use crate::program::Question;
use crate::tensor::{Bytes, Tensor};
use std::panic::{catch_unwind, AssertUnwindSafe};

/// What a job answers with.
#[derive(Debug)]
pub enum Value {
    /// The work is done.
    Done,
    /// Tensors, ready.
    Tensors(Vec<Tensor>),
    /// A program asks its caller something before it goes on.
    Asks(Question),
    /// A tensor's elements.
    Bytes(Bytes),
    /// What a file holds.
    Loaded(Loaded),
}

/// Where an answer goes. A panic of one costs its own answer, never the worker that gives it.
pub trait Recipient: Send {
    /// Whether anybody waits for the answer. Asked before the work is begun: the caller may have died
    /// or given up.
    fn is_waiting(&self) -> bool;

    /// Delivers the answer.
    fn deliver(self: Box<Self>, answer: Result<Value>);
}

struct Nobody;

impl Recipient for Nobody {
    fn is_waiting(&self) -> bool {
        true
    }

    fn deliver(self: Box<Self>, _answer: Result<Value>) {}
}

/// An answer that is owed. Dropped unsent, it answers [`Error::Stopped`], so that no caller waits
/// for ever.
pub struct Reply(Option<Box<dyn Recipient>>);

impl Reply {
    /// An answer owed to a recipient.
    pub fn to(recipient: impl Recipient + 'static) -> Self {
        Reply(Some(Box::new(recipient)))
    }

    /// The answer to work that is done although nobody waits for it.
    pub fn to_nobody() -> Self {
        Self::to(Nobody)
    }

    /// Whether anybody waits for the answer.
    pub fn is_wanted(&self) -> bool {
        let waits = |recipient: &dyn Recipient| {
            catch_unwind(AssertUnwindSafe(|| recipient.is_waiting())).unwrap_or(false)
        };
        self.0.as_deref().is_some_and(waits)
    }

    /// Answers.
    pub fn send(mut self, answer: Result<Value>) {
        self.deliver(answer);
    }

    /// Gives the duty up without an answer: the caller was told in another way.
    pub fn forget(mut self) {
        self.0 = None;
    }

    fn deliver(&mut self, answer: Result<Value>) {
        if let Some(recipient) = self.0.take() {
            // A reply is also dropped while a job's panic unwinds, where another panic would abort.
            let _ = catch_unwind(AssertUnwindSafe(|| recipient.deliver(answer)));
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.deliver(Err(Error::Stopped));
    }
}
