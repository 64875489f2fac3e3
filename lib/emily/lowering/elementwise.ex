defmodule Emily.Lowering.Elementwise do
  @moduledoc false

  # One element of the result from the elements at its place. MLX promotes types by its own rules,
  # so that operands are cast to the type that Nx decided on before MLX sees them.

  import Emily.Emitter, only: [emit: 3, scalar: 3]

  import Emily.Lowering.Type,
    only: [astype: 3, cast: 4, from_pred: 3, is_integer_type: 1, operand: 3]

  alias Emily.Emitter
  alias Emily.Lowering.{Integers, Shape, Special}

  # No integer type holds both.
  defguardp is_mixed(a, b)
            when (a == {:u, 64} and elem(b, 0) == :s) or (elem(a, 0) == :s and b == {:u, 64})

  ## Arithmetic

  for name <- [:add, :subtract, :multiply, :divide] do
    def unquote(name)(e, out, a, b), do: binary(e, unquote(name), out, a, b)
  end

  def atan2(e, out, a, b), do: binary(e, :arctan2, out, a, b)

  for {name, op, order} <- [{:max, :maximum, :greater}, {:min, :minimum, :less}] do
    def unquote(name)(e, out, a, b) when is_mixed(a.type, b.type) do
      first = compare(e, unquote(order), a, b)
      emit(e, :where, [first, operand(e, a, out.type), operand(e, b, out.type)])
    end

    def unquote(name)(e, out, a, b), do: binary(e, unquote(op), out, a, b)
  end

  defp binary(e, op, %{type: type}, a, b),
    do: emit(e, op, [operand(e, a, type), operand(e, b, type)])

  def pow(e, out, a, b), do: binary(e, :power, out, a, b)

  def quotient(e, _out, a, b) when is_mixed(a.type, b.type),
    do: Integers.mixed_quotient(e, Emitter.input(e, a), a.type, Emitter.input(e, b), b.type)

  def quotient(e, out, a, b), do: binary(e, :quotient, out, a, b)

  def remainder(e, _out, a, b) when is_mixed(a.type, b.type),
    do: Integers.mixed_remainder(e, Emitter.input(e, a), a.type, Emitter.input(e, b), b.type)

  def remainder(e, %{type: type}, a, b) when is_integer_type(type),
    do: Integers.remainder(e, operand(e, a, type), operand(e, b, type))

  # MLX's remainder has the sign of the divisor; between magnitudes that does not matter.
  def remainder(e, %{type: type}, a, b) do
    a = operand(e, a, type)
    b = operand(e, b, type)
    magnitude = emit(e, :remainder, [emit(e, :abs, [a]), emit(e, :abs, [b])])
    negative = emit(e, :less, [a, scalar(e, 0, type)])
    emit(e, :where, [negative, emit(e, :negative, [magnitude]), magnitude])
  end

  ## Bits

  # What comes in from the left is zero for an unsigned number, whatever the result's type.
  def right_shift(e, %{type: {:s, 64} = type}, %{type: {:u, 64}} = a, b) do
    amount = operand(e, b, {:u, 64})
    astype(e, emit(e, :right_shift, [Emitter.input(e, a), amount]), type)
  end

  for name <- [:bitwise_and, :bitwise_or, :bitwise_xor, :left_shift, :right_shift] do
    def unquote(name)(e, out, a, b), do: binary(e, unquote(name), out, a, b)
  end

  def bitwise_not(e, out, tensor), do: unary(e, :bitwise_invert, out, tensor)

  def population_count(e, out, tensor),
    do: Integers.population_count(e, Emitter.input(e, tensor), tensor.type, out.type)

  def count_leading_zeros(e, out, tensor),
    do: Integers.count_leading_zeros(e, Emitter.input(e, tensor), tensor.type, out.type)

  ## Comparison

  for name <- [:equal, :not_equal, :less, :less_equal, :greater, :greater_equal] do
    def unquote(name)(e, out, a, b),
      do: from_pred(e, compare(e, unquote(name), a, b), out.type)
  end

  @doc "A comparison as MLX's boolean."
  def compare(e, op, %{type: type} = a, %{type: type} = b),
    do: emit(e, op, [Emitter.input(e, a), Emitter.input(e, b)])

  def compare(e, op, %{type: {:u, 64}} = a, %{type: {:s, _}} = b),
    do: Integers.compare_signs(e, op, Emitter.input(e, a), operand(e, b, {:s, 64}))

  def compare(e, op, %{type: {:s, _}} = a, %{type: {:u, 64}} = b),
    do: Integers.compare_signs(e, mirrored(op), Emitter.input(e, b), operand(e, a, {:s, 64}))

  def compare(e, op, a, b) do
    type = Nx.Type.merge(a.type, b.type)
    emit(e, op, [operand(e, a, type), operand(e, b, type)])
  end

  defp mirrored(:less), do: :greater
  defp mirrored(:less_equal), do: :greater_equal
  defp mirrored(:greater), do: :less
  defp mirrored(:greater_equal), do: :less_equal
  defp mirrored(op), do: op

  ## Logic

  # MLX's logic takes every type for the truth of its being other than zero.
  for name <- [:logical_and, :logical_or, :logical_xor] do
    def unquote(name)(e, out, a, b) do
      from_pred(e, emit(e, unquote(name), [Emitter.input(e, a), Emitter.input(e, b)]), out.type)
    end
  end

  def logical_not(e, out, tensor),
    do: from_pred(e, emit(e, :logical_not, [Emitter.input(e, tensor)]), out.type)

  ## Choice

  def select(e, out, pred, on_true, on_false) do
    chosen =
      emit(e, :where, [
        Emitter.input(e, pred),
        operand(e, on_true, out.type),
        operand(e, on_false, out.type)
      ])

    shapes = [pred.shape, on_true.shape, on_false.shape]

    if out.shape in shapes,
      do: chosen,
      else: Shape.broadcast_to(e, chosen, nil, out.shape)
  end

  def clip(e, %{type: {:s, 64} = type}, %{type: {:u, 64}} = tensor, min, max) do
    [x, least, greatest] = Enum.map([tensor, min, max], &operand(e, &1, type))
    raised = emit(e, :where, [compare(e, :less, tensor, min), least, x])
    emit(e, :where, [compare(e, :greater, tensor, max), greatest, raised])
  end

  def clip(e, %{type: type}, tensor, min, max) do
    emit(e, :clip, [operand(e, tensor, type), operand(e, min, type), operand(e, max, type)])
  end

  ## Functions of one number

  # MLX computes these in single precision even for doubles, or not for complex numbers.
  for name <- [:exp, :sin, :cos, :erf, :erf_inv, :sigmoid] do
    def unquote(name)(e, %{type: {:f, 64} = type}, tensor),
      do: Special.unquote(name)(e, operand(e, tensor, type))
  end

  def expm1(e, %{type: {:c, _} = type}, tensor) do
    power = emit(e, :exp, [operand(e, tensor, type)])
    emit(e, :subtract, [power, scalar(e, 1, type)])
  end

  def sigmoid(e, %{type: {:c, _} = type}, tensor) do
    power = emit(e, :exp, [emit(e, :negative, [operand(e, tensor, type)])])
    emit(e, :reciprocal, [emit(e, :add, [power, scalar(e, 1, type)])])
  end

  for {name, op} <- [
        exp: :exp,
        expm1: :expm1,
        log: :log,
        log1p: :log1p,
        sigmoid: :sigmoid,
        cos: :cos,
        sin: :sin,
        tan: :tan,
        cosh: :cosh,
        sinh: :sinh,
        tanh: :tanh,
        acos: :arccos,
        asin: :arcsin,
        atan: :arctan,
        acosh: :arccosh,
        asinh: :arcsinh,
        atanh: :arctanh,
        sqrt: :sqrt,
        rsqrt: :rsqrt,
        erf: :erf,
        erf_inv: :erfinv,
        negate: :negative,
        ceil: :ceil,
        floor: :floor,
        sign: :sign
      ] do
    def unquote(name)(e, out, tensor), do: unary(e, unquote(op), out, tensor)
  end

  defp unary(e, op, %{type: type}, tensor), do: emit(e, op, [operand(e, tensor, type)])

  def erfc(e, %{type: type}, tensor), do: Special.erfc(e, operand(e, tensor, type), type)
  def cbrt(e, %{type: type}, tensor), do: Special.cbrt(e, operand(e, tensor, type), type)

  # The result of a complex tensor is real, and MLX takes the magnitude by itself.
  def abs(e, %{type: type}, %{type: {:c, _}} = tensor),
    do: cast(e, emit(e, :abs, [Emitter.input(e, tensor)]), {:f, 32}, type)

  def abs(e, out, tensor), do: unary(e, :abs, out, tensor)

  # Halves go away from zero, where MLX's rounding goes to the even neighbour. The part behind the
  # point is exact, and that of an infinity is NaN, which no comparison finds greater.
  def round(e, %{type: type}, tensor) do
    x = operand(e, tensor, type)
    whole = emit(e, :trunc, [x])
    rest = emit(e, :abs, [emit(e, :subtract, [x, whole])])
    away = emit(e, :greater_equal, [rest, scalar(e, 0.5, type)])
    emit(e, :where, [away, emit(e, :add, [whole, emit(e, :sign, [x])]), whole])
  end

  ## Complex parts

  def conjugate(e, %{type: type}, tensor), do: emit(e, :conjugate, [operand(e, tensor, type)])

  for name <- [:real, :imag] do
    def unquote(name)(e, %{type: type}, %{type: {:c, _}} = tensor),
      do: cast(e, emit(e, unquote(name), [Emitter.input(e, tensor)]), {:f, 32}, type)
  end

  def real(e, out, tensor), do: operand(e, tensor, out.type)
  def imag(e, out, _tensor), do: Shape.full(e, 0, out.type, out.shape)

  def phase(e, %{type: type}, %{type: {:c, _}} = tensor) do
    z = Emitter.input(e, tensor)
    angle = emit(e, :arctan2, [emit(e, :imag, [z]), emit(e, :real, [z])])
    cast(e, angle, {:f, 32}, type)
  end

  # The imaginary part of a real number is +0: the angle is 0 or pi.
  def phase(e, %{type: type}, tensor) do
    emit(e, :arctan2, [scalar(e, 0, type), operand(e, tensor, type)])
  end

  ## Classes of numbers

  def is_nan(e, out, tensor), do: class(e, :isnan, out, tensor)
  def is_infinity(e, out, tensor), do: class(e, :isinf, out, tensor)

  defp class(e, _op, out, %{type: type}) when is_integer_type(type),
    do: Shape.full(e, 0, out.type, out.shape)

  defp class(e, op, out, tensor), do: astype(e, emit(e, op, [Emitter.input(e, tensor)]), out.type)
end
