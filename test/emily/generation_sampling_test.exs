defmodule Emily.GenerationSamplingTest do
  use ExUnit.Case, async: true

  import Nx.Defn

  alias Emily.Generation.Sampling

  setup do
    Nx.default_backend(Emily.Backend)
    :ok
  end

  # How often each token is drawn of a row of logits, as parts of 1.
  defp frequencies(logits, options, count \\ 20_000) do
    rows = Nx.broadcast(Nx.tensor(logits), {count, length(logits)})
    drawn = Nx.to_flat_list(Sampling.sample(rows, Nx.Random.key(11), options))
    counts = Enum.frequencies(drawn)
    for token <- 0..(length(logits) - 1), do: Map.get(counts, token, 0) / count
  end

  # The probabilities that the options ask for, by sorting.
  defp probabilities(logits, options) do
    temperature = options[:temperature] || 1.0
    greatest = Enum.max(logits)
    p = Enum.map(logits, &:math.exp((&1 - greatest) / temperature))

    p
    |> keep(options[:top_k], fn sorted, k -> Enum.at(sorted, min(k, length(sorted)) - 1) end)
    |> keep(options[:top_p], fn sorted, top_p ->
      target = top_p * Enum.sum(sorted)

      Enum.reduce_while(sorted, 0.0, fn p, sum ->
        if sum + p >= target, do: {:halt, p}, else: {:cont, sum + p}
      end)
    end)
    |> keep(options[:min_p], fn [greatest | _], min_p -> greatest * min_p end)
    |> then(fn p -> Enum.map(p, &(&1 / Enum.sum(p))) end)
  end

  defp keep(p, nil, _least), do: p

  defp keep(p, option, least) do
    least = p |> Enum.sort(:desc) |> least.(option)
    Enum.map(p, &if(&1 >= least, do: &1, else: 0.0))
  end

  # Five standard deviations of a count of independent draws.
  defp assert_close(frequencies, expected, count \\ 20_000) do
    for {frequency, p} <- Enum.zip(frequencies, expected) do
      if p == 0.0,
        do: assert(frequency == 0.0),
        else: assert_in_delta(frequency, p, 5 * :math.sqrt(p * (1 - p) / count) + 1.0e-6)
    end
  end

  @logits [0.3, -1.2, 2.5, 1.9, -0.4, 0.0, 2.1, -3.0]

  describe "sample/3" do
    for options <- [
          [],
          [temperature: 0.5],
          [temperature: 3.0],
          [top_k: 1],
          [top_k: 3],
          [top_k: 8],
          [top_k: 100],
          [top_p: 0.1],
          [top_p: 0.5],
          [top_p: 0.9],
          [top_p: 0.999],
          [top_p: 1.0],
          [min_p: 0.0],
          [min_p: 0.2],
          [min_p: 1.0],
          [temperature: 0.7, top_k: 5, top_p: 0.8, min_p: 0.1],
          [temperature: 2.0, top_k: 4, top_p: 0.95]
        ] do
      test "draws as likely as it should be, with #{inspect(options)}" do
        options = unquote(options)
        assert_close(frequencies(@logits, options), probabilities(@logits, options))
      end
    end

    test "keeps what sorting keeps, for many rows at once" do
      {logits, key} = Nx.Random.normal(Nx.Random.key(3), 0.0, 3.0, shape: {50, 40})
      rows = Nx.to_list(logits)

      for options <- [[top_k: 5], [top_p: 0.7], [top_k: 12, top_p: 0.9], [min_p: 0.1]] do
        drawn =
          for n <- 0..39 do
            tokens = Sampling.sample(logits, Nx.Random.fold_in(key, n), options)
            Nx.to_flat_list(tokens)
          end

        for {row, tokens} <- Enum.zip(rows, Enum.zip_with(drawn, & &1)) do
          kept = for {p, token} <- Enum.with_index(probabilities(row, options)), p > 0, do: token
          assert Enum.uniq(tokens) -- kept == []
          # The most likely one is among 40 draws of a kept few.
          assert most_likely(row) in tokens or length(kept) > 8
        end
      end
    end

    test "keeps all tokens that are as likely as the last" do
      frequencies = frequencies([1.0, 2.0, 1.0, 1.0], top_k: 2)
      assert_close(frequencies, probabilities([1.0, 2.0, 1.0, 1.0], []))
      assert_close(frequencies([0.0, 0.0], top_p: 0.5), [0.5, 0.5])
    end

    test "takes the most likely one at temperature 0" do
      for logits <- [@logits, Enum.reverse(@logits)] do
        token = Sampling.sample(Nx.tensor(logits), Nx.Random.key(1), temperature: 0, top_k: 5)
        assert {token.shape, token.type} == {{}, {:s, 32}}
        assert Nx.to_number(token) == most_likely(logits)
      end
    end

    test "never draws what has no probability" do
      infinite = Nx.Constants.neg_infinity()

      logits =
        Nx.select(Nx.tensor([1, 0, 1, 0, 1]), infinite, Nx.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))

      rows = Nx.broadcast(logits, {2_000, 5})
      drawn = Nx.to_flat_list(Sampling.sample(rows, Nx.Random.key(2), []))
      assert Enum.sort(Enum.uniq(drawn)) == [1, 3]
    end

    test "keeps the leading axes, and takes halves and a large vocabulary" do
      {logits, _} = Nx.Random.normal(Nx.Random.key(5), shape: {2, 3, 50_000}, type: :bf16)
      tokens = Sampling.sample(logits, Nx.Random.key(6), top_p: 0.9, temperature: 0.8)
      assert tokens.shape == {2, 3}
      again = Sampling.sample(logits, Nx.Random.key(6), top_p: 0.9, temperature: 0.8)
      assert Nx.to_flat_list(tokens) == Nx.to_flat_list(again)
      other = Sampling.sample(logits, Nx.Random.key(7), top_p: 0.9, temperature: 0.8)
      assert Nx.to_flat_list(tokens) != Nx.to_flat_list(other)
    end

    defn traced(logits, key) do
      token = Sampling.sample(logits, key, temperature: 0.7, top_k: 6, top_p: 0.9, min_p: 0.01)
      {token, Sampling.penalize(logits, Nx.tensor([2, -1]), 1.5)}
    end

    test "gives the same inside defn and on another backend" do
      key = Nx.Random.key(21)
      options = [temperature: 0.7, top_k: 6, top_p: 0.9, min_p: 0.01]
      expected = Sampling.sample(Nx.tensor(@logits), key, options)

      {token, penalized} =
        Nx.Defn.jit_apply(&traced/2, [Nx.tensor(@logits), key], Emily.NxLane.options())

      assert Nx.to_number(token) == Nx.to_number(expected)
      assert_in_delta Nx.to_number(penalized[2]), 2.5 / 1.5, 1.0e-6

      Nx.with_default_backend(Nx.BinaryBackend, fn ->
        key = Nx.backend_copy(key, Nx.BinaryBackend)
        token = Sampling.sample(Nx.tensor(@logits), key, options)
        assert Nx.to_number(token) == Nx.to_number(expected)
      end)
    end

    test "refuses wrong options and scalars" do
      key = Nx.Random.key(1)

      for {options, text} <- [
            {[top: 1], ~r/unknown keys \[:top\]/},
            {[temperature: nil], ~r/:temperature: expected a number from 0/},
            {[top_k: 1.0], ~r/:top_k: expected an integer from 1/},
            {[top_p: 0], ~r/:top_p: expected a number above 0/},
            {[min_p: 2], ~r/:min_p: expected a number from 0 to 1/}
          ] do
        assert_raise ArgumentError, text, fn ->
          Sampling.sample(Nx.tensor(@logits), key, options)
        end
      end

      assert_raise ArgumentError, ~r/an axis for the vocabulary/, fn ->
        Sampling.sample(Nx.tensor(1.0), key)
      end
    end
  end

  defp most_likely(logits), do: Enum.find_index(logits, &(&1 == Enum.max(logits)))

  describe "penalize/3" do
    test "makes each token less likely once" do
      logits = Nx.tensor([[2.0, -2.0, 0.0, 4.0], [2.0, -2.0, 1.0, 4.0]])
      ids = Nx.tensor([[0, 1, 0], [3, -1, 2]])
      penalized = Sampling.penalize(logits, ids, 2.0)
      assert {penalized.shape, penalized.type} == {{2, 4}, {:f, 32}}
      assert Nx.to_list(penalized) == [[1.0, -4.0, 0.0, 4.0], [2.0, -2.0, 0.5, 2.0]]
    end

    test "takes a row alone, and keeps the type" do
      penalized = Sampling.penalize(Nx.tensor([2.0, 4.0], type: :bf16), Nx.tensor([1]), 4)
      assert {penalized.shape, penalized.type} == {{2}, {:bf, 16}}
      assert Nx.to_list(penalized) == [2.0, 1.0]
    end

    test "refuses a wrong penalty and other rows" do
      logits = Nx.tensor([[1.0, 2.0]])

      for penalty <- [0, -1.0, nil] do
        assert_raise ArgumentError, ~r/expected a penalty above 0/, fn ->
          Sampling.penalize(logits, Nx.tensor([[1]]), penalty)
        end
      end

      for ids <- [Nx.tensor([1]), Nx.tensor(1), Nx.tensor([[1], [1]])] do
        assert_raise ArgumentError, ~r/expected ids of shape \{1\} and one axis more/, fn ->
          Sampling.penalize(logits, ids, 2.0)
        end
      end
    end
  end
end
