defmodule MiniLM.Model do
  @moduledoc """
  A BERT encoder in Axon whose output is the embedding of a text: the mean of its tokens' vectors, of
  length 1 (Reimers and Gurevych 2019).

  Inputs are `"ids"`, s32 `{batch, length}`, and `"mask"`, u8 of the same shape, 1 where there is a
  token; the output is f32 `{batch, width}`.

  The layers have the names of the checkpoint's tensors, so that `params/1` maps the ones to the others.
  Attention and norms are those of `Emily.Fast`, as layers of Axon.
  """

  @doc """
  The model of so many layers, heads and so on.
  """
  @spec build(map) :: Axon.t()
  def build(config) do
    ids = Axon.input("ids", shape: {nil, nil})
    mask = Axon.input("mask", shape: {nil, nil})

    0..(config.layers - 1)
    |> Enum.reduce(embeddings(ids, config), &layer(&2, mask, "encoder.layer.#{&1}", config))
    |> then(&Axon.layer(fn x, mask, _ -> mean(x, mask) end, [&1, mask], op_name: :mean))
  end

  defp embeddings(ids, config) do
    at = "embeddings"
    positions = Axon.nx(ids, &Nx.iota(Nx.shape(&1), axis: 1, type: :s32))
    # A text is one sentence: the first of the two types.
    types = Axon.nx(ids, &Nx.broadcast(Nx.s32(0), Nx.shape(&1)))

    [
      {ids, "word", config.vocabulary},
      {positions, "position", config.positions},
      {types, "token_type", 2}
    ]
    |> Enum.map(fn {x, name, count} ->
      Axon.embedding(x, count, config.width, name: "#{at}.#{name}_embeddings")
    end)
    |> Axon.add()
    |> norm("#{at}.LayerNorm", config)
  end

  defp layer(x, mask, at, config) do
    [q, k, v] =
      for part <- ~w(query key value),
          do: Axon.dense(x, config.width, name: "#{at}.attention.self.#{part}")

    attended =
      Axon.layer(&attention/5, [q, k, v, mask], heads: config.heads, op_name: :attention)
      |> Axon.dense(config.width, name: "#{at}.attention.output.dense")
      |> Axon.add(x)
      |> norm("#{at}.attention.output.LayerNorm", config)

    attended
    |> Axon.dense(config.hidden, name: "#{at}.intermediate.dense", activation: :gelu)
    |> Axon.dense(config.width, name: "#{at}.output.dense")
    |> Axon.add(attended)
    |> norm("#{at}.output.LayerNorm", config)
  end

  defp norm(x, name, config) do
    parameters = for name <- ["gamma", "beta"], do: Axon.param(name, [{:axis, -1}])

    Axon.layer(&layer_norm/4, [x | parameters],
      name: name,
      epsilon: config.epsilon,
      op_name: :layer_norm
    )
  end

  defp layer_norm(x, gamma, beta, opts),
    do: Emily.Fast.layer_norm(x, gamma, beta, eps: opts[:epsilon])

  defp attention(q, k, v, mask, opts) do
    {batch, length, width} = q.shape
    heads = opts[:heads]

    [q, k, v] =
      for x <- [q, k, v] do
        x
        |> Nx.reshape({batch, length, heads, div(width, heads)})
        |> Nx.transpose(axes: [0, 2, 1, 3])
      end

    Emily.Fast.scaled_dot_product_attention_with_mask(
      q,
      k,
      v,
      Nx.reshape(mask, {batch, 1, 1, length})
    )
    |> Nx.transpose(axes: [0, 2, 1, 3])
    |> Nx.reshape({batch, length, width})
  end

  defp mean(x, mask) do
    mask = mask |> Nx.new_axis(-1) |> Nx.as_type(x.type)
    mean = Nx.divide(Nx.sum(Nx.multiply(x, mask), axes: [1]), Nx.sum(mask, axes: [1]))
    length = mean |> Nx.multiply(mean) |> Nx.sum(axes: [-1], keep_axes: true) |> Nx.sqrt()
    Nx.divide(mean, length)
  end

  @doc """
  The parameters of the model, out of the tensors of its checkpoint, whose memory they share.

  A dense layer's weight is `{out, in}` there and `{in, out}` in Axon.
  """
  @spec params(%{String.t() => Nx.Tensor.t()}) :: Axon.ModelState.t()
  def params(tensors) do
    for {name, tensor} <- tensors,
        {layer, parameter, tensor} <- parameter(name, tensor),
        reduce: %{} do
      params -> Map.update(params, layer, %{parameter => tensor}, &Map.put(&1, parameter, tensor))
    end
    |> Axon.ModelState.new()
  end

  # Of the pooler and the numbers of the positions there is no use.
  defp parameter("pooler." <> _, _tensor), do: []
  defp parameter("embeddings.position_ids", _tensor), do: []

  defp parameter(name, tensor) do
    parts = String.split(name, ".")
    {layer, [kind]} = Enum.split(parts, -1)

    parameter =
      case {List.last(layer), kind} do
        {"LayerNorm", "weight"} -> "gamma"
        {"LayerNorm", "bias"} -> "beta"
        {_, "weight"} -> "kernel"
        {_, "bias"} -> "bias"
      end

    dense? = parameter == "kernel" and hd(parts) != "embeddings"
    [{Enum.join(layer, "."), parameter, if(dense?, do: Nx.transpose(tensor), else: tensor)}]
  end
end
