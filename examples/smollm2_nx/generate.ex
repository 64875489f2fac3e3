defmodule SmolLM2.Nx.Generate do
  @moduledoc """
  Answers of `SmolLM2.Nx.Model`: a compiled prefill, then `Emily.Generation.stream/2`.

  All work is done on the stream of the calling process (`Emily.Stream.with_stream/2`).
  """

  alias SmolLM2.Nx.Model

  # Prompts are filled up to a multiple of this, so that few compiled functions serve all lengths.
  @step 8

  @type answer :: %{ids: [non_neg_integer], first_ms: float, token_ms: [float]}

  @doc """
  Continues `prompt`, a list of token ids.

  Returns the ids, the milliseconds to the first of them and those of each after it.

  Options, and besides them those of `Emily.Generation.stream/2`, such as `:temperature` and `:seed`:

    * `:tokens` - at most so many; 64 by default.
    * `:positions` - the length of the cache; by default what prompt and answer need.
    * `:stop` - ids that end the answer; they are not part of it. None by default.
    * `:on_token` - called with each id as it comes.
    * `:defn_options` - of the two compilations.
  """
  @spec run({Model.t(), map}, [non_neg_integer], keyword) :: answer
  def run({model, params}, prompt, options) do
    {own, choice} = Keyword.split(options, [:tokens, :positions, :stop, :on_token])
    own = Map.new(Keyword.merge([tokens: 64, stop: [], on_token: fn _id -> :ok end], own))
    count = length(prompt)
    padded = padded(count)
    positions = own[:positions] || padded + own.tokens

    # The moment of the call and of each token, the last one first.
    times = {__MODULE__, make_ref()}
    note = fn -> Process.put(times, [System.monotonic_time() | Process.get(times, [])]) end
    note.()

    ids = Nx.tensor(prompt ++ List.duplicate(0, padded - count), type: :s32)
    prefill = fn ids, params -> Model.prefill(model, ids, params, positions) end
    cache = Nx.Defn.jit_apply(prefill, [ids, params], choice[:defn_options] || [])

    # The prompt's last token is read again, which gives the first of the answer.
    ids =
      Emily.Generation.stream(
        fn token, offset, cache, params -> Model.decode(model, token, offset, cache, params) end,
        [
          cache: cache,
          params: params,
          first_token: List.last(prompt),
          offset: count - 1,
          max_new_tokens: own.tokens,
          cache_length: positions,
          eos: own.stop,
          on_token: fn id ->
            note.()
            if id not in own.stop, do: own.on_token.(id)
          end
        ] ++ choice
      )

    {first_ms, token_ms} = durations(Process.delete(times))
    %{ids: Enum.reject(ids, &(&1 in own.stop)), first_ms: first_ms, token_ms: token_ms}
  end

  @doc """
  The length to which a prompt is filled up.
  """
  @spec padded(non_neg_integer) :: pos_integer
  def padded(count), do: @step * div(count + @step - 1, @step)

  defp durations(times) do
    [first | rest] =
      times
      |> Enum.zip_with(
        tl(times),
        &(System.convert_time_unit(&1 - &2, :native, :nanosecond) / 1.0e6)
      )
      |> Enum.reverse()

    {first, rest}
  end
end
