//! One result element for each element of the inputs, which broadcast to one shape as numpy's do.
//!
//! Dtypes promote as in MLX (see [`integer::promote`]). Functions of real numbers give integers a
//! float result, of f32. What an op cannot take of complex numbers is an error when it is built. The
//! error function and its inverse have f32's precision in f64 too.

use super::graph::{count, input, optional, Binary, Graph, Unary};
use super::{double, integer, ArrayEqual, Inputs, Round};
use crate::build::{Build, Describe};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use mlx_rs::Array;
use smallvec::SmallVec;

macro_rules! unary {
    ($($name:ident: $op:literal, $function:ident;)*) => {$(
        pub(super) fn $name(build: &Build, inputs: Inputs) -> Result<Array> {
            Graph::new(build, $op).unary(mlx_sys::$function, input($op, inputs, 0)?)
        }
    )*};
}

macro_rules! binary {
    ($($name:ident: $op:literal, $function:ident;)*) => {$(
        pub(super) fn $name(build: &Build, inputs: Inputs) -> Result<Array> {
            let (a, b) = pair(build, $op, inputs)?;
            Graph::new(build, $op).binary(mlx_sys::$function, a, b)
        }
    )*};
}

/// Whole numbers already: MLX would copy integers and has no such kernel for booleans everywhere.
macro_rules! rounding {
    ($($name:ident: $op:literal, $function:ident;)*) => {$(
        pub(super) fn $name(build: &Build, inputs: Inputs) -> Result<Array> {
            let x = input($op, inputs, 0)?;
            if !x.dtype_of().is_inexact() {
                return Ok(x.clone());
            }
            Graph::new(build, $op).unary(mlx_sys::$function, x)
        }
    )*};
}

/// Functions whose kernel for f64 is one for f32. The second function is the CPU's for f32.
macro_rules! single {
    ($($name:ident: $op:literal, $function:ident, $host:ident;)*) => {$(
        pub(super) fn $name(build: &Build, inputs: Inputs) -> Result<Array> {
            let (graph, x) = (Graph::new(build, $op), input($op, inputs, 0)?);
            if x.dtype_of() == Dtype::Float64 {
                return double::$name(&graph, x);
            }
            graph.unary(host_or(&graph, x, mlx_sys::$host, mlx_sys::$function), x)
        }
    )*};
}

/// Of truth values; other dtypes are true where they are not zero.
macro_rules! logical {
    ($($name:ident: $op:literal, $function:ident;)*) => {$(
        pub(super) fn $name(build: &Build, inputs: Inputs) -> Result<Array> {
            let (a, b) = pair(build, $op, inputs)?;
            let graph = Graph::new(build, $op);
            graph.binary(mlx_sys::$function, &truth(&graph, a)?, &truth(&graph, b)?)
        }
    )*};
}

/// Of the bits of integers; inexact dtypes are refused. Booleans take the logical function: MLX's
/// bitwise one on the CPU runs twice over them, where a donated input has changed in between.
macro_rules! bitwise {
    ($($name:ident: $op:literal, $function:ident, $logical:ident;)*) => {$(
        pub(super) fn $name(build: &Build, inputs: Inputs) -> Result<Array> {
            let (a, b) = pair(build, $op, inputs)?;
            let graph = Graph::new(build, $op);
            match integer::promote(a.dtype_of(), b.dtype_of()) {
                Dtype::Bool => graph.binary(mlx_sys::$logical, a, b),
                dtype if dtype.is_inexact() => Err(integer::refuse($op, dtype)),
                _ => graph.binary(mlx_sys::$function, a, b),
            }
        }
    )*};
}

