defmodule Emily.NxStreamTest do
  use ExUnit.Case, async: true

  alias Emily.{Gate, Stream}

  doctest Emily.NxStreamExamples

  setup do
    Nx.default_backend(Emily.Backend)
    :ok
  end

  defp worker_bytes(stream), do: Stream.info(stream).bytes

  test "operations of a process go to its stream" do
    {a, b} = {Stream.new(Emily.TestDevice.device()), Stream.new(Emily.TestDevice.device())}
    x = Nx.tensor([1.0, 2.0])
    {in_a, in_b} = {worker_bytes(a), worker_bytes(b)}
    sum = Stream.with_stream(a, fn -> Nx.add(x, 1) end)
    assert worker_bytes(a) > in_a
    assert worker_bytes(b) == in_b
    assert Nx.to_flat_list(sum) == [2.0, 3.0]
  end

  test "a process inherits no stream" do
    stream = Stream.new(Emily.TestDevice.device())

    Stream.with_stream(stream, fn ->
      before = worker_bytes(stream)
      assert Task.await(Task.async(fn -> Nx.to_number(Nx.sum(Nx.iota({4}))) end)) == 6
      assert worker_bytes(stream) == before
    end)
  end

  @tag :tmp_dir
  test "processes on streams of their own go on while one is held", %{tmp_dir: folder} do
    weights = Nx.iota({8, 8}, type: :f32)
    expected = Nx.to_binary(Nx.dot(weights, weights))
    held = Stream.new(Emily.TestDevice.device())
    gate = Gate.hold(held.worker, folder)

    waiting = Task.async(fn -> product(held, weights) end)

    others =
      for _ <- 1..4,
          do: Task.async(fn -> product(Stream.new(Emily.TestDevice.device()), weights) end)

    assert Enum.uniq(Task.await_many(others, 60_000)) == [expected]
    assert Task.yield(waiting, 0) == nil

    Gate.open(gate)
    assert Task.await(waiting, 60_000) == expected
  end

  defp product(stream, weights) do
    Stream.with_stream(stream, fn -> Nx.to_binary(Nx.dot(weights, weights)) end)
  end

  test "lazy tensors cross streams, also after their own was closed" do
    {a, b} = {Stream.new(Emily.TestDevice.device()), Stream.new(Emily.TestDevice.device())}
    x = Stream.with_stream(a, fn -> Nx.multiply(Nx.tensor([1.0, 2.0, 3.0]), 2) end)
    y = Stream.with_stream(b, fn -> Nx.add(x, 1) end)
    Stream.close(a)
    z = Stream.with_stream(b, fn -> Nx.subtract(x, y) end)
    assert Nx.to_flat_list(y) == [3.0, 5.0, 7.0]
    assert Nx.to_flat_list(z) == [-1.0, -1.0, -1.0]
  end

  test "defn runs on the stream of its caller" do
    stream = Stream.new(Emily.TestDevice.device())
    before = worker_bytes(stream)
    fun = Nx.Defn.jit(fn x -> Nx.sum(Nx.exp(x)) end, compiler: Nx.Defn.Evaluator)
    result = Stream.with_stream(stream, fn -> fun.(Nx.tensor([0.0, 0.0])) end)
    assert worker_bytes(stream) > before
    assert Nx.to_number(result) == 2.0
  end

  test "a closed stream raises in Nx too" do
    stream = Stream.new(Emily.TestDevice.device())
    Stream.close(stream)

    assert_raise RuntimeError, ~r/stream stopped/, fn ->
      Stream.with_stream(stream, fn -> Nx.add(Nx.tensor([1.0]), 1) end)
    end
  end
end
