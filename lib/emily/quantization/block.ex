defmodule Emily.Quantization.Block.Dequantize do
  @moduledoc false
  # A dense weight; the tensors are the packed value, the scales and, for affine, the biases.
  # `Emily.Lowering.Block` calls `lower/4`.
  defstruct [:mode, :group_size, :bits]

  import Emily.Fast.Operand

  alias Emily.Emitter
  alias Emily.Lowering.Type
  alias Emily.Quantization.{Scheme, Unpack}

  @doc "The weight in a type, which is its own unless it is a wider one."
  def call(scheme, [value, scales | biases], type) do
    block = struct!(__MODULE__, Scheme.attrs(scheme))
    {rows, [words]} = value.shape |> Tuple.to_list() |> Enum.split(-1)
    shape = List.to_tuple(rows ++ [div(words * 32, block.bits)])

    block(block, [value, scales | biases], {shape, type}, fn [value, scales | biases] ->
      Unpack.dense(value, scales, biases, block, type)
    end)
  end

  def lower(e, block, out, [value, scales | biases]) do
    own = if biases == [], do: {:bf, 16}, else: kernel_type(e, [out.type])

    cond do
      own == nil ->
        :default

      biases == [] ->
        emit(e, block, [Emitter.input(e, value), Emitter.input(e, scales)], own, out.type)

      true ->
        parts = Enum.map([scales | biases], &Type.operand(e, &1, own))
        emit(e, block, [Emitter.input(e, value) | parts], own, out.type)
    end
  end

  defp emit(e, block, inputs, own, type),
    do: Type.cast(e, Emitter.emit(e, {:dequantize, Scheme.attrs(block)}, inputs), own, type)
end

defmodule Emily.Quantization.Block.QuantizedMatmul do
  @moduledoc false
  # A product with a quantised weight: x and the weight's tensors.
  defstruct [:mode, :group_size, :bits, :transpose]

  import Emily.Fast.Operand

  alias Emily.Emitter
  alias Emily.Lowering.Type
  alias Emily.Quantization.Block.Dequantize
  alias Emily.Quantization.Scheme

  @op "quantized_matmul"

  # With several weights x has the axes of theirs, which MLX wants, and a vector is a row.
  def call(x, weight, [value | _] = parts, type) do
    rank_at_least!(x, 1, @op, "x")
    last = last_axis!(@op, x, weight, value)
    {rank, sizes} = {tuple_size(value.shape), Tuple.to_list(x.shape)}

    if rank > 2 and length(sizes) < rank do
      lead = List.duplicate(1, rank - length(sizes))

      rows =
        x
        |> unnamed()
        |> Nx.reshape(List.to_tuple(lead ++ sizes))
        |> product(weight, parts, type, last)

      if length(sizes) == 1, do: Nx.squeeze(rows, axes: [-2]), else: rows
    else
      product(x, weight, parts, type, last)
    end
  end

  defp product(x, weight, parts, type, last) do
    block =
      struct!(__MODULE__, [transpose: weight.transpose] ++ Map.to_list(Scheme.attrs(weight)))

    block(block, [x | parts], {shape(x, hd(parts), last), type}, fn [x | parts] ->
      wide = wide(type)
      dense = Dequantize.call(weight, widened(parts, wide), wide)
      Nx.as_type(multiply(widen(x, wide), dense, weight.transpose), type)
    end)
  end

  @doc "The parts of an affine weight so that it is dense in a type without an intermediate rounding."
  def widened([value, scales, biases], wide),
    do: [value, widen(scales, wide), widen(biases, wide)]

  def widened(parts, _wide), do: parts

  @doc "The size of a product's last axis; x must have the other of the weight's."
  def last_axis!(op, x, weight, value) do
    {rows, k} = {Nx.axis_size(value, -2), div(Nx.axis_size(value, -1) * 32, weight.bits)}
    {contracted, last} = if weight.transpose, do: {k, rows}, else: {rows, k}

    if Nx.axis_size(x, -1) != contracted do
      raise ArgumentError,
            "#{op}: expected x with a last axis of #{contracted}, got: #{inspect(x.shape)}"
    end

    last
  end

  defp shape(x, value, last) do
    batch = &(&1 |> Tuple.to_list() |> Enum.drop(-2))

    if tuple_size(value.shape) == 2 do
      put_elem(x.shape, tuple_size(x.shape) - 1, last)
    else
      common = broadcast!(batch.(x.shape), batch.(value.shape), x, value)
      List.to_tuple(common ++ [Nx.axis_size(x, -2), last])
    end
  end

  defp broadcast!(a, b, x, value) do
    rank = max(length(a), length(b))
    [a, b] = for sizes <- [a, b], do: List.duplicate(1, rank - length(sizes)) ++ sizes

    unless Enum.zip_with(a, b, &(&1 == &2 or 1 in [&1, &2])) |> Enum.all?() do
      raise ArgumentError,
            "#{@op}: expected batch axes that broadcast, got x #{inspect(x.shape)} and a packed " <>
              "value #{inspect(value.shape)}"
    end

    Enum.zip_with(a, b, &max/2)
  end

  defp multiply(x, dense, transpose) when tuple_size(dense.shape) == 2,
    do: Nx.dot(x, [-1], dense, [if(transpose, do: 1, else: 0)])

  defp multiply(x, dense, transpose) do
    batch = &(&1.shape |> Tuple.to_list() |> Enum.drop(-2))
    common = broadcast!(batch.(x), batch.(dense), x, dense)

    spread = fn t ->
      Nx.broadcast(t, List.to_tuple(common ++ Enum.take(Tuple.to_list(t.shape), -2)))
    end

    axes = Enum.to_list(0..(length(common) - 1))
    Nx.dot(spread.(x), [-1], axes, spread.(dense), [if(transpose, do: -1, else: -2)], axes)
  end

  def lower(e, block, out, [x, value | parts]) do
    with true <- out.type in [{:f, 32}, {:f, 16}, {:bf, 16}] do
      attrs = block |> Scheme.attrs() |> Map.put(:transpose, block.transpose)
      parts = Enum.map([value | parts], &Emitter.input(e, &1))
      Emitter.emit(e, {:quantized_matmul, attrs}, [Type.operand(e, x, out.type) | parts])
    else
      false -> :default
    end
  end
