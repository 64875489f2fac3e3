if Code.ensure_loaded?(Axon) do
  defmodule Emily.Bumblebee.FastKernels do
    @moduledoc """
    Rewrites models of Bumblebee so that `Emily.Fast` computes their norms, rotary embeddings and attention.

        {:ok, %{model: model} = info} = Bumblebee.load_model({:hf, "..."})
        info = %{info | model: Emily.Bumblebee.FastKernels.apply(model)}

    Parameters, names and outputs stay. Only layers are rewritten that mean the same afterwards:

      * root mean square norms of Bumblebee, and layer norms of Axon, along the last axis
      * rotary embeddings with every scaling strategy of Bumblebee's
      * attention without dropout, where the output of the layer that computes the weights is not
        computed any more unless the model returns it

    A layer is known by the function that it calls, whose name and module Bumblebee might change: the layers
    that are not found any more stay as they are, and so does the model's result.

    This module exists where Axon can be loaded when Emily is compiled. Bumblebee need not be there.
    """

    alias Axon.Node
    alias Emily.Fast

    @layers Bumblebee.Layers
    @rms_norms [:rms_norm_impl, :rms_norm_impl_upcast_normalization, :rms_norm_impl_upcast_all]

    @doc """
    Rewrites all that can be.

    Raises RuntimeError for a model whose attention layers have other inputs than those known.
    """
    @spec apply(Axon.t()) :: Axon.t()
    def apply(%Axon{} = model) do
      model |> apply_rms_norm() |> apply_layer_norm() |> apply_rope() |> apply_attention()
    end

    @doc false
    def apply_rms_norm(%Axon{} = model) do
      Axon.map_nodes(model, fn %Node{opts: opts} = node ->
        name = layer(node)

        if name in @rms_norms and last_axis?(opts) do
          upcast = if name == :rms_norm_impl_upcast_all, do: :all, else: :normalization
          %{node | op: &__MODULE__.fast_rms_norm_impl/3, opts: Keyword.put(opts, :upcast, upcast)}
        else
          node
        end
      end)
    end

    @doc false
    def apply_layer_norm(%Axon{} = model) do
      Axon.map_nodes(model, fn
        %Node{op: :layer_norm, opts: opts} = node ->
          if last_axis?(opts), do: %{node | op: &__MODULE__.fast_layer_norm_impl/4}, else: node

        node ->
          node
      end)
    end

    @doc false
    def apply_rope(%Axon{} = model) do
      Axon.map_nodes(model, fn node ->
        if layer(node) == :apply_rotary_embedding and length(node.parent) == 4,
          do: %{node | op: &__MODULE__.fast_rope_impl/5},
          else: node
      end)
    end

    # The layer that multiplies weights with values takes the inputs of the one that makes the weights,
    # and the values behind them.
    @doc false
    def apply_attention(%Axon{nodes: nodes} = model) do
      Axon.map_nodes(model, fn node ->
        with :attention_output_impl <- layer(node),
             [weights, value] <- node.parent,
             %Node{} = weights <- without_dropout(nodes[weights], nodes) do
          parents = attention_parents!(weights) ++ [value]
          opts = Keyword.take(weights.opts, [:causal, :window_size, :scale])
          op = &__MODULE__.fast_attention/8

          %{
            node
            | op: op,
              parent: parents,
              args: Enum.map(parents, fn _ -> :layer end),
              opts: opts
          }
        else
          _ -> node
        end
      end)
    end

    defp without_dropout(%Node{op: :dropout, opts: opts, parent: [parent]}, nodes) do
      if opts[:rate] == 0, do: without_dropout(nodes[parent], nodes)
    end

    defp without_dropout(%Node{} = node, _nodes),
      do: if(layer(node) == :attention_weights_impl, do: node)

    defp attention_parents!(%Node{parent: [_, _, _, _, _, _] = parents}), do: parents

    defp attention_parents!(%Node{parent: parents}) do
      raise "Emily.Bumblebee.FastKernels: expected an attention layer with 6 parents " <>
              "(query, key, key mask, head mask, bias, offset), got #{length(parents)}"
    end

    # A private function that is captured in its module reports its name, as a public one does.
    defp layer(%Node{op: op}) when is_function(op) do
      info = Function.info(op)
      if info[:module] == @layers, do: info[:name]
    end

    defp layer(_node), do: nil

    defp last_axis?(opts), do: Keyword.get(opts, :channel_index, -1) == -1

    ## The layers

    @doc false
    def fast_rms_norm_impl(input, weight, opts \\ []) do
      opts =
        Keyword.validate!(opts, [
          :mode,
          shift: 0.0,
          epsilon: 1.0e-6,
          channel_index: -1,
          upcast: :normalization
        ])

      weight = if opts[:shift] == 0, do: weight, else: Nx.add(weight, opts[:shift])

      type =
        if opts[:upcast] == :all,
          do: {:f, 32},
          else: Nx.Type.merge(Nx.type(input), Nx.type(weight))

      Fast.rms_norm(Nx.as_type(input, type), weight, eps: opts[:epsilon])
    end

    @doc false
    def fast_layer_norm_impl(input, gamma, beta, opts \\ []) do
      opts = Keyword.validate!(opts, [:mode, epsilon: 1.0e-5, channel_index: -1])
      type = [input, gamma, beta] |> Enum.map(&Nx.type/1) |> Enum.reduce(&Nx.Type.merge/2)
      Fast.layer_norm(Nx.as_type(input, type), gamma, beta, eps: opts[:epsilon])
    end

    # Query and key are {batch, positions, heads, features}. Each of their rows has a position of its own: to the
    # kernel a batch of its own, of one position, which needs no transpose.
    @doc false
    def fast_rope_impl(query, key, position_ids, attention_mask, opts \\ []) do
      opts =
        Keyword.validate!(opts, [
          :mode,
          :size,
          :scaling_strategy,
          :precomputed_freqs,
          max_positions: 2048,
          base: 10_000
        ])

      length =
        Nx.axis_size(
          if(match?(%Axon.None{}, attention_mask), do: position_ids, else: attention_mask),
          1
        )

      {freqs, scale, factor} = Emily.Bumblebee.Frequencies.new(opts, length)
      freqs = opts[:precomputed_freqs] || Nx.tensor(freqs, type: :f32)
      turn = &rotate(&1, position_ids, freqs, [dims: opts[:size], scale: scale], factor)
      {turn.(query), turn.(key)}
    end

    defp rotate(x, position_ids, freqs, opts, factor) do
      {batch, positions, heads, features} = x.shape
      offsets = position_ids |> Nx.broadcast({batch, positions}) |> Nx.flatten()

      rotated =
        x
        |> Nx.reshape({batch * positions, heads, 1, features})
        |> Fast.rope_with_freqs(offsets, freqs, opts)
        |> Nx.reshape(x.shape, names: x.names)

      if factor == 1, do: rotated, else: Nx.as_type(Nx.multiply(rotated, factor), x.type)
    end

    # The inputs in the order of a rewritten node's.
    @doc false
    def fast_attention(query, key, key_mask, head_mask, bias, offset, value, opts),
      do: fast_sdpa_impl(query, key, value, key_mask, head_mask, bias, offset, opts)

    # Query, key and value are {batch, positions, heads, features}; masks, bias and offset may be missing.
    @doc false
    def fast_sdpa_impl(query, key, value, key_mask, head_mask, bias, offset, opts \\ []) do
      opts = Keyword.validate!(opts, [:mode, :window_size, :scale, causal: false])
      [q, k, v] = for t <- [query, key, value], do: Nx.transpose(t, axes: [0, 2, 1, 3])
      scale = if opts[:scale], do: [scale: opts[:scale]], else: []
      {queries, keys} = {Nx.axis_size(q, 2), Nx.axis_size(k, 2)}

      # Bumblebee counts the positions of queries from 0 where it knows no offset.
      plain? =
        opts[:window_size] == nil and
          Enum.all?([key_mask, bias, offset], &match?(%Axon.None{}, &1))

      attention =
        cond do
          plain? and not opts[:causal] ->
            Fast.scaled_dot_product_attention(q, k, v, scale)

          plain? and queries == keys ->
            Fast.scaled_dot_product_attention(q, k, v, [causal: true] ++ scale)

          true ->
            seen =
              Enum.reduce(seen(key_mask) ++ seen(opts, queries, keys, offset), &Nx.logical_and/2)

            Fast.scaled_dot_product_attention_with_mask(q, k, v, mask(seen, bias, q), scale)
        end

      attention |> scaled(head_mask) |> Nx.transpose(axes: [0, 2, 1, 3])
    end

    defp seen(%Axon.None{}), do: [Nx.broadcast(Nx.tensor(1, type: :u8), {1, 1, 1, 1})]

    defp seen(key_mask) do
      mask = Nx.not_equal(key_mask, 0)
      [if(Nx.rank(mask) == 2, do: mask |> Nx.new_axis(1) |> Nx.new_axis(1), else: mask)]
    end

    defp seen(opts, queries, keys, offset) do
      offset = if match?(%Axon.None{}, offset), do: 0, else: Nx.reshape(offset, {})
      position = Nx.add(Nx.iota({1, 1, queries, 1}), offset)
      distance = Nx.subtract(position, Nx.iota({1, 1, 1, keys}))

      case {opts[:causal], opts[:window_size]} do
        {false, nil} ->
          []

        {true, nil} ->
          [Nx.greater_equal(distance, 0)]

        {false, {left, right}} ->
          [Nx.less_equal(distance, left), Nx.greater_equal(distance, -right)]

        {true, {left, _right}} ->
          [Nx.less_equal(distance, left), Nx.greater_equal(distance, 0)]
      end
    end

    defp mask(seen, %Axon.None{}, _q), do: seen

    defp mask(seen, bias, q) do
      {shape, names} = Nx.Shape.binary_broadcast(seen.shape, seen.names, bias.shape, bias.names)
      hidden = Nx.Constants.min_finite(q.type)
      Nx.select(Nx.broadcast(seen, shape, names: names), bias, hidden)
    end

    # A head's weights times a number are its result times the number.
    defp scaled(attention, %Axon.None{}), do: attention

    defp scaled(attention, head_mask) do
      product = Nx.multiply(attention, Nx.reshape(head_mask, {1, :auto, 1, 1}))
      Nx.as_type(product, attention.type)
    end
  end
end
