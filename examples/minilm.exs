# Semantic search: the sentences that mean most nearly what a question asks for.
#
#     mix run examples/minilm.exs
#     mix run examples/minilm.exs --query "a pet at rest" --device cpu
#
# The model is all-MiniLM-L6-v2 (Apache-2.0) in Axon, compiled to a native program; its weights are
# downloaded once, 84 MB. Needs Nx and Axon. Where one of them or the model cannot be had, this says so and
# ends.

unless Code.ensure_loaded?(Axon) do
  IO.puts("Axon is not here. Without it there is nothing to show.")
  exit({:shutdown, 0})
end

for part <- ~w(tokenizer weights model embedder),
    do: Code.require_file("minilm/#{part}.ex", __DIR__)

defmodule MiniLM.Main do
  alias MiniLM.{Embedder, Weights}

  @sentences [
    "The cat sleeps on the warm windowsill.",
    "Shares fell sharply after the bank raised interest rates.",
    "To bake bread you need flour, water, salt and patience.",
    "The rover sent pictures of the surface of Mars.",
    "Two goals in the last minute decided the match.",
    "A function that calls itself needs a condition to stop.",
    "The doctor told him to drink more water and rest.",
    "Rain is expected in the north, with sunshine in the south.",
    "She restored the old violin that her grandfather had played.",
    "Every thread has a stack of its own and shares the heap."
  ]

  @queries [
    "a pet taking a nap",
    "news about the stock market",
    "how do computers run several things at once?",
    "space exploration",
    "What will the weather be like?"
  ]

  def main(arguments) do
    {options, [], []} =
      OptionParser.parse(arguments, strict: [query: :string, device: :string])

    device = if options[:device] == "cpu", do: :cpu, else: List.last(Emily.Stream.devices())
    unless Weights.cached(), do: IO.puts("Downloading all-MiniLM-L6-v2, 84 MB, once ...")

    case Weights.fetch() do
      {:ok, folder} ->
        Nx.default_backend({Emily.Backend, device: device})
        Emily.Stream.with_stream(Emily.Stream.new(device), fn -> search(folder, options) end)

      {:error, reason} ->
        IO.puts("MiniLM is not on this machine: #{reason}. Without it there is nothing to show.")
    end
  end

  defp search(folder, options) do
    embedder = Embedder.new(Weights.load(folder), compiler: Emily.Compiler)
    sentences = Embedder.embed(embedder, @sentences)

    for query <- List.wrap(options[:query] || @queries) do
      cosines = Nx.dot(sentences, Embedder.embed(embedder, [query])[0])
      IO.puts(query)

      cosines
      |> Nx.to_list()
      |> Enum.zip(@sentences)
      |> Enum.sort(:desc)
      |> Enum.take(2)
      |> Enum.each(fn {cosine, sentence} ->
        IO.puts("  #{:erlang.float_to_binary(cosine, decimals: 2)}  #{sentence}")
      end)
    end
  end
end

MiniLM.Main.main(System.argv())
