defmodule Emily.Memory do
  @moduledoc """
  The memory that MLX holds for this VM, which the BEAM does not see.

  MLX keeps freed buffers in a cache for reuse. The cache is bounded from the start, by
  `config :emily, cache_limit: bytes`; without it by 32 MiB on a CPU (MLX's own bound) and by an eighth of the
  memory limit on a GPU, where MLX's own bound is all of it. All numbers are bytes, and speak of the
  whole VM: streams share one allocator.
  """

  alias Emily.Native.{Call, Nif}

  @type stats :: %{
          active: non_neg_integer,
          peak: non_neg_integer,
          cache: non_neg_integer
        }

  @doc """
  Bytes in tensors that live (`active`), the most that there were since the last reset (`peak`), and
  bytes kept for reuse (`cache`).

  Emits the telemetry event `[:emily, :memory, :stats]` with the same measurements.
  """
  @spec stats() :: stats
  def stats do
    stats = Call.now(Nif.memory_stats())
    Emily.Telemetry.execute([:emily, :memory, :stats], stats, %{})
    stats
  end

  @doc "Lets `peak` begin again at what is active now."
  @spec reset_peak() :: :ok
  def reset_peak, do: Call.now(Nif.memory_reset_peak())

  @doc """
  Gives the cache back to the system.

  What was dropped before, and is being freed in the background, is given back too. Waits for running
  evaluations on a CPU.
  """
  @spec clear_cache() :: :ok
  def clear_cache do
    :ok = Nif.flush()
    Call.now(Nif.memory_clear_cache())
  end

  @doc """
  Sets a limit and returns the one before.

    * `:cache` - bytes kept for reuse;
    * `:memory` - bytes in use from which on an evaluation waits for others to end;
    * `:wired` - bytes that stay resident (Metal only, elsewhere it does nothing).

  Raises ArgumentError for another limit or a negative number.
  """
  @spec set_limit(:cache | :memory | :wired, non_neg_integer) :: non_neg_integer
  def set_limit(limit, bytes), do: Call.now(Nif.memory_set_limit(limit, bytes))

  @doc false
  def configure do
    for {limit, key} <- [cache: :cache_limit, memory: :memory_limit, wired: :wired_limit],
        bytes = Application.get_env(:emily, key, default(limit)) do
      set_limit(limit, bytes)
    end

    :ok
  end

  defp default(:cache) do
    if :gpu in Nif.devices() do
      # MLX tells a limit only to whoever sets one.
      memory = set_limit(:memory, 0)
      set_limit(:memory, memory)
      div(memory, 8)
    end
  end

  defp default(_limit), do: nil
end
