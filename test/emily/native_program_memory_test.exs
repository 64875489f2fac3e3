defmodule Emily.NativeProgramMemoryTest do
  # What programs hold and give back. Not async: MLX's allocator is one for the whole VM.
  use ExUnit.Case, async: false

  import Emily.Eventually

  alias Emily.{Elements, Memory, Native}
  alias Emily.Native.{Call, Nif}

  @f32 {:f, 32}
  @rows 4_096
  @cache_bytes @rows * 1_024 * 4

  setup do
    {:ok, w: Emily.Stream.new(Emily.TestDevice.device()).worker}
  end

  defp active do
    :erlang.garbage_collect()
    Nif.flush()
    Memory.stats().active
  end

  defp no_call(key, _tensors), do: flunk("asked #{key}")

  defp zeros(w, rows) do
    zeros = Native.zeros(w, [rows, 1_024], @f32)
    Native.eval(w, zeros)
    zeros
  end

  # Writes a row into a cache at a position.
  defp writing(w) do
    step = {:apply, {:slice_update_dynamic, %{axes: [0]}}, [0, 1, 2], 1}
    inputs = [{[@rows, 1_024], @f32}, {[1, 1_024], @f32}, {[1], {:s, 32}}]
    Call.compile_program(w, inputs, [], [step], [3], false)
  end

  test "a donated cache is overwritten in place, 1,000 times", %{w: w} do
    program = writing(w)
    cache = zeros(w, @rows)
    row = Native.ones(w, [1, 1_024], @f32)
    Native.eval(w, row)
    before = active()
    :ok = Call.now(Nif.memory_reset_peak())

    cache =
      for position <- 0..999, reduce: cache do
        cache ->
          at = Elements.tensor([position], {:s, 32})
          [next] = Call.run_program(w, program, [{:donate, cache}, row, at], &no_call/2)
          next
      end

    # Two caches never lived at once.
    assert Memory.stats().peak - before < div(@cache_bytes, 2)
    assert active() - before < div(@cache_bytes, 2)
    assert written(w, cache) == 1_000 * 1_024
  end

  test "a cache that the caller keeps is copied, and stays as it was", %{w: w} do
    program = writing(w)
    cache = zeros(w, @rows)
    row = Native.ones(w, [1, 1_024], @f32)
    at = Elements.tensor([7], {:s, 32})
    [next] = Call.run_program(w, program, [cache, row, at], &no_call/2)
    assert written(w, next) == 1_024
    assert written(w, cache) == 0
  end

  test "a state is overwritten in place in every iteration of a loop", %{w: w} do
    count = {[1], {:s, 32}}
    state = [count, {[@rows, 1_024], @f32}]
    limit = Elements.tensor([1_000], {:s, 32})
    less = [{:apply, :less, [0, 2], 1}, {:apply, {:squeeze, %{axes: [0]}}, [3], 1}]
    condition = Call.compile_program(w, state, [limit], less, [4], false)
    row = Elements.tensor(List.duplicate(1.0, 1_024), @f32, [1, 1_024])

    steps = [
      {:apply, {:slice_update_dynamic, %{axes: [0]}}, [1, 2, 0], 1},
      {:apply, :add, [0, 3], 1}
    ]

    one = Elements.tensor([1], {:s, 32})
    body = Call.compile_program(w, state, [row, one], steps, [5, 4], false)
    loop = [{:while, [0, 1], [], condition, body}]
    program = Call.compile_program(w, state, [], loop, [2, 3], false)

    cache = zeros(w, @rows)
    before = active()
    :ok = Call.now(Nif.memory_reset_peak())
    inputs = [Elements.tensor([0], {:s, 32}), {:donate, cache}]
    [_count, cache] = Call.run_program(w, program, inputs, &no_call/2)
    assert Memory.stats().peak - before < div(@cache_bytes, 2)
    assert written(w, cache) == 1_000 * 1_024
  end

  defp written(w, cache) do
    sum = Native.sum(w, cache, [0, 1], false)
    <<sum::float-32-native>> = Call.to_binary(w, sum)
    trunc(sum)
  end

  test "a program goes when its reference is collected, with its constants", %{w: w} do
    before = active()
    compile = fn -> Call.compile_program(w, [], [zeros(w, 1_024)], [], [0], false) end
    {pid, monitor} = spawn_monitor(fn -> send(self(), compile.()) end)
    assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}
    eventually(fn -> active() - before < 1_000_000 end)

    kept = compile.()
    assert active() - before > 4_000_000
    assert is_reference(kept)
  end

  test "a run goes with its caller, or when its question is not answered", %{w: w} do
    # A register of 16 MB is still to be read when the program asks.
    steps = [
      {:apply, :add, [0, 0], 1},
      {:call, [2], 1, [{[@rows, 1_024], @f32}]},
      {:apply, :add, [2, 3], 1}
    ]

    program = Call.compile_program(w, [{[@rows, 1_024], @f32}, {[], @f32}], [], steps, [4], false)
    ask = fn answer -> Call.run_program(w, program, [zeros(w, @rows), one()], answer) end
    before = active()
    test = self()

    {caller, monitor} =
      spawn_monitor(fn ->
        ask.(fn 1, _ ->
          send(test, :asked)
          Process.sleep(:infinity)
        end)
      end)

    assert_receive :asked
    assert active() - before > @cache_bytes
    Process.exit(caller, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^caller, :killed}
    eventually(fn -> active() - before < 1_000_000 end)

    assert_raise RuntimeError, "no", fn -> ask.(fn 1, _ -> raise "no" end) end
    eventually(fn -> active() - before < 1_000_000 end)
  end

  defp one, do: Elements.tensor([1.0], @f32, [])
end
