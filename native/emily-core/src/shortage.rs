//! Memory that runs out: what can be given back is, and the work is tried once more.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::memory;
use crate::reaper;

/// Does work that allocates. Where memory runs out, the cache is given back, with what was dropped and
/// not freed yet, and the work is done once more.
///
/// MLX keeps what it had computed before it failed, so that the second time goes on from there. Other
/// streams are not touched, except that what they allocate next is not found in the cache.
///
/// # Errors
/// [`Error::OutOfMemory`] where there still is no room, and whatever else the work fails with.
pub(crate) fn retry(
    op: &'static str,
    asked: usize,
    mut work: impl FnMut() -> Result<()>,
) -> Result<()> {
    match work() {
        Err(error) if is_shortage(&error) => {
            reaper::flush();
            memory::clear_cache()?;
            work()
                .map_err(|error| if is_shortage(&error) { name(op, asked, &error) } else { error })
        }
        outcome => outcome,
    }
}

/// CUDA and Metal, and the standard library, tell of it in texts only.
fn is_shortage(error: &Error) -> bool {
    let Error::Mlx { message, .. } = error else { return false };
    ["out of memory", "Unable to allocate", "bad_alloc"].iter().any(|text| message.contains(text))
}

fn name(op: &'static str, asked: usize, error: &Error) -> Error {
    let device = Device::preferred();
    let active = memory::stats().map_or(0, |stats| stats.active);
    let within_limit = || memory::limit().map_or(0, |limit| limit.saturating_sub(active));
    Error::OutOfMemory {
        op,
        asked: said(error).unwrap_or(asked),
        device: device.name(),
        free: device.free_memory().unwrap_or_else(within_limit),
        active,
    }
}

/// The number in "Unable to allocate 123 bytes".
fn said(error: &Error) -> Option<usize> {
    let Error::Mlx { message, .. } = error else { return None };
    let (_, rest) = message.split_once("allocate ")?;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shortage() -> Error {
        Error::Mlx { op: "Eval", message: "[malloc] Unable to allocate 123 bytes.".into() }
    }

    #[test]
    fn work_is_done_once_more_after_the_cache_was_given_back() {
        reaper::start().unwrap();
        let mut outcomes = vec![Ok(()), Err(shortage())];
        assert_eq!(retry("Eval", 7, || outcomes.pop().unwrap()), Ok(()));
        assert!(outcomes.is_empty());
    }

    #[test]
    fn a_second_shortage_is_named() {
        reaper::start().unwrap();
        let mut tries = 0;
        let failed = retry("Eval", 7, || {
            tries += 1;
            Err(shortage())
        });
        assert_eq!(tries, 2);
        let Err(Error::OutOfMemory { asked: 123, free, .. }) = failed else { panic!("{failed:?}") };
        assert!(free > 0);
        let text = failed.unwrap_err().to_string();
        assert!(text.starts_with("eval: out of memory: 123 bytes were asked for"), "{text}");
    }

    #[test]
    fn other_failures_are_not_tried_again() {
        let failure = Error::Mlx { op: "Eval", message: "illegal address".into() };
        let mut tries = 0;
        let outcome = retry("Eval", 7, || {
            tries += 1;
            Err(failure.clone())
        });
        assert_eq!((outcome, tries), (Err(failure), 1));
    }

    #[test]
    fn cudas_text_has_no_number() {
        let text = "cudaMallocAsync(&data, size, stream) failed: out of memory";
        let error = Error::Mlx { op: "Eval", message: text.into() };
        assert!(is_shortage(&error));
        assert_eq!(said(&error), None);
    }
}
