defmodule Emily.QuantizationTest do
  use ExUnit.Case, async: true

  # As in FastTest.
  @moduletag timeout: 300_000, capture_log: true

  import Emily.NxReference, only: [relative_error: 2, wave: 2, assert_gradients_like_reference: 4]

  alias Emily.{Quantization, QuantizedWeight}
  alias Emily.Quantization.Layers

  @affine for bits <- [2, 3, 4, 6, 8],
              group_size <- [32, 64, 128],
              do: [bits: bits, group_size: group_size]
  @microscaled [[mode: "mxfp4"], [mode: "mxfp8"], [mode: "nvfp4"]]
  @schemes @affine ++ @microscaled

  # A step between two of 2^bits levels that lie evenly between numbers in [-1, 1], since MLX moves the
  # levels so that 0 is one of them; half a step between two floats.
  # Of products of f32.
  defp within(bound), do: max(bound, Emily.TestDevice.coarseness({:f, 32}))

  defp coarseness(opts) do
    case opts[:mode] do
      nil -> 2.0 / (Integer.pow(2, opts[:bits]) - 1)
      "mxfp8" -> 0.07
      _fp4 -> 0.3
    end
  end

  defp weight(shape, type \\ :f32, phase \\ 0.3), do: Nx.as_type(wave(shape, phase), type)
  defp on(%QuantizedWeight{} = qw, backend), do: Nx.backend_copy(qw, backend)

  describe "from_dense and to_dense" do
    test "keep a weight as well as its bits allow, on both backends alike" do
      for opts <- @schemes, type <- [:f32, :f16, :bf16], shape <- [{3, 128}, {2, 3, 256}] do
        dense = weight(shape, type)
        qw = QuantizedWeight.from_dense(dense, opts)
        assert %{value: %{type: {:u, 32}, data: %Emily.Backend{}}, transpose: true} = qw
        back = QuantizedWeight.to_dense(qw)
        assert back.shape == shape
        assert back.type == if(opts[:mode], do: {:bf, 16}, else: dense.type)
        assert relative_error(back, Nx.as_type(dense, :f64)) <= coarseness(opts)

        # The composition reads the same numbers out of the same bits.
        composed = qw |> on(Nx.BinaryBackend) |> QuantizedWeight.to_dense()
        assert %Nx.BinaryBackend{} = composed.data
        assert composed.type == back.type
        unit = %{{:f, 32} => 1.0e-6, {:f, 16} => 1.0e-3, {:bf, 16} => 8.0e-3}[back.type]
        exact? = opts[:mode] != nil

        assert relative_error(composed, Nx.as_type(Nx.backend_copy(back, Nx.BinaryBackend), :f64)) <=
                 if(exact?, do: 0.0, else: unit)
      end
    end

    test "the packed elements of 3 and 6 bits cross words" do
      # Every level comes, in an order that depends on the position.
      for bits <- [2, 3, 4, 6, 8] do
        levels = Integer.pow(2, bits)
        codes = for i <- 0..127, do: rem(i * 5 + div(i, 7), levels)
        value = for(code <- codes, into: <<>>, do: <<code::size(bits)>>)
        assert bit_size(value) == 128 * bits
        # Least significant bits first.
        bits_of =
          for code <- codes, bit <- 0..(bits - 1), do: Bitwise.band(Bitwise.bsr(code, bit), 1)

        words =
          for word <- Enum.chunk_every(bits_of, 32), do: Integer.undigits(Enum.reverse(word), 2)

        value = Nx.tensor([words], type: :u32)
        ones = Nx.broadcast(Nx.tensor(1.0), {1, 2})
        qw = QuantizedWeight.from_parts(value, ones, Nx.multiply(ones, 0.5))
        assert qw.bits == bits
        expected = Enum.map(codes, &(&1 + 0.5))

        for backend <- [Nx.BinaryBackend, Emily.Backend] do
          assert qw |> on(backend) |> QuantizedWeight.to_dense() |> Nx.to_flat_list() == expected
        end
      end
    end

    test "every code of the small floats and of their scales" do
      for {mode, group, codes} <- [{"mxfp4", 32, 16}, {"nvfp4", 16, 16}, {"mxfp8", 32, 256}] do
        bits = if codes == 16, do: 4, else: 8
        per_word = div(32, bits)
        all = for row <- 0..255, i <- 0..(group - 1), do: rem(row + i, codes)

        words =
          for word <- Enum.chunk_every(all, per_word),
              do: word |> Enum.reverse() |> Integer.undigits(codes)

        value = words |> Nx.tensor(type: :u32) |> Nx.reshape({256, :auto})
        scales = Nx.iota({256, 1}, type: :u8)
        qw = QuantizedWeight.from_parts(value, scales, nil, mode: mode)

        [native, composed] =
          for b <- [Emily.Backend, Nx.BinaryBackend],
              do: qw |> on(b) |> QuantizedWeight.to_dense() |> Nx.to_flat_list()

        # bf16 has the exponents of f32, whose least are flushed to 0 or not as the device likes. Scales
        # that the standards take for no numbers are none to a GPU only.
        no_scales = if mode == "nvfp4", do: [127, 255], else: [255]

        for {{a, b}, i} <- Enum.with_index(Enum.zip(native, composed)) do
          code = rem(div(i, group) + rem(i, group), codes)

          is_no_number =
            Emily.TestDevice.gpu?() and (div(i, group) in no_scales or code in [127, 255])

          assert a == b or (is_no_number and a == :nan) or
                   (is_number(a) and is_number(b) and abs(a) < 1.0e-37 and abs(b) < 1.0e-37),
                 "#{mode}: #{a} and #{b}"
        end
      end
    end

    test "options are kept" do
      qw = QuantizedWeight.from_dense(weight({2, 64}), bits: 8, group_size: 32, transpose: false)
      assert %{bits: 8, group_size: 32, transpose: false, mode: "affine"} = qw
      assert {qw.value.shape, qw.scales.shape, qw.biases.shape} == {{2, 16}, {2, 2}, {2, 2}}
      qw = QuantizedWeight.from_dense(weight({2, 64}), mode: "nvfp4")
      assert %{bits: 4, group_size: 16, scales: %{type: {:u, 8}, shape: {2, 4}}} = qw
      assert Nx.to_number(qw.biases) == 0.0
      assert QuantizedWeight.biases_ref("nvfp4", qw.biases) == nil
      assert is_reference(QuantizedWeight.biases_ref("affine", qw.biases))
    end

    test "a container" do
      qw = QuantizedWeight.from_dense(weight({2, 64}), bits: 8)
      same = Nx.Defn.jit(fn qw -> qw end, compiler: Nx.Defn.Evaluator).(qw)

      assert Map.drop(Map.from_struct(same), [:value, :scales, :biases]) == %{
               bits: 8,
               group_size: 64,
               mode: "affine",
               transpose: true
             }

      assert Nx.to_binary(same.value) == Nx.to_binary(qw.value)
    end
  end

  describe "errors of from_dense, the first that applies" do
    for {name, tensor, opts, text} <- [
          {"mode before all", quote(do: Nx.iota({3})), [mode: "int4", bits: 5],
           ":mode must be one of"},
          {"bits", quote(do: Nx.iota({3})), [bits: 5, group_size: 7],
           ":bits must be one of [2, 3, 4, 6, 8], got: 5"},
          {"pins of mxfp4", quote(do: Nx.iota({3})), [mode: "mxfp4", group_size: 64],
           "mode mxfp4 requires group_size: 32 and bits: 4"},
          {"pins of mxfp8", quote(do: Nx.iota({3})), [mode: "mxfp8", bits: 4],
           "mode mxfp8 requires group_size: 32 and bits: 8"},
          {"pins of nvfp4", quote(do: Nx.iota({3})), [mode: "nvfp4", bits: 8],
           "mode nvfp4 requires group_size: 16 and bits: 4"},
          {"group size", quote(do: Nx.iota({3})), [group_size: 48],
           ":group_size must be one of [32, 64, 128], got: 48"},
          {"type before rank", quote(do: Nx.iota({3})), [],
           "from_dense/2 requires a weight of type"},
          {"f64", quote(do: Nx.iota({2, 64}, type: :f64)), [],
           "from_dense/2 requires a weight of type"},
          {"rank before divisibility", quote(do: Nx.iota({3}, type: :f32)), [],
           "of rank 2 or more"},
          {"divisibility", quote(do: Nx.iota({2, 48}, type: :f32)), [],
           "divisible by :group_size 64, got: {2, 48}"},
          {"unknown options", quote(do: Nx.iota({2, 64}, type: :f32)), [size: 1], "unknown keys"},
          {"transpose", quote(do: Nx.iota({2, 64}, type: :f32)), [transpose: 1],
           "expected :transpose to be a boolean"}
        ] do
      test name do
        error =
          assert_raise ArgumentError, fn ->
            QuantizedWeight.from_dense(unquote(tensor), unquote(opts))
          end

        assert error.message =~ unquote(text)
      end
    end

    test "of to_dense" do
      assert_raise FunctionClauseError, fn -> QuantizedWeight.to_dense(Nx.tensor(1)) end
    end
  end

  describe "products" do
    # {shape of x, shape of the weight, transpose}
    @products [
      {{128}, {5, 128}, true},
      {{3, 128}, {5, 128}, true},
      {{2, 3, 128}, {5, 128}, true},
      {{3, 6}, {6, 128}, false},
      {{2, 2, 3, 128}, {2, 5, 128}, true},
      {{2, 3, 6}, {2, 6, 128}, false},
      {{3, 128}, {2, 5, 128}, true},
      {{128}, {2, 5, 128}, true}
    ]

    defp reference(x, dense, transpose) do
      dense = if transpose, do: Nx.transpose(dense, axes: swapped(dense)), else: dense
      vector? = Nx.rank(x) == 1
      x = if vector?, do: Nx.new_axis(x, 0), else: x
      # A product written as a sum over a broadcast axis.
      product = Nx.sum(Nx.multiply(Nx.new_axis(x, -1), Nx.new_axis(dense, -3)), axes: [-2])
      if vector?, do: Nx.squeeze(product, axes: [-2]), else: product
    end

    defp swapped(t) do
      rank = Nx.rank(t)
      Enum.to_list(0..(rank - 3)//1) ++ [rank - 1, rank - 2]
    end

    test "of every scheme, eager, inside defn and on another backend" do
      # A kernel for each scheme, shape and type takes CUDA's compiler up to half a minute.
      schemes = Enum.take_every(@schemes, if(Emily.TestDevice.gpu?(), do: 4, else: 1))

      for opts <- schemes, {x_shape, shape, transpose} <- @products, type <- [:f32, :bf16] do
        qw = QuantizedWeight.from_dense(weight(shape, type), [transpose: transpose] ++ opts)
        x = weight(x_shape, type, 0.7)
        dense = qw |> on(Nx.BinaryBackend) |> wide() |> QuantizedWeight.to_dense()
        expected = reference(Nx.as_type(x, :f64), Nx.as_type(dense, :f64), transpose)
        unit = if type == :f32, do: within(2.0e-6), else: 4.0e-3
        fun = &Quantization.quantized_matmul_defn/2

        for {lane, actual} <- [
              eager: Quantization.quantized_matmul(x, qw),
              defn: Nx.Defn.jit(fun, compiler: Nx.Defn.Evaluator).(x, qw),
              compiled: Nx.Defn.jit(fun, compiler: Emily.Compiler).(x, qw),
              layer: Layers.quantized_dense(x, qw),
              composed: fun.(x, on(qw, Nx.BinaryBackend))
            ] do
          assert {actual.shape, actual.type} == {expected.shape, x.type}
          # BinaryBackend cuts off where it should round.
          allowed = if lane == :composed and type == :bf16, do: 2 * unit, else: unit

          assert relative_error(actual, expected) <= allowed,
                 "#{lane} #{inspect(opts)} #{inspect(shape)}"
        end
      end
    end

    # Without the rounding of a half type: what the products see.
    defp wide(%{mode: "affine"} = qw),
      do: %{qw | scales: Nx.as_type(qw.scales, :f32), biases: Nx.as_type(qw.biases, :f32)}

    defp wide(qw), do: qw

    test "differentiate by x, the scales and the biases" do
      for opts <- [[bits: 4], [bits: 3, group_size: 32], [bits: 8, group_size: 128]],
          transpose <- [true, false] do
        qw =
          QuantizedWeight.from_dense(weight({4, 128}), [transpose: transpose] ++ opts)
          |> on(Nx.BinaryBackend)

        x = weight({2, if(transpose, do: 128, else: 4)}, :f32, 0.7)

        fun = fn x, scales, biases ->
          Quantization.quantized_matmul_defn(x, %{qw | scales: scales, biases: biases})
        end

        ones = %{
          qw
          | scales: Nx.broadcast(Nx.tensor(1.0), qw.scales),
            biases: Nx.broadcast(Nx.tensor(0.0), qw.biases)
        }

        codes = ones |> QuantizedWeight.to_dense() |> Nx.as_type(:f64)

        reference = fn x, scales, biases ->
          spread =
            &(&1
              |> Nx.new_axis(-1)
              |> Nx.broadcast({4, Nx.axis_size(&1, 1), qw.group_size})
              |> Nx.reshape({4, 128}))

          reference(x, Nx.add(Nx.multiply(codes, spread.(scales)), spread.(biases)), transpose)
        end

        assert_gradients_like_reference([x, qw.scales, qw.biases], fun, reference, 64)
      end
    end

    test "differentiate by x for microscaled weights, through the kernel's block" do
      qw = QuantizedWeight.from_dense(weight({4, 64}), mode: "mxfp4")
      fun = fn x, qw -> Nx.Defn.grad(x, &Nx.sum(Quantization.quantized_matmul_defn(&1, qw))) end
      grad = Nx.Defn.jit(fun, compiler: Nx.Defn.Evaluator).(weight({2, 64}), qw)

      expected =
        qw
        |> on(Nx.BinaryBackend)
        |> QuantizedWeight.to_dense()
        |> Nx.as_type(:f64)
        |> Nx.sum(axes: [0])

      assert relative_error(grad, Nx.broadcast(expected, {2, 64})) < within(1.0e-6)
    end

    test "of a type of its own with defn, and of none with the eager function" do
      qw = QuantizedWeight.from_dense(weight({4, 64}, :f16))
      assert Quantization.quantized_matmul_defn(weight({2, 64}), qw).type == {:f, 32}

      assert_raise ArgumentError, ~r/must match scales dtype {:f, 16}, got: {:f, 32}/, fn ->
        Quantization.quantized_matmul(weight({2, 64}), qw)
      end

      mx = QuantizedWeight.from_dense(weight({4, 64}), mode: "mxfp8")

      assert_raise ArgumentError, ~r/x of a real float type for mode mxfp8, got: {:s, 32}/, fn ->
        Quantization.quantized_matmul(Nx.iota({2, 64}), mx)
      end
    end

    test "in double precision are composed" do
      qw = QuantizedWeight.from_dense(weight({4, 64}))
      x = weight({2, 64}, :f64)

      [emily, binary] =
        for b <- [{Emily.Backend, device: :cpu}, Nx.BinaryBackend],
            do: Quantization.quantized_matmul_defn(Nx.backend_copy(x, b), on(qw, b))

      assert emily.type == {:f, 64}
      assert relative_error(emily, binary) < 1.0e-14
    end

    test "refuse other shapes" do
      qw = QuantizedWeight.from_dense(weight({2, 4, 64}))

      assert_raise ArgumentError, ~r/a last axis of 64, got: {2, 4}/, fn ->
        Quantization.quantized_matmul(weight({2, 4}), qw)
      end

      assert_raise ArgumentError, ~r/batch axes that broadcast/, fn ->
        Quantization.quantized_matmul(weight({3, 2, 64}), qw)
      end

      assert_raise ArgumentError, ~r/bits=5 is not supported by the defn-native path/, fn ->
        Quantization.dequantize_defn(%{qw | bits: 5})
      end

      assert_raise ArgumentError, ~r/:mode must be one of/, fn ->
        Quantization.dequantize_defn(%{qw | mode: "int8"})
      end

      assert Quantization.defn_supported_bits() == [2, 3, 4, 6, 8]
    end
  end

  describe "dequantize_defn" do
    test "inside defn" do
      for opts <- @schemes do
        qw = QuantizedWeight.from_dense(weight({3, 128}), opts)
        inside = Nx.Defn.jit(&Quantization.dequantize_defn/1, compiler: Emily.Compiler).(qw)
        assert Nx.to_binary(inside) == Nx.to_binary(QuantizedWeight.to_dense(qw))
      end
    end
  end

  describe "mixtures of experts" do
    test "pick weights and rows" do
      for opts <- [[bits: 4], [bits: 3, group_size: 32], [mode: "mxfp4"], [mode: "nvfp4"]],
          transpose <- [true, false] do
        qw = QuantizedWeight.from_dense(weight({3, 5, 64}), [transpose: transpose] ++ opts)
        x = weight({4, 2, if(transpose, do: 64, else: 5)}, :f32, 0.7)
        dense = qw |> on(Nx.BinaryBackend) |> QuantizedWeight.to_dense() |> Nx.as_type(:f64)

        for {xs, ws, shape} <- [
              {[0, 3, 1], [2, 2, 0], {3}},
              {[[0], [1]], [[2, 1]], {2, 2}},
              {nil, [2, 0, 0, 1], {4}},
              {[1, 1, 3], nil, {3}}
            ] do
          opts =
            for {key, list} <- [x_indices: xs, weight_indices: ws],
                list,
                do: {key, Nx.tensor(list)}

          pick = fn list, count ->
            Nx.flatten(Nx.broadcast(Nx.tensor(list || Enum.to_list(0..(count - 1))), shape))
          end

          expected =
            reference(
              Nx.take(Nx.as_type(x, :f64), pick.(xs, 4)),
              Nx.take(dense, pick.(ws, 3)),
              transpose
            )

          expected =
            Nx.reshape(
              expected,
              List.to_tuple(Tuple.to_list(shape) ++ [2, Nx.axis_size(expected, -1)])
            )

          for {backend, run} <- [
                {Emily.Backend, &Quantization.gather_quantized_matmul/3},
                {Nx.BinaryBackend, &Quantization.gather_quantized_matmul/3}
              ] do
            actual = run.(Nx.backend_copy(x, backend), on(qw, backend), opts)
            assert %{__struct__: ^backend} = actual.data
            assert actual.shape == expected.shape
            assert relative_error(actual, expected) < within(2.0e-6)
          end
        end
      end
    end

    test "inside defn, sorted, with a gradient" do
      qw = QuantizedWeight.from_dense(weight({3, 5, 64}))
      indices = Nx.tensor([0, 0, 2, 2], type: :u32)

      fun = fn x, qw, i ->
        Quantization.gather_quantized_matmul(x, qw, weight_indices: i, sorted: true)
      end

      x = weight({4, 1, 64}, :f32, 0.7)
      picked = Nx.Defn.jit(fun, compiler: Emily.Compiler).(x, qw, indices)

      dense =
        qw
        |> on(Nx.BinaryBackend)
        |> QuantizedWeight.to_dense()
        |> Nx.as_type(:f64)
        |> Nx.take(indices)

      assert relative_error(picked, reference(Nx.as_type(x, :f64), dense, true)) < within(2.0e-6)

      grad = fn x, qw, i -> Nx.Defn.grad(x, &Nx.sum(fun.(&1, qw, i))) end
      grad = Nx.Defn.jit(grad, compiler: Emily.Compiler).(x, qw, indices)
      assert relative_error(grad, Nx.sum(dense, axes: [1], keep_axes: true)) < within(2.0e-6)
    end

    test "refuse indices that are no integers and x of another size" do
      qw = QuantizedWeight.from_dense(weight({3, 5, 64}))

      assert_raise ArgumentError, ~r/:weight_indices of an integer type/, fn ->
        Quantization.gather_quantized_matmul(weight({4, 1, 64}), qw,
          weight_indices: Nx.tensor([1.0])
        )
      end

      assert_raise ArgumentError, ~r/a last axis of 64/, fn ->
        Quantization.gather_quantized_matmul(weight({4, 1, 5}), qw,
          weight_indices: Nx.tensor([1])
        )
      end
    end
  end

  describe "layers" do
    test "a dense layer with a bias, inside defn too" do
      qw = QuantizedWeight.from_dense(weight({4, 64}))
      {x, bias} = {weight({2, 64}, :f32, 0.7), weight({4}, :f32, 0.1)}
      plain = Quantization.quantized_matmul(x, qw)
      assert Nx.to_binary(Layers.quantized_dense(x, qw)) == Nx.to_binary(plain)
      assert Nx.to_binary(Layers.quantized_dense(x, qw, mode: :inference)) == Nx.to_binary(plain)
      expected = plain |> Nx.backend_copy(Nx.BinaryBackend) |> Nx.add(bias)

      for fun <- [&Layers.quantized_dense/3, &Layers.quantized_dense(&1, &2, &3, mode: :train)] do
        assert relative_error(fun.(x, qw, bias), expected) < within(1.0e-6)

        assert relative_error(
                 Nx.Defn.jit(fun, compiler: Nx.Defn.Evaluator).(x, qw, bias),
                 expected
               ) < 1.0e-6
      end

      assert_raise ArgumentError, ~r/unknown keys \[:units\]/, fn ->
        Layers.quantized_dense(x, qw, bias, units: 1)
      end
    end
  end

  describe "from checkpoints" do
    # A file of safetensors: the size of the header, the header in JSON, the elements.
    defp safetensors(path, tensors) do
      {header, data, _} =
        Enum.reduce(tensors, {[], [], 0}, fn {name, type, tensor}, {header, data, at} ->
          bytes = Nx.to_binary(tensor)
          stop = at + byte_size(bytes)
          shape = tensor.shape |> Tuple.to_list() |> Enum.join(",")

          entry =
            ~s("#{name}":{"dtype":"#{type}","shape":[#{shape}],"data_offsets":[#{at},#{stop}]})

          {[entry | header], [data, bytes], stop}
        end)

      json = "{" <> Enum.join(Enum.reverse(header), ",") <> "}"
      File.write!(path, [<<byte_size(json)::little-64>>, json, data])
    end

    @tag :tmp_dir
    test "MLX's own, of affine and microscaled weights", %{tmp_dir: folder} do
      path = Path.join(folder, "model.safetensors")
      affine = QuantizedWeight.from_dense(weight({4, 128}, :f16), bits: 6)
      mx = QuantizedWeight.from_dense(weight({4, 64}), mode: "mxfp4")

      safetensors(path, [
        {"mlp.weight", "U32", affine.value},
        {"mlp.scales", "F16", affine.scales},
        {"mlp.biases", "F16", affine.biases},
        {"mx.weight", "U32", mx.value},
        {"mx.scales", "U8", mx.scales}
      ])

      %{tensors: tensors} = Emily.load(path)
      loaded = QuantizedWeight.from_checkpoint(tensors, "mlp")
      assert %{bits: 6, group_size: 64, mode: "affine", transpose: true} = loaded

      assert Nx.to_binary(QuantizedWeight.to_dense(loaded)) ==
               Nx.to_binary(QuantizedWeight.to_dense(affine))

      x = weight({2, 128}, :f16)

      assert Nx.to_binary(Quantization.quantized_matmul(x, loaded)) ==
               Nx.to_binary(Quantization.quantized_matmul(x, affine))

      loaded = QuantizedWeight.from_checkpoint(tensors, "mx", mode: "mxfp4", transpose: false)
      assert %{bits: 4, group_size: 32, mode: "mxfp4", transpose: false} = loaded

      assert Nx.to_binary(QuantizedWeight.to_dense(loaded)) ==
               Nx.to_binary(QuantizedWeight.to_dense(mx))

      assert_raise ArgumentError, ~r/found no tensor "mlp2.weight"/, fn ->
        QuantizedWeight.from_checkpoint(tensors, "mlp2")
      end

      assert_raise ArgumentError, ~r/found no tensor "mx.biases"/, fn ->
        QuantizedWeight.from_checkpoint(tensors, "mx")
      end
    end

    # The least GGUF file: one tensor of type Q4_1, whose blocks of 32 have a scale, a least value and
    # nibbles of which the low ones come first.
    defp gguf(path, name, scale, least, codes) do
      text = fn text -> <<byte_size(text)::little-64, text::binary>> end
      {low, high} = Enum.split(codes, 16)
      nibbles = for {l, h} <- Enum.zip(low, high), into: <<>>, do: <<h::4, l::4>>
      block = <<scale::float-little-16, least::float-little-16, nibbles::binary>>
      dims = <<2::little-32, 32::little-64, 2::little-64>>

      header = [
        "GGUF",
        <<3::little-32, 1::little-64, 0::little-64>>,
        text.(name),
        dims,
        <<3::little-32, 0::little-64>>
      ]

      header = IO.iodata_to_binary(header)
      padding = rem(32 - rem(byte_size(header), 32), 32)
      File.write!(path, [header, <<0::size(padding)-unit(8)>>, block, block])
    end

    @tag :tmp_dir
    test "GGUF's quantised ones", %{tmp_dir: folder} do
      path = Path.join(folder, "model.gguf")
      codes = for i <- 0..31, do: rem(i * 7, 16)
      gguf(path, "blk.0.attn_q.weight", 0.5, -2.0, codes)
      %{tensors: tensors} = Emily.load(path)
      qw = QuantizedWeight.from_checkpoint(tensors, "blk.0.attn_q", group_size: 32)
      assert %{bits: 4, group_size: 32} = qw
      row = Enum.map(codes, &(&1 * 0.5 - 2.0))
      assert Nx.to_flat_list(QuantizedWeight.to_dense(qw)) == row ++ row
    end

    test "refuse parts that do not fit" do
      qw = QuantizedWeight.from_dense(weight({4, 64}))
      mx = QuantizedWeight.from_dense(weight({4, 64}), mode: "mxfp4")

      for {fun, text} <- [
            {fn -> QuantizedWeight.from_parts(qw.scales, qw.scales, qw.biases) end,
             "packed value must be of type"},
            {fn -> QuantizedWeight.from_parts(qw.value, qw.scales) end,
             "affine weights must have biases"},
            {fn -> QuantizedWeight.from_parts(qw.value, qw.scales, mx.value) end,
             "biases must have the shape {4, 1}"},
            {fn -> QuantizedWeight.from_parts(qw.value, mx.value, qw.biases, bits: 4) end,
             "scales must have the shape {4, 1}"},
            {fn -> QuantizedWeight.from_parts(qw.value, qw.scales, qw.biases, bits: 3) end,
             "groups of 64 elements of 3 bits"},
            {fn -> QuantizedWeight.from_parts(mx.value, qw.value, nil, mode: "mxfp4") end,
             "scales must have the shape"},
            {fn -> QuantizedWeight.from_parts(mx.value, mx.scales, qw.biases, mode: "mxfp4") end,
             "biases must be nil in mode mxfp4"}
          ] do
        error = assert_raise ArgumentError, fun
        assert error.message =~ text
      end
    end
  end
end
