defmodule MiniLM.Tokenizer do
  @moduledoc """
  BERT's tokenizer for uncased models: words without accents and capitals, cut into the longest pieces
  that the vocabulary has (WordPiece, Wu et al. 2016).

      tokenizer = MiniLM.Tokenizer.new(File.read!("vocab.txt"))
      MiniLM.Tokenizer.encode(tokenizer, "Hello, world!")
      #=> [101, 7592, 1010, 2088, 999, 102]
  """

  @enforce_keys [:ids, :cls, :sep, :unknown]
  defstruct @enforce_keys

  @type t :: %__MODULE__{ids: %{String.t() => id}, cls: id, sep: id, unknown: id}
  @type id :: non_neg_integer

  # These stand for themselves in a text.
  @special ~w([PAD] [UNK] [CLS] [SEP] [MASK])
  @cut_special Regex.compile!("(?:#{Enum.map_join(@special, "|", &Regex.escape/1)})")

  # Ideographs are words of their own.
  @ideographs [
    0x4E00..0x9FFF,
    0x3400..0x4DBF,
    0x20000..0x2A6DF,
    0x2A700..0x2B73F,
    0x2B740..0x2B81F,
    0x2B820..0x2CEAF,
    0xF900..0xFAFF,
    0x2F800..0x2FA1F
  ]

  # White space is Unicode's: PCRE's \s lacks U+0085.
  @space ~r/[\s\x{85}]+/u
  # Controls other than white space, and what stands for bytes that were no text.
  @removed ~r/(?![\t\n\r\x{85}])[\p{Cc}\p{Cf}\p{Co}\x{FFFD}]/u
  @mark ~r/\p{Mn}+/u
  # Symbols of ASCII are punctuation here, others are not.
  @punctuation ~r/[\p{P}$+<=>^`|~]/u

  # Longer words are unknown.
  @longest_word 100

  @doc """
  Makes a tokenizer of a vocabulary: a token a line, whose number is its id.

  Raises KeyError where BERT's special tokens are not among them.
  """
  @spec new(String.t()) :: t
  def new(vocabulary) do
    ids = vocabulary |> String.split("\n", trim: true) |> Enum.with_index() |> Map.new()

    %__MODULE__{
      ids: ids,
      cls: Map.fetch!(ids, "[CLS]"),
      sep: Map.fetch!(ids, "[SEP]"),
      unknown: Map.fetch!(ids, "[UNK]")
    }
  end

  @doc """
  The ids of a text, at most `longest` with the marks of its begin and its end; what is beyond is cut off.

  Raises ArgumentError for a binary that is not UTF-8.
  """
  @spec encode(t, String.t(), pos_integer) :: [id]
  def encode(%__MODULE__{} = tokenizer, text, longest \\ 256) do
    unless String.valid?(text) do
      raise ArgumentError, "encode: expected text in UTF-8, got: #{inspect(text)}"
    end

    ids =
      for part <- Regex.split(@cut_special, text, include_captures: true, trim: true),
          id <- encode_part(tokenizer, part),
          do: id

    [tokenizer.cls | Enum.take(ids, longest - 2)] ++ [tokenizer.sep]
  end

  defp encode_part(%{ids: ids}, special) when special in @special, do: [Map.fetch!(ids, special)]

  defp encode_part(tokenizer, text) do
    for word <- words(normalize(text)), id <- pieces(tokenizer, word), do: id
  end

  defp normalize(text) do
    text = Regex.replace(@removed, text, "")

    spaced =
      for <<character::utf8 <- text>>, into: "" do
        if Enum.any?(@ideographs, &(character in &1)),
          do: <<" ", character::utf8, " ">>,
          else: <<character::utf8>>
      end

    @mark |> Regex.replace(String.normalize(spaced, :nfd), "") |> String.downcase()
  end

  defp words(text) do
    for word <- Regex.split(@space, text, trim: true),
        part <- Regex.split(@punctuation, word, include_captures: true, trim: true),
        do: part
  end

  defp pieces(tokenizer, word) do
    characters = for <<character::utf8 <- word>>, do: <<character::utf8>>

    with true <- length(characters) <= @longest_word,
         [_ | _] = ids <- longest_first(tokenizer.ids, "", characters, []) do
      ids
    else
      _ -> [tokenizer.unknown]
    end
  end

  # `before` is what pieces within a word begin with, of which the first is none.
  defp longest_first(_ids, _before, [], found), do: Enum.reverse(found)

  defp longest_first(ids, before, characters, found) do
    case longest_piece(ids, before, characters, length(characters)) do
      nil -> nil
      {id, count} -> longest_first(ids, "##", Enum.drop(characters, count), [id | found])
    end
  end

  defp longest_piece(_ids, _before, _characters, 0), do: nil

  defp longest_piece(ids, before, characters, count) do
    case ids[IO.iodata_to_binary([before | Enum.take(characters, count)])] do
      nil -> longest_piece(ids, before, characters, count - 1)
      id -> {id, count}
    end
  end
end
