defmodule Emily.Lowering.Fft do
  @moduledoc false

  # Fourier transforms on any axes. MLX has them in single precision. The threshold `:eps`, for
  # backends that clean up results, is not applied: it lies far below what single precision leaves.

  import Emily.Emitter, only: [emit: 3]
  import Emily.Lowering.Type, only: [cast: 4, check!: 2, operand: 3]

  def fft(e, out, tensor, opts),
    do: complex(e, :fftn, out, tensor, [opts[:length]], [opts[:axis]])

  def ifft(e, out, tensor, opts),
    do: complex(e, :ifftn, out, tensor, [opts[:length]], [opts[:axis]])

  def fft2(e, out, tensor, lengths, axes), do: complex(e, :fftn, out, tensor, lengths, axes)
  def ifft2(e, out, tensor, lengths, axes), do: complex(e, :ifftn, out, tensor, lengths, axes)

  defp complex(e, op, out, tensor, lengths, axes) do
    check!(e, out.type)
    emit(e, {op, %{sizes: lengths, axes: axes}}, [operand(e, tensor, {:c, 64})])
  end

  def rfft(e, out, tensor, length, axis) do
    check!(e, out.type)
    emit(e, {:rfftn, %{sizes: [length], axes: [axis]}}, [operand(e, tensor, {:f, 32})])
  end

  def irfft(e, out, tensor, length, axis) do
    real = emit(e, {:irfftn, %{sizes: [length], axes: [axis]}}, [operand(e, tensor, {:c, 64})])
    cast(e, real, {:f, 32}, out.type)
  end
end
