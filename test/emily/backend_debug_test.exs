defmodule Emily.BackendDebugTest do
  use ExUnit.Case, async: true

  setup do
    Nx.default_backend({Emily.Backend, device: :cpu})
    :ok
  end

  describe "debug checks" do
    alias Emily.Backend.Checks

    test "are absent unless asked for" do
      path = :code.which(Emily.Backend)
      {:ok, {_, [imports: imports]}} = :beam_lib.chunks(path, [:imports])
      refute Enum.any?(imports, fn {module, _, _} -> module == Checks end)
    end

    test "name the index and the axis" do
      worker = Emily.Stream.worker()
      ref = fn list -> Nx.tensor(list).data.ref end
      assert Checks.check_bounds!(:take, {3, 4}, [ref.([0, 3])], [1], worker) == :ok

      assert_raise ArgumentError, "take: index 4 on axis 1 out of range (dim=4)", fn ->
        Checks.check_bounds!(:take, {3, 4}, [ref.([0, 4])], [1], worker)
      end

      assert_raise ArgumentError, "gather: index -1 on axis 0 is negative", fn ->
        Checks.check_bounds!(:gather, {3}, [ref.([-1, 2])], [0], worker)
      end
    end

    test "find a NaN, also in complex numbers" do
      worker = Emily.Stream.worker()
      assert Checks.check_nan_inf!(:dot, Nx.tensor([1.0]).data.ref, worker) == :ok
      assert Checks.check_nan_inf!(:dot, Nx.tensor([1]).data.ref, worker) == :ok

      for bad <- [[:nan, 1.0], [:infinity], [Complex.new(0, :nan)]] do
        assert_raise ArgumentError, "dot: produced NaN or Inf", fn ->
          Checks.check_nan_inf!(:dot, Nx.tensor(bad).data.ref, worker)
        end
      end
    end
  end

  describe "a build with the debug flags" do
    # The backend with the flags, in a VM of its own: they are read while it is compiled.
    defp with_flags(script) do
      folders = Path.wildcard(Path.join(Application.app_dir(:emily), "../*/ebin"))
      beside = :code.lib_dir(:nx) |> Path.join("../*/ebin") |> Path.wildcard()

      start = """
      Application.put_env(:emily, :debug_bounds_check, true)
      Application.put_env(:emily, :debug_detect_nan_inf, true)
      Code.put_compiler_option(:ignore_module_conflict, true)
      Code.compile_file("lib/emily/backend.ex")
      {:ok, _} = Application.ensure_all_started(:emily)
      Nx.default_backend({Emily.Backend, device: :cpu})
      text = fn fun ->
        try do
          fun.()
          "nothing raised"
        rescue
          error in ArgumentError -> Exception.message(error)
        end
      end
      """

      paths = Enum.flat_map(folders ++ beside, &["-pa", &1])

      # A VM's warnings go to its standard error.
      {output, status} =
        System.cmd("elixir", paths ++ ["-e", start <> script], stderr_to_stdout: true)

      assert {status, output} == {0, output}
      String.split(output, "\n", trim: true)
    end

    test "raises for every index out of range" do
      assert with_flags("""
             x = Nx.iota({3, 4})
             two = Nx.tensor([[0, 0], [1, 4]])
             before = Nx.tensor([[0, 0], [-1, 0]])
             ones = Nx.tensor([1, 1])
             fine = Nx.tensor([[2, 3], [0, 0]])

             for fun <- [
                   fn -> Nx.gather(x, two) end,
                   fn -> Nx.take(x, Nx.tensor([0, 3])) end,
                   fn -> Nx.take_along_axis(x, Nx.tensor([[0], [4], [0]]), axis: 1) end,
                   fn -> Nx.indexed_add(x, two, ones) end,
                   fn -> Nx.indexed_put(x, before, ones) end,
                   fn -> 16 = Nx.to_number(Nx.sum(Nx.gather(x, fine))) + 5 end,
                   fn -> Nx.indexed_put(x, fine, ones) end,
                   fn -> Nx.take(x, Nx.tensor([[0, 2]])) end
                 ],
                 do: IO.puts(text.(fun))
             """) == [
               "gather: index 4 on axis 1 out of range (dim=4)",
               "take: index 3 on axis 0 out of range (dim=3)",
               "take_along_axis: index 4 on axis 1 out of range (dim=4)",
               "indexed_add: index 4 on axis 1 out of range (dim=4)",
               "indexed_put: index -1 on axis 0 is negative",
               "nothing raised",
               "nothing raised",
               "nothing raised"
             ]
    end

    test "raises for what is not finite in products and convolutions" do
      assert with_flags("""
             x = Nx.tensor([[1.0, :nan], [2.0, 3.0]])
             huge = Nx.tensor([[3.0e38, 3.0e38], [1.0, 1.0]])
             image = Nx.reshape(x, {1, 1, 2, 2})
             ones = Nx.broadcast(1.0, {1, 1, 2, 2})

             for fun <- [
                   fn -> Nx.dot(x, x) end,
                   fn -> Nx.dot(huge, Nx.tensor([[2.0], [2.0]])) end,
                   fn -> Nx.conv(image, ones) end,
                   fn -> Nx.dot(ones, ones) end,
                   fn -> Nx.conv(ones, ones) end
                 ],
                 do: IO.puts(text.(fun))
             """) == [
               "dot: produced NaN or Inf",
               "dot: produced NaN or Inf",
               "conv: produced NaN or Inf",
               "nothing raised",
               "nothing raised"
             ]
    end
  end
end
