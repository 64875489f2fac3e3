# Decoding SmolLM2 through Nx: tokens/s of one stream beside Python's MLX with the same weights and libmlx, and
# of a serving's partitions beside one.
#
#     mix run bench/smollm2_nx.exs [--mode dequantized|quantized] [--rounds 6] [--tokens 64]
#                                  [--partitions 4] [--evaluator]
#
# Ours: a defn compiled to a native program, with and without `fuse: true`, and with --evaluator operation by
# operation. Theirs: Python plain, with a cache that grows, and mx.compile, with a cache of the same length
# as ours. Python computes with the OpenBLAS that Emily computes with, on as many threads as a decoding
# product takes there: one (OPENBLAS_NUM_THREADS is taken from the environment). Rivals take turns, so that
# what else the machine does falls on all. Two numbers each: the middle token of all rounds, and the one
# that a tenth of all were faster than. The processor time a token says more where the machine does
# other work. Exits with 1 when ids differ.

for part <- ~w(tokenizer weights model) do
  Code.require_file("../examples/smollm2/#{part}.ex", __DIR__)
end

for part <- ~w(model generate) do
  Code.require_file("../examples/smollm2_nx/#{part}.ex", __DIR__)
end

defmodule Bench.SmolLM2Nx do
  alias SmolLM2.{Tokenizer, Weights}
  alias SmolLM2.Nx.{Generate, Model}

  @questions [
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper."
  ]

  def run(arguments) do
    {options, [], []} =
      OptionParser.parse(arguments,
        strict: [
          mode: :string,
          rounds: :integer,
          tokens: :integer,
          partitions: :integer,
          evaluator: :boolean
        ]
      )

    options =
      Map.merge(
        %{mode: "dequantized", tokens: 64, rounds: 6, partitions: 4, evaluator: false},
        Map.new(options)
      )

    case Weights.fetch() do
      {:ok, path} ->
        Nx.default_backend({Emily.Backend, device: :cpu})
        stream = Emily.Stream.new(:cpu)
        {model, prompts} = Emily.Stream.with_stream(stream, fn -> prepare(path, options.mode) end)
        %{mode: mode, tokens: tokens, rounds: rounds} = options
        IO.puts("SmolLM2-135M, #{mode}, f32, #{tokens} tokens an answer, #{rounds} rounds\n")
        compare_with_python(stream, model, prompts, path, options)
        compare_partitions(model, prompts, options)

      {:error, reason} ->
        IO.puts("left out, since SmolLM2 is not on this machine: #{reason}")
    end
  end

  defp prepare(path, mode) do
    w = Emily.Stream.worker()
    file = Emily.load(path)
    tokenizer = Tokenizer.from_metadata(file.metadata)
    native = SmolLM2.Model.new(w, file, String.to_existing_atom(mode))
    {Model.from_native(native), Enum.map(@questions, &Tokenizer.encode_chat(tokenizer, &1))}
  end

  ## One stream beside Python

  defp lanes(options) do
    evaluator =
      if options.evaluator, do: [{"operations", [compiler: Nx.Defn.Evaluator]}], else: []

    [
      {"program", [compiler: Emily.Compiler, native_fallback: :raise]},
      {"program, fused", [compiler: Emily.Compiler, native_fallback: :raise, fuse: true]}
    ] ++ evaluator
  end

  defp compare_with_python(stream, model, prompts, path, options) do
    python = start_python(path)
    %{mode: mode, tokens: tokens, rounds: rounds} = options

    ours =
      for {name, defn_options} <- lanes(options) do
        {name,
         fn prompt, tokens, positions ->
           run = [tokens: tokens, positions: positions, defn_options: defn_options]

           Emily.Stream.with_stream(stream, fn ->
             with_cpu_time(&Generate.run(model, prompt, [on_token: &1] ++ run))
           end)
         end}
      end

    request = &%{mode: mode, tokens: &2, prompts: [&1]}

    theirs = [
      {"Python", fn prompt, tokens, _positions -> ask(python, request.(prompt, tokens)) end},
      {"Python, mx.compile",
       fn prompt, tokens, positions ->
         fixed = %{positions: positions, compiled: true}
         ask(python, Map.merge(request.(prompt, tokens), fixed))
       end}
    ]

    rivals = theirs ++ ours
    positions = Enum.max(Enum.map(prompts, &Generate.padded(length(&1)))) + tokens
    for {_name, run} <- rivals, do: run.(hd(prompts), 4, positions)

    rounds =
      for prompt <- prompts |> Stream.cycle() |> Enum.take(rounds) do
        for {name, run} <- rivals, into: %{}, do: {name, run.(prompt, tokens, positions)}
      end

    send(python, {self(), :close})
    answers = for {name, _run} <- rivals, into: %{}, do: {name, Enum.map(rounds, & &1[name])}
    for {name, _run} <- rivals, do: report(name, answers)
    first = for {name, _run} <- rivals, do: "#{name} #{number(first_ms(answers[name]))}"
    IO.puts("#{label("to the first token, ms")} #{Enum.join(first, "; ")}")
    cpu = for {name, _run} <- rivals, do: "#{name} #{number(cpu_ms(answers[name]))}"
    IO.puts("#{label("processor time a token, ms")} #{Enum.join(cpu, "; ")}")

    same? =
      Enum.all?(
        rounds,
        &match?([_], &1 |> Map.values() |> Enum.map(fn a -> a.ids end) |> Enum.uniq())
      )

    IO.puts("#{label("ids")} #{if same?, do: "the same", else: "DIFFERENT"}\n")
    unless same?, do: exit({:shutdown, 1})
  end

  defp report(name, answers) do
    of = fn rival, part -> rate(answers[name], part) / rate(answers[rival], part) end

    IO.puts(
      "#{label("#{name}, tokens/s")} #{number(rate(answers[name], 0.5))}, fast token " <>
        "#{number(rate(answers[name], 0.1))}; of Python's #{number(of.("Python", 0.5))}, " <>
        "#{number(of.("Python", 0.1))}; of mx.compile's " <>
        "#{number(of.("Python, mx.compile", 0.5))}, #{number(of.("Python, mx.compile", 0.1))}"
    )
  end

  # With the processor time of the whole VM from the first token on.
  defp with_cpu_time(run) do
    runtime = fn -> :erlang.statistics(:runtime) |> elem(0) end

    answer =
      run.(fn _id -> Process.get(:first_token) || Process.put(:first_token, runtime.()) end)

    Map.put(answer, :cpu_ms, runtime.() - Process.delete(:first_token))
  end

  defp start_python(path) do
    script = Path.join(__DIR__, "reference/smollm2.py")
    threads = System.get_env("OPENBLAS_NUM_THREADS", "1")

    Port.open({:spawn_executable, Path.join(__DIR__, "reference/python.sh")}, [
      :binary,
      :exit_status,
      line: 1_000_000,
      args: [script, path],
      env: [{~c"OPENBLAS_NUM_THREADS", String.to_charlist(threads)}]
    ])
  end

  defp ask(python, request) do
    send(python, {self(), {:command, [JSON.encode!(request), "\n"]}})

    receive do
      {^python, {:data, {:eol, line}}} ->
        %{"answers" => [answer]} = JSON.decode!(line)

        %{
          ids: answer["ids"],
          first_ms: answer["first_ms"],
          token_ms: answer["token_ms"],
          cpu_ms: answer["cpu_ms"]
        }

      {^python, {:exit_status, status}} ->
        raise "bench/reference/smollm2.py ended with #{status}"
    end
  end

  ## A serving's partitions

  # Each request is one prompt. By the clock, reading the prompts included: as many requests as there
  # are partitions, of the serving with all of them and of the one with one.
  defp compare_partitions(model, prompts, options) do
    %{partitions: count, tokens: tokens} = options
    requests = prompts |> Stream.cycle() |> Enum.take(count)
    one = start(model, prompts, tokens, 1)
    all = start(model, prompts, tokens, count)
    for name <- [one, all], do: serve(name, requests)

    rounds =
      for _ <- 1..max(div(options.rounds, 2), 1), do: {serve(one, requests), serve(all, requests)}

    {by_one, by_all} = Enum.unzip(rounds)
    rate = fn times -> 1000 * count * tokens / median(times) end

    IO.puts(
      "#{label("#{count} partitions, tokens/s")} #{number(rate.(by_all))}; one #{number(rate.(by_one))}, " <>
        "ratio #{number(rate.(by_all) / rate.(by_one))}; >= 1.6 on 2 cores"
    )
  end

  defp start(model, prompts, tokens, partitions) do
    positions = Enum.max(Enum.map(prompts, &Generate.padded(length(&1)))) + tokens

    answer = fn batch, defn_options ->
      {ids, count} = Nx.Defn.jit_apply(&Function.identity/1, [batch], defn_options)
      prompt = ids |> Nx.to_flat_list() |> Enum.take(Nx.to_number(count[0]))
      run = [tokens: tokens, positions: positions, defn_options: defn_options]
      Nx.tensor([Generate.run(model, prompt, run).ids], type: :s32)
    end

    backend = {Emily.Backend, device: :cpu}
    defn_options = [compiler: Emily.Compiler, device: :cpu, max_concurrency: partitions]
    name = Module.concat(__MODULE__, "Of#{partitions}")

    serving =
      fn defn_options ->
        &Nx.with_default_backend(backend, fn -> answer.(&1, defn_options) end)
      end
      |> Nx.Serving.new(defn_options)
      |> Emily.Serving.with_streams(device: :cpu)

    {:ok, _pid} =
      Nx.Serving.start_link(serving: serving, name: name, batch_size: 1, partitions: true)

    name
  end

  defp serve(name, prompts) do
    longest = Enum.max(Enum.map(prompts, &length/1))

    batches =
      for prompt <- prompts do
        Nx.with_default_backend(Nx.BinaryBackend, fn ->
          ids = Nx.tensor(prompt ++ List.duplicate(0, longest - length(prompt)), type: :s32)
          Nx.Batch.stack([{ids, Nx.tensor(length(prompt), type: :s32)}])
        end)
      end

    start = System.monotonic_time(:microsecond)

    batches
    |> Enum.map(&Task.async(fn -> Nx.Serving.batched_run(name, &1) end))
    |> Task.await_many(:infinity)

    (System.monotonic_time(:microsecond) - start) / 1000
  end

  ## Numbers

  # Tokens/s at the pace of the token that a part of all were faster than.
  defp rate(answers, part) do
    times = answers |> Enum.flat_map(& &1.token_ms) |> Enum.sort()
    1000 / Enum.at(times, trunc(part * length(times)))
  end

  defp cpu_ms(answers) do
    answers |> Enum.map(&(&1.cpu_ms / length(&1.token_ms))) |> median()
  end

  defp first_ms(answers), do: answers |> Enum.map(& &1.first_ms) |> median()
  defp median(numbers), do: numbers |> Enum.sort() |> Enum.at(div(length(numbers), 2))
  defp label(text), do: String.pad_trailing(text, 28)
  defp number(x), do: :erlang.float_to_binary(x * 1.0, decimals: 2)
end

Bench.SmolLM2Nx.run(System.argv())
