//! Fused kernels: MLX's own on a GPU. On a CPU, where MLX composes them of other ops, those of this project,
//! unless in f64 or for attention of many queries.

use super::graph::{broadcast_shape, count, input, integer, optional, or_null, Graph};
use super::integer::promote;
use super::{check_room, Attention, Epsilon, Inputs, Rope, RopeInt};
use crate::build::{Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use mlx_rs::Array;
use mlx_sys::mlx_optional_float;

/// Up to so many queries the CPU's kernel is faster than products that BLAS computes.
const FEW: i32 = 8;

fn float(op: &'static str, what: &'static str, dtype: Dtype) -> Result<Dtype> {
    if dtype.is_float() {
        return Ok(dtype);
    }
    Err(Error::argument(op, what, "a real float", format_args!("{dtype}")))
}

/// Whether a kernel of this project computes on a dtype.
fn has_kernel(build: &Build, dtype: Dtype) -> bool {
    build.is_cpu() && dtype != Dtype::Float64
}

/// The size of the last axis, which is normalised.
fn features(op: &'static str, x: &Array) -> Result<i32> {
    float(op, "dtype of input 0", x.dtype_of())?;
    let none = || Error::argument(op, "rank of input 0", "1 or more", 0);
    x.shape_of().last().copied().ok_or_else(none)
}

/// Checks a vector with one float a feature and returns the dtype with it.
fn with_vector(
    op: &'static str,
    what: &'static str,
    vector: Option<&Array>,
    features: i32,
    dtype: Dtype,
) -> Result<Dtype> {
    let Some(vector) = vector else { return Ok(dtype) };
    if vector.shape_of() != [features] {
        return Err(Error::argument(
            op,
            what,
            format!("a vector of {features}"),
            vector.shape_of(),
        ));
    }
    Ok(promote(dtype, float(op, what, vector.dtype_of())?))
}

/// `x / sqrt(mean(x^2) + eps) * weight` along the last axis, in f32 inside. The weight, a vector, may
/// be absent; the dtypes, real floats, promote.
pub(super) fn rms_norm(build: &Build, attrs: &Epsilon, inputs: Inputs) -> Result<Array> {
    const OP: &str = "FastRmsNorm";
    let (x, weight) = (input(OP, inputs, 0)?, optional(inputs, 1));
    let dtype = with_vector(OP, "weight", weight, features(OP, x)?, x.dtype_of())?;
    let graph = Graph::new(build, OP);
    if x.count() == 0 {
        return graph.zeros(x.shape_of(), dtype);
    }
    let eps = attrs.eps as f32;
    if has_kernel(build, dtype) {
        let x = graph.astype(x, dtype)?;
        let weight = weight.map(|weight| graph.astype(weight, dtype)).transpose()?;
        // SAFETY: the handles are live, of one dtype that the function takes, and an absent array is null.
        return graph.call(|res, s| unsafe {
            mlx_sys::emily_rms_norm(res, x.as_ptr(), or_null(weight.as_ref()), eps, s)
        });
    }
    // SAFETY: the handle is live and an absent array is null.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_fast_rms_norm(res, x.as_ptr(), or_null(weight), eps, s)
    })
}

/// `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias` along the last axis, in f32 inside. Weight
/// and bias, vectors, may each be absent; the dtypes, real floats, promote.
pub(super) fn layer_norm(build: &Build, attrs: &Epsilon, inputs: Inputs) -> Result<Array> {
    const OP: &str = "FastLayerNorm";
    let (x, weight, bias) = (input(OP, inputs, 0)?, optional(inputs, 1), optional(inputs, 2));
    let features = features(OP, x)?;
    let dtype = with_vector(OP, "weight", weight, features, x.dtype_of())?;
    let dtype = with_vector(OP, "bias", bias, features, dtype)?;
    let graph = Graph::new(build, OP);
    if x.count() == 0 {
        return graph.zeros(x.shape_of(), dtype);
    }
    let (x, eps) = (graph.astype(x, dtype)?, attrs.eps as f32);
    if has_kernel(build, dtype) {
        let cast = |v: Option<&Array>| v.map(|v| graph.astype(v, dtype)).transpose();
        let (weight, bias) = (cast(weight)?, cast(bias)?);
        let (weight, bias) = (or_null(weight.as_ref()), or_null(bias.as_ref()));
        // SAFETY: the handle is live and absent arrays are null.
        return graph.call(|res, s| unsafe {
            mlx_sys::emily_layer_norm(res, x.as_ptr(), weight, bias, eps, s)
        });
    }
    if build.is_cpu() {
        return composed_layer_norm(&graph, attrs.eps, &x, weight, bias, dtype);
    }
    // SAFETY: the handle is live and absent arrays are null.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_fast_layer_norm(res, x.as_ptr(), or_null(weight), or_null(bias), eps, s)
    })
}

