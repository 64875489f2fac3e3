defmodule Emily.NativeProgramTest do
  # Programs through the native module: what the compiler makes of a defn, without a defn.
  use ExUnit.Case, async: true

  alias Emily.{Elements, Native}
  alias Emily.Native.Call

  @f32 {:f, 32}
  @s32 {:s, 32}

  setup do
    {:ok, w: Emily.Stream.new(:cpu).worker}
  end

  defp f32(numbers), do: Elements.tensor(numbers, @f32)
  defp scalar(number, type \\ @f32), do: Elements.tensor([number], type, [])

  defp floats(w, ref) do
    for <<x::float-32-native <- Call.to_binary(w, ref)>>, do: x
  end

  defp integers(w, ref) do
    for <<x::signed-32-native <- Call.to_binary(w, ref)>>, do: x
  end

  defp compile(w, inputs, constants, steps, outputs) do
    Call.compile_program(w, inputs, constants, steps, outputs, false)
  end

  defp run(w, program, inputs), do: Call.run_program(w, program, inputs, &no_call/2)

  defp no_call(key, _tensors), do: flunk("asked #{key}")

  # {count, value} is doubled while count < limit; the limit is captured.
  defp doubling(w) do
    state = [{[], @s32}, {[2], @f32}]
    inner = state ++ [{[], @s32}]
    condition = compile(w, inner, [], [{:apply, :less, [0, 2], 1}], [3])
    steps = [{:apply, :add, [0, 3], 1}, {:apply, :add, [1, 1], 1}]
    body = compile(w, inner, [scalar(1, @s32)], steps, [4, 5])
    compile(w, inner, [], [{:while, [0, 1], [2], condition, body}], [3, 4])
  end

  describe "a step" do
    test "applies an op to inputs and constants", %{w: w} do
      steps = [
        {:apply, :multiply, [0, 1], 1},
        {:apply, {:sum, %{axes: [0], keep_axes: true}}, [2], 1}
      ]

      program = compile(w, [{[3], @f32}], [scalar(10.0)], steps, [3, 2, 0])
      assert [sum, product, x] = run(w, program, [f32([1.0, 2.0, 3.0])])
      assert floats(w, sum) == [60.0]
      assert floats(w, product) == [10.0, 20.0, 30.0]
      assert floats(w, x) == [1.0, 2.0, 3.0]
    end

    test "loops while a condition holds", %{w: w} do
      program = doubling(w)

      for {limit, factor} <- [{0, 1.0}, {1, 2.0}, {10, 1024.0}] do
        inputs = [scalar(0, @s32), f32([1.0, -1.0]), scalar(limit, @s32)]
        assert [count, value] = run(w, program, inputs)
        assert integers(w, count) == [limit]
        assert floats(w, value) == [factor, -factor]
      end
    end

    test "asks the caller, which may compute on the same stream meanwhile", %{w: w} do
      steps = [
        {:apply, :negative, [0], 1},
        {:call, [1, 0], 7, [{[2], @f32}]},
        {:apply, :add, [2, 1], 1}
      ]

      program = compile(w, [{[2], @f32}], [], steps, [3])

      on_call = fn 7, [negative, x] ->
        assert floats(w, negative) == [-1.0, -2.0]
        [Native.multiply(w, x, f32([100.0, 100.0]))]
      end

      assert [sum] = Call.run_program(w, program, [f32([1.0, 2.0])], on_call)
      assert floats(w, sum) == [99.0, 198.0]
    end
  end
end