unary! {
    negative: "Negative", mlx_negative;
    abs: "Abs", mlx_abs;
    sign: "Sign", mlx_sign;
    sqrt: "Sqrt", mlx_sqrt;
    rsqrt: "Rsqrt", mlx_rsqrt;
    expm1: "Expm1", mlx_expm1;
    log: "Log", mlx_log;
    log1p: "Log1p", mlx_log1p;
    log2: "Log2", mlx_log2;
    log10: "Log10", mlx_log10;
    tan: "Tan", mlx_tan;
    arcsin: "Arcsin", mlx_arcsin;
    arccos: "Arccos", mlx_arccos;
    arctan: "Arctan", mlx_arctan;
    sinh: "Sinh", mlx_sinh;
    cosh: "Cosh", mlx_cosh;
    tanh: "Tanh", mlx_tanh;
    arcsinh: "Arcsinh", mlx_arcsinh;
    arccosh: "Arccosh", mlx_arccosh;
    arctanh: "Arctanh", mlx_arctanh;
    erfinv: "Erfinv", mlx_erfinv;
    square: "Square", mlx_square;
    reciprocal: "Reciprocal", mlx_reciprocal;
    bitwise_invert: "BitwiseInvert", mlx_bitwise_invert;
    isnan: "Isnan", mlx_isnan;
    isinf: "Isinf", mlx_isinf;
    isfinite: "Isfinite", mlx_isfinite;
    isposinf: "Isposinf", mlx_isposinf;
    isneginf: "Isneginf", mlx_isneginf;
    real: "Real", mlx_real;
    conjugate: "Conjugate", mlx_conjugate;
    degrees: "Degrees", mlx_degrees;
    radians: "Radians", mlx_radians;
}

single! {
    exp: "Exp", mlx_exp, emily_exp;
    sin: "Sin", mlx_sin, mlx_sin;
    cos: "Cos", mlx_cos, mlx_cos;
    sigmoid: "Sigmoid", mlx_sigmoid, emily_sigmoid;
}

pub(super) fn erf(build: &Build, inputs: Inputs) -> Result<Array> {
    let (graph, x) = (Graph::new(build, "Erf"), input("Erf", inputs, 0)?);
    graph.unary(host_or(&graph, x, mlx_sys::emily_erf, mlx_sys::mlx_erf), x)
}

/// This project's kernel where it computes, which is for f32 on a CPU, and MLX's elsewhere.
fn host_or(graph: &Graph, x: &Array, host: Unary, mlx: Unary) -> Unary {
    if graph.build.is_cpu() && x.dtype_of() == Dtype::Float32 {
        host
    } else {
        mlx
    }
}

rounding! {
    floor: "Floor", mlx_floor;
    ceil: "Ceil", mlx_ceil;
    trunc: "Trunc", mlx_trunc;
}

binary! {
    add: "Add", mlx_add;
    subtract: "Subtract", mlx_subtract;
    multiply: "Multiply", mlx_multiply;
    divide: "Divide", mlx_divide;
    maximum: "Maximum", mlx_maximum;
    minimum: "Minimum", mlx_minimum;
    arctan2: "Arctan2", mlx_arctan2;
    equal: "Equal", mlx_equal;
    not_equal: "NotEqual", mlx_not_equal;
    less: "Less", mlx_less;
    less_equal: "LessEqual", mlx_less_equal;
    greater: "Greater", mlx_greater;
    greater_equal: "GreaterEqual", mlx_greater_equal;
}

logical! {
    logical_and: "LogicalAnd", mlx_logical_and;
    logical_or: "LogicalOr", mlx_logical_or;
    logical_xor: "LogicalXor", mlx_logical_xor;
}

bitwise! {
    bitwise_and: "BitwiseAnd", mlx_bitwise_and, mlx_logical_and;
    bitwise_or: "BitwiseOr", mlx_bitwise_or, mlx_logical_or;
    bitwise_xor: "BitwiseXor", mlx_bitwise_xor, mlx_logical_xor;
}

