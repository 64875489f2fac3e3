defmodule Emily.Lowering.Block do
  @moduledoc false

  # Nx's named blocks, and those of other libraries: a block's module may export `lower/4`, which
  # takes the emitter, the struct, the output template and the arguments. The result is a handle, a
  # tuple of handles, or `:default` for a block or a case that Nx's own definition computes.

  alias Emily.Lowering.{Elementwise, Fft, Index, Linalg, Reduce, Sort}
  alias Emily.Telemetry
  alias Nx.Block, as: B

  def block(e, struct, out, args) do
    with :default <- lower(e, struct, out, args) do
      Telemetry.block_fallback(struct, args)
      :default
    end
  end

  defp lower(e, %B.LogicalNot{}, out, [t]), do: Elementwise.logical_not(e, out, t)
  defp lower(e, %B.Phase{}, out, [t]), do: Elementwise.phase(e, out, t)

  defp lower(e, %B.AllClose{} = opts, out, [a, b]), do: Reduce.all_close(e, out, a, b, opts)

  defp lower(e, %B.CumulativeSum{axis: axis, reverse: reverse}, out, [t]),
    do: Reduce.cumulative_sum(e, out, t, axis, reverse)

  defp lower(e, %B.CumulativeProduct{axis: axis, reverse: reverse}, out, [t]),
    do: Reduce.cumulative_product(e, out, t, axis, reverse)

  defp lower(e, %B.CumulativeMin{axis: axis, reverse: reverse}, out, [t]),
    do: Reduce.cumulative_min(e, out, t, axis, reverse)

  defp lower(e, %B.CumulativeMax{axis: axis, reverse: reverse}, out, [t]),
    do: Reduce.cumulative_max(e, out, t, axis, reverse)

  defp lower(e, %B.Take{axis: axis}, out, [t, indices]),
    do: Index.take(e, out, t, indices, axis)

  defp lower(e, %B.TakeAlongAxis{axis: axis}, out, [t, indices]),
    do: Index.take_along_axis(e, out, t, indices, axis)

  defp lower(e, %B.TopK{k: k}, out, [t]), do: Sort.top_k(e, out, t, k)

  defp lower(e, %B.FFT2{lengths: lengths, axes: axes}, out, [t]),
    do: Fft.fft2(e, out, t, lengths, axes)

  defp lower(e, %B.IFFT2{lengths: lengths, axes: axes}, out, [t]),
    do: Fft.ifft2(e, out, t, lengths, axes)

  defp lower(e, %B.RFFT{length: length, axis: axis}, out, [t]),
    do: Fft.rfft(e, out, t, length, axis)

  defp lower(e, %B.IRFFT{length: length, axis: axis}, out, [t]),
    do: Fft.irfft(e, out, t, length, axis)

  defp lower(e, %B.LinAlg.Cholesky{}, out, [t]), do: Linalg.cholesky(e, out, t)
  defp lower(e, %B.LinAlg.Solve{}, out, [a, b]), do: Linalg.solve(e, out, a, b)
  defp lower(e, %B.LinAlg.QR{mode: mode}, out, [t]), do: Linalg.qr(e, out, t, mode)
  defp lower(e, %B.LinAlg.Eigh{}, out, [t]), do: Linalg.eigh(e, out, t)
  defp lower(e, %B.LinAlg.SVD{full_matrices?: full?}, out, [t]), do: Linalg.svd(e, out, t, full?)
  defp lower(e, %B.LinAlg.LU{}, out, [t]), do: Linalg.lu(e, out, t)
  defp lower(e, %B.LinAlg.Determinant{}, out, [t]), do: Linalg.determinant(e, out, t)

  defp lower(e, %module{} = struct, out, args) do
    if Code.ensure_loaded?(module) and function_exported?(module, :lower, 4),
      do: module.lower(e, struct, out, args),
      else: :default
  end
end
