defmodule Emily.NxTensors do
  @moduledoc """
  Runs a function of tensors on `Nx.BinaryBackend` and on `Emily.Backend`, and compares.

  Integers must be equal; floats may differ by what a few roundings in their type cost. Shapes,
  types, names and vectorized axes must be those of Nx, and the MLX array behind a tensor must have
  the shape and the type that the tensor claims.
  """

  import ExUnit.Assertions

  @doc """
  Asserts that both backends give the same, and the compiler the bits of the backend.

  Options: `:tolerance`, relative and absolute; `compile: false` for functions that a defn cannot have.
  """
  def assert_like_binary_backend(inputs, fun, opts \\ []) do
    inputs = List.wrap(inputs)
    expected = Nx.with_default_backend(Nx.BinaryBackend, fn -> apply(fun, inputs) end)

    actual =
      Nx.with_default_backend(Emily.Backend, fn -> apply(fun, Enum.map(inputs, &to_emily/1)) end)

    assert_same(actual, expected, opts)
    if Keyword.get(opts, :compile, true), do: assert_compiles_alike(inputs, fun)
  end

  @doc "Asserts that the compiler, which may not fall back, gives the bits of the backend."
  def assert_compiles_alike(inputs, fun) do
    inputs = Enum.map(inputs, &to_emily/1)
    # One argument, since a list would be taken for options.
    arguments = List.to_tuple(Enum.map(inputs, &tuples/1))
    fun = fn arguments -> apply(fun, arguments |> Tuple.to_list() |> Enum.map(&lists/1)) end
    eager = Nx.with_default_backend(Emily.Backend, fn -> fun.(arguments) end)
    compiled = Nx.Defn.jit(fun, compiler: Emily.Compiler, native_fallback: :raise).(arguments)
    assert_equal(compiled, eager)
  end

  # Lists of tensors are no containers.
  defp tuples(list) when is_list(list), do: %{0 => List.to_tuple(list)}
  defp tuples(other), do: other

  defp lists(%{0 => tuple} = map) when map_size(map) == 1, do: Tuple.to_list(tuple)
  defp lists(other), do: other

  defp assert_equal(compiled, eager) do
    pairs =
      Enum.zip(
        Nx.Defn.Composite.flatten_list([compiled]),
        Nx.Defn.Composite.flatten_list([eager])
      )

    assert Nx.compatible?(compiled, eager)

    for {compiled, eager} <- pairs do
      assert %Emily.Backend{ref: ref} = compiled.data
      assert Emily.shape(ref) == Tuple.to_list(Nx.devectorize(compiled).shape)
      assert Emily.dtype(ref) == Emily.Lowering.Narrow.storage(compiled.type)

      if Nx.to_binary(compiled) != Nx.to_binary(eager) do
        flunk("""
        the lanes differ
        compiled: #{inspect(compiled, limit: :infinity)}
        eager:    #{inspect(eager, limit: :infinity)}
        """)
      end
    end

    :ok
  end

  @doc "The same tensors on Emily."
  def to_emily(%Nx.Tensor{} = tensor), do: Nx.backend_copy(tensor, Emily.Backend)
  def to_emily(list) when is_list(list), do: Enum.map(list, &to_emily/1)
  def to_emily(other), do: other

  @doc "Compares a tensor, or a tuple or list of them, with the expected one."
  def assert_same(actual, expected, opts \\ [])

  def assert_same(actual, expected, opts) when is_tuple(expected) and is_tuple(actual),
    do: assert_same(Tuple.to_list(actual), Tuple.to_list(expected), opts)

  def assert_same(actual, expected, opts) when is_list(expected) do
    assert length(actual) == length(expected)
    Enum.zip_with(actual, expected, &assert_same(&1, &2, opts))
  end

  def assert_same(%Nx.Tensor{} = actual, %Nx.Tensor{} = expected, opts) do
    assert %Emily.Backend{ref: ref} = actual.data
    assert actual.shape == expected.shape
    assert actual.type == expected.type
    assert actual.names == expected.names
    assert actual.vectorized_axes == expected.vectorized_axes

    devectorized = Nx.devectorize(actual)
    assert Emily.shape(ref) == Tuple.to_list(devectorized.shape)
    assert Emily.dtype(ref) == Emily.Lowering.Narrow.storage(actual.type)

    tolerance = opts[:tolerance] || Emily.TestDevice.tolerance(expected.type)
    found = numbers(actual)
    wanted = numbers(expected)

    unless Enum.zip_with(found, wanted, &close?(&1, &2, tolerance)) |> Enum.all?() do
      flunk("""
      the backends differ (tolerance #{tolerance})
      Emily:  #{inspect(actual, limit: :infinity)}
      binary: #{inspect(expected, limit: :infinity)}
      """)
    end

    :ok
  end

  defp numbers(tensor), do: tensor |> Nx.devectorize() |> Nx.to_flat_list()

  defp close?(same, same, _tolerance), do: true

  defp close?(%Complex{} = a, %Complex{} = b, tolerance) do
    size = Enum.max([1.0 | for(x <- [b.re, b.im], is_number(x), do: abs(x))])
    close_within?(a.re, b.re, tolerance * size) and close_within?(a.im, b.im, tolerance * size)
  end

  defp close?(a, b, tolerance) when is_number(a) and is_number(b),
    do: close_within?(a, b, tolerance * max(1.0, abs(b)))

  defp close?(_a, _b, _tolerance), do: false

  defp close_within?(same, same, _bound), do: true
  defp close_within?(a, b, bound) when is_number(a) and is_number(b), do: abs(a - b) <= bound
  defp close_within?(_a, _b, _bound), do: false
end
