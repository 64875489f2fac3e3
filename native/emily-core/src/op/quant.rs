//! Weights quantised along their last axis in groups that share a scale: affine (with a bias), or
//! microscaled (`mxfp4`, `mxfp8`, `nvfp4`, scales of one byte). Elements are packed into u32 without
//! gaps: a row of `k` has `k * bits / 32` of them and `k / group_size` scales.

use super::elementwise::check_countable;
use super::graph::{broadcast_shape, count, input, optional, or_null, wide, Graph};
use super::integer::promote;
use super::linalg::Picked;
use super::{Dequantize, GatherQmm, Inputs, Quantize, QuantizedMatmul};
use crate::build::{Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use mlx_rs::Array;
use mlx_sys::{mlx_optional_dtype, mlx_optional_int};
use std::ffi::CStr;

/// The dtypes that MLX's kernels have.
const FLOATS: &[Dtype] = &[Dtype::Float32, Dtype::Float16, Dtype::Bfloat16];

fn float(op: &'static str, what: &'static str, dtype: Dtype) -> Result<()> {
    if FLOATS.contains(&dtype) {
        return Ok(());
    }
    Err(Error::argument(op, what, "{:f, 32}, {:f, 16} or {:bf, 16}", format_args!("{dtype}")))
}

/// A combination of attributes that MLX has.
struct Scheme {
    group_size: i32,
    bits: i32,
    mode: &'static CStr,
}

impl Scheme {
    fn new(op: &'static str, group_size: i64, bits: i64, mode: &str) -> Result<Self> {
        let scheme = |mode| Ok(Scheme { group_size: group_size as i32, bits: bits as i32, mode });
        let expected = match (mode, group_size, bits) {
            ("affine", 32 | 64 | 128, 2 | 3 | 4 | 5 | 6 | 8) => return scheme(c"affine"),
            ("mxfp4", 32, 4) => return scheme(c"mxfp4"),
            ("mxfp8", 32, 8) => return scheme(c"mxfp8"),
            ("nvfp4", 16, 4) => return scheme(c"nvfp4"),
            ("affine", ..) => "group size 32, 64 or 128 and 2, 3, 4, 5, 6 or 8 bits for affine",
            ("mxfp4", ..) => "group size 32 and 4 bits for mxfp4",
            ("mxfp8", ..) => "group size 32 and 8 bits for mxfp8",
            ("nvfp4", ..) => "group size 16 and 4 bits for nvfp4",
            _ => "mode affine, mxfp4, mxfp8 or nvfp4",
        };
        let got = format!("group size {group_size}, {bits} bits, mode {mode}");
        Err(Error::Argument { op, what: "quantisation", expected: expected.into(), got })
    }

    fn is_affine(&self) -> bool {
        self.mode == c"affine"
    }

    fn raw(&self) -> (mlx_optional_int, mlx_optional_int, *const std::ffi::c_char) {
        let some = |value| mlx_optional_int { value, has_value: true };
        (some(self.group_size), some(self.bits), self.mode.as_ptr())
    }
}

/// `{packed u32 {.., rows, k * bits / 32}, scales {.., rows, k / group_size}, biases}` of a weight
/// `{.., rows, k}` of f32, f16 or bf16, `k` divisible by the group size. Affine scales and biases have
/// the weight's dtype; microscaled modes have u8 scales and no biases.
pub(super) fn quantize(build: &Build, attrs: &Quantize, inputs: Inputs) -> Result<Vec<Array>> {
    const OP: &str = "Quantize";
    let weight = input(OP, inputs, 0)?;
    let scheme = Scheme::new(OP, attrs.group_size, attrs.bits, &attrs.mode)?;
    float(OP, "dtype", weight.dtype_of())?;
    check_countable(build, OP, weight.count() as i128)?;
    let [rows @ .., k] = weight.shape_of() else {
        return Err(Error::argument(OP, "rank", "2 or more", 0));
    };
    check::rank_at_least(OP, "rank", weight.rank(), 2)?;
    if k % scheme.group_size != 0 {
        let expected = format!("a last axis divisible by the group size {}", scheme.group_size);
        return Err(Error::argument(OP, "shape", expected, weight.shape_of()));
    }
    let graph = Graph::new(build, OP);
    if weight.count() == 0 {
        let packed = i64::from(*k) * i64::from(scheme.bits) / 32;
        let scales = [rows, &[k / scheme.group_size]].concat();
        let mut parts = vec![graph.zeros(&[rows, &[packed as i32]].concat(), Dtype::Uint32)?];
        if scheme.is_affine() {
            parts.push(graph.zeros(&scales, weight.dtype_of())?);
            parts.push(graph.zeros(&scales, weight.dtype_of())?);
        } else {
            parts.push(graph.zeros(&scales, Dtype::Uint8)?);
        }
        return Ok(parts);
    }
    let (group_size, bits, mode) = scheme.raw();
    // SAFETY: the handle is live, an absent array is null, the mode ends in NUL.
    build.arrays(OP, |res, s| unsafe {
        mlx_sys::mlx_quantize(res, weight.as_ptr(), group_size, bits, mode, or_null(None), s)
    })
}

/// A checked quantised weight `{.., rows, k}`.
struct Weight<'a> {
    scheme: Scheme,
    packed: &'a Array,
    scales: &'a Array,
    biases: Option<&'a Array>,
    /// Sizes of the axes before the matrices.
    batch: &'a [i32],
    rows: i32,
    k: i32,
}

