//! Convolution.

use super::elementwise::check_countable;
use super::graph::{count, input, wide, Graph};
use super::integer::promote;
use super::{ConvGeneral, Inputs};
use crate::build::{Build, Describe};
use crate::check;
use crate::error::{Error, Result};
use mlx_rs::Array;

const OP: &str = "ConvGeneral";

/// Input `{N, spatial.., C}`, weight `{O, spatial.., I}` with one to three spatial axes and
/// `C = I * groups`, `O` divisible by the groups; the result is `{N, spatial.., O}`, empty where the
/// kernel fits nowhere. Negative padding cuts off. Refused: dtypes that are not real floats. The CPU
/// computes in f32 at most.
pub(super) fn general(build: &Build, attrs: &ConvGeneral, inputs: Inputs) -> Result<Array> {
    let (a, weight) = (input(OP, inputs, 0)?, input(OP, inputs, 1)?);
    for (what, array) in [("dtype of the input", a), ("dtype of the weight", weight)] {
        let dtype = array.dtype_of();
        if !dtype.is_float() {
            return Err(Error::argument(OP, what, "a real float", format_args!("{dtype}")));
        }
    }
    let dtype = promote(a.dtype_of(), weight.dtype_of());
    let conv = Conv::new(attrs, a.shape_of(), weight.shape_of())?;
    let result = check::shape(OP, &wide(&conv.result), dtype)?;
    check_countable(build, OP, count(&result) as i128)?;
    let graph = Graph::new(build, OP);
    // A convolution of nothing never reaches BLAS, which stops the process over empty matrices.
    if count(&result) == 0 || a.count() == 0 || weight.count() == 0 {
        return graph.zeros(&result, dtype);
    }
    let (a, weight) = (graph.astype(a, dtype)?, graph.astype(weight, dtype)?);
    conv.build(&graph, attrs.flip, a, &weight)
}

/// The checked attributes, one entry a spatial axis.
struct Conv {
    strides: Vec<i32>,
    low: Vec<i32>,
    high: Vec<i32>,
    kernel_dilation: Vec<i32>,
    input_dilation: Vec<i32>,
    groups: i32,
    /// The shape of the result.
    result: Vec<i32>,
}

impl Conv {
    fn new(attrs: &ConvGeneral, shape: &[i32], weight: &[i32]) -> Result<Self> {
        let spatial = shape.len().saturating_sub(2);
        if !(1..=3).contains(&spatial) {
            return Err(Error::argument(OP, "rank of the input", "3 to 5", shape.len()));
        }
        check::length(OP, "shape of the weight", weight, shape.len())?;
        check::length(OP, "strides", &attrs.strides, spatial)?;
        check::length(OP, "padding_low", &attrs.padding_low, spatial)?;
        check::length(OP, "padding_high", &attrs.padding_high, spatial)?;
        check::length(OP, "kernel_dilation", &attrs.kernel_dilation, spatial)?;
        check::length(OP, "input_dilation", &attrs.input_dilation, spatial)?;
        let groups = check::positive(OP, "groups", attrs.groups)?;
        let (channels, features) = (shape[spatial + 1], weight[0]);
        if channels % groups != 0 || features % groups != 0 {
            let got = format_args!("{groups} with {channels} and {features} channels").to_string();
            return Err(Error::argument(OP, "groups", "a divisor of both channel counts", got));
        }
        if channels / groups != weight[spatial + 1] {
            let expected = format!("{} input channels", channels / groups);
            return Err(Error::argument(OP, "shape of the weight", expected, weight));
        }
        let mut conv = Conv {
            strides: check::positives(OP, "strides", &attrs.strides)?,
            low: check::ints(OP, "padding_low", &attrs.padding_low)?,
            high: check::ints(OP, "padding_high", &attrs.padding_high)?,
            kernel_dilation: check::positives(OP, "kernel_dilation", &attrs.kernel_dilation)?,
            input_dilation: check::positives(OP, "input_dilation", &attrs.input_dilation)?,
            groups,
            result: vec![shape[0]],
        };
        for axis in 0..spatial {
            let extent = dilated(shape[axis + 1], attrs.input_dilation[axis])
                + attrs.padding_low[axis]
                + attrs.padding_high[axis];
            check::size(OP, "padding", extent)?;
            let kernel = dilated(weight[axis + 1], attrs.kernel_dilation[axis]);
            check::size(OP, "kernel_dilation", kernel)?;
            let steps = (extent - kernel).div_euclid(attrs.strides[axis]) + 1;
            conv.result.push(if kernel > extent { 0 } else { check::size(OP, "padding", steps)? });
        }
        conv.result.push(features);
        Ok(conv)
    }

