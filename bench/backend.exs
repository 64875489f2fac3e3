# Emily.Backend: what one Nx operation costs, large tensors beside Python's MLX, and the memory that
# long runs leave.
#
#     mix run bench/backend.exs [small] [large] [memory]

Code.require_file("protocols.exs", __DIR__)

defmodule Bench.Backend do
  alias Emily.{Memory, Native}

  @rounds 7
  # Rounds of a large case: how many at least, and for how long.
  @turns 4
  @turns_ms 2_000
  @steps 10_000
  @megabytes 2_000

  def run(parts) do
    stream = Emily.Stream.new(:cpu)
    parts = if parts == [], do: ["small", "large", "memory"], else: parts

    Nx.with_default_backend({Emily.Backend, device: :cpu}, fn ->
      Emily.Stream.with_stream(stream, fn ->
        if "small" in parts, do: small()
        if "large" in parts, do: large()
        if "memory" in parts, do: memory()
      end)
    end)
  end

  ## Small tensors

  defp small do
    x = Nx.tensor([[1.0, 2.0], [3.0, 4.0]])
    chosen = Nx.tensor([[1, 0], [0, 1]], type: :u8)

    ops = [
      add: fn -> Nx.add(x, x) end,
      less: fn -> Nx.less(x, x) end,
      sum: fn -> Nx.sum(x) end,
      dot: fn -> Nx.dot(x, x) end,
      select: fn -> Nx.select(chosen, x, x) end,
      slice: fn -> Nx.slice(x, [0, 0], [1, 2]) end
    ]

    python = reference("small")
    IO.puts("one Nx operation on f32 tensors of 2 by 2, us; goal <= 8 (built)")
    row(["op", "built", "Python", "evaluated", "Python", "NIF calls"])

    for {name, op} <- ops do
      rival = python[Atom.to_string(name)]
      built = best(20_000, op)
      evaluated = best(2_000, fn -> evaluate(op.()) end)
      row([name, built, rival["build"], evaluated, rival["evaluate"], nif_calls(op)])
    end

    IO.puts("")
  end

  # "2: apply apply"
  defp nif_calls(op) do
    all = {Native.Nif, :_, :_}
    {:module, _} = Code.ensure_loaded(Native.Nif)
    caller = self()
    tracer = spawn_link(fn -> trace(caller, []) end)
    true = :erlang.trace_pattern(all, true, []) > 0
    :erlang.trace(self(), true, [:call, {:tracer, tracer}])
    op.()
    :erlang.trace(self(), false, [:call])
    :erlang.trace_pattern(all, false, [])
    delivered = :erlang.trace_delivered(self())

    receive do
      {:trace_delivered, ^caller, ^delivered} -> send(tracer, :names)
    end

    receive do
      {:names, names} -> "#{length(names)}: #{Enum.join(names, " ")}"
    end
  end

  defp trace(caller, names) do
    receive do
      {:trace, ^caller, :call, {_module, name, _arguments}} -> trace(caller, [name | names])
      :names -> send(caller, {:names, Enum.reverse(names)})
    end
  end

  ## Large tensors

  # Once with each side's own cache, and once with Emily's on both: what the cache does not hold is asked
  # of the system, page by page.
  defp large do
    cases = cases()
    IO.puts("large f32 tensors, ms (best of at least #{@turns}); goal: speed >= 0.95 of Python's")
    IO.puts("speed: of the best rounds, and of the middle ones")

    ours = cache_limit()

    for theirs <- ["default", ours] do
      python = start_python(theirs)
      # What the inputs were made with.
      :erlang.garbage_collect()
      Memory.clear_cache()

      row([
        "caches: #{div(ours, 1_048_576)} MiB, #{cache(theirs)}",
        "Emily",
        "Python",
        "speed",
        "middle"
      ])

      for {name, rival, fun} <- cases, do: large(name, python, rival, fun)
      Port.close(python)
      IO.puts("")
    end
  end

  defp cache(bytes) when is_integer(bytes), do: "#{div(bytes, 1_048_576)} MiB"
  defp cache(default), do: default

  defp large(name, python, rival, fun) do
    ask(python, rival)
    evaluate_and_free(fun.())

    rounds = turns(python, rival, fun, System.monotonic_time(:millisecond) + @turns_ms, @turns)
    {ours, theirs} = Enum.unzip(rounds)
    middle = middle(theirs) / middle(ours)
    {ours, theirs} = {Enum.min(ours), Enum.min(theirs)}
    row([name, ours, theirs, theirs / ours, middle])
  end

  defp middle(times), do: times |> Enum.sort() |> Enum.at(div(length(times), 2))

  # At least `least` rounds, and as many as begin before `until`.
  defp turns(python, rival, fun, until, least) do
    if least > 0 or System.monotonic_time(:millisecond) < until do
      theirs = ask(python, rival)
      rest()
      {ours, :ok} = :timer.tc(fn -> evaluate_and_free(fun.()) end)
      rest()
      [{ours / 1000, theirs} | turns(python, rival, fun, until, least - 1)]
    else
      []
    end
  end

  # {name, case of reference/backend.py, function}
  defp cases do
    key = Nx.Random.key(1)
    normal = fn shape -> key |> Nx.Random.normal(shape: shape) |> elem(0) end
    {image, kernel} = {normal.({8, 64, 64, 32}), normal.({32, 3, 3, 32})}
    {image_first, kernel_first} = {normal.({8, 32, 64, 64}), normal.({32, 32, 3, 3})}
    {square, rows, line} = {normal.({1024, 1024}), normal.({1000, 4000}), normal.({1_000_000})}
    table = normal.({100_000, 64})
    {indices, _key} = Nx.Random.randint(key, 0, 100_000, shape: {50_000})
    all = [image, kernel, image_first, kernel_first, square, rows, line, table, indices]
    Enum.each(all, &evaluate/1)

    last = [0, 3, 1, 2]

    channels_last = [
      padding: :same,
      input_permutation: last,
      kernel_permutation: last,
      output_permutation: last
    ]

    [
      {"conv 3x3 of {8,64,64,32}", "conv", fn -> Nx.conv(image, kernel, channels_last) end},
      {"  the same, channels first", "conv_first",
       fn -> Nx.conv(image_first, kernel_first, padding: :same) end},
      {"dot of {1024,1024}", "dot", fn -> Nx.dot(square, square) end},
      {"softmax of {1000,4000}", "softmax", fn -> softmax(rows) end},
      {"  beside mx.softmax (no goal)", "softmax_fused", fn -> softmax(rows) end},
      {"sort of {1000000}", "sort", fn -> Nx.sort(line) end},
      {"sort of {1000,4000}, rows", "sort_rows", fn -> Nx.sort(rows, axis: 1) end},
      {"take of {100000,64}, 50000", "take", fn -> Nx.take(table, indices, axis: 0) end}
    ]
  end

  defp softmax(x) do
    e = Nx.exp(Nx.subtract(x, Nx.reduce_max(x, axes: [-1], keep_axes: true)))
    Nx.divide(e, Nx.sum(e, axes: [-1], keep_axes: true))
  end

  # Python frees a result when the expression ends, and finds its memory in the cache the next time.
  defp evaluate_and_free(tensor) do
    evaluate(tensor)
    Nx.backend_deallocate(tensor)
  end

  # Threads spin for a while after their work, and would take the rival's turn.
  defp rest, do: Process.sleep(100)

  ## Memory

  defp memory do
    limit = cache_limit()
    IO.puts("memory, MiB; goal: left <= 4, cache <= its limit of #{mebibytes(limit)}")
    row(["run", "left", "peak", "cache"])
    measure("#{@steps} training steps", &train/1)
    measure("#{@megabytes} rounds of 1 MB", &megabytes/1)
  end

  defp cache_limit do
    limit = Memory.set_limit(:cache, 0)
    Memory.set_limit(:cache, limit)
    limit
  end

  # `sample` is to be called now and then, and keeps the largest cache seen.
  defp measure(name, run) do
    caches = :counters.new(1, [])

    sample = fn ->
      cache = Memory.stats().cache
      if cache > :counters.get(caches, 1), do: :counters.put(caches, 1, cache)
    end

    before = settled()
    Memory.reset_peak()
    {microseconds, :ok} = :timer.tc(fn -> run.(sample) end)
    peak = Memory.stats().peak
    left = settled() - before
    cells = [left, peak - before, :counters.get(caches, 1)]
    row([name | Enum.map(cells, &mebibytes/1)] ++ ["#{div(microseconds, 1000)} ms"])
  end

  defp settled do
    :erlang.garbage_collect()
    :ok = Native.Nif.flush()
    Memory.stats().active
  end

  defp train(sample) do
    loss = fn {w1, b1, w2, b2}, x, y ->
      hidden = x |> Nx.dot(w1) |> Nx.add(b1) |> Nx.max(0)
      error = hidden |> Nx.dot(w2) |> Nx.add(b2) |> Nx.subtract(y)
      Nx.mean(Nx.multiply(error, error))
    end

    step =
      Nx.Defn.jit(
        fn {w1, b1, w2, b2} = params, x, y ->
          {loss, {g1, h1, g2, h2}} = Nx.Defn.value_and_grad(params, &loss.(&1, x, y))
          down = &Nx.subtract(&1, Nx.multiply(&2, 0.01))
          {loss, {down.(w1, g1), down.(b1, h1), down.(w2, g2), down.(b2, h2)}}
        end,
        compiler: Nx.Defn.Evaluator
      )

    wave = fn shape -> Nx.sin(Nx.iota(shape, type: :f32)) end
    params = {wave.({8, 16}), wave.({16}), wave.({16, 2}), wave.({2})}
    {x, y} = {wave.({32, 8}), Nx.cos(wave.({32, 2}))}

    {first, _} = step.(params, x, y)
    first = Nx.to_number(first)

    last =
      Enum.reduce(1..@steps, params, fn n, params ->
        {loss, params} = step.(params, x, y)
        evaluate([loss | Tuple.to_list(params)])
        if rem(n, 100) == 0, do: sample.()
        if n == @steps, do: Nx.to_number(loss), else: params
      end)

    true = last < first
    :ok
  end

  defp megabytes(sample) do
    ones = :binary.copy(<<1.0::float-32-native>>, 250_000)

    for n <- 1..@megabytes do
      x = Nx.from_binary(ones, :f32)
      250_000.0 = x |> Nx.multiply(2) |> Nx.subtract(x) |> Nx.sum() |> Nx.to_number()
      if rem(n, 10) == 0, do: sample.()
    end

    :ok
  end

  ## Measuring and printing

  defp evaluate(%Nx.Tensor{} = tensor), do: evaluate([tensor])

  defp evaluate(tensors),
    do: Native.eval(Emily.Stream.worker(), Enum.map(tensors, & &1.data.ref))

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

  defp reference(what) do
    {json, 0} = System.cmd(python(), [script(), what])
    JSON.decode!(json)
  end

  defp start_python(cache_limit) do
    Port.open({:spawn_executable, python()}, [
      :binary,
      :exit_status,
      line: 1000,
      args: [script(), "large", to_string(cache_limit)],
      # A thread of OpenBLAS spins for a tenth of a second after its work otherwise (the number is the
      # logarithm of cycles), and takes a core from whoever has the next turn.
      env: [{~c"OPENBLAS_THREAD_TIMEOUT", ~c"20"}]
    ])
  end

  defp ask(port, name) do
    Port.command(port, [name, "\n"])

    receive do
      {^port, {:data, {:eol, milliseconds}}} -> String.to_float(milliseconds)
      {^port, {:exit_status, status}} -> raise "bench/reference/backend.py ended with #{status}"
    end
  end

  defp python, do: Path.join(__DIR__, "reference/python.sh")
  defp script, do: Path.join(__DIR__, "reference/backend.py")

  defp mebibytes(bytes), do: bytes / 1_048_576

  defp row([name | cells]) do
    cells = Enum.map_join(cells, " ", &String.pad_leading(cell(&1), 10))
    IO.puts("#{String.pad_trailing(cell(name), 30)} #{cells}")
  end

  defp cell(x) when is_float(x), do: :erlang.float_to_binary(x, decimals: 2)
  defp cell(x), do: to_string(x)
end

Bench.Backend.run(System.argv())