impl<'a> Weight<'a> {
    /// Its elements, in the dtype of its scales or, where these are codes, in bf16.
    fn dense(&self, graph: &Graph, scales: &Array, biases: Option<&Array>) -> Result<Array> {
        let dtype = match biases {
            Some(biases) => promote(scales.dtype_of(), biases.dtype_of()),
            None => Dtype::Bfloat16,
        };
        let (group_size, bits, mode) = self.scheme.raw();
        let as_it_is = mlx_optional_dtype { value: dtype.to_mlx(), has_value: false };
        // SAFETY: the handles are live, an absent array is null, the mode ends in NUL.
        graph.call(|res, s| unsafe {
            mlx_sys::mlx_dequantize(
                res,
                self.packed.as_ptr(),
                scales.as_ptr(),
                or_null(biases),
                group_size,
                bits,
                mode,
                or_null(None),
                as_it_is,
                s,
            )
        })
    }

    fn new(
        op: &'static str,
        scheme: Scheme,
        packed: &'a Array,
        scales: &'a Array,
        biases: Option<&'a Array>,
    ) -> Result<Self> {
        if packed.dtype_of() != Dtype::Uint32 {
            let got = packed.dtype_of().to_string();
            return Err(Error::argument(op, "dtype of the packed weight", "{:u, 32}", got));
        }
        let [batch @ .., rows, words] = packed.shape_of() else {
            let (what, expected) = ("shape of the packed weight", "a matrix or a batch of them");
            return Err(Error::argument(op, what, expected, packed.shape_of()));
        };
        let bits = i64::from(*words) * 32;
        let k = bits / i64::from(scheme.bits);
        if bits % i64::from(scheme.bits) != 0 || k % i64::from(scheme.group_size) != 0 {
            let expected = format!(
                "a last axis that holds groups of {} elements of {} bits",
                scheme.group_size, scheme.bits
            );
            let what = "shape of the packed weight";
            return Err(Error::argument(op, what, expected, packed.shape_of()));
        }
        let k = check::size(op, "shape of the packed weight", k)?;
        let groups = [batch, &[*rows, k / scheme.group_size]].concat();
        if scales.shape_of() != groups {
            return Err(Error::argument(
                op,
                "shape of the scales",
                format!("{groups:?}"),
                scales.shape_of(),
            ));
        }
        match (scheme.is_affine(), biases) {
            (true, Some(biases)) => {
                float(op, "dtype of the scales", scales.dtype_of())?;
                float(op, "dtype of the biases", biases.dtype_of())?;
                if biases.shape_of() != groups {
                    let (expected, got) = (format!("{groups:?}"), biases.shape_of());
                    return Err(Error::argument(op, "shape of the biases", expected, got));
                }
            }
            (false, None) if scales.dtype_of() == Dtype::Uint8 => {}
            (false, None) => {
                let got = scales.dtype_of().to_string();
                return Err(Error::argument(op, "dtype of the scales", "{:u, 8}", got));
            }
            (true, None) => {
                return Err(Error::argument(
                    op,
                    "biases",
                    "a tensor for affine",
                    format_args!("nil"),
                ))
            }
            (false, Some(biases)) => {
                let expected = "nil for microscaled modes";
                return Err(Error::argument(op, "biases", expected, biases.shape_of()));
            }
        }
        Ok(Weight { scheme, packed, scales, biases, batch, rows: *rows, k })
    }

