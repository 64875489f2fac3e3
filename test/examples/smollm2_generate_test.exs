for part <- ~w(tokenizer weights model generate table) do
  Code.require_file("../../examples/smollm2/#{part}.ex", __DIR__)
end

defmodule SmolLM2.GenerateTest do
  use ExUnit.Case, async: true

  alias SmolLM2.{Generate, Model, Table, Tokenizer, Weights}

  @modes [:dequantized, :quantized]

  # A small model on a stream of its own.
  defp random(mode) do
    on_stream(fn ->
      w = Emily.Stream.worker()
      weights = Weights.random(w)
      {Model.new(w, weights, mode), Tokenizer.from_metadata(weights.metadata)}
    end)
  end

  defp on_stream(fun), do: Emily.Stream.with_stream(Emily.Stream.new(:cpu), fun)

  defp prompts(tokenizer) do
    Enum.map(["Hello", "What is 1 + 1?", "äöü", "a b c d e f"], &Tokenizer.encode(tokenizer, &1))
  end

  describe "random weights" do
    for mode <- @modes do
      test "#{mode}: a step with the cache continues as the whole text does" do
        {model, tokenizer} = random(unquote(mode))

        on_stream(fn ->
          for prompt <- prompts(tokenizer) do
            %{ids: ids} = Generate.run(model, prompt, tokens: 12)

            for length <- 0..11 do
              {begin, [next | _]} = Enum.split(ids, length)
              assert %{ids: [^next]} = Generate.run(model, prompt ++ begin, tokens: 1)
            end
          end
        end)
      end

      test "#{mode}: streams at the same time give the tokens of one after the other" do
        {model, tokenizer} = random(unquote(mode))
        rows = Table.rows(model, prompts(tokenizer), [1, 2, 4], :cpu, 16)
        assert Enum.map(rows, & &1.streams) == [1, 2, 4]
        assert Enum.all?(rows, & &1.same)

        # Different prompts have different answers, so that equal ones are no accident.
        %{ids: ids} = Table.round(model, prompts(tokenizer), :cpu, 16)
        assert ids == Enum.uniq(ids)
      end
    end

    test "the answer ends at the limit or before a stop token, and is told as it comes" do
      {model, tokenizer} = random(:dequantized)
      prompt = Tokenizer.encode(tokenizer, "Hello")

      on_stream(fn ->
        tell = fn id -> send(self(), {:token, id}) end
        answer = Generate.run(model, prompt, tokens: 10, on_token: tell)
        assert length(answer.ids) == 10
        assert length(answer.token_ms) == 9
        for id <- answer.ids, do: assert_received({:token, ^id})
        refute_received {:token, _}

        [first, second | _] = ids = answer.ids
        assert Generate.run(model, prompt, stop: [first]).ids == []
        stop = Enum.find(ids, &(&1 not in [first, second]))
        before = Enum.take_while(ids, &(&1 != stop))
        assert Generate.run(model, prompt, tokens: 10, stop: [stop]).ids == before
      end)
    end
  end
end

defmodule SmolLM2.ReferenceTest do
  use ExUnit.Case, async: true

  alias SmolLM2.{Generate, Model, Tokenizer, Weights}

  @moduletag :model
  @moduletag timeout: :infinity

  # Token ids by bench/reference/smollm2.py; the file says how they were made.
  @reference Path.expand("../fixtures/smollm2_ids.json", __DIR__)

  setup_all do
    case Weights.fetch() do
      {:ok, path} -> %{path: path}
      {:error, reason} -> flunk("SmolLM2 is needed: #{reason}")
    end
  end

  for mode <- [:dequantized, :quantized] do
    test "#{mode}: the tokens are those of Python's MLX", %{path: path} do
      %{"questions" => questions, "ids" => ids} = @reference |> File.read!() |> JSON.decode!()
      expected = ids[Atom.to_string(unquote(mode))]

      Emily.Stream.with_stream(Emily.Stream.new(:cpu), fn ->
        file = Emily.load(path)
        tokenizer = Tokenizer.from_metadata(file.metadata)
        model = Model.new(Emily.Stream.worker(), file, unquote(mode))

        for {question, expected} <- Enum.zip(questions, expected) do
          answer = Generate.run(model, Tokenizer.encode_chat(tokenizer, question), tokens: 64)
          assert answer.ids == expected
        end

        text = Tokenizer.decode(tokenizer, hd(expected))
        assert String.starts_with?(text, "The capital of France is Paris.")
      end)
    end
  end
end
