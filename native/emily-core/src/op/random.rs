//! Random numbers. Every function takes a key, u32 `{2}`, as its last input; the same key gives the
//! same numbers.

use super::elementwise::check_countable;
use super::graph::{broadcast_shape, count, input, wide, Graph};
use super::{Inputs, RandomBits, RandomCategorical, RandomNormal, RandomShape, RandomSplit, Shape};
use crate::build::{Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use mlx_rs::Array;

/// The dtypes that MLX draws floats in.
const FLOATS: &[Dtype] = &[Dtype::Float32, Dtype::Float16, Dtype::Bfloat16];

fn key<'a>(op: &'static str, inputs: Inputs<'a>, index: usize) -> Result<&'a Array> {
    let key = input(op, inputs, index)?;
    if key.dtype_of() != Dtype::Uint32 || key.shape_of() != [2] {
        let got = format!("{} {:?}", key.dtype_of(), key.shape_of());
        return Err(Error::argument(op, "key", "{:u, 32} [2]", got));
    }
    Ok(key)
}

fn shape(build: &Build, op: &'static str, shape: &[i64], dtype: Dtype) -> Result<Vec<i32>> {
    // MLX draws 4 bytes for each number, whatever its dtype.
    let wider = if dtype.size() < 4 { Dtype::Uint32 } else { dtype };
    let shape = check::shape(op, shape, wider)?;
    check_countable(build, op, count(&shape) as i128)?;
    Ok(shape)
}

fn one_of(op: &'static str, dtype: Dtype, dtypes: &[Dtype]) -> Result<()> {
    if dtypes.contains(&dtype) {
        return Ok(());
    }
    let names: Vec<String> = dtypes.iter().map(ToString::to_string).collect();
    Err(Error::argument(op, "dtype", names.join(" or "), format_args!("{dtype}")))
}

/// `num` new keys, u32 `{num, 2}`.
pub(super) fn split(build: &Build, attrs: &RandomSplit, inputs: Inputs) -> Result<Array> {
    const OP: &str = "RandomSplit";
    let key = key(OP, inputs, 0)?;
    let num = check::size(OP, "num", attrs.num)?;
    shape(build, OP, &[attrs.num, 2], Dtype::Uint32)?;
    // SAFETY: the handle is live.
    Graph::new(build, OP)
        .call(|res, s| unsafe { mlx_sys::mlx_random_split_num(res, key.as_ptr(), num, s) })
}

/// Uniformly distributed bits as u8, u16 or u32 by the width.
pub(super) fn bits(build: &Build, attrs: &RandomBits, inputs: Inputs) -> Result<Array> {
    const OP: &str = "RandomBits";
    let key = key(OP, inputs, 0)?;
    if !matches!(attrs.width, 1 | 2 | 4) {
        return Err(Error::argument(OP, "width", "1, 2 or 4 bytes", attrs.width));
    }
    let (width, shape) = (attrs.width as i32, shape(build, OP, &attrs.shape, Dtype::Uint32)?);
    // SAFETY: the handle is live and the pointer has the length beside it.
    Graph::new(build, OP).call(|res, s| unsafe {
        mlx_sys::mlx_random_bits(res, shape.as_ptr(), shape.len(), width, key.as_ptr(), s)
    })
}

/// The two bounds, the first two inputs, which must broadcast to the shape.
fn bounds<'a>(op: &'static str, inputs: Inputs<'a>, shape: &[i32]) -> Result<[&'a Array; 2]> {
    let bounds = [input(op, inputs, 0)?, input(op, inputs, 1)?];
    for (what, bound) in [("shape of input 0", bounds[0]), ("shape of input 1", bounds[1])] {
        fits(op, what, bound.shape_of(), shape)?;
    }
    for (what, bound) in [("dtype of input 0", bounds[0]), ("dtype of input 1", bounds[1])] {
        if bound.dtype_of() == Dtype::Complex64 {
            return Err(Error::argument(
                op,
                what,
                "a real one",
                format_args!("{}", bound.dtype_of()),
            ));
        }
    }
    Ok(bounds)
}

fn fits(op: &'static str, what: &'static str, given: &[i32], shape: &[i32]) -> Result<()> {
    if check::broadcast(op, given, shape).is_err() || broadcast_shape(given, shape) != shape {
        let expected = format!("one that broadcasts to {shape:?}");
        return Err(Error::argument(op, what, expected, given));
    }
    Ok(())
}

/// Floats from the first input, included, to the second, not included; f32, f16 or bf16. The bounds
/// broadcast to the shape.
pub(super) fn uniform(build: &Build, attrs: &RandomShape, inputs: Inputs) -> Result<Array> {
    const OP: &str = "RandomUniform";
    one_of(OP, attrs.dtype, FLOATS)?;
    let (key, shape) = (key(OP, inputs, 2)?, shape(build, OP, &attrs.shape, attrs.dtype)?);
    let [low, high] = bounds(OP, inputs, &shape)?;
    // SAFETY: the handles are live and the pointer has the length beside it.
    Graph::new(build, OP).call(|res, s| unsafe {
        mlx_sys::mlx_random_uniform(
            res,
            low.as_ptr(),
            high.as_ptr(),
            shape.as_ptr(),
            shape.len(),
            attrs.dtype.to_mlx(),
            key.as_ptr(),
            s,
        )
    })
}

