for {name, extra} <- [
      SDPA: [],
      SDPAWithSinks: [:sinks],
      SDPAWithMask: [:mask],
      SDPAWithMaskAndSinks: [:mask, :sinks]
    ] do
  defmodule Module.concat(Emily.Fast.Block, name) do
    @moduledoc false
    # See Emily.Fast.Block.RMSNorm. The name tells which tensors follow q, k and v.
    defstruct [:scale, causal: false]

    @extra extra
    def lower(e, block, out, [q, k, v | rest]),
      do: Emily.Fast.Attention.lower(e, block, out, {q, k, v}, Enum.zip(@extra, rest))
  end
end

defmodule Emily.Fast.Attention do
  @moduledoc false

  # Scaled dot-product attention: the checks, the composition of Nx operations, and MLX's kernel.

  import Emily.Fast.Operand

  alias Emily.Emitter
  alias Emily.Fast.Block
  alias Emily.Lowering.Type

  @op "scaled_dot_product_attention"

  def call(q, k, v, nil, opts) do
    opts = Keyword.validate!(opts, [:scale, :sinks, causal: false])
    attend(q, k, v, nil, opts)
  end

  def call(q, k, v, mask, opts) do
    opts = Keyword.validate!(opts, [:scale, :sinks])
    attend(q, k, v, mask, opts)
  end

  def update_cache(cache, new, offset) do
    op = "kv_cache_update"
    {cache, new} = {Nx.to_tensor(cache), Nx.to_tensor(new)}

    case {cache.shape, new.shape} do
      {{b, h, max, d}, {b, h, t, d}} when t <= max ->
        offset =
          if is_integer(offset),
            do: offset,
            else: offset |> integer!(op, "offset") |> Nx.reshape({})

        Nx.put_slice(cache, [0, 0, offset, 0], Nx.as_type(new, cache.type))

      {cache, new} ->
        raise ArgumentError,
              "#{op}: expected a cache {batch, heads, max, depth} and new rows {batch, heads, t, depth} " <>
                "that fit, got: #{inspect(cache)} and #{inspect(new)}"
    end
  end

  def with_cache(q, k, v, k_cache, v_cache, offset, opts) do
    op = "kv_cache_attention"
    opts = Keyword.validate!(opts, [:scale, :sinks, :key_mask])
    {k_cache, v_cache} = {update_cache(k_cache, k, offset), update_cache(v_cache, v, offset)}
    q = float!(q, op, "q")
    if tuple_size(q.shape) != 4, do: shapes!(q.shape, k_cache.shape, v_cache.shape)
    {queries, max} = {elem(q.shape, 2), elem(k_cache.shape, 2)}

    last =
      Nx.add(
        Nx.iota({queries, 1}),
        if(is_integer(offset), do: offset, else: Nx.reshape(offset, {}))
      )

    seen = Nx.less_equal(Nx.iota({1, max}), last)

    seen =
      if key_mask = opts[:key_mask] do
        key_mask =
          key_mask |> integer!(op, "key_mask") |> shape!({elem(q.shape, 0), max}, op, "key_mask")

        Nx.logical_and(Nx.reshape(key_mask, {:auto, 1, 1, max}), seen)
      else
        seen
      end

    {attend(q, k_cache, v_cache, seen, Keyword.take(opts, [:scale, :sinks])), k_cache, v_cache}
  end

  defp attend(q, k, v, mask, opts) do
    {q, k, v} = {float!(q, @op, "q"), float!(k, @op, "k"), float!(v, @op, "v")}
    {batch, heads, queries, depth, keys, width} = shapes!(q.shape, k.shape, v.shape)
    scale = number!(opts[:scale] || 1 / :math.sqrt(depth), @op, :scale)
    causal = boolean!(Keyword.get(opts, :causal, false), @op, :causal)
    mask = if mask, do: [mask!(mask, {batch, heads, queries, keys})], else: []
    sinks = if opts[:sinks], do: [sinks!(opts[:sinks], heads)], else: []

    module =
      case {mask, sinks} do
        {[], []} -> Block.SDPA
        {[], [_]} -> Block.SDPAWithSinks
        {[_], []} -> Block.SDPAWithMask
        {[_], [_]} -> Block.SDPAWithMaskAndSinks
      end

    block = struct!(module, scale: scale, causal: causal)
    output = {{batch, heads, queries, width}, q.type}
    masked? = mask != []

    block(block, [q, k, v] ++ mask ++ sinks, output, fn [q, k, v | rest] ->
      {mask, sinks} = if masked?, do: Enum.split(rest, 1), else: {[], rest}
      composed(block, q, k, v, mask, sinks)
    end)
  end

  defp shapes!({b, h, t, d}, {b, n, s, d}, {b, n, s, w}) when rem(h, n) == 0,
    do: {b, h, t, d, s, w}

  defp shapes!(q, k, v) do
    raise ArgumentError,
          "#{@op}: expected q {batch, heads, queries, depth}, k {batch, kv_heads, keys, depth} and " <>
            "v {batch, kv_heads, keys, width} with heads divisible by kv_heads, " <>
            "got: #{inspect(q)}, #{inspect(k)} and #{inspect(v)}"
  end

  # Integers other than predicates are numbers to add.
  defp mask!(mask, scores) do
    mask = Nx.to_tensor(mask)

    mask =
      case mask.type do
        {:u, 8} -> mask
        {:c, _} -> float!(mask, @op, "mask")
        {kind, _} when kind in [:s, :u] -> Nx.as_type(mask, {:f, 32})
        _ -> mask
      end

    padded = List.duplicate(1, max(4 - tuple_size(mask.shape), 0)) ++ Tuple.to_list(mask.shape)

    fits? =
      length(padded) == 4 and
        Enum.zip_with(padded, Tuple.to_list(scores), &(&1 in [1, &2])) |> Enum.all?()

    unless fits? do
      raise ArgumentError,
            "#{@op}: expected a mask that broadcasts to #{inspect(scores)}, got: #{inspect(mask.shape)}"
    end

    mask |> unnamed() |> Nx.reshape(List.to_tuple(padded))
  end

  defp sinks!(sinks, heads) do
    sinks = sinks |> float!(@op, "sinks") |> unnamed()

    cond do
      sinks.shape in [{heads}, {heads, 1, 1}, {1, heads, 1, 1}] -> Nx.reshape(sinks, {heads})
      Nx.size(sinks) == 1 -> Nx.broadcast(Nx.reshape(sinks, {}), {heads})
      true -> shape!(sinks, {heads}, @op, "sinks")
    end
  end

  ## The composition

  defp composed(block, q, k, v, mask, sinks) do
    type = wide(Enum.reduce([q.type, k.type, v.type], &Nx.Type.merge/2))
    {batch, heads, queries, depth} = q.shape
    {_, groups, keys, width} = v.shape
    [q_wide, k, v] = Enum.map([q, k, v], &widen(&1, type))

    # The query heads of one key head lie side by side: they are more rows of one product.
    rows = div(heads, groups) * queries

    scores =
      q_wide
      |> Nx.multiply(scalar(block.scale, type))
      |> Nx.reshape({batch, groups, rows, depth})
      |> Nx.dot([3], [0, 1], k, [3], [0, 1])
      |> Nx.reshape({batch, heads, queries, keys})
      |> hide(causal(block, queries, keys) ++ mask, type)

    weights = softmax(scores, sinks, type)

    weights
    |> Nx.reshape({batch, groups, rows, keys})
    |> Nx.dot([3], [0, 1], v, [2], [0, 1])
    |> Nx.reshape({batch, heads, queries, width})
    |> Nx.as_type(q.type)
  end

  defp causal(%{causal: false}, _queries, _keys), do: []

  defp causal(%{causal: true}, queries, keys) do
    last = Nx.add(Nx.iota({1, 1, queries, 1}), keys - queries)
    [Nx.less_equal(Nx.iota({1, 1, 1, keys}), last)]
  end

  defp hide(scores, [], _type), do: scores

  defp hide(scores, [%{type: {:u, 8}} = seen], type) do
    hidden = Nx.Constants.min_finite(type)
    Nx.select(Nx.broadcast(seen, scores.shape), scores, hidden)
  end

  defp hide(scores, [mask], type), do: Nx.add(scores, widen(mask, type))

  defp softmax(scores, [], _type) do
    top = constant(Nx.reduce_max(scores, axes: [-1], keep_axes: true))
    exp = Nx.exp(Nx.subtract(scores, top))
    Nx.divide(exp, Nx.sum(exp, axes: [-1], keep_axes: true))
  end

  defp softmax(scores, [sinks], type) do
    sinks = sinks |> widen(type) |> Nx.reshape({1, :auto, 1, 1})
    top = constant(Nx.max(Nx.reduce_max(scores, axes: [-1], keep_axes: true), sinks))
    exp = Nx.exp(Nx.subtract(scores, top))
    total = Nx.add(Nx.sum(exp, axes: [-1], keep_axes: true), Nx.exp(Nx.subtract(sinks, top)))
    Nx.divide(exp, total)
  end

  # The softmax does not depend on what it subtracts. Outside of `defn` nothing is differentiated.
  defp constant(%Nx.Tensor{data: %Nx.Defn.Expr{}} = top), do: Nx.Defn.Kernel.stop_grad(top)
  defp constant(top), do: top

  ## The kernel

  def lower(e, block, out, {q, k, v}, extra) do
    if type = kernel_type(e, [q.type, k.type, v.type]) do
      inputs = Enum.map([q, k, v], &Type.operand(e, &1, type))
      mask = if mask = extra[:mask], do: mask(e, mask, type)
      sinks = if sinks = extra[:sinks], do: Type.operand(e, sinks, type)

      attention =
        Emitter.emit(
          e,
          {:fast_scaled_dot_product_attention, Map.take(block, [:scale, :causal])},
          inputs ++ [mask, sinks]
        )

      Type.cast(e, attention, type, out.type)
    else
      :default
    end
  end

  defp mask(e, %{type: {:u, 8}} = mask, _type),
    do: Type.astype(e, Emitter.input(e, mask), {:pred, 1})

  defp mask(e, mask, type), do: Type.operand(e, mask, type)
end
