# Scheduler time slices of 1 ms or more while streams compute, tensors are collected, and binaries of 256 MB
# are written and read. A slice names where its process was scheduled in and out, which is not the NIF that
# held it, so that slices are told by their process.
#
# A busy machine interrupts any slice, and that is not the NIFs' doing. So controls run beside them: a process
# that calls no NIF, one that makes and drops binaries of the BEAM where `collect` does tensors, and 16 that wake a
# program by a port where `compute` wakes a worker. What they have per second is the machine's:
#
#     mix run bench/long_schedule.exs
#
# Nothing in the system interrupts a single scheduler that goes before the VM's other threads, as these go before all
# else, so that what holds a lock that it waits for is not interrupted either (as root; only a hypervisor is left):
#
#     echo -1 > /proc/sys/kernel/sched_rt_runtime_us
#     ELIXIR_ERL_OPTIONS="+S 1:1" chrt -f 5 mix run bench/long_schedule.exs --first
#     echo 950000 > /proc/sys/kernel/sched_rt_runtime_us

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

  # As many tensors as one process may hold, dropped by a single collection.
  def collect_at_once(count) do
    w = Stream.new(:cpu).worker
    x = Emily.from_binary(<<1.0::float-32-native>>, [1], @f32)
    tensors = for _ <- 1..count, do: Native.add(w, x, x)
    ^count = length(tensors)
    :erlang.garbage_collect()
  end

  # As `collect`, in binaries that are kept outside the heap.
  def binaries(count) do
    bytes = :binary.copy(<<1>>, 100)

    for _ <- 1..count, do: :binary.copy(:binary.copy(bytes))
  end

  # As `collect_at_once`.
  def binaries_at_once(count) do
    bytes = :binary.copy(<<1>>, 100)
    binaries = for _ <- 1..count, do: :binary.copy(bytes)
    ^count = length(binaries)
    :erlang.garbage_collect()
  end

  def large(count, bytes) do
    w = Stream.new(:cpu).worker

    for _ <- 1..count do
      tensor = Emily.from_binary(bytes, [256_000_000], {:u, 8})
      _ = Native.to_binary(w, tensor)
      Native.deallocate(tensor)
    end
  end

  # As `compute` wakes a worker each time, this wakes a program, by a port: no NIF.
  def wakes(count) do
    port = Port.open({:spawn_executable, System.find_executable("cat")}, [:binary])

    for _ <- 1..count do
      true = Port.command(port, "x")
      receive(do: ({^port, {:data, "x"}} -> :ok))
    end

    Port.close(port)
  end

  # No NIF: a loop that the VM may schedule out at any call.
  def plain(0), do: :ok
  def plain(count), do: plain(count - 1)

  def watch(parent, events) do
    receive do
      {:monitor, pid_or_port, :long_schedule, info} ->
        watch(parent, [{pid_or_port, info} | events])

      :report ->
        send(parent, {:events, Enum.reverse(events)})
    end
  end
end

if System.argv() == ["--first"] do
  for thread <- Path.wildcard("/proc/#{System.pid()}/task/*"),
      String.starts_with?(File.read!(Path.join(thread, "comm")), "erts_sched"),
      do: {_, 0} = System.cmd("chrt", ["-f", "-p", "10", Path.basename(thread)])
end

{:ok, _} = Application.ensure_all_started(:emily)
# To load a module takes the BEAM milliseconds.
modules = [LongSchedule, Task, Enum | Application.spec(:emily, :modules)]
for module <- modules, do: {:module, _} = Code.ensure_loaded(module)
parent = self()
# The BEAM itself takes long to make it.
bytes = :binary.copy(:binary.copy(<<1>>, 1_000_000), 256)
watcher = spawn_link(fn -> LongSchedule.watch(parent, []) end)
:erlang.system_monitor(watcher, [{:long_schedule, 1}])

work =
  List.duplicate({"compute", fn -> LongSchedule.compute(6_250) end}, 16) ++
    [
      {"collect", fn -> LongSchedule.collect(100_000) end},
      {"at once", fn -> LongSchedule.collect_at_once(100_000) end},
      {"large", fn -> LongSchedule.large(10, bytes) end},
      {"control: plain", fn -> LongSchedule.plain(2_000_000_000) end},
      {"control: binaries", fn -> LongSchedule.binaries(100_000) end},
      {"control: at once", fn -> LongSchedule.binaries_at_once(100_000) end}
    ] ++ List.duplicate({"control: wakes", fn -> LongSchedule.wakes(6_250) end}, 16)

started =
  for {kind, fun} <- work do
    timed = fn -> send(parent, {:seconds, kind, elem(:timer.tc(fun), 0) / 1.0e6}) end
    {pid, monitor} = spawn_monitor(timed)
    {pid, monitor, kind}
  end

for {pid, monitor, _kind} <- started do
  receive do
    {:DOWN, ^monitor, :process, ^pid, :normal} -> :ok
  end
end

seconds =
  for _ <- work, reduce: %{} do
    sums ->
      receive do
        {:seconds, kind, seconds} -> Map.update(sums, kind, seconds, &(&1 + seconds))
      end
  end

:erlang.garbage_collect()
Nif.flush()
send(watcher, :report)
events = receive(do: ({:events, events} -> events))
:erlang.system_monitor(:undefined)
kinds = Map.new(started, fn {pid, _monitor, kind} -> {pid, kind} end)

kind = fn
  {port, _slice} when is_port(port) -> "control: wakes"
  {pid, _slice} -> Map.get(kinds, pid, "others")
end

by_kind = Enum.group_by(events, kind, &elem(&1, 1))

IO.puts("slices of 1 ms or more, how many in a second of the processes' lives, and the longest")

for kind <- Enum.uniq(Enum.map(work, &elem(&1, 0))) ++ ["others"] do
  slices = Map.get(by_kind, kind, [])
  longest = slices |> Enum.map(& &1[:timeout]) |> Enum.max(fn -> 0 end)
  rate = if seconds[kind], do: Float.round(length(slices) / seconds[kind], 2), else: "-"
  IO.puts("  #{String.pad_trailing(kind, 18)} #{length(slices)}, #{rate}, #{longest} ms")

  place = fn slice ->
    if slice[:port_op], do: slice[:port_op], else: {slice[:in], slice[:out]}
  end

  for {place, count} <- Enum.frequencies_by(slices, place),
      do: IO.puts("    #{count} x #{inspect(place)}")
end
