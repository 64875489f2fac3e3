defmodule Emily.Memory do
  @moduledoc """
  The memory that MLX holds for this VM, which the BEAM does not see.

  MLX keeps freed buffers in a cache for reuse. The cache is bounded from the start, by
  `config :emily, cache_limit: bytes`. Without it the bound is an eighth of the memory limit on a GPU, where
  MLX's own is all of it, and a sixteenth, but no more than 1 GiB, on a CPU. There MLX's own is 32 MiB, and what does
  not fit costs a page fault for every 4 KiB of every large result. A container whose memory is less than
  the host's may want less.

  A process that drops tensors drops a few words of its own heap, so that its garbage collector sees no
  reason to run while MLX's memory fills. Where more than `config :emily, collect_above: bytes` (default: an
  eighth of the memory limit) is active, processes that build tensors are made to collect now and then:
  once for every quarter of that number built. `Emily.Native.deallocate/1` gives one tensor back at once.

  All numbers are bytes, and speak of the whole VM: streams share one allocator. `Emily.Stream.info/1` tells
  what the tensors of one stream take.
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

  What was dropped before, and is being freed in the background, is given back too. So is, on Linux with glibc, what its
  heap and that of MLX's nodes keep of memory that was freed. Waits for running evaluations on a CPU.
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
        bytes = Application.get_env(:emily, key) do
      set_limit(limit, bytes)
    end

    memory = Call.now(Nif.memory_limit())

    if is_nil(Application.get_env(:emily, :cache_limit)) do
      on_cpu = min(div(memory, 16), 1024 * 1024 * 1024)
      set_limit(:cache, if(:gpu in Nif.devices(), do: div(memory, 8), else: on_cpu))
    end

    collect_above = Application.get_env(:emily, :collect_above, div(memory, 8))
    Call.now(Nif.memory_collect_above(collect_above))
  end
end
