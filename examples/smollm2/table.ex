defmodule SmolLM2.Table do
  @moduledoc """
  Several processes answer at the same time, each on a stream of its own, and what that gives.

  A *round* is a number of prompts that are answered at once, each by a process of its own. All processes
  read their prompts first and then begin together, so that the numbers are those of decoding.
  """

  alias SmolLM2.Generate

  @type round :: %{ids: [[non_neg_integer]], token_ms: [float], wall_ms: float}
  @type row :: %{
          streams: pos_integer,
          tokens_per_s: float,
          p50_ms: float,
          p99_ms: float,
          speed_up: float,
          active_mib: float,
          same: boolean
        }

  @doc """
  One row for each number of streams.

  The first is measured with one stream that answers every prompt, one after the other: these are the
  serial ids, with which those of every other row are compared. The others answer as many prompts as
  there are streams, at once.
  """
  @spec rows(
          SmolLM2.Model.t(),
          [[non_neg_integer]],
          [pos_integer],
          Emily.Stream.device(),
          pos_integer
        ) ::
          [row]
  def rows(model, prompts, streams, device, tokens) do
    {serial_rounds, active} =
      watched(fn -> Enum.map(prompts, &round(model, [&1], device, tokens)) end)

    serial_ids = Enum.flat_map(serial_rounds, & &1.ids)
    serial = row(1, serial_rounds, active, serial_ids, nil)

    others =
      for count <- streams, count > 1 do
        chosen = Enum.take(prompts, count)
        {round, active} = watched(fn -> round(model, chosen, device, tokens) end)
        row(count, [round], active, serial_ids, serial.tokens_per_s)
      end

    [serial | others]
  end

  @doc """
  Answers prompts at once, each in a process with its own stream, with just `tokens` tokens each.
  """
  @spec round(SmolLM2.Model.t(), [[non_neg_integer]], Emily.Stream.device(), pos_integer) :: round
  def round(model, prompts, device, tokens) do
    parent = self()

    wait_for_all = fn ->
      send(parent, {:prompt_read, self()})
      receive do: (:go -> :ok)
    end

    tasks =
      for prompt <- prompts do
        Task.async(fn ->
          Emily.Stream.with_stream(Emily.Stream.new(device), fn ->
            Generate.run(model, prompt, tokens: tokens, on_prompt_read: wait_for_all)
          end)
        end)
      end

    for %Task{pid: pid} <- tasks do
      receive do: ({:prompt_read, ^pid} -> :ok)
    end

    start = System.monotonic_time(:microsecond)
    for %Task{pid: pid} <- tasks, do: send(pid, :go)
    answers = Task.await_many(tasks, :infinity)
    wall_ms = (System.monotonic_time(:microsecond) - start) / 1000

    %{
      ids: Enum.map(answers, & &1.ids),
      token_ms: Enum.flat_map(answers, & &1.token_ms),
      wall_ms: wall_ms
    }
  end

  # The result of a function and the most MiB that tensors took meanwhile.
  defp watched(fun) do
    :erlang.garbage_collect()
    Emily.Memory.clear_cache()
    Emily.Memory.reset_peak()
    result = fun.()
    {result, Emily.Memory.stats().peak / 1_048_576}
  end

  defp row(streams, rounds, active, serial_ids, tokens_per_s_of_one) do
    times = rounds |> Enum.flat_map(& &1.token_ms) |> Enum.sort()
    ids = Enum.flat_map(rounds, & &1.ids)
    tokens_per_s = 1000 * length(times) / Enum.sum_by(rounds, & &1.wall_ms)

    %{
      streams: streams,
      tokens_per_s: tokens_per_s,
      p50_ms: percentile(times, 50),
      p99_ms: percentile(times, 99),
      speed_up: tokens_per_s / (tokens_per_s_of_one || tokens_per_s),
      active_mib: active,
      same: ids == Enum.take(serial_ids, length(ids))
    }
  end

  # The nearest rank in a sorted list.
  defp percentile(sorted, percent) do
    Enum.at(sorted, max(ceil(length(sorted) * percent / 100) - 1, 0))
  end

  @doc """
  Rows as text.
  """
  @spec format([row]) :: String.t()
  def format(rows) do
    header =
      [
        "streams",
        "tokens/s",
        "per stream",
        "p50 ms",
        "p99 ms",
        "speed-up",
        "active MiB",
        "tokens"
      ]

    lines =
      for {row, index} <- Enum.with_index(rows) do
        [
          Integer.to_string(row.streams),
          decimal(row.tokens_per_s, 1),
          decimal(row.tokens_per_s / row.streams, 1),
          decimal(row.p50_ms, 1),
          decimal(row.p99_ms, 1),
          decimal(row.speed_up, 2) <> "x",
          decimal(row.active_mib, 0),
          cond do
            index == 0 -> "serial"
            row.same -> "the same"
            true -> "DIFFERENT"
          end
        ]
      end

    for line <- [header, Enum.map(header, &String.duplicate("-", String.length(&1))) | lines],
        into: "" do
      cells = for {cell, title} <- Enum.zip(line, header), do: pad(cell, String.length(title))
      Enum.join(cells, "  ") <> "\n"
    end
  end

  defp pad(cell, width), do: String.pad_leading(cell, max(width, 9))

  defp decimal(number, decimals), do: :erlang.float_to_binary(number * 1.0, decimals: decimals)
end
