defmodule Emily.Eventually do
  @moduledoc false
  # Waits for what no message tells of, such as a queue's depth.

  @doc "Calls `fun` until it returns a truthy value, which is returned; raises after `limit` milliseconds."
  def eventually(fun, limit \\ 30_000) do
    poll(fun, System.monotonic_time(:millisecond) + limit)
  end

  defp poll(fun, deadline) do
    value = fun.()

    cond do
      value ->
        value

      System.monotonic_time(:millisecond) > deadline ->
        raise ExUnit.AssertionError, "it did not come about in time"

      true ->
        :erlang.yield()
        poll(fun, deadline)
    end
  end
end
