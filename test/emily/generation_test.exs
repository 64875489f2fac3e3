defmodule Emily.GenerationTest do
  use ExUnit.Case, async: true

  alias Emily.Generation

  @vocabulary 23
  @positions 40

  setup do
    Nx.default_backend(Emily.Backend)
    {table, _key} = Nx.Random.normal(Nx.Random.key(1), shape: {@vocabulary, @vocabulary})
    {:ok, params: table}
  end

  # Logits that depend on every token so far and where it stands. The cache has a row for each request.
  defp forward(token, offset, cache, table) do
    {rows, positions} = cache.shape
    offset = offset |> Nx.broadcast({rows}) |> Nx.reshape({rows, 1})
    position = Nx.iota({rows, positions}, axis: 1, type: :s32)
    here = Nx.equal(position, offset)
    cache = Nx.select(here, Nx.reshape(token, {rows, 1}), cache)
    weights = Nx.divide(1.0, Nx.add(1, Nx.max(Nx.subtract(offset, position), 0)))
    weights = Nx.select(Nx.greater(position, offset), 0.0, weights)
    rows_of_table = Nx.take(table, cache)
    {Nx.dot(weights, [1], [0], rows_of_table, [1], [0]), cache}
  end

  defp cache(rows \\ 1), do: Nx.broadcast(Nx.s32(0), {rows, @positions})

  defp stream(params, options) do
    defaults = [
      cache: cache(),
      params: params,
      first_token: 3,
      max_new_tokens: 12,
      defn_options: Emily.NxLane.options()
    ]

    Generation.stream(&forward/4, Keyword.merge(defaults, options))
  end

  # The same in plain numbers.
  defp expected(params, first_token, count, choose) do
    table = Nx.to_list(params)

    Enum.reduce(0..(count - 1)//1, [first_token], fn offset, tokens ->
      logits =
        tokens
        |> Enum.with_index(fn token, age ->
          Enum.map(Enum.at(table, token), &(&1 / (1 + age)))
        end)
        |> Enum.zip_with(&Enum.sum/1)

      [choose.(logits, tokens, offset) | tokens]
    end)
    |> Enum.reverse()
    |> tl()
  end

  defp most_likely(logits, _tokens \\ [], _offset \\ 0) do
    {_logit, index} = logits |> Enum.with_index() |> Enum.max_by(&elem(&1, 0))
    index
  end

  describe "greedy/1" do
    test "is the position of the greatest of each row" do
      logits = Nx.tensor([[[0.0, 3.0, -1.0]], [[5.0, 4.0, 5.0]]])
      greedy = Generation.greedy(logits)
      assert {greedy.shape, greedy.type} == {{2, 1}, {:s, 32}}
      assert Nx.to_flat_list(greedy) == [1, 0]
      assert Nx.to_number(Generation.greedy(Nx.tensor([0.5, 0.25]))) == 0
    end
  end

  describe "stream/2" do
    test "gives the ids of a loop written by hand", %{params: params} do
      ids = stream(params, [])
      assert ids == expected(params, 3, 12, &most_likely/3)
      assert length(Enum.uniq(ids)) > 3
      assert stream(params, first_token: Nx.tensor([3])) == ids
      assert stream(params, select: &Generation.greedy/1) == ids
    end

    test "gives the same operation by operation, where the next step is built ahead", context do
      %{params: params} = context
      evaluator = [defn_options: [compiler: Nx.Defn.Evaluator]]
      drawn = [seed: 3, temperature: 1.5, repetition_penalty: 1.3]
      stop = params |> stream([]) |> Enum.at(6)

      for options <- [[], [eos: stop], [max_new_tokens: 1], drawn] do
        told = &send(self(), {:evaluated, &1})
        ids = stream(params, options)
        assert stream(params, [on_token: told] ++ options ++ evaluator) == ids
        for id <- ids, do: assert_received({:evaluated, ^id})
        refute_received {:evaluated, _}
      end
    end

    test "works on another backend", %{params: params} do
      expected = stream(params, [])

      Nx.with_default_backend(Nx.BinaryBackend, fn ->
        params = Nx.backend_copy(params, Nx.BinaryBackend)
        assert stream(params, cache: cache()) == expected
      end)
    end

    test "continues from a cache and an offset", %{params: params} do
      ids = stream(params, [])
      {read, [next | rest]} = Enum.split(ids, 4)
      history = [3 | read] ++ List.duplicate(0, @positions - 5)
      cache = Nx.tensor([history], type: :s32)
      options = [cache: cache, first_token: next, offset: 5, max_new_tokens: length(rest)]
      assert stream(params, options) == rest
      # The caller's cache is as it was.
      assert stream(params, options) == rest
      assert Nx.to_flat_list(cache) == history
    end

    test "gives at most so many ids, or none", %{params: params} do
      ids = stream(params, [])
      assert stream(params, max_new_tokens: 5) == Enum.take(ids, 5)
      assert stream(params, max_new_tokens: 0) == []
      assert stream(params, max_new_tokens: -1) == []
      assert stream(params, max_new_tokens: 0, first_token: [1, 2], cache: cache(2)) == [[], []]
    end

    test "ends with a stop id", %{params: params} do
      ids = stream(params, [])
      stop = Enum.at(ids, 4)
      count = Enum.find_index(ids, &(&1 == stop)) + 1
      assert stream(params, eos: stop) == Enum.take(ids, count)
      assert stream(params, eos: [@vocabulary, stop]) == Enum.take(ids, count)
    end

    test "ends with a stop sequence", %{params: params} do
      ids = stream(params, [])
      sequence = Enum.slice(ids, 3, 3)
      ended = stream(params, stop_sequences: [[@vocabulary, hd(ids)], sequence])
      assert List.starts_with?(ids, ended)
      assert Enum.take(ended, -3) == sequence
      assert length(ended) <= 6
      # Its last id alone ends nothing.
      assert stream(params, stop_sequences: [[@vocabulary, List.last(sequence)]]) == ids
    end

    test "tells each id as it comes, and ends where that says so", %{params: params} do
      ids = stream(params, on_token: &send(self(), {:id, &1}))
      for id <- ids, do: assert_received({:id, ^id})
      refute_received {:id, _}

      halt_after = fn count ->
        counter = :counters.new(1, [])

        fn _id ->
          :counters.add(counter, 1, 1)
          if :counters.get(counter, 1) == count, do: :halt
        end
      end

      assert stream(params, on_token: halt_after.(3)) == Enum.take(ids, 3)
    end

    test "traces the model once", %{params: params} do
      test = self()

      counted = fn token, offset, cache, params ->
        send(test, :traced)
        forward(token, offset, cache, params)
      end

      ids =
        Generation.stream(counted,
          cache: cache(),
          params: params,
          first_token: 3,
          max_new_tokens: 12,
          defn_options: Emily.NxLane.options()
        )

      assert ids == stream(params, [])
      assert_received :traced
      refute_received :traced
    end

    test "chooses by a function of the logits", %{params: params} do
      least = stream(params, select: &Nx.argmin(&1, axis: -1))
      assert least == expected(params, 3, 12, fn l, _, _ -> most_likely(Enum.map(l, &(-&1))) end)
    end

    test "takes containers whose parts it hands on", %{params: params} do
      # The table stands in the cache and comes back as it is: it is not to be given back.
      forward = fn token, offset, %{ids: ids, table: table}, {} ->
        {logits, ids} = forward(token, offset, ids, table)
        {logits, %{ids: ids, table: table}}
      end

      options = [
        cache: %{ids: cache(), table: params},
        params: {},
        first_token: 3,
        max_new_tokens: 12,
        defn_options: Emily.NxLane.options()
      ]

      assert Generation.stream(forward, options) == stream(params, [])
      assert Generation.stream(forward, options) == stream(params, [])
    end

    test "takes a batch, each request with an offset of its own", %{params: params} do
      first = [3, 7, 11]
      alone = for token <- first, do: stream(params, first_token: token)
      assert alone == Enum.uniq(alone)
      assert stream(params, first_token: first, cache: cache(3)) == alone
      assert stream(params, first_token: Nx.tensor(first), cache: cache(3)) == alone

      # The second has read two tokens more.
      {read, [next | rest]} = Enum.split(Enum.at(alone, 1), 2)

      histories =
        for {token, read} <- Enum.zip(first, [[], read, []]),
            do: [token | read] ++ List.duplicate(0, @positions - 1 - length(read))

      options = [
        first_token: [3, next, 11],
        offset: [0, 3, 0],
        cache: Nx.tensor(histories, type: :s32),
        max_new_tokens: length(rest)
      ]

      expected = Enum.map([hd(alone), rest, List.last(alone)], &Enum.take(&1, length(rest)))
      assert stream(params, options) == expected
    end

    test "ends each request of a batch by itself", %{params: params} do
      alone = for token <- [3, 7], do: stream(params, first_token: token)
      stop = alone |> hd() |> Enum.at(2)

      expected =
        for ids <- alone do
          case Enum.find_index(ids, &(&1 == stop)) do
            nil -> ids
            index -> Enum.take(ids, index + 1)
          end
        end

      options = [first_token: [3, 7], cache: cache(2), eos: stop]
      tell = &send(self(), {&1, &2})
      assert stream(params, [on_token: tell] ++ options) == expected
      for {ids, row} <- Enum.with_index(expected), id <- ids, do: assert_received({^row, ^id})
      refute_received {_row, _id}
    end
  end

  describe "stream/2, drawing" do
    test "gives the same ids for the same seed, and others for others", %{params: params} do
      draws = for seed <- 1..8, do: stream(params, seed: seed, temperature: 2.0)
      assert length(Enum.uniq(draws)) == 8
      assert stream(params, seed: 5, temperature: 2.0) == Enum.at(draws, 4)
      assert stream(params, seed: 5, temperature: 2) == Enum.at(draws, 4)
      # Without a seed they are others each time: 23 to the power of 12 texts are about as likely.
      assert stream(params, temperature: 50.0) != stream(params, temperature: 50.0)
    end

    test "begins with the ids of a shorter run, and goes on with those of a longer", context do
      %{params: params} = context
      options = [seed: 9, temperature: 1.5, top_p: 0.95]
      ids = stream(params, options)
      assert stream(params, [max_new_tokens: 4] ++ options) == Enum.take(ids, 4)

      {read, [next | rest]} = Enum.split(ids, 4)
      cache = Nx.tensor([[3 | read] ++ List.duplicate(0, @positions - 5)], type: :s32)
      more = [cache: cache, first_token: next, offset: 5, max_new_tokens: length(rest)]
      assert stream(params, more ++ options) == rest
    end

    test "draws with the key that is documented", %{params: params} do
      options = [temperature: 1.5, top_k: 9, top_p: 0.9, min_p: 0.05]

      choose = fn logits, _tokens, offset ->
        key = Nx.Random.fold_in(Nx.Random.key(7), offset)
        Nx.to_number(Generation.Sampling.sample(Nx.tensor(logits), key, options))
      end

      assert stream(params, [seed: 7] ++ options) == expected(params, 3, 12, choose)
    end

    test "draws for a batch as for each alone", %{params: params} do
      first = [3, 7, 3]
      options = [temperature: 1.5, first_token: first, cache: cache(3)]

      alone = fn seeds ->
        for {token, seed} <- Enum.zip(first, seeds),
            do: stream(params, first_token: token, seed: seed, temperature: 1.5)
      end

      assert stream(params, [seed: 4] ++ options) == alone.([4, 5, 6])
      assert stream(params, [seed: [8, 8, 1]] ++ options) == alone.([8, 8, 1])
    end

    test "goes on beyond the random numbers drawn ahead" do
      # The cache counts, the logits are flat.
      forward = fn _token, _offset, cache, _params ->
        {Nx.broadcast(Nx.f32(0), {1000}), Nx.add(cache, 1)}
      end

      run = fn offset, count ->
        Generation.stream(forward,
          cache: Nx.s32(0),
          params: {},
          first_token: 0,
          offset: offset,
          max_new_tokens: count,
          seed: 3,
          defn_options: Emily.NxLane.options()
        )
      end

      ids = run.(0, 300)
      assert length(ids) == 300
      assert run.(150, 150) == Enum.drop(ids, 150)
      # 300 draws of 1000: about 259 different ones.
      assert length(Enum.uniq(ids)) in 235..285
    end

    test "makes what there is already less likely", %{params: params} do
      penalty = fn logits, tokens ->
        for {logit, index} <- Enum.with_index(logits) do
          cond do
            index not in tokens -> logit
            logit > 0 -> logit / 1.8
            true -> logit * 1.8
          end
        end
      end

      choose = fn before ->
        fn logits, tokens, _offset -> most_likely(penalty.(logits, tokens ++ before)) end
      end

      plain = stream(params, [])
      penalized = stream(params, repetition_penalty: 1.8)
      assert penalized != plain
      assert penalized == expected(params, 3, 12, choose.([]))
      assert stream(params, repetition_penalty: 1.0) == plain

      context = Enum.take(plain, 2)
      with_context = stream(params, repetition_penalty: 1.8, context: context)
      assert with_context == expected(params, 3, 12, choose.(context))

      options = [first_token: [3, 3], cache: cache(2), context: [[], context]]
      assert stream(params, [repetition_penalty: 1.8] ++ options) == [penalized, with_context]
    end
  end

  describe "stream/2, refusing" do
    test "a missing option", %{params: params} do
      options = [cache: cache(), params: params, first_token: 3, max_new_tokens: 1]

      for {name, _value} <- options do
        assert_raise KeyError, ~r/#{name}/, fn ->
          Generation.stream(&forward/4, Keyword.delete(options, name))
        end
      end
    end

    test "an unknown or a wrong option", %{params: params} do
      for {options, text} <- [
            {[temprature: 1.0], ~r/temprature/},
            {[max_new_tokens: 1.5], ~r/:max_new_tokens: expected an integer, got: 1.5/},
            {[first_token: []], ~r/:first_token: expected an id/},
            {[first_token: Nx.tensor([1.0])], ~r/:first_token: expected an id/},
            {[first_token: [-1]], ~r/:first_token: expected integers from 0/},
            {[offset: -1], ~r/:offset: expected an integer from 0, got: -1/},
            {[offset: [1, 2], first_token: [1]], ~r/:offset: expected .* or a list of 1/},
            {[eos: :stop], ~r/:eos: expected integers from 0/},
            {[stop_sequences: [[1], []]], ~r/:stop_sequences: expected lists of ids/},
            {[on_token: fn _, _ -> :ok end], ~r/:on_token: expected a function of an id/},
            {[on_token: fn _ -> :ok end, first_token: [1]], ~r/:on_token: .*, for a batch/},
            {[select: 1], ~r/:select: expected a function of the logits/},
            {[select: & &1, top_k: 3], ~r/:select: expected none beside \[:top_k\]/},
            {[temperature: -0.5], ~r/:temperature: expected a number from 0, got: -0.5/},
            {[top_k: 0], ~r/:top_k: expected an integer from 1, got: 0/},
            {[top_p: 1.5], ~r/:top_p: expected a number above 0, at most 1, got: 1.5/},
            {[min_p: -0.1], ~r/:min_p: expected a number from 0 to 1, got: -0.1/},
            {[seed: 1.5], ~r/:seed: expected an integer, got: 1.5/},
            {[seed: [1]], ~r/:seed: expected an integer, got/},
            {[repetition_penalty: 0], ~r/:repetition_penalty: expected a number above 0/},
            {[context: [[1]]], ~r/:context: expected integers from 0/},
            {[context: [1], first_token: [1]], ~r/:context: expected 1 lists of ids/},
            {[cache_length: -1], ~r/:cache_length: expected an integer from 0/}
          ] do
        assert_raise ArgumentError, text, fn -> stream(params, options) end
      end

      assert_raise ArgumentError, ~r/expected a function of token, offset, cache/, fn ->
        Generation.stream(fn _ -> :ok end,
          cache: cache(),
          params: params,
          first_token: 3,
          max_new_tokens: 1
        )
      end
    end

    test "tokens beyond the end of the cache", %{params: params} do
      options = [offset: 30, cache_length: @positions]
      text = ~r/:max_new_tokens: expected at most 10 from offset 30 on, .* 40 positions, got: 12/

      assert_raise ArgumentError, text, fn ->
        stream(params, [on_token: fn _ -> flunk("begun") end] ++ options)
      end

      assert length(stream(params, [max_new_tokens: 10] ++ options)) == 10
      assert stream(params, offset: 41, cache_length: @positions, max_new_tokens: 0) == []
    end

    test "a model that does not keep to the rules", %{params: params} do
      for {forward, text} <- [
            {fn t, o, c, p -> forward(t, o, c, p) |> elem(0) end, ~r/return {logits, cache}/},
            {fn _, _, c, p -> {p, c} end, ~r/logits of 1 rows, .* got shape {23, 23}/},
            {fn _, _, c, _ -> {Nx.s32(0), c} end, ~r/logits of 1 rows, .* got shape {}/},
            {fn t, o, c, p -> {elem(forward(t, o, c, p), 0), Nx.concatenate([c, c], axis: 1)} end,
             ~r/cache with the shapes and types of the one it got/}
          ] do
        assert_raise ArgumentError, text, fn ->
          Generation.stream(forward,
            cache: cache(),
            params: params,
            first_token: 3,
            max_new_tokens: 2,
            defn_options: Emily.NxLane.options()
          )
        end
      end
    end
  end
