defmodule Emily.Elements do
  @moduledoc false
  # Elements of tensors as Elixir numbers, without Nx. What is no number of Elixir's is `:nan`, `:inf` or
  # `:neg_inf`; a complex number is a pair.

  @doc "A tensor of a flat list; the shape is the list's length unless given."
  def tensor(values, dtype, shape \\ nil) do
    Emily.from_binary(encode(values, dtype), shape || [length(values)], dtype)
  end

  @doc "`{dtype, shape, flat list}` of a tensor."
  def read(worker, tensor) do
    dtype = Emily.dtype(tensor)
    {dtype, Emily.shape(tensor), decode(Emily.Native.to_binary(worker, tensor), dtype)}
  end

  def encode(values, dtype), do: for(value <- values, into: <<>>, do: one(value, dtype))

  def decode(binary, {:pred, 1}), do: for(<<x <- binary>>, do: x)
  def decode(binary, {:u, bits}), do: for(<<x::unsigned-native-size(bits) <- binary>>, do: x)
  def decode(binary, {:s, bits}), do: for(<<x::signed-native-size(bits) <- binary>>, do: x)

  def decode(binary, {:f, bits}) do
    for <<part::binary-size(div(bits, 8)) <- binary>>, do: float(part, bits)
  end

  def decode(binary, {:bf, 16}) do
    for <<x::16-native <- binary>>, do: float(<<x::16, 0::16>>, 32, :big)
  end

  def decode(binary, {:c, 64}) do
    for <<re::binary-4, im::binary-4 <- binary>>, do: {float(re, 32), float(im, 32)}
  end

  defp one(value, {:pred, 1}), do: <<value>>
  defp one(value, {kind, bits}) when kind in [:u, :s], do: <<value::native-size(bits)>>

  defp one(value, {:f, bits}) when is_number(value), do: <<value::float-native-size(bits)>>
  defp one(:nan, {:f, 32}), do: <<0x7FC00000::32-native>>
  defp one(:inf, {:f, 32}), do: <<0x7F800000::32-native>>
  defp one(:neg_inf, {:f, 32}), do: <<0xFF800000::32-native>>

  defp one(value, {:bf, 16}) do
    <<high::16, _low::16>> = <<value::float-32>>
    <<high::16-native>>
  end

  defp one({re, im}, {:c, 64}), do: <<re::float-32-native, im::float-32-native>>

  defp float(part, bits, order \\ System.endianness())
  defp float(part, bits, :little), do: float(reverse(part), bits, :big)

  defp float(part, bits, :big) do
    case part do
      <<number::float-size(^bits)>> -> number
      <<0::1, rest::bits>> -> if zero_fraction?(rest, bits), do: :inf, else: :nan
      <<1::1, rest::bits>> -> if zero_fraction?(rest, bits), do: :neg_inf, else: :nan
    end
  end

  defp zero_fraction?(rest, bits) do
    fraction = %{16 => 10, 32 => 23, 64 => 52}[bits]
    exponent = bits - 1 - fraction
    <<_::size(^exponent), significand::size(^fraction)>> = rest
    significand == 0
  end

  defp reverse(part), do: part |> :binary.bin_to_list() |> Enum.reverse() |> :binary.list_to_bin()
end
