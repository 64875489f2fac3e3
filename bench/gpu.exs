# Many streams over shared weights, a large product, and a long run over many shapes.
#
#     mix run bench/gpu.exs [decode|matmul|soak] [--rounds 5] [--seconds 1] [--layers 24] [--size 2048] [--soak 60] [--device gpu]
#
# A step is decode-like: x = x + tanh(x w) for every layer, in bf16, for one row; an Elixir process for each
# stream builds and evaluates it (eager), builds it while the one before it is computed (ahead), or calls a defn
# that Emily.Compiler has compiled (native, fuse).
# The rival is plain Rust threads (native/emily-core/examples/streams.rs, built with
# `cargo build --release --package emily-core --example streams`, or EMILY_RIVAL names it).
# The product's rival is Python's MLX on the same card, where PYTHON_MLX names a python3 that imports it.

defmodule Bench.Gpu do
  alias Emily.Native
  alias Emily.Native.Call

  @bf16 {:bf, 16}
  @counts [1, 2, 4, 8]

  def run(args) do
    {:ok, _} = Application.ensure_all_started([:nx, :emily])

    {options, parts, []} =
      OptionParser.parse(args,
        strict: [
          seconds: :integer,
          layers: :integer,
          size: :integer,
          device: :string,
          soak: :integer,
          rounds: :integer
        ]
      )

    device = if options[:device] == "cpu", do: :cpu, else: List.last(Emily.Stream.devices())
    options = Keyword.delete(options, :device)
    o = Map.merge(%{seconds: 1, rounds: 5, layers: 24, size: 2048, soak: 60}, Map.new(options))
    o = Map.put(o, :device, device)
    IO.puts("#{name(device)}, #{Date.utc_today()}")
    parts = if parts == [], do: ~w(decode matmul soak), else: parts
    for part <- parts, do: apply(__MODULE__, String.to_existing_atom(part), [o])
  end

  defp name(device) do
    case List.keyfind(Emily.Native.Nif.device_info(device), "device_name", 0) do
      {_, name} -> name
      nil -> inspect(device)
    end
  end

  ## Streams over shared weights

  # Lanes take turns, so that what else the host does falls on all of them; medians over the rounds.
  def decode(o) do
    stream = Emily.Stream.new(o.device)
    {x, weights} = inputs(stream.worker, o)
    lanes = [eager: &step/4, ahead: &ahead/4] ++ compiled(x, weights)

    lanes =
      for {lane, step} <- lanes, do: {lane, step, chain(stream, x, weights, step)}

    # What is fused rounds less often, so that its bits are its own.
    [expected, expected, expected, _fused] = for {_, _, alone} <- lanes, do: alone

    runs =
      for _ <- 1..o.rounds, count <- [:default | @counts] do
        ours =
          for {lane, step, alone} <- lanes do
            {{lane, count}, streams(count, x, weights, step, alone, o)}
          end

        rivals = if is_integer(count), do: [rust: [], rust_ahead: ["ahead"]], else: []
        ours ++ Enum.flat_map(rivals, fn {name, way} -> rival(name, way, count, o) end)
      end

    runs = runs |> Enum.concat() |> Enum.group_by(&elem(&1, 0), &elem(&1, 1))
    table(runs)
  end

  # On the worker that a process has without asking, or on so many streams.
  defp streams(:default, x, weights, step, _alone, o) do
    run = fn -> steps(Emily.Stream.worker(), x, weights, step, o) end
    summary([run |> Task.async() |> Task.await(:infinity)])
  end

  defp streams(count, x, weights, step, alone, o) do
    streams = for _ <- 1..count, do: Emily.Stream.new(o.device)

    run = fn stream ->
      if chain(stream, x, weights, step) != alone, do: raise("not bit-equal to one stream")
      Emily.Stream.with_stream(stream, fn -> steps(stream.worker, x, weights, step, o) end)
    end

    runs =
      streams |> Enum.map(&Task.async(fn -> run.(&1) end)) |> Task.await_many(:infinity)

    Enum.each(streams, &Emily.Stream.close/1)
    summary(runs)
  end

  defp inputs(w, o) do
    scale = 1.0 / :math.sqrt(o.size)

    normal = fn shape, s, seed ->
      Native.random_normal(w, shape, @bf16, 0.0, s, Native.random_key(seed))
    end

    weights = for n <- 1..o.layers, do: normal.([o.size, o.size], scale, n)
    x = normal.([1, o.size], 1.0, 1000)
    Native.eval(w, [x | weights])
    {x, weights}
  end

  # A step gets the one before it, which may still have to be waited for.
  defp step(w, x, weights, _before) do
    y = build(w, x, weights)
    Native.eval(w, y)
    y
  end

  # The step before is scheduled and computed while this one is built, and has been read, so to say, when this one
  # is queued.
  defp ahead(w, x, weights, before) do
    y = build(w, x, weights)
    if before, do: Native.eval(w, before)
    Call.async_eval(w, [y])
    y
  end

  defp build(w, x, weights) do
    Enum.reduce(weights, x, fn m, x ->
      Native.add(w, x, Native.tanh(w, Native.matmul(w, x, m)))
    end)
  end

  # The same as a defn. What is fused rounds less often, so that its bits are its own.
  defp compiled(x, weights) do
    tensor = fn ref ->
      shape = ref |> Emily.shape() |> List.to_tuple()
      %{Nx.template(shape, @bf16) | data: %Emily.Backend{ref: ref}}
    end

    body = fn x, weights ->
      for m <- Tuple.to_list(weights), reduce: x do
        x -> Nx.add(x, Nx.tanh(Nx.dot(x, m)))
      end
    end

    weights = weights |> Enum.map(tensor) |> List.to_tuple()
    templates = Nx.Defn.Composite.traverse({tensor.(x), weights}, &Nx.to_template/1)

    for {name, fuse} <- [native: false, fuse: true] do
      opts = [compiler: Emily.Compiler, native_fallback: :raise, fuse: fuse]
      step = Nx.Defn.compile(body, Tuple.to_list(templates), opts)
      {name, fn _w, x, _weights, _before -> step.(tensor.(x), weights).data.ref end}
    end
  end

  defp chain(stream, x, weights, step) do
    Emily.Stream.with_stream(stream, fn ->
      w = stream.worker

      {last, _} =
        Enum.reduce(1..21, {x, nil}, fn _, {x, before} ->
          y = step.(w, x, weights, before)
          {y, y}
        end)

      Native.to_binary(w, last)
    end)
  end

  # Steps per second and the time of each, once the stream is warm.
  defp steps(w, x, weights, step, o) do
    step = fn before -> step.(w, x, weights, before) end
    warm = Enum.reduce(1..50, nil, fn _, before -> step.(before) end)
    begin = System.monotonic_time()
    stop = begin + System.convert_time_unit(o.seconds, :second, :native)
    times = until(stop, step, warm, [])
    {length(times) / seconds(System.monotonic_time() - begin), times}
  end

  defp until(stop, step, before, times) do
    start = System.monotonic_time()

    if start >= stop do
      times
    else
      last = step.(before)
      until(stop, step, last, [System.monotonic_time() - start | times])
    end
  end

  defp summary(runs) do
    times = runs |> Enum.flat_map(&elem(&1, 1)) |> Enum.sort() |> List.to_tuple()
    at = fn share -> 1000 * seconds(elem(times, trunc((tuple_size(times) - 1) * share))) end
    rates = Enum.map(runs, &elem(&1, 0))
    %{rate: Enum.sum(rates), p50: at.(0.5), p99: at.(0.99), slowest: Enum.min(rates)}
  end

  defp table(runs) do
    for {lane, count} = key <- Enum.sort_by(Map.keys(runs), &order/1) do
      of = fn key, value -> Enum.map(runs[key], & &1[value]) end
      # Of the same round, and then the median of the rounds.
      ratio = fn to ->
        key |> of.(:rate) |> Enum.zip_with(of.(to, :rate), &(&1 / &2)) |> median()
      end

      ratios =
        for {name, to} <- [
              {"rust", {:rust, count}},
              {"rust ahead", {:rust_ahead, count}},
              {"one stream", {lane, 1}}
            ],
            to != key and is_map_key(runs, to),
            do: ", #{number(ratio.(to))} of #{name}"

      IO.puts(
        "#{lane}, #{count}: #{round(median(of.(key, :rate)))} steps/s" <>
          " (#{Enum.map_join(of.(key, :rate), " ", &round/1)}), p50 #{number(median(of.(key, :p50)))} ms," <>
          " p99 #{number(median(of.(key, :p99)))} ms, slowest stream #{round(median(of.(key, :slowest)))}/s" <>
          Enum.join(ratios)
      )
    end
  end

  defp order({lane, count}), do: {lane, if(count == :default, do: 0, else: count)}
  defp median(numbers), do: numbers |> Enum.sort() |> Enum.at(div(length(numbers), 2))
  defp number(x), do: :erlang.float_to_binary(x * 1.0, decimals: 2)

  defp seconds(native), do: System.convert_time_unit(native, :native, :nanosecond) / 1.0e9

  defp rival(name, way, count, o) do
    path = System.get_env("EMILY_RIVAL", "target/release/examples/streams")

    if File.exists?(path) do
      args = Enum.map([o.seconds, o.layers, o.size, count], &to_string/1) ++ way
      {text, 0} = System.cmd(Path.expand(path), args, stderr_to_stdout: true)
      [_ | numbers] = Regex.run(~r"([0-9]+) steps/s, p50 ([0-9.]+) ms, p99 ([0-9.]+) ms", text)
      [rate, p50, p99] = for text <- numbers, do: text |> Float.parse() |> elem(0)
      [{{name, count}, %{rate: rate, p50: p50, p99: p99, slowest: rate / count}}]
    else
      IO.puts("left out: the Rust rival (#{path} is not built)")
      []
    end
  end

  ## A large product

  def matmul(o) do
    size = if o.device == :gpu, do: 8192, else: 1024
    w = Emily.Stream.new(o.device).worker
    key = &Native.random_key/1
    [a, b] = for n <- 1..2, do: Native.random_normal(w, [size, size], @bf16, 0.0, 1.0, key.(n))
    Native.eval(w, [a, b])
    # Several in one evaluation, as in the rival: the wait at the end is not what is measured.
    many = fn -> Native.eval(w, for(_ <- 1..10, do: Native.matmul(w, a, b))) end
    for _ <- 1..3, do: many.()
    times = for(_ <- 1..15, do: elem(:timer.tc(many), 0)) |> Enum.sort()
    IO.puts("elixir matmul #{size} bf16: #{tera(size, Enum.at(times, 7))} TFLOP/s")

    if python = System.get_env("PYTHON_MLX") do
      {text, 0} = System.cmd(python, ["-c", python_matmul(), "#{size}"], stderr_to_stdout: true)

      IO.puts(
        "python matmul #{size} bf16: #{tera(size, text |> String.trim() |> String.to_float())} TFLOP/s"
      )
    end
  end

  defp tera(size, micros), do: Float.round(10 * 2 * size * size * size / micros / 1.0e6, 1)

  defp python_matmul do
    """
    import sys, time, mlx.core as mx
    n = int(sys.argv[1])
    a, b = (mx.random.normal((n, n), mx.bfloat16) for _ in range(2))
    mx.eval(a, b)
    def many():
        start = time.perf_counter()
        mx.eval([a @ b for _ in range(10)])
        mx.synchronize()
        return (time.perf_counter() - start) * 1e6
    for _ in range(3): many()
    print(sorted(many() for _ in range(15))[7])
    """
  end

  ## A long run

  # 2,000 shapes on 4 streams, for `--soak` seconds: no error, and memory flat once every shape has been.
  def soak(o) do
    stop = System.monotonic_time(:second) + o.soak
    shapes = for n <- 0..1999, do: {1 + rem(n * 7, 50), 16 + div(n, 4), 1 + rem(n, 3)}

    workers = for _ <- 1..4, do: Emily.Stream.new(o.device).worker
    parent = self()

    users =
      for {w, n} <- Enum.with_index(workers) do
        Task.async(fn -> soak_loop(w, Enum.shuffle(shapes), stop, 0, parent, n) end)
      end

    samples = watch(stop, [])
    rounds = Task.await_many(users, :infinity)

    IO.puts(
      "soak: #{Enum.sum(rounds)} graphs over #{length(shapes)} shapes on 4 streams, no error"
    )

    half = Enum.take(samples, div(length(samples), 2)) |> Enum.reverse()

    for {key, unit} <- [active: 20, cache: 20, resident: 20] do
      values = Enum.map(half, &Bitwise.bsr(&1[key], unit))

      IO.puts(
        "soak #{key} MiB, second half: first #{hd(values)}, last #{List.last(values)}, most #{Enum.max(values)}"
      )
    end
  end

  defp soak_loop(w, shapes, stop, count, parent, n) do
    {rows, columns, depth} = Enum.at(shapes, rem(count, length(shapes)))
    x = Native.random_normal(w, [rows, columns], {:f, 32}, 0.0, 1.0, Native.random_key(count))
    y = Enum.reduce(1..depth, x, fn _, y -> Native.tanh(w, Native.multiply(w, y, x)) end)
    square = Native.matmul(w, y, Native.transpose(w, y, [1, 0]))
    total = Native.sum(w, square, [0, 1], false)
    <<number::float-32-native>> = Native.to_binary(w, total)
    true = is_float(number)

    if System.monotonic_time(:second) < stop,
      do: soak_loop(w, shapes, stop, count + 1, parent, n),
      else: count + 1
  end

  defp watch(stop, samples) do
    if System.monotonic_time(:second) >= stop do
      samples
    else
      # A sample every so often is what is wanted here, nothing is waited for.
      Process.sleep(500)
      %{active: active, cache: cache} = Emily.Memory.stats()
      watch(stop, [%{active: active, cache: cache, resident: resident()} | samples])
    end
  end

  defp resident do
    [_, kilobytes] = Regex.run(~r/^VmRSS:\s+(\d+) kB$/m, File.read!("/proc/self/status"))
    String.to_integer(kilobytes) * 1024
  end
end

Bench.Gpu.run(System.argv())
