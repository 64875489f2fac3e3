defmodule Emily.Telemetry do
  @moduledoc """
  The telemetry events of Emily.

  Spans have `:start`, `:stop` and `:exception` events with the measurements of `:telemetry.span/3`
  (`monotonic_time`, `system_time`, `duration`, in native time units).

  | event | metadata |
  | --- | --- |
  | `[:emily, :eval, ...]` span of `Emily.eval/1` | none |
  | `[:emily, :to_binary, ...]` span of reading a tensor | `shape`, `dtype`; `:stop` adds `byte_size`, the bytes read |
  | `[:emily, :fallback, ...]` span of an operation that runs on `Nx.BinaryBackend` | `op`, `input_shapes`, `input_dtypes` |
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
  """

  require Logger

  @dedup :emily_fallback_dedup

  @doc """
  The same as `Emily.Memory.stats/0`.
  """
  @spec memory_stats() :: Emily.Memory.stats()
  def memory_stats, do: Emily.Memory.stats()

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
