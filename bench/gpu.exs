# Many streams over shared weights, a large product, and a long run over many shapes.
#
#     mix run bench/gpu.exs [decode|matmul|soak] [--seconds 5] [--layers 24] [--size 2048] [--device gpu]
#
# A step is decode-like: x = x + tanh(x w) for every layer, in bf16, for one row; an Elixir process for each
# stream builds and evaluates it (eager), or calls a defn that Emily.Compiler has compiled (native, fuse). The rival is plain Rust threads (native/emily-core/examples/streams.rs,
# built with `cargo build --release --package emily-core --example streams`, or EMILY_RIVAL names it).
# The product's rival is Python's MLX on the same card, where PYTHON_MLX names a python3 that imports it.

defmodule Bench.Gpu do
  alias Emily.Native

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
          soak: :integer
        ]
      )

    device = if options[:device] == "cpu", do: :cpu, else: List.last(Emily.Stream.devices())
    o = Map.merge(%{seconds: 5, layers: 24, size: 2048, soak: 60}, Map.new(options))
    o = %{seconds: o.seconds, layers: o.layers, size: o.size, soak: o.soak, device: device}
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

  def decode(o) do
    stream = Emily.Stream.new(o.device)
    {x, weights} = inputs(stream.worker, o)
    expected = chain(stream, x, weights, &step/3)
    lanes = [eager: &step/3] ++ compiled(x, weights)

    for {lane, step} <- lanes do
      steady = Task.await(Task.async(fn -> loop(nil, x, weights, step, o) end), :infinity)
      row("#{lane}, default worker", [steady])

      for count <- @counts do
        streams = for _ <- 1..count, do: Emily.Stream.new(o.device)

        alone = if lane == :fuse, do: chain(hd(streams), x, weights, step), else: expected

        for stream <- streams, chain(stream, x, weights, step) != alone do
          raise "#{lane}: not bit-equal to one stream"
        end

        runs =
          streams
          |> Enum.map(&Task.async(fn -> loop(&1, x, weights, step, o) end))
          |> Task.await_many(:infinity)

        row("#{lane}, #{count} streams", runs)
        Enum.each(streams, &Emily.Stream.close/1)
      end
    end

    rival(o)
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

  defp step(w, x, weights) do
    y =
      Enum.reduce(weights, x, fn m, x ->
        Native.add(w, x, Native.tanh(w, Native.matmul(w, x, m)))
      end)

    Native.eval(w, y)
    y
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
      {name, fn _w, x, _weights -> step.(tensor.(x), weights).data.ref end}
    end
  end

  defp chain(stream, x, weights, step) do
    Emily.Stream.with_stream(stream, fn ->
      w = stream.worker
      Native.to_binary(w, Enum.reduce(1..21, x, fn _, x -> step.(w, x, weights) end))
    end)
  end

  # Steps per second and the time of each, once all streams are warm.
  defp loop(nil, x, weights, step, o) do
    steps(Emily.Stream.worker(), x, weights, step, o)
  end

  defp loop(stream, x, weights, step, o) do
    Emily.Stream.with_stream(stream, fn -> steps(stream.worker, x, weights, step, o) end)
  end

  defp steps(w, x, weights, step, o) do
    for _ <- 1..50, do: step.(w, x, weights)
    begin = System.monotonic_time()
    stop = begin + System.convert_time_unit(o.seconds, :second, :native)
    times = until(stop, fn -> step.(w, x, weights) end, [])
    {length(times) / seconds(System.monotonic_time() - begin), times}
  end

  defp until(stop, step, times) do
    start = System.monotonic_time()

    if start >= stop do
      times
    else
      step.()
      until(stop, step, [System.monotonic_time() - start | times])
    end
  end

  defp row(name, runs) do
    rate = runs |> Enum.map(&elem(&1, 0)) |> Enum.sum() |> round()
    times = runs |> Enum.flat_map(&elem(&1, 1)) |> Enum.sort() |> List.to_tuple()

    at = fn share ->
      Float.round(1000 * seconds(elem(times, trunc((tuple_size(times) - 1) * share))), 3)
    end

    slowest = runs |> Enum.map(&elem(&1, 0)) |> Enum.min() |> round()

    IO.puts(
      "elixir #{name}: #{rate} steps/s, p50 #{at.(0.5)} ms, p99 #{at.(0.99)} ms, slowest stream #{slowest}/s"
    )
  end

  defp seconds(native), do: System.convert_time_unit(native, :native, :nanosecond) / 1.0e9

  defp rival(o) do
    path = System.get_env("EMILY_RIVAL", "target/release/examples/streams")

    if File.exists?(path) do
      args = Enum.map([o.seconds, o.layers, o.size | @counts], &to_string/1)
      {text, 0} = System.cmd(Path.expand(path), args, stderr_to_stdout: true)
      IO.write(text)
    else
      IO.puts("left out: the Rust rival (#{path} is not built)")
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
