//! Workers: one OS thread each, which holds a slot and evaluates on its streams.
//!
//! How a worker ends:
//!
//! 1. Its owner is dropped (the queue is finished: jobs inside are still run) or [`Worker::close`] is
//!    called (the queue is stopped: jobs inside are answered with `Stopped`). A job that runs is let run.
//! 2. The thread leaves `Queue::serve` when no job can come any more and none is left.
//! 3. It waits for what was scheduled on its streams, and drops its lease: the slot is free.
//! 4. It hands its own handle to the reaper, which joins it. Nobody else waits for a thread.
//!
//! A tensor that is lazy when its worker ends stays usable: see [`make_ready`].

use crate::device::Device;
use crate::early::{self, AtWork};
use crate::error::{Error, Result};
use crate::load;
use crate::op::Op;
use crate::program::{self, Input, Mode, Program, Run};
use crate::queue::{Jobs, Queue, Refusal};
use crate::reaper;
use crate::reply::{Reply, Value};
use crate::slot::{self, Home, Lease, Occupied, Slot};
use crate::tensor::{Mark, Tensor};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};

/// Work queued on a worker, with the caller's reply.
pub struct Job {
    reply: Reply,
    work: Work,
}

type Call = dyn FnOnce(&Worker, &Reply) -> Result<Value> + Send;

enum Work {
    /// Anything that evaluates on the worker's own slot.
    Call(Box<Call>),
    /// Evaluates where the tensors are at home.
    Home(Visit),
}

/// Tensors at home in one slot, of which the thread that has the job may or may not be the holder.
struct Visit {
    slot: Arc<Slot>,
    tensors: Vec<Tensor>,
    /// Asked for by a caller of another worker than the slot's.
    foreign: bool,
}

impl Visit {
    fn is_at_home_with(&self, worker: &Worker) -> bool {
        Arc::ptr_eq(&self.slot, worker.slot())
    }
}

/// The right to keep a worker: when dropped, the worker ends after its queued jobs.
pub struct Owner(Arc<Worker>);

/// A thread that evaluates on the streams of a slot.
pub struct Worker {
    home: Arc<Home>,
    queue: Queue<Job>,
    /// The thread's own handle, which it gives to the reaper at its end.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Owner {
    /// Starts a worker whose queue holds at most `capacity` jobs.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::NoStream`], or MLX's reason.
    pub fn start(device: Device, capacity: usize) -> Result<Owner> {
        device.require()?;
        let lease = Lease::take()?;
        let (queue, jobs) = Queue::new(capacity);
        let worker = Arc::new(Worker {
            home: Arc::new(Home::new(lease.slot(), device)),
            queue,
            thread: Mutex::new(None),
        });
        lease.assign(&worker);
        let of_thread = Arc::clone(&worker);
        // Held while spawning, so that the thread finds its handle however fast it ends.
        let mut handle = worker.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let spawned = thread::Builder::new()
            .name(format!("emily-{}-{}", device.name(), worker.slot().index()))
            .spawn(move || run(&of_thread, lease, &jobs));
        *handle = Some(spawned.map_err(|e| Error::NoStream { reason: e.to_string() })?);
        drop(handle);
        Ok(Owner(worker))
    }
}

impl std::ops::Deref for Owner {
    type Target = Arc<Worker>;

    fn deref(&self) -> &Arc<Worker> {
        &self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.queue.finish();
    }
}

impl Worker {
    /// The device it computes on.
    pub fn device(&self) -> Device {
        self.home.device()
    }

    /// The slot it holds.
    pub fn slot(&self) -> &Arc<Slot> {
        self.home.slot()
    }

    /// What its tensors remember.
    pub fn home(&self) -> &Arc<Home> {
        &self.home
    }

    /// Jobs that wait, the running one not counted.
    pub fn queue_depth(&self) -> usize {
        self.queue.waiting()
    }

    /// Whether it takes jobs and builds nodes.
    pub fn is_open(&self) -> bool {
        self.queue.is_open()
    }

    /// Ends the worker: queued jobs answer [`Error::Stopped`], later ones are refused.
    pub fn close(&self) {
        self.queue.stop();
    }

    /// Builds a single-output op on the worker's stream, on the calling thread.
    ///
    /// # Errors
    /// [`Error::Stopped`] once the worker is closed, and what [`Tensor::build`] finds.
    pub fn build(&self, op: &Op, inputs: &[Option<&Tensor>]) -> Result<Tensor> {
        if !self.is_open() {
            return Err(Error::Stopped);
        }
        let tensor = Tensor::build(op, inputs, &self.home)?;
        self.home.unscheduled().add(tensor.byte_size());
        Ok(tensor)
    }

    /// Schedules a tensor that was just built here, unasked, if its device is a card and few streams have work. Where
    /// that is refused, whoever asks for the tensor is told.
    pub fn begin_early(&self, built: &Tensor) -> bool {
        let begins = self.device().is_cuda() && self.is_worth_a_part(built) && AtWork::are_few();
        begins && self.schedule(vec![built.clone()], Reply::to_nobody()).map_err(forget).is_ok()
    }