    fn build(mut self, graph: &Graph, flip: bool, a: Array, weight: &Array) -> Result<Array> {
        let dtype = a.dtype_of();
        let Some(a) = self.cut(graph, a)? else { return graph.zeros(&self.result, dtype) };
        // MLX groups the channels of one or two spatial axes only.
        if self.groups == 1 || a.rank() < 5 {
            return self.node(graph, flip, &a, weight, self.groups);
        }
        let last = a.rank() - 1;
        let (channels, features) =
            (a.shape_of()[last] / self.groups, weight.shape_of()[0] / self.groups);
        let parts = (0..self.groups)
            .map(|group| {
                let a = graph.slice_axis(&a, last, group * channels, (group + 1) * channels, 1)?;
                let weight =
                    graph.slice_axis(weight, 0, group * features, (group + 1) * features, 1)?;
                self.node(graph, flip, &a, &weight, 1)
            })
            .collect::<Result<Vec<_>>>()?;
        let parts = crate::build::Arrays::from_iter(&parts);
        // SAFETY: the vector is live.
        graph.call(|res, s| unsafe {
            mlx_sys::mlx_concatenate_axis(res, parts.as_raw(), last as i32, s)
        })
    }

    /// Applies negative padding; nothing if that leaves none of the input. MLX cuts before it
    /// dilates, so an axis with both is dilated here. With CUDA every dilated axis is: MLX takes it there
    /// for the same as one that is not, where it has seen the other sizes before.
    fn cut(&mut self, graph: &Graph, mut a: Array) -> Result<Option<Array>> {
        for axis in 0..self.low.len() {
            let (low, high) = (self.low[axis].min(0), self.high[axis].min(0));
            let is_left_to_mlx = self.input_dilation[axis] == 1 || !graph.build.is_cuda();
            if low == 0 && high == 0 && is_left_to_mlx {
                continue;
            }
            let by = std::mem::replace(&mut self.input_dilation[axis], 1);
            let at = axis + 1;
            if by > 1 {
                let mut shape = a.shape_of().to_vec();
                shape[at] = (shape[at] - 1) * by + 1;
                check::shape(OP, &wide(&shape), a.dtype_of())?;
                let zeros = graph.zeros(&shape, a.dtype_of())?;
                let mut strides = vec![1; shape.len()];
                strides[at] = by;
                a = graph.slice_update(&zeros, &a, &vec![0; shape.len()], &shape, &strides)?;
            }
            let size = i64::from(a.shape_of()[at]);
            let (start, stop) = (-i64::from(low), size + i64::from(high));
            if start >= stop {
                return Ok(None);
            }
            a = graph.slice_axis(&a, at, start as i32, stop as i32, 1)?;
            self.low[axis] -= low;
            self.high[axis] -= high;
        }
        Ok(Some(a))
    }

    fn node(
        &self,
        graph: &Graph,
        flip: bool,
        a: &Array,
        weight: &Array,
        groups: i32,
    ) -> Result<Array> {
        // With CUDA, MLX keeps a plan by the alignment of what it is given, but makes it for a copy where
        // that is not contiguous: the next of that alignment may not be copied, and does not fit.
        let whole = |array: &Array| match graph.build.is_cuda() {
            true => graph.contiguous(array),
            false => Ok(array.clone()),
        };
        let (a, weight) = (whole(a)?, whole(weight)?);
        // SAFETY: both handles are live and each pointer has the length beside it.
        graph.call(|res, s| unsafe {
            mlx_sys::mlx_conv_general(
                res,
                a.as_ptr(),
                weight.as_ptr(),
                self.strides.as_ptr(),
                self.strides.len(),
                self.low.as_ptr(),
                self.low.len(),
                self.high.as_ptr(),
                self.high.len(),
                self.kernel_dilation.as_ptr(),
                self.kernel_dilation.len(),
                self.input_dilation.as_ptr(),
                self.input_dilation.len(),
                groups,
                flip,
                s,
            )
        })
    }
}

/// Elements from the first to the last when `by` elements lie from one to the next.
fn dilated(size: i32, by: i64) -> i64 {
    if size == 0 {
        0
    } else {
        (i64::from(size) - 1) * by + 1
    }
}