/// MLX's own composition puts a node on the default device's stream, which need not be the CPU's.
fn composed_layer_norm(
    graph: &Graph,
    eps: f64,
    x: &Array,
    weight: Option<&Array>,
    bias: Option<&Array>,
    dtype: Dtype,
) -> Result<Array> {
    let inner = promote(x.dtype_of(), Dtype::Float32);
    let x = graph.astype(x, inner)?;
    let mean = |x: &Array| {
        // SAFETY: the handle is live.
        graph.call(|res, s| unsafe { mlx_sys::mlx_mean_axis(res, x.as_ptr(), -1, true, s) })
    };
    let centred = graph.binary(mlx_sys::mlx_subtract, &x, &mean(&x)?)?;
    let variance = mean(&graph.unary(mlx_sys::mlx_square, &centred)?)?;
    let variance = graph.binary(mlx_sys::mlx_add, &variance, &graph.scalar(eps, inner)?)?;
    let scale = graph.unary(mlx_sys::mlx_rsqrt, &variance)?;
    let mut x = graph.astype(&graph.binary(mlx_sys::mlx_multiply, &centred, &scale)?, dtype)?;
    if let Some(weight) = weight {
        x = graph.binary(mlx_sys::mlx_multiply, &x, &graph.astype(weight, dtype)?)?;
    }
    if let Some(bias) = bias {
        x = graph.binary(mlx_sys::mlx_add, &x, &graph.astype(bias, dtype)?)?;
    }
    Ok(x)
}

/// Rotates the first `dims` features of `x {.., positions, features}`, a real float, by
/// `(offset + position) * scale` times each frequency. The offset is an integer scalar or, for x of
/// rank 3 or more, a vector with one entry for each of its first axis. The angle of pair `i` is the
/// position times `base^(-2 i / dims)`, or divided by `frequencies[i]`, a float vector of `dims / 2`:
/// exactly one of the two is given. Refused: dims that are odd, not positive or more than the features.
pub(super) fn rope(build: &Build, attrs: &Rope, inputs: Inputs) -> Result<Array> {
    const OP: &str = "FastRope";
    let (x, offset) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?);
    check::integer(OP, "dtype of the offset", offset.dtype_of())?;
    let per_batch = x.rank() >= 3 && offset.shape_of() == [x.shape_of()[0]];
    if offset.count() != 1 && !per_batch || offset.rank() > 1 {
        let expected = "a scalar, or a vector with one entry for each of the first axis";
        return Err(Error::argument(OP, "shape of the offset", expected, offset.shape_of()));
    }
    let graph = Graph::new(build, OP);
    let offset = graph.astype(offset, Dtype::Int32)?;
    let &Rope { dims, traditional, base, scale } = attrs;
    let rotation = Rotation { dims, traditional, base, scale, frequencies: optional(inputs, 2) };
    rotate(&graph, x, &rotation, || Ok(offset))
}

/// As `rope` with an offset that is known.
pub(super) fn rope_int(build: &Build, attrs: &RopeInt, inputs: Inputs) -> Result<Array> {
    const OP: &str = "FastRopeInt";
    let x = input(OP, inputs, 0)?;
    let offset = check::int(OP, "offset", attrs.offset)?;
    let graph = Graph::new(build, OP);
    let &RopeInt { dims, traditional, base, scale, .. } = attrs;
    let rotation = Rotation { dims, traditional, base, scale, frequencies: optional(inputs, 1) };
    rotate(&graph, x, &rotation, || Ok(integer(offset.into(), Dtype::Int32)))
}

/// What rotates, but for the offset.
struct Rotation<'a> {
    dims: i64,
    traditional: bool,
    base: Option<f64>,
    scale: f64,
    frequencies: Option<&'a Array>,
}

