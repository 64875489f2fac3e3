//! The op table: every MLX operation that can be asked for, one row each.
//!
//! A row names the op, its attributes, how many inputs it takes and the function that builds it:
//!
//! ```text
//! Exp: 1 => elementwise::exp;                      no attributes, one input
//! Sum(Reduce): 1 => reduce::sum;                   attributes `Reduce`, one input
//! Concatenate(Axis): 1.. => shape::concatenate;    one input or more
//! FastRmsNorm(RmsNorm): 1..=2 => fast::rms_norm;   the second input may be left out or absent
//! ```
//!
//! The variants are the wire form too: with the feature `nif` an op decodes from an atom (`:exp`) or
//! a tagged tuple (`{:sum, %{axes: [0], keep_axes: true}}`), the variant's name in snake case.
//!
//! A row's function checks every argument before MLX sees it: ranks, axes, int32 limits, strides,
//! dtypes of indices. Rows under `several` have more than one output; MLX ties such outputs together
//! until they are evaluated, so they are built and evaluated on a worker (see `worker`), never on
//! the caller's thread.

mod attrs;
pub use attrs::*;

use self::graph::Graph;
use crate::build::{Build, Describe};
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::memory;
use mlx_rs::Array;
use smallvec::SmallVec;

mod conv;
mod creation;
mod double;
mod elementwise;
mod extreme;
mod fast;
mod fft;
mod graph;
mod index;
pub(crate) use index::Sharing;
mod integer;
mod linalg;
mod quant;
mod random;
mod reduce;
mod scan;
mod shape;
mod sort;
mod window;

/// The inputs of an op; an optional input may be absent.
pub type Inputs<'a> = &'a [Option<&'a Array>];

macro_rules! ops {
    (
        one { $($one:ident $(($one_attrs:ty))? : $one_arity:expr => $one_fn:path;)* }
        several { $($sev:ident $(($sev_attrs:ty))? : $sev_arity:expr => $sev_fn:path;)* }
    ) => {
        /// An MLX operation with its attributes. See the module for what a row says.
        #[derive(Clone, Debug, PartialEq)]
        #[cfg_attr(feature = "nif", derive(rustler::NifTaggedEnum))]
        #[allow(missing_docs)] // the variants are the names of MLX's operations
        pub enum Op {
            $($one $(($one_attrs))?,)*
            $($sev $(($sev_attrs))?,)*
        }

        impl Op {
            /// The name of every op, in the order of the table.
            pub const ALL: &'static [&'static str] = &[$(stringify!($one),)* $(stringify!($sev),)*];

            /// The op's name, as the enum spells it.
            pub fn name(&self) -> &'static str {
                match self {
                    $(ops!(@pat $one $(($one_attrs))?) => stringify!($one),)*
                    $(ops!(@pat $sev $(($sev_attrs))?) => stringify!($sev),)*
                }
            }

            /// Whether the op has more than one output.
            pub fn has_several_outputs(&self) -> bool {
                match self {
                    $(ops!(@pat $one $(($one_attrs))?) => false,)*
                    $(ops!(@pat $sev $(($sev_attrs))?) => true,)*
                }
            }

            /// Builds a single-output op's node on the stream of `build`; nothing is computed yet.
            ///
            /// # Errors
            /// [`Error::Arity`] for a wrong number of inputs or an op with several outputs, and what
            /// the op's own checks or MLX find wrong.
            pub fn build(&self, build: &Build, inputs: Inputs) -> Result<Array> {
                let copies = self.copies_for_host(build, inputs)?;
                let array = match &copies {
                    None => self.build_node(build, inputs)?,
                    Some(copies) => self.build_node(&build.on_cpu(), &borrowed(copies))?,
                };
                if !self.is_view() {
                    self.check_size(build, &array)?;
                }
                Ok(array)
            }

            fn build_node(&self, build: &Build, inputs: Inputs) -> Result<Array> {
                match self {
                    $(ops!(@bind attrs $one $(($one_attrs))?) => {
                        check_arity(stringify!($one), &$one_arity, inputs)?;
                        ops!(@call $one_fn, attrs, build, inputs, $(($one_attrs))?)
                    })*
                    _ => Err(Error::SeveralOutputs { op: self.name() }),
                }
            }

            /// Builds an op and returns all its outputs, one for a single-output op. To be called on
            /// a worker.
            ///
            /// # Errors
            /// As [`Op::build`].
            pub fn build_all(&self, build: &Build, inputs: Inputs) -> Result<Vec<Array>> {
                if !self.has_several_outputs() {
                    return self.build(build, inputs).map(|array| vec![array]);
                }
                let copies = self.copies_for_host(build, inputs)?;
                match &copies {
                    None => self.build_nodes(build, inputs),
                    Some(copies) => self.build_nodes(&build.on_cpu(), &borrowed(copies)),
                }
            }

            fn build_nodes(&self, build: &Build, inputs: Inputs) -> Result<Vec<Array>> {
                match self {
                    $(ops!(@bind attrs $sev $(($sev_attrs))?) => {
                        check_arity(stringify!($sev), &$sev_arity, inputs)?;
                        inputs.iter().flatten().try_for_each(|x| self.check_size(build, x))?;
                        ops!(@call $sev_fn, attrs, build, inputs, $(($sev_attrs))?)
                    })*
                    _ => unreachable!("asked by build_all"),
                }
            }
        }
    };
    (@pat $name:ident) => { Op::$name };
    (@pat $name:ident ($attrs:ty)) => { Op::$name(_) };
    (@bind $at:ident $name:ident) => { Op::$name };
    (@bind $at:ident $name:ident ($attrs:ty)) => { Op::$name($at) };
    (@call $fn:path, $at:ident, $build:ident, $inputs:ident,) => { $fn($build, $inputs) };
    (@call $fn:path, $at:ident, $build:ident, $inputs:ident, ($attrs:ty)) => { $fn($build, $at, $inputs) };
}

