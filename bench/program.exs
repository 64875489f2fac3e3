# What replaying a program costs, each line in turn with Python's MLX building and evaluating the same
# graph, so that what else the machine does falls on both.
#
#     mix run bench/program.exs

defmodule Bench.Program do
  alias Emily.Native
  alias Emily.Native.Call

  @rounds 25
  @f32 {:f, 32}
  @s32 {:s, 32}
  @four {[4], @f32}
  @wide {[1, 64], @f32}

  def run do
    w = Emily.Stream.new(:cpu).worker
    python = open()
    x = floats([0.5, 0.25, 0.125, 1.0], [4])
    chain = chain(w)
    compare(python, "1,000 chained ops, us", "chain", 20, "<= 1.2", fn -> call(w, chain, [x]) end)

    loop = loop(w)
    inputs = [integer(0), x, integer(1_000)]
    run_loop = fn -> call(w, loop, inputs) end
    compare(python, "while of 1,000 iterations, us", "loop", 2, "<= 1.2", run_loop)

    one = Call.compile_program(w, [@four], [], [{:apply, :add, [0, 0], 1}], [1], false)
    compare(python, "one op, us", "one_op", 1_000, "", fn -> call(w, one, [x]) end)

    eager = fn -> Native.eval(w, Native.add(w, x, x)) end
    compare(python, "  the same, eager", "one_op", 1_000, "", eager)

    identity = Call.compile_program(w, [@four], [], [], [0], false)
    times = for _ <- 1..@rounds, do: time(1_000, fn -> call(w, identity, [x]) end)
    IO.puts("#{String.pad_trailing("identity, us", 34)} #{number(Enum.min(times))}; <= 15")

    wide = floats(List.duplicate(0.5, 64), [1, 64])

    for {fuse, name, goal} <- [{false, "blocks", "<= 1.0"}, {true, "blocks_fused", "<= 1.05"}] do
      blocks = blocks(w, fuse)
      run = fn -> call(w, blocks, [wide, wide]) end
      compare(python, "50 blocks of 4 ops, fuse #{fuse}, us", name, 20, goal, run)
    end
  end

  defp chain(w) do
    steps =
      for n <- 1..1_000 do
        previous = if n == 1, do: 0, else: n

        if rem(n, 2) == 1,
          do: {:apply, :add, [previous, 0], 1},
          else: {:apply, :multiply, [previous, 1], 1}
      end

    Call.compile_program(w, [@four], [half()], steps, [1_001], false)
  end

  defp loop(w) do
    state = [{[], @s32}, @four]
    inner = state ++ [{[], @s32}, @four]
    condition = Call.compile_program(w, inner, [], [{:apply, :less, [0, 2], 1}], [4], false)

    steps = [{:apply, :add, [0, 4], 1}, {:apply, :add, [1, 3], 1}, {:apply, :multiply, [7, 5], 1}]
    body = Call.compile_program(w, inner, [integer(1), half()], steps, [6, 8], false)

    inputs = state ++ [{[], @s32}]
    step = {:while, [0, 1], [2, 1], condition, body}
    Call.compile_program(w, inputs, [], [step], [3, 4], false)
  end

  # Registers: y, x, half, weight, then four for each block.
  defp blocks(w, fuse) do
    steps =
      Enum.flat_map(0..49, fn block ->
        y = if block == 0, do: 0, else: 3 + 4 * block
        next = 4 + 4 * block

        [
          {:apply, :sin, [y], 1},
          {:apply, :add, [next, 1], 1},
          {:apply, :multiply, [next + 1, 2], 1},
          {:apply, :matmul, [next + 2, 3], 1}
        ]
      end)

    weight = floats(List.duplicate(0.01, 64 * 64), [64, 64])
    Call.compile_program(w, [@wide, @wide], [half(), weight], steps, [203], fuse)
  end

  defp call(w, program, inputs), do: Call.run_program(w, program, inputs, &no_call/2)
  defp no_call(_key, _tensors), do: raise("nothing is asked")

  defp half, do: floats([0.5], [])
  defp integer(n), do: Emily.from_binary(<<n::32-native>>, [], @s32)

  defp floats(numbers, shape) do
    Emily.from_binary(for(x <- numbers, into: <<>>, do: <<x::float-32-native>>), shape, @f32)
  end

  # The least of many rounds, because what else the machine does only adds.
  defp compare(python, what, name, count, goal, fun) do
    rounds = for _ <- 1..@rounds, do: {time(count, fun), ask(python, name)}
    {ours, theirs} = Enum.unzip(rounds)
    {ours, theirs} = {Enum.min(ours), Enum.min(theirs)}

    IO.puts(
      "#{String.pad_trailing(what, 34)} #{number(ours)}; Python #{number(theirs)}, " <>
        "ratio #{number(ours / theirs)}; #{goal}"
    )
  end

  defp time(count, fun) do
    fun.()
    {microseconds, :ok} = :timer.tc(fn -> repeat(count, fun) end)
    microseconds / count
  end

  defp repeat(0, _fun), do: :ok

  defp repeat(count, fun) do
    fun.()
    repeat(count - 1, fun)
  end

  defp open do
    script = Path.join(__DIR__, "reference/program.py")
    shell = Path.join(__DIR__, "reference/python.sh")
    Port.open({:spawn_executable, shell}, [:binary, line: 100, args: [script]])
  end

  defp ask(port, name) do
    Port.command(port, name <> "\n")

    receive do
      {^port, {:data, {:eol, line}}} -> String.to_float(line)
    end
  end

  defp number(x), do: :erlang.float_to_binary(x / 1, decimals: 2)
end

Bench.Program.run()
