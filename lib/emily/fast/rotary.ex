defmodule Emily.Fast.Block.RoPE do
  @moduledoc false
  # See Emily.Fast.Block.RMSNorm. Without a tensor of offsets the offset is the struct's.
  defstruct [:dims, :traditional, :base, :scale, :offset]

  def lower(e, block, out, [x | offset]),
    do: Emily.Fast.Rotary.lower(e, block, out, x, offset, [])
end

defmodule Emily.Fast.Block.RoPEWithFreqs do
  @moduledoc false
  # See Emily.Fast.Block.RMSNorm. Without a tensor of offsets the offset is the struct's.
  defstruct [:dims, :traditional, :scale, :offset]

  def lower(e, block, out, [x, freqs | offset]),
    do: Emily.Fast.Rotary.lower(e, block, out, x, offset, [freqs])
end

defmodule Emily.Fast.Rotary do
  @moduledoc false

  # Rotary embeddings. MLX rotates rows of consecutive positions that start at an offset of their
  # batch; rows in any order are batches of one row each.

  import Emily.Fast.Operand

  alias Emily.Emitter
  alias Emily.Fast.Block
  alias Emily.Lowering.Type

  def rope(x, offset, opts) do
    opts =
      Keyword.validate!(opts, [:dims, traditional: false, base: 10_000.0, scale: 1.0])

    rotate("rope", x, offset, nil, opts)
  end

  def rope_with_freqs(x, offset, freqs, opts) do
    opts = Keyword.validate!(opts, [:dims, traditional: false, scale: 1.0])
    rotate("rope_with_freqs", x, offset, freqs, opts)
  end

  def rope_with_positions(x, positions, opts) do
    op = "rope_with_positions"

    opts =
      Keyword.validate!(opts, [:dims, :freqs, :base, traditional: false, scale: 1.0])

    if opts[:freqs] && opts[:base],
      do: raise(ArgumentError, "#{op}: expected :base or :freqs, got both")

    {freqs, opts} = Keyword.pop(opts, :freqs)
    base = if freqs, do: [], else: [base: opts[:base] || 10_000.0]
    opts = Keyword.delete(opts, :base) ++ base

    x = float!(x, op, "x")
    rank_at_least!(x, 2, op, "x")
    positions = integer!(positions, op, "positions")
    rank = tuple_size(x.shape)
    rows = elem(x.shape, rank - 2)

    case positions.shape do
      {^rows} ->
        each_row(op, x, positions, freqs, opts)

      {batch, ^rows} when rank > 2 and batch == elem(x.shape, 0) ->
        each_row(op, x, positions, freqs, opts)

      got ->
        expected =
          if rank > 2,
            do: "#{inspect({rows})} or #{inspect({elem(x.shape, 0), rows})}",
            else: inspect({rows})

        raise ArgumentError,
              "#{op}: expected positions of shape #{expected}, got: #{inspect(got)}"
    end
  end

  # {batch, .., rows, features} as {batch * rows, .., 1, features}, and back.
  defp each_row(op, x, positions, freqs, opts) do
    {names, shape} = {x.names, x.shape}
    x = unnamed(x)
    batched = if tuple_size(shape) == 2, do: Nx.new_axis(x, 0), else: x
    {batch, rank} = {elem(batched.shape, 0), tuple_size(batched.shape)}
    {rows, features} = {elem(batched.shape, rank - 2), elem(batched.shape, rank - 1)}
    middle = batched.shape |> Tuple.to_list() |> Enum.slice(1, rank - 3)

    offsets = positions |> unnamed() |> Nx.broadcast({batch, rows}) |> Nx.flatten()
    axes = [0, rank - 2] ++ Enum.to_list(1..(rank - 3)//1) ++ [rank - 1]

    rotated =
      batched
      |> Nx.transpose(axes: axes)
      |> Nx.reshape(List.to_tuple([batch * rows] ++ middle ++ [1, features]))
      |> then(&rotate(op, &1, offsets, freqs, opts))
      |> Nx.reshape(List.to_tuple([batch, rows] ++ middle ++ [features]))

    back = [0] ++ Enum.to_list(2..(rank - 2)//1) ++ [1, rank - 1]
    rotated |> Nx.transpose(axes: back) |> Nx.reshape(shape, names: names)
  end

  defp rotate(op, x, offset, freqs, opts) do
    x = float!(x, op, "x")
    rank_at_least!(x, 2, op, "x")
    dims = dims!(opts[:dims], Nx.axis_size(x, -1), op)
    {offset, offsets} = offset!(offset, x, op)

    fields = %{
      dims: dims,
      offset: offset,
      traditional: boolean!(opts[:traditional], op, :traditional),
      scale: number!(opts[:scale], op, :scale)
    }

    if freqs do
      freqs = freqs |> float!(op, "freqs") |> shape!({div(dims, 2)}, op, "freqs")
      block = struct!(Block.RoPEWithFreqs, fields)

      block(block, [x, freqs | offsets], {x.shape, x.type}, fn [x, freqs | offsets] ->
        type = wide(x.type)
        composed(x, offsets, Nx.divide(scalar(1.0, type), widen(freqs, type)), block)
      end)
    else
      block = struct!(Block.RoPE, Map.put(fields, :base, base!(opts[:base], op)))

      block(block, [x | offsets], {x.shape, x.type}, fn [x | offsets] ->
        composed(x, offsets, inverse_freqs(dims, block.base, wide(x.type)), block)
      end)
    end
  end

  defp dims!(dims, features, _op)
       when is_integer(dims) and dims > 0 and rem(dims, 2) == 0 and dims <= features,
       do: dims

  defp dims!(dims, features, op) do
    raise ArgumentError,
          "#{op}: expected :dims to be an even number up to #{features}, the size of the last axis, " <>
            "got: #{inspect(dims)}"
  end

  defp base!(base, op) do
    base = number!(base, op, :base)

    if base > 0,
      do: base,
      else: raise(ArgumentError, "#{op}: expected a positive :base, got: #{base}")
  end

  defp offset!(offset, _x, _op) when is_integer(offset) and abs(offset) < 0x80000000,
    do: {offset, []}

  defp offset!(offset, x, op) do
    offset = integer!(offset, op, "offset")

    cond do
      offset.shape == {} ->
        {nil, [offset]}

      offset.shape == {1} ->
        {nil, [Nx.reshape(offset, {}, names: [])]}

      tuple_size(x.shape) > 2 and offset.shape == {elem(x.shape, 0)} ->
        {nil, [offset]}

      true ->
        raise ArgumentError,
              "#{op}: expected offset to be a scalar or, for x of rank 3 or more, a vector with one entry " <>
                "for each of its first axis, got shape: #{inspect(offset.shape)}"
    end
  end

  ## The composition

  defp inverse_freqs(dims, base, type) do
    for(i <- 0..(div(dims, 2) - 1), do: :math.pow(base, -2 * i / dims)) |> Nx.tensor(type: type)
  end

  defp composed(x, offsets, inverse_freqs, %{dims: dims} = block) do
    type = wide(x.type)
    features = Nx.axis_size(x, -1)
    angles = Nx.multiply(Nx.new_axis(positions(x, offsets, type, block), -1), inverse_freqs)
    {cos, sin} = {Nx.cos(angles), Nx.sin(angles)}

    wide = widen(x, type)
    part = &Nx.slice_along_axis(wide, &1, &2, axis: -1)
    {first, second} = split(part.(0, dims), block.traditional)
    one = Nx.subtract(Nx.multiply(first, cos), Nx.multiply(second, sin))
    other = Nx.add(Nx.multiply(first, sin), Nx.multiply(second, cos))
    rest = if dims < features, do: [part.(dims, features - dims)], else: []

    [join(one, other, block.traditional) | rest]
    |> Nx.concatenate(axis: -1)
    |> Nx.as_type(x.type)
  end

  # `{rows}`, or `{batch, 1, .., rows}` where each batch has an offset.
  defp positions(x, offsets, type, %{scale: scale, offset: offset}) do
    rank = tuple_size(x.shape)
    rows = Nx.iota({Nx.axis_size(x, -2)}, type: type)

    start =
      case offsets do
        [] ->
          scalar(offset, type)

        [%{shape: {}} = offset] ->
          Nx.as_type(offset, type)

        [offset] ->
          offset
          |> Nx.as_type(type)
          |> Nx.reshape(Tuple.duplicate(1, rank - 1) |> put_elem(0, :auto))
      end

    Nx.multiply(Nx.add(rows, start), scalar(scale, type))
  end

  defp split(x, false) do
    half = div(Nx.axis_size(x, -1), 2)
    {Nx.slice_along_axis(x, 0, half, axis: -1), Nx.slice_along_axis(x, half, half, axis: -1)}
  end

  defp split(x, true) do
    pairs =
      Nx.reshape(
        x,
        x.shape
        |> Tuple.to_list()
        |> List.replace_at(-1, [:auto, 2])
        |> List.flatten()
        |> List.to_tuple()
      )

    part = &(pairs |> Nx.slice_along_axis(&1, 1, axis: -1) |> Nx.squeeze(axes: [-1]))
    {part.(0), part.(1)}
  end

  defp join(first, second, false), do: Nx.concatenate([first, second], axis: -1)

  defp join(first, second, true) do
    pairs = Nx.stack([first, second], axis: -1)
    Nx.flatten(pairs, axes: [-2, -1])
  end

  ## The kernel

  def lower(e, block, out, x, offsets, freqs) do
    if type = kernel_type(e, [x.type | Enum.map(freqs, & &1.type)]) do
      attrs =
        block |> Map.take([:dims, :traditional, :scale]) |> Map.put(:base, Map.get(block, :base))

      input = Type.operand(e, x, type)
      freqs = Enum.map(freqs, &Type.operand(e, &1, {:f, 32}))

      rotated =
        case offsets do
          [] ->
            Emitter.emit(e, {:fast_rope_int, Map.put(attrs, :offset, block.offset)}, [
              input | freqs
            ])

          [offset] ->
            Emitter.emit(e, {:fast_rope, attrs}, [input, Emitter.input(e, offset) | freqs])
        end

      Type.cast(e, rotated, type, out.type)
    else
      :default
    end
  end
end
