defmodule Emily.MemoryTest do
  # Not async: MLX's allocator is one for the whole VM.
  use ExUnit.Case, async: false

  import Emily.Eventually

  alias Emily.{Footprint, Memory, Native, Stream}
  alias Emily.Native.Nif

  doctest Emily.Memory

  @megabyte 1_000_000

  defp bytes(count), do: Emily.from_binary(:binary.copy(<<0>>, count), [count], {:u, 8})

  # What the tests before have dropped is gone.
  setup do
    settle()
    :ok
  end

  defp settle do
    :erlang.garbage_collect()
    Nif.flush()
  end

  defp settled_active do
    settle()
    Memory.stats().active
  end

  test "stats tell what is active, its peak and what is kept" do
    before = Memory.stats()
    tensor = bytes(@megabyte)
    with_one = Memory.stats()
    assert (with_one.active - before.active) in @megabyte..(@megabyte + 100_000)
    assert with_one.peak >= with_one.active

    assert Native.deallocate(tensor)
    settle()
    after_all = Memory.stats()
    assert after_all.active <= before.active
    assert after_all.peak >= with_one.active
    for {_name, number} <- after_all, do: assert(is_integer(number) and number >= 0)
  end

  test "a lazy tensor takes nothing until it is computed" do
    worker = Stream.new(Emily.TestDevice.device()).worker
    before = Memory.stats().active
    lazy = Native.zeros(worker, [@megabyte], {:f, 32})
    assert Memory.stats().active - before < 100_000
    Native.eval(worker, Native.add(worker, lazy, lazy))
    Native.eval(worker, lazy)
    assert Native.ready?(lazy)
  end

  for {name, how} <- [eval: :eval, async_eval: :async_eval, read: :to_binary] do
    test "what was built on the way is given up by #{name}, with no garbage collected otherwise" do
      test = self()

      # In a process whose heap is too large to be collected.
      :erlang.spawn_opt(
        fn ->
          worker = Stream.new(Emily.TestDevice.device()).worker
          x = Native.zeros(worker, [div(@megabyte, 4)], {:f, 32})
          Native.eval(worker, x)
          before = Memory.stats().active
          y = Enum.reduce(1..40, x, fn _, y -> Native.negative(worker, y) end)
          compute(unquote(how), worker, y)
          # The worker has done what it was asked for.
          Native.eval(worker, y)
          Nif.flush()
          send(test, {:grown, Memory.stats().active - before})
        end,
        [:link, min_heap_size: 10_000_000]
      )

      assert_receive {:grown, grown}, 60_000
      assert grown < 4 * @megabyte
    end
  end

  defp compute(:eval, worker, y), do: Native.eval(worker, y)
  defp compute(:to_binary, worker, y), do: Native.to_binary(worker, y)
  defp compute(:async_eval, worker, y), do: Native.Call.async_eval(worker, [y])

  test "reset_peak begins a new peak" do
    tensor = bytes(10 * @megabyte)
    Native.deallocate(tensor)
    settle()
    assert Memory.reset_peak() == :ok
    assert Memory.stats().peak < Memory.stats().active + 10 * @megabyte
    kept = bytes(20 * @megabyte)
    assert Memory.stats().peak >= 20 * @megabyte
    assert Native.shape(kept) == [20 * @megabyte]
  end

  @tag skip: not Footprint.known?() or Emily.TestDevice.device() != :cpu
  test "clear_cache gives the system back what small tensors took too" do
    tensors = for n <- 1..4_000, do: bytes(50_000 + n)
    full = Footprint.now().resident
    Enum.each(tensors, &Native.deallocate/1)
    Memory.clear_cache()
    assert full - Footprint.now().resident > 150 * @megabyte
  end

  test "clear_cache gives back what is kept" do
    tensor = bytes(5 * @megabyte)
    Native.deallocate(tensor)
    assert Memory.clear_cache() == :ok
    assert Memory.stats().cache == 0
  end

  test "collected tensors are given back" do
    before = Memory.stats().active
    {pid, monitor} = spawn_monitor(fn -> for(_ <- 1..50, do: bytes(@megabyte)) |> length() end)
    assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}, 60_000
    # A process is told dead before its heap is freed.
    eventually(fn -> settled_active() < before + @megabyte end)
  end

  @tag skip: Emily.TestDevice.gpu?() && "a read from a card's own memory is a copy"
  test "a binary that was read keeps its buffer, and gives it back" do
    worker = Stream.new(Emily.TestDevice.device()).worker
    before = Memory.stats().active

    {pid, monitor} =
      spawn_monitor(fn ->
        tensor = bytes(@megabyte)
        binary = Native.to_binary(worker, tensor)
        Native.deallocate(tensor)
        assert Memory.stats().active >= before + @megabyte
        assert binary == :binary.copy(<<0>>, @megabyte)
      end)

    assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}, 60_000
    # A process is told dead before its heap is freed.
    eventually(fn -> settled_active() < before + @megabyte end)
  end

  test "a small binary that was read is a copy, and keeps nothing" do
    before = settled_active()
    tensors = for _ <- 1..1_000, do: bytes(4_096)
    binaries = Enum.map(tensors, &Emily.to_binary/1)
    for tensor <- tensors, do: Native.deallocate(tensor)
    assert settled_active() - before < 100_000
    assert Enum.all?(binaries, &(&1 == :binary.copy(<<0>>, 4_096)))
  end

  test "set_limit returns the limit before" do
    for limit <- [:cache, :memory] do
      before = Memory.set_limit(limit, 123 * @megabyte)
      assert Memory.set_limit(limit, before) == 123 * @megabyte
      assert Memory.set_limit(limit, before) == before
    end

    assert is_integer(Memory.set_limit(:wired, 0))
  end

  test "the cache is bounded from the start, and by what one sets" do
    limit = Memory.set_limit(:cache, 2 * @megabyte)
    on_exit(fn -> Memory.set_limit(:cache, limit) end)
    assert limit <= 1100 * @megabyte or :gpu in Stream.devices()

    for _ <- 1..20, do: Native.deallocate(bytes(@megabyte))
    settle()
    assert Memory.stats().cache <= 2 * @megabyte
  end

  test "the bytes of a stream are those of its own tensors" do
    {a, b} = {Stream.new(Emily.TestDevice.device()), Stream.new(Emily.TestDevice.device())}
    tensor = Native.zeros(a.worker, [1000], {:f, 32})
    assert {Stream.info(a).bytes, Stream.info(b).bytes} == {4000, 0}
    Native.eval(a.worker, tensor)
    used = Native.add(b.worker, tensor, tensor)
    assert {Stream.info(a).bytes, Stream.info(b).bytes} == {4000, 4000}
    assert Native.dtype(used) == {:f, 32}
  end

  test "dropped tensors do not pile up where a process builds many" do
    # The heap of this process stays small, so that nothing but the budget makes it collect.
    budget = 50 * @megabyte
    memory = Nif.memory_limit()
    :ok = Nif.memory_collect_above(budget)
    on_exit(fn -> Nif.memory_collect_above(div(memory, 8)) end)
    Memory.reset_peak()
    start = Memory.stats().active

    {pid, monitor} =
      spawn_monitor(fn ->
        worker = Stream.new(Emily.TestDevice.device()).worker
        for _ <- 1..500, do: Native.eval(worker, Native.zeros(worker, [250_000], {:f, 32}))
      end)

    assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}, 60_000
    # 500 of a megabyte, and at most half again of the budget.
    assert Memory.stats().peak < start + 3 * budget
  end

  test "small tensors are collected by the thousand, however large the heap is" do
    count = 30_000

    collect = fn ->
      for _ <- 1..count, do: bytes(1)
      {:garbage_collection, info} = Process.info(self(), :garbage_collection)
      exit({:collections, info[:minor_gcs]})
    end

    # Room for all their references, so that nothing but what they refer to makes it collect.
    {pid, monitor} = :erlang.spawn_opt(collect, [:monitor, min_heap_size: 100 * count])
    assert_receive {:DOWN, ^monitor, :process, ^pid, {:collections, collections}}, 60_000
    assert collections >= div(count, 4_000)
  end
end
