//! The queue's stop protocol and the reply's promise. With the feature `shuttle` a scheduler explores
//! interleavings, otherwise real threads run.

use emily_core::error::{Error, Result};
use emily_core::queue::{Jobs, Queue, Refusal};
use emily_core::reply::{Recipient, Reply, Value};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

#[cfg(feature = "shuttle")]
use shuttle::thread;
#[cfg(not(feature = "shuttle"))]
use std::thread;

/// Runs a scenario under many schedules.
#[cfg(feature = "shuttle")]
fn explore(scenario: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_random(scenario, 10_000);
    for changes in 1..=3 {
        shuttle::check_pct(scenario, 5_000, changes);
    }
}

#[cfg(not(feature = "shuttle"))]
fn explore(scenario: impl Fn() + Send + Sync + Copy + 'static) {
    for _ in 0..300 {
        scenario();
    }
}

/// How a queue is ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Finish,
    Stop,
}

const CALLERS: usize = 3;
const EACH: usize = 2;

/// What became of every job. Standard primitives, so that watching adds no schedules.
#[derive(Default)]
struct Ledger {
    taken: Mutex<Vec<usize>>,
    run: Mutex<Vec<usize>>,
    refused: Mutex<Vec<usize>>,
    /// Jobs that had begun to run when the end was called for.
    run_at_end: AtomicUsize,
    /// Jobs that began to run when the queue took no more.
    run_closed: AtomicUsize,
}

impl Ledger {
    fn enter(list: &Mutex<Vec<usize>>, job: usize) {
        list.lock().unwrap().push(job);
    }

    fn jobs(list: &Mutex<Vec<usize>>) -> Vec<usize> {
        list.lock().unwrap().clone()
    }
}

/// Callers that submit, one thread that serves and one that ends the queue, all at once.
fn ended_while_callers_submit(capacity: usize, end: End) {
    let (queue, jobs) = Queue::new(capacity);
    let (queue, ledger) = (Arc::new(queue), Arc::new(Ledger::default()));
    let server = {
        let (queue, ledger) = (Arc::clone(&queue), Arc::clone(&ledger));
        thread::spawn(move || {
            queue.serve(
                &jobs,
                |job| {
                    ledger.run_closed.fetch_add(usize::from(!queue.is_open()), SeqCst);
                    Ledger::enter(&ledger.run, job);
                },
                |job| Ledger::enter(&ledger.refused, job),
            );
        })
    };
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (queue, ledger) = (Arc::clone(&queue), Arc::clone(&ledger));
            thread::spawn(move || {
                for job in caller * EACH..(caller + 1) * EACH {
                    match queue.submit(job) {
                        Ok(()) => Ledger::enter(&ledger.taken, job),
                        Err((back, _)) => assert_eq!(back, job),
                    }
                    // A count below zero would be a very large one.
                    assert!(queue.waiting() <= capacity + CALLERS);
                }
            })
        })
        .collect();
    match end {
        End::Finish => queue.finish(),
        End::Stop => queue.stop(),
    }
    ledger.run_at_end.store(ledger.run.lock().unwrap().len(), SeqCst);
    assert!(!queue.is_open());
    assert_eq!(queue.submit(usize::MAX), Err((usize::MAX, Refusal::Stopped)));
    for caller in callers {
        caller.join().unwrap();
    }
    server.join().unwrap();

    assert_eq!(queue.waiting(), 0);
    let (run, refused) = (Ledger::jobs(&ledger.run), Ledger::jobs(&ledger.refused));
    let mut ended: Vec<_> = run.iter().chain(&refused).copied().collect();
    let mut taken = Ledger::jobs(&ledger.taken);
    ended.sort_unstable();
    taken.sort_unstable();
    assert_eq!(ended, taken, "each job that was taken is run or refused, once");
    for caller in 0..CALLERS {
        let own: Vec<_> = run.iter().filter(|&&job| job / EACH == caller).collect();
        assert!(own.is_sorted(), "a caller's jobs run in order");
    }
    match end {
        End::Finish => assert!(refused.is_empty(), "jobs inside a finished queue are run"),
        // One may have been on its way from the flag to its work.
        End::Stop => {
            assert!(run.len() <= ledger.run_at_end.load(SeqCst) + 1);
            assert!(ledger.run_closed.load(SeqCst) <= 1);
        }
    }
}

#[test]
fn a_stopped_queue_runs_or_refuses_each_job_once() {
    explore(|| ended_while_callers_submit(1, End::Stop));
    explore(|| ended_while_callers_submit(CALLERS * EACH, End::Stop));
}

#[test]
fn a_finished_queue_runs_each_job_once() {
    explore(|| ended_while_callers_submit(1, End::Finish));
    explore(|| ended_while_callers_submit(CALLERS * EACH, End::Finish));
}

#[test]
fn two_who_stop_and_one_who_finishes() {
    explore(|| {
        let (queue, jobs) = Queue::new(2);
        let queue = Arc::new(queue);
        let ended = Arc::new(AtomicUsize::new(0));
        let server = {
            let (queue, ended) = (Arc::clone(&queue), Arc::clone(&ended));
            let count = move |_| {
                ended.fetch_add(1, SeqCst);
            };
            thread::spawn(move || queue.serve(&jobs, count.clone(), count))
        };
        let enders: Vec<_> = [Queue::stop, Queue::finish, Queue::stop]
            .into_iter()
            .map(|end: fn(&Queue<usize>)| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || end(&queue))
            })
            .collect();
        let taken = (0..3).filter(|&job| queue.submit(job).is_ok()).count();
        for ender in enders {
            ender.join().unwrap();
        }
        server.join().unwrap();
        assert_eq!(ended.load(SeqCst), taken);
        assert_eq!(queue.waiting(), 0);
    });
}

