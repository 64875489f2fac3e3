defmodule Emily.Lowering.Type do
  @moduledoc false

  # Nx types in MLX: which there are, and how a tensor gets from one to another. MLX's boolean,
  # `{:pred, 1}`, is no Nx type; it appears between a comparison and the cast of its result.

  import Emily.Emitter, only: [emit: 3, scalar: 3]

  import Emily.Lowering.Narrow, only: [is_narrow: 1]

  alias Emily.Emitter
  alias Emily.Lowering.Narrow
  alias Nx.Tensor, as: T

  require Nx.Shared

  @everywhere [
    u: 8,
    u: 16,
    u: 32,
    u: 64,
    s: 8,
    s: 16,
    s: 32,
    s: 64,
    f: 16,
    f: 32,
    bf: 16,
    c: 64
  ]

  defguardp is_half(type) when type in [{:f, 16}, {:bf, 16}]

  defguard is_small_float(type)
           when type in [{:f, 16}, {:bf, 16}, {:f, 8}, {:f8_e4m3fn, 8}]

  defguard is_integer_type(type) when elem(type, 0) in [:s, :u]

  @doc "Returns the type, or raises `ArgumentError` for one that MLX lacks on the emitter's device."
  def check!(e, type)

  for type <- @everywhere do
    def check!(_e, unquote(type)), do: unquote(type)
  end

  def check!(_e, type) when is_narrow(type), do: type

  def check!(e, {:f, 64} = type) do
    if Emitter.device(e) == :gpu do
      raise ArgumentError,
            "MLX does not support {:f, 64} on a GPU: use {:f, 32}, or compute on a CPU stream " <>
              "(Emily.Stream.new(:cpu), or the backend {Emily.Backend, device: :cpu})"
    end

    type
  end

  def check!(_e, type) do
    raise ArgumentError,
          "unsupported dtype #{inspect(type)}, expected one of u2 to u64, s2 to s64, f8, " <>
            "f8_e4m3fn, f16, bf16, f32, c64, and f64 on a CPU stream"
  end

  @doc "The bytes of one element, as Nx itself writes them."
  def number_to_binary(number, {:f, size} = type) when is_float(number) and size in [16, 32] do
    # Erlang refuses to write a float that the type cannot hold.
    largest = if size == 16, do: 65_504.0, else: 3.4028234663852886e38

    cond do
      number > largest -> Nx.Type.infinity_binary(type)
      number < -largest -> Nx.Type.neg_infinity_binary(type)
      true -> <<number::float-native-size(size)>>
    end
  end

  def number_to_binary(number, type) do
    Nx.Shared.match_types([type], do: <<write!(number, 0)>>)
  end

  @doc "A tensor argument's handle in a type."
  def operand(e, %T{type: type} = tensor, type), do: Emitter.input(e, tensor)
  def operand(e, %T{type: from} = tensor, to), do: cast(e, Emitter.input(e, tensor), from, to)

  @doc """
  Casts as `Nx.as_type/2` does: floats are truncated to integers, NaN becomes 0 and infinities the
  type's limits; complex numbers lose their imaginary part; integers wrap.
  """
  def cast(_e, handle, type, type), do: handle

  def cast(e, handle, from, to) do
    check!(e, to)
    Narrow.settle(e, convert(e, handle, Narrow.storage(from), to), to)
  end

  defp convert(e, handle, {:c, _}, {:c, _} = to), do: astype(e, handle, to)

  defp convert(e, handle, {:c, _}, to),
    do: cast(e, emit(e, :real, [handle]), {:f, 32}, to)

  defp convert(e, handle, from, to) when is_half(from) and is_integer_type(to),
    do: convert(e, astype(e, handle, {:f, 32}), {:f, 32}, to)

  # MLX's cast as Emily's core has it saturates and makes 0 of NaN, which is Nx's result. Finite
  # numbers beyond a smaller or an unsigned type wrap, as far as s32 and s64 hold them.
  defp convert(e, handle, {:f, _}, {:s, bits} = to) when bits in [32, 64],
    do: astype(e, handle, to)

  # The limits of s32 and s64 end in the bits of an unsigned type's limits.
  defp convert(e, handle, {:f, _}, {:u, 32} = to), do: through(e, handle, {:s, 64}, to)

  defp convert(e, handle, {:f, _}, {:u, bits} = to) when bits < 32,
    do: through(e, handle, {:s, 32}, to)

  defp convert(e, handle, {:f, _} = from, {:u, 64} = to) do
    negative = emit(e, :less, [handle, scalar(e, 0, from)])
    below = emit(e, :less, [handle, scalar(e, -9_223_372_036_854_775_808.0, from)])
    wrapped = through(e, handle, {:s, 64}, to)
    value = emit(e, :where, [negative, wrapped, astype(e, handle, to)])
    emit(e, :where, [below, scalar(e, 0, to), value])
  end

  defp convert(e, handle, {:f, _} = from, {:s, _} = to) do
    value = through(e, handle, {:s, 32}, to)
    above = emit(e, :equal, [handle, scalar(e, :infinity, from)])
    below = emit(e, :equal, [handle, scalar(e, :neg_infinity, from)])
    value = emit(e, :where, [above, limit(e, :max, to), value])
    emit(e, :where, [below, limit(e, :min, to), value])
  end

  defp convert(e, handle, _from, to), do: astype(e, handle, to)

  defp through(e, handle, wide, to), do: astype(e, astype(e, handle, wide), to)

  @doc "The scalar with a type's least or greatest finite number."
  def limit(e, :min, type), do: Emitter.constant(e, Nx.Type.min_finite_binary(type), [], type)
  def limit(e, :max, type), do: Emitter.constant(e, Nx.Type.max_finite_binary(type), [], type)

  @doc "MLX's own conversion, to the type that holds a type."
  def astype(e, handle, type),
    do: emit(e, {:astype, %{dtype: Narrow.storage(type)}}, [handle])

  @doc "A comparison's result as an Nx type."
  def from_pred(e, handle, type), do: astype(e, handle, type)

  @doc "The type in which to accumulate: MLX accumulates the small floats in themselves."
  def wide(type) when is_small_float(type), do: {:f, 32}
  def wide(type), do: type
end
