# What two streams compute beside one, in chains of operations that take about 0.1 to 1 ms each and are bound
# by computing, so that on two idle cores nothing but the scheduling stands in the way.
#
#     mix run bench/streams.exs

defmodule Bench.Streams do
  alias Emily.Native

  @rounds 5
  @evaluations 6
  @operations 400

  def run do
    streams = [chain(), chain()]
    evaluations(streams)

    # In turn, so that what else the machine does falls on both.
    ratios = for _ <- 1..@rounds, do: ratio(streams)
    [least | _] = sorted = Enum.sort(ratios)
    middle = Enum.at(sorted, div(@rounds, 2))
    show = &:erlang.float_to_binary(&1, decimals: 2)
    IO.puts("two streams against one: #{show.(middle)} times as much (least #{show.(least)})")
  end

  defp ratio([one | _] = both) do
    alone = evaluations([one])
    evaluations(both) / alone
  end

  defp chain do
    w = Emily.Stream.new(:cpu).worker
    value = Emily.from_binary(<<0.001::float-32-native>>, [], {:f, 32})
    x = Native.full(w, [400, 400], value, {:f, 32})
    Native.eval(w, x)
    fn -> Native.eval(w, Enum.reduce(1..@operations, x, fn _, y -> Native.sin(w, y) end)) end
  end

  # Evaluations in a second, of all streams together.
  defp evaluations(chains) do
    work = fn chain -> fn -> for _ <- 1..@evaluations, do: chain.() end end

    {microseconds, _} =
      :timer.tc(fn ->
        chains |> Enum.map(&Task.async(work.(&1))) |> Task.await_many(:infinity)
      end)

    @evaluations * length(chains) * 1.0e6 / microseconds
  end
end

Bench.Streams.run()
