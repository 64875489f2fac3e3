defmodule Emily.BackendRefTest do
  # Tensors by reference as Nx tensors, and which blocks MLX's kernels compute.
  use ExUnit.Case, async: true

  import Emily.NxTensors, only: [to_emily: 1]

  describe "references and Nx tensors" do
    test "share their data in both directions" do
      for type <- [u: 8, s: 16, s: 64, f: 16, bf: 16, f: 32, c: 64] do
        tensor = to_emily(Nx.iota({2, 3}, type: type, backend: Nx.BinaryBackend))
        ref = Emily.from_nx(tensor)
        assert ref == tensor.data.ref
        assert %Nx.Tensor{shape: {2, 3}, type: ^type, names: [nil, nil]} = back = Emily.to_nx(ref)
        assert back.data.ref == ref
        assert Nx.to_binary(back) == Nx.to_binary(tensor)
      end
    end

    test "scalars and results of the native layer" do
      w = Emily.Stream.worker()
      ref = Emily.from_binary(<<2.5::float-32-native>>, [], {:f, 32})
      assert Nx.to_number(Emily.to_nx(ref)) == 2.5

      assert ref
             |> then(&Emily.Native.add(w, &1, &1))
             |> Emily.to_nx()
             |> Nx.add(1)
             |> Nx.to_number() == 6.0
    end

    test "booleans become bytes" do
      w = Emily.Stream.worker()
      ref = Emily.from_binary(<<1, 5, 3>>, [3], {:u, 8})
      less = Emily.to_nx(Emily.Native.less(w, ref, Emily.from_binary(<<4>>, [], {:u, 8})))
      assert {less.type, Nx.to_flat_list(less)} == {{:u, 8}, [1, 0, 1]}
      assert Emily.dtype(Emily.from_nx(less)) == {:u, 8}
    end

    test "tensors of other backends are copied in" do
      tensor = Nx.tensor([1.5, -2.0], backend: Nx.BinaryBackend)
      ref = Emily.from_nx(tensor)
      assert {Emily.shape(ref), Emily.dtype(ref)} == {[2], {:f, 32}}
      assert Emily.to_binary(ref) == Nx.to_binary(tensor)
      assert Emily.shape(Emily.from_nx(Nx.vectorize(Nx.iota({2, 3}), :rows))) == [2, 3]
    end

    test "anything else is refused" do
      assert_raise FunctionClauseError, fn -> Emily.to_nx(:none) end
      assert_raise FunctionClauseError, fn -> Emily.from_nx(1) end
      assert_raise ArgumentError, fn -> Emily.to_nx(make_ref()) end
    end
  end

  describe "blocks" do
    @compile {:no_warn_undefined, :telemetry}
    @moduletag skip: not Code.ensure_loaded?(:telemetry)

    setup do
      test = self()
      :telemetry.attach(inspect(test), [:emily, :block, :fallback], &__MODULE__.forward/4, test)
      on_exit(fn -> :telemetry.detach(inspect(test)) end)
    end

    def forward(_event, measurements, metadata, test) do
      if self() == test, do: send(test, {:fallback, measurements, metadata})
    end

    defp computed(fun), do: fun.() |> List.wrap() |> Enum.each(&Nx.to_binary/1)

    test "of Emily are computed by MLX's kernels, in all types but f64" do
      for type <- [:f32, :f16, :bf16] do
        x = Nx.iota({1, 2, 3, 4}, type: type) |> Nx.divide(24) |> Nx.as_type(type) |> to_emily()
        vector = Nx.tensor([1, 2, 3, 4], type: type) |> to_emily()
        weight = Nx.iota({5, 64}, type: type)

        computed(fn -> Emily.Fast.rms_norm(x, vector) end)
        computed(fn -> Emily.Fast.layer_norm(x, vector, vector) end)
        computed(fn -> Emily.Fast.rope(x, 1, dims: 4) end)
        computed(fn -> Emily.Fast.rope(x, Nx.tensor(1), dims: 4) end)
        computed(fn -> Emily.Fast.rope_with_freqs(x, 1, Nx.tensor([1.0, 2.0]), dims: 4) end)
        computed(fn -> Emily.Fast.rope_with_positions(x, Nx.tensor([2, 0, 1]), dims: 4) end)
        computed(fn -> Emily.Fast.scaled_dot_product_attention(x, x, x, causal: true) end)
        computed(fn -> Emily.Fast.kv_cache_attention(x, x, x, x, x, 0) |> elem(0) end)
        computed(fn -> Emily.Fast.einsum("bhqd,bhkd->bhqk", [x, x]) end)

        for opts <- [[bits: 3], [mode: "nvfp4"]] do
          qw = Emily.QuantizedWeight.from_dense(weight, opts)
          row = Nx.iota({1, 64}, type: type)
          computed(fn -> Emily.Quantization.quantized_matmul_defn(row, qw) end)
          computed(fn -> Emily.QuantizedWeight.to_dense(qw) end)
        end
      end

      refute_received {:fallback, _, _}
    end

    test "of Emily are single ops of programs" do
      x = Nx.template({1, 2, 3, 4}, :bf16)
      vector = Nx.template({4}, :bf16)

      for {fun, arguments, op} <- [
            {&Emily.Fast.rms_norm/2, [x, vector], :fast_rms_norm},
            {&Emily.Fast.layer_norm/3, [x, vector, vector], :fast_layer_norm},
            {&Emily.Fast.rope(&1, 1, dims: 4), [x], :fast_rope_int},
            {&Emily.Fast.rope(&1, &2, dims: 4), [x, Nx.template({}, :s32)], :fast_rope},
            {&Emily.Fast.scaled_dot_product_attention(&1, &1, &1, causal: true), [x],
             :fast_scaled_dot_product_attention},
            {&Emily.Fast.einsum("bhqd,bhkd->bhqk", [&1, &1]), [x], :einsum}
          ] do
        ops = Emily.NxProgram.ops(fun, arguments)
        assert ops[op] == 1
        # There and back between the half type and f32.
        assert Map.keys(ops) -- [op, :astype] == []
      end

      for opts <- [[bits: 3], [mode: "mxfp8"]] do
        qw = Emily.QuantizedWeight.from_dense(Nx.iota({3, 5, 64}, type: :f32), opts)
        row = Nx.template({3, 1, 64}, :f32)
        picked = &Emily.Quantization.gather_quantized_matmul(&1, &2, weight_indices: &3)

        for {fun, arguments, op} <- [
              {&Emily.Quantization.quantized_matmul_defn/2, [row, qw], :quantized_matmul},
              {&Emily.Quantization.Layers.quantized_dense/2, [row, qw], :quantized_matmul},
              {&Emily.Quantization.dequantize_defn/1, [qw], :dequantize},
              {picked, [row, qw, Nx.template({3}, :s32)], :gather_qmm}
            ] do
          assert Emily.NxProgram.ops(fun, arguments) == %{op => 1}
        end
      end
    end

    test "that MLX's kernels would compute less exactly are an event" do
      x = Nx.iota({3, 4}, type: :f64) |> Nx.backend_copy({Emily.Backend, device: :cpu})
      computed(fn -> Emily.Fast.rms_norm(x, x[0]) end)

      assert_received {:fallback, measurements,
                       %{struct: Emily.Fast.Block.RMSNorm, args_count: 2}}

      assert measurements == %{}
    end
  end
end