/// The two inputs of an op, whose shapes broadcast to one that can be computed.
pub(super) fn pair<'a>(
    build: &Build,
    op: &'static str,
    inputs: Inputs<'a>,
) -> Result<(&'a Array, &'a Array)> {
    let (a, b) = (input(op, inputs, 0)?, input(op, inputs, 1)?);
    check_broadcast(build, op, &[a, b])?;
    Ok((a, b))
}

/// Shapes broadcast, and the result's elements can be addressed and, on the CPU, counted.
fn check_broadcast(build: &Build, op: &'static str, arrays: &[&Array]) -> Result<()> {
    let shapes: SmallVec<[_; 3]> = arrays.iter().map(|array| array.shape_of()).collect();
    let rank = shapes.iter().map(|shape| shape.len()).max().unwrap_or(0);
    let mut elements: i128 = 1;
    for from_last in 1..=rank {
        let mut size = 1;
        for shape in &shapes {
            match shape.len().checked_sub(from_last).map(|axis| shape[axis]) {
                None | Some(1) => {}
                Some(own) if size == 1 || own == size => size = own,
                Some(_) => {
                    return Err(Error::argument(op, "shapes", "shapes that broadcast", shapes));
                }
            }
        }
        elements = elements.saturating_mul(i128::from(size));
    }
    check_countable(build, op, elements)
}

/// MLX's loops on the CPU count elements in `int`: with more they would stop early, and leave the rest
/// of the result as it was found. Elsewhere the bytes must be addressable.
pub(super) fn check_countable(build: &Build, op: &'static str, elements: i128) -> Result<()> {
    let (limit, expected) = if build.is_cpu() {
        (i128::from(i32::MAX), "at most 2147483647 elements, as many as the CPU's kernels count")
    } else {
        (1 << 43, "at most 8796093022208 elements")
    };
    if elements > limit {
        return Err(Error::argument(op, "shape", expected, elements));
    }
    Ok(())
}

/// Whether elements are not zero. MLX's own cast to booleans looks at a complex number's real part only.
pub(super) fn truth(graph: &Graph, x: &Array) -> Result<Array> {
    if x.dtype_of() == Dtype::Complex64 {
        let zero = graph.scalar(0.0, Dtype::Complex64)?;
        return graph.binary(mlx_sys::mlx_not_equal, x, &zero);
    }
    graph.astype(x, Dtype::Bool)
}

/// Of truth values; other dtypes are true where they are not zero.
pub(super) fn logical_not(build: &Build, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "LogicalNot");
    graph.unary(mlx_sys::mlx_logical_not, &truth(&graph, input(graph.op, inputs, 0)?)?)
}

/// The imaginary part, zero for real dtypes.
pub(super) fn imag(build: &Build, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Imag");
    let x = input(graph.op, inputs, 0)?;
    if x.dtype_of() != Dtype::Complex64 {
        return graph.zeros(x.shape_of(), x.dtype_of());
    }
    graph.unary(mlx_sys::mlx_imag, x)
}

/// The power; of integers it wraps, and a negative exponent gives 0, except for the bases 1 and -1.
pub(super) fn power(build: &Build, inputs: Inputs) -> Result<Array> {
    let (a, b) = pair(build, "Power", inputs)?;
    let graph = Graph::new(build, "Power");
    let dtype = integer::promote(a.dtype_of(), b.dtype_of());
    if dtype.is_signed_integer() {
        return integer::signed_power(&graph, &graph.astype(a, dtype)?, &graph.astype(b, dtype)?);
    }
    graph.binary(mlx_sys::mlx_power, a, b)
}

