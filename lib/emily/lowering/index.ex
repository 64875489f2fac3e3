defmodule Emily.Lowering.Index do
  @moduledoc false

  # Parts of tensors, by numbers or by tensors of indices. A part that would reach beyond the tensor
  # is moved inside, as Nx asks. Single indices out of range are dropped when written and clamped when
  # read, where those from the axis' negative size on count from its end.

  import Emily.Emitter, only: [emit: 3]
  import Emily.Lowering.Type, only: [astype: 3, operand: 3]

  alias Emily.Emitter
  alias Emily.Lowering.Shape
  alias Nx.Tensor, as: T

  ## Slices

  def slice(e, _out, %{shape: shape} = tensor, starts, lengths, strides) do
    sizes = Tuple.to_list(shape)
    handle = Emitter.input(e, tensor)
    starts = settled(starts, Enum.zip_with(sizes, lengths, &(&1 - &2)))

    if Enum.all?(starts, &is_integer/1) do
      ranges = Enum.zip_with([sizes, starts, lengths, strides], &range/1)
      Shape.slice_to(e, handle, shape, ranges)
    else
      # First the known starts, then the others at distance 1, then their distances.
      known =
        Enum.zip_with([sizes, starts, lengths, strides], fn
          [size, start, length, stride] when is_integer(start) ->
            range([size, start, length, stride])

          [size | _] ->
            {0, size, 1}
        end)

      cut = Shape.slice_to(e, handle, shape, known)
      {axes, start} = dynamic_starts(e, starts)

      extents =
        Enum.zip_with([known, starts, lengths], fn
          [{from, to, step}, start, _length] when is_integer(start) ->
            div(to - from + step - 1, step)

          [_range, _start, length] ->
            length
        end)

      part = emit(e, {:slice_dynamic, %{axes: axes, sizes: extents}}, [cut, start])

      steps =
        Enum.zip_with([extents, starts, strides], fn
          [extent, start, _stride] when is_integer(start) -> {0, extent, 1}
          [extent, _start, stride] -> {0, extent, stride}
        end)

      Shape.slice_to(e, part, List.to_tuple(extents), steps)
    end
  end

  defp range([size, start, length, stride]) do
    start = clamp(start, size - length)
    {start, start + length, stride}
  end

  defp clamp(%T{} = start, _last), do: start
  defp clamp(start, last), do: start |> max(0) |> min(last)

  def put_slice(e, %{type: type} = out, tensor, starts, slice) do
    target = operand(e, tensor, type)
    update = operand(e, slice, type)
    lasts = Enum.zip_with(Tuple.to_list(out.shape), Tuple.to_list(slice.shape), &(&1 - &2))
    starts = starts |> settled(lasts) |> Enum.zip_with(lasts, &clamp/2)

    if Enum.all?(starts, &is_integer/1) do
      ones = Enum.map(starts, fn _ -> 1 end)
      emit(e, {:slice_update, %{starts: starts, strides: ones}}, [target, update])
    else
      # Along the axes that the op does not get it writes a slice as large as the tensor.
      {axes, starts} =
        Enum.unzip(
          for {start, last, axis} <- Enum.zip([starts, lasts, 0..(length(starts) - 1)]),
              last > 0 do
            {axis, start}
          end
        )

      emit(e, {:slice_update_dynamic, %{axes: axes}}, [target, update, vector(e, starts)])
    end
  end

  # Where there is no room to move a part, it begins at 0 whatever its start is. Inside `defn` that is a
  # tensor even where it was written as a number.
  defp settled(starts, lasts), do: Enum.zip_with(starts, lasts, &if(&2 == 0, do: 0, else: &1))

  defp dynamic_starts(e, starts) do
    {axes, tensors} =
      starts
      |> Enum.with_index()
      |> Enum.flat_map(fn
        {%T{} = start, axis} -> [{axis, start}]
        {_number, _axis} -> []
      end)
      |> Enum.unzip()

    {axes, vector(e, tensors)}
  end

  # s64 holds every start but those of u64 beyond its end, which clamp to the end all the same.
  defp vector(e, starts) do
    entries =
      Enum.map(starts, fn
        %T{type: {:u, 64}} = start ->
          largest = Emitter.scalar(e, 2_147_483_647, {:u, 64})
          entry(e, emit(e, :minimum, [Emitter.input(e, start), largest]))

        %T{} = start ->
          entry(e, Emitter.input(e, start))

        number ->
          Emitter.constant(e, <<number::64-signed-native>>, [1], {:s, 64})
      end)

    case entries do
      [one] -> one
      several -> emit(e, {:concatenate, %{axis: 0}}, several)
    end
  end

  defp entry(e, handle), do: emit(e, {:reshape, %{shape: [1]}}, [astype(e, handle, {:s, 64})])

  ## Indices

  def take(e, _out, tensor, indices, axis),
    do: emit(e, {:take, %{axis: axis}}, [Emitter.input(e, tensor), Emitter.input(e, indices)])

  def take_along_axis(e, _out, tensor, indices, axis) do
    emit(e, {:take_along_axis, %{axis: axis}}, [
      Emitter.input(e, tensor),
      Emitter.input(e, indices)
    ])
  end

  def gather(e, out, tensor, indices, opts) do
    axes = opts[:axes]

    sizes =
      for {size, axis} <- Enum.with_index(Tuple.to_list(tensor.shape)),
          do: if(axis in axes, do: 1, else: size)

    inputs = [Emitter.input(e, tensor) | columns(e, indices)]
    picked = emit(e, {:gather, %{axes: axes, slice_sizes: sizes}}, inputs)
    batch = indices.shape |> Tuple.to_list() |> Enum.drop(-1)
    Shape.reshape_to(e, picked, List.to_tuple(batch ++ sizes), out.shape)
  end

  def indexed_add(e, out, target, indices, updates, opts),
    do: scatter(e, :scatter_add, out, target, indices, updates, opts)

  def indexed_put(e, out, target, indices, updates, opts),
    do: scatter(e, :scatter, out, target, indices, updates, opts)

  defp scatter(e, op, %{type: type}, target, indices, updates, opts) do
    axes = opts[:axes]
    count = elem(indices.shape, 0)

    # One update: a slice of the target with size 1 on the indexed axes.
    slot =
      for {size, axis} <- Enum.with_index(Tuple.to_list(target.shape)),
          do: if(axis in axes, do: 1, else: size)

    shaped =
      Shape.reshape_to(e, operand(e, updates, type), updates.shape, List.to_tuple([count | slot]))

    inputs =
      [operand(e, target, type)] ++
        Enum.map(columns(e, indices), &unsigned(e, &1, indices.type)) ++ [shaped]

    emit(e, {op, %{axes: axes}}, inputs)
  end

  # MLX counts a negative index from the end. As an unsigned number it is out of range, and dropped.
  defp unsigned(_e, handle, {:u, _}), do: handle
  defp unsigned(e, handle, {:s, bits}), do: astype(e, handle, {:u, max(bits, 32)})

  # The index tensor of each axis: the columns of the last axis.
  defp columns(e, %{shape: shape} = indices) do
    rank = tuple_size(shape)
    handle = Emitter.input(e, indices)

    for at <- 0..(elem(shape, rank - 1) - 1)//1 do
      column = Shape.slice_axis(e, handle, shape, rank - 1, at, at + 1)
      Shape.squeeze_axes(e, column, [rank - 1])
    end
  end
end
