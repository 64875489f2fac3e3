defmodule Emily.ServingTest do
  # Not async: compares the memory of the whole VM.
  use ExUnit.Case, async: false

  alias Emily.{Gate, Memory, Serving, Stream}

  @features 1_000
  @weight_bytes 4 * @features * @features

  setup do
    Nx.default_backend(Emily.Backend)
    # Every column sums to 1, so that ones stay ones.
    elements = :binary.copy(<<1 / @features::float-32-native>>, @features * @features)
    weights = Nx.reshape(Nx.from_binary(elements, :f32), {@features, @features})
    :ok = Emily.eval(weights.data.ref)
    assert Memory.stats().active >= @weight_bytes
    {:ok, weights: weights}
  end

  # Each batch reports where it is computed, and waits to be told to go on.
  defp serving(name, weights, options \\ []) do
    test = self()

    Nx.Serving.new(
      fn _options ->
        fn batch ->
          send(test, {:inside, name, self(), Process.get(:emily_worker)})

          receive do
            :go -> Nx.dot(batch, weights)
          end
        end
      end,
      options
    )
  end

  defp start(name, serving, options \\ []) do
    start_supervised!(
      {Nx.Serving, [serving: serving, name: name, batch_size: 1, batch_timeout: 1] ++ options},
      id: name
    )
  end

  defp run(name) do
    Task.async(fn ->
      Nx.default_backend(Emily.Backend)
      input = Nx.broadcast(Nx.tensor(1.0, type: :f32), {@features})
      result = Nx.Serving.batched_run(name, Nx.Batch.stack([input]))
      {Nx.shape(result), Nx.to_number(Nx.mean(result))}
    end)
  end

  defp inside(name) do
    assert_receive {:inside, ^name, pid, worker}, 60_000
    {pid, worker}
  end

  defp assert_ones({shape, mean}) do
    assert shape == {1, @features}
    assert_in_delta mean, 1.0, 1.0e-4
  end

  # Both have begun and neither has ended. One's worker is held, and the other computes to its end.
  defp assert_at_the_same_time({first, first_task}, {second, second_task}, folder) do
    {{first_pid, first_worker}, {second_pid, second_worker}} = {first, second}
    assert is_reference(first_worker) and is_reference(second_worker)
    assert first_worker != second_worker and first_pid != second_pid

    gate = Gate.hold(first_worker, folder)
    send(first_pid, :go)
    send(second_pid, :go)
    assert_ones(Task.await(second_task, 60_000))
    assert Task.yield(first_task, 0) == nil

    Gate.open(gate)
    assert_ones(Task.await(first_task, 60_000))
  end

  @tag :tmp_dir
  test "two servings compute at the same time on one copy of the weights", %{
    weights: weights,
    tmp_dir: folder
  } do
    for name <- [:first, :second], do: start(name, Serving.with_streams(serving(name, weights)))
    Memory.reset_peak()
    active = Memory.stats().active

    for _ <- 1..5 do
      tasks = for name <- [:first, :second], do: run(name)
      insides = [inside(:first), inside(:second)]
      [a, b] = Enum.zip(insides, tasks)
      assert_at_the_same_time(a, b, folder)

      # And the other way round.
      tasks = for name <- [:first, :second], do: run(name)
      [a, b] = Enum.zip([inside(:first), inside(:second)], tasks)
      assert_at_the_same_time(b, a, folder)
    end

    assert Memory.stats().peak < active + div(@weight_bytes, 2)
  end

  @tag :tmp_dir
  test "two partitions of one serving do too", %{weights: weights, tmp_dir: folder} do
    options = [compiler: Nx.Defn.Evaluator, max_concurrency: 2]
    start(:pool, Serving.with_streams(serving(:pool, weights, options)), partitions: true)
    Memory.reset_peak()
    active = Memory.stats().active

    workers =
      for _ <- 1..5 do
        tasks = for _ <- 1..2, do: run(:pool)
        insides = for _ <- 1..2, do: inside(:pool)

        # Who of the callers is in which partition shows when it ends.
        [{held_pid, held_worker}, {free_pid, free_worker}] = Enum.sort_by(insides, &elem(&1, 1))
        assert held_worker != free_worker
        gate = Gate.hold(held_worker, folder)
        for pid <- [held_pid, free_pid], do: send(pid, :go)
        {:ok, free_task, ones} = first_of(tasks)
        assert_ones(ones)
        [held_task] = tasks -- [free_task]
        assert Task.yield(held_task, 0) == nil
        Gate.open(gate)
        assert_ones(Task.await(held_task, 60_000))
        Enum.sort([held_worker, free_worker])
      end

    # Each partition keeps its stream.
    assert length(Enum.uniq(workers)) == 1
    assert Memory.stats().peak < active + div(@weight_bytes, 2)
  end

  @tag :tmp_dir
  test "partitions of the compiler have streams of their own", %{
    weights: weights,
    tmp_dir: folder
  } do
    test = self()

    serving =
      Nx.Serving.new(
        fn options ->
          send(test, {:stream, options[:stream]})
          predict = Nx.Defn.jit(&Nx.dot/2, options)
          fn batch -> predict.(batch, weights) end
        end,
        compiler: Emily.Compiler,
        native_fallback: :raise,
        max_concurrency: 2
      )

    start(:compiled, serving, partitions: true)
    [first, second] = for _ <- 1..2, do: receive_stream()
    assert first != second
    Memory.reset_peak()
    active = Memory.stats().active

    for held <- [first, second] do
      gate = Gate.hold(held.worker, folder)
      tasks = for _ <- 1..2, do: run(:compiled)
      {:ok, free_task, ones} = first_of(tasks)
      assert_ones(ones)
      [held_task] = tasks -- [free_task]
      assert Task.yield(held_task, 0) == nil
      Gate.open(gate)
      assert_ones(Task.await(held_task, 60_000))
    end

    assert Memory.stats().peak < active + div(@weight_bytes, 2)
  end

  defp receive_stream do
    assert_receive {:stream, %Stream{} = stream}, 60_000
    stream
  end

  defp first_of(tasks) do
    refs = for task <- tasks, do: task.ref

    receive do
      {ref, answer} when is_reference(ref) ->
        true = ref in refs
        Process.demonitor(ref, [:flush])
        {:ok, Enum.find(tasks, &(&1.ref == ref)), answer}
    after
      60_000 -> flunk("neither partition ended")
    end
  end

  test "without streams both compute on the default worker", %{weights: weights} do
    start(:plain, serving(:plain, weights))
    stream = Stream.new(Emily.TestDevice.device())
    # A caller's stream is not the serving's.
    task = Stream.with_stream(stream, fn -> run(:plain) end)
    {pid, nil} = inside(:plain)
    send(pid, :go)
    assert_ones(Task.await(task, 60_000))
  end

  test "run computes in the caller, on the caller's stream", %{weights: weights} do
    serving = Serving.with_streams(serving(:inline, weights))
    stream = Stream.new(Emily.TestDevice.device())
    send(self(), :go)
    input = Nx.broadcast(Nx.tensor(1.0, type: :f32), {@features})

    result =
      Stream.with_stream(stream, fn -> Nx.Serving.run(serving, Nx.Batch.stack([input])) end)

    assert inside(:inline) == {self(), stream.worker}
    assert_ones({Nx.shape(result), Nx.to_number(Nx.mean(result))})
  end

  test "a stream is made for the device that is asked for, and options are checked" do
    serving = Nx.Serving.new(fn _ -> fn batch -> batch end end)
    assert %Nx.Serving{module: Serving} = Serving.with_streams(serving, device: :cpu)

    assert_raise ArgumentError, ~r/unknown keys \[:devise\]/, fn ->
      Serving.with_streams(serving, devise: :cpu)
    end

    Process.flag(:trap_exit, true)

    assert {:error, reason} =
             Nx.Serving.start_link(
               serving: Serving.with_streams(serving, device: :tpu),
               name: :wrong,
               batch_size: 1
             )

    assert inspect(reason) =~ "expected :device to be :cpu or :gpu, got: :tpu"
  end
end