    /// Whether what was built makes a part for a worker that would be idle otherwise, and nothing in it can
    /// fail: its failure would have nobody to be told.
    pub fn is_worth_a_part(&self, built: &Tensor) -> bool {
        self.home.unscheduled().is_worth_a_part()
            && built.has_on_its_way(early::ENOUGH_OPS)
            && !built.can_fail()
            && self.queue.is_idle()
    }

    /// Queues an op; it is built and evaluated on the worker and answers with ready tensors. The
    /// inputs must be usable in the worker's slot.
    ///
    /// # Errors
    /// As [`Worker::call`].
    pub fn apply(&self, op: Op, inputs: Vec<Option<Tensor>>, reply: Reply) -> Refused {
        self.call(reply, move |worker| {
            let inputs: Vec<_> = inputs.iter().map(Option::as_ref).collect();
            Tensor::build_all(&op, &inputs, &worker.home).map(Value::Tensors)
        })
    }

    /// Queues a run of a program; answers with its outputs or with a question. The inputs must be usable
    /// in the worker's slot. It stops between steps once nobody waits for it or the worker is closed.
    ///
    /// # Errors
    /// As [`Worker::call`].
    pub fn run(
        &self,
        program: Arc<Program>,
        inputs: Vec<Input>,
        mode: Mode,
        reply: Reply,
    ) -> Refused {
        self.call_for(reply, move |worker, reply| {
            let go_on = || worker.is_open() && reply.is_wanted();
            program.begin(&inputs, mode, &worker.home, &go_on)
        })
    }

    /// Queues the rest of a run that asked, with the answer; it answers as [`Worker::run`]. The tensors
    /// must be usable in the worker's slot.
    ///
    /// # Errors
    /// As [`Worker::call`].
    pub fn resume(&self, run: Arc<Run>, answers: Vec<Tensor>, reply: Reply) -> Refused {
        self.call_for(reply, move |worker, reply| {
            run.resume(&answers, &worker.home, &|| worker.is_open() && reply.is_wanted())
        })
    }

    /// Whether nobody needs to wait until tensors are scheduled: nothing in them can fail while it is
    /// computed, and no job waits. A failure to schedule them, for want of memory, comes again to whoever waits
    /// for them.
    pub fn schedules_unattended(&self, tensors: &[Tensor]) -> bool {
        self.queue_depth() == 0 && !tensors.iter().any(Tensor::can_fail)
    }

    /// Queues the scheduling of tensors, which must be usable in the worker's slot; answers when they
    /// are scheduled and not yet computed.
    ///
    /// # Errors
    /// As [`Worker::call`].
    pub fn schedule(&self, tensors: Vec<Tensor>, reply: Reply) -> Refused {
        let mark = Mark::of(&tensors);
        self.call(reply, move |_| {
            let outcome = Tensor::schedule(&tensors);
            mark.settle();
            outcome.map(|()| Value::Done)
        })
    }

    /// Queues loading a file; answers with [`Value::Loaded`].
    ///
    /// # Errors
    /// As [`Worker::call`].
    pub fn load(&self, path: String, reply: Reply) -> Refused {
        self.call(reply, move |worker| load::load(&path, &worker.home).map(Value::Loaded))
    }

    /// Queues reading a tensor, which must be usable in the worker's slot.
    ///
    /// # Errors
    /// As [`Worker::call`].
    pub fn read(&self, tensor: Tensor, reply: Reply) -> Refused {
        self.call(reply, move |worker| tensor.read(&worker.home.build()).map(Value::Bytes))
    }

    /// Queues work on the worker's thread.
    ///
    /// # Errors
    /// The reply and [`Error::QueueFull`] or [`Error::Stopped`], where the work was not taken.
    pub fn call(
        &self,
        reply: Reply,
        work: impl FnOnce(&Worker) -> Result<Value> + Send + 'static,
    ) -> Refused {
        self.call_for(reply, |worker, _| work(worker))
    }

    /// The same for work that asks now and then whether it is still wanted.
    fn call_for(
        &self,
        reply: Reply,
        work: impl FnOnce(&Worker, &Reply) -> Result<Value> + Send + 'static,
    ) -> Refused {
        self.submit(Job { reply, work: Work::Call(Box::new(work)) })
            .map_err(|(job, error)| (job.reply, error))
    }

    // The job goes back to whoever has another place for it.
    #[allow(clippy::result_large_err)]
    fn submit(&self, job: Job) -> std::result::Result<(), (Job, Error)> {
        self.home.unscheduled().reset();
        self.queue.submit(job).map_err(|(job, refusal)| {
            let error = match refusal {
                Refusal::Full => Error::QueueFull { capacity: self.queue.capacity() },
                Refusal::Stopped => Error::Stopped,
            };
            (job, error)
        })
    }
}

/// A job that was not taken gives its reply back, so that the caller can be told at once.
pub type Refused = std::result::Result<(), (Reply, Error)>;

fn forget((reply, _): (Reply, Error)) {
    reply.forget();
}

