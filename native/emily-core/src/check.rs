//! Argument checks that come before MLX: MLX's own are incomplete, and some mistakes end the process
//! there. Each names the op and the attribute, what was expected and what came.

use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// The most bytes a tensor may have; more could not be addressed and overflows MLX's arithmetic.
const MAX_BYTES: i128 = 1 << 46;

/// An integer that fits MLX's `int`.
pub(crate) fn int(op: &'static str, what: &'static str, value: i64) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::argument(op, what, "an int32", value))
}

/// Integers that fit MLX's `int`.
pub(crate) fn ints(op: &'static str, what: &'static str, values: &[i64]) -> Result<Vec<i32>> {
    values.iter().map(|&value| int(op, what, value)).collect()
}

/// A size or count: from 0 to the greatest int32.
pub(crate) fn size(op: &'static str, what: &'static str, value: i64) -> Result<i32> {
    match i32::try_from(value) {
        Ok(size) if size >= 0 => Ok(size),
        _ => Err(Error::argument(op, what, "a size in int32, from 0 to 2147483647", value)),
    }
}

/// Sizes or counts.
pub(crate) fn sizes(op: &'static str, what: &'static str, values: &[i64]) -> Result<Vec<i32>> {
    values.iter().map(|&value| size(op, what, value)).collect()
}

/// Strides, dilations, groups: from 1 to the greatest int32.
pub(crate) fn positive(op: &'static str, what: &'static str, value: i64) -> Result<i32> {
    match i32::try_from(value) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(Error::argument(op, what, "a positive int32", value)),
    }
}

/// Strides, dilations.
pub(crate) fn positives(op: &'static str, what: &'static str, values: &[i64]) -> Result<Vec<i32>> {
    values.iter().map(|&value| positive(op, what, value)).collect()
}

/// The shape of a result, whose bytes must be addressable.
pub(crate) fn shape(op: &'static str, shape: &[i64], dtype: Dtype) -> Result<Vec<i32>> {
    let sizes = sizes(op, "shape", shape)?;
    let mut bytes = dtype.size() as i128;
    for &size in sizes.iter().filter(|&&size| size != 0) {
        bytes = bytes.saturating_mul(i128::from(size));
    }
    if bytes > MAX_BYTES {
        return Err(Error::argument(op, "shape", format!("at most {MAX_BYTES} bytes"), shape));
    }
    Ok(sizes)
}

/// An axis of a tensor of a rank; negative ones count from the last.
pub(crate) fn axis(op: &'static str, what: &'static str, axis: i64, rank: usize) -> Result<i32> {
    let rank = rank as i64;
    if (-rank..rank).contains(&axis) {
        Ok(if axis < 0 { axis + rank } else { axis } as i32)
    } else {
        let expected = if rank == 0 {
            "no axis, since the tensor is a scalar".to_owned()
        } else {
            format!("an axis from {} to {}", -rank, rank - 1)
        };
        Err(Error::argument(op, what, expected, axis))
    }
}

/// Distinct axes of a tensor of a rank.
pub(crate) fn axes(
    op: &'static str,
    what: &'static str,
    axes: &[i64],
    rank: usize,
) -> Result<Vec<i32>> {
    let mut checked = Vec::with_capacity(axes.len());
    for &one in axes {
        let one = axis(op, what, one, rank)?;
        if checked.contains(&one) {
            return Err(Error::argument(op, what, "distinct axes", axes));
        }
        checked.push(one);
    }
    Ok(checked)
}

/// A list with one entry an axis, or as many as something else says.
pub(crate) fn length<T: std::fmt::Debug>(
    op: &'static str,
    what: &'static str,
    list: &[T],
    expected: usize,
) -> Result<()> {
    if list.len() == expected {
        Ok(())
    } else {
        Err(Error::argument(op, what, format!("{expected} entries"), list))
    }
}

/// A rank in a range.
pub(crate) fn rank_at_least(
    op: &'static str,
    what: &'static str,
    rank: usize,
    least: usize,
) -> Result<()> {
    if rank >= least {
        Ok(())
    } else {
        Err(Error::argument(op, what, format!("rank {least} or more"), rank))
    }
}

/// Two shapes that broadcast to one, as numpy's do.
pub(crate) fn broadcast(op: &'static str, a: &[i32], b: &[i32]) -> Result<()> {
    let fits = a.iter().rev().zip(b.iter().rev()).all(|(&x, &y)| x == y || x == 1 || y == 1);
    if fits {
        Ok(())
    } else {
        Err(Error::argument(op, "shapes", "shapes that broadcast", (a, b)))
    }
}

/// A dtype of integers, for indices.
pub(crate) fn integer(op: &'static str, what: &'static str, dtype: Dtype) -> Result<()> {
    if dtype.is_integer() {
        Ok(())
    } else {
        Err(Error::argument(op, what, "an integer dtype", format_args!("{dtype}")))
    }
}
