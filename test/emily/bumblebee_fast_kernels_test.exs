defmodule Emily.Bumblebee.FastKernelsTest do
  # With layers of ours that are named as Bumblebee's: test/support/bumblebee_layers.ex.
  use ExUnit.Case, async: true

  import Emily.NxReference, only: [wave: 2, relative_error: 2]

  alias Bumblebee.Layers
  alias Emily.Bumblebee.FastKernels

  ## Models

  # A block of a decoder: a norm, heads, rotary embeddings, attention, and a norm at the end.
  defp model(opts \\ []) do
    {heads, size} = {3, 8}
    hidden = Axon.input("x", shape: {nil, nil, 12})
    optional = &Axon.input(&1, optional: true)

    normal =
      Layers.rms_norm(
        hidden,
        Keyword.take(opts, [:upcast, :shift, :epsilon, :channel_index]) ++ [name: "norm"]
      )

    [q, k, v] =
      for name <- ~w(query key value) do
        normal
        |> Axon.dense(heads * size, name: name, use_bias: false)
        |> Axon.reshape({:batch, :auto, heads, size})
      end

    {q, k} =
      Layers.rotary_embedding(
        q,
        k,
        Axon.input("positions"),
        optional.("mask"),
        [size: size] ++ Keyword.get(opts, :rope, [])
      )

    {attended, weights} =
      Layers.attention(
        q,
        k,
        v,
        optional.("mask"),
        optional.("head_mask"),
        optional.("bias"),
        optional.("offset"),
        Keyword.get(opts, :attention, causal: true)
      )

    output =
      attended
      |> Axon.reshape({:batch, :auto, heads * size})
      |> Axon.layer_norm(
        name: "last",
        epsilon: 1.0e-3,
        gamma_initializer: &uneven/3,
        beta_initializer: &uneven/3
      )

    if opts[:weights], do: Axon.container(%{output: output, weights: weights}), else: output
  end

  defp uneven(shape, type, _key), do: shape |> Nx.iota(type: type) |> Nx.cos()

  defp inputs(more \\ %{}) do
    Map.merge(
      %{"x" => Nx.as_type(wave({2, 5, 12}, 0.3), :f32), "positions" => Nx.iota({2, 5}, axis: 1)},
      more
    )
  end

  ## What fires

  @fused [:fast_rms_norm, :fast_layer_norm, :fast_rope, :fast_scaled_dot_product_attention]

  # How many nodes of a model call a function of FastKernels, by name.
  defp rewritten(model) do
    Axon.reduce_nodes(model, %{}, fn %{op: op}, counts ->
      case is_function(op) && Function.info(op) do
        [{:module, FastKernels}, {:name, name} | _] -> Map.update(counts, name, 1, &(&1 + 1))
        _ -> counts
      end
    end)
  end

  # How many fused ops the model's program has, and what the composed attention has in their place.
  defp fused(model, inputs) do
    {init, predict} = Axon.build(model)
    params = init.(inputs, Axon.ModelState.empty())

    Emily.NxProgram.ops(predict, [params, inputs])
    |> Map.take([:exp | @fused])
  end

  # The model and its rewritten self on the same parameters, on both backends.
  defp assert_same_results(model, inputs, bound \\ 1.0e-5) do
    fast = FastKernels.apply(model)
    {init, predict} = Axon.build(model)
    params = init.(inputs, Axon.ModelState.empty())
    {fast_init, evaluated} = Axon.build(fast)
    {_, compiled} = Axon.build(fast, compiler: Emily.Compiler)
    assert names(fast_init.(inputs, Axon.ModelState.empty())) == names(params)
    expected = predict.(params, inputs)
    bound = max(bound, Emily.TestDevice.coarseness({:f, 32}))

    for {backend, fast_predict} <- [
          {Nx.BinaryBackend, evaluated},
          {Emily.Backend, evaluated},
          {Emily.Backend, compiled}
        ] do
      params = %{params | data: on(params.data, backend)}
      inputs = on(inputs, backend)
      actual = fast_predict.(params, inputs)
      assert %{__struct__: ^backend} = first(actual).data

      for {actual, expected} <- Enum.zip(tensors(actual), tensors(expected)) do
        assert {actual.shape, actual.type} == {expected.shape, expected.type}
        assert relative_error(actual, expected) < bound
      end
    end

    fast
  end

  defp on(%Nx.Tensor{} = t, backend), do: Nx.backend_copy(t, backend)
  defp on(%{} = map, backend), do: Map.new(map, fn {k, v} -> {k, on(v, backend)} end)

  defp names(state),
    do:
      for(
        {layer, params} <- state.data,
        {name, _} <- params,
        not (layer =~ "dropout"),
        do: {layer, name}
      )

  defp tensors(%Nx.Tensor{} = t), do: [t]
  defp tensors(map), do: map |> Enum.sort() |> Enum.flat_map(fn {_, t} -> tensors(t) end)
  defp first(output), do: hd(tensors(output))

  describe "apply" do
    test "rewrites every layer of the model, and keeps its result and its parameters" do
      fast = assert_same_results(model(), inputs())

      assert rewritten(fast) == %{
               fast_rms_norm_impl: 1,
               fast_layer_norm_impl: 1,
               fast_rope_impl: 1,
               fast_attention: 1
             }

      assert rewritten(model()) == %{}

      assert fused(model(), inputs()) == %{exp: 1}

      assert fused(fast, inputs()) == %{
               fast_rms_norm: 1,
               fast_layer_norm: 1,
               fast_rope: 2,
               fast_scaled_dot_product_attention: 1
             }
    end

    test "rewrites one kind at a time" do
      for {rewrite, name} <- [
            {&FastKernels.apply_rms_norm/1, :fast_rms_norm_impl},
            {&FastKernels.apply_layer_norm/1, :fast_layer_norm_impl},
            {&FastKernels.apply_rope/1, :fast_rope_impl},
            {&FastKernels.apply_attention/1, :fast_attention}
          ] do
        assert rewritten(rewrite.(model())) == %{name => 1}
      end
    end

    test "keeps an output of attention weights" do
      model = model(weights: true)
      fast = assert_same_results(model, inputs())
      assert rewritten(fast)[:fast_attention] == 1
      # The weights are computed for themselves.
      assert %{fast_scaled_dot_product_attention: 1, exp: 1} = fused(fast, inputs())
    end

    test "leaves other models alone" do
      model = Axon.input("x", shape: {nil, 4}) |> Axon.dense(3) |> Axon.softmax()
      assert FastKernels.apply(model) == model
    end
  end

  describe "norms" do
    test "of both ways to cast, with a shift and another epsilon" do
      for opts <- [[upcast: :all], [shift: 1.0], [epsilon: 0.25], [upcast: :all, shift: 0.5]] do
        fast = assert_same_results(model(opts), inputs())
        assert rewritten(fast)[:fast_rms_norm_impl] == 1
      end
    end

    test "have the types of the layers that they replace" do
      {x, w} = {Nx.as_type(wave({3, 8}, 0.3), :bf16), Nx.as_type(wave({8}, 0.7), :f32)}
      assert FastKernels.fast_rms_norm_impl(x, Nx.as_type(w, :bf16)).type == {:bf, 16}
      assert FastKernels.fast_rms_norm_impl(x, w).type == {:f, 32}

      assert FastKernels.fast_rms_norm_impl(x, Nx.as_type(w, :bf16), upcast: :all).type ==
               {:f, 32}

      assert FastKernels.fast_layer_norm_impl(x, w, w).type == {:f, 32}
    end

    test "along other axes stay" do
      assert_same_results(model(channel_index: 1), inputs())
      |> rewritten()
      |> Map.has_key?(:fast_rms_norm_impl)
      |> refute()

      model = Axon.input("x", shape: {nil, 3, 4}) |> Axon.layer_norm(channel_index: 1)
      assert rewritten(FastKernels.apply(model)) == %{}
    end
  end

  describe "rotary embeddings" do
    test "turn by positions and not by heads, in any order of positions" do
      positions = Nx.tensor([[0, 0, 1, 2, 3], [4, 3, 2, 1, 0]])
      fast = assert_same_results(model(), inputs(%{"positions" => positions}))
      assert rewritten(fast)[:fast_rope_impl] == 1
      assert_same_results(model(), inputs(%{"positions" => Nx.tensor([[7, 8, 9, 10, 11]])}))
    end

    test "with every scaling strategy, below and above the limits" do
      llama3 = %{
        type: :llama3,
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_max_positions: 64
      }

      for {opts, mask} <- [
            {[base: 100], nil},
            {[scaling_strategy: %{type: :linear, factor: 4.0}], nil},
            {[scaling_strategy: %{type: :dynamic, factor: 2.0}], nil},
            {[scaling_strategy: %{type: :dynamic, factor: 2.0}, max_positions: 4], nil},
            {[scaling_strategy: %{type: :dynamic, factor: 2.0}, max_positions: 4],
             Nx.broadcast(Nx.tensor(1), {2, 5})},
            {[scaling_strategy: llama3, base: 50], nil},
            {[scaling_strategy: llama3], nil},
            {[
               scaling_strategy: %{
                 type: :longrope,
                 short_factor: [1.0, 1.5, 2.0, 3.0],
                 long_factor: [2.0, 4.0, 6.0, 8.0],
                 original_max_positions: 16
               },
               max_positions: 64
             ], nil},
            {[
               scaling_strategy: %{
                 type: :longrope,
                 short_factor: [1.0, 1.5, 2.0, 3.0],
                 long_factor: [2.0, 4.0, 6.0, 8.0],
                 original_max_positions: 4
               },
               max_positions: 64
             ], nil}
          ] do
        more = if mask, do: %{"mask" => mask}, else: %{}
        fast = assert_same_results(model(rope: opts), inputs(more))
        assert rewritten(fast)[:fast_rope_impl] == 1
      end
    end

    test "with frequencies of one's own" do
      x = Nx.as_type(wave({1, 3, 2, 4}, 0.3), :f32)
      positions = Nx.tensor([[0, 1, 2]])
      freqs = Nx.tensor([1.0, 100.0])

      {q, _} =
        FastKernels.fast_rope_impl(x, x, positions, %Axon.None{},
          size: 4,
          precomputed_freqs: freqs,
          base: 7
        )

      {expected, _} = FastKernels.fast_rope_impl(x, x, positions, %Axon.None{}, size: 4)
      assert relative_error(q, expected) < 1.0e-6
    end
  end

  describe "attention" do
    defp assert_attention(opts, more) do
      fast = assert_same_results(model(attention: opts), inputs(more))
      assert rewritten(fast)[:fast_attention] == 1
      ops = fused(fast, inputs(more))
      assert ops.fast_scaled_dot_product_attention == 1
      refute is_map_key(ops, :exp)
    end

    test "with masks, biases, windows and offsets" do
      key_mask = Nx.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
      pair_mask = Nx.broadcast(Nx.tensor([[1, 0, 1, 1, 1]]), {2, 1, 5, 5})
      bias = Nx.as_type(wave({1, 3, 5, 5}, 0.9), :f32)
      heads = Nx.tensor([1.0, 0.0, 0.5])

      for {opts, more} <- [
            {[], %{}},
            {[causal: true, scale: 0.3], %{}},
            {[causal: true], %{"head_mask" => heads}},
            {[], %{"mask" => key_mask}},
            {[causal: true], %{"mask" => key_mask}},
            {[causal: true], %{"mask" => pair_mask}},
            {[causal: true], %{"bias" => bias}},
            {[], %{"bias" => bias, "mask" => key_mask, "head_mask" => heads}},
            {[window_size: {1, 2}], %{}},
            {[causal: true, window_size: {2, 2}], %{"mask" => key_mask}},
            {[causal: true], %{"offset" => Nx.tensor(2)}}
          ] do
        assert_attention(opts, more)
      end
    end

    test "with dropout stays" do
      fast = FastKernels.apply(model(attention: [dropout_rate: 0.5]))
      refute Map.has_key?(rewritten(fast), :fast_attention)
      assert rewritten(fast)[:fast_rope_impl] == 1
    end

    test "with other inputs is refused" do
      model = model(attention: [without_offset: true])
      assert_raise RuntimeError, ~r/6 parents .* got 5/, fn -> FastKernels.apply(model) end
    end

    test "of fewer queries than keys counts positions from the offset" do
      [q, k, v] =
        for {shape, at} <- [{{1, 2, 2, 4}, 0}, {{1, 5, 2, 4}, 1}, {{1, 5, 2, 4}, 2}],
            do: Nx.as_type(wave(shape, at), :f32)

      none = %Axon.None{}

      at = fn offset ->
        FastKernels.fast_sdpa_impl(q, k, v, none, none, none, offset, causal: true)
      end

      [q, k, v] = for t <- [q, k, v], do: Nx.transpose(t, axes: [0, 2, 1, 3])

      aligned =
        Emily.Fast.scaled_dot_product_attention(q, k, v, causal: true)
        |> Nx.transpose(axes: [0, 2, 1, 3])

      assert relative_error(at.(Nx.tensor(3)), aligned) < 1.0e-6
      assert relative_error(at.(none), at.(Nx.tensor(0))) == 0.0
      assert relative_error(at.(none), aligned) > 1.0e-2
    end
  end
end
