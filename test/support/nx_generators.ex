defmodule Emily.NxGenerators do
  @moduledoc """
  Generators of tensors on `Nx.BinaryBackend`.

  Axes are at most four long and there are at most four of them: the oracle is written in Elixir, and
  what goes wrong with shapes goes wrong with small ones. Nx has no empty axes.
  """

  import StreamData

  @integers [u: 8, u: 16, u: 32, u: 64, s: 8, s: 16, s: 32, s: 64]
  @floats [f: 16, bf: 16, f: 32, f: 64]

  def integers, do: @integers
  def signed, do: Enum.filter(@integers, &match?({:s, _}, &1))
  def floats, do: Emily.TestDevice.types(@floats)
  def reals, do: @integers ++ floats()
  def types, do: reals() ++ [{:c, 64}]

  @doc "A shape, with size 1 more often than chance would have it."
  def shape(ranks \\ 0..4) do
    size = frequency([{1, constant(1)}, {3, integer(1..4)}])

    bind(integer(ranks), fn rank ->
      map(list_of(size, length: rank), &List.to_tuple/1)
    end)
  end

  @doc """
  A tensor. Options: `:type` or `:types`, `:shape` (a shape or a generator), `:range` of the numbers,
  `:special` to have NaNs and infinities among floats, `:names`.
  """
  def tensor(opts \\ []) do
    types = if opts[:type], do: [opts[:type]], else: opts[:types] || types()
    shapes = opts[:shape] || shape()
    shapes = if is_tuple(shapes), do: constant(shapes), else: shapes

    bind(tuple({member_of(types), shapes}), fn {type, shape} ->
      elements = list_of(number(type, opts), length: Tuple.product(shape))

      bind(tuple({elements, names(shape, opts)}), fn {numbers, names} ->
        constant(build(numbers, type, shape, names))
      end)
    end)
  end

  @doc "Tensors of one shape and one type."
  def tensors(count, opts) do
    types = if opts[:type], do: [opts[:type]], else: opts[:types] || types()

    bind(tuple({member_of(types), opts[:shape] || shape()}), fn {type, shape} ->
      list_of(tensor(Keyword.merge(opts, type: type, shape: shape)), length: count)
    end)
  end

  @doc "A pair of tensors whose shapes broadcast and whose types may differ."
  def broadcastable(opts) do
    bind(shape(), fn shape ->
      sizes = Tuple.to_list(shape)
      part = bind(integer(0..length(sizes)), &shrunk(Enum.drop(sizes, &1)))
      tuple({tensor([shape: part] ++ opts), tensor([shape: shape] ++ opts), boolean()})
    end)
    |> map(fn {a, b, swap?} -> if swap?, do: {b, a}, else: {a, b} end)
  end

  defp shrunk(sizes) do
    map(list_of(boolean(), length: length(sizes)), fn ones ->
      Enum.zip_with(sizes, ones, &if(&2, do: 1, else: &1)) |> List.to_tuple()
    end)
  end

  @doc "A number of a type."
  def number(type, opts \\ [])

  def number({kind, bits}, opts) when kind in [:s, :u] do
    {least, greatest} = limits({kind, bits})
    {low, high} = opts[:range] || {least, greatest}
    {low, high} = {max(ceil(low), least), min(floor(high), greatest)}

    frequency([
      {4, integer(max(low, -5)..min(high, 5)//1)},
      {2, integer(low..high//1)},
      {1, member_of([low, high])}
    ])
  end

  def number({:c, _}, opts) do
    map(tuple({number({:f, 32}, opts), number({:f, 32}, opts)}), fn {re, im} ->
      Complex.new(re, im)
    end)
  end

  def number({_, _}, opts) do
    {low, high} = opts[:range] || {-9.0, 9.0}
    whole = map(integer(ceil(low)..floor(high)), &(&1 * 1.0))
    # Multiples of 1/64 are exact in every float type as long as they are this small.
    fine = map(integer(ceil(low * 64)..floor(high * 64)), &(&1 / 64))
    special = if opts[:special], do: [{1, member_of([:nan, :infinity, :neg_infinity])}], else: []
    frequency([{2, whole}, {2, fine}] ++ special)
  end

  defp limits({:s, bits}), do: {-Integer.pow(2, bits - 1), Integer.pow(2, bits - 1) - 1}
  defp limits({:u, bits}), do: {0, Integer.pow(2, bits) - 1}

  defp names(shape, opts) do
    rank = tuple_size(shape)
    all = Enum.take([:a, :b, :c, :d], rank)

    if opts[:names],
      do: member_of([List.duplicate(nil, rank), all]),
      else: constant(List.duplicate(nil, rank))
  end

  defp build(numbers, type, shape, names) do
    numbers
    |> Nx.tensor(type: type, backend: Nx.BinaryBackend)
    |> Nx.reshape(shape, names: names)
  end
end
