defmodule Emily.StreamStressTest do
  # Many streams, processes and tensors. The counts of a normal run are small; those of a soak are the
  # ones that the package promises. Not async: figures of the whole operating system process are compared.
  use ExUnit.Case, async: false

  import Emily.Elements
  import Emily.Eventually

  alias Emily.{Footprint, Memory, Native, Stream}
  alias Emily.Native.Nif

  @f32 {:f, 32}
  @megabyte 1_000_000

  defp compute(worker, number) do
    read(worker, Native.add(worker, tensor([number * 1.0], @f32), tensor([1.0], @f32)))
  end

  defp settle do
    :erlang.garbage_collect()
    Nif.flush()
  end

  # The figures of a soak.
  defp report(figures, true), do: IO.puts("\n" <> figures)
  defp report(_figures, false), do: :ok

  # In batches, so that streams live side by side as they do in a server.
  defp for_batches(count, fun) do
    for first <- 1..count//16 do
      tasks =
        for n <- first..min(first + 15, count), do: Task.async(fn -> fun.(n) end)

      Task.await_many(tasks, 60_000)
    end

    settle()
  end

  describe "streams leave nothing behind" do
    @describetag skip: not Footprint.known?()

    defp make_and_collect(n) do
      stream = Stream.new(Emily.TestDevice.device())
      assert {_, _, [sum]} = compute(stream.worker, n)
      assert sum == n + 1.0
    end

    defp make_and_close(n) do
      stream = Stream.new(Emily.TestDevice.device())
      assert {_, _, [sum]} = compute(stream.worker, n)
      assert sum == n + 1.0
      Stream.close(stream)
    end

    defp assert_flat(count, fun) do
      for_batches(500, fun)
      before = Footprint.now()
      for_batches(count, fun)

      # Threads of the BEAM come and go, and a worker's ends when it is joined.
      after_all =
        eventually(fn ->
          settle()
          now = Footprint.now()
          now.threads <= before.threads + 2 && now
        end)

      assert after_all.files <= before.files + 2
      assert after_all.resident - before.resident < 20 * @megabyte
      report("#{count} streams: #{inspect(before)} -> #{inspect(after_all)}", count >= 10_000)
    end

    test "when they are collected", do: assert_flat(500, &make_and_collect/1)
    test "when they are closed", do: assert_flat(500, &make_and_close/1)

    @tag :soak
    @tag timeout: 900_000
    test "when 10,000 are collected", do: assert_flat(10_000, &make_and_collect/1)

    @tag :soak
    @tag timeout: 900_000
    test "when 10,000 are closed", do: assert_flat(10_000, &make_and_close/1)
  end

  describe "a lazy tensor" do
    # What every round must give, computed on one stream alone.
    defp graph(worker, round) do
      x = Native.arange(worker, 0.0, 64.0, 1.0, @f32)
      x = Native.reshape(worker, Native.sin(worker, x), [8, 8])
      x = Native.add(worker, x, tensor([round / 7], @f32))
      Native.matmul(worker, x, Native.transpose(worker, x, [1, 0]))
    end

    defp use_of(worker, tensor, n) do
      sum = Native.add(worker, Native.tanh(worker, tensor), tensor([n * 1.0], @f32))
      Native.to_binary(worker, Native.sum(worker, sum, [-1], false))
    end

    defp serial(round, users) do
      stream = Stream.new(Emily.TestDevice.device())
      for n <- 1..users, do: use_of(stream.worker, graph(stream.worker, round), n)
    end

    # The home of the tensor is open, closed, or collected with the process that made it.
    defp lazy_of(:open, round) do
      stream = Stream.new(Emily.TestDevice.device())
      Process.put(:kept, stream)
      graph(stream.worker, round)
    end

    defp lazy_of(:closed, round) do
      stream = Stream.new(Emily.TestDevice.device())
      tensor = graph(stream.worker, round)
      Stream.close(stream)
      tensor
    end

    defp lazy_of(:collected, round) do
      Task.await(Task.async(fn -> graph(Stream.new(Emily.TestDevice.device()).worker, round) end))
    end

    defp assert_shared(rounds, users) do
      test = self()

      pids =
        for n <- 1..users do
          spawn_link(fn -> user(test, Stream.new(Emily.TestDevice.device()).worker, n) end)
        end

      for round <- 1..rounds do
        fate = Enum.at([:open, :closed, :collected], rem(round, 3))
        tensor = lazy_of(fate, round)
        for pid <- pids, do: send(pid, {:use, tensor})
        got = for n <- 1..users, do: assert_receive({:used, ^n, bytes}, 60_000) && bytes
        assert {round, fate, got} == {round, fate, serial(round, users)}
      end

      for pid <- pids, do: send(pid, :stop)
    end

    defp user(test, worker, n) do
      receive do
        {:use, tensor} ->
          send(test, {:used, n, use_of(worker, tensor, n)})
          user(test, worker, n)

        :stop ->
          :ok
      end
    end

    test "is shared by 16 processes on 16 streams, whatever becomes of its own" do
      assert_shared(60, 16)
    end

    @tag :soak
    @tag timeout: 900_000
    test "is shared 1,000 times", do: assert_shared(1_000, 16)
  end

  describe "a long graph" do
    # Each step takes the last result and an older one; results are dropped, and now and then collected.
    defp long(worker, seed, each) do
      x = tensor(for(n <- 1..64, do: :math.sin(n * seed)), @f32)

      {last, kept, middle} =
        Enum.reduce(1..120, {x, [x], nil}, fn n, {y, kept, middle} ->
          older = Enum.at(kept, rem(n * 7 + seed, length(kept)))
          product = Native.tanh(worker, Native.multiply(worker, y, older))
          z = Native.add(worker, product, x)
          each.(z)
          if rem(n * seed, 23) == 0, do: :erlang.garbage_collect()
          {z, [z | Enum.take(kept, 5)], if(n == 70, do: z, else: middle)}
        end)

      {last, middle, Enum.at(kept, 3)}
    end

    defp long_user(others, worker, expected, rounds) do
      for _ <- 1..rounds, {seed, {last, middle, kept}} <- expected do
        {a, b, c} = long(worker, seed, fn _ -> :ok end)
        other = Enum.random(others)
        assert {seed, read(other, b)} == {seed, middle}
        assert {seed, read(worker, a)} == {seed, last}
        if seed == 2, do: Native.deallocate(b)
        assert {seed, read(other, c)} == {seed, kept}
      end
    end

    # On a card a worker begins with it before it is asked for.
    test "gives the bits of one that is computed op by op, on 8 streams that read each other's" do
      device = Emily.TestDevice.device()
      one = Stream.new(device).worker

      expected =
        for seed <- 1..4 do
          {a, b, c} = long(one, seed, &Native.eval(one, &1))
          {seed, {read(one, a), read(one, b), read(one, c)}}
        end

      streams = for _ <- 1..8, do: Stream.new(device)
      workers = Enum.map(streams, & &1.worker)
      user = fn worker -> long_user(workers -- [worker], worker, expected, 5) end
      workers |> Enum.map(&Task.async(fn -> user.(&1) end)) |> Task.await_many(60_000)
      Enum.each(streams, &Stream.close/1)
    end
  end

  describe "callers killed at random" do
    defp assert_survives(kills) do
      :rand.seed(:exsss, {kills, 5, 1})
      streams = for _ <- 1..4, do: Stream.new(Emily.TestDevice.device())

      # A slot keeps the thread that MLX made for it, so that all that will be used are used before.
      warm = for _ <- 1..(div(kills, 8) + 16), do: Stream.new(Emily.TestDevice.device())
      for stream <- streams ++ warm, do: work(stream, 3)
      for stream <- warm, do: Stream.close(stream)
      settle()
      Nif.flush()
      before = {Memory.stats().active, footprint_threads()}

      victims =
        for n <- 1..kills do
          stream = Enum.at(streams, rem(n, 4))
          {pid, monitor} = spawn_monitor(fn -> busy(stream, own_or(stream, n)) end)
          {pid, monitor, :rand.uniform(2_000)}
        end

      # Killed in another order than they were made, while others work, answer and wait; in between this
      # process computes too, which takes as long as there is work before it.
      for {pid, _monitor, key} <- Enum.sort_by(victims, &elem(&1, 2)) do
        assert {_, _, [4.0]} = work(Enum.at(streams, rem(key, 4)), 3)
        Process.exit(pid, :kill)
      end

      for {pid, monitor, _key} <- victims do
        assert_receive {:DOWN, ^monitor, :process, ^pid, :killed}, 60_000
      end

      for stream <- streams do
        assert {_, _, [4.0]} = work(stream, 3)
        eventually(fn -> Stream.info(stream).queue_depth == 0 end)
      end

      {active, threads} = before
      eventually(fn -> settled_active() <= active end)
      eventually(fn -> footprint_threads() <= threads + 2 end)

      report(
        "#{kills} killed: active #{active} -> #{settled_active()} bytes, " <>
          "threads #{threads} -> #{footprint_threads()}",
        kills >= 500
      )

      assert elem(Process.info(self(), :messages), 1) == []
    end

    defp settled_active do
      settle()
      Memory.stats().active
    end

    defp footprint_threads, do: if(Footprint.known?(), do: Footprint.now().threads, else: 0)

    defp work(stream, number), do: compute(stream.worker, number)

    # For ever: builds, evaluates, reads, has several outputs made, and crosses streams.
    defp busy(stream, own) do
      a = Native.full(stream.worker, [96, 96], tensor([1.0 / 96], @f32, []), @f32)
      product = Native.matmul(stream.worker, a, a)
      _ = Native.to_binary(own.worker, Native.sum(own.worker, product, [0], false))

      {q, _r} =
        Native.linalg_qr(
          stream.worker,
          Native.slice(stream.worker, product, [0, 0], [16, 16], [1, 1])
        )

      Native.eval(stream.worker, Native.exp(stream.worker, q))
      busy(stream, own)
    end

    defp own_or(stream, n),
      do: if(rem(n, 8) == 0, do: Stream.new(Emily.TestDevice.device()), else: stream)

    test "leak nothing, and the streams work on", do: assert_survives(100)

    @tag :soak
    @tag timeout: 900_000
    test "500 of them", do: assert_survives(500)
  end

  describe "a scheduler" do
    # A busy machine interrupts any slice of any process, so that slices are counted and not forbidden: a
    # function that holds its scheduler does so in every call.
    defp long_slices(funs) do
      test = self()
      watcher = spawn_link(fn -> watch(test, []) end)
      :erlang.system_monitor(watcher, [{:long_schedule, 1}])
      started = for fun <- funs, do: spawn_monitor(fun)

      for {pid, monitor} <- started do
        assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}, 600_000
      end

      send(watcher, :report)
      assert_receive {:slices, pids}, 60_000
      :erlang.system_monitor(:undefined)
      for {pid, _monitor} <- started, do: Enum.count(pids, &(&1 == pid))
    end

    defp watch(test, pids) do
      receive do
        {:monitor, pid, :long_schedule, _info} -> watch(test, [pid | pids])
        :report -> send(test, {:slices, pids})
      end
    end

    defp write_and_read(bytes, rounds) do
      fn ->
        w = Stream.new(Emily.TestDevice.device()).worker

        for _ <- 1..rounds do
          tensor = Emily.from_binary(bytes, [byte_size(bytes)], {:u, 8})
          assert byte_size(Native.to_binary(w, tensor)) == byte_size(bytes)
          Native.deallocate(tensor)
          :erlang.yield()
        end
      end
    end

    # The same without the scheduler for long calls.
    defp write_on_scheduler(bytes, rounds) do
      fn ->
        for _ <- 1..rounds do
          Nif.from_binary(bytes, [byte_size(bytes)], {:u, 8}, :cpu)
          # A slice is told when it ends.
          :erlang.yield()
        end
      end
    end

    defp compute_many(count, number) do
      fn ->
        w = Stream.new(Emily.TestDevice.device()).worker
        for _ <- 1..count, do: compute(w, number)
      end
    end

    defp collect_many(count) do
      fn ->
        w = Stream.new(Emily.TestDevice.device()).worker
        x = tensor([1.0], @f32)
        for _ <- 1..count, do: Native.exp(w, Native.add(w, x, x))
      end
    end

    test "is not held while large binaries are written, read and given back" do
      bytes = :binary.copy(:binary.copy(<<1>>, @megabyte), 64)
      rounds = 20
      [ours] = long_slices([write_and_read(bytes, rounds)])
      [held] = long_slices([write_on_scheduler(bytes, rounds)])
      assert held >= div(rounds, 2)
      assert ours <= div(rounds, 2)
    end

    @tag :soak
    @tag timeout: 900_000
    test "is not held while 16 processes compute and 100,000 tensors are collected" do
      bytes = :binary.copy(:binary.copy(<<1>>, @megabyte), 256)
      computing = for n <- 1..16, do: compute_many(6_250, n)

      [large, collecting | computing] =
        long_slices([write_and_read(bytes, 40), collect_many(100_000) | computing])

      report(
        "slices of 1 ms: #{Enum.sum(computing)} of 100,000 computations, " <>
          "#{collecting} of 100,000 tensors collected, #{large} of 120 calls with 256 MB",
        true
      )

      assert Enum.sum(computing) < 1_000
      assert collecting < 1_000
      assert large < 20
    end
  end
end
