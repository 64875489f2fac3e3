//! The attributes of ops. Axes may be negative, counted from the last; shapes and sizes may not.

use crate::dtype::Dtype;

macro_rules! attrs {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        #[cfg_attr(feature = "nif", derive(rustler::NifMap))]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    )*};
}

attrs! {
    /// A shape and what fills it.
    Fill {
        /// Sizes of the result.
        shape: Vec<i64>,
        /// Dtype of the result.
        dtype: Dtype,
    }
    /// A half-open range of numbers.
    Arange {
        /// First number.
        start: f64,
        /// End, not included.
        stop: f64,
        /// Distance of two numbers, not zero.
        step: f64,
        /// Dtype of the result, not `Bool`.
        dtype: Dtype,
    }
    /// A matrix with ones on one diagonal.
    Eye {
        /// Number of rows.
        rows: i64,
        /// Number of columns.
        cols: i64,
        /// The diagonal; above the main one when positive.
        k: i64,
        /// Dtype of the result.
        dtype: Dtype,
    }
    /// A dtype to convert or reinterpret to.
    Cast {
        /// Dtype of the result.
        dtype: Dtype,
    }
    /// Rounding.
    Round {
        /// Decimals that stay; negative for tens, hundreds.
        decimals: i64,
    }
    /// Comparison of whole tensors.
    ArrayEqual {
        /// Whether a NaN equals a NaN.
        equal_nan: bool,
    }
    /// A reduction; no axes reduces nothing.
    Reduce {
        /// Axes that are reduced.
        axes: Vec<i64>,
        /// Whether reduced axes stay with size 1.
        keep_axes: bool,
    }
    /// Variance and standard deviation.
    Spread {
        /// Axes that are reduced.
        axes: Vec<i64>,
        /// Whether reduced axes stay with size 1.
        keep_axes: bool,
        /// Subtracted from the count in the divisor.
        ddof: i64,
    }
    /// A reduction along one axis.
    ReduceAxis {
        /// The axis that is reduced.
        axis: i64,
        /// Whether it stays with size 1.
        keep_axis: bool,
    }
    /// Positions of the greatest or least elements.
    ArgExtreme {
        /// The axis that is searched.
        axis: i64,
        /// Whether it stays with size 1.
        keep_axis: bool,
        /// The greatest elements instead of the least.
        greatest: bool,
        /// The last of equal elements instead of the first.
        last: bool,
        /// Dtype of the positions.
        dtype: Dtype,
    }
    /// Softmax.
    Softmax {
        /// Axes over which the results sum to one.
        axes: Vec<i64>,
        /// Whether half types are computed in f32.
        precise: bool,
    }
    /// A running reduction.
    Scan {
        /// The axis along which it runs.
        axis: i64,
        /// From the end to the start.
        reverse: bool,
        /// Whether an element counts itself.
        inclusive: bool,
    }
    /// One axis.
    Axis {
        /// The axis.
        axis: i64,
    }
    /// Several axes.
    Axes {
        /// The axes.
        axes: Vec<i64>,
    }
    /// Partial sorting.
    Partition {
        /// Position that gets its sorted element.
        kth: i64,
        /// The axis that is sorted.
        axis: i64,
    }
    /// The greatest elements, in no order.
    Topk {
        /// How many.
        k: i64,
        /// Along which axis.
        axis: i64,
    }
    /// Insertion positions in a sorted vector.
    Searchsorted {
        /// Behind equal elements instead of before them.
        right: bool,
    }
    /// A shape.
    Shape {
        /// Sizes of the result.
        shape: Vec<i64>,
    }
    /// Joins neighbouring axes.
    Flatten {
        /// First axis.
        start_axis: i64,
        /// Last axis, included.
        end_axis: i64,
    }
    /// Repeats a whole tensor.
    Tile {
        /// Times along each axis.
        reps: Vec<i64>,
    }
    /// Swaps two axes.
    Swapaxes {
        /// One.
        axis1: i64,
        /// The other.
        axis2: i64,
    }
    /// Constant padding; the value is the second input.
    Pad {
        /// Axes that are padded.
        axes: Vec<i64>,
        /// Elements before, one number an axis, not negative.
        low: Vec<i64>,
        /// Elements behind, likewise.
        high: Vec<i64>,
    }
    /// Repeats each element.
    Repeat {
        /// Times.
        count: i64,
        /// Along which axis.
        axis: i64,
    }
    /// Rotation.
    Roll {
        /// By how many places, negative to the front.
        shift: i64,
        /// Along which axis.
        axis: i64,
    }
    /// A view of a row-contiguous tensor's elements; checked to stay inside them.
    AsStrided {
        /// Sizes of the view.
        shape: Vec<i64>,
        /// Elements from one to the next along each axis, not negative.
        strides: Vec<i64>,
        /// First element.
        offset: i64,
    }
    /// One diagonal of a matrix.
    Diagonal {
        /// The diagonal; above the main one when positive.
        k: i64,
    }
    /// The elements on a diagonal.
    DiagonalOf {
        /// The diagonal; above the main one when positive.
        offset: i64,
        /// Axis of the rows.
        axis1: i64,
        /// Axis of the columns.
        axis2: i64,
    }
    /// A part of a tensor.
    Slice {
        /// First element along each axis.
        starts: Vec<i64>,
        /// End along each axis, not included.
        stops: Vec<i64>,
        /// Step along each axis, positive.
        strides: Vec<i64>,
    }
    /// A part that is replaced by the second input.
    SliceUpdate {
        /// First element along each axis.
        starts: Vec<i64>,
        /// Step along each axis, positive.
        strides: Vec<i64>,
    }
    /// A part whose start is the second input, a vector with one integer an axis; clamped.
    SliceDynamic {
        /// Axes that the start speaks of.
        axes: Vec<i64>,
        /// Sizes of the result, one an axis of the tensor.
        sizes: Vec<i64>,
    }
    /// Slices picked by index tensors: inputs are the tensor and one index tensor an axis.
    Gather {
        /// Axes that are indexed.
        axes: Vec<i64>,
        /// Sizes of a slice, one an axis of the tensor, 1 on indexed axes.
        slice_sizes: Vec<i64>,
    }
    /// A sliding window.
    Window {
        /// Sizes, one an axis.
        window: Vec<i64>,
        /// Step of the window along each axis, positive.
        strides: Vec<i64>,
        /// Padding before.
        low: Vec<i64>,
        /// Padding behind.
        high: Vec<i64>,
        /// Distance of two elements of a window, positive.
        dilations: Vec<i64>,
    }
    /// Scatters the second input to each window's extreme; the third starts the result.
    WindowScatter {
        /// Sizes, one an axis.
        window: Vec<i64>,
        /// Step of the window along each axis, positive.
        strides: Vec<i64>,
        /// Padding before.
        low: Vec<i64>,
        /// Padding behind.
        high: Vec<i64>,
    }
    /// A product over several axes.
    Tensordot {
        /// Contracted axes of the first input.
        axes_a: Vec<i64>,
        /// Contracted axes of the second.
        axes_b: Vec<i64>,
    }
    /// Einstein summation.
    Einsum {
        /// Such as `"ij,jk->ik"`.
        equation: String,
    }
    /// `alpha * a b + beta * c`; inputs are c, a, b.
    Addmm {
        /// Factor of the product.
        alpha: f64,
        /// Factor of the summand.
        beta: f64,
    }
    /// A product of matrices picked by index.
    Sorted {
        /// Whether the indices are sorted.
        sorted: bool,
    }
    /// Convolution, channels last: input `{N, spatial.., C}`, weight `{O, spatial.., I}`.
    ConvGeneral {
        /// Step along each spatial axis, positive.
        strides: Vec<i64>,
        /// Padding before each spatial axis.
        padding_low: Vec<i64>,
        /// Padding behind.
        padding_high: Vec<i64>,
        /// Distance of two elements of the kernel, positive.
        kernel_dilation: Vec<i64>,
        /// Distance of two elements of the input, positive.
        input_dilation: Vec<i64>,
        /// Feature groups, positive.
        groups: i64,
        /// Flips the kernel: convolution instead of correlation.
        flip: bool,
    }
    /// Which triangle of a matrix.
    Triangle {
        /// The upper one.
        upper: bool,
    }
    /// Symmetric eigenvalues.
    Eigh {
        /// Reads the upper triangle instead of the lower.
        upper: bool,
    }
    /// Fourier transform.
    Fft {
        /// Lengths of the transforms, one an axis.
        sizes: Vec<i64>,
        /// Axes.
        axes: Vec<i64>,
    }
    /// New keys from a key.
    RandomSplit {
        /// How many.
        num: i64,
    }
    /// Random bits.
    RandomBits {
        /// Sizes of the result.
        shape: Vec<i64>,
        /// Bytes of one number: 1, 2 or 4.
        width: i64,
    }
    /// Random numbers of a shape and a dtype.
    RandomShape {
        /// Sizes of the result.
        shape: Vec<i64>,
        /// Dtype of the result.
        dtype: Dtype,
    }
    /// Normally distributed numbers.
    RandomNormal {
        /// Sizes of the result.
        shape: Vec<i64>,
        /// Dtype of the result.
        dtype: Dtype,
        /// Mean.
        loc: f64,
        /// Standard deviation.
        scale: f64,
    }
    /// Samples of categories by their logits, the first input.
    RandomCategorical {
        /// The axis of the categories.
        axis: i64,
        /// Samples for each distribution.
        num_samples: i64,
    }
    /// Quantises a weight along its last axis.
    Quantize {
        /// Elements that share a scale.
        group_size: i64,
        /// Bits of an element.
        bits: i64,
        /// `"affine"`, `"mxfp4"`, `"mxfp8"` or `"nvfp4"`.
        mode: String,
    }
    /// The dense weight of a quantised one.
    Dequantize {
        /// Elements that share a scale.
        group_size: i64,
        /// Bits of an element.
        bits: i64,
        /// As in `Quantize`.
        mode: String,
    }
    /// A product with a quantised weight; inputs are x, packed, scales, biases.
    QuantizedMatmul {
        /// Multiplies by the weight's transpose.
        transpose: bool,
        /// Elements that share a scale.
        group_size: i64,
        /// Bits of an element.
        bits: i64,
        /// As in `Quantize`.
        mode: String,
    }
    /// A product with quantised weights picked by index; inputs are x, packed, scales, biases,
    /// indices of x, indices of the weights.
    GatherQmm {
        /// Multiplies by the weight's transpose.
        transpose: bool,
        /// Elements that share a scale.
        group_size: i64,
        /// Bits of an element.
        bits: i64,
        /// As in `Quantize`.
        mode: String,
        /// Whether the indices are sorted.
        sorted: bool,
    }
    /// Normalisation; inputs are x, weight and, for the layer norm, bias.
    Epsilon {
        /// Added to the variance.
        eps: f64,
    }
    /// Rotary embedding at a position that is a tensor; inputs are x, offset, frequencies.
    Rope {
        /// Features that are rotated.
        dims: i64,
        /// Pairs neighbours instead of halves.
        traditional: bool,
        /// Base of the angles; absent where frequencies are given.
        base: Option<f64>,
        /// Factor of the position.
        scale: f64,
    }
    /// Rotary embedding at a known position; inputs are x, frequencies.
    RopeInt {
        /// Features that are rotated.
        dims: i64,
        /// Pairs neighbours instead of halves.
        traditional: bool,
        /// Base of the angles; absent where frequencies are given.
        base: Option<f64>,
        /// Factor of the position.
        scale: f64,
        /// Position of the first row.
        offset: i64,
    }
    /// Attention; inputs are queries, keys, values, mask, sinks.
    Attention {
        /// Factor of the scores.
        scale: f64,
        /// A query sees the keys up to its own position; excludes a mask.
        causal: bool,
    }
    /// Cuts an axis into equal parts.
    Split {
        /// How many.
        parts: i64,
        /// Which axis.
        axis: i64,
    }
}
