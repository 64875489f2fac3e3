defmodule Emily.Lowering.Block do
  @moduledoc false

  # Nx's named blocks, and those of other libraries: a block's module may export `lower/4`, which
  # takes the emitter, the struct, the output template and the arguments. The result is a handle, a
  # tuple of handles, or `:default` for a block or a case that Nx's own definition computes.

  alias Emily.Lowering.{Elementwise, Fft, Index, Linalg, Reduce, Sort}
  alias Nx.Block, as: B

  def block(e, struct, out, args)

  def block(e, %B.LogicalNot{}, out, [t]), do: Elementwise.logical_not(e, out, t)
  def block(e, %B.Phase{}, out, [t]), do: Elementwise.phase(e, out, t)

  def block(e, %B.AllClose{} = opts, out, [a, b]), do: Reduce.all_close(e, out, a, b, opts)

  def block(e, %B.CumulativeSum{axis: axis, reverse: reverse}, out, [t]),
    do: Reduce.cumulative_sum(e, out, t, axis, reverse)

  def block(e, %B.CumulativeProduct{axis: axis, reverse: reverse}, out, [t]),
    do: Reduce.cumulative_product(e, out, t, axis, reverse)

  def block(e, %B.CumulativeMin{axis: axis, reverse: reverse}, out, [t]),
    do: Reduce.cumulative_min(e, out, t, axis, reverse)

  def block(e, %B.CumulativeMax{axis: axis, reverse: reverse}, out, [t]),
    do: Reduce.cumulative_max(e, out, t, axis, reverse)

  def block(e, %B.Take{axis: axis}, out, [t, indices]),
    do: Index.take(e, out, t, indices, axis)

  def block(e, %B.TakeAlongAxis{axis: axis}, out, [t, indices]),
    do: Index.take_along_axis(e, out, t, indices, axis)

  def block(e, %B.TopK{k: k}, out, [t]), do: Sort.top_k(e, out, t, k)

  def block(e, %B.FFT2{lengths: lengths, axes: axes}, out, [t]),
    do: Fft.fft2(e, out, t, lengths, axes)

  def block(e, %B.IFFT2{lengths: lengths, axes: axes}, out, [t]),
    do: Fft.ifft2(e, out, t, lengths, axes)

  def block(e, %B.RFFT{length: length, axis: axis}, out, [t]),
    do: Fft.rfft(e, out, t, length, axis)

  def block(e, %B.IRFFT{length: length, axis: axis}, out, [t]),
    do: Fft.irfft(e, out, t, length, axis)

  def block(e, %B.LinAlg.Cholesky{}, out, [t]), do: Linalg.cholesky(e, out, t)
  def block(e, %B.LinAlg.Solve{}, out, [a, b]), do: Linalg.solve(e, out, a, b)
  def block(e, %B.LinAlg.QR{mode: mode}, out, [t]), do: Linalg.qr(e, out, t, mode)
  def block(e, %B.LinAlg.Eigh{}, out, [t]), do: Linalg.eigh(e, out, t)
  def block(e, %B.LinAlg.SVD{full_matrices?: full?}, out, [t]), do: Linalg.svd(e, out, t, full?)
  def block(e, %B.LinAlg.LU{}, out, [t]), do: Linalg.lu(e, out, t)
  def block(e, %B.LinAlg.Determinant{}, out, [t]), do: Linalg.determinant(e, out, t)

  def block(e, %module{} = struct, out, args) do
    if Code.ensure_loaded?(module) and function_exported?(module, :lower, 4),
      do: module.lower(e, struct, out, args),
      else: :default
  end
end
