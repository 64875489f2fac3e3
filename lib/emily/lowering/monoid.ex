defmodule Emily.Lowering.Monoid do
  @moduledoc false

  # Recognises the functions given to `Nx.reduce` and `Nx.window_reduce` that are one known
  # operation of their two arguments. The function is run once on two tensors of this backend, which
  # knows those operations only and remembers which one was asked for; anything else that the
  # function does with them raises, and it is taken for a function that cannot be recognised. Unlike an
  # expression, such tensors pass through functions that `Nx.Defn.Evaluator` made, too.

  alias Nx.Tensor, as: T

  defstruct [:node]

  @operations [:add, :multiply, :max, :min, :logical_and, :logical_or]

  @doc """
  The operation that a function of an element and an accumulator is, and the type of its result, or
  `nil`.
  """
  def recognise(fun, element_type, acc_type) do
    element = %T{shape: {}, names: [], type: element_type, data: %__MODULE__{node: :element}}
    acc = %T{shape: {}, names: [], type: acc_type, data: %__MODULE__{node: :acc}}

    case fun.(element, acc) do
      %T{shape: {}, type: type, data: %__MODULE__{node: {op, nodes}}} ->
        if Enum.sort(nodes) == [:acc, :element], do: {op, type}

      _other ->
        nil
    end
  rescue
    _ -> nil
  catch
    _, _ -> nil
  end

  for name <- @operations do
    def unquote(name)(out, %T{data: %__MODULE__{node: a}}, %T{data: %__MODULE__{node: b}}),
      do: %{out | data: %__MODULE__{node: {unquote(name), [a, b]}}}
  end
end
