defmodule Emily.BackendAxonTest do
  # Axon's own training loop, with its initialisers, optimisers and metrics, on Emily.
  use ExUnit.Case, async: true

  @compile {:no_warn_undefined, [Axon, Axon.Loop, Axon.ModelState]}

  @moduletag capture_log: true

  unless Code.ensure_loaded?(Axon), do: @moduletag(skip: "Axon is not there")

  @iterations 30

  defp model do
    Axon.input("x", shape: {nil, 4})
    |> Axon.dense(16, activation: :relu)
    |> Axon.dense(3)
  end

  # Batches whose target is a function of the input that a small network learns.
  defp batches do
    for batch <- 0..4 do
      x =
        Nx.iota({8, 4}, type: :f32, backend: Nx.BinaryBackend)
        |> Nx.add(32 * batch)
        |> Nx.multiply(1.7)
        |> Nx.sin()

      sum = Nx.sum(x, axes: [1])
      first = x[[.., 0]]
      y = Nx.stack([sum, Nx.multiply(first, first), Nx.max(first, 0)], axis: 1)
      {x, y}
    end
  end

  # The loss of every iteration and the trained parameters, both read back.
  defp train(backend, optimizer) do
    Nx.with_default_backend(backend, fn ->
      test = self()
      run = make_ref()

      data =
        for {x, y} <- batches(), do: {Nx.backend_copy(x, backend), Nx.backend_copy(y, backend)}

      state =
        model()
        |> Axon.Loop.trainer(:mean_squared_error, optimizer, log: 0, seed: 42)
        |> Axon.Loop.handle_event(:iteration_completed, fn state ->
          send(test, {run, Nx.to_number(state.step_state.loss)})
          {:continue, state}
        end)
        |> Axon.Loop.run(Stream.cycle(data), Axon.ModelState.empty(),
          epochs: 1,
          iterations: @iterations,
          compiler: Nx.Defn.Evaluator
        )

      {received(run), state.data}
    end)
  end

  # The loop calls its handlers in this process.
  defp received(run) do
    receive do
      {^run, loss} -> [loss | received(run)]
    after
      0 -> []
    end
  end

  defp leaves(%Nx.Tensor{} = tensor), do: [tensor]
  defp leaves(map), do: map |> Enum.sort() |> Enum.flat_map(fn {_name, part} -> leaves(part) end)

  for optimizer <- [:sgd, :adam] do
    test "#{optimizer}: the loss falls and follows Nx.BinaryBackend's" do
      {expected, expected_state} = train(Nx.BinaryBackend, unquote(optimizer))
      {found, state} = train(Emily.Backend, unquote(optimizer))

      assert length(found) == @iterations
      for {a, b} <- Enum.zip(found, expected), do: assert_in_delta(a, b, 1.0e-4)
      assert Enum.sum(Enum.take(found, -5)) < Enum.sum(Enum.take(found, 5)) * 0.9

      assert length(leaves(state)) == 4

      for {a, b} <- Enum.zip(leaves(state), leaves(expected_state)) do
        assert %Emily.Backend{} = a.data
        far = a |> Nx.backend_copy(Nx.BinaryBackend) |> Nx.subtract(b) |> Nx.abs()
        assert far |> Nx.reduce_max() |> Nx.to_number() < 1.0e-3
      end
    end
  end

  test "training in two processes, each on its own stream, gives the same bits as alone" do
    {alone, _state} = train(Emily.Backend, :adam)

    tasks =
      for _ <- 1..2 do
        Task.async(fn ->
          Emily.Stream.with_stream(Emily.Stream.new(Emily.TestDevice.device()), fn ->
            {losses, _state} = train(Emily.Backend, :adam)
            losses
          end)
        end)
      end

    assert Task.await_many(tasks, :infinity) == [alone, alone]
  end
end
