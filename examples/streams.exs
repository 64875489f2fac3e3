# Streams with Nx: several processes and two kinds of serving on one copy of a model's weights.
#
#     mix run examples/streams.exs

defmodule Digits do
  @moduledoc "A classifier with random weights: what matters here is who computes where."
  import Nx.Defn

  def weights do
    key = Nx.Random.key(42)
    {w1, key} = Nx.Random.normal(key, 0.0, 0.05, shape: {784, 1024})
    {w2, key} = Nx.Random.normal(key, 0.0, 0.05, shape: {1024, 1024})
    {w3, _key} = Nx.Random.normal(key, 0.0, 0.05, shape: {1024, 10})
    %{w1: w1, w2: w2, w3: w3}
  end

  defn predict(images, weights) do
    images
    |> Nx.dot(weights.w1)
    |> Nx.max(0)
    |> Nx.dot(weights.w2)
    |> Nx.max(0)
    |> Nx.dot(weights.w3)
    |> Nx.argmax(axis: -1)
  end

  @doc "A serving's function: the weights are an argument, so that they are shared and not inlined."
  def classifier(weights, options) do
    predict = Nx.Defn.jit(&predict/2, options)
    fn batch -> predict.(batch, weights) end
  end

  def images(seed, count) do
    {images, _key} = Nx.Random.uniform(Nx.Random.key(seed), shape: {count, 784})
    images
  end
end

Nx.global_default_backend(Emily.Backend)
mib = fn bytes -> "#{Float.round(bytes / 1_048_576, 1)} MiB" end

weights = Digits.weights()
for {_name, tensor} <- weights, do: Nx.to_binary(tensor)
Emily.Memory.clear_cache()
IO.puts("weights: #{mib.(Emily.Memory.stats().active)} active in MLX")

IO.puts("\n1. A stream for each process, the same weights for all")

serial = for seed <- 1..4, do: Digits.images(seed, 64) |> Digits.predict(weights) |> Nx.to_list()

parallel =
  1..4
  |> Enum.map(fn seed ->
    Task.async(fn ->
      stream = Emily.Stream.new()

      Emily.Stream.with_stream(stream, fn ->
        Digits.images(seed, 64) |> Digits.predict(weights) |> Nx.to_list()
      end)
    end)
  end)
  |> Task.await_many(:infinity)

IO.puts("   four processes, four streams, equal to one after the other: #{parallel == serial}")

IO.puts("\n2. One serving, two partitions, a stream for each")

serving =
  Nx.Serving.new(&Digits.classifier(weights, &1), compiler: Emily.Compiler, max_concurrency: 2)
  |> Emily.Serving.with_streams()

{:ok, _} =
  Nx.Serving.start_link(
    serving: serving,
    name: DigitServing,
    partitions: true,
    batch_size: 64,
    batch_timeout: 10
  )

served =
  1..4
  |> Enum.map(fn seed ->
    Task.async(fn ->
      batch = Nx.Batch.concatenate([Digits.images(seed, 64)])
      Nx.Serving.batched_run(DigitServing, batch) |> Nx.to_list()
    end)
  end)
  |> Task.await_many(:infinity)

IO.puts("   four clients, two partitions, the same answers: #{served == serial}")

IO.puts("\n3. Two servings beside each other, both with the weights loaded above")

for name <- [Left, Right] do
  serving =
    Nx.Serving.new(&Digits.classifier(weights, &1), compiler: Emily.Compiler)
    |> Emily.Serving.with_streams()

  {:ok, _} =
    Nx.Serving.start_link(serving: serving, name: name, batch_size: 64, batch_timeout: 10)
end

both =
  [{Left, 1}, {Right, 2}, {Left, 3}, {Right, 4}]
  |> Enum.map(fn {name, seed} ->
    Task.async(fn ->
      batch = Nx.Batch.concatenate([Digits.images(seed, 64)])
      Nx.Serving.batched_run(name, batch) |> Nx.to_list()
    end)
  end)
  |> Task.await_many(:infinity)

IO.puts("   the same answers: #{both == serial}")

:erlang.garbage_collect()
Emily.Memory.clear_cache()

IO.puts(
  "\nafter all that: #{mib.(Emily.Memory.stats().active)} active, still one copy of the weights"
)

unless parallel == serial and served == serial and both == serial, do: System.halt(1)
