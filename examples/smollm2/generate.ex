defmodule SmolLM2.Generate do
  @moduledoc """
  Greedy generation: the most likely token, again and again.

  All work is done on the stream of the calling process (`Emily.Stream.with_stream/2`).
  """

  alias Emily.Native
  alias SmolLM2.Model

  @type answer :: %{
          ids: [non_neg_integer],
          first_ms: float,
          token_ms: [float]
        }

  @doc """
  Continues `prompt`, a list of token ids.

  Returns the ids, the milliseconds to the first of them (`first_ms`: the whole prompt is read) and those of
  each after it (`token_ms`).

  Options:

    * `:tokens` - at most so many; 64 by default.
    * `:stop` - ids that end the answer; they are not part of it. None by default.
    * `:on_token` - called with each id as it comes.
    * `:on_prompt_read` - called when the first token is there, before the second.
  """
  @spec run(Model.t(), [non_neg_integer], keyword) :: answer
  def run(model, prompt, options \\ []) do
    options =
      options
      |> Keyword.validate!(
        tokens: 64,
        stop: [],
        on_token: fn _id -> :ok end,
        on_prompt_read: fn -> :ok end
      )
      |> Map.new()

    w = Emily.Stream.worker()
    numbers = for id <- prompt, into: "", do: <<id::unsigned-32-native>>
    ids = Emily.from_binary(numbers, [length(prompt)], {:u, 32})

    start = System.monotonic_time()
    {token, cache} = Model.next_token(w, model, ids, nil)
    id = read(w, token)
    first_ms = since(start)
    options.on_prompt_read.()

    start = System.monotonic_time()
    next = if options.tokens > 1, do: prepare(w, model, token, cache)
    {ids, token_ms} = continue(w, model, {id, next, start}, options, {[], []})
    %{ids: ids, first_ms: first_ms, token_ms: token_ms}
  end

  # With a token comes the step after it, which is queued when the token has been read: nothing is computed that
  # an answer's end makes needless.
  defp continue(w, model, {id, next, start}, options, {ids, times}) do
    cond do
      id in options.stop ->
        {Enum.reverse(ids), Enum.reverse(times)}

      next == nil ->
        options.on_token.(id)
        {Enum.reverse([id | ids]), Enum.reverse(times)}

      true ->
        {token, cache} = next.()
        queue(token)
        options.on_token.(id)
        ids = [id | ids]
        last? = length(ids) + 1 == options.tokens
        next = if not last?, do: prepare(w, model, token, cache)
        state = {read(w, token), next, System.monotonic_time()}
        continue(w, model, state, options, {ids, [since(start) | times]})
    end
  end

  # A GPU computes the step before while this one is built. On a CPU building would take a core from other
  # streams, so that it is left for later.
  defp prepare(w, model, token, cache) do
    build = fn -> Model.next_token(w, model, token, cache) end

    if Emily.Stream.device(w) == :gpu do
      built = build.()
      fn -> built end
    else
      build
    end
  end

  defp queue(token) do
    :ok = Emily.async_eval([token])

    # The BEAM sees a reference of some words where a tensor of an older cache is held, and would not collect
    # it for long. This takes 0.1 ms, in which the device computes.
    :erlang.garbage_collect()
  end

  # Four bytes come back from the device.
  defp read(w, token) do
    <<id::unsigned-32-native>> = Native.to_binary(w, token)
    id
  end

  defp since(start) do
    elapsed = System.monotonic_time() - start
    System.convert_time_unit(elapsed, :native, :nanosecond) / 1.0e6
  end
end
