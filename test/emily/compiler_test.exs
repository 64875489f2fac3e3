defmodule Emily.CompilerTest do
  # Not async: one test bounds the cache that all share.
  use ExUnit.Case, async: false

  import Emily.NxTensors, only: [assert_compiles_alike: 2]
  import Nx.Defn, only: [defn: 2]

  setup do
    Nx.default_backend(Emily.Backend)
    :ok
  end

  defp jit(fun, opts \\ []),
    do: Nx.Defn.jit(fun, [compiler: Emily.Compiler] ++ opts ++ [native_fallback: :raise])

  defp numbers(t), do: Nx.to_flat_list(t)

  ## Programs

  defn(affine(x, w, b), do: Nx.tanh(Nx.dot(x, w) + b))

  test "a defn becomes a program that gives what the operations give" do
    x = Nx.iota({2, 3}, type: :f32)
    w = Nx.iota({3, 2}, type: :f32)
    b = Nx.tensor([1.0, -1.0])
    assert Nx.to_binary(jit(&affine/3).(x, w, b)) == Nx.to_binary(affine(x, w, b))
    assert %Emily.Backend{} = jit(&affine/3).(x, w, b).data
  end

  test "results are arguments, constants, captured tensors and the same node twice" do
    captured = Nx.tensor([7, 8], backend: Nx.BinaryBackend)

    assert {a, {b, c}, %{d: d, e: e}} =
             jit(fn x, y -> {y, {1, captured}, %{d: Nx.add(x, y), e: Nx.add(x, y)}} end).(1, 2)

    assert Enum.map([a, b, d, e], &Nx.to_number/1) == [2, 1, 3, 3]
    assert numbers(c) == [7, 8]
  end

  test "arguments of other backends are copied in and stay" do
    x = Nx.tensor([1, 2, 3], backend: Nx.BinaryBackend)
    assert numbers(jit(&Nx.add(&1, &1)).(x)) == [2, 4, 6]
    assert numbers(x) == [1, 2, 3]
  end

  test "an argument that nothing uses is not asked for" do
    assert Nx.to_number(jit(fn x, _y -> Nx.multiply(x, 2) end).(3, Nx.iota({1000}))) == 6
  end

  test "names, vectorized axes and narrow types are kept" do
    x = Nx.iota({2, 3}, names: [:a, :b]) |> Nx.vectorize(:a)
    result = jit(&Nx.sum(Nx.multiply(&1, 2))).(x)
    assert result.vectorized_axes == [a: 2]
    assert numbers(Nx.devectorize(result)) == [6, 24]

    narrow = Nx.tensor([3, 1, 2], type: {:u, 2})
    assert numbers(jit(&Nx.add(&1, 1)).(narrow)) == numbers(Nx.add(narrow, 1))
    assert jit(&Nx.add(&1, &1)).(narrow).type == {:u, 2}
  end

  test "a function of vectorized tensors with a condition on them" do
    x = Nx.tensor([[1, 0, 2]]) |> Nx.vectorize(:rows) |> Nx.vectorize(:columns)
    assert_compiles_alike([x], fn x -> clauses_of(x) end)
  end

  defn clauses_of(x) do
    cond do
      x == 0 -> x + 10
      x == 1 -> x + 20
      true -> x + 30
    end
  end

  ## Conditions

  defn branch(p, x, y) do
    shared = Nx.exp(x)

    if p do
      {shared + y, Nx.sin(y)}
    else
      {shared - y, Nx.cos(shared)}
    end
  end

  test "a condition takes one branch" do
    for p <- [0, 1] do
      assert_compiles_alike([p, Nx.tensor([0.5]), Nx.tensor([2.0])], &branch/3)
    end
  end

  defn several(x) do
    cond do
      Nx.sum(x) > 10 -> x * 2
      Nx.sum(x) > 0 -> x + 1
      true -> -x
    end
  end

  test "the first clause that holds is taken" do
    for x <- [[20, 1], [1, 2], [-3, -4]] do
      assert_compiles_alike([Nx.tensor(x)], &several/1)
    end
  end

  defn nested(p, q, x) do
    heavy = Nx.log(x + 2)

    a =
      if p do
        if q, do: heavy * 3, else: Nx.abs(x) + heavy
      else
        x
      end

    b = if q, do: heavy - 1, else: a

    {a, b}
  end

  test "conditions nest, share what several need and see their surroundings" do
    for p <- [0, 1], q <- [0, 1] do
      assert_compiles_alike([p, q, Nx.tensor([1.0, -0.5])], &nested/3)
    end
  end

  test "a branch that is not taken is not computed" do
    parent = self()
    hooked = fn x, tag -> Nx.Defn.Kernel.io_call(x, tag, fn _ -> send(parent, tag) end) end

    fun =
      jit(fn p, x ->
        Nx.Defn.Expr.cond(
          [{p, hooked.(Nx.multiply(x, 2), :taken)}],
          hooked.(Nx.multiply(x, 3), :other)
        )
      end)

    assert Nx.to_number(fun.(1, 5)) == 10
    assert_received :taken
    refute_received :other
    assert Nx.to_number(fun.(0, 5)) == 15
    assert_received :other
    refute_received :taken
  end

  ## Loops

  defn factorial(n) do
    {_, product} =
      while {n, product = Nx.tensor(1, type: :s64)}, n > 1 do
        {n - 1, product * n}
      end

    product
  end

  test "a loop runs until its condition fails" do
    for n <- [0, 1, 10], do: assert_compiles_alike([n], &factorial/1)
    assert Nx.to_number(jit(&factorial/1).(10)) == 3_628_800
  end

  defn loops(x, w) do
    {_, total, _, _} =
      while {i = 0, total = x * 0.0, x, w}, i < 4 do
        {_, inner, _, _} =
          while {j = 0, inner = x, w, i}, j < i do
            {j + 1, Nx.tanh(Nx.dot(w, inner)), w, i}
          end

        next = if Nx.remainder(i, 2) == 0, do: total + inner, else: total - inner * 2
        {i + 1, next, x, w}
      end

    total
  end

  test "loops nest, with conditions inside" do
    w = Nx.tensor([[0.5, -0.25], [1.0, 0.75]])
    assert_compiles_alike([Nx.tensor([1.0, 2.0]), w], &loops/2)
  end

  defn running_sum(x) do
    while total = Nx.tensor(0, type: :s64), row <- x do
      total + Nx.sum(row)
    end
  end

  test "a loop over rows" do
    assert_compiles_alike([Nx.iota({4, 3})], &running_sum/1)
  end

  test "a loop asks the calling process nothing" do
    parent = self()
    fun = jit(fn x -> loop_to(x, 1000) end)

    caller =
      spawn_link(fn ->
        zero = Nx.tensor(0)
        fun.(zero)
        send(parent, :warm)
        receive do: (:go -> :ok)
        send(parent, {:result, fun.(zero)})
        receive do: (:end -> :ok)
      end)

    assert_receive :warm
    :erlang.trace(caller, true, [:receive])
    send(caller, :go)
    assert_receive {:result, result}
    assert_receive {:trace, ^caller, :receive, :go}
    assert_receive {:trace, ^caller, :receive, {_tag, {:ok, [_]}}}
    refute_received {:trace, ^caller, :receive, _}
    assert Nx.to_number(result) == 1000
    send(caller, :end)
  end

  defn loop_to(x, limit) do
    while(x, x < limit, do: x + 1)
  end

  ## Random numbers, decompositions, gradients

  defn noise(key) do
    {a, key} = Nx.Random.normal(key, 0.0, 1.0, shape: {3})
    {b, key} = Nx.Random.uniform(key, shape: {3})
    {a, b, key}
  end

  test "the state of random numbers goes through" do
    assert_compiles_alike([Nx.Random.key(42)], &noise/1)
  end

  test "blocks with several results" do
    a = Nx.tensor([[4.0, 1.0], [1.0, 3.0]])
    assert_compiles_alike([a], &Nx.LinAlg.qr/1)
    assert_compiles_alike([a], &Nx.LinAlg.svd/1)
    assert_compiles_alike([a], &Nx.LinAlg.eigh/1)
    assert_compiles_alike([a], &Nx.LinAlg.lu/1)
    assert_compiles_alike([a, Nx.tensor([1.0, 2.0])], &Nx.LinAlg.solve/2)
  end

  test "blocks that Nx's own definition computes" do
    a = Nx.tensor([[Complex.new(4, 1), 1], [1, Complex.new(3, -1)]], type: :c64)
    assert_compiles_alike([a], &Nx.LinAlg.determinant/1)
    assert_compiles_alike([Nx.tensor([[1.0, 2.0], [3.0, 4.0]])], &Nx.LinAlg.matrix_power(&1, 3))
  end

  test "gradients" do
    x = Nx.tensor([[0.5, -1.0], [2.0, 0.25]])

    assert_compiles_alike([x], fn x ->
      Nx.Defn.grad(x, fn x -> x |> Nx.tanh() |> Nx.dot(x) |> Nx.sum() end)
    end)

    assert_compiles_alike([x, 3], &grad_through_loop/2)
  end

  defn grad_through_loop(x, n) do
    Nx.Defn.grad(x, fn x ->
      {_, x} =
        while {n, x}, n > 0 do
          {n - 1, Nx.sin(x)}
        end

      Nx.sum(x)
    end)
  end

  ## Calls of Elixir functions

  test "hooks get what was computed, in the calling process, in the middle of the program" do
    parent = self()

    fun =
      jit(fn x ->
        y = Nx.Defn.Kernel.io_call(Nx.add(x, 1), :named, &send(parent, {:default, self(), &1}))
        Nx.multiply(y, 2)
      end)

    assert Nx.to_number(fun.(1)) == 4
    assert_received {:default, ^parent, %Nx.Tensor{} = t}
    assert Nx.to_number(t) == 2

    replaced =
      jit(
        fn x -> Nx.Defn.Kernel.io_call(x, :named, &send(parent, {:default, self(), &1})) end,
        hooks: %{named: &send(parent, {:replaced, &1})}
      )

    replaced.(5)
    assert_received {:replaced, _}
    refute_received {:default, _, _}
  end

  test "a hook of a container" do
    parent = self()

    jit(fn x ->
      Nx.Defn.Kernel.io_call(%{a: Nx.add(x, 1), b: {x}}, fn value -> send(parent, value) end)
    end).(1)

    assert_received %{a: a, b: {b}}
    assert {Nx.to_number(a), Nx.to_number(b)} == {2, 1}
  end

  defn hooked_loop(x) do
    while x, x < 3 do
      io_call(x + 1, :step)
    end
  end

  test "a hook in a loop, which computes on the same stream" do
    parent = self()
    step = fn t -> send(parent, {:step, Nx.to_number(Nx.multiply(t, 10))}) end
    stream = Emily.Stream.new(Emily.TestDevice.device())

    Emily.Stream.with_stream(stream, fn ->
      assert Nx.to_number(jit(&hooked_loop/1, hooks: %{step: step}).(0)) == 3
    end)

    for n <- [10, 20, 30], do: assert_received({:step, ^n})
  end

  test "a hook that raises ends the call and nothing else" do
    fun = jit(fn x -> Nx.Defn.Kernel.io_call(x, fn _ -> raise "no" end) end)
    assert_raise RuntimeError, "no", fn -> fun.(1) end
    assert Nx.to_number(jit(&Nx.add(&1, 1)).(1)) == 2
    refute_received _
  end

  test "runtime_call" do
    fun =
      jit(fn x ->
        Nx.runtime_call({x, Nx.template({2}, :f32)}, {x, Nx.add(x, 1)}, [by: 3], fn {a, b},
                                                                                    opts ->
          {Nx.multiply(a, opts[:by]),
           Nx.tensor([1.0, 2.0], backend: Nx.BinaryBackend) |> Nx.add(b)}
        end)
      end)

    {a, b} = fun.(Nx.tensor(2))
    assert Nx.to_number(a) == 6
    assert numbers(b) == [4.0, 5.0]
  end

  test "runtime_call with another template" do
    fun = jit(fn x -> Nx.runtime_call(x, x, fn _, _ -> Nx.tensor([1, 2, 3]) end) end)
    assert_raise RuntimeError, ~r/output template/, fn -> fun.(Nx.tensor(2)) end
  end

  test "reduce with a known function is native, with another it is called" do
    x = Nx.iota({2, 3})
    sum = fn x -> Nx.reduce(x, 0, [axes: [1]], &Nx.add/2) end
    other = fn x -> Nx.reduce(x, 1, [axes: [1]], fn a, b -> Nx.add(Nx.multiply(a, 2), b) end) end
    assert_compiles_alike([x], sum)
    assert_compiles_alike([x], other)

    window = fn x -> Nx.window_reduce(x, 0, {1, 2}, [], fn a, b -> Nx.subtract(b, a) end) end
    assert_compiles_alike([x], window)
  end

  ## The cache

  @compiled [:emily, :compiler, :compile, :stop]

  defp compilations(fun) do
    Emily.Events.during([@compiled], fun)
    count(fn _ -> true end, 0)
  end

  defp count(counts?, count) do
    receive do
      {@compiled, _, %{key: key}} -> count(counts?, if(counts?.(key), do: count + 1, else: count))
    after
      0 -> count
    end
  end

  test "a function is compiled once for a signature" do
    assert compilations(fn -> for n <- 1..1000, do: jit(&cached/1).(n) end) == 1
    assert compilations(fn -> jit(&cached/1).(1.0) end) == 1
    assert compilations(fn -> jit(&cached/1).(Nx.tensor([1])) end) == 1
    assert compilations(fn -> jit(&cached/1).(Nx.tensor([1], names: [:a])) end) == 1
    assert compilations(fn -> jit(&cached/1).(2) end) == 0
  end

  defn(cached(x), do: x * 2 + 1)

  test "closures with other captured values are other functions" do
    add = fn n -> jit(&Nx.add(&1, n)) end
    assert Nx.to_number(add.(1).(1)) == 2
    assert Nx.to_number(add.(2).(1)) == 3
    assert compilations(fn -> add.(1).(5) end) == 0
  end

  test "several processes that want one program make it once" do
    fun = fn x -> Nx.add(Nx.multiply(x, 3), 1) end

    results =
      Emily.Events.during([@compiled], [of_all: true], fn ->
        1..16
        |> Task.async_stream(fn n -> Nx.to_number(jit(fun).(n)) end,
          max_concurrency: 16,
          timeout: :infinity
        )
        |> Enum.map(fn {:ok, n} -> n end)
      end)

    assert results == Enum.map(1..16, &(&1 * 3 + 1))
    assert count(&(&1 == fun), 0) == 1
  end

  test "a function that cannot be compiled leaves its key free" do
    fun = fn x -> if Process.get(:broken), do: raise("broken"), else: Nx.add(x, 1) end
    Process.put(:broken, true)
    assert_raise RuntimeError, "broken", fn -> jit(fun).(1) end
    Process.delete(:broken)
    assert Nx.to_number(jit(fun).(1)) == 2
  end

  test "many signatures of one function are logged once" do
    log =
      ExUnit.CaptureLog.capture_log(fn ->
        for n <- 1..70, do: jit(&stormy/1).(Nx.iota({n}))
      end)

    assert [_, rest] = String.split(log, "stormy", parts: 2)
    assert rest =~ "64 signatures"
    refute rest =~ "stormy"
  end

  defn(stormy(x), do: x + 1)

  test "the least recently used program makes room, and is compiled again when it is wanted" do
    alias Emily.Compiler.Cache
    limit = Cache.size() + 1
    Application.put_env(:emily, :compiler_cache_limit, limit)
    on_exit(fn -> Application.delete_env(:emily, :compiler_cache_limit) end)
    first = fn -> jit(&evicted/1).(Nx.tensor([1])) end
    assert compilations(first) == 1
    for n <- 1..(limit + 1), do: jit(&evicted/1).(Nx.iota({n}, type: :u8))
    assert Cache.size() <= limit
    assert compilations(first) == 1
  end

  defn(evicted(x), do: x * 3)

  ## Options

  test "native: false evaluates operation by operation, on Emily" do
    x = Nx.tensor([1.0, 2.0], backend: Nx.BinaryBackend)
    fun = jit(fn x -> Nx.add(Nx.exp(x), Nx.iota({2})) end, native: false)
    assert %Emily.Backend{} = fun.(x).data
    assert compilations(fn -> fun.(x) end) == 0

    assert Nx.to_binary(fun.(x)) ==
             Nx.to_binary(jit(fn x -> Nx.add(Nx.exp(x), Nx.iota({2})) end).(x))
  end

  test "wrong options are named" do
    for {name, value} <- [
          native: 1,
          fuse: :yes,
          native_fallback: :no,
          device: :tpu,
          donate: 1,
          async: 2
        ] do
      assert_raise ArgumentError, ~r/#{name}/, fn -> jit(& &1, [{name, value}]).(1) end
    end

    assert_raise ArgumentError, ~r/max_concurrency/, fn ->
      Emily.Compiler.__partitions_options__(max_concurrency: 0)
    end
  end

  test "options of others are ignored" do
    assert Nx.to_number(jit(&Nx.add(&1, 1), batch_keys: [:a], cache: "x", debug: true).(1)) == 2
  end

  test "partitions have streams of their own" do
    assert [[compiler: Emily.Compiler]] =
             Emily.Compiler.__partitions_options__(compiler: Emily.Compiler)

    options = Emily.Compiler.__partitions_options__(max_concurrency: 3, device: :cpu)
    streams = for opts <- options, do: Keyword.fetch!(opts, :stream)
    assert length(Enum.uniq(streams)) == 3

    for opts <- options do
      t =
        Nx.Defn.jit(&Nx.iota({&1.shape |> elem(0)}), [compiler: Emily.Compiler] ++ opts).(
          Nx.tensor([1, 2])
        )

      assert Emily.Stream.info(opts[:stream]).bytes >= Nx.byte_size(t)
    end
  end

  test "the backend is that of the results" do
    assert Emily.Compiler.__to_backend__([]) == {Emily.Backend, [device: :gpu]}
    assert Emily.Compiler.__to_backend__(device: :cpu) == {Emily.Backend, [device: :cpu]}
  end

  test "async: true returns lazy results, which are computed when they are read" do
    fun = jit(&Nx.dot(&1, &1), async: true)
    x = Nx.iota({300, 300}, type: :f32)
    expected = Nx.to_binary(jit(&Nx.dot(&1, &1)).(x))

    Emily.Stream.with_stream(Emily.Stream.new(Emily.TestDevice.device()), fn ->
      results = for _ <- 1..20, do: fun.(x)
      assert Enum.all?(results, &(Nx.to_binary(&1) == expected))
      # What was scheduled goes into the next call, and to other streams.
      twice = fun.(fun.(x))

      Emily.Stream.with_stream(Emily.Stream.new(Emily.TestDevice.device()), fn ->
        assert Nx.to_binary(Nx.add(twice, 0)) ==
                 Nx.to_binary(jit(&Nx.dot(Nx.dot(&1, &1), Nx.dot(&1, &1))).(x))
      end)
    end)
  end

  ## Fusion

  # A few units in the last place: a fused kernel rounds in other places.
  defp assert_fuses(inputs, fun) do
    plain = apply(jit(fun), inputs)
    fused = apply(jit(fun, fuse: true), inputs)
    assert plain.shape == fused.shape and plain.type == fused.type

    for {a, b} <- Enum.zip(numbers(plain), numbers(fused)) do
      assert_in_delta a, b, 1.0e-6 * max(abs(a), 1)
    end
  end

  defn fusable(x, n) do
    {x, _} =
      while {x, n}, n > 0 do
        {Nx.tanh(Nx.exp(x) * x + 1.5), n - 1}
      end

    x
  end

  # MLX runs a C++ compiler for each kernel that it has not seen, which takes its time.
  @tag timeout: 300_000
  test "fused programs give the same but for the last bits" do
    x = Nx.tensor([[0.5, -1.0], [2.0, 0.25]])
    assert_fuses([x, Nx.tensor(3)], &fusable/2)
  end

  @tag timeout: 300_000
  test "a fused program runs on several streams" do
    fun = jit(&fusable/2, fuse: true)
    x = Nx.iota({2, 2}, type: :f32)
    n = Nx.tensor(3)
    expected = Nx.to_binary(fun.(x, n))

    run = fn _ ->
      Emily.Stream.with_stream(Emily.Stream.new(Emily.TestDevice.device()), fn ->
        for _ <- 1..10, do: assert(Nx.to_binary(fun.(x, n)) == expected)
      end)
    end

    1..4 |> Task.async_stream(run, timeout: :infinity) |> Stream.run()
  end

  ## Donation

  test "a donated tensor is given away, one that stands twice is not" do
    fun = jit(&Nx.put_slice(&2, [0], &1), donate: [1])
    {cache, update} = {Nx.broadcast(Nx.tensor(0.0), {4}), Nx.tensor([1.0])}
    assert numbers(fun.(update, cache)) == [1.0, 0.0, 0.0, 0.0]
    assert_raise ArgumentError, ~r/deallocated/, fn -> Nx.to_binary(cache) end
    assert numbers(update) == [1.0]

    both = jit(fn {a, b} -> {Nx.add(a, 1), Nx.add(b, 2)} end, donate: [0])
    cache = Nx.tensor([1, 2])
    {a, b} = both.({cache, cache})
    assert {numbers(a), numbers(b)} == {[2, 3], [3, 4]}
    assert numbers(cache) == [1, 2]
  end

  if function_exported?(Nx, :donatable, 1) do
    test "a tensor that Nx marks is donated, its results are not" do
      t = Nx.donatable(Nx.tensor([1, 2]))
      result = jit(&{&1, Nx.add(&1, 1)}).(t)
      assert {[1, 2], [2, 3]} == {numbers(elem(result, 0)), numbers(elem(result, 1))}
      refute Nx.donatable?(elem(result, 0))
      assert_raise ArgumentError, ~r/deallocated/, fn -> Nx.to_binary(t) end
    end
  end

  ## Streams

  test "a program runs on the stream of whoever calls" do
    fun = jit(&Nx.dot(&1, &1))
    x = Nx.iota({64, 64}, type: :f32)
    expected = Nx.to_binary(fun.(x))

    1..8
    |> Task.async_stream(
      fn _ ->
        stream = Emily.Stream.new(Emily.TestDevice.device())

        Emily.Stream.with_stream(stream, fn ->
          for _ <- 1..20, do: assert(Nx.to_binary(fun.(x)) == expected)
        end)
      end,
      max_concurrency: 8,
      timeout: :infinity
    )
    |> Stream.run()
  end

  test "a closed stream refuses, the program is fine elsewhere" do
    stream = Emily.Stream.new(Emily.TestDevice.device())
    Emily.Stream.close(stream)
    fun = jit(&Nx.multiply(&1, 2))
    assert Nx.to_number(fun.(2)) == 4

    assert_raise RuntimeError, ~r/stopped/, fn ->
      Emily.Stream.with_stream(stream, fn -> fun.(Nx.tensor(2)) end)
    end

    assert Nx.to_number(fun.(3)) == 6
  end
end
