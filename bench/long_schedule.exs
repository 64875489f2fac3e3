# Scheduler time slices of 1 ms or more while streams compute, tensors are collected, and binaries of 256 MB
# are written and read. A slice names where its process was scheduled in and out, which is not the NIF that
# held it, so that slices are told by their process; the rival is a process without NIFs in the same
# run, because a busy machine interrupts any slice.
#
#     mix run bench/long_schedule.exs

alias Emily.{Native, Stream}
alias Emily.Native.Nif

defmodule LongSchedule do
  @f32 {:f, 32}

  def compute(count) do
    w = Stream.new(:cpu).worker
    x = Emily.from_binary(<<1.0::float-32-native>>, [1], @f32)
    for _ <- 1..count, do: Native.to_binary(w, Native.add(w, x, x))
  end

  # Small ready tensors, lazy graphs and large tensors, all garbage.
  def collect(count) do
    w = Stream.new(:cpu).worker
    x = Emily.from_binary(<<1.0::float-32-native>>, [1], @f32)

    for n <- 1..count do
      y = Native.exp(w, Native.add(w, x, x))
      if rem(n, 1_000) == 0, do: Native.eval(w, Native.broadcast_to(w, y, [1_000_000]))
    end
  end

  def large(count) do
    w = Stream.new(:cpu).worker
    bytes = :binary.copy(:binary.copy(<<1>>, 1_000_000), 256)

    for _ <- 1..count do
      tensor = Emily.from_binary(bytes, [256_000_000], {:u, 8})
      _ = Native.to_binary(w, tensor)
      Native.deallocate(tensor)
    end
  end

  # No NIF: a loop that the VM may schedule out at any call.
  def plain(0), do: :ok
  def plain(count), do: plain(count - 1)

  def watch(parent, events) do
    receive do
      {:monitor, pid, :long_schedule, info} -> watch(parent, [{pid, info} | events])
      :report -> send(parent, {:events, Enum.reverse(events)})
    end
  end
end

parent = self()
watcher = spawn_link(fn -> LongSchedule.watch(parent, []) end)
:erlang.system_monitor(watcher, [{:long_schedule, 1}])

work =
  List.duplicate({"compute", fn -> LongSchedule.compute(6_250) end}, 16) ++
    [
      {"collect", fn -> LongSchedule.collect(100_000) end},
      {"large", fn -> LongSchedule.large(10) end},
      {"plain", fn -> LongSchedule.plain(1_000_000_000) end}
    ]

started =
  for {kind, fun} <- work do
    {pid, monitor} = spawn_monitor(fun)
    {pid, monitor, kind}
  end

for {pid, monitor, _kind} <- started do
  receive do
    {:DOWN, ^monitor, :process, ^pid, :normal} -> :ok
  end
end

:erlang.garbage_collect()
Nif.flush()
send(watcher, :report)
events = receive(do: ({:events, events} -> events))
:erlang.system_monitor(:undefined)
kinds = Map.new(started, fn {pid, _monitor, kind} -> {pid, kind} end)

by_kind =
  events |> Enum.filter(&kinds[elem(&1, 0)]) |> Enum.group_by(&kinds[elem(&1, 0)], &elem(&1, 1))

IO.puts("slices of 1 ms or more, and the longest")

for kind <- ~w(compute collect large plain) do
  slices = Map.get(by_kind, kind, [])
  longest = slices |> Enum.map(& &1[:timeout]) |> Enum.max(fn -> 0 end)
  IO.puts("  #{String.pad_trailing(kind, 8)} #{length(slices)}, #{longest} ms")

  for {places, count} <- Enum.frequencies_by(slices, &{&1[:in], &1[:out]}),
      do: IO.puts("    #{count} x in #{inspect(elem(places, 0))} out #{inspect(elem(places, 1))}")
end
