//! Runs of programs on a worker: begun, suspended while the caller answers a question, gone on with.

use super::check::check_tensors;
use super::machine::{GoOn, Machine, Progress};
use super::{wrong, Program, Template, OP};
use crate::error::Result;
use crate::place::let_go;
use crate::reaper;
use crate::reply::Value;
use crate::slot::Home;
use crate::tensor::{evaluate, schedule, Tensor};
use std::sync::{Arc, Mutex};

/// An input of a run.
#[derive(Clone, Debug)]
pub struct Input {
    /// Its tensor.
    pub tensor: Tensor,
    /// Whether the run takes the array out of the tensor, whose later uses are errors. MLX may
    /// overwrite the buffer of an array that nobody else holds. A tensor that is several inputs stays its
    /// owner's.
    pub donated: bool,
}

/// When a run answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// When the outputs are computed.
    Wait,
    /// When their computation is scheduled; the outputs are lazy. A program whose ops can fail, as a
    /// matrix can be singular, is waited for all the same.
    Schedule,
}

/// A question to the caller.
#[derive(Debug)]
pub struct Question {
    /// What waits for the answer.
    pub run: Run,
    /// What is asked, in the caller's own terms.
    pub key: i64,
    /// What the caller is shown, ready.
    pub tensors: Vec<Tensor>,
}

/// A run that waits for its caller's answer. Dropping it abandons the run.
pub struct Run {
    /// `None` once it goes on.
    machine: Mutex<Option<Machine>>,
    /// Where it was begun, and where its lazy arrays are at home.
    home: Arc<Home>,
    mode: Mode,
    /// What the answer must be.
    expected: Vec<Template>,
}

impl Program {
    /// Begins a run on the thread that holds the slot of `home`: the outputs, ready, or a question.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::error::Error) for inputs of other shapes or dtypes,
    /// [`Error::Stopped`](crate::error::Error) where `go_on` says no, and what data and memory make fail.
    pub(crate) fn begin(
        self: &Arc<Self>,
        inputs: &[Input],
        mode: Mode,
        home: &Arc<Home>,
        go_on: GoOn,
    ) -> Result<Value> {
        if self.device != home.device() {
            let expected = format!("one checked for {}", home.device().name());
            return Err(wrong("program", expected, self.device.name()));
        }
        self.check_inputs(inputs.iter().map(|input| &input.tensor))?;
        Tensor::settle_risks(inputs.iter().map(|input| &input.tensor))?;
        let arrays =
            inputs.iter().map(|input| input.tensor.handle(OP)).collect::<Result<Vec<_>>>()?;
        for tensor in given_away(inputs) {
            // The run's own handle is the last then.
            tensor.deallocate();
        }
        let donated = inputs.iter().zip(&arrays).filter(|(input, _)| input.donated);
        let_go(donated.map(|(_, array)| array), &home.build())?;
        let mode = if self.can_fail { Mode::Wait } else { mode };
        go(Machine::new(self, arrays)?, mode, home, go_on)
    }
}

/// The donated tensors that are one input each.
fn given_away(inputs: &[Input]) -> impl Iterator<Item = &Tensor> {
    let mut ids = Vec::new();
    if inputs.iter().any(|input| input.donated) {
        ids.extend(inputs.iter().map(|input| input.tensor.id()));
        ids.sort_unstable();
    }
    let donated = inputs.iter().filter(|input| input.donated).map(|input| &input.tensor);
    donated.filter(move |tensor| {
        let first = ids.partition_point(|&id| id < tensor.id());
        ids.get(first + 1) != Some(&tensor.id())
    })
}

impl Run {
    /// Checks an answer.
    ///
    /// # Errors
    /// [`Error::Arity`](crate::error::Error) and [`Error::Argument`](crate::error::Error).
    pub fn check(&self, answers: &[Tensor]) -> Result<()> {
        check_tensors("answer", &self.expected, answers.iter())
    }

    /// Abandons the run: its arrays are freed soon.
    pub fn abandon(&self) {
        if let Some(machine) = self.take() {
            reaper::release(machine);
        }
    }

    /// Goes on with an answer, on the thread that holds the slot of `home`.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::error::Error) where the run was begun elsewhere or does not wait, and
    /// as [`Program::begin`].
    pub(crate) fn resume(
        &self,
        answers: &[Tensor],
        home: &Arc<Home>,
        go_on: GoOn,
    ) -> Result<Value> {
        if !Arc::ptr_eq(&self.home, home) {
            return Err(wrong("run", "one that this stream has begun", "another stream's"));
        }
        self.check(answers)?;
        Tensor::settle_risks(answers.iter())?;
        let arrays = answers.iter().map(|answer| answer.handle(OP)).collect::<Result<Vec<_>>>()?;
        let waiting = "one that waits for an answer";
        let mut machine =
            self.take().ok_or_else(|| wrong("run", waiting, "one that has gone on"))?;
        machine.answer(arrays);
        go(machine, self.mode, home, go_on)
    }

    fn take(&self) -> Option<Machine> {
        self.machine.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }
}

fn go(mut machine: Machine, mode: Mode, home: &Arc<Home>, go_on: GoOn) -> Result<Value> {
    match machine.go(&home.build(), go_on)? {
        Progress::Done(outputs) => {
            // What the frames kept goes first, so that it can be reused while the outputs are computed.
            drop(machine);
            let tensors = match mode {
                Mode::Wait => {
                    evaluate(OP, &outputs)?;
                    outputs.into_iter().map(|array| Tensor::ready(array, home)).collect()
                }
                Mode::Schedule => {
                    schedule(OP, &outputs)?;
                    outputs.into_iter().map(|array| Tensor::scheduled(array, home)).collect()
                }
            };
            Ok(Value::Tensors(tensors))
        }
        Progress::Asks(key, shown) => {
            evaluate(OP, &shown)?;
            let tensors = shown.into_iter().map(|array| Tensor::ready(array, home)).collect();
            let expected = machine.expected_answer().to_vec();
            let run =
                Run { machine: Mutex::new(Some(machine)), home: Arc::clone(home), mode, expected };
            Ok(Value::Asks(Question { run, key, tensors }))
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Run(expecting {:?})", self.expected)
    }
}
