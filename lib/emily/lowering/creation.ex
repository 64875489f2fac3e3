defmodule Emily.Lowering.Creation do
  @moduledoc false

  # Tensors from nothing, and the same elements under another type.

  import Emily.Emitter, only: [emit: 3, scalar: 3]
  import Emily.Lowering.Type, only: [astype: 3, check!: 2, operand: 3]

  alias Emily.Emitter
  alias Emily.Lowering.{Narrow, Shape}

  # The greatest count up to which f32 has every integer.
  @exact_in_f32 16_777_216

  def constant(e, %{shape: shape, type: type}, number) do
    check!(e, type)
    Shape.broadcast_to(e, scalar(e, number, type), {}, shape)
  end

  def iota(e, %{shape: shape, type: type}, nil) do
    flat = range(e, Tuple.product(shape), type)
    Shape.reshape_to(e, flat, {Tuple.product(shape)}, shape)
  end

  def iota(e, %{shape: shape, type: type}, axis) do
    size = elem(shape, axis)
    along = shape |> Tuple.to_list() |> Enum.map(fn _ -> 1 end) |> List.replace_at(axis, size)
    along = List.to_tuple(along)

    e
    |> Shape.reshape_to(range(e, size, type), {size}, along)
    |> then(&Shape.broadcast_to(e, &1, along, shape))
  end

  def eye(e, %{shape: shape, type: type}) do
    check!(e, type)
    rank = tuple_size(shape)
    {rows, cols} = {elem(shape, rank - 2), elem(shape, rank - 1)}
    eye = emit(e, {:eye, %{rows: rows, cols: cols, k: 0, dtype: Narrow.storage(type)}}, [])
    Shape.broadcast_to(e, eye, {rows, cols}, shape)
  end

  def as_type(e, out, tensor), do: operand(e, tensor, out.type)

  def bitcast(e, out, tensor) do
    check!(e, out.type)
    handle = Emitter.input(e, tensor)

    cond do
      out.type == tensor.type ->
        handle

      # A wider type holds their values, not their bits.
      not same_bits?(out.type) or not same_bits?(tensor.type) ->
        raise ArgumentError,
              "unsupported dtype for a bitcast: from #{inspect(tensor.type)} to #{inspect(out.type)}"

      true ->
        emit(e, {:bitcast, %{dtype: Narrow.storage(out.type)}}, [handle])
    end
  end

  defp same_bits?(type), do: type not in [{:f, 8}, {:f8_e4m3fn, 8}]

  @doc "The vector 0, 1, ... of a length; numbers that the type cannot hold wrap or are rounded."
  def range(e, size, type) do
    check!(e, type)

    # MLX adds up the step in the type itself, which drifts in the small floats.
    if type == {:s, 32} or (type == {:f, 32} and size <= @exact_in_f32) do
      arange(e, size, type)
    else
      astype(e, arange(e, size, {:s, 32}), type)
    end
  end

  defp arange(e, size, type) do
    emit(e, {:arange, %{start: 0.0, stop: size * 1.0, step: 1.0, dtype: type}}, [])
  end
end
