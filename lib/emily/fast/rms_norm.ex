defmodule Emily.Fast.Block.RMSNorm do
  @moduledoc false
  # One kernel of MLX in Nx's blocks: `Emily.Lowering.Block` calls `lower/4`.
  defstruct [:eps]

  defdelegate lower(e, block, out, args), to: Emily.Fast.RMSNorm
end

defmodule Emily.Fast.RMSNorm do
  @moduledoc false

  # Emily.Fast.rms_norm/3: the checks, the composition of Nx operations, and MLX's kernel.

  import Emily.Fast.Operand

  alias Emily.Emitter
  alias Emily.Fast.Block
  alias Emily.Lowering.Type

  @op "rms_norm"

  def call(x, weight, opts) do
    opts = Keyword.validate!(opts, eps: 1.0e-6)
    {x, weight} = {float!(x, @op, "x"), float!(weight, @op, "weight")}
    rank_at_least!(x, 1, @op, "x")
    shape!(weight, {Nx.axis_size(x, -1)}, @op, "weight")
    block = %Block.RMSNorm{eps: number!(opts[:eps], @op, :eps)}
    block(block, [x, weight], {x.shape, x.type}, &composed(&1, block))
  end

  defp composed([x, weight], %{eps: eps}) do
    type = wide(Nx.Type.merge(x.type, weight.type))
    wide = widen(x, type)
    mean = Nx.mean(Nx.multiply(wide, wide), axes: [-1], keep_axes: true)
    normal = Nx.multiply(wide, Nx.rsqrt(Nx.add(mean, scalar(eps, type))))
    Nx.as_type(Nx.multiply(normal, widen(weight, type)), x.type)
  end

  def lower(e, %{eps: eps}, out, [x, weight]) do
    if type = kernel_type(e, [x.type, weight.type]) do
      inputs = [Type.operand(e, x, type), Type.operand(e, weight, type)]
      Type.cast(e, Emitter.emit(e, {:fast_rms_norm, %{eps: eps}}, inputs), type, out.type)
    else
      :default
    end
  end
end
