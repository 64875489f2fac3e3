# What compiling a defn costs and gives, beside Python's MLX in the same run: decoding with a
# Llama-shaped model in every lane, the cost of a call, of a chain of small operations, of a loop and
# of compiling.
#
#     mix run bench/compiler.exs [--rounds 7] [--device gpu --type bf16 --layers 16 --width 2048 --cache 1024]
#
# With a device, layers and so on only decoding is measured. PYTHON_MLX names a python3 that imports MLX
# where the host has one already.
# Python computes with the OpenBLAS that Emily computes with, on one thread, as a decoding step does
# here (see bench/decode.exs). Rivals take turns; each number is the median of all repetitions.

Code.require_file("protocols.exs", __DIR__)

defmodule Bench.Llama do
  # A decoder of one token for a cache of fixed length. Weights are constant: they cost as much as
  # others.
  import Nx.Defn

  @head 64
  @vocabulary 2048

  def new(layers, width, cache, type) do
    weight = fn shape ->
      inputs = elem(shape, tuple_size(shape) - 1)
      Nx.broadcast(Nx.tensor(1.0 / inputs, type: type), shape)
    end

    hidden = div(width * 11, 4)
    ones = Nx.broadcast(Nx.tensor(1.0, type: type), {width})

    layer = fn ->
      %{
        norm1: ones,
        norm2: ones,
        q: weight.({width, width}),
        k: weight.({width, width}),
        v: weight.({width, width}),
        o: weight.({width, width}),
        gate: weight.({width, hidden}),
        up: weight.({width, hidden}),
        down: weight.({hidden, width})
      }
    end

    params = %{
      embedding: weight.({@vocabulary, width}),
      layers: List.to_tuple(for _ <- 1..layers, do: layer.()),
      norm: ones,
      head: weight.({width, @vocabulary})
    }

    {materialise(params), empty_cache(layers, width, cache, type)}
  end

  # One buffer a tensor, as loaded weights have.
  defp materialise(params) do
    Nx.Defn.Composite.traverse(params, fn t ->
      Nx.from_binary(Nx.to_binary(t), t.type) |> Nx.reshape(t.shape)
    end)
  end

  def empty_cache(layers, width, cache, {_, bits} = type) do
    shape = {1, div(width, @head), cache, @head}
    zeros = :binary.copy(<<0::size(bits)>>, Tuple.product(shape))
    zero = fn -> Nx.from_binary(zeros, type) |> Nx.reshape(shape) end
    List.to_tuple(for _ <- 1..layers, do: {zero.(), zero.()})
  end

  def step(token, offset, cache, params) do
    x = Nx.take(params.embedding, token)
    {_, _, length, _} = elem(elem(cache, 0), 0).shape
    mask = offset |> mask(length: length) |> Nx.as_type(x.type)

    {x, cache} =
      Tuple.to_list(params.layers)
      |> Enum.zip(Tuple.to_list(cache))
      |> Enum.reduce({x, []}, fn {layer, kept}, {x, done} ->
        {x, kept} = layer(x, layer, kept, offset, mask)
        {x, [kept | done]}
      end)

    logits = x |> Emily.Fast.rms_norm(params.norm) |> Nx.dot(params.head)
    {Nx.argmax(logits, axis: -1, type: :s32), cache |> Enum.reverse() |> List.to_tuple()}
  end

  defn mask(offset, opts \\ []) do
    Nx.select(Nx.iota({1, 1, 1, opts[:length]}) <= offset, 0.0, -1.0e9)
  end

  defp layer(x, layer, {keys, values}, offset, mask) do
    y = Emily.Fast.rms_norm(x, layer.norm1)
    start = [0, 0, offset, 0]
    keys = Nx.put_slice(keys, start, rope(heads(Nx.dot(y, layer.k)), offset))
    values = Nx.put_slice(values, start, heads(Nx.dot(y, layer.v)))
    q = rope(heads(Nx.dot(y, layer.q)), offset)
    y = Emily.Fast.scaled_dot_product_attention_with_mask(q, keys, values, mask)
    y = y |> Nx.transpose(axes: [0, 2, 1, 3]) |> Nx.reshape(x.shape) |> Nx.dot(layer.o)
    x = Nx.add(x, y)
    y = Emily.Fast.rms_norm(x, layer.norm2)
    gate = Nx.dot(y, layer.gate)
    y = gate |> Nx.multiply(Nx.sigmoid(gate)) |> Nx.multiply(Nx.dot(y, layer.up))
    {Nx.add(x, Nx.dot(y, layer.down)), {keys, values}}
  end

  defp heads(y) do
    y
    |> Nx.reshape({1, 1, div(elem(y.shape, 1), @head), @head})
    |> Nx.transpose(axes: [0, 2, 1, 3])
  end

  defp rope(y, offset), do: Emily.Fast.rope(y, offset, dims: @head)