impl Op {
    fn check_size(&self, build: &Build, array: &Array) -> Result<()> {
        check_room(build, self.name(), array.shape_of(), array.dtype_of())
    }

    /// Copies of the inputs of an op that the host computes from a device with memory of its own: for that
    /// device, or from what another stream has computed there.
    fn copies_for_host(&self, build: &Build, inputs: Inputs) -> Result<Option<Copies>> {
        if !Device::Gpu.is_cuda() {
            return Ok(None);
        }
        let is_copied = |array: &Array| match build.is_cpu() {
            // SAFETY: the handle holds an array, of MLX's CUDA build.
            true => unsafe { mlx_sys::emily_cuda_has(array.as_ptr()) },
            false => self.is_of_host(),
        };
        if !inputs.iter().flatten().any(|array| is_copied(array)) {
            return Ok(None);
        }
        let on_gpu = build.on_gpu();
        let graph = Graph::new(&on_gpu, self.name());
        let copy = |input: &Option<&Array>| {
            let copy = |array: &Array| match is_copied(array) {
                true => graph.copy_for_host(array),
                false => Ok(array.clone()),
            };
            input.map(copy).transpose()
        };
        inputs.iter().map(copy).collect::<Result<_>>().map(Some)
    }

    /// Whether it is computed on the CPU for a device with memory of its own. MLX has no decompositions
    /// there, and its Fourier transforms share cuFFT's plans among streams without a lock: two at once
    /// end the process.
    fn is_of_host(&self) -> bool {
        matches!(
            self,
            Op::LinalgCholesky(_)
                | Op::LinalgInv
                | Op::LinalgTriInv(_)
                | Op::LinalgPinv
                | Op::LinalgSolve
                | Op::LinalgSolveTriangular(_)
                | Op::LinalgDet
                | Op::LinalgLu
                | Op::LinalgSvd
                | Op::LinalgQr
                | Op::LinalgEigh(_)
                | Op::LinalgEig
                | Op::Fftn(_)
                | Op::Ifftn(_)
                | Op::Rfftn(_)
                | Op::Irfftn(_)
        )
    }

    /// Whether the result is another look at the input's elements, whatever its shape.
    fn is_view(&self) -> bool {
        matches!(
            self,
            Op::BroadcastTo(_)
                | Op::Transpose(_)
                | Op::Swapaxes(_)
                | Op::Squeeze(_)
                | Op::ExpandDims(_)
                | Op::StopGradient
        )
    }
}

/// MLX on the CPU counts elements in `int`, and writes to what it allocated without asking whether the
/// system gave it anything. Ops that are composed check what is larger inside than their result.
fn check_room(build: &Build, op: &'static str, shape: &[i32], dtype: Dtype) -> Result<()> {
    let elements = shape.iter().fold(1, |n: i128, &size| n.saturating_mul(i128::from(size)));
    elementwise::check_countable(build, op, elements)?;
    let bytes = elements * dtype.size() as i128;
    if build.is_cpu() && bytes > SURELY_GIVEN {
        let limit = memory::limit()?;
        if bytes > limit as i128 {
            let expected = format!("at most {limit} bytes, the memory limit");
            return Err(Error::argument(op, "shape", expected, shape));
        }
    }
    Ok(())
}

