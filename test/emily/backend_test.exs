defmodule Emily.BackendTest do
  use ExUnit.Case, async: true

  import Emily.NxTensors

  setup do
    Nx.default_backend(Emily.Backend)
    :ok
  end

  defp binary(number, opts \\ []), do: Nx.tensor(number, [backend: Nx.BinaryBackend] ++ opts)

  # A backend that owns its data: reading it is allowed, taking it away is not.
  defmodule Owned do
    defstruct [:bytes]

    def to_binary(%{data: %{bytes: bytes}, type: {_, bits}}, limit),
      do: binary_part(bytes, 0, min(byte_size(bytes), div(limit * bits, 8)))

    def backend_transfer(_tensor, _backend, _opts), do: raise("transferred")
    def backend_copy(_tensor, _backend, _opts), do: raise("copied")
    def backend_deallocate(_tensor), do: raise("deallocated")
  end

  # An emitter of a GPU's, for what is refused before anything is emitted.
  defmodule Gpu do
    defstruct []
    def device(%Gpu{}), do: :gpu
  end

  defp owned(tensor), do: %{tensor | data: %Owned{bytes: Nx.to_binary(tensor)}}

  test "every callback of Nx.Backend is there" do
    for {name, arity} <- Nx.Backend.behaviour_info(:callbacks) do
      assert function_exported?(Emily.Backend, name, arity), "#{name}/#{arity}"
    end
  end

  describe "init/1" do
    test "takes a device" do
      assert Emily.Backend.init([]) == [device: :gpu]
      assert Emily.Backend.init(device: :cpu) == [device: :cpu]
    end

    test "refuses what it does not know" do
      assert_raise ArgumentError, ~r/:device to be :cpu or :gpu/, fn ->
        Nx.default_backend({Emily.Backend, device: :tpu})
      end

      assert_raise ArgumentError, ~r/unknown keys \[:devise\]/, fn ->
        Emily.Backend.init(devise: :cpu)
      end
    end
  end

  describe "data" do
    test "comes in as binary, iodata and bitstring" do
      out = Nx.template({2}, {:u, 8})

      for bytes <- [<<1, 2>>, [<<1>>, [<<2>>]], <<1::8, 2::8>>] do
        assert Nx.to_flat_list(Emily.Backend.from_binary(out, bytes, [])) == [1, 2]
      end
    end

    test "of the wrong length is refused" do
      assert_raise ArgumentError, ~r/binary size mismatch/, fn ->
        Emily.Backend.from_binary(Nx.template({3}, {:f, 32}), <<1, 2>>, [])
      end
    end

    test "keeps the extremes of 64 bits and non-finite floats" do
      for {number, type} <- [
            {18_446_744_073_709_551_615, {:u, 64}},
            {-9_223_372_036_854_775_808, {:s, 64}},
            {9_007_199_254_740_993, {:s, 64}},
            {:nan, {:f, 16}},
            {:infinity, {:bf, 16}},
            {:neg_infinity, {:f, 64}},
            {Complex.new(1, :nan), {:c, 64}}
          ],
          Emily.TestDevice.types([type]) != [] do
        assert Nx.to_number(Nx.tensor(number, type: type)) == number
      end
    end

    test "of a type without room for a float becomes infinite" do
      assert Nx.to_number(Nx.tensor(1.0e300, type: :f32)) == :infinity
      assert Nx.to_number(Nx.tensor(-1.0e6, type: :f16)) == :neg_infinity
    end

    test "in types that MLX lacks is refused by name" do
      assert_raise ArgumentError, ~r/unsupported dtype \{:c, 128\}/, fn ->
        Nx.tensor(Complex.new(1, 2), type: :c128)
      end

      assert_raise ArgumentError, ~r/unsupported dtype \{:c, 128\}/, fn ->
        Nx.fft(Nx.tensor([1.0, 2.0], type: :f64, backend: {Emily.Backend, device: :cpu}))
      end
    end

    test "of doubles is refused on a GPU" do
      assert_raise ArgumentError, ~r/does not support \{:f, 64\}/, fn ->
        Emily.Lowering.constant(%Gpu{}, Nx.template({}, :f64), 1)
      end

      assert_raise ArgumentError, ~r/does not support \{:f, 64\}/, fn ->
        Emily.Lowering.iota(%Gpu{}, Nx.template({3}, :f64), nil)
      end
    end

    test "a limit reads the rows in question only" do
      events = :telemetry_test.attach_event_handlers(self(), [[:emily, :to_binary, :stop]])
      tensor = Nx.iota({1009, 4}, type: :u8)
      assert Nx.to_binary(tensor, limit: 6) == <<0, 1, 2, 3, 4, 5>>

      # Other tests, which run at the same time, read tensors too.
      assert_received {[:emily, :to_binary, :stop], ^events, _, %{shape: {1009, 4}} = metadata}
      assert %{dtype: {:u, 8}, byte_size: 6} = metadata
      :telemetry.detach(events)
    end

    test "is shown as Nx shows it" do
      assert inspect(Nx.iota({3}, names: [:x])) == "#Nx.Tensor<\n  s32[x: 3]\n  [0, 1, 2]\n>"
      assert inspect(Nx.iota({1000}), limit: 2) =~ "[0, 1, ...]"
    end
  end

  describe "transfer" do
    test "to the backend itself and to Nx.Tensor returns the tensor" do
      tensor = Nx.tensor([1, 2])
      assert Nx.backend_transfer(tensor, Emily.Backend) == tensor
      assert Emily.Backend.backend_copy(tensor, Nx.Tensor, []) == tensor
    end

    test "to another backend gives the memory back" do
      tensor = Nx.tensor([1, 2])
      assert Nx.to_flat_list(Nx.backend_transfer(tensor, Nx.BinaryBackend)) == [1, 2]
      assert_raise ArgumentError, ~r/deallocated/, fn -> Nx.to_flat_list(tensor) end
    end

    test "a copy outlives its original" do
      tensor = Nx.add(Nx.tensor([1, 2]), 1)
      copy = Nx.backend_copy(tensor, Emily.Backend)
      assert Nx.backend_deallocate(tensor) == :ok
      assert Nx.backend_deallocate(tensor) == :already_deallocated
      assert Nx.to_flat_list(copy) == [2, 3]
      assert_raise ArgumentError, ~r/deallocated/, fn -> Nx.add(tensor, 1) end
    end

    test "operands of other backends are read and stay their owner's" do
      # `Nx.Shared.impl!` lets no two foreign backends meet, so the callback is called itself.
      a = owned(binary([1.0, 2.0]))
      b = Nx.tensor([10.0, 20.0])
      assert Nx.to_flat_list(Emily.Backend.add(b, a, b)) == [11.0, 22.0]
      assert Nx.to_flat_list(Emily.Backend.add(b, b, a)) == [11.0, 22.0]
      assert Nx.to_flat_list(Nx.multiply(b, binary([2, 3]))) == [20.0, 60.0]
    end

    test "puts a tensor on the device that is named" do
      for from <- [:cpu, :gpu], to <- Emily.Stream.devices() do
        tensor = Nx.add(Nx.tensor([1, 2], backend: {Emily.Backend, device: from}), 1)
        copy = Nx.backend_copy(tensor, {Emily.Backend, device: to})
        assert Emily.Native.Nif.device(copy.data.ref) == to
        assert Nx.to_flat_list(tensor) == [2, 3]
        moved = Nx.backend_transfer(tensor, {Emily.Backend, device: to})
        assert Emily.Native.Nif.device(moved.data.ref) == to
        assert {Nx.to_flat_list(copy), Nx.to_flat_list(moved)} == {[2, 3], [2, 3]}
      end
    end

    test "a stream of the process gives way to the device that is named" do
      tensor = Nx.tensor([1, 2], backend: {Emily.Backend, device: :cpu})

      for own <- Emily.Stream.devices(), to <- Emily.Stream.devices() do
        Emily.Stream.with_stream(Emily.Stream.new(own), fn ->
          copy = Nx.backend_copy(tensor, {Emily.Backend, device: to})
          assert Emily.Native.Nif.device(copy.data.ref) == to
        end)
      end
    end
  end

  describe "streams" do
    test "an operation runs on the stream of its process" do
      stream = Emily.Stream.new(Emily.TestDevice.device())

      Emily.Stream.with_stream(stream, fn ->
        assert Nx.to_number(Nx.sum(Nx.iota({10}))) == 45
        Emily.Stream.close(stream)
        assert_raise RuntimeError, ~r/stopped/, fn -> Nx.to_number(Nx.sum(Nx.iota({10}))) end
      end)
    end

    test "lazy tensors cross streams" do
      lazy = Nx.add(Nx.iota({100}), 1)

      result =
        Emily.Stream.with_stream(Emily.Stream.new(Emily.TestDevice.device()), fn ->
          Nx.sum(Nx.multiply(lazy, lazy))
        end)

      assert Nx.to_number(Nx.add(result, lazy[0])) == 338_351
    end

    test "batches may be taken in a process with another stream" do
      batches = Nx.to_batched(Nx.add(Nx.iota({5, 2}), 1), 2)

      task =
        Task.async(fn ->
          Emily.Stream.with_stream(Emily.Stream.new(Emily.TestDevice.device()), fn ->
            Enum.map(batches, &Nx.to_flat_list/1)
          end)
        end)

      assert Task.await(task) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 1, 2]]
    end

    test "the same bits on two streams at once as alone" do
      work = fn ->
        {q, r} = Nx.LinAlg.qr(Nx.sin(Nx.iota({24, 24}, type: :f32)))
        parts = [Nx.dot(q, r), Nx.sort(Nx.flatten(r)), Nx.cumulative_sum(Nx.flatten(q))]
        Enum.map(parts, &Nx.to_binary/1)
      end

      alone = work.()

      on_streams =
        for _ <- 1..2 do
          Task.async(fn ->
            Nx.default_backend(Emily.Backend)
            Emily.Stream.with_stream(Emily.Stream.new(Emily.TestDevice.device()), work)
          end)
        end

      assert Task.await_many(on_streams) == [alone, alone]
    end
  end

  describe "semantics that are Nx's and not MLX's" do
    test "argmax of everything, and the last of equals" do
      tensor = Nx.tensor([[1, 9, 3], [9, 2, 0]])
      assert Nx.to_number(Nx.argmax(tensor)) == 1
      assert Nx.to_number(Nx.argmax(tensor, tie_break: :high)) == 3
      assert Nx.shape(Nx.argmin(tensor)) == {}
    end

    test "integer products, plain and batched" do
      a = Nx.tensor([[1, 2], [3, 4]])
      assert Nx.to_flat_list(Nx.dot(a, a)) == [7, 10, 15, 22]
      batch = Nx.tensor([[[1, 2]], [[3, 4]]], type: :u8)
      assert Nx.to_flat_list(Nx.dot(batch, [2], [0], batch, [2], [0])) == [5, 25]
    end

    test "reductions of scalars" do
      for name <- [:sum, :product, :all, :any, :reduce_max, :reduce_min] do
        assert Nx.to_number(apply(Nx, name, [Nx.tensor(1)])) == 1
      end

      assert Nx.to_number(Nx.all_close(Nx.tensor(1.0), Nx.tensor(1.0))) == 1
    end

    test "fft along its axis" do
      tensor = Nx.tensor([[1.0, 0.0], [1.0, 0.0]])
      assert Nx.to_flat_list(Nx.real(Nx.fft(tensor, axis: 0))) == [2.0, 0.0, 0.0, 0.0]
      assert Nx.to_flat_list(Nx.real(Nx.fft(tensor, axis: 1))) == [1.0, 1.0, 1.0, 1.0]
    end

    test "remainders, rounding and quotients" do
      assert Nx.to_flat_list(Nx.remainder(Nx.tensor([-7, 7, -7]), Nx.tensor([3, -3, -3]))) ==
               [-1, 1, -1]

      assert Nx.to_flat_list(Nx.remainder(Nx.tensor([-7.5, 7.5]), 2)) == [-1.5, 1.5]

      assert Nx.to_flat_list(Nx.round(Nx.tensor([0.5, 1.5, 2.5, -0.5, -2.5, 0.49999997]))) ==
               [1.0, 2.0, 3.0, -1.0, -3.0, 0.0]

      assert Nx.to_flat_list(Nx.quotient(Nx.tensor([-7, 7]), Nx.tensor([2, -2]))) == [-3, -3]
    end

    test "u64 with s64 keeps its bits" do
      big = Nx.tensor([9_007_199_254_740_993], type: :u64)
      small = Nx.tensor([-1], type: :s64)
      assert Nx.to_flat_list(Nx.concatenate([big, small])) == [9_007_199_254_740_993, -1]
      assert Nx.to_flat_list(Nx.select(Nx.tensor([1]), big, small)) == [9_007_199_254_740_993]
      assert Nx.to_flat_list(Nx.stack([small, big])) == [-1, 9_007_199_254_740_993]
      assert Nx.to_flat_list(Nx.clip(big, -5, 7)) == [7]

      largest = Nx.tensor([18_446_744_073_709_551_615], type: :u64)
      assert Nx.to_flat_list(Nx.greater(largest, small)) == [1]
      assert Nx.to_flat_list(Nx.equal(largest, small)) == [0]
    end

    test "dilated windows" do
      tensor = Nx.tensor([1, 2, 3, 4, 5, 6])

      assert Nx.to_flat_list(Nx.window_sum(tensor, {3}, window_dilations: [2])) == [9, 12]
      assert Nx.to_flat_list(Nx.window_max(tensor, {2}, window_dilations: [3])) == [4, 5, 6]
    end

    test "gather along one axis that is not the first" do
      tensor = Nx.tensor([[1, 2, 3], [11, 12, 13]])
      indices = Nx.tensor([[0], [2], [1], [1]])

      assert Nx.to_flat_list(Nx.gather(tensor, indices, axes: [1])) == [
               1,
               11,
               3,
               13,
               2,
               12,
               2,
               12
             ]
    end

    test "triangular_solve of vectors from the right" do
      a = Nx.tensor([[2.0, 0.0], [1.0, 4.0]])
      x = Nx.LinAlg.triangular_solve(a, Nx.tensor([4.0, 8.0]), left_side: false)
      assert Nx.to_flat_list(x) == [1.0, 2.0]
    end

    test "starts of slices are clamped" do
      tensor = Nx.iota({5})
      assert Nx.to_flat_list(Nx.slice(tensor, [Nx.tensor(9)], [2])) == [3, 4]
      assert Nx.to_flat_list(Nx.slice(tensor, [Nx.tensor(-9)], [2])) == [0, 1]
      far = Nx.tensor(18_446_744_073_709_551_615, type: :u64)
      assert Nx.to_flat_list(Nx.slice(tensor, [far], [2])) == [3, 4]
      assert Nx.to_flat_list(Nx.put_slice(tensor, [far], Nx.tensor([7, 7]))) == [0, 1, 2, 7, 7]
    end

    test "zero is false also as a complex number, and an imaginary one is true" do
      tensor = Nx.tensor([Complex.new(0, 0), Complex.new(0, 2)])
      assert Nx.to_flat_list(Nx.logical_not(tensor)) == [1, 0]
      assert Nx.to_flat_list(Nx.select(tensor, 1, 2)) == [2, 1]
      assert Nx.to_number(Nx.any(tensor)) == 1
      assert Nx.to_number(Nx.all(tensor)) == 0
    end

    test "half types accumulate in single precision" do
      assert Nx.to_number(Nx.sum(Nx.broadcast(Nx.tensor(1, type: :bf16), {4096}))) == 4096.0
    end

    test "doubles have the digits of doubles" do
      x = [0.1, 0.7, 2.5, -3.3, 40.0]

      for {ours, erlang} <- [
            {&Nx.exp/1, &:math.exp/1},
            {&Nx.sin/1, &:math.sin/1},
            {&Nx.cos/1, &:math.cos/1},
            {&Nx.erf/1, &:math.erf/1},
            {&Nx.erfc/1, &:math.erfc/1},
            {&Nx.sigmoid/1, &(1 / (1 + :math.exp(-&1)))}
          ] do
        expected = Enum.map(x, erlang)

        found =
          Nx.to_flat_list(ours.(Nx.tensor(x, type: :f64, backend: {Emily.Backend, device: :cpu})))

        for {a, b} <- Enum.zip(found, expected), b != 0 do
          assert abs(a - b) <= 1.0e-15 * abs(b)
        end
      end

      det =
        Nx.LinAlg.determinant(
          Nx.tensor([[2, 1], [1, 1]], type: :f64, backend: {Emily.Backend, device: :cpu})
        )

      assert Nx.to_number(det) == 1.0
    end

    test "convolution in four spatial axes" do
      input = Nx.iota({1, 1, 2, 2, 2, 2}, type: :f32, backend: Nx.BinaryBackend)
      kernel = Nx.broadcast(binary(1.0), {1, 1, 2, 2, 2, 2})
      assert_like_binary_backend([input, kernel], &Nx.conv/2)
    end

    test "the eigenvectors of a complex Hermitian matrix" do
      i = Complex.new(0, 1)
      a = Nx.tensor([[2, Complex.negate(i)], [i, 2]])
      {values, vectors} = Nx.LinAlg.eigh(a)
      assert_all_close(Nx.real(values), Nx.tensor([3.0, 1.0]))
      assert_all_close(Nx.dot(a, vectors), Nx.multiply(vectors, values))
    end

    test "complex systems" do
      a = Nx.tensor([[Complex.new(1, 1), 2], [0, Complex.new(0, 3)]])
      x = Nx.tensor([Complex.new(1, -1), Complex.new(2, 0)])
      assert_all_close(Nx.LinAlg.solve(a, Nx.dot(a, x)), x)
      solved = Nx.LinAlg.triangular_solve(a, Nx.dot(a, x), lower: false)
      assert_all_close(solved, x)
    end
  end

  describe "types that MLX lacks" do
    test "of less than a byte are packed as Nx packs them, and wrap" do
      for {type, numbers} <- [u2: [0, 1, 3], s2: [-2, 1], u4: [0, 7, 15], s4: [-8, -1, 7]] do
        tensor = Nx.tensor(numbers, type: type)
        assert Nx.to_binary(tensor) == Nx.to_binary(binary(numbers, type: type))
        assert Nx.to_flat_list(tensor) == numbers
        assert inspect(tensor) == inspect(binary(numbers, type: type))
      end

      assert Nx.to_flat_list(Nx.add(Nx.tensor([7, -8], type: :s4), 0)) == [7, -8]
      ones = Nx.tensor([1, -1], type: :s4)
      assert Nx.to_flat_list(Nx.add(Nx.tensor([7, -8], type: :s4), ones)) == [-8, 7]
      assert Nx.to_flat_list(Nx.negate(Nx.tensor([1, 15], type: :u4))) == [15, 1]
      assert Nx.to_flat_list(Nx.as_type(Nx.tensor([300.0, -1.0]), :u4)) == [12, 15]
      assert Nx.to_flat_list(Nx.bitcast(Nx.tensor([15, 7], type: :u4), :s4)) == [-1, 7]
      assert Nx.to_flat_list(Nx.count_leading_zeros(Nx.tensor([-1, 1], type: :s4))) == [0, 3]
      assert Nx.to_number(Nx.sum(Nx.tensor([15, 15], type: :u4))) == 30
    end

    test "of 8-bit floats are rounded to their values" do
      for type <- [:f8, :f8_e4m3fn] do
        numbers = [1.0, -2.5, 0.1, :nan, 0.01]
        tensor = Nx.tensor(numbers, type: type)
        assert Nx.to_binary(tensor) == Nx.to_binary(binary(numbers, type: type))
      end

      assert Nx.to_number(Nx.as_type(Nx.tensor(1.7), :f8)) == 1.5
      assert Nx.to_number(Nx.as_type(Nx.tensor(1.7), :f8_e4m3fn)) == 1.75
      assert Nx.to_number(Nx.as_type(Nx.tensor(1.0e5), :f8_e4m3fn)) == 448.0
      half = Nx.tensor(0.5, type: :f8)
      assert Nx.type(Nx.multiply(half, half)) == {:f, 8}
      assert Nx.to_number(Nx.multiply(half, half)) == 0.25

      assert_raise ArgumentError, ~r/unsupported dtype for a bitcast/, fn ->
        Nx.bitcast(half, :u8)
      end
    end
  end

  describe "data that would end the process in MLX" do
    test "division of integers by zero and of the least by -1" do
      for type <- [:s8, :s16, :s32, :s64] do
        least = Nx.Constants.min_finite(type)
        minus_one = Nx.tensor(-1, type: type)
        zero = Nx.tensor(0, type: type)
        assert_same_number(Nx.quotient(least, minus_one), least)
        assert_same_number(Nx.remainder(least, minus_one), zero)
        assert_same_number(Nx.quotient(least, zero), minus_one)
        assert_same_number(Nx.remainder(least, zero), least)
      end

      zero = Nx.tensor(0, type: :u16)
      assert Nx.to_number(Nx.quotient(Nx.tensor(5, type: :u16), zero)) == 65_535
    end

    test "powers with negative exponents" do
      assert Nx.to_flat_list(
               Nx.pow(Nx.tensor([1, -1, -1, 2, 0]), Nx.tensor([-3, -3, -2, -1, -1]))
             ) ==
               [1, -1, 1, 0, 0]
    end

    test "shifts by any amount" do
      a = Nx.tensor([-8, 1], type: :s8)
      assert Nx.to_flat_list(Nx.left_shift(a, Nx.tensor([100, -1], type: :s8))) == [0, 0]
      assert Nx.to_flat_list(Nx.right_shift(a, Nx.tensor([100, 100], type: :s8))) == [-1, 0]
    end

    test "indices out of range" do
      tensor = Nx.tensor([1, 2, 3])
      far = Nx.tensor([9_223_372_036_854_775_807, -9_223_372_036_854_775_808, 1], type: :s64)
      assert Nx.to_flat_list(Nx.take(tensor, far)) == [3, 1, 2]
      assert Nx.to_flat_list(Nx.take_along_axis(tensor, far)) == [3, 1, 2]
      assert Nx.to_flat_list(Nx.gather(tensor, Nx.new_axis(far, -1))) == [3, 1, 2]

      for op <- [&Nx.indexed_add/3, &Nx.indexed_put/3] do
        updated = op.(Nx.broadcast(0, {3}), Nx.new_axis(far, -1), Nx.tensor([7, 8, 9]))
        assert Nx.to_flat_list(updated) == [0, 9, 0]

        below = op.(Nx.broadcast(0, {3}), Nx.tensor([[-1], [1]], type: :s8), Nx.tensor([7, 9]))
        assert Nx.to_flat_list(below) == [0, 9, 0]
      end
    end

    test "casts of NaN, infinities and huge numbers" do
      floats = Nx.tensor([:nan, :infinity, :neg_infinity, 1.0e30, -1.0e30, 300.0])

      for type <- Emily.NxGenerators.integers() do
        [nan, infinity, neg_infinity | rest] = Nx.to_flat_list(Nx.as_type(floats, type))
        assert nan == 0
        assert infinity == Nx.to_number(Nx.Constants.max_finite(type))
        assert neg_infinity == Nx.to_number(Nx.Constants.min_finite(type))
        assert Enum.all?(rest, &is_integer/1)
      end
    end
  end

  describe "functions given to reduce" do
    test "run on Nx.BinaryBackend, with the event, where MLX has no such reduction" do
      events = :telemetry_test.attach_event_handlers(self(), [[:emily, :fallback, :stop]])
      tensor = Nx.tensor([1, 2, 3])
      result = Nx.reduce(tensor, 0, fn x, acc -> Nx.add(Nx.multiply(acc, 10), x) end)

      assert Nx.to_number(result) == 123
      assert %Emily.Backend{} = result.data

      assert_received {[:emily, :fallback, :stop], ^events, _,
                       %{op: :reduce, input_shapes: [{3}, {}]}}

      windows = Nx.window_reduce(tensor, 0, {2}, fn x, acc -> x + 2 * acc end)
      assert Nx.to_flat_list(windows) == [4, 7]
      assert_received {[:emily, :fallback, :stop], ^events, _, %{op: :window_reduce}}
      :telemetry.detach(events)
    end

    test "stay on MLX where they are one of its reductions, in defn too" do
      events = :telemetry_test.attach_event_handlers(self(), [[:emily, :fallback, :start]])
      # A shape of this test's own: others, which run at the same time, may fall back.
      tensor = Nx.tensor([3, 1, 2, 0, 0, 0, 0])
      assert Nx.to_number(Nx.reduce(tensor, 10, &Nx.add/2)) == 16
      assert Nx.to_number(Nx.reduce(tensor, 10, fn x, acc -> Nx.max(acc, x) end)) == 10

      sum = fn t -> Nx.reduce(t, 10, fn x, acc -> Nx.add(x, acc) end) end
      assert Nx.to_number(Nx.Defn.jit(sum).(tensor)) == 16
      refute_received {[:emily, :fallback, :start], ^events, _, %{input_shapes: [{7}, {}]}}
      :telemetry.detach(events)
    end

    test "are not taken for what they are not" do
      tensor = Nx.tensor([3, 1, 2])
      assert Nx.to_number(Nx.reduce(tensor, 0, fn x, _acc -> Nx.add(x, x) end)) == 4
      assert Nx.to_number(Nx.reduce(tensor, 0, fn _x, acc -> acc end)) == 0
    end
  end

  describe "defn on the backend" do
    test "gradients" do
      grad = Nx.Defn.grad(fn x -> Nx.sum(Nx.multiply(Nx.sin(x), x)) end)
      x = Nx.tensor([0.5, 1.0, 2.0])
      expected = Nx.add(Nx.sin(x), Nx.multiply(x, Nx.cos(x)))
      assert_all_close(grad.(x), expected)
    end
  end

  defp assert_same_number(actual, expected),
    do: assert(Nx.to_number(actual) == Nx.to_number(expected))

  defp assert_all_close(actual, expected) do
    within = max(1.0e-5, Emily.TestDevice.coarseness(actual.type))
    assert Nx.to_number(Nx.all_close(actual, expected, atol: within)) == 1
  end
end
