defmodule Emily.Lowering.Narrow do
  @moduledoc false

  # Nx's types of less than a byte and of 8-bit floats, which MLX lacks. They are held in the next
  # wider type that has all of their values, one element each, and every result is brought back to a
  # value of the type: integers wrap, floats are rounded. So a tensor takes more memory than its
  # type says; on the way in and out its elements are packed as Nx packs them.

  import Bitwise, only: [<<<: 2, >>>: 2]

  alias Emily.Emitter

  @storage %{
    {:u, 2} => {:u, 8},
    {:u, 4} => {:u, 8},
    {:s, 2} => {:s, 8},
    {:s, 4} => {:s, 8},
    {:f, 8} => {:f, 16},
    {:f8_e4m3fn, 8} => {:f, 16}
  }

  defguard is_narrow(type) when is_map_key(@storage, type)

  @doc "The type in which MLX holds a type."
  def storage(type) when is_narrow(type), do: Map.fetch!(@storage, type)
  def storage(type), do: type

  @doc "Packed elements as those of the storage type."
  def unpack(bits, {:u, size}), do: for(<<x::size(size) <- bits>>, into: <<>>, do: <<x>>)

  def unpack(bits, {:s, size}),
    do: for(<<x::signed-size(size) <- bits>>, into: <<>>, do: <<x::signed>>)

  # The type has the upper byte of a half.
  def unpack(bits, {:f, 8}), do: for(<<x <- bits>>, into: <<>>, do: <<x <<< 8::16-native>>)

  def unpack(bits, {:f8_e4m3fn, 8}) do
    for <<x::binary-1 <- bits>>, into: <<>> do
      case Nx.Floating.load_f8_e4m3fn(x) do
        :nan -> Nx.Type.nan_binary({:f, 16})
        number -> <<number::float-native-16>>
      end
    end
  end

  @doc "Elements of the storage type, packed."
  def pack(bytes, {kind, size}) when kind in [:u, :s],
    do: for(<<x <- bytes>>, into: <<>>, do: <<x::size(size)>>)

  def pack(bytes, {:f, 8}), do: for(<<x::16-native <- bytes>>, into: <<>>, do: <<x >>> 8>>)

  def pack(bytes, {:f8_e4m3fn, 8}) do
    for <<half::binary-2 <- bytes>>, into: <<>> do
      case half do
        <<number::float-native-16>> -> Nx.Floating.dump_f8_e4m3fn(number)
        _infinite_ones_are_settled -> Nx.Floating.dump_f8_e4m3fn(:nan)
      end
    end
  end

  @doc "A result in the storage type as a value of its type; others as they are."
  def settle(e, handle, {:u, bits} = type) when is_narrow(type),
    do: Emitter.emit(e, :bitwise_and, [handle, Emitter.scalar(e, (1 <<< bits) - 1, {:u, 8})])

  # To the upper end of the byte and back, which drags the sign along.
  def settle(e, handle, {:s, bits} = type) when is_narrow(type) do
    shift = Emitter.scalar(e, 8 - bits, {:s, 8})
    Emitter.emit(e, :right_shift, [Emitter.emit(e, :left_shift, [handle, shift]), shift])
  end

  # The upper byte of a half, which is how Nx writes the type.
  def settle(e, handle, {:f, 8}) do
    bits = Emitter.emit(e, {:bitcast, %{dtype: {:u, 16}}}, [handle])
    kept = Emitter.emit(e, :bitwise_and, [bits, Emitter.scalar(e, 0xFF00, {:u, 16})])
    Emitter.emit(e, {:bitcast, %{dtype: {:f, 16}}}, [kept])
  end

  # Three bits behind the point of the mantissa, in steps of 2^-9 below 2^-6; the magnitude ends at
  # 448, where infinities go too.
  def settle(e, handle, {:f8_e4m3fn, 8}) do
    half = {:f, 16}

    limited =
      Emitter.emit(e, :clip, [
        handle,
        Emitter.scalar(e, -448.0, half),
        Emitter.scalar(e, 448.0, half)
      ])

    bits = Emitter.emit(e, {:bitcast, %{dtype: {:u, 16}}}, [limited])
    rounded = Emitter.emit(e, :add, [bits, Emitter.scalar(e, 0x40, {:u, 16})])
    kept = Emitter.emit(e, :bitwise_and, [rounded, Emitter.scalar(e, 0xFF80, {:u, 16})])
    normal = Emitter.emit(e, {:bitcast, %{dtype: half}}, [kept])

    steps = Emitter.emit(e, :multiply, [limited, Emitter.scalar(e, 512.0, half)])
    steps = Emitter.emit(e, {:round, %{decimals: 0}}, [steps])
    small = Emitter.emit(e, :divide, [steps, Emitter.scalar(e, 512.0, half)])

    below =
      Emitter.emit(e, :less, [Emitter.emit(e, :abs, [limited]), Emitter.scalar(e, 0.015625, half)])

    value = Emitter.emit(e, :where, [below, small, normal])
    Emitter.emit(e, :where, [Emitter.emit(e, :isnan, [handle]), handle, value])
  end

  def settle(_e, handle, _type), do: handle
end