/// Inputs of an op that are its own.
type Copies = SmallVec<[Option<Array>; 4]>;

fn borrowed(copies: &Copies) -> SmallVec<[Option<&Array>; 4]> {
    copies.iter().map(Option::as_ref).collect()
}

/// Bytes that any system gives to a process that asks.
const SURELY_GIVEN: i128 = 1 << 28;

/// How many inputs a row takes: `2`, `1..`, `1..=3`.
trait ArityRule {
    /// The least number of inputs; these must all be present.
    fn least(&self) -> usize;
    fn allows(&self, count: usize) -> bool;
    fn expected(&self) -> String;
}

impl ArityRule for usize {
    fn least(&self) -> usize {
        *self
    }
    fn allows(&self, count: usize) -> bool {
        count == *self
    }
    fn expected(&self) -> String {
        format!("{self} inputs")
    }
}

impl ArityRule for std::ops::RangeFrom<usize> {
    fn least(&self) -> usize {
        // A variadic op has no optional inputs, so that all of them are needed.
        usize::MAX
    }
    fn allows(&self, count: usize) -> bool {
        count >= self.start
    }
    fn expected(&self) -> String {
        format!("{} inputs or more", self.start)
    }
}

impl ArityRule for std::ops::RangeInclusive<usize> {
    fn least(&self) -> usize {
        *self.start()
    }
    fn allows(&self, count: usize) -> bool {
        self.contains(&count)
    }
    fn expected(&self) -> String {
        format!("{} to {} inputs", self.start(), self.end())
    }
}

fn check_arity(op: &'static str, rule: &impl ArityRule, inputs: Inputs) -> Result<()> {
    if !rule.allows(inputs.len()) {
        return Err(Error::Arity { op, expected: rule.expected(), got: inputs.len() });
    }
    match inputs.iter().take(rule.least()).position(Option::is_none) {
        Some(index) => Err(Error::MissingInput { op, index }),
        None => Ok(()),
    }
}

