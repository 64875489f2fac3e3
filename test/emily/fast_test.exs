defmodule Emily.FastTest do
  # The kernels and their compositions against references in double precision that are written another
  # way: rotations as matrices, attention head by head with masks spelled out.
  use ExUnit.Case, async: true

  import Emily.NxReference

  # Many small computations in Elixir: slow where the machine is busy. The compiler warns of so many shapes.
  @moduletag timeout: 300_000, capture_log: true

  alias Emily.Fast

  # Roundings that sums and the functions inside may cost in f32 and f64.
  @some 16

  defp check(shapes, fun, reference, rest \\ []),
    do: assert_in_all_types(shapes, fun, reference, @some, rest)

  describe "norms" do
    @shapes [
              {4},
              {1, 8},
              {2, 3},
              {3, 5},
              {2, 16},
              {7, 33},
              {1, 128},
              {2, 256},
              {5, 64},
              {2, 3, 4}
            ] ++
              [{1, 1, 16}, {2, 5, 7}, {3, 1, 24}, {2, 2, 2, 8}, {1, 2, 3, 12}, {2, 1, 2, 20}] ++
              [{4, 48}, {1, 96}, {6, 10}, {2, 2, 40}]

    defp normalised(x, centre, eps) do
      mean = Nx.mean(x, axes: [-1], keep_axes: true)
      x = if centre, do: Nx.subtract(x, mean), else: x
      squares = Nx.sum(Nx.pow(x, 2), axes: [-1], keep_axes: true)
      mean = Nx.divide(squares, Nx.axis_size(x, -1))
      Nx.divide(x, Nx.sqrt(Nx.add(mean, Nx.tensor(eps, type: :f64))))
    end

    test "rms_norm" do
      for shape <- @shapes do
        weight = {elem(shape, tuple_size(shape) - 1)}
        reference = fn x, w -> Nx.multiply(normalised(x, false, 1.0e-6), w) end
        check([shape, weight], &Fast.rms_norm/2, reference)
      end

      check([{3, 8}, {8}], &Fast.rms_norm(&1, &2, eps: 0.5), fn x, w ->
        Nx.multiply(normalised(x, false, 0.5), w)
      end)
    end

    test "layer_norm" do
      for shape <- @shapes do
        vector = {elem(shape, tuple_size(shape) - 1)}
        reference = fn x, w, b -> Nx.add(Nx.multiply(normalised(x, true, 1.0e-5), w), b) end
        check([shape, vector, vector], &Fast.layer_norm/3, reference)
      end

      check([{3, 8}, {8}, {8}], &Fast.layer_norm(&1, &2, &3, eps: 0.5), fn x, w, b ->
        Nx.add(Nx.multiply(normalised(x, true, 0.5), w), b)
      end)
    end
  end

  describe "rotary embeddings" do
    # A matrix for each position turns the first features and leaves the rest.
    defp rotation(position, features, dims, freqs, traditional) do
      half = div(dims, 2)

      pairs =
        for i <- 0..(half - 1), do: if(traditional, do: {2 * i, 2 * i + 1}, else: {i, i + half})

      turns =
        for {{a, b}, freq} <- Enum.zip(pairs, freqs), reduce: %{} do
          turns ->
            angle = position / freq
            {cos, sin} = {:math.cos(angle), :math.sin(angle)}
            Map.merge(turns, %{{a, a} => cos, {a, b} => -sin, {b, a} => sin, {b, b} => cos})
        end

      for i <- 0..(features - 1) do
        for j <- 0..(features - 1) do
          Map.get(turns, {i, j}, if(i == j and i >= dims, do: 1.0, else: 0.0))
        end
      end
    end

    # `positions` has a list of rows for each of the first axis.
    defp rotated(x, positions, dims, freqs, traditional) do
      {batch, rows, features} = {length(positions), length(hd(positions)), Nx.axis_size(x, -1)}

      matrices =
        Nx.tensor(
          for(row <- positions, p <- row, do: rotation(p, features, dims, freqs, traditional)),
          type: :f64
        )

      x
      |> Nx.reshape({batch, :auto, rows, 1, features})
      |> Nx.multiply(Nx.reshape(matrices, {batch, 1, rows, features, features}))
      |> Nx.sum(axes: [-1])
      |> Nx.reshape(x.shape)
    end

    defp freqs(dims, base), do: for(i <- 0..(div(dims, 2) - 1), do: :math.pow(base, 2 * i / dims))

    # {shape, dims, offset, traditional, base, scale}
    @cases [
      {{1, 4}, 4, 0, false, 10_000.0, 1.0},
      {{5, 8}, 8, 3, false, 10_000.0, 1.0},
      {{5, 8}, 8, 3, true, 10_000.0, 1.0},
      {{5, 8}, 4, 3, false, 10_000.0, 1.0},
      {{5, 8}, 4, 3, true, 10_000.0, 1.0},
      {{2, 3, 6}, 6, 0, false, 100.0, 1.0},
      {{2, 3, 6}, 2, 7, true, 100.0, 0.5},
      {{2, 3, 6}, 4, 7, false, 100.0, 0.5},
      {{1, 2, 4, 8}, 8, 11, false, 10_000.0, 0.25},
      {{1, 2, 4, 8}, 8, 11, true, 10_000.0, 0.25},
      {{2, 2, 4, 8}, 6, 1, false, 500_000.0, 2.0},
      {{2, 2, 4, 8}, 6, 1, true, 500_000.0, 2.0},
      {{2, 1, 1, 16}, 16, 20, false, 10_000.0, 1.0},
      {{2, 3, 1, 10}, 8, 20, true, 10_000.0, 1.0},
      {{3, 2, 2, 4}, 4, {2, 0, 5}, false, 10_000.0, 1.0},
      {{3, 2, 2, 4}, 4, {2, 0, 5}, true, 10_000.0, 0.5},
      {{3, 2, 2, 6}, 4, {2, 0, 5}, false, 10_000.0, 0.5},
      {{2, 4, 6}, 6, {9, 1}, false, 10_000.0, 1.0},
      {{2, 1, 2, 3, 4}, 4, 2, false, 10_000.0, 1.0},
      {{2, 1, 2, 3, 4}, 2, {1, 4}, true, 10_000.0, 1.0}
    ]

    test "rope" do
      for {shape, dims, offset, traditional, base, scale} <- @cases do
        {rows, batch} =
          {elem(shape, tuple_size(shape) - 2),
           if(tuple_size(shape) > 2, do: elem(shape, 0), else: 1)}

        offsets =
          if is_tuple(offset), do: Tuple.to_list(offset), else: List.duplicate(offset, batch)

        positions = for from <- offsets, do: for(row <- 0..(rows - 1), do: (row + from) * scale)
        reference = fn x -> rotated(x, positions, dims, freqs(dims, base), traditional) end
        opts = [dims: dims, traditional: traditional, base: base, scale: scale]
        tensor = if is_tuple(offset), do: Nx.tensor(offsets), else: Nx.tensor(offset)

        check([shape], &Fast.rope(&1, &2, opts), fn x, _offset -> reference.(x) end, [tensor])
        # An offset that is known is another op.
        if is_integer(offset) do
          for type <- types() do
            assert_like_reference(
              waves([shape], type),
              &Fast.rope(&1, offset, opts),
              reference,
              @some
            )
          end
        end

        # The frequencies of the base are those that it is divided by.
        opts = Keyword.delete(opts, :base)

        for type <- [f: 32, f: 64] do
          freqs = Nx.tensor(freqs(dims, base), type: type)
          [x] = waves([shape], type)
          fun = &Fast.rope_with_freqs(&1, tensor, &2, opts)
          same = fn x, f -> rotated(x, positions, dims, Nx.to_flat_list(f), traditional) end
          assert_like_reference([x, freqs], fun, same, @some)
        end
      end
    end

    test "rope_with_freqs differentiates by the frequencies" do
      fun = &Fast.rope_with_freqs(&1, 3, &2, dims: 4, scale: 0.5)

      reference = fn x, freqs ->
        angles = Nx.divide(Nx.tensor([[1.5], [2.0], [2.5]], type: :f64), freqs)
        {a, b} = {x[[.., 0..1]], x[[.., 2..3]]}
        {cos, sin} = {Nx.cos(angles), Nx.sin(angles)}

        Nx.concatenate(
          [
            Nx.subtract(Nx.multiply(a, cos), Nx.multiply(b, sin)),
            Nx.add(Nx.multiply(a, sin), Nx.multiply(b, cos))
          ],
          axis: 1
        )
      end

      inputs = waves([{3, 4}], :f32) ++ [Nx.tensor([1.0, 3.0], type: :f32)]
      assert_gradients_like_reference(inputs, fun, reference, 4 * @some)
    end

    test "rope_with_positions" do
      for {shape, positions} <- [
            {{3, 8}, [[4, 0, 9]]},
            {{2, 3, 8}, [[0, 0, 1], [5, 3, 4]]},
            {{2, 3, 4, 8}, [[0, 0, 1, 2], [7, 6, 5, 4]]},
            {{2, 2, 3, 2, 8}, [[3, 1], [0, 8]]}
          ],
          {dims, traditional} <- [{8, false}, {6, true}] do
        opts = [dims: dims, traditional: traditional, base: 100.0]
        reference = fn x, _ -> rotated(x, positions, dims, freqs(dims, 100.0), traditional) end
        tensor = Nx.tensor(if tuple_size(shape) == 2, do: hd(positions), else: positions)
        check([shape], &Fast.rope_with_positions(&1, &2, opts), reference, [tensor])
      end

      # One list for every batch, and frequencies of one's own.
      opts = [dims: 4, freqs: Nx.tensor([1.0, 2.0])]
      reference = fn x, _ -> rotated(x, [[2, 0], [2, 0]], 4, [1.0, 2.0], false) end
      inputs = waves([{2, 2, 4}], :f32) ++ [Nx.tensor([2, 0])]
      assert_like_reference(inputs, &Fast.rope_with_positions(&1, &2, opts), reference, @some)
    end
  end

  describe "attention" do
    # `hidden` has -1.0e300 where a key is not seen, and what is added elsewhere.
    defp attention(q, k, v, hidden, sinks, scale) do
      {heads, groups} = {elem(q.shape, 1), elem(k.shape, 1)}
      head = &Nx.squeeze(Nx.slice_along_axis(&1, &2, 1, axis: 1), axes: [1])

      outputs =
        for h <- 0..(heads - 1) do
          group = div(h * groups, heads)

          scores =
            Nx.multiply(
              Nx.dot(head.(q, h), [2], [0], head.(k, group), [2], [0]),
              Nx.tensor(scale, type: :f64)
            )

          scores =
            if hidden,
              do: Nx.add(scores, head.(Nx.broadcast(hidden, bhqk(q, k)), h)),
              else: scores

          exp = Nx.exp(scores)
          total = Nx.sum(exp, axes: [-1], keep_axes: true)
          total = if sinks, do: Nx.add(total, Nx.exp(sinks[h])), else: total
          Nx.dot(Nx.divide(exp, total), [2], [0], head.(v, group), [1], [0])
        end

      Nx.stack(outputs, axis: 1)
    end

    defp bhqk(q, k), do: {elem(q.shape, 0), elem(q.shape, 1), elem(q.shape, 2), elem(k.shape, 2)}

    defp causal(queries, keys) do
      Nx.tensor(
        for(
          i <- 1..queries,
          do: for(j <- 1..keys, do: if(j <= i + keys - queries, do: 0.0, else: -1.0e300))
        ),
        type: :f64
      )
    end

    # {batch, heads, kv_heads, queries, keys, depth, width}
    @cases [
      {1, 1, 1, 1, 1, 4, 4},
      {1, 1, 1, 3, 3, 4, 4},
      {2, 2, 2, 3, 3, 8, 8},
      {1, 2, 1, 4, 4, 4, 4},
      {2, 4, 2, 3, 5, 8, 8},
      {1, 6, 2, 2, 7, 4, 4},
      {2, 4, 1, 1, 9, 8, 8},
      {1, 8, 4, 1, 5, 16, 16},
      {1, 3, 3, 5, 6, 4, 2},
      {2, 2, 1, 4, 8, 6, 3},
      {1, 2, 2, 8, 8, 32, 32},
      {1, 2, 1, 2, 16, 64, 64},
      {3, 1, 1, 2, 4, 10, 10},
      {1, 4, 4, 1, 12, 5, 7},
      {2, 6, 3, 2, 2, 4, 4},
      {1, 1, 1, 9, 9, 16, 16},
      {1, 2, 2, 1, 3, 1, 1},
      {4, 2, 1, 1, 2, 8, 8},
      {1, 5, 5, 3, 4, 3, 3},
      {1, 9, 3, 1, 6, 8, 8}
    ]

    test "at many shapes: plain, causal, masked, with sinks" do
      for {{b, h, n, t, s, d, w}, at} <- Enum.with_index(@cases) do
        shapes = [{b, h, t, d}, {b, n, s, d}, {b, n, s, w}]
        # Weights that a constant score would not give.
        scale = Enum.at([1 / :math.sqrt(d), 0.75], rem(at, 2))
        opts = if rem(at, 2) == 0, do: [], else: [scale: 0.75]

        check(shapes, &Fast.scaled_dot_product_attention(&1, &2, &3, opts), fn q, k, v ->
          attention(q, k, v, nil, nil, scale)
        end)

        if t <= s do
          check(
            shapes,
            &Fast.scaled_dot_product_attention(&1, &2, &3, [causal: true] ++ opts),
            fn q, k, v ->
              attention(q, k, v, causal(t, s), nil, scale)
            end
          )
        end

        mask = Enum.at([{t, s}, {b, h, t, s}, {b, 1, 1, s}], rem(at, 3))

        check(
          shapes ++ [mask, {h}],
          fn q, k, v, m, sinks ->
            Fast.scaled_dot_product_attention_with_mask(q, k, v, m, [sinks: sinks] ++ opts)
          end,
          fn q, k, v, m, sinks -> attention(q, k, v, m, sinks, scale) end
        )
      end
    end

    test "a mask of predicates" do
      seen = Nx.tensor([[1, 0, 1], [0, 0, 1]], type: :u8)
      hidden = Nx.tensor([[0.0, -1.0e300, 0.0], [-1.0e300, -1.0e300, 0.0]], type: :f64)

      check(
        [{1, 2, 2, 4}, {1, 1, 3, 4}, {1, 1, 3, 4}],
        &Fast.scaled_dot_product_attention_with_mask/4,
        fn q, k, v, _ ->
          attention(q, k, v, hidden, nil, 0.5)
        end,
        [seen]
      )
    end

    test "a query that sees no key gets the mean of the values" do
      [q, k, v] = waves([{1, 1, 1, 4}, {1, 1, 3, 4}, {1, 1, 3, 4}], :f32)
      none = Nx.tensor([[0, 0, 0]], type: :u8)

      assert_like_reference(
        [q, k, v],
        &Fast.scaled_dot_product_attention_with_mask(&1, &2, &3, none),
        fn _, _, v ->
          Nx.mean(v, axes: [2], keep_axes: true)
        end,
        @some
      )
    end

    test "sinks of every shape that broadcasts" do
      inputs = waves([{1, 2, 1, 4}, {1, 2, 3, 4}, {1, 2, 3, 4}], :f32)

      for {sinks, spelled} <- [
            {Nx.tensor([0.5, -0.25]), [0.5, -0.25]},
            {Nx.tensor([[[[0.5]], [[-0.25]]]]), [0.5, -0.25]},
            {Nx.tensor([[[0.5]], [[-0.25]]]), [0.5, -0.25]},
            {Nx.tensor(0.5), [0.5, 0.5]}
          ] do
        fun = &Fast.scaled_dot_product_attention(&1, &2, &3, sinks: sinks)
        reference = &attention(&1, &2, &3, nil, Nx.tensor(spelled, type: :f64), 0.5)
        assert_like_reference(inputs, fun, reference, @some)
      end
    end

    test "with a cache of keys and values" do
      {b, h, n, max, d} = {2, 4, 2, 6, 4}
      [all_k, all_v, q] = waves([{b, n, max, d}, {b, n, max, d}, {b, h, 2, d}], :f32)
      rows = &Nx.slice_along_axis(&1, &2, &3, axis: 2)
      empty = Nx.broadcast(Nx.tensor(7.0, type: :f32), {b, n, max, d})

      [old_k, old_v] =
        for all <- [all_k, all_v], do: Nx.put_slice(empty, [0, 0, 0, 0], rows.(all, 0, 3))

      padding = Nx.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]], type: :u8)

      for offset <- [3, Nx.tensor(3)], key_mask <- [nil, padding] do
        fun = &Fast.kv_cache_attention(&1, &2, &3, &4, &5, offset, key_mask: key_mask)
        inputs = [q, rows.(all_k, 3, 2), rows.(all_v, 3, 2), old_k, old_v]

        reference = fn q, k, v, k_cache, v_cache ->
          seen = fn cache, new -> Nx.concatenate([rows.(cache, 0, 3), new], axis: 2) end

          padded = if key_mask, do: [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], else: [[0], [0]]
          padded = Nx.reshape(Nx.tensor(padded, type: :f64), {b, 1, 1, :auto})
          mask = Nx.min(Nx.multiply(padded, Nx.tensor(-1.0e300, type: :f64)), causal(2, 5))
          attention(q, seen.(k_cache, k), seen.(v_cache, v), mask, nil, 0.5)
        end

        attention = fn q, k, v, kc, vc -> elem(fun.(q, k, v, kc, vc), 0) end
        assert_like_reference(inputs, attention, reference, @some)

        {_, k_cache, v_cache} = apply(fun, inputs)

        for {cache, all} <- [{k_cache, all_k}, {v_cache, all_v}] do
          assert Nx.to_binary(rows.(cache, 0, 5)) == Nx.to_binary(rows.(all, 0, 5))
          assert Nx.to_number(cache[[0, 0, 5, 0]]) == 7.0
        end
      end
    end
  end

  test "a cache that is given up is still there for the result, and offsets are clamped" do
    for backend <- [Nx.BinaryBackend, Emily.Backend] do
      new = Nx.tensor([[[[1.0], [2.0]]]], backend: backend)

      for {offset, expected} <- [
            {1, [0, 1, 2, 0]},
            {9, [0, 0, 1, 2]},
            {Nx.tensor(0), [1, 2, 0, 0]}
          ] do
        cache = Nx.broadcast(Nx.tensor(0.0, backend: backend), {1, 1, 4, 1})
        updated = Fast.kv_cache_update(cache, new, offset)
        if backend == Emily.Backend, do: Nx.backend_deallocate(cache)
        assert Nx.to_flat_list(updated) == Enum.map(expected, &(&1 / 1))
      end
    end
  end

  test "swiglu" do
    check([{3, 4}, {3, 4}], &Fast.swiglu/2, fn gate, up ->
      Nx.multiply(Nx.divide(gate, Nx.add(1, Nx.exp(Nx.negate(gate)))), up)
    end)
  end

  describe "all functions" do
    import Nx.Defn

    defn layer(x, weight, freqs) do
      x
      |> Emily.Fast.rms_norm(weight, eps: 1.0e-5)
      |> Emily.Fast.rope_with_freqs(2, freqs, dims: 4)
      |> then(&Emily.Fast.scaled_dot_product_attention(&1, &1, &1, causal: true))
      |> Emily.Fast.swiglu(x)
    end

    test "work inside defn" do
      inputs = waves([{1, 2, 3, 4}, {4}, {2}], :f32)
      Emily.NxTensors.assert_like_binary_backend(inputs, &layer/3)
    end

    test "keep the names of the first tensor" do
      x = Nx.iota({1, 2, 3, 4}, type: :f32, names: [:batch, :head, :time, :depth])
      weight = Nx.iota({4}, type: :f32, names: [:depth])

      for fun <- [
            &Fast.rms_norm(&1, weight),
            &Fast.layer_norm(&1, weight, weight),
            &Fast.rope(&1, 0, dims: 2),
            &Fast.rope_with_positions(&1, Nx.tensor([[2, 0, 1]]), dims: 2),
            &Fast.scaled_dot_product_attention(&1, &1, &1),
            &Fast.swiglu(&1, &1)
          ] do
        assert fun.(x).names == x.names
        assert Nx.Defn.jit(fun, compiler: Nx.Defn.Evaluator).(x).names == x.names
        Emily.NxTensors.assert_like_binary_backend(x, fun)
      end
    end

    test "vectorize" do
      [x, weight] = waves([{3, 2, 4}, {4}], :f32)
      vectorized = Nx.vectorize(x, :rows)
      expected = Fast.rms_norm(x, weight)

      for backend <- [Nx.BinaryBackend, Emily.Backend] do
        normal = vectorized |> Nx.backend_copy(backend) |> Fast.rms_norm(weight)
        assert normal.vectorized_axes == [rows: 3]
        assert relative_error(Nx.devectorize(normal, keep_names: false), expected) < 1.0e-6
      end
    end

    test "have the type of the first tensor" do
      [x, weight] = waves([{2, 4}, {4}], :bf16)
      weight = Nx.as_type(weight, :f32)

      assert_like_reference(
        [x, weight],
        &Fast.rms_norm/2,
        fn x, w ->
          Nx.multiply(normalised(x, false, 1.0e-6), w)
        end,
        @some
      )
    end
  end

  describe "errors" do
    defp x(shape \\ {1, 2, 3, 4}), do: Nx.iota(shape, type: :f32)

    test "unknown options" do
      for fun <- [
            fn -> Fast.rms_norm(x(), x({4}), epsilon: 1.0) end,
            fn -> Fast.layer_norm(x(), x({4}), x({4}), axis: 1) end,
            fn -> Fast.rope(x(), 0, dims: 4, theta: 1) end,
            fn -> Fast.rope_with_freqs(x(), 0, x({2}), dims: 4, base: 1.0) end,
            fn -> Fast.rope_with_positions(x(), Nx.iota({3}), dims: 4, offset: 1) end,
            fn -> Fast.scaled_dot_product_attention(x(), x(), x(), mask: x()) end,
            fn ->
              Fast.scaled_dot_product_attention_with_mask(x(), x(), x(), x({3, 3}), causal: true)
            end,
            fn -> Fast.kv_cache_attention(x(), x(), x(), x(), x(), 0, causal: true) end
          ] do
        assert_raise ArgumentError, ~r/unknown keys/, fun
      end
    end

    for {name, fun, text} <- [
          {"a weight of another size", quote(do: Fast.rms_norm(x(), x({3}))),
           "rms_norm: expected weight of shape {4}, got: {3}"},
          {"a scalar", quote(do: Fast.rms_norm(Nx.tensor(1.0), x({3}))),
           "rms_norm: expected x of rank 1"},
          {"integers", quote(do: Fast.layer_norm(Nx.iota({4}), x({4}), x({4}))),
           "layer_norm: expected x of a real float type, got: {:s, 32}"},
          {"eps as text", quote(do: Fast.rms_norm(x(), x({4}), eps: "1")),
           "expected :eps to be a number"},
          {"no dims", quote(do: Fast.rope(x(), 0, [])), "an even number up to 4"},
          {"odd dims", quote(do: Fast.rope(x(), 0, dims: 3)), "an even number up to 4"},
          {"dims beyond the features", quote(do: Fast.rope(x(), 0, dims: 6)),
           "an even number up to 4"},
          {"a base of 0", quote(do: Fast.rope(x(), 0, dims: 4, base: 0)), "a positive :base"},
          {"a float offset", quote(do: Fast.rope(x(), 1.5, dims: 4)),
           "offset of an integer type"},
          {"an offset for each of too many",
           quote(do: Fast.rope(x(), Nx.tensor([1, 2]), dims: 4)),
           "one entry for each of its first axis"},
          {"traditional as a number", quote(do: Fast.rope(x(), 0, dims: 4, traditional: 1)),
           "expected :traditional to be a boolean"},
          {"frequencies of another size",
           quote(do: Fast.rope_with_freqs(x(), 0, x({4}), dims: 4)),
           "expected freqs of shape {2}"},
          {"positions of another shape",
           quote(do: Fast.rope_with_positions(x(), Nx.iota({4}), dims: 4)),
           "expected positions of shape {3} or {1, 3}"},
          {"base and frequencies",
           quote(
             do: Fast.rope_with_positions(x(), Nx.iota({3}), dims: 4, base: 1.0, freqs: x({2}))
           ), ":base or :freqs"},
          {"keys of another depth",
           quote(do: Fast.scaled_dot_product_attention(x(), x({1, 2, 3, 5}), x())),
           "got: {1, 2, 3, 4}, {1, 2, 3, 5}"},
          {"heads that do not divide",
           quote(do: Fast.scaled_dot_product_attention(x({1, 3, 3, 4}), x(), x())),
           "heads divisible by kv_heads"},
          {"queries of rank 3",
           quote(do: Fast.scaled_dot_product_attention(x({2, 3, 4}), x(), x())),
           "got: {2, 3, 4}"},
          {"a mask that does not broadcast",
           quote(do: Fast.scaled_dot_product_attention_with_mask(x(), x(), x(), x({3, 4}))),
           "a mask that broadcasts to {1, 2, 3, 3}"},
          {"sinks of another size",
           quote(do: Fast.scaled_dot_product_attention(x(), x(), x(), sinks: x({3}))),
           "expected sinks of shape {2}"},
          {"rows beyond the cache", quote(do: Fast.kv_cache_update(x(), x({1, 2, 4, 4}), 0)),
           "rows"},
          {"gate and up of two shapes", quote(do: Fast.swiglu(x(), x({4}))),
           "swiglu: expected up of shape"}
        ] do
      test name do
        error = assert_raise ArgumentError, fn -> unquote(fun) end
        assert error.message =~ unquote(text)
      end
    end
  end
end
