defmodule Emily.StreamTest do
  # Not async: closes default workers and changes the application's environment.
  use ExUnit.Case, async: false

  import Emily.Elements
  import Emily.Eventually

  alias Emily.{Gate, Native, Stream}
  alias Emily.Native.Nif

  doctest Emily
  doctest Emily.Stream

  @f32 {:f, 32}

  defp configure(key, value) do
    before = Application.fetch_env(:emily, key)
    Application.put_env(:emily, key, value)

    on_exit(fn ->
      case before do
        {:ok, value} -> Application.put_env(:emily, key, value)
        :error -> Application.delete_env(:emily, key)
      end
    end)
  end

  defp wait_at_most(milliseconds) do
    key = {Emily, :await_timeout}
    before = :persistent_term.get(key)
    :persistent_term.put(key, milliseconds)
    on_exit(fn -> :persistent_term.put(key, before) end)
  end

  defp mailbox, do: elem(Process.info(self(), :messages), 1)

  # A lazy tensor of n times n elements of n.
  defp product(worker, n) do
    ones = Native.ones(worker, [n, n], @f32)
    Native.matmul(worker, ones, ones)
  end

  defp lazy(worker, values) do
    Native.add(worker, tensor(values, @f32), tensor([1.0], @f32))
  end

  describe "new/1" do
    test "makes open streams of the device that was asked for" do
      for device <- Stream.devices() do
        assert %{device: ^device, open: true, queue_depth: 0} = Stream.info(Stream.new(device))
      end
    end

    test "gives each stream a worker of its own" do
      workers = for _ <- 1..8, do: Stream.new(Emily.TestDevice.device()).worker
      assert length(Enum.uniq(workers)) == 8
    end

    for device <- [:tpu, "cpu", nil, 0, {:cpu, 0}, true] do
      test "refuses the device #{inspect(device)}" do
        message = "expected :device to be :cpu or :gpu, got: #{inspect(unquote(device))}"
        assert_raise ArgumentError, message, fn -> Stream.new(unquote(device)) end
      end
    end

    test "refuses a queue limit that is none" do
      for limit <- [0, -1, :many, 1.5, 1_000_000_000_000] do
        configure(:worker_queue_limit, limit)
        error = assert_raise ArgumentError, fn -> Stream.new(Emily.TestDevice.device()) end
        assert error.message =~ "wrong queue limit, expected an integer from 1 to 2^24"
      end
    end

    if :gpu not in Nif.devices() do
      test "computes on the CPU where there is no GPU" do
        assert %{device: :cpu} = Stream.info(Stream.new(:gpu))
        assert %{device: :cpu} = Stream.info(Stream.new())
      end

      test "raises where there is no GPU and that is to be an error" do
        configure(:gpu_unavailable, :raise)
        assert_raise ArgumentError, ~r/there is no GPU on this host/, fn -> Stream.new(:gpu) end
        assert_raise ArgumentError, ~r/there is no GPU on this host/, fn -> Stream.new() end
        assert %{device: :cpu} = Stream.info(Stream.new(:cpu))
        # Whoever asks for no device gets what there is.
        assert Emily.to_binary(tensor([1.0], @f32)) == encode([1.0], @f32)
      end
    end

    test "refuses the 513th stream and makes one again when there is room" do
      streams = make_streams([])
      assert length(streams) <= 512

      assert_raise RuntimeError, ~r/512 streams are in use/, fn ->
        Stream.new(Emily.TestDevice.device())
      end

      Enum.each(streams, &Stream.close/1)
      Nif.flush()
      assert %{open: true} = Stream.info(eventually(fn -> new_or_nil() end))
    end

    test "collects the streams that the process has dropped before it refuses one" do
      # A heap so large that nothing is collected meanwhile.
      fun = fn -> for(_ <- 1..600, do: Stream.info(Stream.new(:cpu)).open) |> Enum.all?() end
      parent = self()
      run = fn -> send(parent, {:all_open, fun.()}) end
      {pid, monitor} = Process.spawn(run, [:monitor, min_heap_size: 4_000_000])
      assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}, 60_000
      assert_received {:all_open, true}
    end

    defp make_streams(streams) do
      case new_or_nil() do
        nil -> streams
        stream -> make_streams([stream | streams])
      end
    end

    defp new_or_nil do
      Stream.new(Emily.TestDevice.device())
    rescue
      RuntimeError -> nil
    end
  end

  describe "with_stream/2" do
    test "returns what the function returns" do
      assert Stream.with_stream(Stream.new(Emily.TestDevice.device()), fn -> {:any, 1} end) ==
               {:any, 1}
    end

    test "installs the stream and removes it" do
      stream = Stream.new(Emily.TestDevice.device())
      assert Stream.with_stream(stream, &Stream.worker/0) == stream.worker
      refute Stream.worker() == stream.worker
      assert Process.get(:emily_worker) == nil
    end

    test "nests" do
      [a, b, c] = for _ <- 1..3, do: Stream.new(Emily.TestDevice.device())

      Stream.with_stream(a, fn ->
        Stream.with_stream(b, fn ->
          Stream.with_stream(c, fn -> assert Stream.worker() == c.worker end)
          assert Stream.worker() == b.worker
          Stream.with_stream(a, fn -> assert Stream.worker() == a.worker end)
          assert Stream.worker() == b.worker
        end)

        assert Stream.worker() == a.worker
      end)

      assert Process.get(:emily_worker) == nil
    end

    test "restores the stream before it when the function raises, throws or exits" do
      {outer, inner} =
        {Stream.new(Emily.TestDevice.device()), Stream.new(Emily.TestDevice.device())}

      Stream.with_stream(outer, fn ->
        assert_raise KeyError, fn ->
          Stream.with_stream(inner, fn -> raise KeyError, key: 1, term: %{} end)
        end

        assert Stream.worker() == outer.worker
        assert catch_throw(Stream.with_stream(inner, fn -> throw(:ball) end)) == :ball
        assert Stream.worker() == outer.worker
        assert catch_exit(Stream.with_stream(inner, fn -> exit(:gone) end)) == :gone
        assert Stream.worker() == outer.worker
      end)

      assert Process.get(:emily_worker) == nil
    end

    test "speaks for its own process only" do
      stream = Stream.new(Emily.TestDevice.device())

      Stream.with_stream(stream, fn ->
        refute Task.await(Task.async(&Stream.worker/0)) == stream.worker
      end)
    end

    test "makes the process compute on the stream", %{} do
      stream = Stream.new(Emily.TestDevice.device())

      sum =
        Stream.with_stream(stream, fn ->
          Native.add(Stream.worker(), tensor([1.0], @f32), tensor([2.0], @f32))
        end)

      # The bytes of a stream's tensors are counted, and this is the only one.
      assert Stream.info(stream).bytes == 4
      assert read(stream.worker, sum) == {@f32, [1], [3.0]}
    end

    test "frees what is collected, though nobody asks it for anything any more" do
      stream = Stream.new(Emily.TestDevice.device())
      one = tensor([1.0], @f32)
      for _ <- 1..100, do: Native.eval(stream.worker, Native.add(stream.worker, one, one))
      :erlang.garbage_collect()
      eventually(fn -> Stream.info(stream).bytes == 0 end)
    end

    test "refuses what is no stream" do
      for other <- [nil, :cpu, make_ref(), %{worker: make_ref()}, %Stream{worker: :w}, self()] do
        error = assert_raise ArgumentError, fn -> Stream.with_stream(other, fn -> 1 end) end
        assert error.message == "with_stream: expected an Emily.Stream, got: #{inspect(other)}"
      end
    end

    test "refuses what is no function without arguments" do
      stream = Stream.new(Emily.TestDevice.device())

      for other <- [nil, 42, :fun, fn _ -> 1 end, &Kernel.+/2, {Kernel, :self, []}] do
        error = assert_raise ArgumentError, fn -> Stream.with_stream(stream, other) end
        assert error.message =~ "with_stream: expected a function without arguments, got: "
        assert error.message =~ inspect(other)
      end

      assert Process.get(:emily_worker) == nil
    end

    test "a foreign reference as a worker is found out at the first use" do
      tensor = tensor([1.0], @f32)

      for worker <- [make_ref(), tensor] do
        Stream.with_stream(%Stream{worker: worker}, fn ->
          for use <- [
                fn -> Emily.from_binary(<<0::32>>, [1], @f32) end,
                fn -> Native.exp(Stream.worker(), tensor) end,
                fn -> Emily.eval(tensor) end
              ] do
            error = assert_raise ArgumentError, use
            assert error.message =~ "wrong stream, expected a worker reference, got #Ref"
          end
        end)
      end
    end
  end

  describe "close/1" do
    test "is idempotent" do
      stream = Stream.new(Emily.TestDevice.device())
      assert Stream.close(stream) == :ok
      assert Stream.close(stream) == :ok
      assert %{open: false, queue_depth: 0} = Stream.info(stream)
    end

    test "makes later uses raise in every process" do
      stream = Stream.new(Emily.TestDevice.device())
      tensor = lazy(stream.worker, [1.0])
      Stream.close(stream)

      uses = [
        fn -> Native.exp(stream.worker, tensor([1.0], @f32)) end,
        fn -> Native.eval(stream.worker, tensor) end,
        fn -> Native.to_binary(stream.worker, tensor) end,
        fn -> Native.linalg_qr(stream.worker, tensor([1.0], @f32, [1, 1])) end,
        fn -> Stream.with_stream(stream, fn -> Emily.load("weights.npy") end) end
      ]

      for use <- uses do
        assert_raise RuntimeError, ~r/stream stopped/, use

        Task.await(Task.async(fn -> assert_raise RuntimeError, ~r/stream stopped/, use end))
      end

      assert mailbox() == []
    end

    test "leaves tensors usable on other streams" do
      stream = Stream.new(Emily.TestDevice.device())
      {lazy, ready} = {lazy(stream.worker, [1.0]), lazy(stream.worker, [2.0])}
      Native.eval(stream.worker, ready)
      Stream.close(stream)

      assert decode(Emily.to_binary(ready), @f32) == [3.0]
      assert decode(Emily.to_binary(lazy), @f32) == [2.0]
      other = Stream.new(Emily.TestDevice.device()).worker
      assert {_, _, [4.0]} = read(other, Native.add(other, lazy, lazy))
    end

    @tag :tmp_dir
    test "answers the waiting jobs and lets the running one end", %{tmp_dir: folder} do
      stream = Stream.new(Emily.TestDevice.device())
      gate = Gate.hold(stream.worker, folder)
      waiting = for _ <- 1..10, do: Task.async(fn -> attempt_eval(stream) end)
      eventually(fn -> Stream.info(stream).queue_depth == 10 end)

      Stream.close(stream)
      assert_raise RuntimeError, ~r/stream stopped/, fn -> product(stream.worker, 2) end
      Gate.open(gate)

      for task <- waiting do
        assert {:error, RuntimeError, message} = Task.await(task)
        assert message =~ "stream stopped"
      end

      assert %{open: false, queue_depth: 0} = Stream.info(stream)
    end

    test "refuses what is no stream" do
      for other <- [nil, make_ref(), %{}, self()] do
        message = "close: expected an Emily.Stream, got: #{inspect(other)}"
        assert_raise ArgumentError, message, fn -> Stream.close(other) end
        message = "info: expected an Emily.Stream, got: #{inspect(other)}"
        assert_raise ArgumentError, message, fn -> Stream.info(other) end
      end

      for worker <- [:worker, make_ref(), tensor([1], {:u, 8})] do
        assert_raise ArgumentError, ~r/wrong stream/, fn ->
          Stream.close(%Stream{worker: worker})
        end

        assert_raise ArgumentError, ~r/wrong stream/, fn ->
          Stream.info(%Stream{worker: worker})
        end
      end
    end

    defp attempt_eval(stream) do
      Native.eval(stream.worker, product(stream.worker, 2))
    rescue
      error -> {:error, error.__struct__, Exception.message(error)}
    end
  end

  describe "collection" do
    @tag :tmp_dir
    test "of a stream lets its queued jobs come to their end", %{tmp_dir: folder} do
      gate = queue_and_forget(folder)

      # Nobody refers to the worker any more, and it still is inside its first job.
      monitor = Process.monitor(gate.holder)
      Process.exit(gate.holder, :kill)
      assert_receive {:DOWN, ^monitor, :process, _, :killed}
      :erlang.garbage_collect()
      refute_received {_n, _answer}

      Gate.open(gate)
      for n <- 1..5, do: assert_receive({^n, :ok}, 60_000)

      for n <- 1..5 do
        assert decode(Emily.to_binary(Process.get({:product, n})), @f32) ==
                 List.duplicate(n * 1.0, n * n)
      end
    end

    # In a function of its own, so that this process has no reference to the stream when it returns.
    defp queue_and_forget(folder) do
      worker = Stream.new(Emily.TestDevice.device()).worker
      gate = Gate.hold(worker, folder)

      for n <- 1..5 do
        product = product(worker, n)
        Process.put({:product, n}, product)
        {:ok, _job} = Nif.eval(worker, [product], n)
      end

      gate
    end
  end

  describe "order" do
    @tag :tmp_dir
    test "of a stream's jobs is the order in which they came", %{tmp_dir: folder} do
      stream = Stream.new(Emily.TestDevice.device())
      gate = Gate.hold(stream.worker, folder)

      # All jobs wait behind the gate; the answers come in the order of the jobs.
      tags =
        for n <- 1..500 do
          {:ok, _job} = Nif.eval(stream.worker, [lazy(stream.worker, [n * 1.0])], n)
          n
        end

      assert Stream.info(stream).queue_depth == 500
      Gate.open(gate)
      assert receive_tags(500) == tags
      assert mailbox() == []
    end

    test "of random programs on random streams does not change their results" do
      for round <- 1..30 do
        :rand.seed(:exsss, {round, 2, 3})
        workers = for _ <- 1..3, do: Stream.new(Emily.TestDevice.device()).worker
        steps = for _ <- 1..40, do: {:rand.uniform(4), :rand.uniform(3), :rand.uniform(7) - 3}

        serial = run_steps(steps, fn _ -> hd(workers) end)
        spread = run_steps(steps, fn which -> Enum.at(workers, which - 1) end)
        assert spread == serial
      end
    end

    # Tensors that depend on each other, each made on one of the streams.
    defp run_steps(steps, worker_of) do
      start = [tensor([1.0, -2.0, 3.0], @f32)]

      tensors =
        Enum.reduce(steps, start, fn {op, which, number}, [last | _] = tensors ->
          w = worker_of.(which)
          other = Enum.at(tensors, rem(abs(number), length(tensors)))
          [step(op, w, last, other, number) | tensors]
        end)

      Enum.map(tensors, &Native.to_binary(worker_of.(1), &1))
    end

    defp step(1, w, last, other, _number), do: Native.subtract(w, last, other)
    defp step(2, w, last, other, _number), do: Native.maximum(w, last, other)
    defp step(3, w, last, _other, number), do: Native.add(w, last, tensor([number * 1.0], @f32))
    defp step(4, w, last, _other, _number), do: Native.tanh(w, last)

    defp receive_tags(0), do: []

    defp receive_tags(count) do
      tag = assert_receive {tag, :ok} when is_integer(tag), 60_000
      [elem(tag, 0) | receive_tags(count - 1)]
    end
  end

  describe "two streams" do
    @tag :tmp_dir
    test "compute independently: one goes on while the other is held", %{tmp_dir: folder} do
      {held, free} =
        {Stream.new(Emily.TestDevice.device()), Stream.new(Emily.TestDevice.device())}

      gate = Gate.hold(held.worker, folder)
      waiting = product(held.worker, 3)
      {:ok, _job} = Nif.eval(held.worker, [waiting], :waiting)

      for _ <- 1..50, do: assert({_, _, [2.0]} = read(free.worker, lazy(free.worker, [1.0])))
      refute Native.ready?(waiting)

      Gate.open(gate)
      assert_receive {:waiting, :ok}, 60_000
      assert Native.ready?(waiting)
    end
  end

  describe "a full queue" do
    @tag :tmp_dir
    test "is an error at once that leaves nothing behind", %{tmp_dir: folder} do
      configure(:worker_queue_limit, 4)
      stream = Stream.new(Emily.TestDevice.device())
      gate = Gate.hold(stream.worker, folder)
      for n <- 1..4, do: {:ok, _} = Nif.eval(stream.worker, [product(stream.worker, 2)], n)
      assert Stream.info(stream).queue_depth == 4

      for _ <- 1..3 do
        assert_raise RuntimeError, "stream queue full: 4 jobs are waiting", fn ->
          Native.eval(stream.worker, product(stream.worker, 2))
        end

        assert_raise RuntimeError, ~r/stream queue full/, fn ->
          Native.to_binary(stream.worker, product(stream.worker, 2))
        end

        assert_raise RuntimeError, ~r/stream queue full/, fn ->
          Native.linalg_qr(stream.worker, tensor([1.0], @f32, [1, 1]))
        end
      end

      # A tensor at home there cannot be made ready for another stream either.
      other = Stream.new(Emily.TestDevice.device()).worker

      assert_raise RuntimeError, ~r/stream queue full/, fn ->
        Native.exp(other, product(stream.worker, 2))
      end

      assert mailbox() == []
      Gate.open(gate)
      for n <- 1..4, do: assert_receive({^n, :ok}, 60_000)
      assert Native.eval(stream.worker, product(stream.worker, 2)) == :ok
      assert mailbox() == []
    end
  end

  describe "a time limit" do
    @tag :tmp_dir
    test "cancels the waiting job and leaves nothing in the mailbox", %{tmp_dir: folder} do
      stream = Stream.new(Emily.TestDevice.device())
      gate = Gate.hold(stream.worker, folder)
      wait_at_most(0)
      products = for _ <- 1..5, do: product(stream.worker, 2)
      message = "no answer from the stream in time (config :emily, :await_timeout)"

      for product <- products do
        assert_raise RuntimeError, message, fn -> Native.eval(stream.worker, product) end
      end

      matrix = tensor([1.0], @f32, [1, 1])
      assert_raise RuntimeError, message, fn -> Native.linalg_qr(stream.worker, matrix) end

      assert_raise RuntimeError, message, fn ->
        Native.to_binary(stream.worker, hd(products))
      end

      wait_at_most(:infinity)
      Gate.open(gate)

      # What comes behind the cancelled jobs is answered, so that they have been passed over by then.
      assert Native.eval(stream.worker, product(stream.worker, 2)) == :ok
      refute Enum.any?(products, &Native.ready?/1)
      assert mailbox() == []
      assert Stream.info(stream).queue_depth == 0
    end

    test "met by a race of answer and limit leaves nothing in the mailbox" do
      stream = Stream.new(Emily.TestDevice.device())
      wait_at_most(0)

      outcomes =
        for _ <- 1..2_000 do
          try do
            Native.eval(stream.worker, product(stream.worker, 8))
          rescue
            RuntimeError -> :late
          end
        end

      wait_at_most(:infinity)
      assert Enum.all?(outcomes, &(&1 in [:ok, :late]))
      assert Native.eval(stream.worker, product(stream.worker, 2)) == :ok
      assert mailbox() == []
    end
  end

  describe "a caller that dies" do
    @tag :tmp_dir
    test "takes its queued jobs with it", %{tmp_dir: folder} do
      stream = Stream.new(Emily.TestDevice.device())
      gate = Gate.hold(stream.worker, folder)
      product = product(stream.worker, 2)
      {caller, monitor} = spawn_monitor(fn -> Native.eval(stream.worker, product) end)
      eventually(fn -> Stream.info(stream).queue_depth == 1 end)
      Process.exit(caller, :kill)
      assert_receive {:DOWN, ^monitor, _, _, :killed}
      Gate.open(gate)

      # Another job has run behind it, so that it was passed over.
      assert Native.eval(stream.worker, product(stream.worker, 3)) == :ok
      refute Native.ready?(product)
      assert {_, _, [2.0, 2.0, 2.0, 2.0]} = read(stream.worker, product)
    end
  end

  describe "the default worker" do
    test "is the same in all processes" do
      worker = Stream.worker()
      assert Task.await(Task.async(&Stream.worker/0)) == worker
    end

    test "is replaced when somebody closes it" do
      worker = Stream.worker()
      tensor = lazy(worker, [1.0])
      assert Stream.close(%Stream{worker: worker}) == :ok

      refute Stream.worker() == worker
      assert decode(Emily.to_binary(tensor), @f32) == [2.0]
      assert Task.await(Task.async(fn -> Emily.eval(lazy(Stream.worker(), [1.0])) end)) == :ok

      # Who kept the closed one is told.
      assert_raise RuntimeError, ~r/stream stopped/, fn -> lazy(worker, [1.0]) end
    end

    test "is replaced when stopped through Emily.Native" do
      worker = Stream.worker()
      assert Native.stop_worker(worker) == :ok
      assert Emily.eval(lazy(Stream.worker(), [1.0])) == :ok
    end

    test "survives its owner" do
      worker = Stream.worker()
      tensor = lazy(worker, [1.0])
      owner = Process.whereis(Stream.Default)
      monitor = Process.monitor(owner)
      Process.exit(owner, :kill)
      assert_receive {:DOWN, ^monitor, _, _, :killed}
      assert decode(Emily.to_binary(tensor), @f32) == [2.0]
      assert Stream.worker() == worker

      # The restarted owner replaces workers that its predecessor made.
      eventually(fn -> Process.whereis(Stream.Default) not in [nil, owner] end)
      Stream.close(%Stream{worker: worker})
      refute Stream.worker() == worker
      assert Emily.eval(lazy(Stream.worker(), [1.0])) == :ok
    end

    test "of a stopped application is an error that says so" do
      Logger.configure(level: :error)
      on_exit(fn -> Logger.configure(level: :debug) end)
      :ok = Application.stop(:emily)
      on_exit(fn -> {:ok, _} = Application.ensure_all_started(:emily) end)

      assert_raise RuntimeError, "the application :emily is not started", fn ->
        Emily.from_binary(<<1>>, [1], {:u, 8})
      end

      # Streams of one's own need no owner.
      stream = Stream.new(Emily.TestDevice.device())

      assert {_, _, [2.0]} =
               Stream.with_stream(stream, fn ->
                 read(stream.worker, lazy(stream.worker, [1.0]))
               end)

      {:ok, _} = Application.ensure_all_started(:emily)
      assert Emily.eval(lazy(Stream.worker(), [1.0])) == :ok
    end

    test "is one where many processes ask for the first at once" do
      Stream.close(%Stream{worker: Stream.worker()})
      workers = Task.await_many(for _ <- 1..64, do: Task.async(&Stream.worker/0))
      assert length(Enum.uniq(workers)) == 1
    end
  end

  describe "messages" do
    test "of the caller's own are left alone" do
      for n <- 1..100, do: send(self(), {n, :ok})
      send(self(), {make_ref(), {:ok, []}})
      before = mailbox()
      stream = Stream.new(Emily.TestDevice.device())
      assert Native.eval(stream.worker, product(stream.worker, 2)) == :ok
      assert {_q, _r} = Native.linalg_qr(stream.worker, tensor([1.0], @f32, [1, 1]))
      assert mailbox() == before
    end
  end
end
