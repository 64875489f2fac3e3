defmodule Emily.NxReference do
  @moduledoc """
  Compares functions with references in double precision, their gradients too.

  The error of a tensor is the greatest difference by the greatest magnitude of the reference. A half
  type may cost one rounding, since the functions under test compute in single precision and round once.
  """

  import ExUnit.Assertions

  @unit %{
    {:bf, 16} => 1 / 256,
    {:f, 16} => 1 / 2048,
    {:f, 32} => :math.pow(2, -24),
    {:f, 64} => :math.pow(2, -53)
  }

  @least 1 / 16384

  @doc "Numbers in [-1, 1] that look arbitrary."
  def wave(shape, phase) do
    Nx.iota(shape, type: :f64, backend: Nx.BinaryBackend)
    |> Nx.multiply(1.7)
    |> Nx.add(phase)
    |> Nx.sin()
  end

  @doc "Such tensors of a type, one for each shape, on `Nx.BinaryBackend`."
  def waves(shapes, type) do
    for {shape, at} <- Enum.with_index(shapes), do: Nx.as_type(wave(shape, 0.3 + at), type)
  end

  @doc "The greatest difference by the greatest magnitude, or by 1 where that is less than f16's normal numbers."
  def relative_error(actual, expected) do
    [actual, expected] =
      for t <- [actual, expected], do: t |> Nx.backend_copy(Nx.BinaryBackend) |> Nx.as_type(:f64)

    difference = greatest(Nx.subtract(actual, expected))
    if greatest(expected) < @least, do: difference, else: difference / greatest(expected)
  end

  defp greatest(tensor), do: tensor |> Nx.abs() |> Nx.reduce_max() |> Nx.to_number()

  @doc "The types of the functions under test."
  def types, do: [bf: 16, f: 16, f: 32, f: 64]

  @doc """
  The two assertions below, for waves of such shapes in all types; `rest` has further arguments. Gradients may
  cost four times the roundings.
  """
  def assert_in_all_types(shapes, fun, reference, single, rest \\ []) do
    for type <- types() do
      inputs = waves(shapes, type) ++ rest
      assert_like_reference(inputs, fun, reference, single)
      assert_gradients_like_reference(inputs, fun, reference, 4 * single)
    end
  end

  @doc """
  Runs `fun` on tensors of a type on Emily, on `Nx.BinaryBackend` and inside `defn`, and `reference` on the
  same numbers as doubles. `single` is how many roundings the functions may cost in f32 and f64.
  """
  def assert_like_reference(inputs, fun, reference, single) do
    type = hd(inputs).type
    exact = Enum.map(inputs, &to_double/1)
    expected = apply(reference, exact)

    for {lane, run} <- lanes() do
      actual = run.(fun, inputs)
      assert actual.shape == expected.shape
      assert actual.type == type
      assert_within(actual, expected, roundings(type, single, lane), lane)
    end
  end

  @doc "The same for the gradients by all inputs of a float type."
  def assert_gradients_like_reference(inputs, fun, reference, single) do
    exact = Enum.map(inputs, &to_double/1)
    expected = gradients(reference, exact)
    assert Enum.any?(expected, &(greatest(&1) > 1.0e-3))

    # The composition is the same in half types but for its ends, and slow in Elixir.
    type = hd(inputs).type
    lanes = if match?({_, 16}, type), do: tl(lanes()), else: lanes()

    for {lane, run} <- lanes do
      actual =
        run.(
          fn inputs -> gradients(fun, inputs) |> List.to_tuple() end |> spread(length(inputs)),
          inputs
        )

      for {actual, expected, input} <- Enum.zip([Tuple.to_list(actual), expected, floats(inputs)]) do
        assert {actual.shape, actual.type} == {expected.shape, input.type}
        assert_within(actual, expected, roundings(input.type, single, lane), lane)
      end
    end
  end

  defp floats(tensors), do: Enum.filter(tensors, &Nx.Type.float?(&1.type))

  # Nx.Defn.grad takes one argument: the floats as a tuple, the integers from here.
  defp gradients(fun, inputs) do
    Nx.Defn.grad(List.to_tuple(floats(inputs)), fn floats ->
      {inputs, []} =
        Enum.map_reduce(inputs, Tuple.to_list(floats), fn input, floats ->
          if Nx.Type.float?(input.type),
            do: {hd(floats), tl(floats)},
            else: {captured(input), floats}
        end)

      weighted(apply(fun, inputs))
    end)
    |> Tuple.to_list()
  end

  # What a function captures must be on BinaryBackend, or an argument of the `defn` around.
  defp captured(%{data: %Emily.Backend{}} = t), do: Nx.backend_copy(t, Nx.BinaryBackend)
  defp captured(t), do: t

  # Every element has a weight of its own, which all types hold exactly.
  defp weighted(y) do
    weights = y |> Nx.shape() |> Nx.iota() |> Nx.multiply(5) |> Nx.remainder(7)
    weights = weights |> Nx.subtract(3) |> Nx.divide(4) |> Nx.as_type(Nx.type(y))
    Nx.sum(Nx.as_type(Nx.multiply(y, weights), wide(Nx.type(y))))
  end

  defp wide({_, 16}), do: {:f, 32}
  defp wide(type), do: type

  defp to_double(tensor),
    do: if(Nx.Type.float?(tensor.type), do: Nx.as_type(tensor, :f64), else: tensor)

  defp spread(fun, 1), do: fn a -> fun.([a]) end
  defp spread(fun, 2), do: fn a, b -> fun.([a, b]) end
  defp spread(fun, 3), do: fn a, b, c -> fun.([a, b, c]) end
  defp spread(fun, 4), do: fn a, b, c, d -> fun.([a, b, c, d]) end
  defp spread(fun, 5), do: fn a, b, c, d, e -> fun.([a, b, c, d, e]) end

  defp lanes do
    compilers = for c <- [Nx.Defn.Evaluator, Emily.Compiler], Code.ensure_loaded?(c), do: c

    [{Nx.BinaryBackend, &apply/2}, {Emily.Backend, &on_emily/2}] ++
      for compiler <- compilers do
        {compiler, fn fun, inputs -> on_emily(Nx.Defn.jit(fun, compiler: compiler), inputs) end}
      end
  end

  defp on_emily(fun, inputs) do
    device = Emily.TestDevice.for_types(Enum.map(inputs, & &1.type))
    backend = {Emily.Backend, device: device}

    Emily.Stream.with_stream(Emily.Stream.new(device), fn ->
      Nx.with_default_backend(backend, fn ->
        result = apply(fun, Enum.map(inputs, &Nx.backend_copy(&1, backend)))

        for tensor <- if(is_tuple(result), do: Tuple.to_list(result), else: [result]),
            do: assert(%Emily.Backend{} = tensor.data)

        result
      end)
    end)
  end

  # BinaryBackend cuts a number off for bf16 instead of rounding it.
  defp roundings({:bf, 16}, _single, Nx.BinaryBackend), do: 2
  defp roundings({_, 16}, _single, _lane), do: 1
  # The reference's own count too, and products sum in the order that the processor's BLAS likes.
  defp roundings({:f, 64}, single, _lane), do: 3 * single
  defp roundings(_type, single, _lane), do: single

  defp assert_within(actual, expected, roundings, lane) do
    found = relative_error(actual, expected)
    bound = max(1.01 * roundings * @unit[actual.type], Emily.TestDevice.coarseness(actual.type))

    assert found <= bound,
           "#{inspect(lane)} #{inspect(actual.type)} #{inspect(actual.shape)}: error #{found} > #{bound}"
  end
end
