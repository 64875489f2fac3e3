# all-MiniLM-L6-v2: 1,000 sentences in batches of 32, beside Python's MLX with the same weights, batches,
# libmlx and BLAS; and as an Nx.Serving, from text to embedding, under load.
#
#     mix run bench/minilm.exs [--rounds 5] [--sentences 1000] [--batch 32]
#
# Rivals take turns. Numbers are sentences/s of the middle round, with the best beside them. Exits with 1
# when an embedding differs from Python's.

for part <- ~w(tokenizer weights model embedder) do
  Code.require_file("../examples/minilm/#{part}.ex", __DIR__)
end

defmodule Bench.MiniLM do
  alias MiniLM.{Embedder, Weights}

  @words ~w(a the this that some old new small great cat dog house river market city train child teacher
            doctor engine question answer letter garden mountain winter morning music paper window runs
            sits writes finds makes sees builds sells moves changes under over near with without before
            after slowly quickly often never red blue green and but while because)

  def run(arguments) do
    {options, [], []} =
      OptionParser.parse(arguments,
        strict: [rounds: :integer, sentences: :integer, batch: :integer]
      )

    case Weights.fetch() do
      {:ok, folder} ->
        Nx.default_backend({Emily.Backend, device: :cpu})
        Emily.Stream.with_stream(Emily.Stream.new(:cpu), fn -> compare(folder, options) end)

      {:error, reason} ->
        IO.puts("left out, since MiniLM is not on this machine: #{reason}")
    end
  end

  # The lanes that are measured, by name.
  defp lanes do
    [
      {"program", [compiler: Emily.Compiler, native_fallback: :raise]},
      {"program, fused", [compiler: Emily.Compiler, native_fallback: :raise, fuse: true]}
    ]
  end

  defp compare(folder, options) do
    sentences = sentences(options[:sentences] || 1000)
    rounds = options[:rounds] || 5
    size = options[:batch] || 32
    weights = Weights.load(folder)

    embedders =
      for {name, defn_options} <- lanes(), do: {name, Embedder.new(weights, defn_options)}

    [{_name, embedder} | _] = embedders

    # Sentences of about one length go into one batch, as in a serving with lengths as its keys.
    batches =
      sentences
      |> Enum.map(&Embedder.encode(embedder, &1))
      |> Enum.sort_by(&length/1)
      |> Enum.chunk_every(size)
      |> Enum.map(&Embedder.batch(embedder, &1))

    IO.puts(
      "MiniLM-L6, f32, #{length(sentences)} sentences, batches of #{size}, #{rounds} rounds"
    )

    python = start_python(folder)
    check(python, embedder, batches)

    rivals =
      for {name, embedder} <- embedders, do: {name, fn -> ours(embedder, batches) end}

    rivals =
      [
        {"Python", fn -> ask(python, %{compiled: false})["ms"] end},
        {"Python, mx.compile", fn -> ask(python, %{compiled: true})["ms"] end}
      ] ++ rivals

    for {_name, run} <- rivals, do: run.()

    times =
      for _ <- 1..rounds, {name, run} <- rivals, reduce: %{} do
        times ->
          time = run.()
          Map.update(times, name, [time], &[time | &1])
      end

    send(python, {self(), :close})
    report(rivals, times, length(sentences))
    serve(weights, sentences, size)
  end

  defp ours(embedder, batches) do
    milliseconds(fn ->
      for batch <- batches, do: Nx.to_binary(Embedder.predict(embedder, batch))
    end)
  end

  # Under load: each sentence is a request, and so many are waiting at any time.
  defp serve(weights, sentences, size) do
    for {name, defn_options} <- lanes() do
      serving = Embedder.serving(weights, device: :cpu, defn_options: defn_options)
      options = [name: __MODULE__, batch_size: size, batch_timeout: 20]
      {:ok, pid} = Nx.Serving.start_link([serving: serving] ++ options)

      all = fn ->
        sentences
        |> Task.async_stream(&Nx.Serving.batched_run(__MODULE__, &1),
          max_concurrency: 8 * size,
          timeout: :infinity,
          ordered: false
        )
        |> Stream.run()
      end

      all.()
      rate = 1000 * length(sentences) / milliseconds(all)
      IO.puts("#{label("served, #{name}")} #{number(rate)} sentences/s, from the text")
      Supervisor.stop(pid)
    end
  end

  ## Sentences, the same in every run

  defp sentences(count) do
    {sentences, _state} =
      Enum.map_reduce(1..count, 1, fn _, state ->
        {length, state} = random(state, 22)
        {words, state} = Enum.map_reduce(1..(length + 4), state, &word/2)
        {Enum.join(words, " ") <> ".", state}
      end)

    sentences
  end

  defp word(_, state) do
    {index, state} = random(state, length(@words))
    {Enum.at(@words, index), state}
  end

  # A linear congruential generator, of which the high bits are used.
  defp random(state, below) do
    state = rem(state * 1_103_515_245 + 12_345, 2_147_483_648)
    {rem(div(state, 65_536), below), state}
  end

  ## Python

  defp start_python(folder) do
    Port.open({:spawn_executable, Path.join(__DIR__, "reference/python.sh")}, [
      :binary,
      :exit_status,
      line: 10_000_000,
      args: [Path.join(__DIR__, "reference/minilm.py"), folder]
    ])
  end

  defp check(python, embedder, batches) do
    given =
      for batch <- batches, do: Map.new(batch, fn {name, rows} -> {name, Nx.to_list(rows)} end)

    %{"embeddings" => theirs} = ask(python, %{batches: given})
    ours = embedder |> Embedder.predict(hd(batches)) |> Nx.to_list()

    difference =
      Enum.zip_with(ours, theirs, fn ours, theirs ->
        Enum.max(Enum.zip_with(ours, theirs, &abs(&1 - &2)))
      end)
      |> Enum.max()

    IO.puts("#{label("greatest difference from Python")} #{difference}")
    if difference > 1.0e-4, do: exit({:shutdown, 1})
  end

  defp ask(python, request) do
    send(python, {self(), {:command, [JSON.encode!(request), "\n"]}})

    receive do
      {^python, {:data, {:eol, line}}} -> JSON.decode!(line)
      {^python, {:exit_status, status}} -> raise "bench/reference/minilm.py ended with #{status}"
    end
  end

  ## Numbers

  defp report(rivals, times, count) do
    rate = fn name, pick -> 1000 * count / pick.(Enum.sort(times[name])) end
    middle = fn times -> Enum.at(times, div(length(times), 2)) end
    python = rate.("Python", middle)

    for {name, _run} <- rivals do
      ours = rate.(name, middle)

      IO.puts(
        "#{label(name)} #{number(ours)} sentences/s, best #{number(rate.(name, &hd/1))}; " <>
          "of Python's #{number(ours / python)}"
      )
    end
  end

  defp milliseconds(run) do
    start = System.monotonic_time()
    run.()
    System.convert_time_unit(System.monotonic_time() - start, :native, :microsecond) / 1000
  end

  defp label(text), do: String.pad_trailing(text, 36)
  defp number(x), do: :erlang.float_to_binary(x * 1.0, decimals: 2)
end

Bench.MiniLM.run(System.argv())
