//! Threads that look for what is about to come before they sleep: waking one takes tens of microseconds on
//! a virtual machine.

use crate::device::Device;
use std::hint;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long one looks. Who computes on a GPU builds the next graph meanwhile, and needs the host's cores
/// for little else.
pub(crate) fn time() -> Duration {
    Duration::from_micros(if Device::Gpu.is_present() { 300 } else { 30 })
}

static LOOKING: AtomicUsize = AtomicUsize::new(0);

/// The right to look. Only some threads have it at a time, since they take cores from others.
pub(crate) struct Turn;

impl Turn {
    pub(crate) fn take() -> Option<Self> {
        static MOST: OnceLock<usize> = OnceLock::new();
        let most = *MOST.get_or_init(|| {
            let share = if Device::Gpu.is_present() { 2 } else { 4 };
            std::thread::available_parallelism().map_or(1, |cores| (cores.get() / share).max(1))
        });
        let turn = Turn;
        (LOOKING.fetch_add(1, Ordering::Relaxed) < most).then_some(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        LOOKING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Looks until something is there; `None` where there is no turn, or it does not come in time.
pub(crate) fn until<T>(time: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let _turn = Turn::take()?;
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if begin.elapsed() >= time {
            return None;
        }
        hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_in_time_is_found_and_nothing_else() {
        let mut looks = 0;
        let found = until(Duration::from_secs(60), || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(found, Some(3));
        assert_eq!(until(Duration::ZERO, || None::<()>), None);
    }
}
