# The cost of one operation, of a mailbox that is not empty, of reading, and of a large product, each
# beside a rival in the same run. A machine may be twice as slow for a second: the two take turns, and the best
# turn of each counts, unless it says otherwise.
#
#     mix run bench/native.exs

defmodule Bench.Native do
  alias Emily.Native

  @rounds 7
  @turns 4

  def run do
    stream = Emily.Stream.new(:cpu)
    w = stream.worker
    x = Emily.from_binary(<<1.0::float-32-native, 2.0::float-32-native>>, [2], {:f, 32})

    eval = fn -> Native.eval(w, Native.add(w, x, x)) end

    {ours, python} =
      turns(fn ->
        build = best(100_000, fn -> Native.add(w, x, x) end)
        {{build, best(5_000, eval)}, reference("ops")}
      end)

    build = ours |> Enum.map(&elem(&1, 0)) |> Enum.min()
    build_eval = ours |> Enum.map(&elem(&1, 1)) |> Enum.min()
    least = fn what -> python |> Enum.map(& &1[what]) |> Enum.min() end

    row("one op built, us", build, least.("build"), "Python", "<= 1.5, ratio <= 3")
    row("build + eval of a tiny op, us", build_eval, least.("build_eval"), "Python", "")

    # Both mailboxes in turn, so that what else the machine does falls on both; the round of the middle ratio.
    {empty, full} = mailboxes(eval)
    row("  the same, 10,000 messages waiting", full, empty, "empty mailbox", "ratio <= 1.1")

    if Code.ensure_loaded?(Nx) do
      nx = Emily.Stream.with_stream(stream, fn -> nx_add() end)
      row("Nx.add of two small tensors, lazy, us", nx, build, "native op", "<= 5")
    end

    read()
    matmul(w)
  end

  defp mailboxes(eval) do
    rounds =
      for _ <- 1..(@turns * @rounds) do
        empty = time(1_000, eval)
        for n <- 1..10_000, do: send(self(), {:noise, n})
        full = time(1_000, eval)
        flush()
        {empty, full}
      end

    # The best of a thousand that wake a thread each says little.
    rounds
    |> Enum.sort_by(fn {empty, full} -> full / empty end)
    |> Enum.at(div(length(rounds), 2))
  end

  defp flush do
    receive do
      {:noise, _} -> flush()
    after
      0 -> :ok
    end
  end

  defp nx_add do
    # Not named in code that is compiled without Nx.
    nx = Nx
    x = nx.tensor([1.0, 2.0], backend: Emily.Backend)
    best(50_000, fn -> nx.add(x, x) end)
  end

  defp read do
    bytes = 256 * 1024 * 1024
    tensor = Emily.from_binary(:binary.copy(<<1>>, bytes), [bytes], {:u, 8})
    active = Emily.Memory.stats().active
    rss = rss()
    times = for _ <- 1..50, do: elem(:timer.tc(fn -> Emily.to_binary(tensor) end), 0)
    binary = Emily.to_binary(tensor)
    true = byte_size(binary) == bytes

    row(
      "to_binary of a ready 256 MB tensor, us",
      Enum.max(times),
      nil,
      "",
      "<= 50 (slowest of 50)"
    )

    IO.puts(
      "  bytes added by holding the binary: #{Emily.Memory.stats().active - active} in MLX, " <>
        "#{div(rss() - rss, 1024)} MiB resident"
    )
  end

  defp matmul(w) do
    size = 1024
    key = Native.random_key(1)
    a = Native.random_normal(w, [size, size], {:f, 32}, 0.0, 1.0, key)
    b = Native.random_normal(w, [size, size], {:f, 32}, 1.0, 1.0, key)
    Native.eval(w, [a, b])

    # Both rivals write where they wrote before: Python frees a result at once.
    multiply = fn ->
      product = Native.matmul(w, a, b)
      Native.eval(w, product)
      Native.deallocate(product)
    end

    {ours, openblas} =
      turns(fn ->
        {2 * size ** 3 / best(10, multiply) / 1000, reference("openblas")["gflops"]}
      end)

    gflops = Enum.max(ours)
    row("f32 matmul 1024, GFLOP/s", gflops, Enum.max(openblas), "OpenBLAS", ">= 0.9")

    plain = reference("matmul", [{"PLAIN_BLAS", "1"}])["gflops"]
    row("  the same", gflops, plain, "pip's MLX", "ratio >= 10")
  end

  defp turns(fun), do: Enum.unzip(for _ <- 1..@turns, do: fun.())

  defp best(count, fun), do: Enum.min(for _ <- 1..@rounds, do: time(count, fun))

  defp time(count, fun) do
    {microseconds, :ok} = :timer.tc(fn -> repeat(count, fun) end)
    microseconds / count
  end

  defp repeat(0, _fun), do: :ok

  defp repeat(count, fun) do
    fun.()
    repeat(count - 1, fun)
  end

  defp reference(what, env \\ []) do
    script = Path.join(__DIR__, "reference/native.py")
    python = Path.join(__DIR__, "reference/python.sh")
    {json, 0} = System.cmd(python, [script, what], env: env)
    JSON.decode!(json)
  end

  defp rss do
    case File.read("/proc/self/status") do
      {:ok, status} ->
        [_, kilobytes] = Regex.run(~r/VmRSS:\s+(\d+)/, status)
        String.to_integer(kilobytes)

      {:error, _} ->
        0
    end
  end

  defp row(what, ours, rival, whose, goal) do
    ratio = if rival, do: " #{whose} #{number(rival)}, ratio #{number(ours / rival)};", else: ""
    IO.puts("#{String.pad_trailing(what, 42)} #{number(ours)};#{ratio} #{goal}")
  end

  defp number(x) when is_integer(x), do: Integer.to_string(x)
  defp number(x), do: :erlang.float_to_binary(x / 1, decimals: 2)
end

Bench.Native.run()
