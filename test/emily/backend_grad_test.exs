defmodule Emily.BackendGradTest do
  # Nx.Defn.grad through Emily against central differences of the same function on Nx.BinaryBackend.
  # The numbers in the functions are exact in f32, which Nx rounds them to outside of Nx.Defn.
  use ExUnit.Case, async: true

  @step 1.0e-5

  # Numbers that look arbitrary, of which no two are close: a difference must not cross a tie.
  defp wave(shape, phase) do
    Nx.iota(shape, type: :f64, backend: Nx.BinaryBackend)
    |> Nx.multiply(1.7)
    |> Nx.add(phase)
    |> Nx.sin()
  end

  # A function's result as one number in which every element has a weight of its own, since the sum of
  # some results (softmax) does not depend on the argument.
  defp weighted(fun) do
    fn x ->
      y = fun.(x)
      weights = y |> Nx.shape() |> Nx.iota(type: Nx.type(y)) |> Nx.multiply(0.875) |> Nx.cos()
      Nx.sum(Nx.multiply(y, weights))
    end
  end

  defp differences(fun, x) do
    values = Nx.to_flat_list(x)
    at = &Nx.to_number(fun.(Nx.reshape(Nx.tensor(&1, type: :f64), Nx.shape(x))))

    Nx.with_default_backend(Nx.BinaryBackend, fn ->
      for i <- 0..(length(values) - 1) do
        above = at.(List.update_at(values, i, &(&1 + @step)))
        below = at.(List.update_at(values, i, &(&1 - @step)))
        (above - below) / (2 * @step)
      end
    end)
  end

  defp gradient(fun, x, type) do
    Emily.Stream.with_stream(Emily.Stream.new(:cpu), fn ->
      Nx.with_default_backend({Emily.Backend, device: :cpu}, fn ->
        x = x |> Nx.as_type(type) |> Nx.backend_copy({Emily.Backend, device: :cpu})
        grad = Nx.Defn.grad(fun).(x)
        assert %Nx.Tensor{data: %Emily.Backend{}} = grad
        assert {Nx.type(grad), Nx.shape(grad)} == {type, Nx.shape(x)}
        Nx.to_flat_list(grad)
      end)
    end)
  end

  defp assert_gradient(shape, fun, phase \\ 0.3) do
    x = wave(shape, phase)
    fun = weighted(fun)
    expected = differences(fun, x)
    assert Enum.any?(expected, &(abs(&1) > 1.0e-2))

    for {type, tolerance} <- [{{:f, 64}, 1.0e-7}, {{:f, 32}, 1.0e-4}] do
      for {found, expected} <- Enum.zip(gradient(fun, x, type), expected) do
        assert_in_delta found, expected, tolerance * (1 + abs(expected))
      end
    end
  end

  # The other operand: of the first one's type and backend, so that it is built where it is used.
  defp other(x, shape, phase) do
    Nx.iota(shape, type: Nx.type(x)) |> Nx.multiply(0.75) |> Nx.add(phase) |> Nx.cos()
  end

  defp softmax(x) do
    exp = Nx.exp(Nx.subtract(x, Nx.reduce_max(x, axes: [-1], keep_axes: true)))
    Nx.divide(exp, Nx.sum(exp, axes: [-1], keep_axes: true))
  end

  describe "products" do
    test "dot" do
      assert_gradient({3, 4}, &Nx.dot(&1, other(&1, {4, 2}, 0.125)))
      assert_gradient({4, 2}, &Nx.dot(other(&1, {3, 4}, 0.125), &1))
    end

    test "dot with batch axes" do
      assert_gradient({2, 3, 4}, &Nx.dot(&1, [2], [0], other(&1, {2, 4, 2}, 0.125), [1], [0]))
    end

    test "conv by its input and by its kernel" do
      opts = [strides: [2, 1], padding: [{1, 0}, {1, 1}]]
      assert_gradient({2, 2, 4, 4}, &Nx.conv(&1, other(&1, {3, 2, 2, 3}, 0.125), opts))
      assert_gradient({3, 2, 2, 3}, &Nx.conv(other(&1, {2, 2, 4, 4}, 0.125), &1, opts))
    end

    test "conv in groups, dilated" do
      opts = [feature_group_size: 2, kernel_dilation: [1, 2], padding: :same]
      assert_gradient({1, 4, 3, 5}, &Nx.conv(&1, other(&1, {4, 2, 2, 2}, 0.125), opts))
      assert_gradient({4, 2, 2, 2}, &Nx.conv(other(&1, {1, 4, 3, 5}, 0.125), &1, opts))
    end
  end

  describe "normalisation" do
    test "softmax", do: assert_gradient({3, 5}, &softmax/1)
    test "logsumexp", do: assert_gradient({3, 5}, &Nx.logsumexp(&1, axes: [1]))

    test "layer norm" do
      assert_gradient({3, 6}, fn x ->
        centred = Nx.subtract(x, Nx.mean(x, axes: [-1], keep_axes: true))
        scale = Nx.rsqrt(Nx.add(Nx.variance(x, axes: [-1], keep_axes: true), 0.125))
        Nx.multiply(Nx.multiply(centred, scale), other(x, {6}, 0.375))
      end)
    end
  end

  describe "order" do
    test "reduce_max and reduce_min" do
      assert_gradient({4, 5}, &Nx.reduce_max(&1, axes: [0]))
      assert_gradient({4, 5}, &Nx.reduce_min(&1, axes: [1]))
    end

    test "max of two tensors", do: assert_gradient({4, 5}, &Nx.max(&1, other(&1, {4, 5}, 0.125)))

    test "sort in both directions" do
      assert_gradient({3, 5}, &Nx.sort(&1, axis: 1))
      assert_gradient({3, 5}, &Nx.sort(&1, axis: 0, direction: :desc))
    end
  end

  describe "indices" do
    test "take, with an index that comes twice" do
      assert_gradient({4, 3}, &Nx.take(&1, Nx.tensor([2, 0, 2]), axis: 0))
    end

    test "take_along_axis" do
      assert_gradient({2, 4}, &Nx.take_along_axis(&1, Nx.tensor([[3, 0], [1, 1]]), axis: 1))
    end

    test "gather" do
      assert_gradient({3, 4}, &Nx.gather(&1, Nx.tensor([[0, 1], [2, 3], [0, 1]])))
    end

    test "indexed_add by its updates" do
      assert_gradient({3}, fn x ->
        Nx.indexed_add(other(x, {2, 2}, 0.125), Nx.tensor([[0, 0], [1, 1], [0, 0]]), x)
      end)
    end

    test "slice and put_slice" do
      assert_gradient({4, 5}, &Nx.slice(&1, [1, 0], [2, 3], strides: [1, 2]))
      assert_gradient({2, 2}, &Nx.put_slice(other(&1, {3, 4}, 0.125), [1, 2], &1))
    end
  end

  describe "windows" do
    test "cumulative_sum" do
      assert_gradient({3, 4}, &Nx.cumulative_sum(&1, axis: 1))
      assert_gradient({3, 4}, &Nx.cumulative_sum(&1, axis: 0, reverse: true))
    end

    test "cumulative_product", do: assert_gradient({3, 4}, &Nx.cumulative_product(&1, axis: 1))

    test "window_max" do
      assert_gradient({4, 6}, &Nx.window_max(&1, {2, 3}, strides: [2, 3]))
      # Nx pads with 0 for the gradient, which must not be a window's greatest.
      opts = [strides: [1, 2], padding: :same]
      assert_gradient({4, 5}, &Nx.window_max(Nx.add(&1, 2), {2, 2}, opts))
    end

    test "window_sum" do
      assert_gradient({4, 5}, &Nx.window_sum(&1, {2, 3}, strides: [1, 2], padding: :same))
    end
  end

  test "select" do
    assert_gradient({4, 5}, fn x ->
      Nx.select(Nx.greater(other(x, {4, 5}, 0.25), 0), Nx.multiply(x, x), Nx.sin(x))
    end)
  end

  test "solve and determinant" do
    well = fn x -> Nx.add(Nx.multiply(x, 0.25), Nx.eye(3, type: Nx.type(x))) end
    assert_gradient({3, 3}, &Nx.LinAlg.solve(well.(&1), other(&1, {3, 2}, 0.125)))
    assert_gradient({3, 3}, &Nx.LinAlg.determinant(well.(&1)))
  end
end
