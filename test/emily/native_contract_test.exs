defmodule Emily.NativeContractTest do
  # What the parts of the package must agree on, and what every native function does with wrong arguments.
  use ExUnit.Case, async: true

  alias Emily.{Elements, Hostile, Native}
  alias Emily.Native.Nif

  @not_nifs [__info__: 1, load: 0, module_info: 0, module_info: 1]

  test "the stubs are the library's functions" do
    stubs = Nif.module_info(:exports) -- @not_nifs
    nifs = for {name, arity} <- Nif.nifs(), do: {String.to_atom(name), arity}
    assert Enum.sort(stubs) == Enum.sort(nifs)
  end

  test "every op that is emitted is in the table" do
    table = MapSet.new(Nif.ops(), &String.to_atom(Macro.underscore(&1)))
    assert MapSet.size(table) > 150

    for file <- Path.wildcard("lib/emily/lowering/**/*.ex") do
      assert {file, Enum.reject(emitted(file), &(&1 in table))} == {file, []}
    end

    plain = Keyword.keys(Native.Plain.unary() ++ Native.Plain.binary())
    native = Enum.uniq(plain ++ emitted("lib/emily/native.ex"))
    assert Enum.reject(native, &(&1 in table)) == []

    # The search finds something, or it would prove nothing.
    assert :exp in native and :sum in native
    assert length(native) > 130
  end

  test "one module receives, and it alone raises native errors" do
    receiving = for file <- sources(), File.read!(file) =~ ~r/^\s*receive do/m, do: file
    assert receiving == ["lib/emily/native/call.ex"]

    raising = for file <- sources(), File.read!(file) =~ ~r/\{:error, \{:?\w+, \w+\}\}/, do: file
    # The doctor tells why the library does not load.
    known = ["lib/emily/doctor.ex", "lib/emily/native.ex", "lib/emily/native/nif.ex"]
    assert raising -- known == []
  end

  defp sources, do: Path.wildcard("lib/**/*.ex")

  # The literal ops of a file: `one(w, :exp, ...)`, `emit(e, {:sum, ...}, ...)`, `for {name, _} <- [exp: ...]`.
  defp emitted(file) do
    {:ok, code} = Code.string_to_quoted(File.read!(file))

    {_code, names} =
      Macro.prewalk(code, [], fn
        {call, _, [_, op | _]} = node, names when call in [:one, :several, :emit, :apply_all] ->
          {node, literal(op) ++ names}

        {{:., _, [_, :apply_all]}, _, [_, op | _]} = node, names ->
          {node, literal(op) ++ names}

        {:<-, _, [pattern, list]} = node, names when is_list(list) ->
          {node, listed(file, pattern, list) ++ names}

        node, names ->
          {node, names}
      end)

    Enum.uniq(names)
  end

  defp literal(op) when is_atom(op), do: [op]
  defp literal({op, {:%{}, _, _}}) when is_atom(op), do: [op]
  defp literal({op, _attributes}) when is_atom(op), do: [op]
  defp literal(_computed), do: []

  # Only Emily.Native names ops in the lists that it makes functions of.
  defp listed("lib/emily/native.ex", {{:name, _, _}, _}, list), do: Keyword.keys(list)
  defp listed(_file, _pattern, _list), do: []

  describe "a wrong argument" do
    setup do
      {:ok, w: Emily.Stream.new(Emily.TestDevice.device()).worker}
    end

    test "of Emily.Native is an error with the op, what was expected and what came", %{w: w} do
      f = Elements.tensor([1.0, 2.0], {:f, 32})
      m = Elements.tensor([1.0, 2.0, 3.0, 4.0], {:f, 32}, [2, 2])
      zero = Elements.tensor([0], {:s, 32})

      # Kernels of a CPU count elements with 32 bits. A view that takes no memory, of more than that:
      host = Emily.Stream.new(:cpu).worker
      wide = Native.broadcast_to(host, Elements.tensor([1.0], {:f, 32}), [100_000, 100_000])

      for {fun, text} <- [
            {fn -> Native.add(w, f, Elements.tensor([1.0, 2.0, 3.0], {:f, 32})) end,
             "add: wrong shapes, expected shapes that broadcast, got [[2], [3]]"},
            {fn -> Native.add(w, f, :two) end,
             "add: wrong input, expected a tensor reference, got two"},
            {fn -> Native.add(w, f, nil) end,
             "add: input 1 is absent, expected a tensor, got nil"},
            {fn -> Native.add(w, w, f) end,
             "add: wrong input, expected a tensor reference, got #Ref"},
            {fn -> Native.add(f, f, f) end,
             "wrong stream, expected a worker reference, got #Ref"},
            {fn -> Native.add(make_ref(), f, f) end, "expected a worker reference, got #Ref"},
            {fn -> Native.sum(w, f, [1], false) end,
             "sum: wrong axes, expected an axis from -1 to 0, got 1"},
            {fn -> Native.sum(w, f, [0, -1], false) end,
             "sum: wrong axes, expected distinct axes"},
            {fn -> Native.sum(w, f, 0, false) end, "expected an op of the table"},
            {fn -> Native.sum(w, f, [0 | 1], false) end, "expected an op of the table"},
            {fn -> Native.reshape(w, f, [3]) end, "reshape: "},
            {fn -> Native.reshape(w, f, [-2]) end, "reshape: wrong shape"},
            {fn -> Native.reshape(w, f, [2_147_483_648]) end, "reshape: wrong shape"},
            {fn -> Native.zeros(w, [2_147_483_648], {:f, 32}) end,
             "zeros: wrong shape, expected a size in int32, from 0 to 2147483647, got 2147483648"},
            {fn -> Native.zeros(w, [-1], {:f, 32}) end, "zeros: wrong shape"},
            {fn -> Native.zeros(w, List.duplicate(2_147_483_647, 4), {:f, 32}) end,
             "zeros: wrong shape, expected at most"},
            {fn -> Native.eye(w, 2_147_483_648, 1, 0, {:f, 32}) end, "eye: wrong rows"},
            {fn -> Native.zeros(host, [2_147_483_647, 2], {:u, 8}) end,
             "zeros: wrong shape, expected at most 2147483647 elements"},
            {fn -> Native.eye(host, 100_000, 100_000, 0, {:f, 32}) end, "eye: wrong shape"},
            {fn -> Native.contiguous(host, wide) end, "contiguous: wrong shape"},
            {fn -> Native.concatenate(host, [wide, wide], 0) end, "concatenate: wrong shape"},
            {fn -> Native.take(host, wide, Native.broadcast_to(host, zero, [100_000]), 0) end,
             "take: wrong shape"},
            {fn -> Native.to_binary(host, wide) end, "contiguous: wrong shape"},
            {fn -> Native.linalg_qr(host, wide) end, "linalg_qr: wrong shape"},
            {fn -> Native.matmul(w, m, Elements.tensor([1.0, 2.0, 3.0], {:f, 32})) end,
             "matmul: "},
            {fn -> Native.transpose(w, m, [0, 0]) end, "transpose: wrong axes"},
            {fn -> Native.transpose(w, m, [0]) end, "transpose: wrong axes"},
            {fn -> Native.slice(w, f, [0], [2], [0]) end,
             "slice: wrong strides, expected a positive"},
            {fn -> Native.slice(w, f, [0, 0], [2], [1]) end, "slice: wrong starts"},
            {fn -> Native.take(w, f, f, 0) end, "take: wrong dtype"},
            {fn -> Native.arange(w, 0.0, 3.0, 0.0, {:s, 32}) end, "arange: wrong step"},
            {fn -> Native.concatenate(w, [], 0) end, "concatenate: wrong number of inputs"},
            {fn -> Native.concatenate(w, [m, f], 0) end, "concatenate: wrong"},
            {fn -> Native.conv_general(w, f, f, [1], {[0], [0]}, {[1], [1]}, 0, false) end,
             "conv_general: wrong"},
            {fn -> Native.window_sum(w, f, [2], [0], [0], [0], [1], f) end, "window_sum: wrong"},
            {fn -> Native.astype(w, f, {:f, 33}) end, "expected an op of the table"},
            {fn -> Native.einsum(w, "ij,jk", [f]) end, "einsum: wrong"},
            {fn -> Native.random_split(w, f, 3) end, "random_split: wrong"},
            {fn -> Native.eval(w, nil) end,
             "eval: input 0 is absent, expected a tensor, got nil"},
            {fn -> Native.eval(w, [f | :x]) end, "eval: wrong inputs, expected a list"},
            {fn -> Native.shape(w) end, "shape: wrong input, expected a tensor reference"},
            {fn -> Native.random_key(1.5) end, "random_key: wrong seed"},
            {fn -> Emily.Memory.set_limit(:speed, 1) end, "expected :cache, :memory or :wired"},
            {fn -> Emily.Memory.set_limit(:cache, -1) end, "expected a number of bytes, got -1"}
          ] do
        assert message(fun) =~ text
      end
    end

    test "of Emily.from_binary is an error", %{} do
      for {arguments, text} <- [
            {[<<1, 2, 3>>, [1], {:f, 32}],
             ~r/from_binary: .*binary size mismatch.*expected 4 bytes.*3 bytes/},
            {[<<>>, [1], {:u, 8}], ~r/binary size mismatch/},
            {[:binary.copy(<<0>>, 1_000_000), [999_999], {:u, 8}], ~r/binary size mismatch/},
            {[<<0::32>>, [1], {:f, 33}], ~r/unsupported dtype/},
            {[<<0::32>>, [1], :f32], ~r/unsupported dtype/},
            {[<<>>, [-1], {:u, 8}], ~r/from_binary: wrong shape.*int32.*got -1/},
            {[<<>>, [2_147_483_648], {:u, 8}],
             ~r/from_binary: wrong shape.*int32.*got 2147483648/},
            {[<<>>, [9_223_372_036_854_775_808], {:u, 8}], ~r/from_binary: wrong shape.*int32/},
            {[<<>>, [0, 2_147_483_647, 2_147_483_647, 2_147_483_647], {:u, 8}], ~r/wrong shape/},
            {[<<1>>, [1 | 2], {:u, 8}], ~r/from_binary: wrong shape/},
            {[<<1>>, [:a], {:u, 8}], ~r/from_binary: wrong shape/}
          ] do
        error = assert_raise ArgumentError, fn -> apply(Emily, :from_binary, arguments) end
        assert error.message =~ text
      end

      for arguments <- [
            [:no_binary, [1], {:u, 8}],
            [<<1>>, {1}, {:u, 8}],
            [<<1::3>>, [1], {:u, 8}]
          ] do
        assert_raise FunctionClauseError, fn -> apply(Emily, :from_binary, arguments) end
      end
    end

    test "in any place of any function of Emily.Native raises and leaves the stream working", %{
      w: w
    } do
      f = Elements.tensor([1.0, 2.0, 3.0, 4.0], {:f, 32}, [2, 2])

      for {name, arity} <- Native.__info__(:functions),
          name not in [:stop_worker, :clear_cache] do
        for hostile <- Hostile.terms(w), place <- 0..(arity - 1)//1 do
          first =
            if name in [:shape, :dtype, :device, :ready?, :from_binary, :random_key],
              do: f,
              else: w

          arguments = List.replace_at([first | List.duplicate(f, arity)], place, hostile)
          attempt(Native, name, Enum.take(arguments, arity))
        end
      end

      assert Elements.read(w, Native.exp(w, Elements.tensor([0.0], {:f, 32}))) ==
               {{:f, 32}, [1], [1.0]}

      assert elem(Process.info(self(), :messages), 1) == []
    end

    defp message(fun) do
      fun.()
    rescue
      error in ArgumentError -> error.message
    else
      _answer -> "no error"
    end

    # An answer is fine where the term happened to be right; any other error than these is not.
    defp attempt(module, name, arguments) do
      apply(module, name, arguments)
    rescue
      _ in [ArgumentError, RuntimeError] ->
        :error

      error in [FunctionClauseError] ->
        assert {error.module, error.function} in [{module, name}, {Emily, name}]
    else
      reference when name == :eval_nif -> assert_receive {^reference, _answer}, 60_000
      _answer -> :ok
    end
  end

  describe "random calls" do
    setup do
      :rand.seed(:exsss, {20, 26, 11})
      :ok
    end

    @calls 20_000

    test "of every stub and every op answer or err, and the VM and its streams live on" do
      # The caller of a job that never answers is this process, and there shall be none.
      w = Emily.Stream.new(Emily.TestDevice.device()).worker
      ops = for name <- Nif.ops(), do: String.to_atom(Macro.underscore(name))
      stubs = Nif.module_info(:exports) -- @not_nifs
      # These speak for the whole VM, where other tests run.
      stubs = stubs -- [memory_set_limit: 2, memory_collect_above: 1, worker_start: 2]

      for number <- 1..@calls do
        if rem(number, 4) == 0 do
          {name, arity} = Hostile.pick(stubs)
          arguments = for place <- 1..arity//1, do: argument(place, w)
          unless name == :worker_close and hd(arguments) == w, do: call(name, arguments)
        else
          {op, inputs} = Hostile.call(ops)
          build(w, op, inputs)
        end
      end

      assert Elements.read(w, Native.exp(w, Elements.tensor([0.0], {:f, 32}))) ==
               {{:f, 32}, [1], [1.0]}

      assert Emily.Stream.info(%Emily.Stream{worker: w}).queue_depth == 0
    end

    test "of the functions that speak for the whole VM err" do
      for _ <- 1..500 do
        term = Hostile.term()
        refute_native_crash(Nif.memory_set_limit(term, Hostile.term()))
        unless is_integer(term), do: refute_native_crash(Nif.memory_collect_above(term))
        refute_native_crash(Nif.worker_start(term, Hostile.term()))
      end
    end

    defp argument(1, w), do: Hostile.pick([w, w, w, Hostile.term(), make_ref()])
    defp argument(_place, _w), do: Hostile.term()

    # Only this one's argument is decoded by Rustler alone.
    defp call(:cancel, [job]) when not is_reference(job) do
      assert_raise ArgumentError, fn -> Nif.cancel(job) end
    end

    defp call(:cancel, [_no_job]), do: :ok
    defp call(name, arguments), do: refute_native_crash(apply(Nif, name, arguments))

    defp build(w, op, inputs) do
      case refute_native_crash(Nif.apply(w, op, inputs)) do
        tensor when is_reference(tensor) -> compute(w, tensor)
        {:collect, tensor} -> compute(w, tensor)
        {:error, _reason} -> :ok
      end

      with {:ok, job} <- refute_native_crash(Nif.apply_all(w, op, inputs, :several)) do
        assert_receive {:several, _answer}, 60_000
        refute Nif.cancel(job)
      end
    end

    # Graphs are small enough to be computed, unless they ask for much memory, which is allowed.
    defp compute(w, tensor) do
      if Enum.product(Native.shape(tensor)) < 1_000_000 do
        with {:ok, _job} <- Nif.eval(w, [tensor], :evaluated) do
          assert_receive {:evaluated, answer}, 60_000
          if answer == :ok, do: assert_size(w, tensor)
        end
      end
    end

    defp assert_size(w, tensor) do
      bytes = div(max(elem(Native.dtype(tensor), 1), 8), 8)
      assert byte_size(Native.to_binary(w, tensor)) == Enum.product(Native.shape(tensor)) * bytes
    end

    # A panic would have been raised as an ErlangError by the NIF itself, and an error is one of four kinds.
    defp refute_native_crash({:error, {kind, text}} = error) do
      assert kind in [:invalid_argument, :stopped, :queue_full, :runtime]
      assert is_binary(text) and String.valid?(text)
      error
    end

    defp refute_native_crash(answer), do: answer
  end
end