end

defmodule Emily.Quantization.Block.GatherQuantizedMatmul do
  @moduledoc false
  # Products of matrices with quantised weights, each picked by an index: x, the index tensors that
  # there are, and the weights' tensors.
  defstruct [:mode, :group_size, :bits, :transpose, :sorted, :picks]

  import Emily.Fast.Operand

  alias Emily.Emitter
  alias Emily.Lowering.Type
  alias Emily.Quantization.Block.{Dequantize, QuantizedMatmul}
  alias Emily.Quantization.Scheme

  @op "gather_quantized_matmul"

  def call(x, weight, parts, indices, sorted, type) do
    block =
      struct!(
        __MODULE__,
        [transpose: weight.transpose, sorted: sorted, picks: Keyword.keys(indices)] ++
          Map.to_list(Scheme.attrs(weight))
      )

    value = hd(parts)
    rank_at_least!(x, 2, @op, "x")
    last = QuantizedMatmul.last_axis!(@op, x, weight, value)

    picked =
      Nx.Shape.binary_broadcast(
        shape(indices[:x], x),
        names(indices[:x], x),
        shape(indices[:weight], value),
        names(indices[:weight], value)
      )

    output = List.to_tuple(Tuple.to_list(elem(picked, 0)) ++ [Nx.axis_size(x, -2), last])

    block(block, [x] ++ Keyword.values(indices) ++ parts, {output, type}, fn [x | rest] ->
      {indices, parts} = Enum.split(rest, length(block.picks))
      composed(x, Enum.zip(block.picks, indices), parts, weight, output, type)
    end)
  end

  # Without indices the matrices are taken in their order.
  defp shape(nil, matrices),
    do: matrices.shape |> Tuple.to_list() |> Enum.drop(-2) |> List.to_tuple()

  defp shape(indices, _matrices), do: indices.shape
  defp names(indices, matrices), do: List.duplicate(nil, tuple_size(shape(indices, matrices)))

  defp composed(x, indices, parts, weight, output, type) do
    wide = wide(type)
    dense = Dequantize.call(weight, QuantizedMatmul.widened(parts, wide), wide)
    picked = output |> Tuple.to_list() |> Enum.drop(-2) |> List.to_tuple()

    [x, dense] =
      for {matrices, indices} <- [{widen(x, wide), indices[:x]}, {dense, indices[:weight]}] do
        indices = indices || Nx.iota(shape(nil, matrices))
        {rows, columns} = {Nx.axis_size(matrices, -2), Nx.axis_size(matrices, -1)}
        matrices = Nx.reshape(matrices, {:auto, rows, columns})
        Nx.take(matrices, indices |> Nx.broadcast(picked) |> Nx.reshape({:auto}), axis: 0)
      end

    Nx.dot(x, [2], [0], dense, [if(weight.transpose, do: 2, else: 1)], [0])
    |> Nx.reshape(output)
    |> Nx.as_type(type)
  end

  def lower(e, block, out, [x | rest]) do
    if out.type in [{:f, 32}, {:f, 16}, {:bf, 16}] do
      {indices, parts} = Enum.split(rest, length(block.picks))
      indices = block.picks |> Enum.zip(Enum.map(indices, &Emitter.input(e, &1))) |> Map.new()
      [value, scales | biases] = Enum.map(parts, &Emitter.input(e, &1))
      attrs = block |> Scheme.attrs() |> Map.merge(Map.take(block, [:transpose, :sorted]))
      x = Type.operand(e, x, out.type)
      inputs = [x, value, scales, List.first(biases), indices[:x], indices[:weight]]
      Emitter.emit(e, {:gather_qmm, attrs}, inputs)
    else
      :default
    end
  end
end