/// Queues the evaluation of lazy tensors where they are at home: all must be of one slot. The worker
/// that holds the slot does it; where that worker is gone, `guest` does, borrowing the slot.
///
/// # Errors
/// As [`Worker::call`].
pub fn make_ready(tensors: Vec<Tensor>, guest: &Worker, reply: Reply) -> Refused {
    let home = tensors.iter().find(|tensor| !tensor.is_ready()).and_then(Tensor::home);
    let Some(home) = home.map(|home| Arc::clone(home.slot())) else {
        // Evaluated since the caller looked: a job that finds nothing to do tells it.
        return guest.call(reply, |_| Ok(Value::Done));
    };
    let foreign = !Arc::ptr_eq(&home, guest.slot());
    let visit = Visit { slot: Arc::clone(&home), tensors, foreign };
    let mut job = Job { reply, work: Work::Home(visit) };
    if let Some(worker) = home.worker() {
        match worker.submit(job) {
            Ok(()) => return Ok(()),
            // It has been closed since: its slot will be free.
            Err((refused, Error::Stopped)) => job = refused,
            Err((refused, error)) => return Err((refused.reply, error)),
        }
    }
    guest.submit(job).map_err(|(job, error)| (job.reply, error))
}

fn run(worker: &Arc<Worker>, lease: Lease, jobs: &Jobs<Job>) {
    // An evaluation asks for the thread's default streams and would make some for itself.
    worker.home.build().set_default();
    let evaluating = lease.enter();
    worker.queue.serve(jobs, |job| perform(worker, job), |job| refuse(worker, job));
    // What was scheduled without anybody waiting and failed has nobody to be told.
    let _ = slot::synchronize(worker.slot());
    program::clear_traces();
    drop(evaluating);
    drop(lease);
    let handle = worker.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    if let Some(handle) = handle {
        reaper::join(handle);
    }
}

fn perform(worker: &Worker, job: Job) {
    let _at_work = AtWork::begin();
    if !job.reply.is_wanted() {
        job.reply.forget();
        return;
    }
    match job.work {
        Work::Call(work) => {
            let answer = guarded(|| work(worker, &job.reply));
            job.reply.send(answer);
        }
        Work::Home(visit) if visit.is_at_home_with(worker) => {
            job.reply.send(guarded(|| evaluate(&visit.tensors)));
        }
        Work::Home(visit) => match Lease::borrow(&visit.slot) {
            Ok(lease) => job.reply.send(guarded(|| on_borrowed(&lease, &visit.tensors))),
            Err(Occupied::By(holder)) => {
                let job = Job { reply: job.reply, work: Work::Home(visit) };
                if let Err((job, error)) = holder.submit(job) {
                    forward(job, error);
                }
            }
            Err(Occupied::Passing) => {
                forward(Job { reply: job.reply, work: Work::Home(visit) }, Error::Stopped);
            }
        },
    }
}

/// Answers a job of a stopped queue. Who closes a worker gives up the work of its own callers; those of
/// other workers only wanted its slot, which will be free.
fn refuse(worker: &Worker, job: Job) {
    match &job.work {
        Work::Home(visit) if visit.foreign && visit.is_at_home_with(worker) => {
            forward(job, Error::Stopped);
        }
        _ => drop(job),
    }
}

/// Passes a job on whose home has a holder that is ending. The orphanage's thread holds no slot, so
/// that it may wait for one; a worker that waited could wait for a worker that waits for it.
fn forward(job: Job, reason: Error) {
    if reason != Error::Stopped {
        job.reply.send(Err(reason));
        return;
    }
    static ORPHANAGE: OnceLock<crossbeam_channel::Sender<Job>> = OnceLock::new();
    let orphanage = ORPHANAGE.get_or_init(|| {
        let (sender, jobs) = crossbeam_channel::unbounded::<Job>();
        thread::Builder::new()
            .name("emily-orphans".into())
            .spawn(move || jobs.iter().for_each(adopt))
            .expect("the operating system has room for one more thread");
        sender
    });
    // The receiver lives as long as the process; a failed send would drop the job, which answers.
    let _ = orphanage.send(job);
}

fn adopt(mut job: Job) {
    loop {
        let Work::Home(visit) = job.work else { return };
        match Lease::wait(&visit.slot) {
            Ok(lease) => {
                job.reply.send(guarded(|| on_borrowed(&lease, &visit.tensors)));
                return;
            }
            Err(holder) => match holder.submit(Job { reply: job.reply, work: Work::Home(visit) }) {
                Ok(()) => return,
                Err((refused, Error::Stopped)) => job = refused,
                Err((refused, error)) => {
                    refused.reply.send(Err(error));
                    return;
                }
            },
        }
    }
}

fn evaluate(tensors: &[Tensor]) -> Result<Value> {
    Tensor::evaluate(tensors).map(|()| Value::Done)
}

/// Evaluates with the borrowed slot's streams as the thread's defaults.
fn on_borrowed(lease: &Lease, tensors: &[Tensor]) -> Result<Value> {
    lease.slot().build(Device::preferred()).set_default();
    let _evaluating = lease.enter();
    evaluate(tensors)
}

/// A panic costs its job and not the worker.
fn guarded(work: impl FnOnce() -> Result<Value>) -> Result<Value> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        Err(Error::Panicked { message })
    })
}
