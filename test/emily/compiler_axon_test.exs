defmodule Emily.CompilerAxonTest do
  # Axon's models compiled natively, forward and in Axon's own training loop: the bits of the same
  # run operation by operation, and nothing leaves the program.
  use ExUnit.Case, async: true

  @compile {:no_warn_undefined, [Axon, Axon.Loop, Axon.ModelState]}

  @moduletag capture_log: true

  unless Code.ensure_loaded?(Axon), do: @moduletag(skip: "Axon is not there")

  @iterations 5

  setup do
    Nx.default_backend(Emily.Backend)
    :ok
  end

  # Numbers that look arbitrary and are the same everywhere.
  defp wave(shape, phase) do
    Nx.iota(shape, type: :f32) |> Nx.multiply(0.7) |> Nx.add(phase) |> Nx.sin()
  end

  defp mlp do
    Axon.input("x", shape: {nil, 6})
    |> Axon.dense(16, activation: :relu)
    |> Axon.batch_norm()
    |> Axon.dropout(rate: 0.25, seed: 7)
    |> Axon.dense(3, activation: :softmax)
  end

  defp cnn do
    Axon.input("x", shape: {nil, 12, 12, 1})
    |> Axon.conv(4, kernel_size: 5, padding: :same, activation: :tanh)
    |> Axon.avg_pool(kernel_size: 2, strides: 2)
    |> Axon.conv(8, kernel_size: 3, activation: :tanh)
    |> Axon.max_pool(kernel_size: 2)
    |> Axon.flatten()
    |> Axon.dense(16, activation: :tanh)
    |> Axon.dense(3, activation: :softmax)
  end

  defp transformer do
    x = Axon.input("x", shape: {nil, 5, 8})
    normed = Axon.layer_norm(x)
    [q, k, v] = for name <- ~w(q k v), do: Axon.dense(normed, 8, name: name)

    attended =
      Axon.layer(
        fn q, k, v, _opts ->
          scores = Nx.dot(q, [2], [0], k, [2], [0]) |> Nx.divide(Nx.sqrt(8))

          weights =
            Nx.exp(Nx.subtract(scores, Nx.reduce_max(scores, axes: [-1], keep_axes: true)))

          weights = Nx.divide(weights, Nx.sum(weights, axes: [-1], keep_axes: true))
          Nx.dot(weights, [2], [0], v, [1], [0])
        end,
        [q, k, v],
        op_name: :attention
      )

    x = Axon.add(x, Axon.dense(attended, 8))
    hidden = x |> Axon.layer_norm() |> Axon.dense(16, activation: :gelu) |> Axon.dense(8)
    Axon.add(x, hidden) |> Axon.flatten() |> Axon.dense(3, activation: :softmax)
  end

  # Of its own accord Axon begins with a state that is drawn anew for each model.
  defp recurrent(layer, state_size) do
    x = Axon.input("x", shape: {nil, 4, 3})
    zero = Axon.layer(fn x, _opts -> Nx.broadcast(0.0, {elem(x.shape, 0), 6}) end, [x])
    {sequence, _state} = layer.(x, Tuple.duplicate(zero, state_size), 6)

    sequence
    |> Axon.nx(& &1[[.., -1, ..]])
    |> Axon.dense(3, activation: :softmax)
  end

  @models [
    mlp: {8, 6},
    cnn: {4, 12, 12, 1},
    transformer: {3, 5, 8},
    lstm: {3, 4, 3},
    gru: {3, 4, 3}
  ]

  defp model(:mlp), do: mlp()
  defp model(:cnn), do: cnn()
  defp model(:transformer), do: transformer()
  defp model(:lstm), do: recurrent(&Axon.lstm/3, 2)
  defp model(:gru), do: recurrent(&Axon.gru/3, 1)

  defp without_fallback(fun) do
    events = [[:emily, :fallback, :start], [:emily, :compiler, :fallback]]
    result = Emily.Events.during(events, fun)
    refute_received {[:emily | _], _, _}
    result
  end

  defp binaries(container) do
    [container] |> Nx.Defn.Composite.flatten_list() |> Enum.map(&Nx.to_binary/1)
  end

  defp targets(shape) do
    count = elem(shape, 0)
    Nx.equal(Nx.remainder(Nx.iota({count, 1}), 3), Nx.iota({1, 3}))
  end

  defp train(model, x, y, opts) do
    test = self()
    run = make_ref()

    state =
      model
      |> Axon.Loop.trainer(:categorical_cross_entropy, :adam, log: 0, seed: 42)
      |> Axon.Loop.handle_event(:iteration_completed, fn state ->
        send(test, {run, Nx.to_number(state.step_state.loss)})
        {:continue, state}
      end)
      |> Axon.Loop.run(
        Stream.cycle([{x, y}]),
        Axon.ModelState.empty(),
        [epochs: 1, iterations: @iterations] ++ opts
      )

    losses = for _ <- 1..@iterations, do: receive(do: ({^run, loss} -> loss))
    {losses, binaries(state.data)}
  end

  for {name, shape} <- @models do
    test "#{name}: predictions" do
      x = wave(unquote(Macro.escape(shape)), 0.1)
      {init, predict} = Axon.build(model(unquote(name)), compiler: Nx.Defn.Evaluator)
      state = init.(x, Axon.ModelState.empty())
      expected = predict.(state, x)

      without_fallback(fn ->
        opts = [compiler: Emily.Compiler, native_fallback: :raise]
        {_, predict} = Axon.build(model(unquote(name)), opts)
        assert binaries(predict.(state, x)) == binaries(expected)
      end)
    end

    test "#{name}: training" do
      shape = unquote(Macro.escape(shape))
      {x, y} = {wave(shape, 0.3), targets(shape)}
      {losses, _} = expected = train(model(unquote(name)), x, y, compiler: Nx.Defn.Evaluator)
      assert List.last(losses) < hd(losses)

      without_fallback(fn ->
        opts = [compiler: Emily.Compiler, native_fallback: :raise]
        assert train(model(unquote(name)), x, y, opts) == expected
      end)
    end
  end
end