/// Integers from the first input, included, to the second, not included, of an integer dtype or
/// `Bool`. They are drawn as f32: a span beyond 2^24 has gaps. The bounds broadcast to the shape.
pub(super) fn randint(build: &Build, attrs: &RandomShape, inputs: Inputs) -> Result<Array> {
    const OP: &str = "RandomRandint";
    if attrs.dtype.is_inexact() {
        let expected = "an integer dtype or {:pred, 1}";
        return Err(Error::argument(OP, "dtype", expected, format_args!("{}", attrs.dtype)));
    }
    let (key, shape) = (key(OP, inputs, 2)?, shape(build, OP, &attrs.shape, attrs.dtype)?);
    let [low, high] = bounds(OP, inputs, &shape)?;
    // SAFETY: the handles are live and the pointer has the length beside it.
    Graph::new(build, OP).call(|res, s| unsafe {
        mlx_sys::mlx_random_randint(
            res,
            low.as_ptr(),
            high.as_ptr(),
            shape.as_ptr(),
            shape.len(),
            attrs.dtype.to_mlx(),
            key.as_ptr(),
            s,
        )
    })
}

/// Normally distributed numbers with mean `loc` and standard deviation `scale`; f32, f16, bf16 or c64.
pub(super) fn normal(build: &Build, attrs: &RandomNormal, inputs: Inputs) -> Result<Array> {
    const OP: &str = "RandomNormal";
    one_of(OP, attrs.dtype, &[FLOATS, &[Dtype::Complex64]].concat())?;
    let (key, shape) = (key(OP, inputs, 0)?, shape(build, OP, &attrs.shape, attrs.dtype)?);
    let (loc, scale) = (attrs.loc as f32, attrs.scale as f32);
    let dtype = attrs.dtype.to_mlx();
    // SAFETY: the handle is live and the pointer has the length beside it.
    Graph::new(build, OP).call(|res, s| unsafe {
        let (sizes, len) = (shape.as_ptr(), shape.len());
        mlx_sys::mlx_random_normal(res, sizes, len, dtype, loc, scale, key.as_ptr(), s)
    })
}

/// Booleans that are true with the probability of the first input, a real float that broadcasts to the
/// shape.
pub(super) fn bernoulli(build: &Build, attrs: &Shape, inputs: Inputs) -> Result<Array> {
    const OP: &str = "RandomBernoulli";
    let p = input(OP, inputs, 0)?;
    if !p.dtype_of().is_float() {
        let got = format_args!("{}", p.dtype_of()).to_string();
        return Err(Error::argument(OP, "dtype of input 0", "a real float", got));
    }
    let (key, shape) = (key(OP, inputs, 1)?, shape(build, OP, &attrs.shape, Dtype::Bool)?);
    fits(OP, "shape of input 0", p.shape_of(), &shape)?;
    // SAFETY: the handles are live and the pointer has the length beside it.
    Graph::new(build, OP).call(|res, s| unsafe {
        let (sizes, len) = (shape.as_ptr(), shape.len());
        mlx_sys::mlx_random_bernoulli(res, p.as_ptr(), sizes, len, key.as_ptr(), s)
    })
}

/// Numbers of the standard Gumbel distribution; f32, f16 or bf16.
pub(super) fn gumbel(build: &Build, attrs: &RandomShape, inputs: Inputs) -> Result<Array> {
    const OP: &str = "RandomGumbel";
    one_of(OP, attrs.dtype, FLOATS)?;
    let (key, shape) = (key(OP, inputs, 0)?, shape(build, OP, &attrs.shape, attrs.dtype)?);
    let dtype = attrs.dtype.to_mlx();
    // SAFETY: the handle is live and the pointer has the length beside it.
    Graph::new(build, OP).call(|res, s| unsafe {
        mlx_sys::mlx_random_gumbel(res, shape.as_ptr(), shape.len(), dtype, key.as_ptr(), s)
    })
}

/// Categories u32 drawn by their logits, the first input, a real float: the result has the logits'
/// shape without the axis, followed by the number of samples. Refused: an axis without categories.
pub(super) fn categorical(
    build: &Build,
    attrs: &RandomCategorical,
    inputs: Inputs,
) -> Result<Array> {
    const OP: &str = "RandomCategorical";
    let (logits, key) = (input(OP, inputs, 0)?, key(OP, inputs, 1)?);
    if !logits.dtype_of().is_float() {
        let got = format_args!("{}", logits.dtype_of()).to_string();
        return Err(Error::argument(OP, "dtype of input 0", "a real float", got));
    }
    let axis = check::axis(OP, "axis", attrs.axis, logits.rank())?;
    let samples = check::size(OP, "num_samples", attrs.num_samples)?;
    let mut sizes = wide(logits.shape_of());
    let categories = sizes.remove(axis as usize);
    if categories == 0 {
        return Err(Error::argument(OP, "logits", "at least one category", logits.shape_of()));
    }
    sizes.push(samples.into());
    let shape = shape(build, OP, &sizes, Dtype::Uint32)?;
    check_countable(build, OP, i128::from(categories) * count(&shape) as i128)?;
    let graph = Graph::new(build, OP);
    if count(&shape) == 0 {
        return graph.zeros(&shape, Dtype::Uint32);
    }
    // MLX's own function for several samples would do this on the default device's stream.
    let column = [logits.shape_of(), &[1]].concat();
    let logits = graph.reshape(logits, &column)?;
    // SAFETY: the handles are live and the pointer has the length beside it.
    graph.call(|res, s| unsafe {
        let (sizes, len) = (shape.as_ptr(), shape.len());
        let (logits, key) = (logits.as_ptr(), key.as_ptr());
        mlx_sys::mlx_random_categorical_shape(res, logits, axis, sizes, len, key, s)
    })
}
