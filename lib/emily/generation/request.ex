defmodule Emily.Generation.Request do
  @moduledoc false

  # The options of Emily.Generation.stream/2, checked before anything is compiled.

  alias Emily.Generation.Sampling

  @required [:cache, :params, :first_token, :max_new_tokens]
  @optional [
    offset: 0,
    eos: [],
    stop_sequences: [],
    on_token: nil,
    select: nil,
    cache_length: nil,
    repetition_penalty: nil,
    context: [],
    temperature: nil,
    top_k: nil,
    top_p: nil,
    min_p: nil,
    seed: nil,
    defn_options: [compiler: Emily.Compiler, native: true]
  ]

  # These say how to choose among the tokens, and contradict a :select that does.
  @choice [:repetition_penalty, :temperature, :top_k, :top_p, :min_p, :seed]

  # Seeds that are made up: what an s64 key takes on every backend.
  @seeds 0x7FFFFFFF

  @enforce_keys [:cache, :params, :max_new_tokens, :first_token, :rows, :batch?, :offsets, :eos] ++
                  [:stops, :on_token, :select, :sampling, :seeds, :repetition_penalty] ++
                  [:context, :defn_options]
  defstruct @enforce_keys

  @doc "Raises KeyError for a missing option and ArgumentError for a wrong one."
  def new(options) do
    given = Map.new(@required, &{&1, Keyword.fetch!(options, &1)})
    options = Keyword.validate!(options, @required ++ @optional)
    {first_token, rows, batch?} = first_token!(given.first_token)
    sampling = sampling!(options)

    request = %__MODULE__{
      cache: given.cache,
      params: given.params,
      max_new_tokens: check!(given, :max_new_tokens, "an integer", &is_integer/1),
      first_token: first_token,
      rows: rows,
      batch?: batch?,
      offsets: offsets!(options[:offset], rows, batch?),
      eos: options[:eos] |> List.wrap() |> ids!(:eos),
      stops: stops!(options[:stop_sequences]),
      on_token: on_token!(options[:on_token], batch?),
      select: select!(options),
      sampling: sampling,
      seeds: if(not Sampling.greedy?(sampling), do: seeds!(options[:seed], rows, batch?)),
      repetition_penalty: penalty!(options[:repetition_penalty]),
      context: context!(options[:context], rows, batch?),
      defn_options: options[:defn_options]
    }

    check_room!(request, options[:cache_length])
    request
  end

  @doc "Positions of the history that the context takes."
  def context_length(%{context: context}), do: context |> Enum.map(&length/1) |> Enum.max()

  @doc "The ids so far, s32 `{rows, positions}`, with -1 where there is none yet."
  def history(%{context: context, max_new_tokens: count} = request) do
    before = context_length(request)

    context
    |> Enum.map(fn ids ->
      List.duplicate(-1, before - length(ids)) ++ ids ++ List.duplicate(-1, count)
    end)
    |> Nx.tensor(type: :s32)
  end

  defp first_token!(id) when is_integer(id), do: {Nx.tensor([id], type: :s32), 1, false}

  defp first_token!([_ | _] = ids),
    do: {Nx.tensor(ids!(ids, :first_token), type: :s32), length(ids), true}

  defp first_token!(%Nx.Tensor{shape: shape, type: {kind, _}} = ids)
       when kind in [:s, :u] and (shape == {} or tuple_size(shape) == 1) do
    rows = Nx.size(ids)
    {ids |> Nx.as_type(:s32) |> Nx.reshape({rows}), rows, rows > 1}
  end

  defp first_token!(other),
    do: wrong!(:first_token, "an id, a list of ids or a tensor of them with one axis", other)

  defp offsets!(offset, _rows, _batch?) when is_integer(offset) and offset >= 0,
    do: {:all, offset}

  defp offsets!(offsets, rows, true) when is_list(offsets) and length(offsets) == rows,
    do: {:each, ids!(offsets, :offset)}

  defp offsets!(other, rows, batch?),
    do: wrong!(:offset, "an integer from 0#{list_of(rows, batch?)}", other)

  defp list_of(rows, true), do: " or a list of #{rows}"
  defp list_of(_rows, false), do: ""

  defp stops!(sequences) do
    unless is_list(sequences) and Enum.all?(sequences, &match?([_ | _], &1)),
      do: wrong!(:stop_sequences, "lists of ids", sequences)

    # What came last is at the head of the ids that they are compared with.
    Enum.map(sequences, &(&1 |> ids!(:stop_sequences) |> Enum.reverse()))
  end

  defp on_token!(nil, _batch?), do: nil
  defp on_token!(fun, false) when is_function(fun, 1), do: fun
  defp on_token!(fun, true) when is_function(fun, 2), do: fun
  defp on_token!(other, false), do: wrong!(:on_token, "a function of an id", other)

  defp on_token!(other, true),
    do: wrong!(:on_token, "a function of a request's index and an id, for a batch", other)

  defp select!(options) do
    given = Enum.filter(@choice, &(options[&1] != nil))

    case options[:select] do
      nil -> nil
      fun when is_function(fun, 1) and given == [] -> fun
      fun when is_function(fun, 1) -> wrong!(:select, "none beside #{inspect(given)}", fun)
      other -> wrong!(:select, "a function of the logits", other)
    end
  end

  # Without a wish to sample the most likely token is taken.
  defp sampling!(options) do
    given = for name <- Sampling.options(), options[name] != nil, do: {name, options[name]}
    greedy = if given == [] and options[:seed] == nil, do: [temperature: 0], else: []
    Sampling.validate!(greedy ++ given)
  end

  defp seeds!(nil, rows, batch?), do: seeds!(:rand.uniform(@seeds), rows, batch?)

  defp seeds!(seed, rows, _batch?) when is_integer(seed),
    do: Enum.to_list(seed..(seed + rows - 1)//1)

  defp seeds!(seeds, rows, true) when is_list(seeds) and length(seeds) == rows do
    unless Enum.all?(seeds, &is_integer/1), do: wrong!(:seed, "integers", seeds)
    seeds
  end

  defp seeds!(other, rows, batch?), do: wrong!(:seed, "an integer#{list_of(rows, batch?)}", other)

  defp penalty!(nil), do: nil
  defp penalty!(penalty) when penalty in [1, 1.0], do: nil
  defp penalty!(penalty) when is_number(penalty) and penalty > 0, do: penalty
  defp penalty!(other), do: wrong!(:repetition_penalty, "a number above 0", other)

  defp context!([], rows, _batch?), do: List.duplicate([], rows)
  defp context!(ids, _rows, false) when is_list(ids), do: [ids!(ids, :context)]

  defp context!(lists, rows, true) when is_list(lists) and length(lists) == rows do
    unless Enum.all?(lists, &is_list/1), do: wrong!(:context, "#{rows} lists of ids", lists)
    Enum.map(lists, &ids!(&1, :context))
  end

  defp context!(other, rows, true), do: wrong!(:context, "#{rows} lists of ids", other)
  defp context!(other, _rows, false), do: wrong!(:context, "a list of ids", other)

  defp check_room!(_request, nil), do: :ok

  defp check_room!(request, length) when is_integer(length) and length >= 0 do
    {_, offsets} = request.offsets
    first = offsets |> List.wrap() |> Enum.max()

    if request.max_new_tokens > 0 and first + request.max_new_tokens > length do
      wrong!(
        :max_new_tokens,
        "at most #{max(length - first, 0)} from offset #{first} on, since the cache has #{length} positions",
        request.max_new_tokens
      )
    end
  end

  defp check_room!(_request, other), do: wrong!(:cache_length, "an integer from 0", other)

  defp ids!(ids, option) do
    unless Enum.all?(ids, &(is_integer(&1) and &1 >= 0)),
      do: wrong!(option, "integers from 0", ids)

    ids
  end

  defp check!(options, name, expected, valid?) do
    value = Map.fetch!(options, name)
    if valid?.(value), do: value, else: wrong!(name, expected, value)
  end

  defp wrong!(option, expected, got) do
    raise ArgumentError,
          "stream: #{inspect(option)}: expected #{expected}, got: #{inspect(got)}"
  end
end
