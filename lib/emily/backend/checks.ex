defmodule Emily.Backend.Checks do
  @moduledoc false

  # The checks of `config :emily, debug_bounds_check: true` and `debug_detect_nan_inf: true`. Both read
  # results back, so they are compiled in only where asked for.

  alias Emily.Native.Call

  @doc """
  Raises `ArgumentError` if an index of one of the index arrays lies outside its axis of `shape`.
  """
  def check_bounds!(op, shape, indices, axes, worker) do
    for {ref, axis} <- Enum.zip(indices, axes) do
      size = elem(shape, axis)
      count = ref |> Emily.shape() |> Enum.product()

      if count > 0 do
        least = extreme(worker, :min, ref)
        greatest = extreme(worker, :max, ref)

        cond do
          least < 0 ->
            raise ArgumentError, "#{op}: index #{least} on axis #{axis} is negative"

          greatest >= size ->
            raise ArgumentError,
                  "#{op}: index #{greatest} on axis #{axis} out of range (dim=#{size})"

          true ->
            :ok
        end
      end
    end

    :ok
  end

  @doc "Raises `ArgumentError` if a float tensor holds a NaN or an infinity."
  def check_nan_inf!(op, ref, worker) do
    case Emily.dtype(ref) do
      {kind, _} when kind in [:f, :bf, :c] ->
        finite =
          if kind == :c do
            # A complex number is finite where its magnitude is.
            Call.apply(worker, :isfinite, [Call.apply(worker, :abs, [ref])])
          else
            Call.apply(worker, :isfinite, [ref])
          end

        if reduce(worker, :all, finite) == <<0>>,
          do: raise(ArgumentError, "#{op}: produced NaN or Inf")

      _integer ->
        :ok
    end

    :ok
  end

  defp extreme(worker, op, ref) do
    {kind, bits} = Emily.dtype(ref)
    binary = reduce(worker, op, ref)

    case kind do
      :s -> with <<value::signed-native-size(bits)>> <- binary, do: value
      :u -> with <<value::unsigned-native-size(bits)>> <- binary, do: value
    end
  end

  defp reduce(worker, op, ref) do
    axes = Enum.to_list(0..(length(Emily.shape(ref)) - 1)//1)
    Call.to_binary(worker, Call.apply(worker, {op, %{axes: axes, keep_axes: false}}, [ref]))
  end
end
