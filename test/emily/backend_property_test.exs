defmodule Emily.BackendPropertyTest do
  # Every callback against Nx.BinaryBackend. A fallback raises, so that no property passes by one.
  use ExUnit.Case, async: false
  use ExUnitProperties

  import Emily.NxGenerators
  import Emily.NxTensors

  @moduletag :property

  setup do
    previous = Application.fetch_env(:emily, :fallback)
    Application.put_env(:emily, :fallback, :raise)

    on_exit(fn ->
      case previous do
        {:ok, mode} -> Application.put_env(:emily, :fallback, mode)
        :error -> Application.delete_env(:emily, :fallback)
      end
    end)
  end

  ## Elementwise, one tensor

  # The range keeps BinaryBackend from raising for a result that no float holds.
  for {name, types, range} <- [
        {:exp, :all, {-9, 9}},
        {:expm1, :all, {-9, 9}},
        {:log, :reals, {0.125, 200}},
        {:log1p, :reals, {0, 100}},
        {:sigmoid, :all, {-9, 9}},
        {:cos, :all, {-5, 5}},
        {:sin, :all, {-5, 5}},
        {:tan, :reals, {-1.25, 1.25}},
        {:cosh, :all, {-5, 5}},
        {:sinh, :all, {-5, 5}},
        {:tanh, :all, {-5, 5}},
        {:acos, :reals, {-1, 1}},
        {:asin, :reals, {-1, 1}},
        {:atan, :reals, {-9, 9}},
        {:acosh, :reals, {1, 99}},
        {:asinh, :reals, {-9, 9}},
        {:atanh, :reals, {-0.9, 0.9}},
        {:sqrt, :reals, {0, 200}},
        {:rsqrt, :reals, {0.25, 200}},
        {:cbrt, :reals, {-99, 99}},
        {:erf, :reals, {-4, 4}},
        {:erfc, :reals, {-4, 4}},
        {:negate, :all, {-99, 99}},
        {:abs, :all, {-99, 99}},
        {:conjugate, :mixable, {-99, 99}},
        {:real, :all, {-99, 99}},
        {:imag, :all, {-99, 99}},
        {:ceil, :reals, {-99, 99}},
        {:floor, :reals, {-99, 99}},
        {:round, :reals, {-99, 99}},
        {:sign, :reals, {-99, 99}},
        {:is_nan, :special, {-9, 9}},
        {:is_infinity, :special, {-9, 9}},
        {:logical_not, :all, {-2, 2}},
        {:bitwise_not, :integers, nil},
        {:population_count, :integers, nil},
        {:count_leading_zeros, :integers, nil}
      ] do
    property "#{name}" do
      check all(tensor <- tensor(options(unquote(types), unquote(Macro.escape(range))))) do
        assert_like_binary_backend(tensor, &Nx.unquote(name)(&1))
      end
    end
  end

  property "erf_inv" do
    # Nx's own approximation is good to seven digits.
    check all(tensor <- tensor(types: Emily.TestDevice.types(f: 32, f: 64), range: {-0.95, 0.95})) do
      assert_like_binary_backend(tensor, &Nx.erf_inv/1, tolerance: 1.0e-6)
    end
  end

  property "negate and abs wrap" do
    check all(tensor <- tensor(types: signed())) do
      assert_like_binary_backend(tensor, &Nx.negate/1)
      assert_like_binary_backend(tensor, &Nx.abs/1)
    end
  end

  property "phase" do
    check all(tensor <- tensor(types: [{:c, 64}, {:f, 32}, {:s, 32}], range: {-9, 9})) do
      assert_like_binary_backend(tensor, &Nx.phase/1)
    end
  end

  ## Elementwise, two tensors

  for name <- [:add, :subtract, :multiply] do
    property "#{name}" do
      check all({a, b} <- broadcastable(types: mixable(), range: {-99, 99})) do
        assert_like_binary_backend([a, b], &Nx.unquote(name)(&1, &2))
      end
    end

    property "#{name} of integers wraps" do
      check all({a, b} <- broadcastable(types: integers())) do
        assert_like_binary_backend([a, b], &Nx.unquote(name)(&1, &2))
      end
    end
  end

  property "divide" do
    check all({a, b} <- broadcastable(types: reals(), range: {1, 99})) do
      assert_like_binary_backend([a, b], &Nx.divide/2)
    end
  end

  for name <- [:max, :min] do
    property "#{name}" do
      check all({a, b} <- broadcastable(types: reals(), special: true)) do
        assert_like_binary_backend([a, b], &Nx.unquote(name)(&1, &2))
      end
    end
  end

  property "atan2" do
    check all({a, b} <- broadcastable(types: reals(), range: {0.25, 9})) do
      assert_like_binary_backend([a, b], &Nx.atan2/2)
    end
  end

  property "pow" do
    check all(
            {a, _} <- broadcastable(types: integers(), range: {-5, 5}),
            b <- tensor(type: {:u, 8}, shape: a.shape, range: {0, 9})
          ) do
      assert_like_binary_backend([a, b], &Nx.pow/2)
      exponent = Nx.as_type(b, {:f, 32})
      assert_like_binary_backend([Nx.as_type(a, {:f, 32}), exponent], &Nx.pow/2)
    end
  end

  for name <- [:quotient, :remainder] do
    property "#{name} of integers" do
      check all({a, b} <- broadcastable(types: integers())) do
        # Nx.BinaryBackend raises for zero; and the quotient of the least number by -1 wraps.
        b = Nx.select(Nx.equal(b, 0), Nx.tensor(3, type: b.type), b)
        assert_like_binary_backend([a, b], &Nx.unquote(name)(&1, &2))
      end
    end
  end

  property "remainder of floats" do
    check all(
            {a, b} <- broadcastable(types: Emily.TestDevice.types(f: 32, f: 64), range: {-99, 99})
          ) do
      b = Nx.select(Nx.equal(b, 0), Nx.tensor(2.5, type: b.type), b)
      assert_like_binary_backend([a, b], &Nx.remainder/2)
    end
  end

  for name <- [:bitwise_and, :bitwise_or, :bitwise_xor] do
    property "#{name}" do
      check all({a, b} <- broadcastable(types: integers())) do
        assert_like_binary_backend([a, b], &Nx.unquote(name)(&1, &2))
      end
    end
  end

  for name <- [:left_shift, :right_shift] do
    property "#{name}" do
      check all(
              a <- tensor(types: integers()),
              b <- tensor(type: a.type, shape: a.shape, range: {0, 70})
            ) do
        assert_like_binary_backend([a, b], &Nx.unquote(name)(&1, &2))
      end
    end
  end

  for name <- [:equal, :not_equal, :less, :less_equal, :greater, :greater_equal] do
    property "#{name}" do
      check all({a, b} <- broadcastable(types: reals(), special: true, range: {-9, 9})) do
        assert_like_binary_backend([a, b], &Nx.unquote(name)(&1, &2))
      end
    end

    property "#{name} of integers by value" do
      check all({a, b} <- broadcastable(types: integers())) do
        assert_like_binary_backend([a, b], &Nx.unquote(name)(&1, &2))
      end
    end
  end

  property "equality of complex numbers" do
    check all({a, b} <- broadcastable(types: [{:c, 64}], range: {-2, 2})) do
      assert_like_binary_backend([a, b], &Nx.equal/2)
      assert_like_binary_backend([a, b], &Nx.not_equal/2)
    end
  end

  for name <- [:logical_and, :logical_or, :logical_xor] do
    property "#{name}" do
      check all({a, b} <- broadcastable(range: {-1, 1})) do
        assert_like_binary_backend([a, b], &Nx.unquote(name)(&1, &2))
      end
    end
  end

  property "select" do
    check all(
            {a, b} <- broadcastable(types: mixable(), range: {-99, 99}),
            pred <- tensor(types: reals(), shape: Nx.shape(Nx.add(a, b)), range: {-1, 1})
          ) do
      assert_like_binary_backend([pred, a, b], &Nx.select/3)
      assert_like_binary_backend([Nx.tensor(1), a, b], &Nx.select/3)
      assert_like_binary_backend([Nx.tensor(0), a, b], &Nx.select/3)
    end
  end

  property "clip" do
    check all(
            tensor <- tensor(types: reals(), range: {-99, 99}),
            low <- tensor(types: reals(), shape: {}, range: {-50, 0}),
            high <- tensor(types: reals(), shape: {}, range: {1, 50})
          ) do
      assert_like_binary_backend([tensor, low, high], &Nx.clip/3)
    end
  end

  property "vectorized axes" do
    check all([a, b] <- tensors(2, types: reals(), shape: shape(2..3), range: {-9, 9})) do
      vectorized = fn op ->
        fn a, b -> op.(Nx.vectorize(a, :x), Nx.vectorize(b, :y)) end
      end

      assert_like_binary_backend([a, b], vectorized.(&Nx.add/2))
      assert_like_binary_backend([a, b], vectorized.(&Nx.less/2))
      assert_like_binary_backend([a, b], fn a, _ -> Nx.sum(Nx.vectorize(a, :x)) end)
      assert_like_binary_backend([a, b], fn a, _ -> Nx.argmax(Nx.vectorize(a, :x)) end)
    end
  end

  ## Types

  property "as_type" do
    check all(
            tensor <- tensor(types: reals(), special: true, range: {-999, 999}),
            complex <- tensor(types: [{:c, 64}], range: {-999, 999}),
            type <- member_of(types())
          ) do
      assert_like_binary_backend(tensor, &Nx.as_type(&1, type), tolerance: 8.0e-3)
      assert_like_binary_backend(complex, &Nx.as_type(&1, type), tolerance: 8.0e-3)
    end
  end

  property "integers change type by wrapping" do
    check all(tensor <- tensor(types: integers()), type <- member_of(integers())) do
      assert_like_binary_backend(tensor, &Nx.as_type(&1, type))
    end
  end

  property "bitcast" do
    check all(tensor <- tensor(types: integers()), kind <- member_of([:s, :u])) do
      assert_like_binary_backend(tensor, &Nx.bitcast(&1, {kind, elem(tensor.type, 1)}))
    end
  end

  ## Creation

  property "iota and eye" do
    check all(type <- member_of(types()), shape <- shape(1..4)) do
      assert_like_binary_backend([], fn -> Nx.iota(shape, type: type) end)

      for axis <- 0..(tuple_size(shape) - 1) do
        assert_like_binary_backend([], fn -> Nx.iota(shape, type: type, axis: axis) end)
      end

      if tuple_size(shape) > 1,
        do: assert_like_binary_backend([], fn -> Nx.eye(shape, type: type) end)
    end
  end

  property "constants" do
    check all(type <- member_of(types()), number <- number(type, special: true)) do
      assert_like_binary_backend([], fn -> Nx.tensor(number, type: type) end)

      assert_like_binary_backend([], fn -> Nx.broadcast(Nx.tensor(number, type: type), {2, 3}) end)
    end
  end

  property "binaries come back as they went in, also in part" do
    check all(tensor <- tensor(special: true), limit <- integer(0..20)) do
      emily = to_emily(tensor)
      assert Nx.to_binary(emily) == Nx.to_binary(tensor)
      assert Nx.to_binary(emily, limit: limit) == Nx.to_binary(tensor, limit: limit)
      assert inspect(emily) == inspect(tensor)

      assert inspect(emily, limit: 3) == inspect(tensor, limit: 3)
    end
  end

  property "to_batched" do
    check all(tensor <- tensor(shape: shape(1..3)), size <- integer(1..elem(tensor.shape, 0))) do
      for leftover <- [:repeat, :discard] do
        batches = fn t -> t |> Nx.to_batched(size, leftover: leftover) |> Enum.to_list() end
        assert_like_binary_backend(tensor, batches, compile: false)
      end
    end
  end

  ## Shape

  property "reshape, squeeze, new_axis, flatten" do
    check all(tensor <- tensor(names: true)) do
      assert_like_binary_backend(tensor, &Nx.flatten/1)
      assert_like_binary_backend(tensor, &Nx.squeeze/1)
      assert_like_binary_backend(tensor, &Nx.new_axis(&1, -1))
    end
  end

  property "transpose and reverse" do
    check all(
            tensor <- tensor(names: true),
            axes <- shuffled(tensor),
            count <- integer(0..length(axes))
          ) do
      assert_like_binary_backend(tensor, &Nx.transpose(&1, axes: axes))
      assert_like_binary_backend(tensor, &Nx.reverse(&1, axes: Enum.take(axes, count)))
    end
  end

  property "broadcast to named axes" do
    check all(
            tensor <- tensor(shape: shape(0..2)),
            shape <- shape(2..4),
            axes <- map(shuffled(shape), &Enum.sort(Enum.take(&1, tuple_size(tensor.shape))))
          ) do
      axes_and_sizes = Enum.zip(axes, Tuple.to_list(tensor.shape))

      target =
        Enum.reduce(axes_and_sizes, shape, fn {axis, size}, s -> put_elem(s, axis, size) end)

      assert_like_binary_backend(tensor, &Nx.broadcast(&1, target, axes: axes))
    end
  end

  property "pad" do
    check all(
            tensor <- tensor(shape: shape(1..3), range: {-99, 99}),
            value <- number(tensor.type, range: {-9, 9}),
            config <- list_of(padding(), length: tuple_size(tensor.shape))
          ) do
      sizes =
        Enum.zip_with(Tuple.to_list(tensor.shape), config, fn size, {low, high, interior} ->
          size + (size - 1) * interior + low + high
        end)

      # Nx.BinaryBackend cannot cut off more than there is.
      left =
        Enum.zip_with(Tuple.to_list(tensor.shape), config, fn size, {low, high, interior} ->
          size + (size - 1) * interior + min(low, 0) + min(high, 0)
        end)

      if Enum.all?(sizes ++ left, &(&1 > 0)) do
        value = Nx.tensor(value, type: tensor.type, backend: Nx.BinaryBackend)
        assert_like_binary_backend([tensor, value], &Nx.pad(&1, &2, config))
      end
    end
  end

  property "concatenate and stack" do
    check all(
            [a, b, c] <- tensors(3, types: mixable(), shape: shape(1..3), range: {-99, 99}),
            type <- member_of(mixable()),
            axis <- integer(0..(tuple_size(a.shape) - 1))
          ) do
      b = if match?({:c, _}, b.type), do: b, else: Nx.as_type(b, type)
      assert_like_binary_backend([a, b, c], &Nx.concatenate([&1, &2, &3], axis: axis))
      assert_like_binary_backend([a, b, c], &Nx.stack([&1, &2, &3], axis: axis))
    end
  end

  ## Parts

  property "slice" do
    check all(
            tensor <- tensor(shape: shape(1..4)),
            picks <-
              list_of({integer(-2..5), integer(1..4), integer(1..3)},
                length: tuple_size(tensor.shape)
              ),
            dynamic <- list_of(boolean(), length: tuple_size(tensor.shape)),
            type <- member_of(integers())
          ) do
      sizes = Tuple.to_list(tensor.shape)
      lengths = Enum.zip_with(sizes, picks, fn size, {_, length, _} -> min(size, length) end)
      strides = Enum.map(picks, &elem(&1, 2))
      starts = Enum.map(picks, &elem(&1, 0))

      with_starts = fn t ->
        starts =
          Enum.zip_with(starts, dynamic, fn start, dynamic? ->
            if dynamic?, do: start_tensor(start, type), else: max(start, 0)
          end)

        Nx.slice(t, starts, lengths, strides: strides)
      end

      assert_like_binary_backend(tensor, with_starts)
    end
  end

  property "put_slice" do
    check all(
            tensor <- tensor(types: mixable(), shape: shape(1..4), range: {-99, 99}),
            lengths <- fixed_list(Enum.map(Tuple.to_list(tensor.shape), &integer(1..&1))),
            slice <- tensor(types: mixable(), shape: List.to_tuple(lengths), range: {-99, 99}),
            starts <- list_of(integer(-2..5), length: length(lengths)),
            dynamic <- list_of(boolean(), length: length(lengths)),
            type <- member_of(integers())
          ) do
      put = fn t, s ->
        starts =
          Enum.zip_with(starts, dynamic, fn start, dynamic? ->
            if dynamic?, do: start_tensor(start, type), else: max(start, 0)
          end)

        Nx.put_slice(t, starts, s)
      end

      assert_like_binary_backend([tensor, slice], put)
    end
  end

  property "take and take_along_axis" do
    check all(
            tensor <- tensor(shape: shape(1..4)),
            axis <- integer(0..(tuple_size(tensor.shape) - 1)),
            size = elem(tensor.shape, axis),
            type <- member_of(integers()),
            indices <- tensor(type: type, shape: shape(0..2), range: {0, size - 1}),
            along <-
              tensor(type: type, shape: put_elem(tensor.shape, axis, 3), range: {0, size - 1})
          ) do
      assert_like_binary_backend([tensor, indices], &Nx.take(&1, &2, axis: axis))
      assert_like_binary_backend([tensor, along], &Nx.take_along_axis(&1, &2, axis: axis))
    end
  end

  # Nx leaves these open, and its own backend raises.
  property "take outside the axis: from its end, and clamped beyond" do
    check all(
            tensor <- tensor(shape: shape(1..4)),
            axis <- integer(0..(tuple_size(tensor.shape) - 1)),
            type <- member_of(integers()),
            indices <- tensor(type: type, shape: shape(0..2))
          ) do
      size = elem(tensor.shape, axis)

      inside =
        for index <- Nx.to_flat_list(indices) do
          index = index |> max(-size) |> min(size - 1)
          if index < 0, do: index + size, else: index
        end

      inside = Nx.tensor(inside, type: :s64, backend: Nx.BinaryBackend)
      inside = Nx.reshape(inside, indices.shape)
      # Once more with elements that do not lie in order.
      turned = &Nx.take(Nx.transpose(&1), &2, axis: tuple_size(tensor.shape) - 1 - axis)

      for take <- [&Nx.take(&1, &2, axis: axis), turned] do
        assert_same(take.(to_emily(tensor), to_emily(indices)), take.(tensor, inside))
        assert_compiles_alike([tensor, indices], take)
      end
    end
  end

  property "gather, indexed_add and indexed_put on any axes" do
    check all(
            tensor <- tensor(types: mixable(), shape: shape(1..4), range: {-99, 99}),
            order <- shuffled(tensor),
            count <- integer(1..length(order)),
            axes = Enum.sort(Enum.take(order, count)),
            rows <- integer(1..4),
            indices <- index_rows(tensor, axes, rows),
            rest =
              for(
                a <- 0..(tuple_size(tensor.shape) - 1),
                a not in axes,
                do: elem(tensor.shape, a)
              ),
            updates <-
              tensor(types: mixable(), shape: List.to_tuple([rows | rest]), range: {-99, 99})
          ) do
      assert_like_binary_backend([tensor, indices], &Nx.gather(&1, &2, axes: axes))
      inputs = [tensor, indices, updates]
      places = Nx.to_list(indices)

      # Which of several updates of one place stays is not said, and on a GPU it is not the last.
      if places == Enum.uniq(places) or not Emily.TestDevice.gpu?(),
        do: assert_like_binary_backend(inputs, &Nx.indexed_put(&1, &2, &3, axes: axes))

      inputs = [whole(tensor), indices, whole(updates)]
      assert_like_binary_backend(inputs, &Nx.indexed_add(&1, &2, &3, axes: axes))
    end
  end

  # Numbers of which a few add up to the same in every order, in every type: none is beyond 25.
  defp whole(%Nx.Tensor{type: {kind, _}} = tensor) when kind in [:f, :bf],
    do: tensor |> Nx.divide(4) |> Nx.as_type(:s32) |> Nx.as_type(tensor.type)

  defp whole(tensor), do: tensor

  ## Reductions

  # Products of no order go beyond a type's largest number: infinity times zero depends on which comes first.
  for {name, range} <- [sum: {-3, 3}, product: {-1, 1}] do
    property "#{name}" do
      check all(tensor <- tensor(range: unquote(range)), opts <- axes_options(tensor)) do
        # A product of many halves has as many roundings.
        tolerance = if elem(tensor.type, 0) in [:f, :bf, :c], do: 3.0e-2, else: 0
        assert_like_binary_backend(tensor, &Nx.unquote(name)(&1, opts), tolerance: tolerance)
      end
    end

    property "#{name} of integers wraps" do
      check all(tensor <- tensor(types: integers()), opts <- axes_options(tensor)) do
        assert_like_binary_backend(tensor, &Nx.unquote(name)(&1, opts))
      end
    end
  end

  for name <- [:all, :any] do
    property "#{name}" do
      # Every complex number is true for Nx.BinaryBackend, also zero.
      check all(tensor <- tensor(types: reals(), range: {-1, 1}), opts <- axes_options(tensor)) do
        assert_like_binary_backend(tensor, &Nx.unquote(name)(&1, opts))
      end
    end
  end

  for name <- [:reduce_max, :reduce_min] do
    property "#{name}" do
      check all(tensor <- tensor(types: reals(), special: true), opts <- axes_options(tensor)) do
        assert_like_binary_backend(tensor, &Nx.unquote(name)(&1, opts))
      end
    end
  end

  for name <- [:argmax, :argmin] do
    property "#{name}" do
      check all(
              tensor <- tensor(types: reals(), special: true, range: {-2, 2}),
              axis <- axis_or_nil(tensor),
              tie_break <- member_of([:low, :high]),
              keep <- boolean(),
              type <- member_of(integers())
            ) do
        opts = [axis: axis, tie_break: tie_break, keep_axis: keep and axis != nil, type: type]
        assert_like_binary_backend(tensor, &Nx.unquote(name)(&1, opts))
        # Whose elements do not lie in order.
        assert_like_binary_backend(tensor, &Nx.unquote(name)(Nx.transpose(&1), opts))
      end
    end
  end

  for {name, kind} <- [
        cumulative_sum: :all,
        cumulative_product: :all,
        cumulative_max: :reals,
        cumulative_min: :reals
      ] do
    property "#{name}" do
      check all(
              tensor <- tensor([shape: shape(1..4)] ++ options(unquote(kind), {-3, 3})),
              axis <- integer(0..(tuple_size(tensor.shape) - 1)),
              reverse <- boolean()
            ) do
        cumulate = &Nx.unquote(name)(&1, axis: axis, reverse: reverse)
        assert_like_binary_backend(tensor, cumulate, tolerance: tolerance(tensor))
      end
    end
  end

  property "reduce by known functions" do
    # Nx.BinaryBackend rounds half types after every step.
    types = integers() ++ Emily.TestDevice.types(f: 32, f: 64)

    check all(tensor <- tensor(types: types, range: {-3, 3}), opts <- axes_options(tensor)) do
      acc = Nx.tensor(2, type: tensor.type, backend: Nx.BinaryBackend)

      for fun <- [&Nx.add/2, &Nx.multiply/2, &Nx.max/2, &Nx.min/2] do
        assert_like_binary_backend([tensor, acc], &Nx.reduce(&1, &2, opts, fun),
          tolerance: 3.0e-2
        )
      end
    end
  end

  property "all_close" do
    check all(
            [a, b] <- tensors(2, types: reals(), special: true, range: {-2, 2}),
            nan <- boolean()
          ) do
      assert_like_binary_backend([a, b], &Nx.all_close(&1, &2, equal_nan: nan))
      assert_like_binary_backend([a, a], &Nx.all_close(&1, &2, equal_nan: nan))
    end
  end

  ## Order

  property "sort and argsort" do
    check all(
            tensor <- tensor(types: reals(), shape: shape(1..4), special: true, range: {-2, 2}),
            axis <- integer(0..(tuple_size(tensor.shape) - 1)),
            direction <- member_of([:asc, :desc])
          ) do
      # BinaryBackend orders 0.0 and -0.0, which are equal.
      tensor = Nx.add(tensor, Nx.tensor(0, type: tensor.type))
      opts = [axis: axis, direction: direction]
      assert_like_binary_backend(tensor, &Nx.sort(&1, opts))
      assert_like_binary_backend(tensor, &Nx.argsort(&1, [stable: true] ++ opts))
    end
  end

  property "top_k" do
    check all(
            tensor <- tensor(types: reals(), shape: shape(1..3), range: {-9, 9}),
            k <- integer(1..elem(tensor.shape, tuple_size(tensor.shape) - 1))
          ) do
      assert_like_binary_backend(tensor, &Nx.top_k(&1, k: k))
    end
  end

  ## Windows

  for name <- [:window_sum, :window_product, :window_max, :window_min] do
    property "#{name}" do
      check all(
              tensor <- tensor(types: reals(), shape: shape(1..3), range: {-3, 3}),
              {window, opts} <- window(tensor)
            ) do
        if fits?(tensor.shape, window, opts) do
          assert_like_binary_backend(tensor, &Nx.unquote(name)(&1, window, opts),
            tolerance: tolerance(tensor)
          )
        end
      end
    end
  end

  property "window_reduce by known functions" do
    check all(
            tensor <- tensor(types: reals(), shape: shape(1..3), range: {-3, 3}),
            {window, opts} <- window(tensor)
          ) do
      if fits?(tensor.shape, window, opts) do
        acc = Nx.tensor(1, type: tensor.type, backend: Nx.BinaryBackend)

        for fun <- [&Nx.add/2, &Nx.max/2] do
          # BinaryBackend calls the function with numbers, for which Nx has its default type.
          typed = fn x, y -> fun.(as_scalar(x, tensor.type), as_scalar(y, tensor.type)) end
          reduce = &Nx.window_reduce(&1, &2, window, opts, typed)
          assert_like_binary_backend([tensor, acc], reduce, tolerance: tolerance(tensor))
        end
      end
    end
  end

  for name <- [:window_scatter_max, :window_scatter_min] do
    property "#{name}" do
      check all(
              tensor <- tensor(types: reals(), shape: shape(1..3), range: {-3, 3}),
              window <- fixed_list(Enum.map(Tuple.to_list(tensor.shape), &integer(1..&1))),
              strides <- list_of(integer(1..2), length: length(window)),
              init <- integer(0..2),
              shape =
                Enum.zip_with([Tuple.to_list(tensor.shape), window, strides], fn [n, w, s] ->
                  div(n - w, s) + 1
                end),
              source <- tensor(type: tensor.type, shape: List.to_tuple(shape), range: {-9, 9})
            ) do
        scatter = fn t, s ->
          Nx.unquote(name)(t, s, init, List.to_tuple(window), strides: strides)
        end

        assert_like_binary_backend([tensor, source], scatter, tolerance: tolerance(tensor))
      end
    end
  end

  ## Products

  property "dot" do
    check all(
            batch <- list_of(integer(1..3), max_length: 2),
            contract <- list_of(integer(1..3), max_length: 2),
            free_a <- list_of(integer(1..3), max_length: 2),
            free_b <- list_of(integer(1..3), max_length: 2),
            order_a <- shuffled(List.to_tuple(contract ++ free_a)),
            order_b <- shuffled(List.to_tuple(contract ++ free_b)),
            type_a <- member_of(mixable()),
            type_b <- member_of(mixable()),
            a <- arranged(type_a, batch, contract ++ free_a, order_a),
            b <- arranged(type_b, batch, contract ++ free_b, order_b)
          ) do
      count = length(batch)
      batch_axes = Enum.to_list(0..(count - 1)//1)

      position = fn order ->
        for i <- 0..(length(contract) - 1)//1, do: count + Enum.find_index(order, &(&1 == i))
      end

      product = &Nx.dot(&1, position.(order_a), batch_axes, &2, position.(order_b), batch_axes)
      assert_like_binary_backend([a, b], product, tolerance: dot_tolerance(a, b))
    end
  end

  property "large integer products wrap" do
    check all(type <- member_of(integers()), [a, b] <- pair_of_matrices(type), max_runs: 8) do
      assert_like_binary_backend([a, b], &Nx.dot(&1, [1], &2, [0]))
    end
  end

  property "conv" do
    check all({tensor, kernel, opts} <- convolution(1..3, 3..5, 0..2), max_runs: 60) do
      assert_like_binary_backend([tensor, kernel], &Nx.conv(&1, &2, opts), tolerance: 3.0e-2)
    end
  end

  property "conv with negative padding" do
    check all({tensor, kernel, opts} <- convolution(1..2, 5..6, -1..1), max_runs: 40) do
      assert_like_binary_backend([tensor, kernel], &Nx.conv(&1, &2, opts), tolerance: 3.0e-2)
    end
  end

  property "conv with batch groups" do
    check all(
            groups <- integer(1..3),
            rows <- integer(1..2),
            channels <- integer(1..2),
            filters <- integer(1..2),
            tensor <- tensor(type: {:f, 32}, shape: {groups * rows, channels, 4, 3}),
            kernel <- tensor(type: {:f, 32}, shape: {groups * filters, channels, 2, 2}),
            max_runs: 30
          ) do
      conv = &Nx.conv(&1, &2, batch_group_size: groups, padding: :same)
      assert_like_binary_backend([tensor, kernel], conv)
    end
  end

  ## Linear algebra

  property "triangular_solve in every form" do
    check all(
            n <- integer(1..4),
            m <- integer(1..3),
            type <- member_of(Emily.TestDevice.types([{:f, 32}, {:f, 64}, {:c, 64}])),
            a <- tensor(type: type, shape: {n, n}, range: {-2, 2}),
            lower <- boolean(),
            left <- boolean(),
            transform <- member_of([:none, :transpose, :conjugate]),
            vector <- boolean(),
            shape = if(vector, do: {n}, else: if(left, do: {n, m}, else: {m, n})),
            b <- tensor(type: type, shape: shape, range: {-2, 2})
          ) do
      # A diagonal that is not near zero.
      a = Nx.add(a, Nx.multiply(Nx.eye(n, type: type), 5))
      opts = [lower: lower, left_side: left, transform_a: transform]

      assert_like_binary_backend([a, b], &Nx.LinAlg.triangular_solve(&1, &2, opts),
        tolerance: 1.0e-4
      )
    end
  end

  property "batches of triangular_solve" do
    check all(
            a <- tensor(type: {:f, 32}, shape: {2, 3, 3}, range: {-2, 2}),
            b <- tensor(type: {:f, 32}, shape: {2, 3, 2}, range: {-2, 2}),
            max_runs: 20
          ) do
      a = Nx.add(a, Nx.multiply(Nx.eye(3), 5))
      assert_like_binary_backend([a, b], &Nx.LinAlg.triangular_solve/2)
    end
  end

  property "decompositions multiply back" do
    check all(
            batch <- list_of(integer(1..2), max_length: 1),
            m <- integer(1..4),
            n <- integer(1..4),
            type <- member_of(Emily.TestDevice.types([{:f, 32}, {:f, 64}, {:f, 16}, {:s, 32}])),
            tensor <- tensor(type: type, shape: List.to_tuple(batch ++ [m, n]), range: {-9, 9})
          ) do
      a = to_emily(tensor)
      tolerance = if type == {:f, 16}, do: 5.0e-2, else: 1.0e-3
      # Of numbers up to 9.
      tolerance = max(tolerance, 9 * Emily.TestDevice.coarseness(Nx.Type.to_floating(type)))
      real = Nx.as_type(a, Nx.Type.to_floating(type))

      for mode <- [:reduced, :complete] do
        {q, r} = Nx.LinAlg.qr(a, mode: mode)
        assert_near(matmul(q, r), real, tolerance)
        assert_near(matmul(adjoint(q), q), identity(q), tolerance)
        assert_near(Nx.triu(r), r, tolerance)
      end

      for full <- [true, false] do
        {u, s, vt} = Nx.LinAlg.svd(a, full_matrices?: full)
        k = min(m, n)
        u = Nx.slice_along_axis(u, 0, k, axis: -1)
        vt = Nx.slice_along_axis(vt, 0, k, axis: -2)
        assert_near(matmul(Nx.multiply(u, Nx.new_axis(s, -2)), vt), real, tolerance)
      end

      square = matmul(real, adjoint(real))
      {values, vectors} = Nx.LinAlg.eigh(square)
      scaled = Nx.multiply(vectors, Nx.new_axis(values, -2))
      assert_near(matmul(scaled, adjoint(vectors)), square, tolerance * 100)

      {p, l, u} = Nx.LinAlg.lu(square)
      assert_near(matmul(Nx.as_type(p, l.type), matmul(l, u)), square, tolerance * 100)

      positive = Nx.add(square, identity(square))
      lower = Nx.LinAlg.cholesky(positive)
      assert_near(matmul(lower, adjoint(lower)), positive, tolerance * 100)
    end
  end

  property "determinant and solve" do
    check all(
            n <- integer(1..4),
            type <- member_of(Emily.TestDevice.types([{:f, 32}, {:f, 64}])),
            a <- tensor(type: type, shape: {2, n, n}, range: {-2, 2}),
            b <- tensor(type: type, shape: {2, n, 2}, range: {-2, 2})
          ) do
      a = Nx.add(a, Nx.multiply(Nx.eye(n, type: type), 9))
      assert_like_binary_backend(a, &Nx.LinAlg.determinant/1, tolerance: 1.0e-4)
      assert_like_binary_backend([a, b], &Nx.LinAlg.solve/2, tolerance: 1.0e-4)
    end
  end

  ## Fourier transforms

  for name <- [:fft, :ifft] do
    # Nx.BinaryBackend misplaces inner axes of three, and leaves transforms of length 1 out.
    property "#{name}" do
      check all(
              tensor <- tensor(types: [f: 32, c: 64], shape: shape(1..2), range: {-9, 9}),
              axis <- integer(0..(tuple_size(tensor.shape) - 1)),
              length <- integer(2..6)
            ) do
        opts = [axis: axis, length: length]
        assert_like_binary_backend(tensor, &Nx.unquote(name)(&1, opts), tolerance: 1.0e-4)
      end
    end

    property "#{name} of an inner axis is that of the last one" do
      check all(
              tensor <-
                tensor(types: [u: 8, s: 32, f: 32, c: 64], shape: shape(3..4), range: {-9, 9}),
              axis <- integer(0..(tuple_size(tensor.shape) - 1)),
              length <- integer(1..6)
            ) do
        emily = to_emily(tensor)
        axes = Nx.axes(tensor)
        swapped = axes |> List.replace_at(axis, List.last(axes)) |> List.replace_at(-1, axis)

        by_swap =
          emily
          |> Nx.transpose(axes: swapped)
          |> Nx.unquote(name)(length: length)
          |> Nx.transpose(axes: swapped)

        assert_same(Nx.unquote(name)(emily, axis: axis, length: length), by_swap)
      end
    end
  end

  property "rfft, irfft, fft2 and ifft2" do
    check all(
            tensor <- tensor(types: [{:f, 32}], shape: shape(2..2), range: {-9, 9}),
            length <- integer(3..6)
          ) do
      opts = [length: length]
      assert_like_binary_backend(tensor, &Nx.rfft(&1, opts), tolerance: 1.0e-4)
      assert_like_binary_backend(tensor, &Nx.irfft(&1, opts), tolerance: 1.0e-4)
      lengths = [lengths: [length, 3]]
      assert_like_binary_backend(tensor, &Nx.fft2(&1, lengths), tolerance: 1.0e-4)
      assert_like_binary_backend(tensor, &Nx.ifft2(&1, lengths), tolerance: 1.0e-4)
    end
  end

  ## Hostile data

  # 2,000 runs of 64 elements each: more than 100,000 of every operation. What MLX itself would not
  # survive (division by zero, shifts, indices) must end in some result.
  property "no data ends the process" do
    check all(
            type <- member_of(integers()),
            {_, bits} = type,
            [a, b] <- list_of(binary(length: div(64 * bits, 8)), length: 2),
            floats <- binary(length: 64 * 8),
            float <- member_of(floats()),
            max_runs: Emily.TestDevice.runs(2_000)
          ) do
      [a, b] = Enum.map([a, b], &Nx.from_binary(&1, type, backend: Emily.Backend))

      x =
        Nx.from_binary(binary_part(floats, 0, 8 * elem(float, 1)), float, backend: Emily.Backend)

      table = Nx.iota({7, 5}, backend: Emily.Backend)
      pairs = Nx.reshape(a, {32, 2})

      results =
        [
          Nx.quotient(a, b),
          Nx.remainder(a, b),
          Nx.pow(a, b),
          Nx.left_shift(a, b),
          Nx.right_shift(a, b),
          Nx.as_type(x, type),
          Nx.remainder(x, Nx.reverse(x)),
          Nx.round(x),
          Nx.take(table, a, axis: 1),
          Nx.take_along_axis(table, Nx.reshape(a, {64, 1}) |> Nx.broadcast({64, 5})),
          Nx.gather(table, pairs),
          Nx.indexed_add(table, pairs, Nx.iota({32})),
          Nx.indexed_put(table, pairs, Nx.iota({32})),
          Nx.slice(table, [a[0], b[0]], [3, 3]),
          Nx.put_slice(table, [a[1], b[1]], Nx.iota({3, 3})),
          Nx.argsort(x),
          Nx.argmax(x)
        ]

      for tensor <- results, do: assert(Nx.to_binary(tensor) != "")
    end
  end

  ## Generators of arguments

  # Types whose merges MLX has: that of f64 and c64 is c128.
  defp mixable, do: types() -- [f: 64]

  defp options(types, range) do
    range = if range, do: [range: range], else: []

    range ++
      case types do
        :all -> [types: types()]
        :mixable -> [types: mixable()]
        :reals -> [types: reals()]
        :integers -> [types: integers()]
        :special -> [types: reals(), special: true]
      end
  end

  defp shuffled(%Nx.Tensor{shape: shape}), do: shuffled(shape)

  defp shuffled(shape) do
    axes = Enum.to_list(0..(tuple_size(shape) - 1)//1)

    map(list_of(integer(0..1_000_000), length: length(axes)), fn keys ->
      keys |> Enum.zip(axes) |> Enum.sort() |> Enum.map(&elem(&1, 1))
    end)
  end

  defp padding, do: {integer(-2..3), integer(-2..3), integer(0..2)}

  defp axes_options(tensor) do
    bind(shuffled(tensor), fn axes ->
      map({integer(0..length(axes)), boolean(), boolean()}, fn {count, all?, keep?} ->
        if all?, do: [keep_axes: keep?], else: [axes: Enum.take(axes, count), keep_axes: keep?]
      end)
    end)
  end

  defp axis_or_nil(%{shape: {}}), do: constant(nil)
  defp axis_or_nil(tensor), do: member_of([nil | Nx.axes(tensor)])

  defp start_tensor(start, {:u, _} = type), do: Nx.tensor(max(start, 0), type: type)
  defp start_tensor(start, type), do: Nx.tensor(start, type: type)

  defp index_rows(tensor, axes, rows) do
    columns = Enum.map(axes, fn axis -> integer(0..(elem(tensor.shape, axis) - 1)) end)

    map({list_of(fixed_list(columns), length: rows), member_of(integers())}, fn {rows, type} ->
      Nx.tensor(rows, type: type, backend: Nx.BinaryBackend)
    end)
  end

  defp window(tensor) do
    rank = tuple_size(tensor.shape)
    list = &list_of(&1, length: rank)

    map(
      {list.(integer(1..3)), list.(integer(1..3)), list.(integer(1..2)),
       list.({integer(0..2), integer(0..2)})},
      fn {window, strides, dilations, padding} ->
        {List.to_tuple(window), [strides: strides, window_dilations: dilations, padding: padding]}
      end
    )
  end

  defp fits?(shape, window, opts) do
    [Tuple.to_list(shape), Tuple.to_list(window), opts[:window_dilations], opts[:padding]]
    |> Enum.zip_with(fn [size, window, dilation, {low, high}] ->
      size + low + high > (window - 1) * dilation
    end)
    |> Enum.all?()
  end

  defp as_scalar(%Nx.Tensor{} = tensor, _type), do: tensor
  defp as_scalar(number, type), do: Nx.tensor(number, type: type)

  defp arranged(type, batch, sizes, order) do
    shape = List.to_tuple(batch ++ Enum.map(order, &Enum.at(sizes, &1)))
    tensor(type: type, shape: shape, range: {-9, 9})
  end

  defp pair_of_matrices(type) do
    map({integer(0..1000), integer(0..1000)}, fn {a, b} ->
      key = Nx.Random.key(a * 1001 + b)

      wide = fn shape, key ->
        Nx.Random.randint_split(key, 0, 4_294_967_295, shape: shape, type: :u32)
      end

      Nx.with_default_backend(Nx.BinaryBackend, fn ->
        low = Nx.as_type(wide.({45, 40}, key), type)
        high = Nx.as_type(wide.({40, 45}, key), type)

        shift =
          if elem(type, 1) == 64,
            do: Nx.tensor(3_000_000_007, type: type),
            else: Nx.tensor(1, type: type)

        [Nx.multiply(low, shift), Nx.multiply(high, shift)]
      end)
    end)
  end

  defp convolution(spatial_ranks, sizes, paddings) do
    bind({integer(spatial_ranks), integer(1..2), integer(1..2), integer(1..2)}, fn {spatial,
                                                                                    groups,
                                                                                    filters,
                                                                                    channels} ->
      each = &list_of(&1, length: spatial)

      bind(
        {each.(integer(sizes)), each.(integer(1..2)), each.(integer(1..2)), each.(integer(1..2)),
         each.(integer(1..2)), each.({integer(paddings), integer(paddings)}),
         member_of(Emily.TestDevice.types([{:f, 32}, {:f, 16}, {:f, 64}, {:c, 64}, {:s, 32}])),
         shuffled(List.to_tuple(List.duplicate(1, spatial + 2)))},
        fn {sizes, taps, strides, kernel_dilation, input_dilation, padding, type, order} ->
          inverse = order |> Enum.with_index() |> Enum.sort() |> Enum.map(&elem(&1, 1))
          place = fn sizes -> List.to_tuple(Enum.map(order, &Enum.at(sizes, &1))) end
          input = place.([2, groups * channels | sizes])
          kernel = place.([groups * filters, channels | taps])

          map(
            {tensor(type: type, shape: input, range: {-3, 3}),
             tensor(type: type, shape: kernel, range: {-3, 3})},
            fn {t, k} ->
              {t, k,
               [
                 strides: strides,
                 padding: padding,
                 kernel_dilation: kernel_dilation,
                 input_dilation: input_dilation,
                 feature_group_size: groups,
                 input_permutation: inverse,
                 kernel_permutation: inverse,
                 output_permutation: inverse
               ]}
            end
          )
        end
      )
    end)
  end

  ## Numbers

  defp tolerance(%{type: {kind, _}}) when kind in [:s, :u], do: 0
  defp tolerance(_tensor), do: 3.0e-2

  defp dot_tolerance(a, b) do
    if match?({kind, _} when kind in [:s, :u], Nx.Type.merge(a.type, b.type)), do: 0, else: 3.0e-2
  end

  defp matmul(a, b) do
    rank = tuple_size(a.shape)
    batch = Enum.to_list(0..(rank - 3)//1)
    Nx.dot(a, [rank - 1], batch, b, [rank - 2], batch)
  end

  defp adjoint(a), do: Nx.LinAlg.adjoint(a)

  defp identity(a) do
    size = elem(a.shape, tuple_size(a.shape) - 1)

    Nx.eye(size, type: a.type, backend: Emily.Backend)
    |> Nx.broadcast(put_elem(a.shape, tuple_size(a.shape) - 2, size))
  end

  defp assert_near(actual, expected, tolerance) do
    distance = Nx.subtract(actual, expected) |> Nx.abs() |> Nx.reduce_max() |> Nx.to_number()

    assert is_number(distance) and distance <= tolerance,
           "#{inspect(actual)} is #{distance} from #{inspect(expected)}"
  end
end
