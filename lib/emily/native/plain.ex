defmodule Emily.Native.Plain do
  @moduledoc false
  # The operations that take one or two tensors and nothing else, and what each computes of `t`, or of `a`
  # and `b`. `Emily.Native` makes a documented function of each.

  @doc "Those of one tensor."
  @spec unary() :: keyword(String.t())
  def unary do
    [
      negative: "`-t`",
      abs: "The absolute value",
      sign: "-1, 0 or 1",
      floor: "Rounds down",
      ceil: "Rounds up",
      trunc: "Rounds towards zero",
      sqrt: "The square root",
      rsqrt: "`1 / sqrt(t)`",
      exp: "The exponential",
      expm1: "`exp(t) - 1`, exact near 0",
      log: "The natural logarithm",
      log1p: "`log(1 + t)`, exact near 0",
      log2: "The logarithm to base 2",
      log10: "The logarithm to base 10",
      sin: "The sine",
      cos: "The cosine",
      tan: "The tangent",
      arcsin: "The inverse sine",
      arccos: "The inverse cosine",
      arctan: "The inverse tangent",
      sinh: "The hyperbolic sine",
      cosh: "The hyperbolic cosine",
      tanh: "The hyperbolic tangent",
      arcsinh: "The inverse hyperbolic sine",
      arccosh: "The inverse hyperbolic cosine",
      arctanh: "The inverse hyperbolic tangent",
      sigmoid: "`1 / (1 + exp(-t))`",
      erf: "The error function",
      erfinv: "The inverse error function",
      square: "`t * t`",
      reciprocal: "`1 / t`",
      logical_not: "`{:pred, 1}`, true where `t` is zero",
      bitwise_invert: "Inverts every bit",
      isnan: "`{:pred, 1}`, true at NaN",
      isinf: "`{:pred, 1}`, true at an infinity",
      isfinite: "`{:pred, 1}`, false at NaN and the infinities",
      real: "The real part",
      imag: "The imaginary part",
      conjugate: "The complex conjugate",
      stop_gradient: "The identity",
      contiguous: "The same elements, row-major in memory"
    ]
  end

  @doc "Those of two tensors."
  @spec binary() :: keyword(String.t())
  def binary do
    [
      add: "`a + b`",
      subtract: "`a - b`",
      multiply: "`a * b`",
      divide: "`a / b`, a float",
      floor_divide: "`a / b` rounded down",
      quotient: "`a / b` rounded towards zero, for integers",
      remainder: "The remainder with the sign of `b`",
      power: "`a` to the power `b`",
      maximum: "The greater element; NaN where either is",
      minimum: "The lesser element; NaN where either is",
      logaddexp: "`log(exp(a) + exp(b))`",
      arctan2: "The angle of the point `{b, a}`",
      equal: "`{:pred, 1}`, `a == b`",
      not_equal: "`{:pred, 1}`, `a != b`",
      less: "`{:pred, 1}`, `a < b`",
      less_equal: "`{:pred, 1}`, `a <= b`",
      greater: "`{:pred, 1}`, `a > b`",
      greater_equal: "`{:pred, 1}`, `a >= b`",
      logical_and: "`{:pred, 1}`, whether both are not zero",
      logical_or: "`{:pred, 1}`, whether one is not zero",
      logical_xor: "`{:pred, 1}`, whether just one is not zero",
      bitwise_and: "Bitwise and",
      bitwise_or: "Bitwise or",
      bitwise_xor: "Bitwise exclusive or",
      left_shift: "`a` shifted left by `b` bits; 0 beyond the width",
      right_shift: "`a` shifted right by `b` bits, keeping the sign",
      matmul: "The product of matrices, batched over leading axes; floats only",
      outer: "The outer product of the flattened operands",
      inner: "The inner product over the last axes; floats only"
    ]
  end
end
