defmodule MiniLM.Embedder do
  @moduledoc """
  Texts in, embeddings out, alone or as an `Nx.Serving`.

      embedder = MiniLM.Embedder.new(MiniLM.Weights.load(folder), compiler: Nx.Defn.Evaluator)
      MiniLM.Embedder.embed(embedder, ["a text", "another one"])
      #=> f32 {2, 384}

  Texts are filled up to one of a few lengths, so that a few compiled functions serve them all.
  """

  alias MiniLM.{Model, Tokenizer}

  @enforce_keys [:predict, :params, :tokenizer, :lengths]
  defstruct @enforce_keys

  @type t :: %__MODULE__{}

  @lengths [16, 32, 64, 128, 256]

  @doc """
  Prepares a model. `defn_options` are those of its compilation.
  """
  @spec new(MiniLM.Weights.t(), keyword) :: t
  def new(%{config: config, tensors: tensors, tokenizer: tokenizer}, defn_options) do
    {_init, predict} = Axon.build(Model.build(config), defn_options)

    %__MODULE__{
      predict: predict,
      params: Model.params(tensors),
      tokenizer: tokenizer,
      lengths: Enum.filter(@lengths, &(&1 <= config.positions))
    }
  end

  @doc """
  The embeddings of texts, f32 `{texts, width}`, each of length 1. Their cosine is their product.
  """
  @spec embed(t, [String.t(), ...]) :: Nx.Tensor.t()
  def embed(%__MODULE__{} = embedder, texts) do
    ids = Enum.map(texts, &encode(embedder, &1))
    predict(embedder, batch(embedder, ids))
  end

  @doc """
  The ids of a text, at most as many as the longest length takes.
  """
  @spec encode(t, String.t()) :: [Tokenizer.id()]
  def encode(embedder, text),
    do: Tokenizer.encode(embedder.tokenizer, text, List.last(embedder.lengths))

  @doc """
  The model's inputs for lists of ids, filled up to the length that the longest needs.
  """
  @spec batch(t, [[Tokenizer.id()], ...]) :: %{String.t() => Nx.Tensor.t()}
  def batch(embedder, ids) do
    longest = ids |> Enum.map(&length/1) |> Enum.max()
    length = Enum.find(embedder.lengths, &(&1 >= longest))
    {rows, masks} = ids |> Enum.map(&filled(&1, length)) |> Enum.unzip()
    %{"ids" => Nx.tensor(rows, type: :s32), "mask" => Nx.tensor(masks, type: :u8)}
  end

  defp filled(ids, length) do
    count = length(ids)
    zeros = List.duplicate(0, length - count)
    {ids ++ zeros, List.duplicate(1, count) ++ zeros}
  end

  @doc """
  The embeddings of a batch.
  """
  @spec predict(t, %{String.t() => Nx.Tensor.t()}) :: Nx.Tensor.t()
  def predict(%__MODULE__{predict: predict, params: params}, batch), do: predict.(params, batch)

  @doc """
  The model as a serving: `Nx.Serving.batched_run(name, text)` gives a text's embedding, f32 `{width}`.

  Requests of the same length are computed together. Start it with `batch_size:` and
  `batch_keys: MiniLM.Embedder.batch_keys(embedder)`.

  Options: `:partitions`, 1 by default, and `:device` of their streams; `:defn_options`.
  """
  @spec serving(MiniLM.Weights.t(), keyword) :: Nx.Serving.t()
  def serving(weights, options) do
    options = Keyword.validate!(options, [:defn_options, partitions: 1, device: :gpu])
    embedder = new(weights, options[:defn_options])
    backend = {Emily.Backend, device: options[:device]}

    fn _length, defn_options ->
      embedder = new(weights, defn_options)
      # A serving computes in tasks, to which the caller's default backend does not go.
      fn batch ->
        Nx.with_default_backend(backend, fn -> run(embedder, batch, defn_options) end)
      end
    end
    |> Nx.Serving.new([max_concurrency: options[:partitions]] ++ options[:defn_options])
    |> Nx.Serving.process_options(batch_keys: embedder.lengths)
    |> Nx.Serving.client_preprocessing(&{request(embedder, &1), :no_info})
    |> Nx.Serving.client_postprocessing(fn {embeddings, _metadata}, :no_info -> embeddings[0] end)
    |> Emily.Serving.with_streams(device: options[:device])
  end

  defp request(embedder, text) do
    Nx.with_default_backend(Nx.BinaryBackend, fn ->
      %{"ids" => ids} = batch = batch(embedder, [encode(embedder, text)])
      Nx.Batch.key(Nx.Batch.concatenate([batch]), Nx.axis_size(ids, 1))
    end)
  end

  defp run(embedder, batch, defn_options),
    do: predict(embedder, Nx.Defn.jit_apply(&Function.identity/1, [batch], defn_options))
end