    /// The dtype of a product with it.
    fn product_dtype(&self, x: Dtype) -> Dtype {
        match self.biases {
            Some(biases) => promote(promote(x, self.scales.dtype_of()), biases.dtype_of()),
            None => x,
        }
    }

    /// The arguments of a product as MLX's kernels take them, in one dtype, which comes last. The CPU
    /// computes half types one element at a time: f32 is many times faster, conversion included.
    fn operands(&self, graph: &Graph, x: &Array) -> Result<(Array, Array, Option<Array>)> {
        let dtype = self.product_dtype(x.dtype_of());
        let computed = if graph.build.is_cpu() { Dtype::Float32 } else { dtype };
        let x = graph.astype(x, computed)?;
        let scales = match self.biases {
            Some(_) => graph.astype(self.scales, computed)?,
            None => self.scales.clone(),
        };
        let biases = self.biases.map(|biases| graph.astype(biases, computed)).transpose()?;
        Ok((x, scales, biases))
    }

    /// The contracted size and the one that takes its place in a product's last axis.
    fn sides(&self, transpose: bool) -> (i32, i32) {
        if transpose {
            (self.k, self.rows)
        } else {
            (self.rows, self.k)
        }
    }

    fn check_factor(&self, op: &'static str, x: &Array, transpose: bool) -> Result<()> {
        float(op, "dtype of input 0", x.dtype_of())?;
        let (contracted, _) = self.sides(transpose);
        if x.shape_of().last() != Some(&contracted) {
            let expected = format!("a last axis of {contracted}");
            return Err(Error::argument(op, "shape of input 0", expected, x.shape_of()));
        }
        Ok(())
    }
}

/// The dense weight `{.., rows, k}` of a packed one; affine in the scales' dtype, otherwise bf16.
/// Inputs are the packed weight, scales and, for affine only, biases, as `quantize` made them.
pub(super) fn dequantize(build: &Build, attrs: &Dequantize, inputs: Inputs) -> Result<Array> {
    const OP: &str = "Dequantize";
    let scheme = Scheme::new(OP, attrs.group_size, attrs.bits, &attrs.mode)?;
    let (packed, scales) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?);
    let weight = Weight::new(OP, scheme, packed, scales, optional(inputs, 2))?;
    let graph = Graph::new(build, OP);
    let dtype = match weight.biases {
        Some(biases) => promote(scales.dtype_of(), biases.dtype_of()),
        None => Dtype::Bfloat16,
    };
    let shape = wide(&[weight.batch, &[weight.rows, weight.k]].concat());
    let shape = check::shape(OP, &shape, dtype)?;
    check_countable(build, OP, count(&shape) as i128)?;
    if count(&shape) == 0 {
        return graph.zeros(&shape, dtype);
    }
    weight.dense(&graph, scales, weight.biases)
}

/// `x {.., m, k}` (or a vector) times the transpose of a quantised weight `{.., n, k}`; not transposed,
/// `x {.., m, n}` times the weight. The batch axes of several weights broadcast with those of `x`.
/// Inputs are x, of f32, f16 or bf16, the packed weight, scales and, for affine only, biases.
pub(super) fn quantized_matmul(
    build: &Build,
    attrs: &QuantizedMatmul,
    inputs: Inputs,
) -> Result<Array> {
    const OP: &str = "QuantizedMatmul";
    let scheme = Scheme::new(OP, attrs.group_size, attrs.bits, &attrs.mode)?;
    let (packed, scales) = (input(OP, inputs, 1)?, input(OP, inputs, 2)?);
    let weight = Weight::new(OP, scheme, packed, scales, optional(inputs, 3))?;
    product(&Graph::new(build, OP), input(OP, inputs, 0)?, &weight, attrs.transpose)
}

