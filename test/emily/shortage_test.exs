defmodule Emily.ShortageTest do
  # Fills the card, so that it runs alone. On a CPU what is larger than the memory limit is refused before
  # it is asked for.
  use ExUnit.Case, async: false

  alias Emily.{Native, Stream}

  test "what is larger than the memory limit is refused on a CPU, with both numbers" do
    before = Emily.Memory.set_limit(:memory, 500_000_000)
    on_exit(fn -> Emily.Memory.set_limit(:memory, before) end)
    w = Stream.new(:cpu).worker

    error = assert_raise ArgumentError, fn -> Native.zeros(w, [20_000, 20_000], {:f, 32}) end

    assert error.message =~
             "expected at most 500000000 bytes, the memory limit, got [20000, 20000]"
  end

  @tag :gpu
  @tag timeout: 120_000
  test "a full card is an error that names it, and all streams go on" do
    w = Stream.new(:gpu).worker
    other = Stream.new(:gpu).worker
    one = Emily.from_binary(<<1.0::float-32-native>>, [], {:f, 32})
    {_, total} = List.keyfind(Emily.Native.Nif.device_info(:gpu), "total_memory", 0)
    rows = div(total, 8 * 4 * 65_536)

    {kept, error} = fill(w, [rows, 65_536], one, [])
    assert length(kept) in 5..8
    assert %RuntimeError{message: message} = error

    assert message =~
             ~r/eval: out of memory: \d+ bytes were asked for, \d+ bytes are free on the gpu/

    assert Native.to_binary(other, Native.add(other, one, one)) == <<2.0::float-32-native>>
    Enum.each(kept, &Native.deallocate/1)
    again = Native.full(w, [rows, 65_536], one, {:f, 32})
    assert :ok = Native.eval(w, again)
    Native.deallocate(again)
    Emily.Memory.clear_cache()
  end

  defp fill(_w, _shape, _one, kept) when length(kept) == 9, do: {kept, nil}

  defp fill(w, shape, one, kept) do
    tensor = Native.full(w, shape, one, {:f, 32})
    Native.eval(w, tensor)
    fill(w, shape, one, [tensor | kept])
  rescue
    error in RuntimeError -> {kept, error}
  end
end
