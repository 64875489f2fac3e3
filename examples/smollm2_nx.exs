# A chat answer by a language model that is written as numerical definitions over Nx, compiled to native programs.
#
#     mix run examples/smollm2_nx.exs
#
# Options:
#
#     --prompt "..."       the question
#     --tokens 64          the longest answer
#     --mode dequantized   weights in f32 (540 MB, the faster one on a CPU), or: quantized (120 MB)
#     --temperature 0.8    draws the tokens instead of taking the most likely ones; and so do
#     --top-p 0.95, --top-k 40, --min-p 0.05, --seed 42, --repetition-penalty 1.1
#     --device cpu         or gpu, which is the default where there is one
#     --fuse               has MLX fuse elementwise operations
#
# Needs Nx, and the model: SmolLM2-135M-Instruct (Apache-2.0), downloaded once, 93 MB. Where it cannot be
# had, this says so and ends.

for part <- ~w(tokenizer weights model), do: Code.require_file("smollm2/#{part}.ex", __DIR__)
for part <- ~w(model generate), do: Code.require_file("smollm2_nx/#{part}.ex", __DIR__)

defmodule SmolLM2.Nx.Main do
  alias SmolLM2.{Tokenizer, Weights}
  alias SmolLM2.Nx.{Generate, Model}

  @choice [:temperature, :top_p, :top_k, :min_p, :seed, :repetition_penalty]

  def main(arguments) do
    options = options(arguments)
    unless Weights.cached(), do: IO.puts("Downloading SmolLM2-135M-Instruct, 93 MB, once ...")

    case Weights.fetch() do
      {:ok, path} ->
        Nx.default_backend({Emily.Backend, device: options.device})
        stream = Emily.Stream.new(options.device)
        Emily.Stream.with_stream(stream, fn -> answer(path, options) end)

      {:error, reason} ->
        IO.puts("SmolLM2 is not on this machine: #{reason}. Without it there is nothing to show.")
    end
  end

  defp answer(path, options) do
    file = Emily.load(path)
    tokenizer = Tokenizer.from_metadata(file.metadata)
    native = SmolLM2.Model.new(Emily.Stream.worker(), file, options.mode)
    prompt = Tokenizer.encode_chat(tokenizer, options.prompt)

    IO.puts("Question: #{options.prompt}")
    IO.write("Answer:   ")

    answer =
      native
      |> Model.from_native()
      |> Generate.run(
        prompt,
        [
          tokens: options.tokens,
          stop: [Tokenizer.control!(tokenizer, "<|im_end|>")],
          context: if(options.choice[:repetition_penalty], do: prompt, else: []),
          on_token: &show(tokenizer, &1),
          defn_options: [compiler: Emily.Compiler, device: options.device, fuse: options.fuse]
        ] ++ options.choice
      )

    per_second = 1000 * length(answer.token_ms) / max(Enum.sum(answer.token_ms), 1.0e-3)

    IO.puts(
      "\n\n#{length(answer.ids)} tokens: the first after #{round(answer.first_ms)} ms, compiling included, " <>
        "then #{Float.round(per_second, 1)} a second"
    )
  end

  # A character may be spread over several tokens: its first bytes wait for the others.
  defp show(tokenizer, id) do
    bytes = Process.get(:unprinted, "") <> Tokenizer.decode(tokenizer, [id])
    {text, rest} = Tokenizer.printable(bytes)
    Process.put(:unprinted, rest)
    IO.write(text)
  end

  defp options(arguments) do
    {given, rest, wrong} =
      OptionParser.parse(arguments,
        strict: [
          prompt: :string,
          tokens: :integer,
          mode: :string,
          device: :string,
          fuse: :boolean,
          temperature: :float,
          top_p: :float,
          top_k: :integer,
          min_p: :float,
          seed: :integer,
          repetition_penalty: :float
        ]
      )

    for {option, _value} <- wrong, do: refuse("#{option} is not an option or has a wrong value")
    for argument <- rest, do: refuse("#{inspect(argument)} is not an option")

    %{
      prompt: given[:prompt] || "What is the capital of France?",
      tokens: given[:tokens] || 64,
      mode: one_of("--mode", given[:mode], [:dequantized, :quantized]),
      device: one_of("--device", given[:device], Enum.reverse(Emily.Stream.devices())),
      fuse: given[:fuse] || false,
      choice: Keyword.take(given, @choice)
    }
  end

  # Without a choice the first.
  defp one_of(_option, nil, [first | _]), do: first

  defp one_of(option, text, known) do
    Enum.find(known, &(Atom.to_string(&1) == text)) ||
      refuse("#{option} wants #{Enum.join(known, " or ")} here, got #{text}")
  end

  defp refuse(text) do
    IO.puts(:stderr, "smollm2_nx.exs: #{text}")
    exit({:shutdown, 2})
  end
end

SmolLM2.Nx.Main.main(System.argv())
