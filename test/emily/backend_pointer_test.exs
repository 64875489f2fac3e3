defmodule Emily.BackendPointerTest do
  use ExUnit.Case, async: true

  setup do
    Nx.default_backend({Emily.Backend, device: :cpu})
    :ok
  end

  describe "pointers" do
    # What is at the address, read by the system.
    defp memory(%Nx.Pointer{address: address, data_size: size}) do
      {:ok, memory} = :file.open(~c"/proc/self/mem", [:read, :raw, :binary])
      {:ok, bytes} = :file.pread(memory, address, size)
      :file.close(memory)
      bytes
    end

    test "point to the elements in order" do
      lazy = Nx.add(Nx.iota({2, 3}), 1)

      for tensor <- [lazy, Nx.transpose(lazy), Nx.reverse(lazy), lazy[[.., 1..2]], Nx.tensor(7.5)] do
        pointer = Nx.to_pointer(tensor)
        assert %Nx.Pointer{kind: :local, address: address, data_size: size} = pointer
        assert is_integer(address) and size == Nx.byte_size(tensor)
        if File.exists?("/proc/self/mem"), do: assert(memory(pointer) == Nx.to_binary(tensor))

        copy = Nx.from_pointer(Emily.Backend, pointer, tensor.type, tensor.shape)
        assert Nx.to_binary(copy) == Nx.to_binary(tensor)
      end
    end

    test "to the same elements are the same, without a copy" do
      tensor = Nx.add(Nx.iota({1000}, type: :f32), 1)
      assert Nx.to_pointer(tensor).address == Nx.to_pointer(tensor, mode: :local).address
    end

    test "keep the memory while their handle is in use" do
      tensor = Nx.add(Nx.iota({1_000_000}, type: :f32), 1)
      expected = Nx.to_binary(tensor)
      pointer = Nx.to_pointer(tensor)
      assert byte_size(pointer.handle) > 64
      Nx.backend_deallocate(tensor)
      Emily.Native.Nif.flush()

      # The same sizes again, which would take freed memory.
      for n <- 1..20, do: Nx.to_binary(Nx.multiply(Nx.iota({1_000_000}, type: :f32), n))
      copy = Nx.from_pointer(Emily.Backend, pointer, {:f, 32}, {1_000_000})
      assert Nx.to_binary(copy) == expected
      assert is_binary(pointer.handle)
    end

    test "a tensor from a pointer is a copy with names" do
      pointer = Nx.to_pointer(Nx.tensor([1.0, 2.0]))
      given = %{pointer | data_size: nil}
      backend = {Emily.Backend, device: :cpu}
      copy = Nx.from_pointer(backend, given, {:f, 32}, {1, 2}, names: [nil, :x])
      assert Nx.names(copy) == [nil, :x]
      assert Nx.to_pointer(copy).address != pointer.address
    end

    test "wrong ones are refused" do
      good = Nx.to_pointer(Nx.tensor([1.0, 2.0]))
      from = &Nx.from_pointer(Emily.Backend, &1, {:f, 32}, {2})
      nowhere = %Nx.Pointer{kind: :local, data_size: 8}

      for {pointer, text} <- [
            {%{nowhere | address: nil}, ~r/address/},
            {%{nowhere | address: 0}, ~r/address/},
            {%{nowhere | address: -8}, ~r/address/},
            {%{nowhere | address: 1234}, ~r/8 bytes of this process's memory, got 0x4d2/},
            {%{nowhere | address: 2 ** 64 - 4}, ~r/address/},
            {%{good | data_size: 4}, ~r/data_size of 8 bytes .* got: 4/},
            {%{good | kind: :ipc}, ~r/the mode :local, .* got: :ipc/},
            {good.address, ~r/expected an Nx.Pointer/}
          ] do
        assert_raise ArgumentError, text, fn -> from.(pointer) end
      end

      assert_raise ArgumentError, ~r/the mode :local, .* got: :ipc/, fn ->
        Nx.to_pointer(Nx.tensor([1]), mode: :ipc, permissions: 0o400)
      end

      assert_raise ArgumentError, ~r/permissions/, fn ->
        Nx.to_pointer(Nx.tensor([1]), permissions: 0o400)
      end

      assert_raise ArgumentError, ~r/wider type/, fn ->
        Nx.to_pointer(Nx.tensor([1], type: :u4))
      end

      assert_raise ArgumentError, ~r/wider type/, fn ->
        Nx.from_pointer(Emily.Backend, good, {:f8_e4m3fn, 8}, {8})
      end
    end
  end
end