end

defmodule Emily.GenerationMemoryTest do
  # Not async: reads the memory of the whole VM.
  use ExUnit.Case, async: false

  alias Emily.{Generation, Memory}

  for compiler <- [Emily.Compiler, Nx.Defn.Evaluator] do
    test "the caches of a generation do not pile up, by #{inspect(compiler)}" do
      Nx.default_backend(Emily.Backend)
      bytes = 16_000_000

      forward = fn _token, _offset, cache, _params ->
        cache = Nx.add(cache, 1)
        {Nx.reshape(Nx.slice(cache, [0], [2]), {1, 2}), cache}
      end

      cache = Nx.broadcast(Nx.f32(0), {div(bytes, 4)})
      :ok = Emily.eval(cache.data.ref)

      run = fn ->
        Memory.reset_peak()
        before = Memory.stats().active

        Generation.stream(forward,
          cache: cache,
          params: {},
          first_token: 0,
          max_new_tokens: 30,
          defn_options: [compiler: unquote(compiler)]
        )

        {:garbage_collection, info} = Process.info(self(), :garbage_collection)
        {info[:minor_gcs], Memory.stats().peak - before}
      end

      test = self()

      # In a process whose heap is too large to be collected.
      :erlang.spawn_opt(
        fn ->
          Nx.default_backend(Emily.Backend)
          send(test, {:done, run.()})
        end,
        [:link, min_heap_size: 20_000_000]
      )

      assert_receive {:done, {0, grown}}, 60_000
      assert grown < 4 * bytes
      # The caller's cache is still the caller's.
      assert Nx.to_number(cache[0]) == 0.0
    end
  end
end
