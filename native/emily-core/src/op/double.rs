//! Functions of f64 that MLX's kernels compute in f32. They run on the CPU, the only device with f64: its
//! `exp`, for one, is good for eight digits and overflows at 88.
//!
//! These are composed of functions that MLX takes from the C library. Near the zeros of a cosine, the
//! error is a small one absolutely, not relative to the result.

use super::graph::Graph;
use crate::dtype::Dtype;
use crate::error::Result;
use mlx_rs::Array;
use mlx_sys::{
    mlx_abs, mlx_add, mlx_divide, mlx_expm1, mlx_isinf, mlx_less, mlx_log1p, mlx_maximum,
    mlx_minimum, mlx_multiply, mlx_negative, mlx_reciprocal, mlx_square, mlx_subtract, mlx_tan,
};

fn number(value: f64) -> Array {
    Array::from_f64(value)
}

pub(super) fn exp(graph: &Graph, x: &Array) -> Result<Array> {
    // 1 + expm1 loses nothing where expm1 is positive.
    let upward = graph.unary(mlx_expm1, &graph.unary(mlx_abs, x)?)?;
    let upward = graph.binary(mlx_add, &upward, &number(1.0))?;
    let downward = graph.unary(mlx_reciprocal, &upward)?;
    let negative = graph.binary(mlx_less, x, &number(0.0))?;
    graph.select(&negative, &downward, &upward)
}

pub(super) fn sin(graph: &Graph, x: &Array) -> Result<Array> {
    let (tangent, divisor) = half_angle(graph, x)?;
    let doubled = graph.binary(mlx_multiply, &tangent, &number(2.0))?;
    graph.binary(mlx_divide, &doubled, &divisor)
}

pub(super) fn cos(graph: &Graph, x: &Array) -> Result<Array> {
    let (tangent, divisor) = half_angle(graph, x)?;
    let sum = graph.binary(mlx_add, &number(1.0), &tangent)?;
    let difference = graph.binary(mlx_subtract, &number(1.0), &tangent)?;
    graph.binary(mlx_divide, &graph.binary(mlx_multiply, &sum, &difference)?, &divisor)
}

/// The tangent of half an angle, and 1 plus its square.
fn half_angle(graph: &Graph, x: &Array) -> Result<(Array, Array)> {
    let half = graph.binary(mlx_multiply, x, &number(0.5))?;
    let tangent = graph.unary(mlx_tan, &half)?;
    let square = graph.unary(mlx_square, &tangent)?;
    let divisor = graph.binary(mlx_add, &square, &number(1.0))?;
    Ok((tangent, divisor))
}

pub(super) fn sigmoid(graph: &Graph, x: &Array) -> Result<Array> {
    let exp = exp(graph, &graph.unary(mlx_negative, x)?)?;
    graph.unary(mlx_reciprocal, &graph.binary(mlx_add, &exp, &number(1.0))?)
}

/// Takes other dtypes too and promotes them.
pub(super) fn logaddexp(graph: &Graph, a: &Array, b: &Array) -> Result<Array> {
    let (a, b) = (graph.astype(a, Dtype::Float64)?, graph.astype(b, Dtype::Float64)?);
    let greater = graph.binary(mlx_maximum, &a, &b)?;
    let lesser = graph.binary(mlx_minimum, &a, &b)?;
    let ratio = exp(graph, &graph.binary(mlx_subtract, &lesser, &greater)?)?;
    let sum = graph.binary(mlx_add, &greater, &graph.unary(mlx_log1p, &ratio)?)?;
    // The difference of two infinities is none.
    graph.select(&graph.unary(mlx_isinf, &greater)?, &greater, &sum)
}
