defmodule Emily.Generation do
  @moduledoc """
  Text generation, one token after the other, for any model.

  The model is a function `forward` that reads one token:

      forward.(token, offset, cache, params) #=> {logits, cache}

  | argument | what it is |
  | --- | --- |
  | `token` | s32 `{1}`: the id to read; of a batch, `{requests}` |
  | `offset` | s32 `{}`: its position, so where in the cache its keys and values go; of a batch with offsets of their own, `{requests}` |
  | `cache` | any `Nx.Container`, in and out with the same shapes and types: a buffer for all positions, written with `Nx.put_slice/3` |
  | `params` | any `Nx.Container` |
  | `logits` | floats, the vocabulary last: `{vocabulary}`, `{1, vocabulary}`, ...; of a batch, `{requests, vocabulary}` |

  `stream/2` compiles it once, together with the choice of the next token, and calls it again and again.
  The token stays on the device from one step to the next; the host reads it only to tell the caller.
  The prompt is the caller's: a second function reads it in one go, fills the cache and gives the
  first token. `examples/smollm2_nx.exs` does all that.

      cache = ...                                    # with the keys and values of n positions
      Emily.Generation.stream(&Model.forward/4,
        cache: cache,
        params: params,
        first_token: 1504,                           # goes to position n
        offset: n,
        max_new_tokens: 64,
        eos: 2,
        temperature: 0.7,
        top_p: 0.9,
        seed: 42,
        on_token: &IO.inspect/1
      )
      #=> [1137, 282, 4649, ...]
  """

  import Nx.Defn

  alias Emily.Generation.{Request, Sampling}
  alias Emily.Native
  alias Nx.Defn.Composite

  @type forward :: (Nx.Tensor.t(), Nx.Tensor.t(), Nx.Container.t(), Nx.Container.t() ->
                      {Nx.Tensor.t(), Nx.Container.t()})
  @type id :: non_neg_integer

  @doc """
  The most likely token of each row of `logits`, `{..., vocabulary}`: s32, `{...}`.
  """
  @spec greedy(Nx.Tensor.t()) :: Nx.Tensor.t()
  defn(greedy(logits), do: Nx.argmax(logits, axis: -1, type: :s32))

  @doc """
  Generates tokens and returns their ids, a list, or for a batch a list for each request.

  The first id is what the model says after it has read `:first_token`, which is not among the ids. An id
  that ends the generation is. A `:max_new_tokens` of 0 or less gives no ids.

  ## Options

  Required:

    * `:cache`, `:params` - as `forward` takes them. The cache stays as it is and may be used again.
    * `:first_token` - the id to read first, an integer or a tensor `{1}`. A list of ids or a tensor `{n}` is
      a batch of `n` requests, each with a row of its own in the cache.
    * `:max_new_tokens` - at most so many ids.

  The end:

    * `:eos` - an id that ends the generation, or a list of them.
    * `:stop_sequences` - lists of ids; what ends with one of them has ended.
    * `:cache_length` - positions that the cache has room for. With it, tokens that would be written beyond
      its end raise ArgumentError before anything is computed. Without it nothing is checked, since
      `forward` alone knows the cache, and `Nx.put_slice/3` overwrites the last position again and again.

  The choice of the token, in this order:

    * `:select` - a function of the logits, traced with `forward`, in place of all that follows.
    * `:repetition_penalty` - as `Emily.Generation.Sampling.penalize/3`, for the ids of `:context`, a list (of
      a batch, a list for each request), `:first_token`, and all that come after.
    * `:temperature`, `:top_k`, `:top_p`, `:min_p` - as `Emily.Generation.Sampling.sample/3`. Without any of
      them and without `:seed` the most likely token is taken.
    * `:seed` - an integer, by default a random one. The id that follows position `p` is drawn with the key
      `Nx.Random.fold_in(Nx.Random.key(seed), p)`, so that the same seed gives the same ids, however many
      they are and whichever requests are beside them. A batch takes a list of seeds; one integer stands for
      itself, itself plus one, and so on.

  Others:

    * `:offset` - the position of `:first_token`, 0 by default. Of a batch, one for all or a list.
    * `:on_token` - called with each id as it comes; of a batch, with the request's index and the id.
      Where it returns `:halt` the generation, or that request, has ended.
    * `:defn_options` - of the compilation, `[compiler: Emily.Compiler, native: true]` by default.

  A request of a batch that has ended is computed with the others until all have ended.

  Raises KeyError where a required option is missing, and ArgumentError for one that is unknown or wrong and
  for a `forward` whose cache comes back in another shape.
  """
  @spec stream(forward, keyword) :: [id] | [[id]]
  def stream(forward, options) when is_function(forward, 4) and is_list(options) do
    request = Request.new(options)
    texts = List.duplicate(%{ids: [], ended?: false}, request.rows)
    texts = if request.max_new_tokens > 0, do: run(forward, request, texts), else: texts
    ids = Enum.map(texts, &Enum.reverse(&1.ids))
    if request.batch?, do: ids, else: hd(ids)
  end

  def stream(forward, options) when is_list(options) do
    raise ArgumentError,
          "stream: expected a function of token, offset, cache and params, " <>
            "got: #{inspect(forward)}"
  end

  ## The loop

  # The positions of these among a step's arguments.
  @cache 2
  @memory 4

  defp run(forward, request, texts) do
    given = %{
      token: request.first_token,
      cache: own(request.cache),
      memory: first_memory(request),
      index: 0,
      uniforms: []
    }

    {arguments, given} = arguments(given, request)
    step = Nx.Defn.compile(step(forward, choice(request)), arguments, defn_options(request))
    current = call(step, arguments, given)
    check_cache!(request.cache, current.cache)
    callers = MapSet.new(refs({request.cache, request.params, request.first_token}))
    continue(step, schedule(current), texts, callers, request)
  end

  # Where a step is lazy, the one after it is built, from the token that is still on the device, while the
  # device computes.
  defp continue(step, current, texts, callers, request) do
    last? = current.index == request.max_new_tokens
    next = if not last? and lazy?(current.token), do: advance(step, current, request)
    texts = tell(texts, Nx.to_flat_list(current.token), request)

    if last? or Enum.all?(texts, & &1.ended?) do
      texts
    else
      next = next || advance(step, current, request)
      release(current, next, callers)
      continue(step, schedule(next), texts, callers, request)
    end
  end

  # A program takes the cache of the step before, and writes into its memory.
  defp defn_options(%{defn_options: options}) do
    if options[:compiler] == Emily.Compiler,
      do: Keyword.put_new(options, :donate, [@cache, @memory]),
      else: options
  end

  # The caller's cache under references of ours, which may be given away.
  defp own(cache) do
    Composite.traverse(cache, fn
      %Nx.Tensor{data: %Emily.Backend{}} = tensor -> Nx.backend_copy(tensor, Emily.Backend)
      tensor -> tensor
    end)
  end

  defp schedule(%{token: token, cache: cache, memory: memory} = current) do
    if lazy?(token), do: Emily.async_eval(refs({token, cache, memory}))
    current
  end

  defp advance(step, current, request) do
    {arguments, current} = arguments(current, request)
    call(step, arguments, current)
  end

  defp call(step, arguments, given) do
    {token, cache, memory} = apply(step, arguments)
    %{given | token: token, cache: cache, memory: memory, index: given.index + 1}
  end

  # Nobody else can have the cache that a step made. It is given back before the step that reads it is
  # computed, where that one is lazy, so that this one may write into its memory, too.
  defp release(current, next, callers) do
    still = MapSet.union(callers, MapSet.new(refs({next.cache, next.memory})))

    for ref <- refs({current.cache, current.memory}), not MapSet.member?(still, ref) do
      Native.deallocate(ref)
    end
  end

  defp lazy?(%Nx.Tensor{data: %Emily.Backend{ref: ref}}), do: not Native.ready?(ref)
  defp lazy?(_tensor), do: false

  defp refs(container) do
    for %Nx.Tensor{data: %Emily.Backend{ref: ref}} <- Composite.flatten_list([container]), do: ref
  end

  defp check_cache!(given, returned) do
    unless Nx.compatible?(given, returned) do
      raise ArgumentError,
            "stream: expected forward to return a cache with the shapes and types of the one it got, " <>
              "got: #{inspect(Nx.to_template(returned))} for #{inspect(Nx.to_template(given))}"
    end
  end

  ## A step

  # What decides how a token is chosen: all that a step may depend on besides its arguments, so that a
  # compiler knows it again in another generation.
  defp choice(request), do: Map.take(request, [:rows, :select, :sampling, :repetition_penalty])

  # What is compiled: forward and the choice of the token. `memory` holds what the choice remembers: the
  # ids so far, where they are to be penalised.
  defp step(forward, choice) do
    fn token, offset, cache, params, memory, inputs ->
      {logits, cache} = forwarded!(forward.(token, offset, cache, params))

      if choice.select do
        {chosen!(choice.select.(logits), choice.rows), cache, memory}
      else
        logits = rows!(logits, choice.rows)
        {logits, memory} = penalize(logits, token, memory, inputs, choice)
        {Sampling.draw(logits, inputs[:uniforms], choice.sampling), cache, memory}
      end
    end
  end

  defp penalize(logits, token, %{ids: ids}, %{slot: slot}, choice) do
    ids = Nx.put_slice(ids, [0, slot], Nx.reshape(token, {choice.rows, 1}))
    {Sampling.penalize(logits, ids, choice.repetition_penalty), %{ids: ids}}
  end

  defp penalize(logits, _token, memory, _inputs, _choice), do: {logits, memory}

  defp forwarded!({%Nx.Tensor{} = logits, cache}), do: {logits, cache}

  defp forwarded!(other) do
    raise ArgumentError,
          "stream: expected forward to return {logits, cache}, got: #{inspect(other)}"
  end

  defp rows!(%{shape: shape} = logits, rows) do
    vocabulary = if shape == {}, do: 0, else: elem(shape, tuple_size(shape) - 1)

    unless vocabulary > 0 and Nx.size(shape) == rows * vocabulary do
      raise ArgumentError,
            "stream: expected forward to return logits of #{rows} rows, the vocabulary last, " <>
              "got shape #{inspect(shape)}"
    end

    Nx.reshape(logits, {rows, vocabulary})
  end

  defp chosen!(token, rows) do
    token = Nx.as_type(token, :s32)

    unless Nx.size(token) == rows do
      raise ArgumentError,
            "stream: expected :select to return #{rows} ids, got shape #{inspect(token.shape)}"
    end

    Nx.reshape(token, {rows})
  end

  # What a step is called with after the tokens of `current`.
  defp arguments(current, request) do
    {uniforms, current} = uniforms(current, request)
    offset = Nx.tensor(offset(request, current.index), type: :s32)

    inputs =
      for {name, tensor} <- [uniforms: uniforms, slot: slot(current, request)],
          tensor,
          into: %{} do
        {name, tensor}
      end

    arguments = [current.token, offset, current.cache, request.params, current.memory, inputs]
    {arguments, current}
  end

  defp offset(%{offsets: {:all, offset}}, index), do: offset + index
  defp offset(%{offsets: {:each, offsets}}, index), do: Enum.map(offsets, &(&1 + index))

  defp slot(current, request) do
    if request.repetition_penalty do
      Nx.tensor(Request.context_length(request) + current.index, type: :s32)
    end
  end

  defp first_memory(%{repetition_penalty: nil}), do: %{}
  defp first_memory(request), do: %{ids: Request.history(request)}

  # Random numbers are drawn for so many positions at a time.
  @ahead 64

  defp uniforms(current, %{seeds: nil}), do: {nil, current}

  defp uniforms(%{uniforms: [row | rest]} = current, _request),
    do: {Nx.from_binary(row, :f32), %{current | uniforms: rest}}

  defp uniforms(%{uniforms: []} = current, request) do
    offsets = request |> offset(current.index) |> List.wrap()

    offsets =
      if length(offsets) == 1, do: List.duplicate(hd(offsets), request.rows), else: offsets

    uniforms(%{current | uniforms: Sampling.uniforms(request.seeds, offsets, @ahead)}, request)
  end

  ## The end

  defp tell(texts, ids, request) do
    for {text, id, row} <- Enum.zip([texts, ids, 0..(request.rows - 1)]) do
      if text.ended?, do: text, else: take(text, id, row, request)
    end
  end

  defp take(text, id, row, request) do
    ids = [id | text.ids]

    halted? =
      case request.on_token do
        nil -> false
        tell when is_function(tell, 1) -> tell.(id) == :halt
        tell -> tell.(row, id) == :halt
      end

    ended? =
      halted? or id in request.eos or Enum.any?(request.stops, &List.starts_with?(ids, &1))

    %{ids: ids, ended?: ended?}
  end
end
