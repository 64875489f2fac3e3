defmodule Emily.Quantization.Layers do
  @moduledoc """
  Layers of models with quantised weights, with the arguments of `Axon.Layers`.
  """

  import Nx.Defn

  alias Emily.Quantization

  @doc """
  A dense layer: `x` times the weight, or its transpose where `:transpose` says so, plus the bias.

  See `Emily.Quantization.quantized_matmul_defn/2`. The third argument may be the options.

  ## Options

    * `:mode` - what Axon tells its layers; without effect
  """
  deftransform(quantized_dense(x, kernel, bias \\ 0, opts \\ []))

  deftransform quantized_dense(x, kernel, opts, []) when is_list(opts) do
    quantized_dense(x, kernel, 0, opts)
  end

  deftransform quantized_dense(x, kernel, bias, opts) do
    Keyword.validate!(opts, mode: :inference)
    product = Quantization.quantized_matmul_defn(x, kernel)
    if is_number(bias) and bias == 0, do: product, else: Nx.add(product, bias)
  end
end
