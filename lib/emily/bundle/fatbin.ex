defmodule Emily.Bundle.Fatbin do
  @moduledoc false
  # CUDA's libraries hold the same kernels for several kinds of cards. Those that a host does not have are
  # overwritten with zeros where they are, which compress to nothing: no address changes, and the driver
  # never looks at code for another card.
  #
  # The form is not documented by NVIDIA. It is, as seen in libmlx of CUDA 12 and 13 and as cuobjdump shows
  # it: a header (magic, u16 version, u16 its size, u64 size of what follows), then entries (u16 kind, u16
  # version, u32 size of the entry's header, u64 size of its code; the card at byte 28), one after the other.

  @magic <<0xBA55ED50::32-little>>
  @machine_code 2

  @doc "The library with the machine code for one card alone, such as 90."
  @spec keep(binary, pos_integer) :: binary
  def keep(library, arch) do
    fatbins =
      for {at, _} <- :binary.matches(library, @magic),
          <<_::binary-size(^at), _::32, 1::16-little, 16::16-little, size::64-little, _::binary>> <-
            [library],
          do: {at + 16, size}

    codes = Enum.flat_map(fatbins, fn {at, size} -> entries(library, at, at + size) end)

    other =
      for {at, size, kind, card} <- codes, {kind, card} != {@machine_code, arch}, do: {at, size}

    if length(other) == length(codes) do
      cards = for({_, _, @machine_code, card} <- codes, uniq: true, do: card) |> Enum.sort()

      raise ArgumentError,
            "no kernels for card #{arch}, there are some for #{inspect(cards, charlists: :as_lists)}"
    end

    blank(library, 0, other) |> IO.iodata_to_binary()
  end

  defp entries(_library, at, stop) when at >= stop, do: []

  defp entries(library, at, stop) do
    <<_::binary-size(^at), kind::16-little, _version::16, header::32-little, size::64-little,
      _::binary-size(12), card::32-little, _::binary>> = library

    [{at + header, size, kind, card} | entries(library, at + header + size, stop)]
  end

  defp blank(library, from, []), do: [binary_part(library, from, byte_size(library) - from)]

  defp blank(library, from, [{at, size} | rest]) do
    [
      binary_part(library, from, at - from),
      <<0::size(size * 8)>> | blank(library, at + size, rest)
    ]
  end
end
