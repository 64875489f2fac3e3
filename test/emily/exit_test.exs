defmodule Emily.ExitTest do
  # Each case is an operating system process of its own, which must end with the code that it was told,
  # whatever its streams do.
  use ExUnit.Case, async: true

  @moduletag :tmp_dir

  @limit 60_000

  # Jobs take seconds on every stream, and as many wait.
  @running """
  alias Emily.Native
  one = Emily.from_binary(<<1.0e-3::float-32-native>>, [], {:f, 32})
  streams = for _ <- 1..8, do: Emily.Stream.new(#{inspect(Emily.TestDevice.device())})

  for %{worker: w} <- streams do
    a = Native.full(w, [1024, 1024], one, {:f, 32})

    for _ <- 1..3 do
      spawn(fn -> Native.eval(w, Enum.reduce(1..200, a, fn _, x -> Native.matmul(w, x, a) end)) end)
    end
  end

  wait = fn wait ->
    busy? = Enum.all?(streams, &(Emily.Stream.info(&1).queue_depth == 2))
    if busy?, do: :ok, else: :erlang.yield() && wait.(wait)
  end

  wait.(wait)
  """

  # Callers build, evaluate, read and drop small tensors all the time.
  @building """
  alias Emily.Native
  test = self()

  for _ <- 1..8 do
    spawn(fn ->
      w = Emily.Stream.new(#{inspect(Emily.TestDevice.device())}).worker
      loop = fn loop, x ->
        y = Native.add(w, Native.tanh(w, x), x)
        Native.to_binary(w, Native.sum(w, y, [0], false))
        {q, _r} = Native.linalg_qr(w, Native.reshape(w, y, [4, 4]))
        send(test, :going)
        loop.(loop, Native.reshape(w, q, [16]))
      end

      loop.(loop, Native.arange(w, 0.0, 16.0, 1.0, {:f, 32}))
    end)
  end

  for _ <- 1..100, do: receive(do: (:going -> :ok))
  """

  # A worker waits inside the operating system, for ever.
  @held """
  alias Emily.Native
  stream = Emily.Stream.new(#{inspect(Emily.TestDevice.device())})
  path = Path.join(folder, "gate-\#{System.pid()}.npy")
  {_, 0} = System.cmd("mkfifo", [path])
  job = fn fun -> spawn(fn -> Emily.Stream.with_stream(stream, fun) end) end
  job.(fn -> Emily.load(path) end)
  wait = fn wait, depth ->
    if Emily.Stream.info(stream).queue_depth == depth, do: :ok, else: :erlang.yield() && wait.(wait, depth)
  end
  wait.(wait, 0)
  w = stream.worker
  for _ <- 1..5, do: job.(fn -> Emily.eval(Native.zeros(w, [3], {:f, 32})) end)
  """

  # Streams compute what nobody waits for.
  @scheduled """
  alias Emily.Native
  one = Emily.from_binary(<<1.0e-3::float-32-native>>, [], {:f, 32})

  kept =
    for _ <- 1..4 do
      %{worker: w} = Emily.Stream.new(:cpu)
      a = Native.full(w, [1024, 1024], one, {:f, 32})
      lazy = Enum.reduce(1..20, a, fn _, x -> Native.matmul(w, x, a) end)
      :ok = Native.Call.async_eval(w, [lazy])
      lazy
    end

  :persistent_term.put(:kept, kept)
  """

  @states [running: @running, building: @building, held: @held, scheduled: @scheduled]

  @exits [
    {"System.halt(7)", "System.halt(7)", 7},
    {"System.stop(7)", "System.stop(7); Process.sleep(:infinity)", 7},
    {":erlang.halt(7, flush: false)", ":erlang.halt(7, flush: false)", 7},
    {"the end of a script", "", 0}
  ]

  for {state, before} <- @states, {exit, last, status} <- @exits do
    @tag timeout: 2 * @limit
    test "#{exit} with streams #{state}", %{tmp_dir: folder} do
      assert run(folder, unquote(before) <> unquote(last)) == {unquote(status), ""}
    end

    @tag :soak
    @tag timeout: 21 * @limit
    test "#{exit} with streams #{state}, 20 times", %{tmp_dir: folder} do
      outcomes = for _ <- 1..20, do: run(folder, unquote(before) <> unquote(last))
      assert Enum.frequencies(outcomes) == %{{unquote(status), ""} => 20}
    end
  end

  # The exit status and all output.
  defp run(folder, script) do
    folders = Path.wildcard(Path.join(Application.app_dir(:emily), "../*/ebin"))

    start = """
    {:ok, _} = Application.ensure_all_started(:emily)
    Logger.configure(level: :error)
    folder = #{inspect(folder)}
    _ = folder
    """

    port =
      Port.open({:spawn_executable, System.find_executable("elixir")}, [
        :binary,
        :exit_status,
        :stderr_to_stdout,
        args: Enum.flat_map(folders, &["-pa", &1]) ++ ["-e", start <> script]
      ])

    {:os_pid, pid} = Port.info(port, :os_pid)
    await(port, pid, "", System.monotonic_time(:millisecond) + @limit)
  end

  defp await(port, pid, output, deadline) do
    receive do
      {^port, {:data, more}} -> await(port, pid, output <> more, deadline)
      {^port, {:exit_status, status}} -> {status, output}
    after
      max(deadline - System.monotonic_time(:millisecond), 0) ->
        System.cmd("kill", ["-9", "#{pid}"])
        flunk("it did not end in #{@limit} ms, output: #{output}")
    end
  end
end
