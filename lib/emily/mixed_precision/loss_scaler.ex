defmodule Emily.MixedPrecision.LossScaler do
  @moduledoc """
  A scale for losses that is as great as the gradients bear.

  After a step that overflowed it is multiplied by `:backoff_factor`, but does not fall below `:min_scale`. After
  `:growth_interval` steps in a row that did not, which `:counter` counts, it is multiplied by
  `:growth_factor`. See `Emily.MixedPrecision.update/2`.
  """

  defstruct scale: 65_536.0,
            growth_factor: 2.0,
            backoff_factor: 0.5,
            growth_interval: 2000,
            min_scale: 1.0,
            counter: 0

  @type t :: %__MODULE__{
          scale: float(),
          growth_factor: float(),
          backoff_factor: float(),
          growth_interval: pos_integer(),
          min_scale: float(),
          counter: non_neg_integer()
        }

  @doc """
  A scaler.

  ## Options

    * `:scale` - the first scale, `65536.0`
    * `:growth_factor` - `2.0`
    * `:backoff_factor` - `0.5`
    * `:growth_interval` - `2000`
    * `:min_scale` - `1.0`

  Raises ArgumentError for other options, and for values that are no positive numbers.
  """
  @spec new(keyword()) :: t()
  def new(opts \\ []) do
    defaults = %__MODULE__{} |> Map.from_struct() |> Map.delete(:counter) |> Map.to_list()
    opts = Keyword.validate!(opts, defaults)

    for {name, value} <- opts do
      unless is_number(value) and value > 0 and (name != :growth_interval or is_integer(value)) do
        kind = if name == :growth_interval, do: "a positive integer", else: "a positive number"
        raise ArgumentError, "expected #{inspect(name)} to be #{kind}, got: #{inspect(value)}"
      end
    end

    struct!(__MODULE__, opts)
  end
end
