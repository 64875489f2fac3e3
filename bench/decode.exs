# Decoding SmolLM2 one token at a time: tokens/s of one stream beside Python's MLX with the same
# weights, libmlx and operations, and of two streams beside one.
#
#     mix run bench/decode.exs [--mode dequantized|quantized] [--rounds 6] [--tokens 64]
#
# Python computes with the OpenBLAS that Emily computes with, on as many threads as a decoding product
# takes there: one (OPENBLAS_NUM_THREADS is taken from the environment). Rivals take turns, so that what
# else the machine does falls on both. Two numbers each: the middle token of all rounds, and the
# token that a tenth of all were faster than, which tells more where the machine does other work too.
# Exits with 1 when the ids differ.

for part <- ~w(tokenizer weights model generate table) do
  Code.require_file("../examples/smollm2/#{part}.ex", __DIR__)
end

defmodule Bench.Decode do
  alias SmolLM2.{Generate, Model, Table, Tokenizer, Weights}

  @questions [
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper."
  ]

  def run(arguments) do
    {options, [], []} =
      OptionParser.parse(arguments, strict: [mode: :string, rounds: :integer, tokens: :integer])

    mode = options[:mode] || "dequantized"
    tokens = options[:tokens] || 64
    rounds = options[:rounds] || 6

    case Weights.fetch() do
      {:ok, path} ->
        stream = Emily.Stream.new(:cpu)
        {model, prompts} = Emily.Stream.with_stream(stream, fn -> prepare(path, mode) end)
        IO.puts("SmolLM2-135M, #{mode}, f32, #{tokens} tokens an answer, #{rounds} rounds\n")
        compare_with_python(stream, model, prompts, path, mode, rounds, tokens)
        compare_streams(model, prompts, rounds, tokens)

      {:error, reason} ->
        IO.puts("left out, since SmolLM2 is not on this machine: #{reason}")
    end
  end

  defp prepare(path, mode) do
    w = Emily.Stream.worker()
    file = Emily.load(path)
    tokenizer = Tokenizer.from_metadata(file.metadata)
    prompts = Enum.map(@questions, &Tokenizer.encode_chat(tokenizer, &1))
    {Model.new(w, file, String.to_existing_atom(mode)), prompts}
  end

  ## One stream beside Python

  defp compare_with_python(stream, model, prompts, path, mode, rounds, tokens) do
    python = start_python(path)

    ours = fn prompt, tokens ->
      Emily.Stream.with_stream(stream, fn -> Generate.run(model, prompt, tokens: tokens) end)
    end

    theirs = fn prompt, tokens ->
      ask(python, %{mode: mode, tokens: tokens, prompts: [prompt]})
    end

    for rival <- [ours, theirs], do: rival.(hd(prompts), 4)

    pairs =
      for prompt <- prompts |> Stream.cycle() |> Enum.take(rounds) do
        {theirs.(prompt, tokens), ours.(prompt, tokens)}
      end

    send(python, {self(), :close})
    {theirs, ours} = Enum.unzip(pairs)
    compare("one stream, middle token", "Python", rate(ours, 0.5), rate(theirs, 0.5), ">= 0.9")
    compare("one stream, fast token", "Python", rate(ours, 0.1), rate(theirs, 0.1), ">= 0.9")
    {first, rival} = {first_ms(ours), first_ms(theirs)}
    IO.puts("#{label("reading a prompt, ms")} #{number(first)}; Python #{number(rival)}")

    if Enum.all?(pairs, fn {theirs, ours} -> theirs.ids == ours.ids end) do
      IO.puts("#{label("ids of #{min(rounds, length(prompts))} prompts")} those of Python\n")
    else
      IO.puts("#{label("ids")} NOT those of Python")
      exit({:shutdown, 1})
    end
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
        %{ids: answer["ids"], first_ms: answer["first_ms"], token_ms: answer["token_ms"]}

      {^python, {:exit_status, status}} ->
        raise "bench/reference/smollm2.py ended with #{status}"
    end
  end

  ## Two streams beside one

  defp compare_streams(model, prompts, rounds, tokens) do
    pairs =
      for _ <- 1..rounds do
        one = Table.round(model, Enum.take(prompts, 1), :cpu, tokens)
        two = Table.round(model, Enum.take(prompts, 2), :cpu, tokens)
        true = one.ids == Enum.take(two.ids, 1)
        {one, two}
      end

    {one, two} = Enum.unzip(pairs)
    goal = ">= 1.6 on 2 cores"
    compare("two streams, middle token", "one", 2 * rate(two, 0.5), rate(one, 0.5), goal)
    compare("two streams, fast token", "one", 2 * rate(two, 0.1), rate(one, 0.1), goal)
    {one, two} = {median(Enum.map(one, &in_all/1)), median(Enum.map(two, &in_all/1))}
    compare("two streams, by the clock", "one", two, one, goal)
  end

  defp in_all(round), do: 1000 * length(round.token_ms) / round.wall_ms

  ## Numbers

  defp compare(what, rival, ours, theirs, goal) do
    IO.puts(
      "#{label("#{what}, tokens/s")} #{number(ours)}; #{rival} #{number(theirs)}, " <>
        "ratio #{number(ours / theirs)}; #{goal}"
    )
  end

  # Tokens/s at the pace of the token that a part of all were faster than.
  defp rate(answers, part) do
    times = answers |> Enum.flat_map(& &1.token_ms) |> Enum.sort()
    1000 / Enum.at(times, trunc(part * length(times)))
  end

  defp first_ms(answers), do: answers |> Enum.map(& &1.first_ms) |> median()
  defp median(numbers), do: numbers |> Enum.sort() |> Enum.at(div(length(numbers), 2))
  defp label(text), do: String.pad_trailing(text, 36)
  defp number(x), do: :erlang.float_to_binary(x * 1.0, decimals: 2)
end

Bench.Decode.run(System.argv())