fn rotate(
    graph: &Graph,
    x: &Array,
    rotation: &Rotation,
    offset: impl FnOnce() -> Result<Array>,
) -> Result<Array> {
    let op = graph.op;
    float(op, "dtype of input 0", x.dtype_of())?;
    check::rank_at_least(op, "rank of input 0", x.rank(), 2)?;
    let features = x.shape_of()[x.rank() - 1];
    let dims = check::positive(op, "dims", rotation.dims)?;
    if dims % 2 != 0 || dims > features {
        return Err(Error::argument(op, "dims", format!("an even number up to {features}"), dims));
    }
    let (base, frequencies) = match (rotation.base, rotation.frequencies) {
        (Some(base), None) if base > 0.0 => (base as f32, None),
        (None, Some(frequencies)) => {
            float(op, "dtype of the frequencies", frequencies.dtype_of())?;
            if frequencies.shape_of() != [dims / 2] {
                let (expected, got) = (format!("{:?}", [dims / 2]), frequencies.shape_of());
                return Err(Error::argument(op, "shape of the frequencies", expected, got));
            }
            (0.0, Some(graph.astype(frequencies, Dtype::Float32)?))
        }
        (base, _) => {
            let expected = "a positive base or frequencies, not both";
            return Err(Error::argument(op, "base", expected, base));
        }
    };
    if x.count() == 0 {
        return Ok(x.clone());
    }
    let (offset, frequencies) = (offset()?, or_null(frequencies.as_ref()));
    let (traditional, scale) = (rotation.traditional, rotation.scale as f32);
    if has_kernel(&graph.build, x.dtype_of()) {
        let (x, offset) = (x.as_ptr(), offset.as_ptr());
        // SAFETY: live handles of dtypes and shapes that the function takes; an absent array is null.
        return graph.call(|res, s| unsafe {
            mlx_sys::emily_rope(res, x, dims, traditional, base, scale, offset, frequencies, s)
        });
    }
    // MLX wants an axis before the positions.
    let shape = x.shape_of();
    let batched = if shape.len() == 2 { [&[1], shape].concat() } else { shape.to_vec() };
    let batched = graph.reshape(x, &batched)?;
    let base = mlx_optional_float { value: base, has_value: frequencies.ctx.is_null() };
    let rotated = graph.call(|res, s| {
        let (x, offset) = (batched.as_ptr(), offset.as_ptr());
        // SAFETY: the handles are live and absent arrays are null.
        unsafe {
            mlx_sys::mlx_fast_rope_dynamic(
                res,
                x,
                dims,
                traditional,
                base,
                scale,
                offset,
                frequencies,
                s,
            )
        }
    })?;
    graph.reshape(&rotated, shape)
}

