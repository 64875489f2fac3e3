# A language model that answers several questions at the same time, on one copy of its weights.
#
#     mix run examples/smollm2.exs
#
# Options:
#
#     --prompt "..."      the question whose answer is shown as it comes
#     --streams 1,2,4     how many processes answer at once, each on its own stream
#     --tokens 64         the length of their answers
#     --mode dequantized  weights in f32 (540 MB, the faster one on a CPU), or: quantized (120 MB)
#     --device cpu        or gpu, which is the default where there is one
#     --random            random weights instead of SmolLM2's, for a machine without a network
#
# Exits with 1 when a process that answered beside others gave other tokens than alone.
#
# The model is SmolLM2-135M-Instruct (Apache-2.0), downloaded once, 93 MB. What is used of Emily: Emily.load/1
# for the weights, Emily.Native for the model (smollm2/model.ex), Emily.Stream for the processes
# (smollm2/table.ex). No Nx.

for part <- ~w(tokenizer weights model generate table) do
  Code.require_file("smollm2/#{part}.ex", __DIR__)
end

defmodule SmolLM2 do
  alias SmolLM2.{Generate, Model, Table, Tokenizer, Weights}

  @questions [
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper.",
    "How do I bake bread at home?",
    "Explain how a bicycle stays upright.",
    "What makes a good friend?",
    "Describe a walk through a forest in autumn.",
    "How does a computer add two numbers?",
    "Tell me about the history of the printing press."
  ]

  def main(arguments) do
    options = options(arguments)
    stream = Emily.Stream.new(options.device)

    IO.puts(
      "SmolLM2 on Emily: every process has its own stream, all share one copy of the weights.\n"
    )

    {model, tokenizer, random?} = prepare(stream, options)

    IO.puts("Question: #{options.prompt}")
    IO.write(if random?, do: "Tokens:   ", else: "Answer:   ")
    show_answer(stream, model, tokenizer, options, random?)

    rows = show_table(model, tokenizer, options)

    if Enum.all?(rows, & &1.same) do
      IO.puts("Every process gave the tokens that it gives alone.")
    else
      IO.puts(
        "A process gave other tokens than alone. That is a defect of Emily: please report it."
      )

      exit({:shutdown, 1})
    end
  end

  ## The weights, loaded once

  defp prepare(stream, options) do
    {path, random?} = source(options)
    start = System.monotonic_time(:millisecond)

    {model, tokenizer} =
      Emily.Stream.with_stream(stream, fn ->
        w = Emily.Stream.worker()
        file = if random?, do: Weights.random(w), else: Emily.load(path)
        {Model.new(w, file, options.mode), Tokenizer.from_metadata(file.metadata)}
      end)

    seconds = (System.monotonic_time(:millisecond) - start) / 1000
    # The tensors of the file that the model does not keep.
    :erlang.garbage_collect()
    Emily.Memory.clear_cache()

    show("Weights", if(random?, do: "random", else: Path.basename(path)))

    show(
      "",
      "loaded once in #{Float.round(seconds, 1)} s, #{mib(Emily.Memory.stats().active)} MiB"
    )

    show("Mode", "#{options.mode}, activations in f32")
    show("Device", "#{options.device}, #{System.schedulers_online()} cores\n")
    {model, tokenizer, random?}
  end

  defp source(%{random: true}), do: {nil, true}

  defp source(_options) do
    unless Weights.cached(), do: IO.puts("Downloading SmolLM2-135M-Instruct, 93 MB, once ...")

    case Weights.fetch() do
      {:ok, path} ->
        {path, false}

      {:error, reason} ->
        IO.puts("SmolLM2 is not on this machine: #{reason}.")

        IO.puts(
          "What follows runs on small random weights. Its tokens mean nothing, but what one"
        )

        IO.puts("process computes must still not depend on the others.\n")
        {nil, true}
    end
  end

  ## One answer, shown as it comes

  defp show_answer(stream, model, tokenizer, options, random?) do
    show_token = if random?, do: &IO.write("#{&1} "), else: &show_text(tokenizer, &1)

    answer =
      Emily.Stream.with_stream(stream, fn ->
        Generate.run(model, Tokenizer.encode_chat(tokenizer, options.prompt),
          tokens: options.tokens,
          stop: [Tokenizer.control!(tokenizer, "<|im_end|>")],
          on_token: show_token
        )
      end)

    count = length(answer.ids)
    per_second = if answer.token_ms != [], do: 1000 / mean(answer.token_ms), else: 0.0
    first_ms = round(answer.first_ms)
    IO.puts("\n")

    show(
      "",
      "#{count} tokens: the first after #{first_ms} ms, then #{Float.round(per_second, 1)} a second\n"
    )
  end

  # A character may be spread over several tokens: its first bytes wait for the others.
  defp show_text(tokenizer, id) do
    bytes = Process.get(:unprinted, "") <> Tokenizer.decode(tokenizer, [id])
    {text, rest} = Tokenizer.printable(bytes)
    Process.put(:unprinted, rest)
    IO.write(text)
  end

  ## Several answers at once

  defp show_table(model, tokenizer, options) do
    count = Enum.max(options.streams)

    prompts =
      @questions
      |> Stream.cycle()
      |> Enum.take(count)
      |> Enum.map(&Tokenizer.encode_chat(tokenizer, &1))

    IO.puts("Now #{count} questions. One process answers them one after the other; then several")
    IO.puts("processes answer one each, at the same time, #{options.tokens} tokens an answer:\n")

    rows = Table.rows(model, prompts, options.streams, options.device, options.tokens)
    IO.puts(Table.format(rows))

    IO.puts("tokens/s    decoded in all, once the prompts have been read")
    IO.puts("p50, p99    milliseconds from one token of a process to its next")

    IO.puts(
      "active MiB  the most that tensors took: the weights once, and each process's keys and values\n"
    )

    rows
  end

  ## Options

  defp options(arguments) do
    {given, rest, wrong} =
      OptionParser.parse(arguments,
        strict: [
          prompt: :string,
          streams: :string,
          tokens: :integer,
          mode: :string,
          device: :string,
          random: :boolean
        ]
      )

    for {option, _value} <- wrong, do: refuse("#{option} is not an option or has a wrong value")
    for argument <- rest, do: refuse("#{inspect(argument)} is not an option")

    %{
      prompt: given[:prompt] || "What is the capital of France?",
      streams: streams(given[:streams] || "1,2,4"),
      tokens: positive(given[:tokens] || 64),
      mode: one_of("--mode", given[:mode], [:dequantized, :quantized]),
      device: one_of("--device", given[:device], Enum.reverse(Emily.Stream.devices())),
      random: given[:random] || false
    }
  end

  defp streams(text) do
    for part <- String.split(text, ",") do
      case Integer.parse(part) do
        {count, ""} when count > 0 -> count
        _ -> refuse("--streams wants numbers such as 1,2,4, got #{text}")
      end
    end
  end

  # Of one token there is no time to the next.
  defp positive(tokens) when tokens >= 2, do: tokens
  defp positive(tokens), do: refuse("--tokens wants 2 or more, got #{tokens}")

  # Without a choice the first.
  defp one_of(_option, nil, [first | _]), do: first

  defp one_of(option, text, known) do
    Enum.find(known, &(Atom.to_string(&1) == text)) ||
      refuse("#{option} wants #{Enum.join(known, " or ")} here, got #{text}")
  end

  defp refuse(text) do
    IO.puts(:stderr, "smollm2.exs: #{text}")
    exit({:shutdown, 2})
  end

  ## Text

  defp show(name, text), do: IO.puts(String.pad_trailing(name, 10) <> text)
  defp mib(bytes), do: round(bytes / 1_048_576)
  defp mean(numbers), do: Enum.sum(numbers) / length(numbers)
end

# Does nothing under `mix run`, and lets `elixir -pa _build/dev/lib/emily/ebin` run this file as well.
{:ok, _} = Application.ensure_all_started(:emily)
SmolLM2.main(System.argv())
