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

    {first_ms, {id, next, cache}} = timed(fn -> step(w, model, ids, nil) end)
    options.on_prompt_read.()
    {ids, token_ms} = continue(w, model, {id, next, cache}, options, {[], []})
    %{ids: ids, first_ms: first_ms, token_ms: token_ms}
  end

  defp continue(w, model, {id, next, cache}, options, {ids, times}) do
    if id in options.stop do
      {Enum.reverse(ids), Enum.reverse(times)}
    else
      options.on_token.(id)
      ids = [id | ids]

      if length(ids) == options.tokens do
        {Enum.reverse(ids), Enum.reverse(times)}
      else
        {ms, state} = timed(fn -> step(w, model, next, cache) end)

        # The BEAM sees a reference of some words where a tensor of the last step's cache is held, and
        # would not collect it for long. This takes 0.1 ms.
        :erlang.garbage_collect()
        continue(w, model, state, options, {ids, [ms | times]})
      end
    end
  end

  # Four bytes come back from the device; the next step starts from the tensor that stays there.
  defp step(w, model, ids, cache) do
    {next, cache} = Model.next_token(w, model, ids, cache)
    <<id::unsigned-32-native>> = Native.to_binary(w, next)
    {id, next, cache}
  end

  defp timed(fun) do
    start = System.monotonic_time()
    result = fun.()
    elapsed = System.monotonic_time() - start
    {System.convert_time_unit(elapsed, :native, :nanosecond) / 1.0e6, result}
  end
end