/// `softmax(scale * q k^T + mask) v` for `q {B, H, Q, D}`, `k {B, N, K, D}`, `v {B, N, K, E}`, real
/// floats that promote, with `H` divisible by `N`; the result is `{B, H, Q, E}`. The mask broadcasts to
/// `{B, H, Q, K}`: true where a key is seen, or a float that is added. Causal means that query `i` sees
/// keys up to `i + K - Q`, and excludes a mask. The sinks, `{H}` or `{1, H, 1, 1}`, are each one more
/// score without a value. On a CPU the scores, `{B, H, Q, K}`, must be such as a tensor may have.
pub(super) fn scaled_dot_product_attention(
    build: &Build,
    attrs: &Attention,
    inputs: Inputs,
) -> Result<Array> {
    const OP: &str = "FastScaledDotProductAttention";
    let (q, k, v) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?, input(OP, inputs, 2)?);
    let (mask, sinks) = (optional(inputs, 3), optional(inputs, 4));
    let shapes = (q.shape_of(), k.shape_of(), v.shape_of());
    let wrong = |expected: &str| Err(Error::argument(OP, "shapes", expected, shapes));
    let ([batch, heads, queries, depth], [batch_k, heads_k, keys, depth_k], [.., values, width]) =
        shapes
    else {
        return wrong("queries, keys and values of rank 4");
    };
    if v.rank() != 4 || v.shape_of()[..3] != k.shape_of()[..3] || values != keys {
        return wrong("keys and values of one batch, heads and length");
    }
    if batch != batch_k || depth != depth_k {
        return wrong("queries and keys of one batch and depth");
    }
    if *heads_k == 0 || heads % heads_k != 0 {
        return wrong("a number of query heads divisible by that of the keys");
    }
    let mut dtype = float(OP, "dtype of the queries", q.dtype_of())?;
    dtype = promote(dtype, float(OP, "dtype of the keys", k.dtype_of())?);
    dtype = promote(dtype, float(OP, "dtype of the values", v.dtype_of())?);
    let graph = Graph::new(build, OP);
    let scores = [*batch, *heads, *queries, *keys];
    let mask = mask.map(|mask| checked_mask(&graph, mask, &scores, dtype)).transpose()?;
    if attrs.causal && mask.is_some() {
        return Err(Error::argument(OP, "mask", "none beside causal", &scores[..]));
    }
    let sinks = sinks.map(|sinks| checked_sinks(&graph, sinks, *heads, dtype)).transpose()?;
    let result = [*batch, *heads, *queries, *width];
    if count(&result) == 0 || *keys == 0 {
        return graph.zeros(&result, dtype);
    }
    if build.is_cpu() {
        check_room(build, OP, &scores, dtype)?;
    }
    let scale = attrs.scale as f32;
    if has_kernel(build, dtype) && *queries <= FEW {
        let (q, k, v) = (graph.astype(q, dtype)?, graph.astype(k, dtype)?, graph.astype(v, dtype)?);
        let (q, k, v) = (q.as_ptr(), k.as_ptr(), v.as_ptr());
        let (mask, sinks) = (or_null(mask.as_ref()), or_null(sinks.as_ref()));
        // SAFETY: the handles are live and absent arrays are null.
        return graph.call(|res, s| unsafe {
            mlx_sys::emily_attention(res, q, k, v, scale, attrs.causal, mask, sinks, s)
        });
    }
    if build.is_cpu() && dtype == Dtype::Float32 {
        // The queries of the heads that share one head of keys are the rows of one product.
        let rows = heads / heads_k * queries;
        let q = graph.binary(mlx_sys::mlx_multiply, q, &graph.scalar(attrs.scale, dtype)?)?;
        let q = graph.reshape(&q, &[*batch, *heads_k, rows, *depth])?;
        let k = graph.swap_last(&graph.astype(k, dtype)?)?;
        let products = graph.binary(mlx_sys::mlx_matmul, &q, &k)?;
        let products = graph.reshape(&products, &scores)?;
        let (mask, sinks) = (or_null(mask.as_ref()), or_null(sinks.as_ref()));
        // SAFETY: the handles are live and absent arrays are null.
        let weights = graph.call(|res, s| unsafe {
            mlx_sys::emily_attention_weights(res, products.as_ptr(), attrs.causal, mask, sinks, s)
        })?;
        let weights = graph.reshape(&weights, &[*batch, *heads_k, rows, *keys])?;
        let sums = graph.binary(mlx_sys::mlx_matmul, &weights, &graph.astype(v, dtype)?)?;
        return graph.reshape(&sums, &result);
    }
    let mode = if attrs.causal { c"causal" } else { c"" };
    // SAFETY: the handles are live, absent arrays are null, the mode ends in NUL.
    graph.call(|res, s| unsafe {
        mlx_sys::mlx_fast_scaled_dot_product_attention(
            res,
            q.as_ptr(),
            k.as_ptr(),
            v.as_ptr(),
            scale,
            mode.as_ptr(),
            or_null(mask.as_ref()),
            or_null(sinks.as_ref()),
            false,
            s,
        )
    })
}

/// A boolean mask, or a float one in the dtype of the result.
fn checked_mask(graph: &Graph, mask: &Array, scores: &[i32], dtype: Dtype) -> Result<Array> {
    let fits = check::broadcast(graph.op, mask.shape_of(), scores).is_ok()
        && broadcast_shape(mask.shape_of(), scores) == scores;
    if !fits {
        let expected = format!("one that broadcasts to {scores:?}");
        return Err(Error::argument(graph.op, "shape of the mask", expected, mask.shape_of()));
    }
    match mask.dtype_of() {
        Dtype::Bool => Ok(mask.clone()),
        given if given.is_float() => graph.astype(mask, dtype),
        given => {
            let expected = "{:pred, 1} or a real float";
            Err(Error::argument(graph.op, "dtype of the mask", expected, format_args!("{given}")))
        }
    }
}

fn checked_sinks(graph: &Graph, sinks: &Array, heads: i32, dtype: Dtype) -> Result<Array> {
    float(graph.op, "dtype of the sinks", sinks.dtype_of())?;
    if sinks.shape_of() != [heads] && sinks.shape_of() != [1, heads, 1, 1] {
        let expected = format!("{:?}", [heads]);
        return Err(Error::argument(graph.op, "shape of the sinks", expected, sinks.shape_of()));
    }
    graph.astype(&graph.reshape(sinks, &[heads])?, dtype)
}