fn product(graph: &Graph, x: &Array, weight: &Weight, transpose: bool) -> Result<Array> {
    let op = graph.op;
    weight.check_factor(op, x, transpose)?;
    let dtype = weight.product_dtype(x.dtype_of());
    let rows = match x.shape_of() {
        [k] => vec![1, *k],
        shape => shape.to_vec(),
    };
    let (batch, matrix) = rows.split_at(rows.len() - 2);
    // Without an axis for them MLX would leave out all weights but the first.
    if !weight.batch.is_empty() && batch.is_empty() {
        let expected = format!("batch axes, as the weight has {:?}", weight.batch);
        return Err(Error::argument(op, "shape of input 0", expected, x.shape_of()));
    }
    check::broadcast(op, batch, weight.batch)?;
    let (_, last) = weight.sides(transpose);
    let mut shape = broadcast_shape(batch, weight.batch);
    if x.rank() > 1 {
        shape.push(matrix[0]);
    }
    shape.push(last);
    let shape = check::shape(op, &wide(&shape), Dtype::Float32)?;
    check_countable(&graph.build, op, count(&shape) as i128)?;
    if count(&shape) == 0 || x.count() == 0 {
        return graph.zeros(&shape, dtype);
    }
    let (x, scales, biases) = weight.operands(graph, &graph.reshape(x, &rows)?)?;
    let (group_size, bits, mode) = weight.scheme.raw();
    // MLX's CUDA kernels give wrong products of several weights, and of rows that are one group.
    if graph.build.is_cuda() && (!weight.batch.is_empty() || weight.k <= weight.scheme.group_size) {
        let dense = graph.astype(&weight.dense(graph, &scales, biases.as_ref())?, x.dtype_of())?;
        let dense = if transpose { graph.swap_last(&dense)? } else { dense };
        let product = graph.binary(mlx_sys::mlx_matmul, &x, &dense)?;
        return graph.astype(&graph.reshape(&product, &shape)?, dtype);
    }
    // SAFETY: the handles are live, an absent array is null, the mode ends in NUL.
    let product = graph.call(|res, s| unsafe {
        mlx_sys::mlx_quantized_matmul(
            res,
            x.as_ptr(),
            weight.packed.as_ptr(),
            scales.as_ptr(),
            or_null(biases.as_ref()),
            transpose,
            group_size,
            bits,
            mode,
            s,
        )
    })?;
    graph.astype(&graph.reshape(&product, &shape)?, dtype)
}

/// As `quantized_matmul` for pairs of a matrix of x, `{.., m, k}`, and a weight, picked by two index
/// tensors, the last inputs, as in `gather_mm`. Without any it is `quantized_matmul`.
pub(super) fn gather_qmm(build: &Build, attrs: &GatherQmm, inputs: Inputs) -> Result<Array> {
    const OP: &str = "GatherQmm";
    let scheme = Scheme::new(OP, attrs.group_size, attrs.bits, &attrs.mode)?;
    let (x, packed, scales) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?, input(OP, inputs, 2)?);
    let weight = Weight::new(OP, scheme, packed, scales, optional(inputs, 3))?;
    let graph = Graph::new(build, OP);
    let picked = Picked::new(&graph, (x, optional(inputs, 4)), (packed, optional(inputs, 5)))?;
    let Some(picked) = picked else { return product(&graph, x, &weight, attrs.transpose) };
    weight.check_factor(OP, x, attrs.transpose)?;
    let dtype = weight.product_dtype(x.dtype_of());
    let (_, last) = weight.sides(attrs.transpose);
    let shape = wide(&[&picked.shape[..], &[x.shape_of()[x.rank() - 2], last]].concat());
    let shape = check::shape(OP, &shape, Dtype::Float32)?;
    check_countable(build, OP, count(&shape) as i128)?;
    if count(&shape) == 0 || x.count() == 0 || packed.count() == 0 {
        return graph.zeros(&shape, dtype);
    }
    let (x, scales, biases) = weight.operands(&graph, x)?;
    let (group_size, bits, mode) = weight.scheme.raw();
    // SAFETY: the handles are live, an absent array is null, the mode ends in NUL.
    let product = graph.call(|res, s| unsafe {
        mlx_sys::mlx_gather_qmm(
            res,
            x.as_ptr(),
            packed.as_ptr(),
            scales.as_ptr(),
            or_null(biases.as_ref()),
            or_null(picked.left.as_ref()),
            or_null(picked.right.as_ref()),
            attrs.transpose,
            group_size,
            bits,
            mode,
            attrs.sorted,
            s,
        )
    })?;
    graph.astype(&product, dtype)
}
