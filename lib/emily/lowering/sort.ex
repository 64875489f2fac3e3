defmodule Emily.Lowering.Sort do
  @moduledoc false

  # Order along an axis. MLX sorts upwards, stably, with NaNs last, which is Nx's order; downwards
  # is the same reversed, and for positions of the reversed tensor, so that equals keep their order.

  import Emily.Emitter, only: [emit: 3, scalar: 3]
  import Emily.Lowering.Type, only: [astype: 3]

  alias Emily.Emitter
  alias Emily.Lowering.Shape

  def sort(e, _out, tensor, opts) do
    axis = opts[:axis]
    sorted = emit(e, {:sort, %{axis: axis}}, [Emitter.input(e, tensor)])
    if opts[:direction] == :desc, do: Shape.flip(e, sorted, [axis]), else: sorted
  end

  def argsort(e, out, tensor, opts) do
    handle = Emitter.input(e, tensor)
    astype(e, positions(e, handle, tensor.shape, opts[:axis], opts[:direction]), out.type)
  end

  @doc "The `k` greatest of the last axis and their positions, in order."
  def top_k(e, {_values, positions}, tensor, k) do
    axis = tuple_size(tensor.shape) - 1
    handle = Emitter.input(e, tensor)
    order = positions(e, handle, tensor.shape, axis, :desc)
    first = Shape.slice_axis(e, order, tensor.shape, axis, 0, k)
    values = emit(e, {:take_along_axis, %{axis: axis}}, [handle, first])
    {values, astype(e, first, positions.type)}
  end

  defp positions(e, handle, _shape, axis, :asc), do: emit(e, {:argsort, %{axis: axis}}, [handle])

  defp positions(e, handle, shape, axis, :desc) do
    reversed = positions(e, Shape.flip(e, handle, [axis]), shape, axis, :asc)
    from_end = scalar(e, elem(shape, axis) - 1, {:u, 32})
    emit(e, :subtract, [from_end, Shape.flip(e, reversed, [axis])])
  end
end
