defmodule Emily.Lowering.Integers do
  @moduledoc false

  # What MLX does otherwise with integers, or not at all. Functions take and return handles.

  import Bitwise, only: [<<<: 2]
  import Emily.Emitter, only: [emit: 3, scalar: 3]
  import Emily.Lowering.Type, only: [astype: 3, cast: 4]

  alias Emily.Lowering.Narrow

  @doc "The remainder of truncated division, with the dividend's sign; the dividend for divisor 0."
  def remainder(e, a, b) do
    emit(e, :subtract, [a, emit(e, :multiply, [b, emit(e, :quotient, [a, b])])])
  end

  @doc """
  Compares u64 with s64 by value, for which no integer type has room: a negative number is less
  than every unsigned one, and the others are compared as u64.
  """
  def compare_signs(e, op, unsigned, signed) do
    negative = emit(e, :less, [signed, scalar(e, 0, {:s, 64})])
    compared = emit(e, op, [unsigned, astype(e, signed, {:u, 64})])

    if op in [:greater, :greater_equal, :not_equal] do
      emit(e, :logical_or, [negative, compared])
    else
      emit(e, :logical_and, [emit(e, :logical_not, [negative]), compared])
    end
  end

  @doc """
  The quotient of a u64 and a signed integer, truncated, by value: that of the magnitudes with the
  product of the signs, wrapped into s64.
  """
  def mixed_quotient(e, a, type_a, b, type_b) do
    {x, negative_a} = magnitude(e, a, type_a)
    {y, negative_b} = magnitude(e, b, type_b)
    quotient = astype(e, emit(e, :quotient, [x, y]), {:s, 64})
    signed(e, quotient, negative_a || negative_b)
  end

  @doc "Likewise the remainder, with the dividend's sign."
  def mixed_remainder(e, a, type_a, b, type_b) do
    {x, negative} = magnitude(e, a, type_a)
    {y, _} = magnitude(e, b, type_b)
    signed(e, astype(e, remainder(e, x, y), {:s, 64}), negative)
  end

  defp magnitude(_e, handle, {:u, _}), do: {handle, nil}

  # The magnitude of the least number wraps to itself, whose bits are the right unsigned ones.
  defp magnitude(e, handle, type) do
    wide = cast(e, handle, type, {:s, 64})
    negative = emit(e, :less, [wide, scalar(e, 0, {:s, 64})])
    {astype(e, emit(e, :abs, [wide]), {:u, 64}), negative}
  end

  defp signed(_e, handle, nil), do: handle

  defp signed(e, handle, negative),
    do: emit(e, :where, [negative, emit(e, :negative, [handle]), handle])

  @doc "The number of ones in each integer's bits."
  def population_count(e, handle, type, out) do
    unsigned = {:u, elem(type, 1)}
    count = ones(e, as_unsigned(e, handle, type), unsigned)
    cast(e, count, unsigned, out)
  end

  @doc "The number of zeros before the highest one in each integer's bits."
  def count_leading_zeros(e, handle, {_, bits} = type, out) do
    unsigned = {:u, bits}

    # Every bit below the highest one becomes one.
    smeared =
      [1, 2, 4, 8, 16, 32]
      |> Enum.take_while(&(&1 < bits))
      |> Enum.reduce(as_unsigned(e, handle, type), fn shift, x ->
        emit(e, :bitwise_or, [x, shift_right(e, x, shift, unsigned)])
      end)

    zeros = Narrow.settle(e, emit(e, :bitwise_invert, [smeared]), unsigned)
    count = ones(e, zeros, unsigned)
    cast(e, count, unsigned, out)
  end

  # Adds neighbouring fields of 1, 2, 4, ... bits; each sum fits the doubled field.
  defp ones(e, x, {_, bits} = type) do
    [1, 2, 4, 8, 16, 32]
    |> Enum.take_while(&(&1 < bits))
    |> Enum.reduce(x, fn width, x ->
      mask = scalar(e, fields(width, bits), type)
      low = emit(e, :bitwise_and, [x, mask])
      high = emit(e, :bitwise_and, [shift_right(e, x, width, type), mask])
      emit(e, :add, [low, high])
    end)
  end

  # Ones in the lower half of every field of twice the width.
  defp fields(width, bits) do
    for start <- 0..(bits - 1)//(2 * width), reduce: 0 do
      mask -> mask + (((1 <<< width) - 1) <<< start)
    end
  end

  defp shift_right(e, x, by, type), do: emit(e, :right_shift, [x, scalar(e, by, type)])

  defp as_unsigned(_e, handle, {:u, _}), do: handle
  defp as_unsigned(e, handle, {:s, bits} = type), do: cast(e, handle, type, {:u, bits})
end
