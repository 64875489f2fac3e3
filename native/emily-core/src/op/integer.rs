//! Integer division, shifts and powers, whose results are defined for every operand.
//!
//! MLX divides integers with the machine's instruction, which ends the process on a division by zero
//! and on the least number divided by -1, and shifts with C's operators, which leave amounts outside the
//! width undefined. Here results are those of XLA: `x / 0` is -1 (all ones where unsigned), `x rem 0` is
//! `x`, the least number divided by -1 is itself, and shifting by the width or more, or by a negative
//! amount, shifts everything out. Booleans are taken as u8. Operands promote to one dtype first.

use super::elementwise::pair;
use super::graph::{integer, Binary, Graph};
use super::Inputs;
use crate::build::{Build, Describe};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use mlx_rs::Array;
use mlx_sys::{
    mlx_abs, mlx_bitwise_and, mlx_equal, mlx_floor_divide, mlx_left_shift, mlx_less,
    mlx_logical_and, mlx_logical_or, mlx_minimum, mlx_multiply, mlx_negative, mlx_not_equal,
    mlx_power, mlx_remainder, mlx_right_shift, mlx_subtract,
};

/// The dtype that MLX promotes two dtypes to. An unsigned integer with a signed one of at most its
/// width gives the next wider signed one, and u64 with any signed one f32.
pub(super) fn promote(a: Dtype, b: Dtype) -> Dtype {
    use Dtype::*;
    if a == b || b == Bool {
        return a;
    }
    if a == Bool {
        return b;
    }
    match (a.is_inexact(), b.is_inexact()) {
        (true, false) => a,
        (false, true) => b,
        (true, true) => match (a, b) {
            (Complex64, _) | (_, Complex64) => Complex64,
            (Float64, _) | (_, Float64) => Float64,
            // Neither half type holds the other.
            _ => Float32,
        },
        (false, false) if a.is_signed_integer() == b.is_signed_integer() => {
            if a.size() >= b.size() {
                a
            } else {
                b
            }
        }
        (false, false) => {
            let (signed, unsigned) = if a.is_signed_integer() { (a, b) } else { (b, a) };
            match unsigned {
                Uint64 => Float32,
                _ if signed.size() > unsigned.size() => signed,
                Uint8 => Int16,
                Uint16 => Int32,
                _ => Int64,
            }
        }
    }
}

/// The error of an op for integers and booleans that is given a dtype of another kind.
pub(super) fn refuse(op: &'static str, dtype: Dtype) -> Error {
    let expected = "integers or booleans that promote to such";
    Error::argument(op, "dtypes", expected, format_args!("{dtype}"))
}

/// Two operands of one integer dtype, or of any where they promote to an inexact one.
enum Operands<'a> {
    Integer(Array, Array, Dtype),
    Inexact(&'a Array, &'a Array, Dtype),
}

fn operands<'a>(graph: &Graph, inputs: Inputs<'a>) -> Result<Operands<'a>> {
    let (a, b) = pair(&graph.build, graph.op, inputs)?;
    let dtype = match promote(a.dtype_of(), b.dtype_of()) {
        Dtype::Bool => Dtype::Uint8,
        dtype if dtype.is_inexact() => return Ok(Operands::Inexact(a, b, dtype)),
        dtype => dtype,
    };
    Ok(Operands::Integer(graph.astype(a, dtype)?, graph.astype(b, dtype)?, dtype))
}

/// As [`operands`], for ops that refuse inexact dtypes.
fn integers(graph: &Graph, inputs: Inputs) -> Result<(Array, Array, Dtype)> {
    match operands(graph, inputs)? {
        Operands::Integer(a, b, dtype) => Ok((a, b, dtype)),
        Operands::Inexact(_, _, dtype) => Err(refuse(graph.op, dtype)),
    }
}

/// A divisor without the values that would trap, and where it had them.
struct Divisor {
    /// 1 in place of 0 and, where signed, of -1, which traps for the least dividend.
    safe: Array,
    is_zero: Array,
    is_minus_one: Option<Array>,
}

impl Divisor {
    fn new(graph: &Graph, b: &Array, dtype: Dtype) -> Result<Self> {
        let is_zero = graph.binary(mlx_equal, b, &integer(0, dtype))?;
        let one = integer(1, dtype);
        if !dtype.is_signed_integer() {
            let safe = graph.select(&is_zero, &one, b)?;
            return Ok(Divisor { safe, is_zero, is_minus_one: None });
        }
        let is_minus_one = graph.binary(mlx_equal, b, &integer(-1, dtype))?;
        let traps = graph.binary(mlx_logical_or, &is_zero, &is_minus_one)?;
        let safe = graph.select(&traps, &one, b)?;
        Ok(Divisor { safe, is_zero, is_minus_one: Some(is_minus_one) })
    }
}

/// C's quotient of two arrays of one integer dtype.
fn truncated(graph: &Graph, a: &Array, b: &Array, dtype: Dtype) -> Result<Array> {
    let divisor = Divisor::new(graph, b, dtype)?;
    // The name is MLX's; its integers are divided as in C.
    let mut quotient = graph.binary(mlx_floor_divide, a, &divisor.safe)?;
    if let Some(is_minus_one) = divisor.is_minus_one {
        quotient = graph.select(&is_minus_one, &graph.unary(mlx_negative, a)?, &quotient)?;
    }
    graph.select(&divisor.is_zero, &integer(-1, dtype), &quotient)
}

