defmodule SmolLM2.Model do
  @moduledoc """
  SmolLM2, a Llama of 135 million parameters, written with `Emily.Native` alone.

  The weights are prepared once by `new/3` and then shared: a model is a struct of references to tensors,
  so handing it to another process copies no weight, and any number of processes, each with a stream
  of its own, may call `next_token/4` at the same time.

  Two modes say what the products compute with:

    * `:dequantized` - weights in f32, 540 MB. The faster one on a CPU.
    * `:quantized` - the packed weights as the file has them, 4 and 8 bits an element, 120 MB.

  Activations are f32 in both. The same model in Python is bench/reference/smollm2.py.
  """

  alias Emily.Native

  @enforce_keys [:heads, :kv_heads, :head_dim, :eps, :rope_base, :embedding, :layers, :norm]
  defstruct @enforce_keys

  @type t :: %__MODULE__{}
  @type mode :: :dequantized | :quantized
  @typedoc "Keys and values of each layer, `{1, kv_heads, length, head_dim}`; nil before the first token."
  @type cache :: [{Native.tensor(), Native.tensor()}] | nil

  # Elements that share a scale in GGUF's Q4 and Q8 formats.
  @group 32
  @products [:attn_q, :attn_k, :attn_v, :attn_output, :ffn_gate, :ffn_up, :ffn_down]

  @doc """
  Prepares the weights of a GGUF file, as `Emily.load/1` returns it, on worker `w`.
  """
  @spec new(Native.worker(), %{tensors: map, metadata: map}, mode) :: t
  def new(w, %{tensors: tensors, metadata: metadata}, mode)
      when mode in [:dequantized, :quantized] do
    %__MODULE__{
      heads: number(w, metadata, "llama.attention.head_count"),
      kv_heads: number(w, metadata, "llama.attention.head_count_kv"),
      head_dim: number(w, metadata, "llama.rope.dimension_count"),
      eps: number(w, metadata, "llama.attention.layer_norm_rms_epsilon"),
      rope_base: number(w, metadata, "llama.rope.freq_base"),
      embedding: embedding(w, packed(w, tensors, "token_embd"), mode),
      layers:
        for(i <- 1..number(w, metadata, "llama.block_count"), do: layer(w, tensors, i - 1, mode)),
      norm: tensors["output_norm.weight"]
    }
  end

  @doc """
  The token that follows `ids`, a u32 tensor `{length}`, and the cache with their keys and values.

  Returns `{id, cache}`, both lazy: `id` is a u32 tensor `{1}` that can be the next call's `ids`.
  """
  @spec next_token(Native.worker(), t, Native.tensor(), cache) :: {Native.tensor(), cache}
  def next_token(w, model, ids, cache) do
    [length] = Native.shape(ids)
    x = Native.expand_dims(w, rows(w, model.embedding, ids), [0])

    {x, cache} =
      model.layers
      |> Enum.zip(cache || Stream.cycle([nil]))
      |> Enum.reduce({x, []}, fn {layer, cached}, {x, grown} ->
        {x, kv} = attention(w, model, layer, x, length, cached)
        {feed_forward(w, model, layer, x), [kv | grown]}
      end)

    width = x |> Native.shape() |> List.last()
    last = Native.slice(w, x, [0, length - 1, 0], [1, length, width], [1, 1, 1])
    normed = Native.fast_rms_norm(w, last, model.norm, model.eps)
    id = Native.argmax(w, logits(w, model.embedding, normed), -1, false)
    {Native.reshape(w, id, [1]), Enum.reverse(cache)}
  end

  ## A layer

  defp attention(w, model, layer, x, length, cached) do
    %{heads: heads, kv_heads: kv_heads, head_dim: head_dim} = model
    h = Native.fast_rms_norm(w, x, layer.attn_norm, model.eps)
    offset = if cached, do: cached |> elem(0) |> Native.shape() |> Enum.at(2), else: 0

    q = split_heads(w, product(w, h, layer.attn_q), length, heads, head_dim)
    k = split_heads(w, product(w, h, layer.attn_k), length, kv_heads, head_dim)
    v = split_heads(w, product(w, h, layer.attn_v), length, kv_heads, head_dim)
    q = Native.fast_rope_int(w, q, head_dim, true, model.rope_base, 1.0, offset, nil)
    k = Native.fast_rope_int(w, k, head_dim, true, model.rope_base, 1.0, offset, nil)
    {k, v} = append(w, cached, k, v)

    # One query sees everything before it, several must not see what follows them.
    mask = if length > 1, do: "causal", else: ""
    scale = 1 / :math.sqrt(head_dim)
    attended = Native.fast_scaled_dot_product_attention(w, q, k, v, scale, mask, [], [])

    joined = Native.transpose(w, attended, [0, 2, 1, 3])
    joined = Native.reshape(w, joined, [1, length, heads * head_dim])
    {Native.add(w, x, product(w, joined, layer.attn_output)), {k, v}}
  end

  defp feed_forward(w, model, layer, x) do
    h = Native.fast_rms_norm(w, x, layer.ffn_norm, model.eps)
    gate = product(w, h, layer.ffn_gate)
    silu = Native.multiply(w, gate, Native.sigmoid(w, gate))
    inner = Native.multiply(w, silu, product(w, h, layer.ffn_up))
    Native.add(w, x, product(w, inner, layer.ffn_down))
  end

  defp split_heads(w, t, length, heads, head_dim) do
    t = Native.reshape(w, t, [1, length, heads, head_dim])
    Native.transpose(w, t, [0, 2, 1, 3])
  end

  # Copies what is there: updating a buffer of the full length in place would need this process to have
  # no other reference to it, and copies all of it otherwise.
  defp append(_w, nil, k, v), do: {k, v}

  defp append(w, {keys, values}, k, v) do
    {Native.concatenate(w, [keys, k], 2), Native.concatenate(w, [values, v], 2)}
  end

  ## Weights

  defp product(w, x, {:dense, matrix}), do: Native.matmul(w, x, matrix)

  defp product(w, x, {:packed, weight, scales, biases, bits}) do
    Native.quantized_matmul(w, x, weight, scales, biases, true, @group, bits, "affine")
  end

  # The table of the tokens is the last product's weight too.
  defp rows(w, {:dense, table, _transposed}, ids), do: Native.take(w, table, ids, 0)

  defp rows(w, {:packed, weight, scales, biases, bits}, ids) do
    [weight, scales, biases] =
      for part <- [weight, scales, biases], do: Native.take(w, part, ids, 0)

    Native.dequantize(w, weight, scales, biases, @group, bits, "affine")
  end

  defp logits(w, {:dense, _table, transposed}, x), do: Native.matmul(w, x, transposed)
  defp logits(w, packed, x), do: product(w, x, packed)

  defp layer(w, tensors, index, mode) do
    products =
      for name <- @products,
          do: {name, linear(w, packed(w, tensors, "blk.#{index}.#{name}"), mode)}

    norms =
      for name <- [:attn_norm, :ffn_norm], do: {name, tensors["blk.#{index}.#{name}.weight"]}

    # The dense weights that were transposed, of which the BEAM sees some words each.
    :erlang.garbage_collect()
    Map.new(products ++ norms)
  end

  # Scales are f16 in the file. In f32 a CPU is 30 times as fast.
  defp packed(w, tensors, name) do
    [weight, scales, biases] =
      for part <- ~w(weight scales biases), do: tensors["#{name}.#{part}"]

    [_rows, words] = Native.shape(weight)
    [_rows, groups] = Native.shape(scales)
    bits = div(words * 32, groups * @group)

    [scales, biases] =
      for part <- [scales, biases], do: prepared(w, Native.astype(w, part, {:f, 32}))

    {:packed, weight, scales, biases, bits}
  end

  # Computed now, so that nothing is left for the first of several streams to do for the others, and
  # what it was computed from can be freed.
  defp prepared(w, tensor) do
    Native.eval(w, tensor)
    tensor
  end

  # Transposed in memory, so that a product reads the weight in the order in which it lies.
  defp linear(w, packed, :dequantized) do
    transposed = Native.transpose(w, dequantize(w, packed), [1, 0])
    {:dense, prepared(w, Native.contiguous(w, transposed))}
  end

  defp linear(_w, packed, :quantized), do: packed

  # Rows are looked up in the table as it is; its transpose is a view of the same memory.
  defp embedding(w, packed, :dequantized) do
    table = prepared(w, dequantize(w, packed))
    {:dense, table, prepared(w, Native.transpose(w, table, [1, 0]))}
  end

  defp embedding(_w, packed, :quantized), do: packed

  defp dequantize(w, {:packed, weight, scales, biases, bits}) do
    Native.dequantize(w, weight, scales, biases, @group, bits, "affine")
  end

  defp number(w, metadata, name) do
    tensor = Map.fetch!(metadata, name)

    case {Native.dtype(tensor), Native.to_binary(w, tensor)} do
      {{:u, 32}, <<number::unsigned-32-native>>} -> number
      {{:f, 32}, <<number::float-32-native>>} -> number
    end
  end
end
