defmodule Emily.TestDevice do
  @moduledoc false
  # The device under test, and what differs by it. EMILY_TEST_DEVICE=cpu or =gpu chooses it; without that
  # it is the one that the package prefers on this host.

  @doc "`:cpu` or `:gpu`."
  def device do
    case System.get_env("EMILY_TEST_DEVICE", "") do
      "" -> List.last(Emily.Stream.devices())
      "cpu" -> :cpu
      "gpu" -> if :gpu in Emily.Stream.devices(), do: :gpu, else: raise(no_gpu())
      other -> raise "EMILY_TEST_DEVICE: expected cpu or gpu, got #{inspect(other)}"
    end
  end

  defp no_gpu do
    "EMILY_TEST_DEVICE=gpu: there is no GPU (#{Emily.Preflight.reason(Emily.Preflight.found())})"
  end

  def gpu?, do: device() == :gpu

  @doc "Types that the device computes with: MLX has no f64 on a GPU."
  def types(types), do: if(gpu?(), do: Enum.reject(types, &(&1 == {:f, 64})), else: types)

  @doc "The device that computes with all of the types."
  def for_types(types), do: if(types(types) == types, do: device(), else: :cpu)

  @doc """
  The relative and absolute difference between floats of a type that a few roundings make.

  Sums of products of f32 are computed with TF32's 10 bits of mantissa on NVIDIA's cards, as MLX does
  unless the environment has MLX_ENABLE_TF32=0.
  """
  def tolerance({:f, 32}), do: if(gpu?(), do: 5.0e-3, else: 2.0e-5)
  def tolerance({:c, 64}), do: if(gpu?(), do: 5.0e-3, else: 5.0e-5)
  def tolerance({:f, 16}), do: if(gpu?(), do: 8.0e-3, else: 4.0e-3)
  def tolerance({:bf, 16}), do: if(gpu?(), do: 6.0e-2, else: 3.0e-2)
  def tolerance({:f, 64}), do: 1.0e-11
  def tolerance(_), do: 0

  @doc "The relative difference that a GPU's products make where a CPU's are exact to the last roundings."
  def coarseness({:f, 64}), do: 0
  def coarseness(type), do: if(gpu?(), do: tolerance(type), else: 0)

  @doc """
  How often a property is tried, of a number of times.

  CUDA kernels are made for each type and number of axes when they are first used, which takes seconds each.
  """
  def runs(times), do: if(gpu?(), do: div(times, 10), else: times)

  @doc "The difference of a loss after some steps of training in f32."
  def drift, do: if(gpu?(), do: 2.0e-3, else: 1.0e-4)
end