#[test]
fn a_full_queue_gives_the_job_back_until_one_is_taken_out() {
    explore(|| {
        let (queue, jobs) = Queue::new(2);
        let queue = Arc::new(queue);
        assert_eq!(queue.submit(0), Ok(()));
        assert_eq!(queue.submit(1), Ok(()));
        assert_eq!(queue.submit(2), Err((2, Refusal::Full)));
        assert_eq!(queue.waiting(), 2);
        let server = {
            let queue = Arc::clone(&queue);
            let mut run = Vec::new();
            thread::spawn(move || {
                queue.serve(&jobs, |job| run.push(job), |job| panic!("{job} is refused"));
                run
            })
        };
        while let Err((3, Refusal::Full)) = queue.submit(3) {
            thread::yield_now();
        }
        queue.finish();
        assert_eq!(server.join().unwrap(), [0, 1, 3]);
        assert_eq!(queue.waiting(), 0);
    });
}

/// Counts a caller's answers by kind.
#[derive(Default)]
struct Answers {
    done: AtomicUsize,
    stopped: AtomicUsize,
    panicked: AtomicUsize,
}

impl Answers {
    fn all(&self) -> usize {
        self.done.load(SeqCst) + self.stopped.load(SeqCst) + self.panicked.load(SeqCst)
    }
}

struct Caller(Arc<Answers>);

impl Recipient for Caller {
    fn is_waiting(&self) -> bool {
        true
    }

    fn deliver(self: Box<Self>, answer: Result<Value>) {
        let count = match answer {
            Ok(_) => &self.0.done,
            Err(Error::Stopped) => &self.0.stopped,
            Err(_) => &self.0.panicked,
        };
        count.fetch_add(1, SeqCst);
    }
}

/// How a job that runs treats its reply.
#[derive(Clone, Copy, PartialEq)]
enum Work {
    Answer,
    /// Lets it fall.
    Forget,
    /// Unwinds with the reply in hand.
    Unwind,
    /// Unwinds, and what caught it answers.
    Panic,
}

fn serve(queue: &Queue<(Work, Reply)>, jobs: &Jobs<(Work, Reply)>) {
    let run = |(work, reply): (Work, Reply)| match work {
        Work::Answer => reply.send(Ok(Value::Done)),
        Work::Forget => drop(reply),
        // `resume_unwind` does not print, as `panic!` does thousands of times here.
        Work::Unwind => {
            let work = move || {
                let _reply = reply;
                resume_unwind(Box::new("the job's"))
            };
            assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
        }
        Work::Panic => {
            assert!(catch_unwind(|| resume_unwind(Box::new("the job's"))).is_err());
            reply.send(Err(Error::Panicked { message: "the job's".into() }));
        }
    };
    queue.serve(jobs, run, drop);
}

#[test]
fn a_reply_is_answered_once_whatever_happens() {
    explore(|| {
        let (queue, jobs) = Queue::new(2);
        let queue = Arc::new(queue);
        let server = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || serve(&queue, &jobs))
        };
        let callers: Vec<_> = [Work::Answer, Work::Forget, Work::Unwind, Work::Panic]
            .into_iter()
            .map(|work| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let answers = Arc::new(Answers::default());
                    let reply = Reply::to(Caller(Arc::clone(&answers)));
                    let taken = match queue.submit((work, reply)) {
                        Ok(()) => true,
                        Err(((_, reply), _)) => {
                            reply.forget();
                            false
                        }
                    };
                    (work, taken, answers)
                })
            })
            .collect();
        queue.stop();
        let outcomes: Vec<_> = callers.into_iter().map(|caller| caller.join().unwrap()).collect();
        server.join().unwrap();
        for (work, taken, answers) in outcomes {
            assert_eq!(answers.all(), usize::from(taken));
            assert!(answers.done.load(SeqCst) == 0 || work == Work::Answer);
            assert!(answers.panicked.load(SeqCst) == 0 || work == Work::Panic);
        }
    });
}

#[test]
fn a_reply_that_is_dropped_answers_stopped() {
    let answers = Arc::new(Answers::default());
    drop(Reply::to(Caller(Arc::clone(&answers))));
    assert_eq!((answers.all(), answers.stopped.load(SeqCst)), (1, 1));
    Reply::to(Caller(Arc::clone(&answers))).forget();
    assert_eq!(answers.all(), 1);
}

/// A recipient that fails, as one whose process is half gone may.
struct Broken;

impl Recipient for Broken {
    fn is_waiting(&self) -> bool {
        resume_unwind(Box::new("the recipient's"))
    }

    fn deliver(self: Box<Self>, _: Result<Value>) {
        resume_unwind(Box::new("the recipient's"))
    }
}

#[test]
fn a_recipient_that_panics_costs_nobody_else() {
    let reply = Reply::to(Broken);
    assert!(!reply.is_wanted());
    reply.send(Ok(Value::Done));
    drop(Reply::to(Broken));
    // A panic while another one unwinds would end the process.
    let work = || {
        let _reply = Reply::to(Broken);
        resume_unwind(Box::new("the job's"))
    };
    assert!(catch_unwind(work).is_err());
}
