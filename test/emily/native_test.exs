defmodule Emily.NativeTest do
  # One example checked by hand for each function of Emily.Native, and dtypes that are kept or changed.
  use ExUnit.Case, async: true

  import Bitwise, only: [bnot: 1]
  import Emily.Elements

  alias Emily.Native, as: N

  setup_all do
    # A stream lives as long as somebody refers to it.
    {:ok, w: Emily.Stream.new(Emily.TestDevice.device()).worker}
  end

  defp f(values, shape \\ nil), do: tensor(values, {:f, 32}, shape)
  defp i(values, shape \\ nil), do: tensor(values, {:s, 32}, shape)
  defp u(values, shape \\ nil), do: tensor(values, {:u, 32}, shape)
  defp b(values, shape \\ nil), do: tensor(values, {:pred, 1}, shape)
  defp c(values), do: tensor(values, {:c, 64})
  defp s(value), do: f([value], [])

  # The dtype, the shape and the elements, floats to within a rounding of f32.
  defp assert_tensor(w, tensor, dtype, shape, expected) do
    {got_dtype, got_shape, got} = read(w, tensor)
    assert {got_dtype, got_shape} == {dtype, shape}
    tolerance = if dtype in [{:f, 16}, {:bf, 16}], do: 1.0e-2, else: 2.0e-6
    assert close?(got, expected, tolerance), "expected #{inspect(expected)}, got #{inspect(got)}"
  end

  defp close?(got, expected, tolerance) when is_list(expected) do
    length(got) == length(expected) and
      Enum.all?(Enum.zip(got, expected), fn {a, b} -> close?(a, b, tolerance) end)
  end

  defp close?({a, b}, {c, d}, tolerance), do: close?(a, c, tolerance) and close?(b, d, tolerance)

  defp close?(a, b, tolerance) when is_float(a) and is_number(b) do
    abs(a - b) <= tolerance * max(1.0, abs(b))
  end

  defp close?(a, b, _tolerance), do: a === b

  @f32 {:f, 32}
  @s32 {:s, 32}
  @u32 {:u, 32}
  @pred {:pred, 1}
  @inf :inf
  @e 2.718281828459045
  @pi 3.141592653589793

  describe "tensors" do
    test "large binaries are computed with on every device, at the same time", %{w: w} do
      bytes = :rand.bytes(1_048_576)
      total = for <<byte <- bytes>>, reduce: 0, do: (sum -> sum + byte)
      # Made by the host, and computed on the stream.
      made = N.from_binary(bytes, [1024, 1024], {:u, 8})
      computed = N.bitwise_invert(w, N.bitwise_invert(w, made))
      N.eval(w, computed)

      sums = fn device ->
        Task.async(fn ->
          w = Emily.Stream.new(device).worker
          for _ <- 1..20, t <- [made, computed], do: read(w, N.sum(w, t, [0, 1], false))
        end)
      end

      twice = Emily.Stream.devices() ++ Emily.Stream.devices()
      sums = twice |> Enum.map(sums) |> Task.await_many(60_000)
      assert sums |> Enum.concat() |> Enum.uniq() == [{@u32, [], [total]}]
      for t <- [made, computed], do: assert(N.to_binary(w, t) == bytes)
    end

    test "results without elements are read and laid in order", %{w: w} do
      none = N.from_binary(<<>>, [0, 3], @f32)

      for t <- [none, N.matmul(w, none, f([1.0, 2.0, 3.0], [3, 1])), N.sin(w, none)] do
        assert N.to_binary(w, N.contiguous(w, t)) == <<>>
        assert N.to_binary(w, N.transpose(w, t, [1, 0])) == <<>>
      end
    end

    test "from_binary, shape, dtype, device, ready?, to_binary, deallocate", %{w: w} do
      t = N.from_binary(<<1, 2, 3, 4, 5, 6>>, [2, 3], {:u, 8})
      assert {N.shape(t), N.dtype(t), N.ready?(t)} == {[2, 3], {:u, 8}, true}
      assert N.device(t) == List.last(Emily.Stream.devices())
      assert N.to_binary(w, t) == <<1, 2, 3, 4, 5, 6>>
      assert N.deallocate(t) == true
      assert N.deallocate(t) == false
      assert {N.shape(t), N.dtype(t)} == {[2, 3], {:u, 8}}

      assert_raise ArgumentError, ~r/to_binary: input 0 was deallocated/, fn ->
        N.to_binary(w, t)
      end

      assert_raise ArgumentError, ~r/exp: input 0 was deallocated/, fn -> N.exp(w, t) end
    end

    test "every dtype keeps its elements", %{w: w} do
      for {dtype, values} <- [
            {{:f, 16}, [0.5, -2.0]},
            {{:f, 32}, [0.1, -3.0e38]},
            {{:f, 64}, [0.1, -1.0e300]},
            {{:bf, 16}, [1.0, -3.0]},
            {{:s, 8}, [-128, 127]},
            {{:s, 16}, [-32_768, 32_767]},
            {{:s, 32}, [-2_147_483_648, 2_147_483_647]},
            {{:s, 64}, [-9_223_372_036_854_775_808, 9_223_372_036_854_775_807]},
            {{:u, 8}, [0, 255]},
            {{:u, 16}, [0, 65_535]},
            {{:u, 32}, [0, 4_294_967_295]},
            {{:u, 64}, [0, 18_446_744_073_709_551_615]},
            {{:c, 64}, [{1.0, -1.0}, {0.5, 2.0}]},
            {{:pred, 1}, [0, 1]}
          ] do
        t = tensor(values, dtype)
        assert N.dtype(t) == dtype
        assert N.to_binary(w, t) == encode(values, dtype)

        if Emily.TestDevice.types([dtype]) != [] do
          flipped = N.contiguous(w, N.flip(w, N.flip(w, t, 0), 0))
          assert N.to_binary(w, flipped) == encode(values, dtype)
        end
      end
    end

    test "a binary outlives its tensor, its stream and the cache", %{w: w} do
      bytes = :rand.bytes(1_000_000)
      read = Task.await(Task.async(fn -> read_back(w, bytes) end))
      :erlang.garbage_collect()
      Emily.Memory.clear_cache()
      assert read == bytes
    end

    defp read_back(w, bytes) do
      t = N.from_binary(bytes, [byte_size(bytes)], {:u, 8})
      read = N.to_binary(w, t)
      N.deallocate(t)
      read
    end

    test "eval, eval_nif", %{w: w} do
      lazy = N.exp(w, f([0.0]))
      refute N.ready?(lazy)
      assert N.eval(w, lazy) == :ok
      assert N.ready?(lazy)
      assert N.eval(w, [N.exp(w, f([0.0])), lazy]) == :ok

      reference = N.eval_nif(w, N.exp(w, f([1.0])))
      assert is_reference(reference)
      assert_receive {^reference, {:ok, :ok}}, 60_000

      failed = N.eval_nif(w, make_ref())
      assert_receive {^failed, {:error, {:argument, text}}}, 60_000
      assert text =~ "eval: wrong input, expected a tensor reference"
    end

    test "create_worker, worker_queue_depth, stop_worker" do
      w = N.create_worker()
      assert N.worker_queue_depth(w) == 0
      assert_tensor(w, N.exp(w, s(0.0)), @f32, [], [1.0])
      assert N.stop_worker(w) == :ok
      assert_raise RuntimeError, ~r/stream stopped/, fn -> N.exp(w, s(0.0)) end
    end

    test "memory" do
      kept = f(List.duplicate(0.0, 100_000))
      assert N.get_active_memory() >= 400_000
      assert N.get_peak_memory() >= 400_000
      assert is_integer(N.get_cache_memory())
      assert N.reset_peak_memory() == :ok
      assert N.clear_cache() == :ok
      assert N.shape(kept) == [100_000]
    end
  end

  test "creation and casts", %{w: w} do
    assert_tensor(w, N.zeros(w, [2, 2], {:s, 8}), {:s, 8}, [2, 2], [0, 0, 0, 0])
    assert_tensor(w, N.ones(w, [3], {:bf, 16}), {:bf, 16}, [3], [1.0, 1.0, 1.0])
    assert_tensor(w, N.full(w, [2], i([7], []), @f32), @f32, [2], [7.0, 7.0])
    assert_tensor(w, N.arange(w, 1.0, 2.0, 0.25, @f32), @f32, [4], [1.0, 1.25, 1.5, 1.75])
    assert_tensor(w, N.arange(w, 3.0, 0.0, -1.0, @s32), @s32, [3], [3, 2, 1])
    # Whole numbers are taken where floats are documented.
    assert_tensor(w, N.arange(w, 3, 0, -1, @s32), @s32, [3], [3, 2, 1])
    assert_tensor(w, N.eye(w, 2, 3, 1, @s32), @s32, [2, 3], [0, 1, 0, 0, 0, 1])
    assert_tensor(w, N.astype(w, f([1.9, -1.9]), @s32), @s32, [2], [1, -1])
    assert_tensor(w, N.astype(w, i([0, 2]), @pred), @pred, [2], [0, 1])
    assert_tensor(w, N.bitcast(w, f([1.0]), @u32), @u32, [1], [0x3F800000])
    assert_tensor(w, N.bitcast(w, u([0x04030201]), {:u, 8}), {:u, 8}, [4], little([1, 2, 3, 4]))
  end

  defp little(bytes), do: if(System.endianness() == :little, do: bytes, else: Enum.reverse(bytes))

  describe "elementwise, one input" do
    for {name, input, expected} <- [
          {:negative, [1.0, -2.0], [-1.0, 2.0]},
          {:abs, [1.0, -2.0], [1.0, 2.0]},
          {:sign, [3.0, 0.0, -0.5], [1.0, 0.0, -1.0]},
          {:floor, [1.5, -1.5], [1.0, -2.0]},
          {:ceil, [1.5, -1.5], [2.0, -1.0]},
          {:trunc, [1.5, -1.5], [1.0, -1.0]},
          {:sqrt, [4.0, 2.25], [2.0, 1.5]},
          {:rsqrt, [4.0, 0.25], [0.5, 2.0]},
          {:exp, [0.0, 1.0], [1.0, @e]},
          {:expm1, [0.0, 1.0e-6], [0.0, 1.0000005e-6]},
          {:log, [1.0, @e, 0.0], [0.0, 1.0, :neg_inf]},
          {:log1p, [0.0, 1.0e-6], [0.0, 9.999995e-7]},
          {:log2, [8.0, 0.5], [3.0, -1.0]},
          {:log10, [1000.0, 0.1], [3.0, -1.0]},
          {:sin, [0.0, @pi / 2], [0.0, 1.0]},
          {:cos, [0.0, @pi], [1.0, -1.0]},
          {:tan, [0.0, @pi / 4], [0.0, 1.0]},
          {:arcsin, [1.0, -0.5], [@pi / 2, -@pi / 6]},
          {:arccos, [1.0, 0.5], [0.0, @pi / 3]},
          {:arctan, [1.0, 0.0], [@pi / 4, 0.0]},
          {:sinh, [0.0, 1.0], [0.0, 1.1752011936]},
          {:cosh, [0.0, 1.0], [1.0, 1.5430806348]},
          {:tanh, [0.0, 1.0], [0.0, 0.7615941559]},
          {:arcsinh, [0.0, 1.0], [0.0, 0.881373587]},
          {:arccosh, [1.0, 2.0], [0.0, 1.3169578969]},
          {:arctanh, [0.0, 0.5], [0.0, 0.5493061443]},
          {:sigmoid, [0.0, 2.0], [0.5, 0.880797078]},
          {:erf, [0.0, 1.0], [0.0, 0.8427007929]},
          {:erfinv, [0.0, 0.5], [0.0, 0.4769362762]},
          {:square, [3.0, -0.5], [9.0, 0.25]},
          {:reciprocal, [4.0, -0.5], [0.25, -2.0]},
          {:real, [3.0], [3.0]},
          {:conjugate, [3.0], [3.0]},
          {:stop_gradient, [3.0], [3.0]},
          {:contiguous, [3.0, 4.0], [3.0, 4.0]}
        ] do
      test "#{name}", %{w: w} do
        {input, expected} = unquote(Macro.escape({input, expected}))
        assert_tensor(w, N.unquote(name)(w, f(input)), @f32, [length(input)], expected)
      end
    end

    test "with other dtypes", %{w: w} do
      assert_tensor(w, N.logical_not(w, f([0.0, 2.0])), @pred, [2], [1, 0])
      assert_tensor(w, N.bitwise_invert(w, i([0, 5])), @s32, [2], [bnot(0), bnot(5)])
      odd = f([1.0, :nan, :inf, :neg_inf])
      assert_tensor(w, N.isnan(w, odd), @pred, [4], [0, 1, 0, 0])
      assert_tensor(w, N.isinf(w, odd), @pred, [4], [0, 0, 1, 1])
      assert_tensor(w, N.isfinite(w, odd), @pred, [4], [1, 0, 0, 0])
      z = c([{1.0, 2.0}, {3.0, -4.0}])
      assert_tensor(w, N.real(w, z), @f32, [2], [1.0, 3.0])
      assert_tensor(w, N.imag(w, z), @f32, [2], [2.0, -4.0])
      assert_tensor(w, N.conjugate(w, z), {:c, 64}, [2], [{1.0, -2.0}, {3.0, 4.0}])
      assert_tensor(w, N.abs(w, z), @f32, [2], [:math.sqrt(5), 5.0])
      assert_tensor(w, N.round(w, f([0.5, 1.5, 2.25]), 0), @f32, [3], [0.0, 2.0, 2.0])
      assert_tensor(w, N.round(w, f([2.25, 2.75]), 1), @f32, [2], [2.2, 2.8])
    end

    test "floats keep their dtype", %{w: w} do
      for name <- ~w(exp log sin cos tanh sigmoid sqrt rsqrt abs square)a,
          dtype <- Emily.TestDevice.types([{:f, 16}, {:bf, 16}, {:f, 32}, {:f, 64}]) do
        assert {name, N.dtype(apply(N, name, [w, tensor([0.5], dtype)]))} == {name, dtype}
      end
    end

    test "integers keep their dtype", %{w: w} do
      for name <- ~w(abs square)a, kind <- [:s, :u], bits <- [8, 16, 32, 64] do
        t = tensor([3], {kind, bits})
        assert {name, N.dtype(apply(N, name, [w, t]))} == {name, {kind, bits}}
      end
    end
  end

  describe "elementwise, two inputs" do
    for {name, a, b, expected} <- [
          {:add, [1.0, 2.0], [10.0], [11.0, 12.0]},
          {:subtract, [1.0, 2.0], [10.0], [-9.0, -8.0]},
          {:multiply, [1.0, 2.0], [10.0], [10.0, 20.0]},
          {:divide, [1.0, 2.0], [4.0], [0.25, 0.5]},
          {:floor_divide, [7.0, -7.0], [2.0], [3.0, -4.0]},
          {:remainder, [7.0, -7.0], [3.0], [1.0, 2.0]},
          {:power, [2.0, 9.0], [3.0, 0.5], [8.0, 3.0]},
          {:maximum, [1.0, 5.0], [3.0], [3.0, 5.0]},
          {:minimum, [1.0, 5.0], [3.0], [1.0, 3.0]},
          {:logaddexp, [0.0, 1.0], [0.0, 1.0], [0.6931471806, 1.6931471806]},
          {:arctan2, [1.0, -1.0], [1.0, -1.0], [@pi / 4, -3 * @pi / 4]}
        ] do
      test "#{name}", %{w: w} do
        {a, b, expected} = unquote(Macro.escape({a, b, expected}))
        assert_tensor(w, N.unquote(name)(w, f(a), f(b)), @f32, [length(a)], expected)
      end
    end

    for {name, expected} <- [
          {:equal, [0, 1, 0]},
          {:not_equal, [1, 0, 1]},
          {:less, [1, 0, 0]},
          {:less_equal, [1, 1, 0]},
          {:greater, [0, 0, 1]},
          {:greater_equal, [0, 1, 1]}
        ] do
      test "#{name}", %{w: w} do
        result = N.unquote(name)(w, f([1.0, 2.0, 3.0]), i([2]))
        assert_tensor(w, result, @pred, [3], unquote(expected))
      end
    end

    for {name, expected} <- [
          {:logical_and, [0, 0, 1]},
          {:logical_or, [0, 1, 1]},
          {:logical_xor, [0, 1, 0]}
        ] do
      test "#{name}", %{w: w} do
        result = N.unquote(name)(w, f([0.0, 0.0, 2.0]), i([0, 3, 3]))
        assert_tensor(w, result, @pred, [3], unquote(expected))
      end
    end

    for {name, expected} <- [
          {:bitwise_and, [0b1000, 0]},
          {:bitwise_or, [0b1110, -1]},
          {:bitwise_xor, [0b0110, -1]},
          {:quotient, [1, 0]},
          {:left_shift, [0b1100 * 1024, -2]},
          {:right_shift, [0, -1]}
        ] do
      test "#{name}", %{w: w} do
        other = %{left_shift: [10, 1], right_shift: [10, 1], quotient: [10, -7]}
        b = Map.get(other, unquote(name), [0b1010, 0])
        assert_tensor(w, N.unquote(name)(w, i([0b1100, -1]), i(b)), @s32, [2], unquote(expected))
      end
    end

    test "integers keep their dtype", %{w: w} do
      for name <- ~w(add subtract multiply maximum minimum)a,
          kind <- [:s, :u],
          bits <- [8, 16, 32, 64] do
        t = tensor([3], {kind, bits})
        assert {name, N.dtype(apply(N, name, [w, t, t]))} == {name, {kind, bits}}
      end
    end

    test "integers divided by zero do no harm", %{w: w} do
      {a, zero} = {i([7, -7, -2_147_483_648]), i([0, 0, -1])}
      assert_tensor(w, N.quotient(w, a, zero), @s32, [3], [-1, -1, -2_147_483_648])
      assert_tensor(w, N.remainder(w, a, zero), @s32, [3], [7, -7, 0])
      assert_tensor(w, N.quotient(w, u([7]), u([0])), @u32, [1], [0xFFFFFFFF])
      {dtype, [3], [_, _, _]} = read(w, N.floor_divide(w, a, zero))
      assert dtype == @s32
    end

    test "where, clip, array_equal", %{w: w} do
      assert_tensor(w, N.where(w, b([1, 0]), f([1.0, 2.0]), f([9.0])), @f32, [2], [1.0, 9.0])
      assert_tensor(w, N.clip(w, f([-5.0, 0.5, 5.0]), s(0.0), s(1.0)), @f32, [3], [0.0, 0.5, 1.0])
      nan = f([:nan])
      assert_tensor(w, N.array_equal(w, f([1.0]), f([1.0]), false), @pred, [], [1])
      assert_tensor(w, N.array_equal(w, f([1.0]), f([1.0, 1.0]), false), @pred, [], [0])
      assert_tensor(w, N.array_equal(w, nan, nan, false), @pred, [], [0])
      assert_tensor(w, N.array_equal(w, nan, nan, true), @pred, [], [1])
    end
  end

  describe "reductions" do
    # [[1, 2, 3], [4, 5, 6]]
    for {name, columns, all} <- [
          {:sum, [5.0, 7.0, 9.0], 21.0},
          {:mean, [2.5, 3.5, 4.5], 3.5},
          {:prod, [4.0, 10.0, 18.0], 720.0},
          {:max, [4.0, 5.0, 6.0], 6.0},
          {:min, [1.0, 2.0, 3.0], 1.0},
          {:logsumexp, [4.0485873516, 5.0485873516, 6.0485873516], 6.4561933577}
        ] do
      test "#{name}", %{w: w} do
        m = f([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])
        assert_tensor(w, N.unquote(name)(w, m, [0], false), @f32, [3], unquote(columns))
        assert_tensor(w, N.unquote(name)(w, m, [-2], true), @f32, [1, 3], unquote(columns))
        assert_tensor(w, N.unquote(name)(w, m, [0, 1], false), @f32, [], [unquote(all)])
      end
    end

    test "all, any", %{w: w} do
      m = i([1, 0, 2, 3], [2, 2])
      assert_tensor(w, N.all(w, m, [1], false), @pred, [2], [0, 1])
      assert_tensor(w, N.any(w, m, [0], true), @pred, [1, 2], [1, 1])
      assert_tensor(w, N.any(w, i([0, 0]), [0], false), @pred, [], [0])
    end

    test "var, std", %{w: w} do
      t = f([1.0, 2.0, 3.0, 4.0])
      assert_tensor(w, N.var(w, t, [0], false, 0), @f32, [], [1.25])
      assert_tensor(w, N.var(w, t, [0], true, 1), @f32, [1], [5 / 3])
      assert_tensor(w, N.std(w, t, [0], false, 0), @f32, [], [:math.sqrt(1.25)])
    end

    test "argmax, argmin: the first of equals", %{w: w} do
      m = f([1.0, 3.0, 3.0, 0.0, 0.0, -1.0], [2, 3])
      assert_tensor(w, N.argmax(w, m, 1, false), @u32, [2], [1, 0])
      assert_tensor(w, N.argmin(w, m, -1, true), @u32, [2, 1], [0, 2])
    end

    test "no axes, and scalars", %{w: w} do
      for name <- ~w(sum mean prod max min)a do
        assert_tensor(w, apply(N, name, [w, f([1.0, 2.0]), [], false]), @f32, [2], [1.0, 2.0])
        assert_tensor(w, apply(N, name, [w, s(5.0), [], false]), @f32, [], [5.0])
      end
    end

    test "floats keep their dtype", %{w: w} do
      for name <- ~w(sum mean max min)a,
          dtype <- Emily.TestDevice.types([{:f, 16}, {:bf, 16}, {:f, 32}, {:f, 64}]) do
        t = tensor([0.5, 1.5], dtype)
        assert {name, N.dtype(apply(N, name, [w, t, [0], false]))} == {name, dtype}
      end
    end

    for {name, forward, backward} <- [
          {:cumsum, [1.0, 3.0, 6.0], [6.0, 5.0, 3.0]},
          {:cumprod, [1.0, 2.0, 6.0], [6.0, 6.0, 3.0]},
          {:cummax, [1.0, 2.0, 3.0], [3.0, 3.0, 3.0]},
          {:cummin, [1.0, 1.0, 1.0], [1.0, 2.0, 3.0]},
          {:logcumsumexp, [1.0, 2.3132616875, 3.4076059644], [3.4076059644, 3.3132616875, 3.0]}
        ] do
      test "#{name}", %{w: w} do
        t = f([1.0, 2.0, 3.0])
        assert_tensor(w, N.unquote(name)(w, t, 0, false, true), @f32, [3], unquote(forward))
        assert_tensor(w, N.unquote(name)(w, t, -1, true, true), @f32, [3], unquote(backward))
      end
    end

    test "a running sum that does not include its element", %{w: w} do
      assert_tensor(w, N.cumsum(w, i([1, 2, 3]), 0, false, false), @s32, [3], [0, 1, 3])
    end

    test "softmax", %{w: w} do
      t = f([0.0, :math.log(3.0)])
      assert_tensor(w, N.softmax(w, t, [0], false), @f32, [2], [0.25, 0.75])
      assert_tensor(w, N.softmax(w, t, [-1], true), @f32, [2], [0.25, 0.75])
    end
  end

  test "order", %{w: w} do
    t = f([3.0, 1.0, 2.0])
    assert_tensor(w, N.sort(w, t, 0), @f32, [3], [1.0, 2.0, 3.0])
    assert_tensor(w, N.sort(w, f([:nan, @inf, 1.0]), 0), @f32, [3], [1.0, :inf, :nan])
    assert_tensor(w, N.argsort(w, t, -1), @u32, [3], [1, 2, 0])

    # Nothing to sort along an axis that has a size.
    nothing = f([], [3, 0])

    for sorted <- [N.sort(w, nothing, 0), N.partition(w, nothing, 1, 0)],
        do: assert_tensor(w, sorted, @f32, [3, 0], [])

    for order <- [N.argsort(w, nothing, 0), N.argpartition(w, nothing, 1, 0)],
        do: assert_tensor(w, order, @u32, [3, 0], [])

    assert_tensor(w, N.topk(w, nothing, 2, 0), @f32, [2, 0], [])

    {@f32, [5], parted} = read(w, N.partition(w, f([5.0, 1.0, 4.0, 2.0, 3.0]), 2, 0))
    assert {Enum.sort(Enum.take(parted, 2)), Enum.at(parted, 2)} == {[1.0, 2.0], 3.0}
    {@u32, [3], indices} = read(w, N.argpartition(w, t, 0, 0))
    assert {hd(indices), Enum.sort(indices)} == {1, [0, 1, 2]}
    {@f32, [2], top} = read(w, N.topk(w, f([3.0, 1.0, 2.0, 9.0]), 2, 0))
    assert Enum.sort(top) == [3.0, 9.0]
  end

  test "shape", %{w: w} do
    m = i([1, 2, 3, 4, 5, 6], [2, 3])
    assert_tensor(w, N.reshape(w, m, [3, 2]), @s32, [3, 2], [1, 2, 3, 4, 5, 6])
    assert_tensor(w, N.transpose(w, m, [1, 0]), @s32, [3, 2], [1, 4, 2, 5, 3, 6])
    assert_tensor(w, N.squeeze(w, i([7], [1, 1]), [0]), @s32, [1], [7])
    assert_tensor(w, N.expand_dims(w, i([7, 8]), [0, 2]), @s32, [1, 2, 1], [7, 8])
    assert_tensor(w, N.broadcast_to(w, i([7, 8]), [2, 2]), @s32, [2, 2], [7, 8, 7, 8])
    assert_tensor(w, N.concatenate(w, [i([1]), i([2, 3])], 0), @s32, [3], [1, 2, 3])
    assert_tensor(w, N.stack(w, [i([1, 2]), i([3, 4])], 1), @s32, [2, 2], [1, 3, 2, 4])
    assert_tensor(w, N.flatten(w, i([1, 2, 3, 4], [2, 1, 2]), 0, -1), @s32, [4], [1, 2, 3, 4])
    assert_tensor(w, N.flatten(w, i([1, 2, 3, 4], [2, 1, 2]), 1, 2), @s32, [2, 2], [1, 2, 3, 4])
    assert_tensor(w, N.tile(w, i([1, 2]), [2, 2]), @s32, [2, 4], [1, 2, 1, 2, 1, 2, 1, 2])
    assert_tensor(w, N.swapaxes(w, m, 0, -1), @s32, [3, 2], [1, 4, 2, 5, 3, 6])
    assert_tensor(w, N.pad(w, i([1, 2]), [0], [1], [2], i([9], [])), @s32, [5], [9, 1, 2, 9, 9])
    assert_tensor(w, N.repeat(w, i([1, 2]), 2, 0), @s32, [4], [1, 1, 2, 2])
    assert_tensor(w, N.flip(w, i([1, 2, 3]), -1), @s32, [3], [3, 2, 1])
    assert_tensor(w, N.flip(w, i([5], []), 0), @s32, [], [5])
    assert_raise ArgumentError, ~r/flip: wrong axes/, fn -> N.flip(w, m, 2) end
    assert_tensor(w, N.roll(w, i([1, 2, 3, 4]), 1, 0), @s32, [4], [4, 1, 2, 3])
    assert [left, right] = N.split(w, m, 3, 1) |> Enum.take(2)
    assert_tensor(w, left, @s32, [2, 1], [1, 4])
    assert_tensor(w, right, @s32, [2, 1], [2, 5])
  end

  describe "slices and indices" do
    test "slice, slice_update", %{w: w} do
      m = i([1, 2, 3, 4, 5, 6], [2, 3])
      assert_tensor(w, N.slice(w, m, [0, 0], [2, 3], [1, 2]), @s32, [2, 2], [1, 3, 4, 6])
      updated = N.slice_update(w, m, i([8, 9], [1, 2]), [1, 1])
      assert_tensor(w, updated, @s32, [2, 3], [1, 2, 3, 4, 8, 9])
    end

    test "take, take_along_axis, gather", %{w: w} do
      m = i([1, 2, 3, 4, 5, 6], [2, 3])
      assert_tensor(w, N.take(w, m, i([2, 0]), 1), @s32, [2, 2], [3, 1, 6, 4])
      along = N.take_along_axis(w, m, i([2, 0], [2, 1]), 1)
      assert_tensor(w, along, @s32, [2, 1], [3, 4])
      gathered = N.gather(w, m, [i([1, 0]), i([2, 1])], [0, 1], [1, 1])
      assert_tensor(w, gathered, @s32, [2, 1, 1], [6, 2])
      rows = N.gather(w, m, [i([1])], [0], [1, 3])
      assert_tensor(w, rows, @s32, [1, 1, 3], [4, 5, 6])
    end

    test "indices out of range are clamped", %{w: w} do
      t = i([1, 2, 3])
      assert_tensor(w, N.take(w, t, i([99, 2_147_483_647]), 0), @s32, [2], [3, 3])
    end

    test "put_along_axis, scatter_add_axis", %{w: w} do
      t = i([1, 2, 3])
      assert_tensor(w, N.put_along_axis(w, t, i([2]), i([9]), 0), @s32, [3], [1, 2, 9])
      added = N.scatter_add_axis(w, t, i([0, 0]), i([10, 20]), 0)
      assert_tensor(w, added, @s32, [3], [31, 2, 3])
    end

    test "scatter, scatter_add", %{w: w} do
      m = i([0, 0, 0, 0], [2, 2])
      put = N.scatter(w, m, [i([1])], i([7, 8], [1, 1, 2]), [0])
      assert_tensor(w, put, @s32, [2, 2], [0, 0, 7, 8])
      added = N.scatter_add(w, m, [i([0, 0]), i([1, 1])], i([3, 4], [2, 1, 1]), [0, 1])
      assert_tensor(w, added, @s32, [2, 2], [0, 7, 0, 0])
    end

    test "updates out of range are dropped", %{w: w} do
      t = i([1, 2, 3])

      assert_tensor(w, N.scatter(w, t, [i([3, 99])], i([7, 8], [2, 1]), [0]), @s32, [3], [1, 2, 3])
    end
  end

  describe "windows" do
    for {name, expected} <- [
          {:window_sum, [3.0, 5.0, 7.0]},
          {:window_max, [2.0, 3.0, 4.0]},
          {:window_min, [1.0, 2.0, 3.0]},
          {:window_product, [2.0, 6.0, 12.0]}
        ] do
      test "#{name}", %{w: w} do
        init =
          s(
            %{window_sum: 0.0, window_product: 1.0, window_max: -9.0, window_min: 9.0}[
              unquote(name)
            ]
          )

        t = f([1.0, 2.0, 3.0, 4.0])
        result = N.unquote(name)(w, t, [2], [1], [0], [0], [1], init)
        assert_tensor(w, result, @f32, [3], unquote(expected))
      end
    end

    test "with strides, padding and dilation", %{w: w} do
      t = i([1, 2, 3, 4, 5])
      padded = N.window_sum(w, t, [2], [2], [1], [0], [1], i([0], []))
      assert_tensor(w, padded, @s32, [3], [1, 5, 9])
      dilated = N.window_sum(w, t, [2], [1], [0], [0], [3], i([0], []))
      assert_tensor(w, dilated, @s32, [2], [1 + 4, 2 + 5])
    end

    test "window_scatter_max, window_scatter_min", %{w: w} do
      t = i([1, 5, 2, 7])
      source = i([10, 20])
      max = N.window_scatter_max(w, t, source, i([0], []), [2], [2], [0], [0])
      assert_tensor(w, max, @s32, [4], [0, 10, 0, 20])
      min = N.window_scatter_min(w, t, source, i([0], []), [2], [2], [0], [0])
      assert_tensor(w, min, @s32, [4], [10, 0, 20, 0])
    end
  end

  describe "products" do
    test "matmul, outer, inner, tensordot, einsum", %{w: w} do
      a = f([1.0, 2.0, 3.0, 4.0], [2, 2])
      b = f([5.0, 6.0, 7.0, 8.0], [2, 2])
      assert_tensor(w, N.matmul(w, a, b), @f32, [2, 2], [19.0, 22.0, 43.0, 50.0])
      assert_tensor(w, N.inner(w, a, b), @f32, [2, 2], [17.0, 23.0, 39.0, 53.0])
      outer = N.outer(w, f([1.0, 2.0]), f([3.0, 4.0]))
      assert_tensor(w, outer, @f32, [2, 2], [3.0, 4.0, 6.0, 8.0])
      assert_tensor(w, N.tensordot(w, a, b, [0], [0]), @f32, [2, 2], [26.0, 30.0, 38.0, 44.0])
      assert_tensor(w, N.tensordot(w, a, b, [0, 1], [0, 1]), @f32, [], [70.0])
      assert_tensor(w, N.einsum(w, "ij,jk->ki", [a, b]), @f32, [2, 2], [19.0, 43.0, 22.0, 50.0])
      assert_tensor(w, N.einsum(w, "ii->", [a]), @f32, [], [5.0])
    end

    test "integers are refused where MLX has floats only", %{w: w} do
      for name <- [:matmul, :inner] do
        error = assert_raise ArgumentError, fn -> apply(N, name, [w, i([1, 2]), i([3, 4])]) end
        assert error.message =~ "#{name}: wrong dtypes, expected a float or complex one"
      end

      assert_tensor(w, N.outer(w, i([1, 2]), i([3, 4])), @s32, [2, 2], [3, 4, 6, 8])
    end

    test "conv_general", %{w: w} do
      input = f([1.0, 2.0, 3.0, 4.0], [1, 4, 1])
      weight = f([1.0, 10.0], [1, 2, 1])
      none = {[0], [0]}
      plain = N.conv_general(w, input, weight, [1], none, {[1], [1]}, 1, false)
      assert_tensor(w, plain, @f32, [1, 3, 1], [21.0, 32.0, 43.0])
      flipped = N.conv_general(w, input, weight, [1], none, {[1], [1]}, 1, true)
      assert_tensor(w, flipped, @f32, [1, 3, 1], [12.0, 23.0, 34.0])
      strided = N.conv_general(w, input, weight, [2], {[1], [0]}, {[1], [1]}, 1, false)
      assert_tensor(w, strided, @f32, [1, 2, 1], [10.0, 32.0])
      dilated = N.conv_general(w, input, weight, [1], none, {[3], [1]}, 1, false)
      assert_tensor(w, dilated, @f32, [1, 1, 1], [41.0])
    end
  end

  describe "linear algebra" do
    @a [4.0, 3.0, 6.0, 3.0]

    test "linalg_lu", %{w: w} do
      {p, l, u} = N.linalg_lu(w, f(@a, [2, 2]))
      assert {@u32, [2], p} = read(w, p)
      {@f32, [2, 2], [l11, l12, l21, l22]} = read(w, l)
      {@f32, [2, 2], [u11, u12, u21, u22]} = read(w, u)
      assert {l11, l12, l22, u21} == {1.0, 0.0, 1.0, 0.0}
      rows = [[l11 * u11, l11 * u12], [l21 * u11, l21 * u12 + l22 * u22]]
      assert close?(Enum.concat(Enum.map(p, &Enum.at(rows, &1))), @a, 1.0e-5)
    end

    test "linalg_qr", %{w: w} do
      {q, r} = N.linalg_qr(w, f([1.0, 0.0, 0.0, 1.0, 0.0, 0.0], [3, 2]))
      assert {N.shape(q), N.shape(r)} == {[3, 2], [2, 2]}
      product = N.matmul(w, q, r)
      assert_tensor(w, product, @f32, [3, 2], [1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
      gram = N.matmul(w, N.transpose(w, q, [1, 0]), q)
      {_, _, gram} = read(w, gram)
      assert close?(gram, [1.0, 0.0, 0.0, 1.0], 1.0e-5)
    end

    test "linalg_svd", %{w: w} do
      {u, s, vt} = N.linalg_svd(w, f([3.0, 0.0, 0.0, 4.0, 0.0, 0.0], [3, 2]))
      assert {N.shape(u), N.shape(vt)} == {[3, 3], [2, 2]}
      assert_tensor(w, s, @f32, [2], [4.0, 3.0])
    end

    test "linalg_eigh", %{w: w} do
      # The two triangles differ, so that it shows which one is read: eigenvalues 1 and 3, or 2 and 2.
      m = f([2.0, 0.0, 1.0, 2.0], [2, 2])
      {lower, vectors} = N.linalg_eigh(w, m, "L")
      assert_tensor(w, lower, @f32, [2], [1.0, 3.0])
      assert N.shape(vectors) == [2, 2]
      {upper, _} = N.linalg_eigh(w, m, "U")
      assert_tensor(w, upper, @f32, [2], [2.0, 2.0])

      assert_raise ArgumentError,
                   ~s(linalg_eigh: wrong triangle, expected "L" or "U", got "X"),
                   fn ->
                     N.linalg_eigh(w, m, "X")
                   end
    end

    test "linalg_cholesky, linalg_solve, linalg_solve_triangular", %{w: w} do
      m = f([4.0, 2.0, 2.0, 5.0], [2, 2])
      assert_tensor(w, N.linalg_cholesky(w, m, false), @f32, [2, 2], [2.0, 0.0, 1.0, 2.0])
      assert_tensor(w, N.linalg_cholesky(w, m, true), @f32, [2, 2], [2.0, 1.0, 0.0, 2.0])
      assert_tensor(w, N.linalg_solve(w, m, f([8.0, 12.0])), @f32, [2], [1.0, 2.0])
      matrix = N.linalg_solve(w, m, f([8.0, 12.0], [2, 1]))
      assert_tensor(w, matrix, @f32, [2, 1], [1.0, 2.0])
      lower = f([2.0, 0.0, 1.0, 2.0], [2, 2])
      solved = N.linalg_solve_triangular(w, lower, f([2.0, 5.0], [2, 1]), false)
      assert_tensor(w, solved, @f32, [2, 1], [1.0, 2.0])
    end
  end

  test "Fourier transforms", %{w: w} do
    t = f([1.0, 0.0, 0.0, 0.0])
    ones = List.duplicate({1.0, 0.0}, 4)
    assert_tensor(w, N.fftn(w, t, [4], [0]), {:c, 64}, [4], ones)

    assert_tensor(w, N.ifftn(w, c(ones), [4], [0]), {:c, 64}, [4], [
      {1.0, 0.0} | List.duplicate({0.0, 0.0}, 3)
    ])

    assert_tensor(w, N.rfftn(w, t, [4], [0]), {:c, 64}, [3], Enum.take(ones, 3))

    assert_tensor(w, N.irfftn(w, c(Enum.take(ones, 3)), [4], [0]), @f32, [4], [1.0, 0.0, 0.0, 0.0])
  end

  describe "random numbers" do
    test "random_key, random_split", %{w: w} do
      assert_tensor(w, N.random_key(0x1_0000_0002), @u32, [2], [1, 2])
      keys = N.random_split(w, N.random_key(42), 3)
      assert {@u32, [3, 2], numbers} = read(w, keys)
      assert length(Enum.uniq(numbers)) == 6
      assert read(w, N.random_split(w, N.random_key(42), 3)) == read(w, keys)
    end

    test "a key decides the numbers, and without one they follow the process's seed", %{w: w} do
      key = N.random_key(7)
      uniform = &N.random_uniform(w, s(2.0), s(3.0), [1000], @f32, &1)
      {@f32, [1000], numbers} = read(w, uniform.(key))
      assert Enum.all?(numbers, &(&1 >= 2.0 and &1 < 3.0))
      assert_in_delta Enum.sum(numbers) / 1000, 2.5, 0.05
      assert read(w, uniform.(key)) == read(w, uniform.(key))

      :rand.seed(:exsss, {1, 2, 3})
      first = read(w, uniform.(nil))
      refute read(w, uniform.(nil)) == first
      :rand.seed(:exsss, {1, 2, 3})
      assert read(w, uniform.(nil)) == first
    end

    test "distributions", %{w: w} do
      key = N.random_key(1)

      {@s32, [1000], ints} =
        read(w, N.random_randint(w, i([-2], []), i([3], []), [1000], @s32, key))

      assert Enum.sort(Enum.uniq(ints)) == [-2, -1, 0, 1, 2]

      {@f32, [4000], normal} = read(w, N.random_normal(w, [4000], @f32, 5.0, 2.0, key))
      mean = Enum.sum(normal) / 4000
      assert_in_delta mean, 5.0, 0.2
      deviation = :math.sqrt(Enum.sum(Enum.map(normal, &((&1 - mean) ** 2))) / 4000)
      assert_in_delta deviation, 2.0, 0.15

      {@pred, [4000], coins} = read(w, N.random_bernoulli(w, s(0.25), [4000], key))
      assert_in_delta Enum.sum(coins) / 4000, 0.25, 0.05

      {@f32, [4000], gumbel} = read(w, N.random_gumbel(w, [4000], @f32, key))
      assert_in_delta Enum.sum(gumbel) / 4000, 0.5772, 0.1

      logits = f([-1.0e9, 0.0, -1.0e9])
      assert {@u32, [5], [1, 1, 1, 1, 1]} = read(w, N.random_categorical(w, logits, 0, 5, key))
    end
  end

  describe "quantisation" do
    test "quantize, dequantize, quantized_matmul", %{w: w} do
      # 16 equidistant values are what 4 bits hold.
      row = for n <- 0..31, do: rem(n, 16) * 0.5
      weight = f(row ++ Enum.reverse(row), [2, 32])
      {packed, scales, biases} = N.quantize(w, weight, 32, 4, "affine")
      assert {N.dtype(packed), N.shape(packed)} == {@u32, [2, 4]}
      assert {N.shape(scales), N.shape(biases)} == {[2, 1], [2, 1]}
      dense = N.dequantize(w, packed, scales, biases, 32, 4, "affine")
      {@f32, [2, 32], got} = read(w, dense)
      assert close?(got, row ++ Enum.reverse(row), 1.0e-5)

      x = f([1.0 | List.duplicate(0.0, 31)], [1, 32])
      y = N.quantized_matmul(w, x, packed, scales, biases, true, 32, 4, "affine")
      {@f32, [1, 2], got} = read(w, y)
      assert close?(got, [0.0, 7.5], 1.0e-5)
    end

    test "the microscaled modes have no biases", %{w: w} do
      weight = f(List.duplicate(1.0, 64), [2, 32])
      {packed, scales, nil} = N.quantize(w, weight, 32, 4, "mxfp4")
      assert N.dtype(scales) == {:u, 8}
      {_, [2, 32], got} = read(w, N.dequantize(w, packed, scales, nil, 32, 4, "mxfp4"))
      assert Enum.uniq(got) == [1.0]
    end

    test "a last axis that does not divide is refused", %{w: w} do
      assert_raise ArgumentError, ~r/^quantize: /, fn ->
        N.quantize(w, f(List.duplicate(1.0, 33), [1, 33]), 32, 4, "affine")
      end
    end
  end

  describe "fused kernels" do
    test "fast_rms_norm, fast_layer_norm", %{w: w} do
      x = f([3.0, 4.0])
      rms = :math.sqrt(12.5)
      assert_tensor(w, N.fast_rms_norm(w, x, nil, 0.0), @f32, [2], [3 / rms, 4 / rms])
      assert_tensor(w, N.fast_rms_norm(w, x, f([1.0, 2.0]), 0.0), @f32, [2], [3 / rms, 8 / rms])
      assert_tensor(w, N.fast_layer_norm(w, x, nil, nil, 0.0), @f32, [2], [-1.0, 1.0])
      scaled = N.fast_layer_norm(w, x, f([2.0, 2.0]), f([1.0, 1.0]), 0.0)
      assert_tensor(w, scaled, @f32, [2], [-1.0, 3.0])
    end

    test "fast_rope, fast_rope_int", %{w: w} do
      # One pair of features at positions 0 and 1 turns by 0 and 1 radian.
      x = f([1.0, 0.0, 1.0, 0.0], [1, 1, 2, 2])
      turned = [1.0, 0.0, :math.cos(1), :math.sin(1)]
      rope = N.fast_rope(w, x, 2, true, 10_000.0, 1.0, i([0], []), nil)
      assert_tensor(w, rope, @f32, [1, 1, 2, 2], turned)
      rope = N.fast_rope_int(w, x, 2, true, 10_000.0, 1.0, 0, nil)
      assert_tensor(w, rope, @f32, [1, 1, 2, 2], turned)
      # MLX takes the reciprocal of a frequency.
      rope = N.fast_rope_int(w, x, 2, false, nil, 1.0, 1, f([0.5]))
      {_, _, got} = read(w, rope)
      expected = [:math.cos(2), :math.sin(2), :math.cos(4), :math.sin(4)]
      assert close?(got, expected, 1.0e-5)
    end

    test "fast_scaled_dot_product_attention", %{w: w} do
      q = f([0.0, 0.0], [1, 1, 2, 1])
      k = f([1.0, 2.0], [1, 1, 2, 1])
      v = f([10.0, 20.0], [1, 1, 2, 1])
      sdpa = &N.fast_scaled_dot_product_attention(w, q, k, v, 1.0, &1, &2, &3)
      assert_tensor(w, sdpa.("", [], []), @f32, [1, 1, 2, 1], [15.0, 15.0])
      assert_tensor(w, sdpa.("causal", [], []), @f32, [1, 1, 2, 1], [10.0, 15.0])
      mask = f([0.0, -1.0e9, -1.0e9, 0.0], [2, 2])
      assert_tensor(w, sdpa.("array", [mask], []), @f32, [1, 1, 2, 1], [10.0, 20.0])
      # A sink takes its share of the weights and adds nothing.
      assert_tensor(w, sdpa.("", [], [f([0.0])]), @f32, [1, 1, 2, 1], [10.0, 10.0])
    end
  end
end
