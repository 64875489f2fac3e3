defmodule SmolLM2.Nx.Model do
  @moduledoc """
  SmolLM2, a Llama of 135 million parameters, as numerical definitions over `Nx` and `Emily.Fast`.

  The weights are those that `SmolLM2.Model` prepares: `from_native/1` makes Nx tensors of its references
  and copies none of them. Two functions are to be compiled:

    * `prefill/4` reads a prompt in one go and makes the cache;
    * `decode/5` reads one token, as `Emily.Generation.stream/2` asks for.

  The cache has room for a fixed number of positions, so that all steps have the same shapes.
  """

  alias Emily.{Fast, Quantization, QuantizedWeight}

  @enforce_keys [:heads, :kv_heads, :head_dim, :eps, :rope_base]
  defstruct @enforce_keys

  @typedoc "Sizes and constants, which are fixed when a function is compiled."
  @type t :: %__MODULE__{}

  @typedoc "Keys and values of each layer, f32 `{1, kv_heads, positions, head_dim}`."
  @type cache :: tuple

  @doc """
  The model's sizes and its weights, as Nx tensors that share the memory of the native model's.
  """
  @spec from_native(SmolLM2.Model.t()) :: {t, map}
  def from_native(%SmolLM2.Model{} = native) do
    layers = for layer <- native.layers, do: Map.new(layer, fn {k, v} -> {k, weight(v)} end)

    params = %{
      embedding: weight(native.embedding),
      layers: List.to_tuple(layers),
      norm: weight(native.norm)
    }

    {struct!(__MODULE__, Map.take(native, @enforce_keys)), params}
  end

  # Elements that share a scale in GGUF's formats.
  @group 32

  defp weight(norm) when is_reference(norm), do: Emily.to_nx(norm)
  defp weight({:dense, matrix}), do: Emily.to_nx(matrix)
  defp weight({:dense, table, _transposed}), do: Emily.to_nx(table)

  defp weight({:packed, value, scales, biases, bits}),
    do: QuantizedWeight.from_parts(value, scales, biases, group_size: @group, bits: bits)

  @doc """
  The cache of a prompt, with room for so many positions.

  `ids` is s32 `{n}`, `n` at most `positions`: the prompt, and anything behind it, which the prompt does not
  see and `decode/5` writes over. So one compiled function serves prompts of different lengths.
  """
  @spec prefill(t, Nx.Tensor.t(), map, pos_integer) :: cache
  def prefill(model, ids, params, positions) do
    x = params.embedding |> rows(ids) |> Nx.new_axis(0)

    {_x, cache} =
      layers(model, params, x, nil, fn q, k, v, nil ->
        {q, k} = {rope(model, q, 0), rope(model, k, 0)}
        attended = Fast.scaled_dot_product_attention(q, k, v, causal: true)
        {attended, {room(k, positions), room(v, positions)}}
      end)

    cache
  end

  defp room(rows, positions) do
    {1, heads, _count, depth} = rows.shape
    Nx.put_slice(Nx.broadcast(Nx.f32(0), {1, heads, positions, depth}), [0, 0, 0, 0], rows)
  end

  @doc """
  The logits that follow one token, s32 `{1}`, at position `offset`, s32 `{}`, and the cache with it.
  """
  @spec decode(t, Nx.Tensor.t(), Nx.Tensor.t(), cache, map) :: {Nx.Tensor.t(), cache}
  def decode(model, token, offset, cache, params) do
    x = params.embedding |> rows(token) |> Nx.new_axis(0)
    {1, _heads, positions, _depth} = Nx.shape(cache |> elem(0) |> elem(0))
    seen = Nx.less_equal(Nx.iota({1, 1, 1, positions}, axis: 3, type: :s32), offset)

    {x, cache} =
      layers(model, params, x, cache, fn q, k, v, {keys, values} ->
        {q, k} = {rope(model, q, offset), rope(model, k, offset)}
        keys = Fast.kv_cache_update(keys, k, offset)
        values = Fast.kv_cache_update(values, v, offset)
        {Fast.scaled_dot_product_attention_with_mask(q, keys, values, seen), {keys, values}}
      end)

    {logits(model, params, x), cache}
  end

  ## A layer

  defp layers(model, params, x, cache, attend) do
    layers = Tuple.to_list(params.layers)
    cached = if cache, do: Tuple.to_list(cache), else: List.duplicate(nil, length(layers))

    {x, cache} =
      Enum.zip_reduce(layers, cached, {x, []}, fn layer, cached, {x, cache} ->
        {q, k, v} = heads(model, layer, x)
        {attended, cached} = attend.(q, k, v, cached)
        {1, heads, length, depth} = attended.shape

        joined =
          attended |> Nx.transpose(axes: [0, 2, 1, 3]) |> Nx.reshape({1, length, heads * depth})

        x = Nx.add(x, product(joined, layer.attn_output))
        {Nx.add(x, feed_forward(model, layer, x)), [cached | cache]}
      end)

    {x, cache |> Enum.reverse() |> List.to_tuple()}
  end

  defp heads(model, layer, x) do
    h = Fast.rms_norm(x, layer.attn_norm, eps: model.eps)

    {split(model, product(h, layer.attn_q), model.heads),
     split(model, product(h, layer.attn_k), model.kv_heads),
     split(model, product(h, layer.attn_v), model.kv_heads)}
  end

  defp split(model, x, heads) do
    {1, length, _width} = x.shape
    x |> Nx.reshape({1, length, heads, model.head_dim}) |> Nx.transpose(axes: [0, 2, 1, 3])
  end

  defp rope(model, x, offset) do
    Fast.rope(x, offset, dims: model.head_dim, traditional: true, base: model.rope_base)
  end

  defp feed_forward(model, layer, x) do
    h = Fast.rms_norm(x, layer.ffn_norm, eps: model.eps)
    gate = product(h, layer.ffn_gate)
    h |> product(layer.ffn_up) |> then(&Fast.swiglu(gate, &1)) |> product(layer.ffn_down)
  end

  defp logits(model, params, x) do
    x = x |> Fast.rms_norm(params.norm, eps: model.eps) |> Nx.squeeze(axes: [0])

    # The table of the tokens is the last product's weight too.
    case params.embedding do
      %QuantizedWeight{} = table -> Quantization.quantized_matmul_defn(x, table)
      table -> Nx.dot(x, [1], table, [1])
    end
  end

  ## Weights, dense ones `{in, out}` as they lie in memory

  defp product(x, %QuantizedWeight{} = weight), do: Quantization.quantized_matmul_defn(x, weight)
  defp product(x, weight), do: Nx.dot(x, weight)

  defp rows(%QuantizedWeight{} = table, ids) do
    %{value: value, scales: scales, biases: biases} = table

    Quantization.dequantize_defn(%{
      table
      | value: Nx.take(value, ids),
        scales: Nx.take(scales, ids),
        biases: Nx.take(biases, ids)
    })
  end

  defp rows(table, ids), do: Nx.take(table, ids)
end
