defmodule Emily.Preflight do
  @moduledoc false
  # Looks at the host before the first call of MLX. Its CUDA build does not load without NVIDIA's driver
  # and libraries, and does not run without a device. So a CUDA build of this package has two native
  # libraries, one with each build of MLX, and here it is decided which is loaded: the CPU's where
  # anything that a GPU needs is missing, and what that is is kept for whoever asks for the GPU.

  # Called while the package is still being compiled, see Emily.Native.Nif.
  require Emily.Preflight.Nif
  alias Emily.Preflight.Nif

  @type problem :: %{what: String.t(), fix: String.t()}

  # What libmlx names, and the folder of pip's `nvidia` that has it.
  @libraries %{
    13 => ~w(libcublasLt.so.13 libcufft.so.12 libnvrtc.so.13 libcudnn.so.9 libnccl.so.2),
    12 => ~w(libcublasLt.so.12 libcufft.so.11 libnvrtc.so.12 libcudnn.so.9 libnccl.so.2)
  }

  # The oldest driver that runs code of a CUDA version, and the version as the driver tells it.
  @drivers %{13 => {"580", 13_000}, 12 => {"525", 12_000}}

  @doc "The native library to load, without its extension."
  @spec library(Path.t()) :: Path.t()
  def library(priv) do
    problems = priv |> facts() |> problems()
    :persistent_term.put(__MODULE__, problems)

    case problems do
      [] -> Path.join(priv, "libemily_nif")
      _ -> Path.join(priv, "cpu/libemily_nif")
    end
  end

  @doc "What kept the library for the GPU from being loaded. Empty where the build has none."
  @spec found() :: [problem]
  def found, do: :persistent_term.get(__MODULE__, [])

  @doc "The build of MLX in `priv`: \"cpu\", \"metal\", \"cuda12\", \"cuda13\", or nil."
  @spec variant(Path.t()) :: String.t() | nil
  def variant(priv) do
    case File.read(Path.join(priv, "emily_nif.stamp")) do
      {:ok, stamp} -> stamp |> String.split() |> List.first()
      {:error, _} -> nil
    end
  end

  @doc "What is known of the host. `cuda` is nil in a build without CUDA, which asks nothing."
  @spec facts(Path.t()) :: map
  def facts(priv) do
    case variant(priv) do
      "cuda" <> version -> cuda_facts(priv, String.to_integer(version))
      _ -> %{cuda: nil}
    end
  end

  defp cuda_facts(priv, cuda) do
    with :ok <- Nif.load(priv), {:ok, _} = driver <- Nif.driver() do
      libraries = for name <- @libraries[cuda], do: {name, Nif.open(locate(priv, name))}
      %{cuda: cuda, driver: driver, libraries: libraries, headers: headers(priv)}
    else
      {:error, text} -> %{cuda: cuda, driver: {:error, text}, libraries: [], headers: []}
    end
  end

  # In the wheels, or wherever the system's loader finds it.
  defp locate(priv, name) do
    priv |> Path.join("nvidia/*/lib/#{name}") |> Path.wildcard() |> List.first() || name
  end

  # Kernels are compiled against MLX's headers and CUDA's when they are first used.
  defp headers(priv) do
    home = System.get_env("CUDA_HOME") || System.get_env("CUDA_PATH") || "/usr/local/cuda"

    of_cuda = ["#{priv}/nvidia/*/include/cuda_fp16.h", "#{home}/include/cuda_fp16.h"]

    [
      {"MLX's headers",
       Enum.all?(~w(cccl crt), &File.dir?(Path.join([priv, "mlx/include", &1])))},
      {"CUDA's headers", Enum.any?(of_cuda, &(Path.wildcard(&1) != []))}
    ]
  end

  @doc "What is missing for the GPU, in the order in which to mend it."
  @spec problems(map) :: [problem]
  def problems(%{cuda: nil}), do: []

  def problems(%{driver: {:error, text}}) do
    [
      problem(
        "no NVIDIA driver can be used (#{text})",
        "install NVIDIA's driver, or have none and compute on the CPU"
      )
    ]
  end

  def problems(%{driver: {:ok, {_version, []}}}) do
    [
      problem(
        "the NVIDIA driver finds no device",
        "check with nvidia-smi, and CUDA_VISIBLE_DEVICES"
      )
    ]
  end

  def problems(%{cuda: cuda, driver: {:ok, {version, _cards}}} = facts) do
    {driver, least} = @drivers[cuda]

    too_old =
      if version < least do
        [
          problem(
            "the NVIDIA driver serves CUDA up to #{div(version, 1000)}.#{rem(div(version, 10), 100)}, " <>
              "this build of MLX needs #{cuda}.0",
            "install driver #{driver} or newer" <>
              if(cuda == 13, do: ", or build with EMILY_MLX_VARIANT=cuda12", else: "")
          )
        ]
      else
        []
      end

    get = "EMILY_CUDA=wheels EMILY_MLX_VARIANT=cuda#{cuda} mix compile --force fetches it"

    too_old ++
      for(
        {name, {:error, text}} <- facts.libraries,
        do: problem("#{name} does not load (#{text})", get)
      ) ++
      for({name, false} <- facts.headers, do: problem("#{name} are missing", get))
  end

  defp problem(what, fix), do: %{what: what, fix: fix}

  @doc "One line on why there is no GPU."
  @spec reason([problem]) :: String.t()
  def reason([]), do: "this build of MLX is for the CPU"
  def reason(problems), do: Enum.map_join(problems, "; ", &"#{&1.what}: #{&1.fix}")
end
