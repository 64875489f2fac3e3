defmodule Emily.Lowering.Dot do
  @moduledoc false

  # Products over any axes, as batches of matrix products. MLX multiplies matrices of floats only,
  # and on the CPU those of half precision fifty times slower than those of f32.

  import Bitwise, only: [<<<: 2]
  import Emily.Emitter, only: [emit: 3, scalar: 3]
  import Emily.Lowering.Type, only: [astype: 3, is_small_float: 1, is_integer_type: 1, operand: 3]

  alias Emily.Emitter
  alias Emily.Lowering.Shape

  # Below this number of products they are written out, which takes fewer nodes.
  @few_products 65_536

  # Doubles add products of two 16-bit numbers exactly as long as there are at most this many.
  @exact_terms 2_097_152

  def dot(e, %{type: type} = out, a, contract_a, batch_a, b, contract_b, batch_b) do
    compute = if is_small_float(type) and Emitter.device(e) == :cpu, do: {:f, 32}, else: type

    left = side(a.shape, contract_a, batch_a)
    right = side(b.shape, contract_b, batch_b)
    x = operand(e, a, compute)
    y = operand(e, b, compute)

    {product, shape} =
      if plain?(left, right) and not is_integer_type(compute) do
        # MLX takes vectors and any number of rows as they are.
        x = Shape.permute(e, x, left.free_axes ++ contract_a)
        y = Shape.permute(e, y, contract_b ++ right.free_axes)
        {emit(e, :matmul, [x, y]), left.free ++ right.free}
      else
        {m, n} = {Enum.product(left.free), Enum.product(right.free)}
        k = Enum.product(left.contract)

        x = Shape.permute(e, x, batch_a ++ left.free_axes ++ contract_a)
        x = arrange(e, x, left.batch ++ left.free ++ left.contract, left.batch ++ [m, k])
        y = Shape.permute(e, y, batch_b ++ contract_b ++ right.free_axes)
        y = arrange(e, y, right.batch ++ right.contract ++ right.free, right.batch ++ [k, n])
        {multiply(e, x, y, {Enum.product(left.batch), m, k, n}, compute), left.batch ++ [m, n]}
      end

    product = if compute == type, do: product, else: astype(e, product, type)
    arrange(e, product, shape, Tuple.to_list(out.shape))
  end

  defp side(shape, contract, batch) do
    free_axes = Enum.to_list(0..(tuple_size(shape) - 1)//1) -- (contract ++ batch)
    sizes = fn axes -> Enum.map(axes, &elem(shape, &1)) end

    %{
      free_axes: free_axes,
      free: sizes.(free_axes),
      contract: sizes.(contract),
      batch: sizes.(batch)
    }
  end

  defp plain?(left, right) do
    left.batch == [] and match?([_], left.contract) and length(right.free) <= 1
  end

  defp arrange(_e, handle, shape, shape), do: handle
  defp arrange(e, handle, _from, to), do: emit(e, {:reshape, %{shape: to}}, [handle])

  defp multiply(e, x, y, _sizes, type) when not is_integer_type(type),
    do: emit(e, :matmul, [x, y])

  defp multiply(e, x, y, {batch, m, k, n}, {_, bits} = type) do
    if batch * m * n * k <= @few_products or k > @exact_terms or Emitter.device(e) == :gpu,
      do: written_out(e, x, y, bits, type),
      else: by_limbs(e, x, y, type)
  end

  defp written_out(e, x, y, bits, type) do
    x = emit(e, {:expand_dims, %{axes: [-1]}}, [x])
    y = emit(e, {:expand_dims, %{axes: [-3]}}, [y])
    products = emit(e, :multiply, [x, y])
    sum = emit(e, {:sum, %{axes: [-2], keep_axes: false}}, [products])

    # MLX widens the small integers in a sum.
    if bits < 32, do: astype(e, sum, type), else: sum
  end

  # Integers wrap, so that the product of numbers in limbs of 16 bits needs only the pairs of limbs
  # that fall below the type's width. Each is a product of doubles without any rounding.
  defp by_limbs(e, x, y, {_, bits} = type) do
    unsigned = {:u, bits}
    count = max(div(bits, 16), 1)
    xs = limbs(e, astype(e, x, unsigned), count, unsigned)
    ys = limbs(e, astype(e, y, unsigned), count, unsigned)

    terms =
      for {x, i} <- Enum.with_index(xs), {y, j} <- Enum.with_index(ys), i + j < count do
        whole = e |> emit(:matmul, [x, y]) |> then(&astype(e, &1, {:u, 64}))

        if i + j == 0,
          do: whole,
          else: emit(e, :left_shift, [whole, scalar(e, 16 * (i + j), {:u, 64})])
      end

    total = Enum.reduce(terms, &emit(e, :add, [&2, &1]))
    astype(e, total, type)
  end

  defp limbs(e, x, 1, _type), do: [astype(e, x, {:f, 64})]

  defp limbs(e, x, count, type) do
    mask = scalar(e, (1 <<< 16) - 1, type)

    for limb <- 0..(count - 1) do
      shifted = if limb == 0, do: x, else: emit(e, :right_shift, [x, scalar(e, 16 * limb, type)])
      astype(e, emit(e, :bitwise_and, [shifted, mask]), {:f, 64})
    end
  end
end
