defmodule Emily.Quantization.Unpack do
  @moduledoc false

  # A quantised weight as a dense one by operations of Nx: what MLX's kernels compute, for other backends.
  #
  # The elements of a row lie one behind the other in its bits, the least significant of a word first.

  import Bitwise
  import Emily.Fast.Operand, only: [wide: 1, widen: 2]

  @doc "The dense weight in a type."
  def dense(value, scales, biases, %{mode: mode, bits: bits, group_size: group_size}, type) do
    codes = codes(value, bits)

    grouped =
      codes.shape
      |> Tuple.to_list()
      |> List.replace_at(-1, [:auto, group_size])
      |> List.flatten()
      |> List.to_tuple()

    codes = Nx.reshape(codes, grouped)
    wide = wide(type)
    scales = scales |> scales(mode, wide) |> Nx.new_axis(-1)

    elements =
      case biases do
        [biases] ->
          Nx.add(
            Nx.multiply(Nx.as_type(codes, wide), scales),
            Nx.new_axis(widen(biases, wide), -1)
          )

        [] ->
          Nx.multiply(Nx.take(table(mode, wide), codes), scales)
      end

    elements |> Nx.flatten(axes: [-2, -1]) |> Nx.as_type(type)
  end

  ## The packed integers

  defp codes(value, bits) when rem(32, bits) == 0 do
    shifts = Nx.tensor(Enum.to_list(0..31//bits), type: :u32)

    value
    |> Nx.new_axis(-1)
    |> Nx.right_shift(shifts)
    |> Nx.bitwise_and((1 <<< bits) - 1)
    |> Nx.flatten(axes: [-2, -1])
  end

  # Three words hold whole elements of 3 and 6 bits, some of which begin in one word and end in the next.
  defp codes(value, bits) do
    words =
      value.shape
      |> Tuple.to_list()
      |> List.replace_at(-1, [:auto, 3])
      |> List.flatten()
      |> List.to_tuple()

    triple = Nx.reshape(value, words)
    starts = Enum.map(0..(div(96, bits) - 1), &(&1 * bits))
    take = fn indices -> Nx.take(triple, Nx.tensor(indices), axis: -1) end
    shifts = fn list -> Nx.tensor(list, type: :u32) end

    low =
      Nx.right_shift(
        take.(Enum.map(starts, &div(&1, 32))),
        shifts.(Enum.map(starts, &rem(&1, 32)))
      )

    # What is left of an element in the next word; elements inside one word are shifted out of the mask.
    high =
      Nx.left_shift(
        take.(Enum.map(starts, &min(div(&1, 32) + 1, 2))),
        shifts.(Enum.map(starts, &left_over(&1, bits)))
      )

    low |> Nx.bitwise_or(high) |> Nx.bitwise_and((1 <<< bits) - 1) |> Nx.flatten(axes: [-2, -1])
  end

  defp left_over(start, bits) do
    inside = 32 - rem(start, 32)
    if inside < bits, do: inside, else: bits
  end

  ## The small floats

  defp scales(scales, "affine", wide), do: widen(scales, wide)
  defp scales(scales, "nvfp4", wide), do: Nx.take(e4m3(wide), scales)

  # Powers of two. The last code is NaN in the specification, and infinity to MLX.
  defp scales(scales, _mx, wide) do
    powers = for code <- 0..254, do: :math.pow(2, code - 127)
    Nx.take(Nx.tensor(powers ++ [:infinity], type: wide), scales)
  end

  defp table("mxfp8", wide), do: e4m3(wide)

  defp table(_fp4, wide) do
    halves = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    Nx.tensor(halves ++ Enum.map(halves, &(-&1)), type: wide)
  end

  # A sign, four bits of exponent, three of mantissa. The greatest code is NaN in the specification, and a
  # number to MLX.
  defp e4m3(wide) do
    magnitudes =
      for code <- 0..127 do
        case {code >>> 3, code &&& 7} do
          {0, mantissa} -> mantissa / 512
          {exponent, mantissa} -> (1 + mantissa / 8) * :math.pow(2, exponent - 7)
        end
      end

    Nx.tensor(magnitudes ++ Enum.map(magnitudes, &(-&1)), type: wide)
  end
end
