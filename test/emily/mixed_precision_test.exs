defmodule Emily.MixedPrecisionTest do
  use ExUnit.Case, async: true

  alias Emily.MixedPrecision
  alias Emily.MixedPrecision.LossScaler

  @backends [Nx.BinaryBackend, Emily.Backend]

  defp tensor(list, type, backend), do: Nx.tensor(list, type: type, backend: backend)

  describe "casts" do
    test "reach floats in maps, tuples and lists, and nothing else" do
      for backend <- @backends,
          cast <- [&MixedPrecision.cast_params/2, &MixedPrecision.accumulate_grad/2] do
        float = tensor([1.0, 2.5], :f32, backend)
        int = tensor([1, 2], :s64, backend)
        range = 1..3

        params = %{
          "a" => float,
          b: {float, [int, %{c: Nx.as_type(float, :f16)}]},
          range: range,
          n: 7
        }

        half = tensor([1.0, 2.5], :bf16, backend)

        assert %{"a" => ^half, b: {^half, [^int, %{c: ^half}]}, range: ^range, n: 7} =
                 same(cast.(params, {:bf, 16}), half)

        assert %{"a" => %{type: {:f, 16}}} = cast.(params, :f16)
      end
    end

    # Tensors on Emily have references of their own: those that are equal become the expected one.
    defp same(%Nx.Tensor{} = t, expected) do
      if t.type == expected.type and Nx.to_binary(t) == Nx.to_binary(expected),
        do: expected,
        else: t
    end

    defp same(%_{} = struct, _), do: struct
    defp same(%{} = map, e), do: Map.new(map, fn {k, v} -> {k, same(v, e)} end)
    defp same(list, e) when is_list(list), do: Enum.map(list, &same(&1, e))

    defp same(tuple, e) when is_tuple(tuple),
      do: tuple |> Tuple.to_list() |> same(e) |> List.to_tuple()

    defp same(other, _), do: other
  end

  describe "a loss scaler" do
    test "has defaults and options" do
      assert MixedPrecision.loss_scale() == LossScaler.new()

      assert LossScaler.new() == %LossScaler{
               scale: 65_536.0,
               growth_factor: 2.0,
               backoff_factor: 0.5,
               growth_interval: 2000,
               min_scale: 1.0,
               counter: 0
             }

      assert %{scale: 8.0, growth_interval: 3} =
               MixedPrecision.loss_scale(scale: 8.0, growth_interval: 3)

      for {opts, text} <- [
            {[factor: 2], "unknown keys"},
            {[counter: 2], "unknown keys"},
            {[scale: 0.0], "expected :scale to be a positive number, got: 0.0"},
            {[growth_interval: 1.5], "expected :growth_interval to be a positive integer"},
            {[min_scale: "1"], "expected :min_scale"}
          ] do
        error = assert_raise ArgumentError, fn -> LossScaler.new(opts) end
        assert error.message =~ text
      end
    end

    test "falls at an overflow, to a floor, and grows after an interval" do
      scaler = LossScaler.new(scale: 4.0, growth_interval: 3, min_scale: 1.5)
      scaler = MixedPrecision.update(scaler, false)
      assert {scaler.scale, scaler.counter} == {4.0, 1}
      scaler = MixedPrecision.update(scaler, true)
      assert {scaler.scale, scaler.counter} == {2.0, 0}
      scaler = MixedPrecision.update(scaler, true)
      assert {scaler.scale, scaler.counter} == {1.5, 0}

      scaler = Enum.reduce(1..3, scaler, fn _, s -> MixedPrecision.update(s, false) end)
      assert {scaler.scale, scaler.counter} == {3.0, 0}
    end
  end

  describe "scaled losses and gradients" do
    test "come back to what they were, also where the scale is beyond the type" do
      scaler = MixedPrecision.loss_scale()

      for backend <- @backends, type <- [:f16, :bf16, :f32, :f64] do
        backend =
          if type == :f64 and backend == Emily.Backend, do: {backend, device: :cpu}, else: backend

        loss = MixedPrecision.scale_loss(tensor(1.5, type, backend), scaler)
        assert Nx.to_number(loss) == 98_304.0
        assert loss.type == if(type == :f64, do: {:f, 64}, else: {:f, 32})

        grads = %{w: tensor([16_384.0, -0.5], type, backend), i: tensor([3], :s32, backend)}
        assert {%{w: w, i: i}, false} = MixedPrecision.unscale(grads, scaler)

        assert {w.type, Nx.to_flat_list(w)} == {grads.w.type, [0.25, -0.5 / 65_536]} or
                 type == :f16

        # The least normal number of f16 is greater.
        assert_in_delta Enum.at(Nx.to_flat_list(w), 1), -0.5 / 65_536, 1.0e-7
        assert Nx.to_flat_list(i) == [3]
      end
    end

    test "overflow by an infinity or a NaN anywhere" do
      scaler = MixedPrecision.loss_scale()

      for backend <- @backends, type <- [:f16, :bf16, :f32] do
        fine = tensor([1.0, -2.0], type, backend)
        refute MixedPrecision.has_overflow?(%{a: fine, b: [{fine}]})
        refute MixedPrecision.has_overflow?(%{})
        refute MixedPrecision.has_overflow?(tensor([1, 2], :s32, backend))

        for bad <- [:nan, :infinity, :neg_infinity] do
          grads = %{a: fine, b: [{tensor([1.0, bad], type, backend)}]}
          assert MixedPrecision.has_overflow?(grads)
          assert {_, true} = MixedPrecision.unscale(grads, scaler)
          # A scalar alone.
          assert MixedPrecision.has_overflow?(tensor(bad, type, backend))
        end
      end
    end
  end

  describe "training" do
    # A network of two layers that learns a product: gradient descent with master parameters in f32.
    defp samples(backend) do
      x = Nx.iota({32, 2}, type: :f32, backend: backend) |> Nx.multiply(0.7) |> Nx.sin()
      {x, Nx.multiply(x[[.., 0]], x[[.., 1]])}
    end

    defp parameters(backend) do
      wave = fn shape, by ->
        Nx.iota(shape, type: :f32, backend: backend) |> Nx.multiply(by) |> Nx.cos()
      end

      %{
        w1: wave.({2, 16}, 1.3),
        b1: Nx.multiply(wave.({16}, 0.4), 0.1),
        w2: Nx.multiply(wave.({16}, 2.1), 0.3)
      }
    end

    defp loss(params, x, y) do
      x = Nx.as_type(x, Nx.type(params.w1))
      hidden = Nx.tanh(Nx.add(Nx.dot(x, params.w1), params.b1))
      error = Nx.subtract(Nx.dot(hidden, params.w2), Nx.as_type(y, Nx.type(params.w1)))
      Nx.mean(Nx.multiply(error, error))
    end

    defp train(type, steps, scaler) do
      Nx.with_default_backend(Emily.Backend, fn ->
        {x, y} = samples(Emily.Backend)

        step = fn params, scale, x, y ->
          half = MixedPrecision.cast_params(params, type)
          Nx.Defn.grad(half, &Nx.multiply(loss(&1, x, y), Nx.as_type(scale, type)))
        end

        step = Nx.Defn.jit(step, compiler: Nx.Defn.Evaluator)

        {params, scaler, skipped} =
          Enum.reduce(1..steps, {parameters(Emily.Backend), scaler, 0}, fn _,
                                                                           {params, scaler,
                                                                            skipped} ->
            grads =
              params
              |> step.(Nx.tensor(scaler.scale), x, y)
              |> MixedPrecision.accumulate_grad(:f32)

            {grads, overflow?} = MixedPrecision.unscale(grads, scaler)
            scaler = MixedPrecision.update(scaler, overflow?)

            if overflow? do
              {params, scaler, skipped + 1}
            else
              {Map.new(params, fn {k, p} -> {k, Nx.subtract(p, Nx.multiply(grads[k], 0.2))} end),
               scaler, skipped}
            end
          end)

        {Nx.to_number(loss(params, x, y)), scaler, skipped}
      end)
    end

    test "in bf16 and in f16 follows f32" do
      none = LossScaler.new(scale: 1.0)

      start =
        Nx.with_default_backend(Nx.BinaryBackend, fn ->
          {x, y} = samples(Nx.BinaryBackend)
          Nx.to_number(loss(parameters(Nx.BinaryBackend), x, y))
        end)

      {exact, _, 0} = train(:f32, 60, none)
      assert exact < start / 4

      {brain, _, 0} = train(:bf16, 60, none)
      assert_in_delta brain, exact, start / 50

      # The first scales overflow and are given up.
      {half, scaler, skipped} =
        train(:f16, 60 + 8, LossScaler.new(scale: 1_048_576.0, growth_interval: 1000))

      assert skipped > 0
      assert scaler.scale == 1_048_576.0 / Integer.pow(2, skipped)
      assert_in_delta half, exact, start / 50
    end
  end
end
