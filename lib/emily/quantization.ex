defmodule Emily.Quantization do
  @moduledoc """
  Products with quantised weights (`Emily.QuantizedWeight`).

  On `Emily.Backend` and in programs of `Emily.Compiler` MLX multiplies by the packed weight as it is;
  other backends make it dense first, and so do gradients, which reach x, the scales and the biases.
  """

  import Nx.Defn

  alias Emily.Fast.Operand
  alias Emily.Quantization.Block.{Dequantize, GatherQuantizedMatmul, QuantizedMatmul}
  alias Emily.Quantization.Scheme
  alias Emily.QuantizedWeight

  @doc """
  The bits of an affine element that `dequantize_defn/1` and `quantized_matmul_defn/2` take.
  """
  @spec defn_supported_bits() :: [pos_integer()]
  def defn_supported_bits, do: Scheme.bits()

  @doc """
  `x {.., m, k}` times a weight `{n, k}`, or `x {.., m, n}` where `:transpose` is false, on Emily.

  The batch axes of several weights `{.., n, k}` broadcast with those of `x`, which may be a vector too.
  The result has the type of `x` and no names. Not for use inside `defn`: see
  `quantized_matmul_defn/2`.

  Raises ArgumentError where `x` has another type than affine scales, or is of no float type.
  """
  @spec quantized_matmul(Nx.Tensor.t(), QuantizedWeight.t()) :: Nx.Tensor.t()
  def quantized_matmul(x, %QuantizedWeight{} = weight) do
    x = Nx.to_tensor(x)
    matching!(x.type, weight)
    x = x |> Operand.unnamed() |> on_emily()
    quantized_matmul_defn(x, weight)
  end

  defp matching!(type, %{mode: "affine", scales: %{type: type}}), do: :ok

  defp matching!(type, %{mode: "affine", scales: scales}) do
    raise ArgumentError,
          "quantized_matmul: the type of x must match scales dtype #{inspect(scales.type)}, got: #{inspect(type)}"
  end

  defp matching!({kind, _}, _weight) when kind in [:f, :bf], do: :ok

  defp matching!(type, %{mode: mode}) do
    raise ArgumentError,
          "quantized_matmul: expected x of a real float type for mode #{mode}, got: #{inspect(type)}"
  end

  defp on_emily(%{data: %Emily.Backend{}} = x), do: x
  defp on_emily(x), do: Nx.backend_copy(x, Emily.Backend)

  @doc """
  As `quantized_matmul/2`, inside `defn` and on any backend.

  `x` may be of any float type; the result's is that of `x` merged with the affine scales'.
  """
  deftransform quantized_matmul_defn(x, %QuantizedWeight{} = weight) do
    x = Operand.float!(x, "quantized_matmul", "x")
    parts = parts!(weight)
    QuantizedMatmul.call(x, weight, parts, product_type(x, parts))
  end

  @doc """
  Products with weights that are picked by index, as in a mixture of experts.

  `x` is `{.., m, k}` and the weight `{.., n, k}`; indices count the matrices of all the axes before.
  The two index tensors broadcast to a shape, `picked`, and the result is `{picked.., m, n}`. Without
  indices the matrices are taken in their order, with the shape of their axes. Indices out of range are clamped on MLX.

  ## Options

    * `:x_indices`, `:weight_indices` - integer tensors
    * `:sorted` - promises that the indices are in ascending order, which MLX can make use of; `false`
  """
  deftransform gather_quantized_matmul(x, %QuantizedWeight{} = weight, opts \\ []) do
    op = "gather_quantized_matmul"
    opts = Keyword.validate!(opts, [:x_indices, :weight_indices, sorted: false])
    sorted = Operand.boolean!(opts[:sorted], op, :sorted)
    x = Operand.float!(x, op, "x")
    parts = parts!(weight)

    indices =
      for {name, key} <- [x: :x_indices, weight: :weight_indices], tensor = opts[key] do
        {name, Operand.integer!(tensor, op, inspect(key))}
      end

    GatherQuantizedMatmul.call(x, weight, parts, indices, sorted, product_type(x, parts))
  end

  @doc """
  The dense weight `{.., rows, k}`, inside `defn` and on any backend: affine ones in the type of the scales,
  others in `{:bf, 16}`.
  """
  deftransform dequantize_defn(%QuantizedWeight{} = weight) do
    case parts!(weight) do
      [_, scales, biases] = parts ->
        Dequantize.call(weight, parts, Nx.Type.merge(scales.type, biases.type))

      parts ->
        Dequantize.call(weight, parts, {:bf, 16})
    end
  end

  # The tensors that a weight has, once they are known to fit.
  defp parts!(%QuantizedWeight{mode: mode, bits: bits, group_size: group_size} = weight) do
    if mode == "affine" and bits not in Scheme.bits() do
      raise ArgumentError,
            "bits=#{inspect(bits)} is not supported by the defn-native path, got mode=affine"
    end

    scheme = Scheme.new!(mode, group_size, bits)
    biases = if mode == "affine", do: weight.biases
    Scheme.check_parts!(scheme, weight.value, weight.scales, biases)
    Enum.reject([weight.value, weight.scales, biases], &is_nil/1)
  end

  defp product_type(x, [_value, scales, biases]),
    do: x.type |> Nx.Type.merge(scales.type) |> Nx.Type.merge(biases.type)

  defp product_type(x, [_value, _scales]), do: x.type
end