/// Rounds half to even at a decimal from -38 to 38 (308 for f64). Half types and, where decimals are
/// negative, integers are computed in f32. Numbers too great to have the decimal stay as they are.
pub(super) fn round(build: &Build, attrs: &Round, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Round");
    let x = input(graph.op, inputs, 0)?;
    let dtype = x.dtype_of();
    let most = if dtype == Dtype::Float64 { 308 } else { 38 };
    if !(-most..=most).contains(&attrs.decimals) {
        let expected = format!("a number from {} to {most}", -most);
        return Err(Error::argument(graph.op, "decimals", expected, attrs.decimals));
    }
    if !dtype.is_inexact() && attrs.decimals >= 0 {
        return Ok(x.clone());
    }
    let nearest = |x: &Array| {
        // SAFETY: the handle is live.
        graph.call(|res, s| unsafe { mlx_sys::mlx_round(res, x.as_ptr(), 0, s) })
    };
    if attrs.decimals == 0 {
        return nearest(x);
    }
    let wide = match dtype {
        Dtype::Float64 | Dtype::Complex64 => dtype,
        _ => Dtype::Float32,
    };
    let x = graph.astype(x, wide)?;
    let factor = graph.scalar(10f64.powi(attrs.decimals.unsigned_abs() as i32), wide)?;
    let (shift, back): (Binary, Binary) = if attrs.decimals > 0 {
        (mlx_sys::mlx_multiply, mlx_sys::mlx_divide)
    } else {
        (mlx_sys::mlx_divide, mlx_sys::mlx_multiply)
    };
    let shifted = graph.binary(shift, &x, &factor)?;
    let rounded = graph.binary(back, &nearest(&shifted)?, &factor)?;
    let finite = graph.unary(mlx_sys::mlx_isfinite, &shifted)?;
    graph.astype(&graph.select(&finite, &rounded, &x)?, dtype)
}

/// `log(exp(a) + exp(b))` without overflow.
pub(super) fn logaddexp(build: &Build, inputs: Inputs) -> Result<Array> {
    let (a, b) = pair(build, "Logaddexp", inputs)?;
    let graph = Graph::new(build, "Logaddexp");
    if integer::promote(a.dtype_of(), b.dtype_of()) == Dtype::Float64 {
        return double::logaddexp(&graph, a, b);
    }
    graph.binary(mlx_sys::mlx_logaddexp, a, b)
}

/// One boolean: whether shapes and elements are the same; dtypes may differ.
pub(super) fn array_equal(build: &Build, attrs: &ArrayEqual, inputs: Inputs) -> Result<Array> {
    let op = "ArrayEqual";
    let (a, b) = (input(op, inputs, 0)?, input(op, inputs, 1)?);
    check_countable(build, op, count(a.shape_of()) as i128)?;
    // SAFETY: both handles are live.
    Graph::new(build, op).call(|res, s| unsafe {
        mlx_sys::mlx_array_equal(res, a.as_ptr(), b.as_ptr(), attrs.equal_nan, s)
    })
}

/// Elements of the second input where the first is not zero, of the third elsewhere.
pub(super) fn select(build: &Build, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Where");
    let condition = input(graph.op, inputs, 0)?;
    let (x, y) = (input(graph.op, inputs, 1)?, input(graph.op, inputs, 2)?);
    check_broadcast(build, graph.op, &[condition, x, y])?;
    graph.select(&truth(&graph, condition)?, x, y)
}

/// Limits elements to a least and a greatest value, of which one may be absent. Where they cross, the
/// greatest wins.
pub(super) fn clip(build: &Build, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Clip");
    let x = input(graph.op, inputs, 0)?;
    let (least, greatest) = (optional(inputs, 1), optional(inputs, 2));
    let limits: Vec<&Array> = least.into_iter().chain(greatest).collect();
    if limits.is_empty() {
        return Err(Error::argument(graph.op, "limits", "a least or a greatest value", "neither"));
    }
    check_broadcast(build, graph.op, &[&[x][..], &limits].concat())?;
    let mut clipped = x.clone();
    if let Some(least) = least {
        clipped = graph.binary(mlx_sys::mlx_maximum, &clipped, least)?;
    }
    if let Some(greatest) = greatest {
        clipped = graph.binary(mlx_sys::mlx_minimum, &clipped, greatest)?;
    }
    Ok(clipped)
}
