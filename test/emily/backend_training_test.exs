defmodule Emily.BackendTrainingTest do
  # Small models trained through Nx.Defn.Evaluator and through Emily.Compiler: the losses follow
  # Nx.BinaryBackend's, and those of the compiler are the same bits.
  use ExUnit.Case, async: true

  @steps 6
  @rate 0.05

  # Numbers that look arbitrary and are the same everywhere.
  defp wave(shape, phase) do
    Nx.iota(shape, type: :f32, backend: Nx.BinaryBackend)
    |> Nx.multiply(0.7)
    |> Nx.add(phase)
    |> Nx.sin()
    |> Nx.multiply(0.4)
  end

  @compiled [compiler: Emily.Compiler, native_fallback: :raise]

  defp losses(backend, params, inputs, loss, opts \\ []) do
    Nx.with_default_backend(backend, fn ->
      copy = &Nx.backend_copy(&1, backend)
      inputs = inputs |> Enum.map(copy) |> List.to_tuple()
      params = params |> Tuple.to_list() |> Enum.map(copy) |> List.to_tuple()

      step =
        Nx.Defn.jit(
          fn p, i -> Nx.Defn.value_and_grad(p, &loss.(&1, Tuple.to_list(i))) end,
          opts
        )

      {losses, _} =
        Enum.map_reduce(1..@steps, params, fn _, params ->
          {loss, grads} = step.(params, inputs)

          next =
            Enum.zip_with(Tuple.to_list(params), Tuple.to_list(grads), fn p, g ->
              Nx.subtract(p, Nx.multiply(g, @rate))
            end)

          {Nx.to_number(loss), List.to_tuple(next)}
        end)

      losses
    end)
  end

  defp assert_follows(params, inputs, loss) do
    expected = losses(Nx.BinaryBackend, params, inputs, loss)
    found = losses(Emily.Backend, params, inputs, loss)

    for {a, b} <- Enum.zip(found, expected), do: assert_in_delta(a, b, Emily.TestDevice.drift())
    assert losses(Emily.Backend, params, inputs, loss, @compiled) == found
    assert List.last(found) < hd(found)

    # The same bits on two streams at once.
    tasks =
      for _ <- 1..2 do
        Task.async(fn ->
          Emily.Stream.with_stream(Emily.Stream.new(Emily.TestDevice.device()), fn ->
            losses(Emily.Backend, params, inputs, loss)
          end)
        end)
      end

    assert Task.await_many(tasks, :infinity) == [found, found]
  end

  defp cross_entropy(logits, labels) do
    shifted = Nx.subtract(logits, Nx.reduce_max(logits, axes: [-1], keep_axes: true))
    total = Nx.log(Nx.sum(Nx.exp(shifted), axes: [-1], keep_axes: true))
    chosen = Nx.take_along_axis(Nx.subtract(shifted, total), Nx.new_axis(labels, -1), axis: 1)
    Nx.negate(Nx.mean(chosen))
  end

  test "a perceptron" do
    params = {wave({6, 8}, 0.1), wave({8}, 0.2), wave({8, 3}, 0.3), wave({3}, 0.4)}
    inputs = [wave({5, 6}, 0.5), Nx.tensor([0, 1, 2, 1, 0], backend: Nx.BinaryBackend)]

    assert_follows(params, inputs, fn {w1, b1, w2, b2}, [x, labels] ->
      hidden = x |> Nx.dot(w1) |> Nx.add(b1) |> Nx.max(0)
      hidden |> Nx.dot(w2) |> Nx.add(b2) |> cross_entropy(labels)
    end)
  end

  test "a convolutional network" do
    params = {wave({4, 2, 3, 3}, 0.1), wave({36, 3}, 0.3)}
    inputs = [wave({3, 2, 6, 6}, 0.5), Nx.tensor([0, 1, 2], backend: Nx.BinaryBackend)]

    assert_follows(params, inputs, fn {kernel, w}, [x, labels] ->
      x
      |> Nx.conv(kernel, padding: :same)
      |> Nx.tanh()
      |> Nx.window_max({1, 1, 2, 2}, strides: [1, 1, 2, 2])
      |> Nx.reshape({3, 36})
      |> Nx.dot(w)
      |> cross_entropy(labels)
    end)
  end

  test "a transformer block" do
    params = {wave({8, 24}, 0.1), wave({8, 8}, 0.2), wave({8, 16}, 0.3), wave({16, 8}, 0.4)}
    inputs = [wave({2, 4, 8}, 0.5), wave({2, 4, 8}, 0.9)]

    norm = fn x ->
      centred = Nx.subtract(x, Nx.mean(x, axes: [-1], keep_axes: true))
      variance = Nx.mean(Nx.multiply(centred, centred), axes: [-1], keep_axes: true)
      Nx.multiply(centred, Nx.rsqrt(Nx.add(variance, 1.0e-5)))
    end

    assert_follows(params, inputs, fn {qkv, out, up, down}, [x, target] ->
      heads = fn t -> t |> Nx.reshape({2, 4, 2, 4}) |> Nx.transpose(axes: [0, 2, 1, 3]) end
      joined = x |> norm.() |> Nx.dot(qkv)
      [q, k, v] = for i <- 0..2, do: heads.(Nx.slice_along_axis(joined, 8 * i, 8, axis: 2))

      scores = Nx.divide(Nx.dot(q, [3], [0, 1], k, [3], [0, 1]), 2)
      causal = Nx.greater_equal(Nx.iota({4, 4}, axis: 0), Nx.iota({4, 4}, axis: 1))
      scores = Nx.select(Nx.broadcast(causal, {2, 2, 4, 4}), scores, -1.0e9)
      weights = Nx.exp(Nx.subtract(scores, Nx.reduce_max(scores, axes: [-1], keep_axes: true)))
      weights = Nx.divide(weights, Nx.sum(weights, axes: [-1], keep_axes: true))

      attended = Nx.dot(weights, [3], [0, 1], v, [2], [0, 1])
      attended = attended |> Nx.transpose(axes: [0, 2, 1, 3]) |> Nx.reshape({2, 4, 8})
      x = Nx.add(x, Nx.dot(attended, out))
      x = Nx.add(x, x |> norm.() |> Nx.dot(up) |> Nx.sigmoid() |> Nx.dot(down))
      error = Nx.subtract(x, target)
      Nx.mean(Nx.multiply(error, error))
    end)
  end
end