/// Rounds the quotient to zero. Inexact dtypes are refused.
pub(super) fn quotient(build: &Build, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Quotient");
    let (a, b, dtype) = integers(&graph, inputs)?;
    truncated(&graph, &a, &b, dtype)
}

/// Rounds the quotient to minus infinity. Floats are divided and floored; complex numbers are refused.
pub(super) fn floor_divide(build: &Build, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "FloorDivide");
    let (a, b, dtype) = match operands(&graph, inputs)? {
        Operands::Inexact(a, b, _) => return graph.binary(mlx_floor_divide, a, b),
        Operands::Integer(a, b, dtype) => (a, b, dtype),
    };
    let quotient = truncated(&graph, &a, &b, dtype)?;
    if !dtype.is_signed_integer() {
        return Ok(quotient);
    }
    // One less where something remains and the signs differ, but not after a division by zero.
    let zero = integer(0, dtype);
    let product = graph.binary(mlx_multiply, &quotient, &b)?;
    let remains = graph.binary(mlx_not_equal, &product, &a)?;
    let divides = graph.binary(mlx_not_equal, &b, &zero)?;
    let a_below = graph.binary(mlx_less, &a, &zero)?;
    let b_below = graph.binary(mlx_less, &b, &zero)?;
    let differ = graph.binary(mlx_not_equal, &a_below, &b_below)?;
    let less = graph.binary(mlx_logical_and, &remains, &differ)?;
    let less = graph.binary(mlx_logical_and, &less, &divides)?;
    graph.binary(mlx_subtract, &quotient, &graph.astype(&less, dtype)?)
}

/// The remainder with the sign of the divisor. Complex numbers are refused.
pub(super) fn remainder(build: &Build, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "Remainder");
    let (a, b, dtype) = match operands(&graph, inputs)? {
        Operands::Inexact(a, b, _) => return graph.binary(mlx_remainder, a, b),
        Operands::Integer(a, b, dtype) => (a, b, dtype),
    };
    // Dividing by 1 leaves 0, as dividing by -1 does.
    let divisor = Divisor::new(&graph, &b, dtype)?;
    let remainder = graph.binary(mlx_remainder, &a, &divisor.safe)?;
    graph.select(&divisor.is_zero, &a, &remainder)
}

/// Shifts to the left; inexact dtypes are refused.
pub(super) fn left_shift(build: &Build, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "LeftShift");
    let (a, b, dtype) = integers(&graph, inputs)?;
    inside_width(&graph, mlx_left_shift, &a, &b, dtype)
}

/// Shifts to the right, copies of the sign coming in where there is one; inexact dtypes are refused.
pub(super) fn right_shift(build: &Build, inputs: Inputs) -> Result<Array> {
    let graph = Graph::new(build, "RightShift");
    let (a, b, dtype) = integers(&graph, inputs)?;
    if !dtype.is_signed_integer() {
        return inside_width(&graph, mlx_right_shift, &a, &b, dtype);
    }
    // One less than the width leaves nothing but copies of the sign already.
    let amount = graph.astype(&b, unsigned(dtype))?;
    let most = integer(i64::from(dtype.bits()) - 1, unsigned(dtype));
    let amount = graph.binary(mlx_minimum, &amount, &most)?;
    graph.binary(mlx_right_shift, &a, &graph.astype(&amount, dtype)?)
}

/// Shifts by less than the width; zero for other amounts.
fn inside_width(graph: &Graph, shift: Binary, a: &Array, b: &Array, dtype: Dtype) -> Result<Array> {
    let amount = graph.astype(b, unsigned(dtype))?;
    let width = integer(i64::from(dtype.bits()), unsigned(dtype));
    let inside = graph.binary(mlx_less, &amount, &width)?;
    graph.select(&inside, &graph.binary(shift, a, b)?, &integer(0, dtype))
}

/// The unsigned dtype of the same width, in which a negative amount is beyond it.
fn unsigned(dtype: Dtype) -> Dtype {
    match dtype {
        Dtype::Int8 => Dtype::Uint8,
        Dtype::Int16 => Dtype::Uint16,
        Dtype::Int32 => Dtype::Uint32,
        Dtype::Int64 => Dtype::Uint64,
        dtype => dtype,
    }
}

/// The power of two arrays of one signed dtype: with a negative exponent, 0 except for 1 and -1.
pub(super) fn signed_power(graph: &Graph, a: &Array, b: &Array) -> Result<Array> {
    let dtype = a.dtype_of();
    let negative = graph.binary(mlx_less, b, &integer(0, dtype))?;
    // For 1 and -1 only the exponent's parity counts, whatever its sign.
    let parity = graph.binary(mlx_bitwise_and, b, &integer(1, dtype))?;
    let power = graph.binary(mlx_power, a, &graph.select(&negative, &parity, b)?)?;
    let magnitude = graph.unary(mlx_abs, a)?;
    let vanishes = graph.binary(mlx_not_equal, &magnitude, &integer(1, dtype))?;
    let vanishes = graph.binary(mlx_logical_and, &negative, &vanishes)?;
    graph.select(&vanishes, &integer(0, dtype), &power)
}
