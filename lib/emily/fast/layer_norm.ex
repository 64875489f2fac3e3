defmodule Emily.Fast.Block.LayerNorm do
  @moduledoc false
  # See Emily.Fast.Block.RMSNorm.
  defstruct [:eps]

  defdelegate lower(e, block, out, args), to: Emily.Fast.LayerNorm
end

defmodule Emily.Fast.LayerNorm do
  @moduledoc false

  # Emily.Fast.layer_norm/4: the checks, the composition of Nx operations, and MLX's kernel.

  import Emily.Fast.Operand

  alias Emily.Emitter
  alias Emily.Fast.Block
  alias Emily.Lowering.Type

  @op "layer_norm"

  def call(x, weight, bias, opts) do
    opts = Keyword.validate!(opts, eps: 1.0e-5)
    x = float!(x, @op, "x")
    rank_at_least!(x, 1, @op, "x")
    features = {Nx.axis_size(x, -1)}
    weight = weight |> float!(@op, "weight") |> shape!(features, @op, "weight")
    bias = bias |> float!(@op, "bias") |> shape!(features, @op, "bias")
    block = %Block.LayerNorm{eps: number!(opts[:eps], @op, :eps)}
    block(block, [x, weight, bias], {x.shape, x.type}, &composed(&1, block))
  end

  defp composed([x, weight, bias], %{eps: eps}) do
    type = wide(Enum.reduce([x.type, weight.type, bias.type], &Nx.Type.merge/2))
    wide = widen(x, type)
    centred = Nx.subtract(wide, Nx.mean(wide, axes: [-1], keep_axes: true))
    variance = Nx.mean(Nx.multiply(centred, centred), axes: [-1], keep_axes: true)
    normal = Nx.multiply(centred, Nx.rsqrt(Nx.add(variance, scalar(eps, type))))
    scaled = Nx.multiply(normal, widen(weight, type))
    Nx.as_type(Nx.add(scaled, widen(bias, type)), x.type)
  end

  def lower(e, %{eps: eps}, out, args) do
    if type = kernel_type(e, Enum.map(args, & &1.type)) do
      inputs = Enum.map(args, &Type.operand(e, &1, type))
      Type.cast(e, Emitter.emit(e, {:fast_layer_norm, %{eps: eps}}, inputs), type, out.type)
    else
      :default
    end
  end
end
