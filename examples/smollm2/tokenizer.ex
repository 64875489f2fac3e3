defmodule SmolLM2.Tokenizer do
  @moduledoc """
  The tokenizer of a GGUF file's metadata: byte-level byte-pair encoding, as GPT-2 introduced it, with
  the rules of `tokenizer.ggml.pre` = `"smollm"`.

  Text is cut at the control tokens (`<|im_start|>`), then into digits and words; the bytes of a word
  become tokens, and pairs of neighbours are merged, the pair that was learnt first before all others.

      ids = SmolLM2.Tokenizer.encode(tokenizer, "Hello 123")
      SmolLM2.Tokenizer.decode(tokenizer, ids)
  """

  @enforce_keys [:bytes, :merges, :ids, :control, :control_pattern]
  defstruct @enforce_keys

  @typedoc """
  `bytes`: the bytes of each id, a tuple; `merges`: `{id, id} => {rank, id of both}`; `ids`: the id of
  each of the 256 bytes; `control`: ids of the control tokens by their text.
  """
  @type t :: %__MODULE__{
          bytes: tuple,
          merges: %{{id, id} => {non_neg_integer, id}},
          ids: %{byte => id},
          control: %{String.t() => id},
          control_pattern: Regex.t() | nil
        }
  @type id :: non_neg_integer

  # GGUF's token types of which the text stands for the token.
  @control_types [3, 4]

  # White space is Unicode's: PCRE's \s lacks U+0085.
  @words ~r/'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\x{85}\p{L}\p{N}]+|[\s\x{85}]+(?![^\s\x{85}])|[\s\x{85}]+/u

  @doc """
  Makes a tokenizer of the texts of the tokens, the type of each, and the merges (`"a b"`), best first.
  """
  @spec new([String.t()], [integer], [String.t()]) :: t
  def new(tokens, types, merges) do
    control =
      for {token, id, type} <- Enum.zip([tokens, Stream.from_index(), types]),
          type in @control_types,
          into: %{},
          do: {token, id}

    byte_of = Map.new(byte_characters(), fn {byte, character} -> {character, byte} end)
    id_of = tokens |> Enum.with_index() |> Map.new()

    %__MODULE__{
      bytes: tokens |> Enum.map(&token_bytes(&1, control, byte_of)) |> List.to_tuple(),
      merges: merges |> Enum.with_index() |> Map.new(&merge_row(&1, id_of)),
      ids:
        for(
          {byte, character} <- byte_characters(),
          id = id_of[<<character::utf8>>],
          into: %{},
          do: {byte, id}
        ),
      control: control,
      control_pattern: control_pattern(Map.keys(control))
    }
  end

  @doc """
  The tokenizer of a GGUF file's metadata, as `Emily.load/1` returns it.
  """
  @spec from_metadata(%{String.t() => term}) :: t
  def from_metadata(metadata) do
    types = Emily.to_binary(metadata["tokenizer.ggml.token_type"])

    new(
      metadata["tokenizer.ggml.tokens"],
      for(<<type::signed-32-native <- types>>, do: type),
      metadata["tokenizer.ggml.merges"]
    )
  end

  @doc """
  The ids of a text.

  A byte that the vocabulary has no token for is left out. Raises ArgumentError for a binary that is not
  UTF-8.
  """
  @spec encode(t, String.t()) :: [id]
  def encode(%__MODULE__{} = tokenizer, text) do
    unless String.valid?(text) do
      raise ArgumentError, "encode: expected text in UTF-8, got: #{inspect(text)}"
    end

    for part <- cut(text, tokenizer.control_pattern), id <- encode_part(tokenizer, part), do: id
  end

  @doc """
  The ids of a question to the model, as its chat template puts it.
  """
  @spec encode_chat(t, String.t()) :: [id]
  def encode_chat(tokenizer, question) do
    encode(tokenizer, """
    <|im_start|>system
    You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
    <|im_start|>user
    #{question}<|im_end|>
    <|im_start|>assistant
    """)
  end

  @doc """
  The bytes of ids: UTF-8 where a whole text is decoded, perhaps half a character where it is a part.
  """
  @spec decode(t, [id]) :: binary
  def decode(%__MODULE__{bytes: bytes}, ids), do: Enum.map_join(ids, &elem(bytes, &1))

  @doc """
  The printable part of bytes that arrive piece by piece, and the rest: the beginning of a character whose
  other bytes are still to come. Bytes that are no UTF-8 become U+FFFD.
  """
  @spec printable(binary) :: {String.t(), binary}
  def printable(bytes) do
    case :unicode.characters_to_binary(bytes) do
      {:incomplete, text, rest} ->
        {text, rest}

      {:error, text, <<_, rest::binary>>} ->
        {more, rest} = printable(rest)
        {text <> "\uFFFD" <> more, rest}

      text ->
        {text, ""}
    end
  end

  @doc """
  The id of a control token, such as `"<|im_end|>"`.
  """
  @spec control!(t, String.t()) :: id
  def control!(%__MODULE__{control: control}, token), do: Map.fetch!(control, token)

  ## The vocabulary

  # Tokens are written in printable characters: a byte that is none of Latin 1 stands for itself, and the
  # others for the characters from U+0100 on.
  defp byte_characters do
    printable = Enum.concat([?!..?~, 0xA1..0xAC, 0xAE..0xFF])
    others = Enum.to_list(0..255) -- printable
    Enum.zip(printable, printable) ++ Enum.zip(others, Stream.from_index(256))
  end

  defp token_bytes(token, control, _byte_of) when is_map_key(control, token), do: token

  defp token_bytes(token, _control, byte_of) do
    for <<character::utf8 <- token>>, into: "", do: <<Map.fetch!(byte_of, character)>>
  end

  defp merge_row({merge, rank}, id_of) do
    [left, right] = String.split(merge, " ")
    ids = {Map.fetch!(id_of, left), Map.fetch!(id_of, right)}
    {ids, {rank, Map.fetch!(id_of, left <> right)}}
  end

  defp control_pattern([]), do: nil

  defp control_pattern(tokens) do
    # The longest first, where one is the beginning of another.
    tokens
    |> Enum.sort_by(&byte_size/1, :desc)
    |> Enum.map_join("|", &Regex.escape/1)
    |> Regex.compile!("u")
  end

  ## Encoding

  defp cut(text, nil), do: [text]
  defp cut(text, pattern), do: Regex.split(pattern, text, include_captures: true, trim: true)

  defp encode_part(%{control: control}, part) when is_map_key(control, part), do: [control[part]]

  defp encode_part(tokenizer, part) do
    # Digits first and the words of each piece by itself: where a piece ends decides to which word
    # white space belongs.
    for piece <- Regex.split(~r/\p{N}/u, part, include_captures: true, trim: true),
        [word] <- Regex.scan(@words, piece),
        id <- encode_word(tokenizer, word),
        do: id
  end

  defp encode_word(%{ids: ids, merges: merges}, word) do
    for(<<byte <- word>>, id = ids[byte], do: id) |> merge(merges)
  end

  defp merge(ids, merges) do
    case best_pair(ids, merges, nil) do
      nil -> ids
      {pair, {_rank, merged}} -> ids |> merge_pair(pair, merged) |> merge(merges)
    end
  end

  defp best_pair([left | [right | _] = rest], merges, best) do
    case merges do
      %{{^left, ^right} => {rank, _} = row} when best == nil or rank < elem(elem(best, 1), 0) ->
        best_pair(rest, merges, {{left, right}, row})

      %{} ->
        best_pair(rest, merges, best)
    end
  end

  defp best_pair(_, _, best), do: best

  defp merge_pair([left, right | rest], {left, right} = pair, merged),
    do: [merged | merge_pair(rest, pair, merged)]

  defp merge_pair([id | rest], pair, merged), do: [id | merge_pair(rest, pair, merged)]
  defp merge_pair([], _pair, _merged), do: []
end
