defmodule Emily.Telemetry do
  @moduledoc """
  The telemetry events of Emily.

  Spans have `:start`, `:stop` and `:exception` events with the measurements of `:telemetry.span/3`
  (`monotonic_time`, `system_time`, `duration`, in native time units).

  | event | metadata |
  | --- | --- |
  | `[:emily, :eval, ...]` span of `Emily.eval/1` | none |
  | `[:emily, :async_eval, ...]` span of `Emily.async_eval/1` | none |
  | `[:emily, :to_binary, ...]` span of reading a tensor | `shape`, `dtype`; `:stop` adds `byte_size`, the bytes read |
  | `[:emily, :fallback, ...]` span of an operation that runs on `Nx.BinaryBackend` | `op`, `input_shapes`, `input_dtypes` |
  | `[:emily, :compiler, :compile, ...]` span of compiling a defn | `key`, the function; `:stop` adds `op_count` |
  | `[:emily, :compiler, :fallback]` of a defn that is evaluated operation by operation | `key`, `op`, `reason`; measurement `count`, 1 |
  | `[:emily, :block, :fallback]` when one of Nx's named blocks is computed by its definition, on MLX too | `struct`, the block's module, and `args_count`; no measurements |
  | `[:emily, :memory, :stats]` of `Emily.Memory.stats/0` | none; measurements `active`, `peak`, `cache` in bytes |

  `shape` is a list from `Emily.to_binary/1` and a tuple from Nx.

  ## Fallbacks

  `config :emily, fallback: mode` says what happens when an operation cannot run on MLX:

    * `:silent` (default) - it runs on `Nx.BinaryBackend`, and the event tells;
    * `:warn` - the same, with one log line for each operation and its input shapes;
    * `:raise` - RuntimeError.

  `config :emily, warn_on_fallback: true` means `:warn` where `:fallback` is not set.

  Without the `:telemetry` application no event is emitted.

  ## Metrics

  `metrics/0` describes the events for reporters of `Telemetry.Metrics`, such as Phoenix LiveDashboard.
  """

  require Logger

  # An optional dependency.
  @compile {:no_warn_undefined, Telemetry.Metrics}

  @dedup :emily_fallback_dedup

  @doc """
  The same as `Emily.Memory.stats/0`.
  """
  @spec memory_stats() :: Emily.Memory.stats()
  def memory_stats, do: Emily.Memory.stats()

  @doc """
  Definitions of `Telemetry.Metrics` for the events above, times in milliseconds and sizes in megabytes:

      def metrics, do: [summary("phoenix.endpoint.stop.duration") | Emily.Telemetry.metrics()]

  Memory is measured when something calls `Emily.Memory.stats/0`: let `:telemetry_poller` do so, with
  `{Emily.Memory, :stats, []}` among its measurements.

  Raises RuntimeError where the package `telemetry_metrics` is not installed.
  """
  @spec metrics() :: [struct()]
  def metrics do
    unless Code.ensure_loaded?(Telemetry.Metrics) do
      raise "Emily.Telemetry.metrics/0 needs the package telemetry_metrics among the dependencies"
    end

    [
      Telemetry.Metrics.summary("emily.eval.stop.duration",
        unit: {:native, :millisecond},
        description: "Time in Emily.eval/1"
      ),
      Telemetry.Metrics.summary("emily.async_eval.stop.duration",
        unit: {:native, :millisecond},
        description: "Time to queue work with Emily.async_eval/1"
      ),
      Telemetry.Metrics.summary("emily.to_binary.stop.duration",
        unit: {:native, :millisecond},
        description: "Time to compute and read tensors"
      ),
      Telemetry.Metrics.sum("emily.to_binary.stop.byte_size",
        unit: {:byte, :megabyte},
        measurement: fn _measurements, metadata -> metadata.byte_size end,
        description: "What was read of tensors"
      ),
      Telemetry.Metrics.counter("emily.fallback.stop.duration",
        tags: [:op],
        description: "Operations that ran on Nx.BinaryBackend"
      ),
      Telemetry.Metrics.counter("emily.block.fallback.count",
        tags: [:struct],
        description: "Blocks that were computed by their definitions"
      ),
      Telemetry.Metrics.summary("emily.compiler.compile.stop.duration",
        unit: {:native, :millisecond},
        description: "Time to compile functions"
      ),
      Telemetry.Metrics.counter("emily.compiler.fallback.count",
        description: "Functions that Emily.Compiler left to the evaluator"
      )
    ] ++
      for {kind, description} <- [
            active: "Memory of tensors",
            peak: "The most memory that tensors had",
            cache: "Memory that MLX keeps for later"
          ] do
        Telemetry.Metrics.last_value("emily.memory.stats.#{kind}",
          unit: {:byte, :megabyte},
          description: description
        )
      end
  end

  @doc false
  def execute(event, measurements, metadata) do
    if available?(), do: :telemetry.execute(event, measurements, metadata)
    :ok
  end

  @doc false
  # `fun` returns `{result, metadata of the stop event}`.
  def span(event, metadata, fun) do
    if available?() do
      :telemetry.span(event, metadata, fun)
    else
      {result, _metadata} = fun.()
      result
    end
  end

  @doc false
  # Runs an operation that MLX cannot, as the configuration says. Inputs are Nx tensors.
  def fallback(op, inputs, fun) do
    shapes = Enum.map(inputs, & &1.shape)
    dtypes = Enum.map(inputs, & &1.type)

    case fallback_mode() do
      :silent -> :ok
      :warn -> warn_once(op, shapes, dtypes)
      :raise -> raise RuntimeError, text(op, shapes, dtypes)
    end

    metadata = %{op: op, input_shapes: shapes, input_dtypes: dtypes}
    span([:emily, :fallback], metadata, fn -> {fun.(), metadata} end)
  end

  @doc false
  # A defn that no program can be made of.
  def compiler_fallback(key, %{op: op, reason: reason}) do
    execute([:emily, :compiler, :fallback], %{count: 1}, %{key: key, op: op, reason: reason})

    if :ets.insert_new(@dedup, {{:compiler, op}}) do
      Logger.warning(
        "emily: #{inspect(key)} is evaluated operation by operation, #{op}: #{reason}"
      )
    end
  end

  @doc false
  # Fusing that was asked for and that MLX cannot do.
  def warn_unfused do
    if :ets.insert_new(@dedup, {:unfused}) do
      Logger.warning(
        "emily: fuse: true fuses nothing, since MLX finds no C++ compiler (g++ on the PATH)"
      )
    end
  end

  @doc false
  # A block that is computed by its own definition, of operations that are on MLX.
  def block_fallback(%module{}, args) do
    execute([:emily, :block, :fallback], %{}, %{struct: module, args_count: length(args)})
  end

  @doc false
  def fallback_mode do
    case Application.fetch_env(:emily, :fallback) do
      {:ok, mode} when mode in [:silent, :warn, :raise] ->
        mode

      {:ok, other} ->
        raise ArgumentError,
              "invalid :emily, :fallback config: expected :silent, :warn or :raise, " <>
                "got: #{inspect(other)}"

      :error ->
        if Application.get_env(:emily, :warn_on_fallback, false), do: :warn, else: :silent
    end
  end

  @doc false
  def init_dedup_table do
    if :ets.whereis(@dedup) == :undefined do
      :ets.new(@dedup, [:named_table, :public, :set, read_concurrency: true])
    end

    :ok
  end

  @doc false
  def reset_dedup do
    :ets.delete_all_objects(@dedup)
    :ok
  end

  defp warn_once(op, shapes, dtypes) do
    if :ets.insert_new(@dedup, {{op, shapes}}), do: Logger.warning(text(op, shapes, dtypes))
  end

  defp text(op, shapes, dtypes) do
    "emily: #{op} fell back to Nx.BinaryBackend, shapes=#{inspect(shapes)} dtypes=#{inspect(dtypes)}"
  end

  # Asked once: in a VM without the application the look-up would search the code path each time.
  defp available? do
    case :persistent_term.get({__MODULE__, :available}, nil) do
      nil ->
        available = Code.ensure_loaded?(:telemetry)
        :persistent_term.put({__MODULE__, :available}, available)
        available

      available ->
        available
    end
  end
end
