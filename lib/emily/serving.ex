defmodule Emily.Serving do
  @moduledoc """
  Gives an `Nx.Serving` streams of its own, one for each partition.

      serving =
        Nx.Serving.new(
          fn options ->
            predict = Nx.Defn.jit(&MyModel.predict/2, options)
            fn batch -> predict.(batch, weights) end
          end,
          compiler: Emily.Compiler
        )
        |> Emily.Serving.with_streams()

      children = [{Nx.Serving, serving: serving, name: MyServing, batch_size: 8}]

  ## Which process computes where

    * `Nx.Serving.run/2` computes in the process that calls it, and so on that process's stream: the one of
      `Emily.Stream.with_stream/2`, else the default one.
    * `Nx.Serving.batched_run/2` sends the input to the serving's process, which computes each batch in a
      task. Neither sees the caller's stream. Without `with_streams/2` they compute on the default
      stream; with it, batches of partition `n` compute on the serving's stream `n`.

  ## Concurrency patterns

  One model and a pool of streams: weights are read by all streams, so one copy serves them all. With
  `partitions: true` in the child specification a serving has as many partitions as its compiler says,
  which for `Emily.Compiler` and `Nx.Defn.Evaluator` is `:max_concurrency`:

      Nx.Serving.new(&build/1, compiler: Emily.Compiler, max_concurrency: 4)
      |> Emily.Serving.with_streams()

  Several servings: each with `with_streams/2` computes beside the others. They share weights that were
  loaded once and given to all of them, and have copies where each loads its own.
  """

  @behaviour Nx.Serving

  @doc """
  Returns the serving with a stream for each of its partitions.

  The streams are made when the serving's process starts and end with it. Results are computed in the
  serving's task, so that a partition is free again when its work is done.

  Options: `:device`, `:gpu` (default) or `:cpu`, as for `Emily.Stream.new/1`.
  """
  @spec with_streams(Nx.Serving.t(), keyword) :: Nx.Serving.t()
  def with_streams(%Nx.Serving{module: module, arg: arg} = serving, options \\ []) do
    options = Keyword.validate!(options, device: :gpu)
    %{serving | module: __MODULE__, arg: {module, arg, options[:device]}}
  end

  @impl true
  def init(:inline, {module, arg, _device}, partitions) do
    # Computes in the caller, whose stream it is to use.
    with {:ok, state} <- module.init(:inline, arg, partitions), do: {:ok, {module, state, nil}}
  end

  def init(:process, {module, arg, device}, partitions) do
    streams = List.to_tuple(Enum.map(partitions, fn _ -> Emily.Stream.new(device) end))

    Emily.Stream.with_stream(elem(streams, 0), fn ->
      with {:ok, state} <- module.init(:process, arg, partitions) do
        {:ok, {module, state, streams}}
      end
    end)
  end

  @impl true
  def handle_batch(batch, partition, {module, state, streams}) do
    {:execute, function, state} = module.handle_batch(batch, partition, state)
    {:execute, on_stream(function, streams && elem(streams, partition)), {module, state, streams}}
  end

  defp on_stream(function, nil), do: function

  defp on_stream(function, stream) do
    fn ->
      Emily.Stream.with_stream(stream, fn ->
        {output, metadata} = function.()
        evaluate(stream, output)
        {output, metadata}
      end)
    end
  end

  # All at once: shared parts of the outputs' graphs are computed once.
  defp evaluate(stream, output) do
    refs =
      [output]
      |> Nx.Defn.Composite.flatten_list()
      |> Enum.flat_map(fn
        %Nx.Tensor{data: %Emily.Backend{ref: ref}} -> [ref]
        _other -> []
      end)

    Emily.Native.Call.eval(stream.worker, refs)
  end
end
