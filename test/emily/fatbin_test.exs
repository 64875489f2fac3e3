defmodule Emily.FatbinTest do
  use ExUnit.Case, async: true

  alias Emily.Bundle.Fatbin

  defp entry(kind, card, code) do
    <<kind::16-little, 0x101::16-little, 64::32-little, byte_size(code)::64-little, 0::96,
      card::32-little, 0::256>> <> code
  end

  defp fatbin(entries) do
    body = Enum.join(entries)
    <<0xBA55ED50::32-little, 1::16-little, 16::16-little, byte_size(body)::64-little>> <> body
  end

  test "only the code for the card stays, and nothing moves" do
    make = fn old, new, ptx ->
      one = fatbin([entry(2, 80, old), entry(2, 90, new), entry(1, 90, ptx)])
      "before" <> one <> "between" <> one <> "after"
    end

    library = make.("eighty", "ninety", "text")
    assert Fatbin.keep(library, 90) == make.(<<0::48>>, "ninety", <<0::32>>)
  end

  test "a card without kernels is refused, and those that have some are named" do
    library = fatbin([entry(2, 80, "x"), entry(2, 90, "y"), entry(1, 120, "z")])
    assert_raise ArgumentError, ~r/card 75, .* \[80, 90\]/, fn -> Fatbin.keep(library, 75) end
  end
end
