defmodule Emily.Lowering.Window do
  @moduledoc false

  # Reductions of sliding windows; padding counts as the reduction's neutral element.

  import Emily.Emitter, only: [emit: 3]
  import Emily.Lowering.Type, only: [astype: 3, is_small_float: 1, operand: 3]

  alias Emily.Emitter
  alias Emily.Lowering.{Monoid, Shape}

  def window_sum(e, out, tensor, window, opts),
    do: accumulate(e, :window_sum, 0, out, tensor, window, opts)

  def window_product(e, out, tensor, window, opts),
    do: accumulate(e, :window_product, 1, out, tensor, window, opts)

  defp accumulate(e, op, neutral, %{type: type}, tensor, window, opts)
       when is_small_float(type) do
    wide = {:f, 32}
    start = Emitter.scalar(e, neutral, wide)
    astype(e, run(e, op, operand(e, tensor, wide), tensor.shape, start, window, opts), type)
  end

  defp accumulate(e, op, neutral, %{type: type}, tensor, window, opts) do
    start = Emitter.scalar(e, neutral, type)
    result = run(e, op, operand(e, tensor, type), tensor.shape, start, window, opts)
    if elem(type, 1) < 32, do: astype(e, result, type), else: result
  end

  def window_max(e, %{type: type}, tensor, window, opts) do
    start = Emitter.constant(e, Nx.Type.min_binary(type), [], type)
    run(e, :window_max, operand(e, tensor, type), tensor.shape, start, window, opts)
  end

  def window_min(e, %{type: type}, tensor, window, opts) do
    start = Emitter.constant(e, Nx.Type.max_binary(type), [], type)
    run(e, :window_min, operand(e, tensor, type), tensor.shape, start, window, opts)
  end

  @monoids %{add: :window_sum, multiply: :window_product, max: :window_max, min: :window_min}

  def window_reduce(e, %{type: type}, tensor, acc, window, opts, fun) do
    case Monoid.recognise(fun, tensor.type, acc.type) do
      {op, ^type} when is_map_key(@monoids, op) ->
        start = operand(e, acc, type)
        handle = operand(e, tensor, type)
        run(e, Map.fetch!(@monoids, op), handle, tensor.shape, start, window, opts)

      _ ->
        :default
    end
  end

  @doc "A window reduction whose start and padding is a handle."
  def run(e, op, handle, shape, start, window, opts) do
    {handle, padding} = crop(e, handle, shape, opts[:padding])
    {low, high} = Enum.unzip(padding)

    attrs = %{
      window: Tuple.to_list(window),
      strides: opts[:strides],
      low: low,
      high: high,
      dilations: opts[:window_dilations] || Enum.map(low, fn _ -> 1 end)
    }

    emit(e, {op, attrs}, [handle, start])
  end

  # Padding below zero takes elements away before the windows see them.
  defp crop(e, handle, shape, padding) do
    if Enum.any?(padding, fn {low, high} -> low < 0 or high < 0 end) do
      ranges =
        Enum.zip_with(Tuple.to_list(shape), padding, fn size, {low, high} ->
          {max(-low, 0), size - max(-high, 0), 1}
        end)

      rest = Enum.map(padding, fn {low, high} -> {max(low, 0), max(high, 0)} end)
      {Shape.slice_to(e, handle, shape, ranges), rest}
    else
      {handle, padding}
    end
  end

  def window_scatter_max(e, out, tensor, source, init, window, opts),
    do: scatter(e, :window_scatter_max, out, tensor, source, init, window, opts)

  def window_scatter_min(e, out, tensor, source, init, window, opts),
    do: scatter(e, :window_scatter_min, out, tensor, source, init, window, opts)

  defp scatter(e, op, %{type: type}, tensor, source, init, window, opts) do
    {low, high} = Enum.unzip(opts[:padding])
    attrs = %{window: Tuple.to_list(window), strides: opts[:strides], low: low, high: high}

    # The tensor is compared in its own type, which need not be the result's.
    emit(e, {op, attrs}, [
      Emitter.input(e, tensor),
      operand(e, source, type),
      operand(e, init, type)
    ])
  end
end
