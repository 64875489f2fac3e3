defmodule Emily.Lowering.Shape do
  @moduledoc false

  # The same elements in another arrangement. Functions ending in `_to` and those with a rank take
  # and return handles, for the other families; what changes nothing emits nothing.

  import Emily.Emitter, only: [emit: 3, scalar: 3]
  import Emily.Lowering.Type, only: [operand: 3]

  alias Emily.Emitter

  def reshape(e, out, tensor),
    do: reshape_to(e, Emitter.input(e, tensor), tensor.shape, out.shape)

  def squeeze(e, _out, tensor, axes), do: squeeze_axes(e, Emitter.input(e, tensor), axes)

  def broadcast(e, _out, tensor, shape, axes) do
    rank = tuple_size(shape)
    handle = Emitter.input(e, tensor)

    if axes == Enum.to_list((rank - tuple_size(tensor.shape))..(rank - 1)//1) do
      broadcast_to(e, handle, tensor.shape, shape)
    else
      missing = Enum.to_list(0..(rank - 1)//1) -- axes
      expanded = emit(e, {:expand_dims, %{axes: missing}}, [handle])
      emit(e, {:broadcast_to, %{shape: Tuple.to_list(shape)}}, [expanded])
    end
  end

  def transpose(e, _out, tensor, axes), do: permute(e, Emitter.input(e, tensor), axes)

  def reverse(e, _out, tensor, axes), do: flip(e, Emitter.input(e, tensor), axes)

  def concatenate(e, out, tensors, axis) do
    emit(e, {:concatenate, %{axis: axis}}, Enum.map(tensors, &operand(e, &1, out.type)))
  end

  def stack(e, out, tensors, axis) do
    emit(e, {:stack, %{axis: axis}}, Enum.map(tensors, &operand(e, &1, out.type)))
  end

  def pad(e, out, tensor, value, config) do
    pad_to(
      e,
      operand(e, tensor, out.type),
      tensor.shape,
      operand(e, value, out.type),
      config
    )
  end

  @doc "Pads with a scalar; sizes below zero cut off, the third number pads between elements."
  def pad_to(e, handle, shape, value, config) do
    cond do
      Enum.all?(config, &(&1 == {0, 0, 0})) ->
        handle

      Enum.all?(config, fn {low, high, interior} -> low >= 0 and high >= 0 and interior == 0 end) ->
        axes = for {{low, high, _}, axis} <- Enum.with_index(config), low + high > 0, do: axis
        chosen = Enum.map(axes, &Enum.at(config, &1))

        attrs = %{
          axes: axes,
          low: Enum.map(chosen, &elem(&1, 0)),
          high: Enum.map(chosen, &elem(&1, 1))
        }

        emit(e, {:pad, attrs}, [handle, value])

      true ->
        spread(e, handle, shape, value, config)
    end
  end

  # Writes the elements that remain, at their distance, into a canvas of the padding value.
  defp spread(e, handle, shape, value, config) do
    placed =
      Enum.zip_with(Tuple.to_list(shape), config, fn size, {low, high, interior} ->
        step = interior + 1
        padded = (size - 1) * step + 1 + low + high
        first = if low < 0, do: div(-low + step - 1, step), else: 0
        last = min(size - 1, Integer.floor_div(padded - 1 - low, step))

        %{
          size: size,
          padded: padded,
          first: first,
          count: last - first + 1,
          start: low + first * step,
          step: step
        }
      end)

    canvas = emit(e, {:broadcast_to, %{shape: Enum.map(placed, & &1.padded)}}, [value])

    if Enum.any?(placed, &(&1.count <= 0)) do
      canvas
    else
      kept = slice_to(e, handle, shape, Enum.map(placed, &{&1.first, &1.first + &1.count, 1}))
      attrs = %{starts: Enum.map(placed, & &1.start), strides: Enum.map(placed, & &1.step)}

      if Enum.all?(placed, &(&1.count == &1.padded)),
        do: kept,
        else: emit(e, {:slice_update, attrs}, [canvas, kept])
    end
  end

  @doc "A handle of one shape in another of the same size."
  def reshape_to(_e, handle, shape, shape), do: handle

  def reshape_to(e, handle, _from, to),
    do: emit(e, {:reshape, %{shape: Tuple.to_list(to)}}, [handle])

  def broadcast_to(_e, handle, shape, shape), do: handle

  def broadcast_to(e, handle, _from, to),
    do: emit(e, {:broadcast_to, %{shape: Tuple.to_list(to)}}, [handle])

  def squeeze_axes(_e, handle, []), do: handle
  def squeeze_axes(e, handle, axes), do: emit(e, {:squeeze, %{axes: axes}}, [handle])

  def permute(e, handle, axes) do
    if axes == Enum.to_list(0..(length(axes) - 1)//1),
      do: handle,
      else: emit(e, {:transpose, %{axes: axes}}, [handle])
  end

  def flip(_e, handle, []), do: handle
  def flip(e, handle, axes), do: emit(e, {:flip, %{axes: axes}}, [handle])

  @doc "A part, from `{start, stop, step}` an axis, all within the shape."
  def slice_to(e, handle, shape, ranges) do
    if Enum.zip_with(Tuple.to_list(shape), ranges, &({0, &1, 1} == &2)) |> Enum.all?() do
      handle
    else
      {starts, stops, strides} = unzip3(ranges)
      emit(e, {:slice, %{starts: starts, stops: stops, strides: strides}}, [handle])
    end
  end

  @doc "A part along one axis."
  def slice_axis(e, handle, shape, axis, start, stop) do
    ranges =
      for {size, at} <- Enum.with_index(Tuple.to_list(shape)),
          do: if(at == axis, do: {start, stop, 1}, else: {0, size, 1})

    slice_to(e, handle, shape, ranges)
  end

  @doc "The permutation that undoes one."
  def inverse(permutation) do
    permutation |> Enum.with_index() |> Enum.sort() |> Enum.map(&elem(&1, 1))
  end

  @doc "Swaps the last two axes."
  def matrix_transpose(e, handle), do: emit(e, {:swapaxes, %{axis1: -1, axis2: -2}}, [handle])

  @doc "A tensor of one value."
  def full(e, number, type, shape) do
    broadcast_to(e, scalar(e, number, type), {}, shape)
  end

  defp unzip3(list) do
    {Enum.map(list, &elem(&1, 0)), Enum.map(list, &elem(&1, 1)), Enum.map(list, &elem(&1, 2))}
  end
end
