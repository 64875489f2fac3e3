defmodule Emily.Generation.Sampling do
  @moduledoc """
  Drawing the next token from a model's logits, traceable inside `defn`.

  `Emily.Generation.stream/2` draws with these functions inside its compiled step. They are public for a
  model's own loop, and for the token that follows a prompt:

      key = Nx.Random.fold_in(Nx.Random.key(42), position)
      Emily.Generation.Sampling.sample(logits, key, temperature: 0.7, top_p: 0.9)

  None of them sorts. The least likely token to keep is found by bisection on the bits of its
  probability, which takes 30 passes over the vocabulary whatever its size, on any device; of tokens that
  are exactly as likely as that one, all are kept.
  """

  import Nx.Defn

  @options [temperature: 1.0, top_k: nil, top_p: nil, min_p: nil]

  # The bits of 1.0 in f32: floats from zero up are ordered as their bits are.
  @one_bits 0x3F800000

  @doc false
  def options, do: Keyword.keys(@options)

  @doc """
  Draws a token of each row of `logits`, `{..., vocabulary}`, floats. Returns s32, `{...}`.

  `key` is an `Nx.Random` key; the same one gives the same tokens. All rows draw from it, each by a random
  number of its own.

  The options work in this order, each on what the one before it has left:

    * `:temperature` - divides the logits; 1.0 by default. With 0 the most likely token is taken and the
      other options do nothing.
    * `:top_k` - keeps the `top_k` most likely tokens.
    * `:top_p` - keeps the fewest most likely tokens that together are at least as likely as `top_p`
      (nucleus sampling, Holtzman et al. 2020).
    * `:min_p` - keeps the tokens at least `min_p` times as likely as the most likely one (Nguyen et al.
      2024).

  Raises ArgumentError for an unknown option, one out of its range, and logits without an axis.
  """
  deftransform sample(logits, key, options \\ []) do
    options = validate!(options)
    {rows, vocabulary, shape} = rows!(logits)

    uniforms =
      if greedy?(options), do: nil, else: Nx.Random.uniform_split(key, 0.0, 1.0, shape: {rows})

    logits |> Nx.reshape({rows, vocabulary}) |> draw(uniforms, options) |> Nx.reshape(shape)
  end

  @doc """
  Makes the tokens `ids`, s32 `{..., count}`, less likely in `logits`, floats `{..., vocabulary}`.

  Positive logits are divided by `penalty`, negative ones multiplied (Keskar et al. 2019), once however often a
  token occurs. Negative ids stand for no token. Returns logits of the same shape and type.

  Raises ArgumentError for a penalty that is not positive, and leading axes that differ.
  """
  deftransform penalize(logits, ids, penalty) do
    unless is_number(penalty) and penalty > 0 do
      raise ArgumentError,
            "penalize: expected a penalty above 0, got: #{inspect(penalty)}"
    end

    {rows, vocabulary, leading} = rows!(logits)
    ids = Nx.as_type(ids, :s32)

    unless Nx.rank(ids) > 0 and Tuple.delete_at(ids.shape, Nx.rank(ids) - 1) == leading do
      raise ArgumentError,
            "penalize: expected ids of shape #{inspect(leading)} and one axis more, " <>
              "got: #{inspect(ids.shape)}"
    end

    flat = Nx.reshape(logits, {rows, vocabulary})
    seen = seen(Nx.reshape(ids, {rows, :auto}), vocabulary)

    penalized =
      Nx.select(
        Nx.greater(flat, 0),
        Nx.divide(flat, penalty),
        Nx.multiply(flat, penalty)
      )

    Nx.select(seen, penalized, flat) |> Nx.as_type(logits.type) |> Nx.reshape(logits.shape)
  end

  # One more column takes the ids that stand for no token.
  defp seen(ids, vocabulary) do
    {rows, count} = ids.shape
    row = Nx.iota({rows, count}, axis: 0, type: :s32)
    column = Nx.select(Nx.less(ids, 0), vocabulary, ids)
    indices = Nx.stack([Nx.reshape(row, {:auto}), Nx.reshape(column, {:auto})], axis: 1)

    Nx.broadcast(Nx.u8(0), {rows, vocabulary + 1})
    |> Nx.indexed_put(indices, Nx.broadcast(Nx.u8(1), {rows * count}))
    |> Nx.slice_along_axis(0, vocabulary, axis: 1)
  end

  defp rows!(%{shape: shape}) when tuple_size(shape) > 0 do
    leading = Tuple.delete_at(shape, tuple_size(shape) - 1)
    {Tuple.product(leading), elem(shape, tuple_size(shape) - 1), leading}
  end

  defp rows!(_scalar),
    do: raise(ArgumentError, "expected logits with an axis for the vocabulary, got a scalar")

  @doc false
  # Tokens, s32 `{rows}`, of logits `{rows, vocabulary}` and one number from 0 to below 1 for each row.
  def draw(logits, uniforms, options) do
    if greedy?(options) do
      Nx.argmax(logits, axis: -1, type: :s32)
    else
      {rows, vocabulary} = logits.shape
      cumulative = logits |> probabilities(options) |> Nx.cumulative_sum(axis: -1)
      total = Nx.slice_along_axis(cumulative, vocabulary - 1, 1, axis: -1)

      # The first that is exceeded belongs to a token that was kept: what was not adds nothing.
      cumulative
      |> Nx.greater(Nx.multiply(Nx.reshape(uniforms, {rows, 1}), total))
      |> Nx.argmax(axis: -1, tie_break: :low, type: :s32)
    end
  end

  # Not normalised: the greatest is 1.
  defp probabilities(logits, options) do
    scaled = logits |> Nx.as_type(:f32) |> Nx.divide(options[:temperature])
    greatest = Nx.reduce_max(scaled, axes: [-1], keep_axes: true)

    Nx.exp(Nx.subtract(scaled, greatest))
    |> keep_top_k(options[:top_k])
    |> keep_top_p(options[:top_p])
    |> keep_min_p(options[:min_p])
  end

  defp keep_top_k(p, nil), do: p
  defp keep_top_k(%{shape: {_rows, size}} = p, k) when k >= size, do: p
  defp keep_top_k(p, k), do: keep_most_likely(p, Nx.broadcast(Nx.f32(1.0), p), k)

  defp keep_top_p(p, top_p) when top_p in [nil, 1, 1.0], do: p

  defp keep_top_p(p, top_p) do
    total = Nx.sum(p, axes: [-1], keep_axes: true)
    keep_most_likely(p, p, Nx.multiply(total, top_p))
  end

  defp keep_min_p(p, nil), do: p
  defp keep_min_p(p, min_p), do: Nx.select(Nx.greater_equal(p, min_p), p, Nx.f32(0.0))

  # Keeps the fewest most likely tokens whose weights together reach `target`. `low` are the bits of a
  # probability that is low enough and `high` of one that is too high, until they are neighbours.
  defp keep_most_likely(%{shape: {rows, _}} = p, weights, target) do
    bits = Nx.bitcast(p, :s32)
    low = Nx.broadcast(Nx.s32(0), {rows, 1})
    high = Nx.broadcast(Nx.s32(@one_bits + 1), {rows, 1})

    {low, _high} =
      Enum.reduce(1..30, {low, high}, fn _, {low, high} ->
        middle = Nx.right_shift(Nx.add(low, high), 1)
        kept = Nx.select(Nx.greater_equal(bits, middle), weights, Nx.f32(0.0))
        enough? = Nx.greater_equal(Nx.sum(kept, axes: [-1], keep_axes: true), target)
        {Nx.select(enough?, middle, low), Nx.select(enough?, high, middle)}
      end)

    Nx.select(Nx.greater_equal(bits, low), p, Nx.f32(0.0))
  end

  @doc false
  # The bytes of f32 numbers from 0 to below 1, one binary for each of `count` positions: a number for each
  # seed, drawn from the seed's key folded with the position. So a text does not depend on how many
  # tokens it may have, nor on the requests beside it.
  def uniforms(seeds, offsets, count) do
    columns =
      for {seed, offset} <- Enum.zip(seeds, offsets) do
        for <<number::binary-4 <- Nx.to_binary(row(seed, offset, count))>>, do: number
      end

    Enum.zip_with(columns, &IO.iodata_to_binary/1)
  end

  # Computed ahead of the tokens, so that the step does not contain a random number generator.
  defp row(seed, offset, count) do
    Nx.with_default_backend(Nx.BinaryBackend, fn ->
      draw = fn seed, offset ->
        positions = Nx.add(Nx.iota({count}, type: :s64), offset)

        seed
        |> Nx.Random.key()
        |> Nx.Random.fold_in(positions)
        |> Nx.vectorize(:position)
        |> Nx.Random.uniform_split(0.0, 1.0, shape: {1})
      end

      arguments = [Nx.tensor(seed, type: :s64), Nx.tensor(offset, type: :s64)]
      Nx.Defn.jit_apply(draw, arguments, compiler: Nx.Defn.Evaluator)
    end)
  end

  ## Options

  @doc false
  def validate!(options) do
    options = Keyword.validate!(options, @options)
    check!(options, :temperature, "a number from 0", &(is_number(&1) and &1 >= 0))
    check!(options, :top_k, "an integer from 1", &(is_integer(&1) and &1 >= 1))

    check!(
      options,
      :top_p,
      "a number above 0, at most 1",
      &(is_number(&1) and &1 > 0 and &1 <= 1)
    )

    check!(options, :min_p, "a number from 0 to 1", &(is_number(&1) and &1 >= 0 and &1 <= 1))
    options
  end

  defp check!(options, name, expected, valid?) do
    value = options[name]

    unless valid?.(value) or (value == nil and name != :temperature) do
      raise ArgumentError, "#{inspect(name)}: expected #{expected}, got: #{inspect(value)}"
    end
  end

  @doc false
  def greedy?(options), do: options[:temperature] == 0
end