end

defmodule Bench.Compiler do
  import Nx.Defn

  @sizes [{8, 512}, {4, 256}]
  @cache 256
  @tokens 40
  @switches [
    rounds: :integer,
    device: :string,
    type: :string,
    layers: :integer,
    width: :integer,
    cache: :integer
  ]

  def run(arguments) do
    {:ok, _} = Application.ensure_all_started([:nx, :emily])
    {options, [], []} = OptionParser.parse(arguments, strict: @switches)
    rounds = options[:rounds] || 7
    device = if options[:device] == "gpu", do: :gpu, else: :cpu
    type = Map.fetch!(%{"f32" => {:f, 32}, "bf16" => {:bf, 16}}, options[:type] || "f32")
    cache = options[:cache] || @cache
    Nx.global_default_backend({Emily.Backend, device: device})
    python = start_python(device)
    stream = Emily.Stream.new(device)

    Emily.Stream.with_stream(stream, fn ->
      if options[:layers] do
        decode(python, {options[:layers], options[:width], cache, type}, rounds)
      else
        for {layers, width} <- @sizes, do: decode(python, {layers, width, cache, type}, rounds)
        calls(python, rounds)
        compilation()
      end
    end)

    send(python, {self(), :close})
  end

  ## Decoding

  defp decode(python, {layers, width, length, type} = model, rounds) do
    {params, cache} = Bench.Llama.new(layers, width, length, type)
    templates = [Nx.template({1}, :s32), Nx.template({}, :s32), cache, params]

    lanes =
      for {name, opts} <- [native: [], fuse: [fuse: true], eager: [native: false]] do
        opts = [compiler: Emily.Compiler, native_fallback: :raise, donate: [2]] ++ opts
        step = Nx.Defn.compile(&Bench.Llama.step/4, templates, opts)

        {name,
         fn count ->
           tokens(step, model, params, count)
         end}
      end

    type = Nx.Type.to_string(type)
    request = %{case: "decode", layers: layers, width: width, cache: length, type: type}

    rivals =
      for lane <- ["plain", "compile"] do
        {String.to_atom(lane), &ask(python, Map.merge(request, %{count: &1, lane: lane}))}
      end

    times = take_turns(lanes ++ rivals, rounds, @tokens)

    IO.puts("\n#{layers} layers of #{width}, #{type}, cache #{length}: ms a token")

    for {ours, rival, goal} <- [
          {:native, :plain, 1.0},
          {:fuse, :compile, 1.05},
          {:eager, :plain, 2.0}
        ] do
      row("  #{ours}", times[ours], times[rival], "Python #{rival}", "<= #{goal}")
    end
  end

  defp tokens(step, {layers, width, length, type}, params, count) do
    start = {Nx.tensor([1], type: :s32), Bench.Llama.empty_cache(layers, width, length, type)}

    {times, _last} =
      Enum.map_reduce(0..(count - 1), start, fn offset, {token, cache} ->
        offset = Nx.tensor(rem(offset, length), type: :s32)

        timed(fn ->
          {token, cache} = step.(token, offset, cache, params)
          Nx.to_binary(token)
          {token, cache}
        end)
      end)

    times
  end

  ## Calls

  defn(identity(x), do: x)

  defn loop(x, limit) do
    while {x, limit}, x < limit do
      {x + 1, limit}
    end
  end

  def chain(x) do
    Enum.reduce(1..500, x, fn _, y -> Nx.tanh(Nx.add(y, x)) end)
  end

  defp calls(python, rounds) do
    opts = [compiler: Emily.Compiler, native_fallback: :raise]
    one = Nx.tensor([1.0, 2.0])
    Nx.to_binary(one)
    identity = Nx.Defn.compile(&identity/1, [one], opts)
    chain = Nx.Defn.compile(&chain/1, [one], opts)
    limit = Nx.tensor(1000)
    loop = Nx.Defn.compile(&loop/2, [Nx.tensor(0), limit], opts)
    zero = Nx.tensor(0)

    repeat = fn work ->
      fn count -> for _ <- 1..count, do: timed(fn -> {work.(), nil} end) |> elem(0) end
    end

    cases = [
      {"500 calls of a compiled identity", "identity",
       repeat.(fn -> for _ <- 1..500, do: identity.(one) end), %{length: 500}, 5,
       "at most 7.5 more"},
      {"1,000 chained operations", "chain", repeat.(fn -> chain.(one) end), %{length: 1000}, 10,
       "<= 1.2"},
      {"a loop of 1,000 iterations", "loop", repeat.(fn -> loop.(zero, limit) end),
       %{length: 1000}, 3, "<= 1.2"}
    ]

    IO.puts("")

    for {label, name, ours, request, count, goal} <- cases do
      theirs = &ask(python, Map.merge(request, %{case: name, count: &1}))
      times = take_turns([ours: ours, theirs: theirs], rounds, count)
      row("#{label}, ms", times.ours, times.theirs, "Python", goal)
    end
  end

  ## Compiling

  defp compilation do
    deep = fn x -> Enum.reduce(1..1000, x, fn n, y -> Nx.add(Nx.sin(y), n) end) end
    x = Nx.tensor([1.0, 2.0])

    {microseconds, _} =
      :timer.tc(fn -> Nx.Defn.compile(deep, [x], compiler: Emily.Compiler) end)

    IO.puts("#{label("compiling 2,000 operations, s")} #{number(microseconds / 1.0e6)}; < 1")
  end

  ## Measuring

  defp take_turns(rivals, rounds, count) do
    for {_name, run} <- rivals, do: run.(min(count, 5))

    times = for _ <- 1..rounds, {name, run} <- rivals, do: {name, run.(count)}

    times
    |> Enum.group_by(&elem(&1, 0), &elem(&1, 1))
    |> Map.new(fn {name, rounds} -> {name, rounds |> Enum.concat() |> median()} end)
  end

  defp timed(work) do
    start = System.monotonic_time(:nanosecond)
    result = work.()
    {(System.monotonic_time(:nanosecond) - start) / 1.0e6, result}
  end

  defp start_python(device) do
    own = System.get_env("PYTHON_MLX")

    Port.open({:spawn_executable, own || Path.join(__DIR__, "reference/python.sh")}, [
      :binary,
      :exit_status,
      line: 10_000_000,
      args: [Path.join(__DIR__, "reference/compiler.py"), to_string(device)],
      env: [{~c"OPENBLAS_NUM_THREADS", ~c"1"}]
    ])
  end

  defp ask(python, request) do
    send(python, {self(), {:command, [JSON.encode!(request), "\n"]}})

    receive do
      {^python, {:data, {:eol, line}}} ->
        JSON.decode!(line)["ms"]

      {^python, {:exit_status, status}} ->
        raise "bench/reference/compiler.py ended with #{status}"
    end
  end

  defp row(what, ours, theirs, rival, goal) do
    IO.puts(
      "#{label(what)} #{number(ours)}; #{rival} #{number(theirs)}, " <>
        "ratio #{number(ours / theirs)}; #{goal}"
    )
  end

  defp median(numbers), do: numbers |> Enum.sort() |> Enum.at(div(length(numbers), 2))
  defp label(text), do: String.pad_trailing(text, 34)
  defp number(x), do: :erlang.float_to_binary(x * 1.0, decimals: 3)
end

Bench.Compiler.run(System.argv())
