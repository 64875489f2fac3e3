Code.require_file("../../examples/smollm2/tokenizer.ex", __DIR__)
Code.require_file("../../examples/smollm2/weights.ex", __DIR__)

defmodule SmolLM2.TokenizerTest do
  use ExUnit.Case, async: true

  alias SmolLM2.{Tokenizer, Weights}

  # Ids by another implementation; its script, beside it, says how they were made.
  @fixture Path.expand("../fixtures/smollm2_tokenizer.json", __DIR__)
  @external_resource @fixture
  @expected @fixture |> File.read!() |> JSON.decode!()

  defp small do
    %{"tokens" => tokens, "types" => types, "merges" => merges} = @expected["small"]
    Tokenizer.new(tokens, types, merges)
  end

  defp decode(tokenizer, ids), do: Tokenizer.decode(tokenizer, ids)

  # What is printed of a text whose tokens come one by one.
  defp stream(tokenizer, ids) do
    {pieces, rest} =
      Enum.map_reduce(ids, "", fn id, rest ->
        Tokenizer.printable(rest <> Tokenizer.decode(tokenizer, [id]))
      end)

    {pieces, rest}
  end

  describe "with a small vocabulary" do
    setup do
      %{tokenizer: small()}
    end

    for {%{"text" => text, "small" => ids}, index} <- Enum.with_index(@expected["texts"]) do
      test "encodes and decodes text #{index}", %{tokenizer: tokenizer} do
        assert Tokenizer.encode(tokenizer, unquote(text)) == unquote(ids)
        assert decode(tokenizer, unquote(ids)) == unquote(text)
      end
    end

    test "prints whole characters only, and all of them", %{tokenizer: tokenizer} do
      for %{"text" => text, "small" => ids} <- @expected["texts"] do
        {pieces, rest} = stream(tokenizer, ids)
        assert rest == ""
        assert Enum.join(pieces) == text
        assert Enum.all?(pieces, &String.valid?/1)
      end
    end

    test "merges only words, never over their bounds", %{tokenizer: tokenizer} do
      # 600 tokens were learnt of texts in which "The" begins a word and "12" is two.
      [the] = Tokenizer.encode(tokenizer, "The")
      assert decode(tokenizer, [the]) == "The"
      assert length(Tokenizer.encode(tokenizer, "12")) == 2
    end

    test "takes long words without trouble", %{tokenizer: tokenizer} do
      for text <- [String.duplicate("ab", 5_000), String.duplicate(" ", 10_000)] do
        assert decode(tokenizer, Tokenizer.encode(tokenizer, text)) == text
      end
    end

    test "refuses what is not UTF-8", %{tokenizer: tokenizer} do
      assert_raise ArgumentError, ~r/expected text in UTF-8/, fn ->
        Tokenizer.encode(tokenizer, <<"a", 0xFF>>)
      end
    end

    test "knows control tokens by their text", %{tokenizer: tokenizer} do
      end_of_turn = Tokenizer.control!(tokenizer, "<|im_end|>")
      assert Tokenizer.encode(tokenizer, "<|im_end|>") == [end_of_turn]
      assert_raise KeyError, fn -> Tokenizer.control!(tokenizer, "The") end
    end
  end

  describe "printable/1" do
    test "keeps the beginning of a character" do
      <<first, second, third, fourth>> = "😀"
      assert Tokenizer.printable(<<"a", first>>) == {"a", <<first>>}
      assert Tokenizer.printable(<<first, second, third>>) == {"", <<first, second, third>>}
      assert Tokenizer.printable(<<first, second, third, fourth, "b">>) == {"😀b", ""}
    end

    test "shows bytes that are no character as U+FFFD" do
      assert Tokenizer.printable(<<"a", 0xFF, "b">>) == {"a\uFFFDb", ""}
      assert Tokenizer.printable(<<0xE2, "a", 0xFF, 0xE2>>) == {"\uFFFDa\uFFFD", <<0xE2>>}
    end
  end
end

defmodule SmolLM2.VocabularyTest do
  use ExUnit.Case, async: true

  alias SmolLM2.{Tokenizer, Weights}

  unless Weights.cached(), do: @moduletag(skip: "the model is not in the cache")

  @expected Path.expand("../fixtures/smollm2_tokenizer.json", __DIR__)
            |> File.read!()
            |> JSON.decode!()

  # The model's vocabulary has no tokens for these bytes.
  @unknown [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2] ++
             Enum.to_list(0xF5..0xFF)

  setup_all do
    case Weights.cached() do
      nil -> :ok
      path -> %{tokenizer: Tokenizer.from_metadata(Emily.load(path).metadata)}
    end
  end

  for {%{"text" => text, "smollm2" => ids}, index} <- Enum.with_index(@expected["texts"]) do
    test "encodes and decodes text #{index}", %{tokenizer: tokenizer} do
      assert Tokenizer.encode(tokenizer, unquote(text)) == unquote(ids)
      known = for <<byte <- unquote(text)>>, byte not in @unknown, into: "", do: <<byte>>
      assert Tokenizer.decode(tokenizer, unquote(ids)) == known
    end
  end

  test "puts a question as the model's template does", %{tokenizer: tokenizer} do
    text =
      "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face" <>
        "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"

    ids = Tokenizer.encode_chat(tokenizer, "Why?")
    assert Tokenizer.decode(tokenizer, ids) == text
    assert Enum.count(ids, &(&1 == Tokenizer.control!(tokenizer, "<|im_start|>"))) == 3
  end
end
