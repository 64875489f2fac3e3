defmodule Emily.Lowering.Reduce do
  @moduledoc false

  # Reductions, along axes or of everything, and running ones.

  import Emily.Emitter, only: [emit: 3, scalar: 3]

  import Emily.Lowering.Type,
    only: [astype: 3, from_pred: 3, is_small_float: 1, is_integer_type: 1, operand: 3, wide: 1]

  alias Emily.Emitter
  alias Emily.Lowering.{Monoid, Shape}

  ## Along axes

  # MLX adds the half types in themselves: 4096 ones in bf16 are 256.
  for {name, op} <- [sum: :sum, product: :prod] do
    def unquote(name)(e, %{type: type}, tensor, opts) when is_small_float(type) do
      wide = wide(type)
      total = emit(e, {unquote(op), axes(tensor, opts)}, [operand(e, tensor, wide)])
      astype(e, total, type)
    end

    # MLX widens the small integers by itself.
    def unquote(name)(e, %{type: {_, bits} = type}, tensor, opts) when bits < 32 do
      total = emit(e, {unquote(op), axes(tensor, opts)}, [operand(e, tensor, type)])
      astype(e, total, type)
    end

    def unquote(name)(e, %{type: type}, tensor, opts),
      do: emit(e, {unquote(op), axes(tensor, opts)}, [operand(e, tensor, type)])
  end

  for {name, op} <- [reduce_max: :max, reduce_min: :min] do
    def unquote(name)(e, %{type: type}, tensor, opts),
      do: emit(e, {unquote(op), axes(tensor, opts)}, [operand(e, tensor, type)])
  end

  for name <- [:all, :any] do
    def unquote(name)(e, out, tensor, opts) do
      found = emit(e, {unquote(name), axes(tensor, opts)}, [Emitter.input(e, tensor)])
      from_pred(e, found, out.type)
    end
  end

  defp axes(tensor, opts) do
    axes = opts[:axes] || Enum.to_list(0..(tuple_size(tensor.shape) - 1)//1)
    %{axes: axes, keep_axes: opts[:keep_axes] || false}
  end

  ## By a function

  # The reduction of the elements, and the op that brings in the accumulator.
  @monoids %{
    add: {:sum, :add},
    multiply: {:product, :multiply},
    max: {:reduce_max, :maximum},
    min: {:reduce_min, :minimum},
    logical_and: {:all, :logical_and},
    logical_or: {:any, :logical_or}
  }

  def reduce(e, %{type: type} = out, tensor, acc, opts, fun) do
    case Monoid.recognise(fun, tensor.type, acc.type) do
      {op, ^type} ->
        {reduction, combine} = Map.fetch!(@monoids, op)
        reduced = apply(__MODULE__, reduction, [e, out, tensor, opts])
        start = operand(e, acc, if(op in [:logical_and, :logical_or], do: acc.type, else: type))
        combined = emit(e, combine, [reduced, start])
        if op in [:logical_and, :logical_or], do: from_pred(e, combined, type), else: combined

      _ ->
        :default
    end
  end

  ## Position of an extreme

  def argmax(e, out, tensor, opts), do: position(e, true, out, tensor, opts)
  def argmin(e, out, tensor, opts), do: position(e, false, out, tensor, opts)

  # Nx wants the last NaN above all.
  defp position(e, greatest, %{shape: to} = out, %{shape: from} = tensor, opts) do
    {handle, axis, keep} =
      case opts[:axis] do
        nil ->
          {Shape.reshape_to(e, Emitter.input(e, tensor), from, {Tuple.product(from)}), 0, false}

        axis ->
          {Emitter.input(e, tensor), axis, opts[:keep_axis] || false}
      end

    attrs = %{
      axis: axis,
      keep_axis: keep,
      greatest: greatest,
      last: opts[:tie_break] == :high,
      dtype: out.type
    }

    found = emit(e, {:arg_extreme, attrs}, [handle])
    if opts[:axis] == nil, do: Shape.reshape_to(e, found, {}, to), else: found
  end

  ## Running

  for {name, op} <- [
        cumulative_sum: :cumsum,
        cumulative_product: :cumprod,
        cumulative_max: :cummax,
        cumulative_min: :cummin
      ] do
    def unquote(name)(e, %{type: type}, tensor, axis, reverse) do
      attrs = %{axis: axis, reverse: reverse, inclusive: true}
      emit(e, {unquote(op), attrs}, [operand(e, tensor, type)])
    end
  end

  ## Comparison of whole tensors

  @doc "Nx's definition of `all_close`: equal infinities are close, NaNs where asked."
  def all_close(e, out, a, b, %{rtol: rtol, atol: atol, equal_nan: equal_nan}) do
    integers = is_integer_type(a.type) and is_integer_type(b.type)
    type = Nx.Type.merge(a.type, b.type)
    {x, y} = {operand(e, a, type), operand(e, b, type)}

    # The magnitude of the least integer has no room in its own type.
    real = if integers, do: {:f, 32}, else: Nx.Type.to_real(type)
    magnitude = if integers, do: emit(e, :abs, [astype(e, y, real)]), else: emit(e, :abs, [y])

    distance = emit(e, :abs, [emit(e, :subtract, [x, y])])
    distance = if integers, do: astype(e, distance, real), else: distance
    scaled = emit(e, :multiply, [scalar(e, rtol, real), magnitude])
    bound = emit(e, :add, [scalar(e, atol, real), scaled])
    close = emit(e, :less_equal, [distance, bound])

    close =
      if integers do
        close
      else
        infinite = emit(e, :logical_or, [emit(e, :isinf, [x]), emit(e, :isinf, [y])])
        emit(e, :where, [infinite, emit(e, :equal, [x, y]), close])
      end

    close =
      if equal_nan and not integers do
        nans = emit(e, :logical_and, [emit(e, :isnan, [x]), emit(e, :isnan, [y])])
        emit(e, :logical_or, [nans, close])
      else
        close
      end

    axes = Enum.to_list(0..(max(tuple_size(a.shape), tuple_size(b.shape)) - 1)//1)
    from_pred(e, emit(e, {:all, %{axes: axes, keep_axes: false}}, [close]), out.type)
  end
end
