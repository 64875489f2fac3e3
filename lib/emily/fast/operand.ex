defmodule Emily.Fast.Operand do
  @moduledoc false

  # What the functions of Emily.Fast and Emily.Quantization ask of their tensors and options, and what
  # their blocks have in common.

  import Emily.Lowering.Type, only: [is_small_float: 1]

  alias Emily.Emitter
  alias Emily.Lowering.Type
  alias Nx.Tensor, as: T

  @doc "A tensor of a real float type."
  def float!(tensor, op, name) do
    case Nx.to_tensor(tensor) do
      %T{type: {kind, _}} = tensor when kind in [:f, :bf, :f8_e4m3fn] ->
        tensor

      %T{type: type} ->
        raise ArgumentError,
              "#{op}: expected #{name} of a real float type, got: #{inspect(type)}"
    end
  end

  @doc "A tensor of an integer type."
  def integer!(tensor, op, name) do
    case Nx.to_tensor(tensor) do
      %T{type: {kind, _}} = tensor when kind in [:s, :u] ->
        tensor

      %T{type: type} ->
        raise ArgumentError, "#{op}: expected #{name} of an integer type, got: #{inspect(type)}"
    end
  end

  def shape!(%T{shape: shape} = tensor, shape, _op, _name), do: tensor

  def shape!(%T{shape: got}, expected, op, name) do
    raise ArgumentError,
          "#{op}: expected #{name} of shape #{inspect(expected)}, got: #{inspect(got)}"
  end

  def rank_at_least!(%T{shape: shape}, least, op, name) do
    if tuple_size(shape) < least do
      raise ArgumentError,
            "#{op}: expected #{name} of rank #{least} or more, got shape: #{inspect(shape)}"
    end
  end

  @doc "A number as a float."
  def number!(number, _op, _name) when is_number(number), do: number / 1

  def number!(other, op, name) do
    raise ArgumentError, "#{op}: expected #{inspect(name)} to be a number, got: #{inspect(other)}"
  end

  def boolean!(value, _op, _name) when is_boolean(value), do: value

  def boolean!(other, op, name) do
    raise ArgumentError,
          "#{op}: expected #{inspect(name)} to be a boolean, got: #{inspect(other)}"
  end

  @doc "The type in which a block's default computes."
  defdelegate wide(type), to: Type

  @doc """
  A cast whose gradient has the type of the tensor: Nx's has that of the result, in which an optimizer's
  next parameters would be too.
  """
  def widen(%T{type: type} = tensor, type), do: tensor

  def widen(%T{type: type, data: %Nx.Defn.Expr{}} = tensor, wide) do
    tensor
    |> Nx.as_type(wide)
    |> Nx.Defn.Kernel.custom_grad([tensor], &[Nx.as_type(&1, type)])
  end

  def widen(tensor, wide), do: Nx.as_type(tensor, wide)

  @doc "A number in a type: a bare one is rounded to f32 outside of `defn`."
  def scalar(number, type), do: Nx.tensor(number, type: type)

  @doc "Without its names, which a block's output must not get from one path and not from another."
  def unnamed(%T{names: names, shape: shape} = tensor) do
    if Enum.all?(names, &is_nil/1),
      do: tensor,
      else: Nx.reshape(tensor, shape, names: List.duplicate(nil, tuple_size(shape)))
  end

  @doc """
  Runs a block on tensors, whose output has a shape and type and the names of the first tensor. `default`
  takes the list of tensors. Operations of Nx vectorize, blocks do not.
  """
  def block(struct, [%T{names: names} | _] = tensors, {shape, type}, default) do
    tensors = tensors |> Enum.map(&unnamed/1) |> traced()

    result =
      if Enum.any?(tensors, &(&1.vectorized_axes != [])),
        do: default.(tensors),
        else: Nx.block(struct, tensors, Nx.template(shape, type), as_block(tensors, default))

    if length(names) == tuple_size(shape), do: Nx.rename(result, names), else: result
  end

  # Nx 0.13.1 takes no captured tensor beside those that are traced.
  defp traced(tensors) do
    if Enum.any?(tensors, &is_struct(&1.data, Nx.Defn.Expr)),
      do: Enum.map(tensors, &Nx.Defn.Expr.tensor/1),
      else: tensors
  end

  # Nx.block/4 wants a function that takes the struct and each tensor.
  for count <- 1..10 do
    arguments = Macro.generate_arguments(count, __MODULE__)

    defp as_block(unquote(List.duplicate(quote(do: _), count)), default),
      do: fn _struct, unquote_splicing(arguments) -> default.(unquote(arguments)) end
  end

  @doc "How many tensors a block may take."
  def most_tensors, do: 10

  @doc """
  The type in which MLX's kernel is to compute a result of a type, or nil where the kernel would lose
  digits: half types slow MLX down on the CPU, and its kernels hold their numbers in f32.
  """
  def kernel_type(e, types) do
    type = Enum.reduce(types, &Nx.Type.merge/2)

    cond do
      type == {:f, 64} -> nil
      is_small_float(type) and Emitter.device(e) == :cpu -> {:f, 32}
      type in [{:f, 16}, {:bf, 16}, {:f, 32}] -> type
      true -> {:f, 32}
    end
  end
end