ops! {
one {
    // Creation. The fill value of Full is its input.
    Zeros(Fill): 0 => creation::zeros;
    Ones(Fill): 0 => creation::ones;
    Full(Fill): 1 => creation::full;
    Arange(Arange): 0 => creation::arange;
    Eye(Eye): 0 => creation::eye;

    // Cast.
    Astype(Cast): 1 => creation::astype;
    Bitcast(Cast): 1 => creation::bitcast;
    Contiguous: 1 => creation::contiguous;
    StopGradient: 1 => creation::stop_gradient;

    // Elementwise, one input.
    Negative: 1 => elementwise::negative;
    Abs: 1 => elementwise::abs;
    Sign: 1 => elementwise::sign;
    Floor: 1 => elementwise::floor;
    Ceil: 1 => elementwise::ceil;
    Trunc: 1 => elementwise::trunc;
    Sqrt: 1 => elementwise::sqrt;
    Rsqrt: 1 => elementwise::rsqrt;
    Exp: 1 => elementwise::exp;
    Expm1: 1 => elementwise::expm1;
    Log: 1 => elementwise::log;
    Log1p: 1 => elementwise::log1p;
    Log2: 1 => elementwise::log2;
    Log10: 1 => elementwise::log10;
    Sin: 1 => elementwise::sin;
    Cos: 1 => elementwise::cos;
    Tan: 1 => elementwise::tan;
    Arcsin: 1 => elementwise::arcsin;
    Arccos: 1 => elementwise::arccos;
    Arctan: 1 => elementwise::arctan;
    Sinh: 1 => elementwise::sinh;
    Cosh: 1 => elementwise::cosh;
    Tanh: 1 => elementwise::tanh;
    Arcsinh: 1 => elementwise::arcsinh;
    Arccosh: 1 => elementwise::arccosh;
    Arctanh: 1 => elementwise::arctanh;
    Sigmoid: 1 => elementwise::sigmoid;
    Erf: 1 => elementwise::erf;
    Erfinv: 1 => elementwise::erfinv;
    Square: 1 => elementwise::square;
    Reciprocal: 1 => elementwise::reciprocal;
    LogicalNot: 1 => elementwise::logical_not;
    BitwiseInvert: 1 => elementwise::bitwise_invert;
    Isnan: 1 => elementwise::isnan;
    Isinf: 1 => elementwise::isinf;
    Isfinite: 1 => elementwise::isfinite;
    Isposinf: 1 => elementwise::isposinf;
    Isneginf: 1 => elementwise::isneginf;
    Real: 1 => elementwise::real;
    Imag: 1 => elementwise::imag;
    Conjugate: 1 => elementwise::conjugate;
    Degrees: 1 => elementwise::degrees;
    Radians: 1 => elementwise::radians;
    Round(Round): 1 => elementwise::round;

    // Elementwise, two inputs, broadcast as numpy does.
    Add: 2 => elementwise::add;
    Subtract: 2 => elementwise::subtract;
    Multiply: 2 => elementwise::multiply;
    Divide: 2 => elementwise::divide;
    FloorDivide: 2 => integer::floor_divide;
    Remainder: 2 => integer::remainder;
    Quotient: 2 => integer::quotient;
    Power: 2 => elementwise::power;
    Maximum: 2 => elementwise::maximum;
    Minimum: 2 => elementwise::minimum;
    Logaddexp: 2 => elementwise::logaddexp;
    Arctan2: 2 => elementwise::arctan2;
    Equal: 2 => elementwise::equal;
    NotEqual: 2 => elementwise::not_equal;
    Less: 2 => elementwise::less;
    LessEqual: 2 => elementwise::less_equal;
    Greater: 2 => elementwise::greater;
    GreaterEqual: 2 => elementwise::greater_equal;
    LogicalAnd: 2 => elementwise::logical_and;
    LogicalOr: 2 => elementwise::logical_or;
    LogicalXor: 2 => elementwise::logical_xor;
    BitwiseAnd: 2 => elementwise::bitwise_and;
    BitwiseOr: 2 => elementwise::bitwise_or;
    BitwiseXor: 2 => elementwise::bitwise_xor;
    LeftShift: 2 => integer::left_shift;
    RightShift: 2 => integer::right_shift;
    ArrayEqual(ArrayEqual): 2 => elementwise::array_equal;

    // Elementwise, three inputs: condition, x, y; and value, least, greatest.
    Where: 3 => elementwise::select;
    Clip: 1..=3 => elementwise::clip;

    // Reductions.
    Sum(Reduce): 1 => reduce::sum;
    Mean(Reduce): 1 => reduce::mean;
    Prod(Reduce): 1 => reduce::prod;
    Max(Reduce): 1 => reduce::max;
    Min(Reduce): 1 => reduce::min;
    All(Reduce): 1 => reduce::all;
    Any(Reduce): 1 => reduce::any;
    Logsumexp(Reduce): 1 => reduce::logsumexp;
    Median(Reduce): 1 => reduce::median;
    Var(Spread): 1 => reduce::var;
    Std(Spread): 1 => reduce::std;
    Argmax(ReduceAxis): 1 => reduce::argmax;
    Argmin(ReduceAxis): 1 => reduce::argmin;
    ArgExtreme(ArgExtreme): 1 => extreme::arg_extreme;
    Softmax(Softmax): 1 => reduce::softmax;

    // Running reductions.
    Cumsum(Scan): 1 => scan::cumsum;
    Cumprod(Scan): 1 => scan::cumprod;
    Cummax(Scan): 1 => scan::cummax;
    Cummin(Scan): 1 => scan::cummin;
    Logcumsumexp(Scan): 1 => scan::logcumsumexp;

    // Order.
    Sort(Axis): 1 => sort::sort;
    Argsort(Axis): 1 => sort::argsort;
    Partition(Partition): 1 => sort::partition;
    Argpartition(Partition): 1 => sort::argpartition;
    Topk(Topk): 1 => sort::topk;
    Searchsorted(Searchsorted): 2 => sort::searchsorted;

    // Shape.
    Reshape(Shape): 1 => shape::reshape;
    Transpose(Axes): 1 => shape::transpose;
    Squeeze(Axes): 1 => shape::squeeze;
    ExpandDims(Axes): 1 => shape::expand_dims;
    BroadcastTo(Shape): 1 => shape::broadcast_to;
    Concatenate(Axis): 1.. => shape::concatenate;
    Stack(Axis): 1.. => shape::stack;
    Flatten(Flatten): 1 => shape::flatten;
    Tile(Tile): 1 => shape::tile;
    Swapaxes(Swapaxes): 1 => shape::swapaxes;
    Pad(Pad): 2 => shape::pad;
    Repeat(Repeat): 1 => shape::repeat;
    Flip(Axes): 1 => shape::flip;
    Roll(Roll): 1 => shape::roll;
    AsStrided(AsStrided): 1 => shape::as_strided;
    Tril(Diagonal): 1 => shape::tril;
    Triu(Diagonal): 1 => shape::triu;
    Diagonal(DiagonalOf): 1 => shape::diagonal;

    // Slices and indices. Indices out of range are clamped; updates out of range are dropped.
    Slice(Slice): 1 => index::slice;
    SliceUpdate(SliceUpdate): 2 => index::slice_update;
    SliceDynamic(SliceDynamic): 2 => index::slice_dynamic;
    SliceUpdateDynamic(Axes): 3 => index::slice_update_dynamic;
    Take(Axis): 2 => index::take;
    TakeAlongAxis(Axis): 2 => index::take_along_axis;
    PutAlongAxis(Axis): 3 => index::put_along_axis;
    ScatterAddAxis(Axis): 3 => index::scatter_add_axis;
    Gather(Gather): 1.. => index::gather;
    Scatter(Axes): 2.. => index::scatter;
    ScatterAdd(Axes): 2.. => index::scatter_add;
    ScatterMax(Axes): 2.. => index::scatter_max;
    ScatterMin(Axes): 2.. => index::scatter_min;
    ScatterProd(Axes): 2.. => index::scatter_prod;

    // Windows. The second input is the value that pads and starts the reduction.
    WindowSum(Window): 2 => window::sum;
    WindowMax(Window): 2 => window::max;
    WindowMin(Window): 2 => window::min;
    WindowProduct(Window): 2 => window::product;
    WindowScatterMax(WindowScatter): 3 => window::scatter_max;
    WindowScatterMin(WindowScatter): 3 => window::scatter_min;

    // Products.
    Matmul: 2 => linalg::matmul;
    Outer: 2 => linalg::outer;
    Inner: 2 => linalg::inner;
    Tensordot(Tensordot): 2 => linalg::tensordot;
    Einsum(Einsum): 1.. => linalg::einsum;
    Addmm(Addmm): 3 => linalg::addmm;
    GatherMm(Sorted): 2..=4 => linalg::gather_mm;
    ConvGeneral(ConvGeneral): 2 => conv::general;

    // Linear algebra, on a CPU stream whatever the worker's device.
    LinalgCholesky(Triangle): 1 => linalg::cholesky;
    LinalgInv: 1 => linalg::inv;
    LinalgTriInv(Triangle): 1 => linalg::tri_inv;
    LinalgPinv: 1 => linalg::pinv;
    LinalgSolve: 2 => linalg::solve;
    LinalgSolveTriangular(Triangle): 2 => linalg::solve_triangular;
    LinalgDet: 1 => linalg::det;

    // Fourier transforms, unnormalised forward and 1/n backward.
    Fftn(Fft): 1 => fft::fftn;
    Ifftn(Fft): 1 => fft::ifftn;
    Rfftn(Fft): 1 => fft::rfftn;
    Irfftn(Fft): 1 => fft::irfftn;

    // Random numbers; the last input is the key and must be given.
    RandomSplit(RandomSplit): 1 => random::split;
    RandomBits(RandomBits): 1 => random::bits;
    RandomUniform(RandomShape): 3 => random::uniform;
    RandomRandint(RandomShape): 3 => random::randint;
    RandomNormal(RandomNormal): 1 => random::normal;
    RandomBernoulli(Shape): 2 => random::bernoulli;
    RandomGumbel(RandomShape): 1 => random::gumbel;
    RandomCategorical(RandomCategorical): 2 => random::categorical;

    // Quantisation: packed weight, scales, biases (absent in the microscaled modes).
    Dequantize(Dequantize): 2..=3 => quant::dequantize;
    QuantizedMatmul(QuantizedMatmul): 3..=4 => quant::quantized_matmul;
    GatherQmm(GatherQmm): 3..=6 => quant::gather_qmm;

    // Fused kernels.
    FastRmsNorm(Epsilon): 1..=2 => fast::rms_norm;
    FastLayerNorm(Epsilon): 1..=3 => fast::layer_norm;
    FastRope(Rope): 2..=3 => fast::rope;
    FastRopeInt(RopeInt): 1..=2 => fast::rope_int;
    FastScaledDotProductAttention(Attention): 3..=5 => fast::scaled_dot_product_attention;
}
several {
    LinalgLu: 1 => linalg::lu;
    LinalgSvd: 1 => linalg::svd;
    LinalgQr: 1 => linalg::qr;
    LinalgEigh(Eigh): 1 => linalg::eigh;
    LinalgEig: 1 => linalg::eig;
    Split(Split): 1 => shape::split;
    Quantize(Quantize): 1 => quant::quantize;
}
}
