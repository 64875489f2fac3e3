//! Tensors that the BEAM has collected, freed a few at a time.
//!
//! A collection drops thousands of references at once, while its scheduler runs nothing else. To free an
//! evaluated tensor that has left the caches takes microseconds, and a millisecond is the most that a
//! scheduler should be held. So a thread that collects keeps them in a list of its own, and frees two with
//! each op that it builds next. The allocator is at its best where a thread frees what it made: the reaper
//! takes a list only when its thread builds nothing, or when it grows long.

use crate::reaper;
use crate::tensor::Tensor;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// How many to free with each op that is built: more than it makes, so that a list comes to its end.
pub const A_FEW: usize = 2;

/// A longer list goes to the reaper.
const LONGEST: usize = 1 << 11;

/// How long a thread may build nothing before the reaper takes its list.
pub(crate) const IDLE: Duration = Duration::from_millis(10);

#[derive(Default)]
struct List {
    tensors: Vec<Tensor>,
    /// Whether its thread has freed nothing since the reaper looked.
    untouched: bool,
}

type SharedList = Arc<Mutex<List>>;

static LISTS: Mutex<Vec<SharedList>> = Mutex::new(Vec::new());

/// Whether the reaper looks at the lists every [`IDLE`]. The locks of the lists order it: who pushes after the
/// reaper looked sees that it is not watched any more.
static IS_WATCHED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static MINE: SharedList = {
        let list = SharedList::default();
        LISTS.lock().push(Arc::clone(&list));
        list
    };
}

/// Keeps a tensor that nobody refers to any more until this thread or the reaper frees it.
pub(crate) fn push(tensor: Tensor) {
    let full = MINE.try_with(|mine| {
        let mut list = mine.lock();
        list.tensors.push(tensor);
        (list.tensors.len() >= LONGEST).then(|| mem::take(&mut list.tensors))
    });
    match full {
        Ok(Some(tensors)) => reaper::release(tensors),
        // The load spares the threads a line of cache that all of them would write to.
        Ok(None) if !is_watched() && !IS_WATCHED.swap(true, Ordering::Relaxed) => {
            reaper::watch_retired();
        }
        // Watched already, or freed, since this thread is ending.
        _ => {}
    }
}

/// Frees at most so many of what this thread has collected, the last first, and says how many.
pub fn free_some(most: usize) -> usize {
    let some: SmallVec<[Tensor; A_FEW]> = MINE.with(|mine| {
        let mut list = mine.lock();
        list.untouched = false;
        let kept = list.tensors.len().saturating_sub(most);
        list.tensors.drain(kept..).collect()
    });
    some.len()
}

/// Whether the reaper is to look.
pub(crate) fn is_watched() -> bool {
    IS_WATCHED.load(Ordering::Relaxed)
}

/// Frees the lists of threads that have freed nothing since the last time. Returns whether there are
/// tensors left, so that it has to be called again.
pub(crate) fn free_untouched() -> bool {
    IS_WATCHED.store(false, Ordering::Relaxed);
    let left = free(|list| mem::replace(&mut list.untouched, true));
    left && !IS_WATCHED.swap(true, Ordering::Relaxed)
}

/// Frees all lists.
pub(crate) fn free_all() {
    free(|_| true);
}

/// Frees the lists that are to be freed. Returns whether there are tensors in others.
fn free(is_to_be_freed: impl Fn(&mut List) -> bool) -> bool {
    let lists = {
        let mut lists = LISTS.lock();
        // Of a thread that has ended.
        lists.retain(|list| Arc::strong_count(list) > 1 || !list.lock().tensors.is_empty());
        lists.clone()
    };
    let mut left = false;
    for shared in lists {
        let mut list = shared.lock();
        if list.tensors.is_empty() {
            continue;
        }
        if is_to_be_freed(&mut list) {
            let tensors = mem::take(&mut list.tensors);
            drop(list);
            drop(tensors);
        } else {
            left = true;
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::dtype::Dtype;
    use crate::op::{Fill, Op};
    use crate::worker::Owner;
    use crossbeam_channel::{bounded, Receiver, Sender};
    use parking_lot::MutexGuard;

    /// Holds the thread that frees it, until the other end is dropped.
    struct Gate {
        reached: Sender<()>,
        closed: Receiver<()>,
    }

    impl Drop for Gate {
        fn drop(&mut self) {
            self.reached.send(()).unwrap();
            let _ = self.closed.recv();
        }
    }

    /// As if the reaper looked: only the test does, and one test at a time. The reaper itself stands still until the
    /// sender is dropped.
    fn watched_by_the_test() -> (MutexGuard<'static, ()>, Owner, Sender<()>) {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock();
        reaper::start().unwrap();
        let worker = Owner::start(Device::Cpu, 1).unwrap();
        let (gate, closed) = bounded(0);
        let (reached, held) = bounded(1);
        reaper::release(Gate { reached, closed });
        held.recv().unwrap();
        IS_WATCHED.store(true, Ordering::Relaxed);
        free_all();
        (turn, worker, gate)
    }

    fn tensor(worker: &Owner) -> Tensor {
        let fill = Fill { shape: vec![1], dtype: Dtype::Int32 };
        worker.build(&Op::Ones(fill), &[]).unwrap()
    }

    fn retire(count: usize, worker: &Owner) {
        for _ in 0..count {
            tensor(worker).retire();
        }
    }

    fn listed() -> usize {
        MINE.with(|mine| mine.lock().tensors.len())
    }

    #[test]
    fn a_thread_frees_as_many_as_it_asks_for() {
        let (_turn, worker, _gate) = watched_by_the_test();
        retire(5, &worker);
        assert_eq!(worker.home().bytes(), 5 * 4);
        assert_eq!([2, 2, 2, 2].map(free_some), [2, 2, 1, 0]);
        assert_eq!(worker.home().bytes(), 0);
    }

    #[test]
    fn a_list_that_grows_long_is_handed_over() {
        let (_turn, worker, gate) = watched_by_the_test();
        retire(LONGEST + 3, &worker);
        assert_eq!(listed(), 3);
        drop(gate);
        reaper::flush();
        assert_eq!((listed(), worker.home().bytes()), (0, 0));
    }

    #[test]
    fn the_list_of_a_thread_that_frees_is_left_to_it() {
        let (_turn, worker, _gate) = watched_by_the_test();
        retire(9, &worker);
        IS_WATCHED.store(false, Ordering::Relaxed);
        assert!(free_untouched(), "left, and watched from here on");
        assert_eq!(free_some(2), 2);
        IS_WATCHED.store(false, Ordering::Relaxed);
        assert!(free_untouched());
        assert_eq!(listed(), 7);
        IS_WATCHED.store(false, Ordering::Relaxed);
        free_untouched();
        assert_eq!((listed(), worker.home().bytes()), (0, 0));
    }
}
