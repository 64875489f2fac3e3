Code.require_file("artifact.exs", __DIR__)

defmodule Mix.Tasks.Compile.EmilyNif do
  @moduledoc false
  # Builds the NIF with cargo and fills priv/ with it, libmlx and what libmlx loads, in the folders
  # that their relative search paths expect. cargo is started only when a source or the variant of
  # MLX has changed: even a build with nothing to do costs more than reading the sources. Where the
  # package names a precompiled artifact that can be had, priv/ is filled from it instead.

  use Mix.Task.Compiler

  @priv "priv"
  @stamp Path.join(@priv, "emily_nif.stamp")
  # Of priv/, for a build of MLX for the CPU beside one for CUDA.
  @cpu "cpu"
  # Erlang asks for .so on macOS too.
  @nif Path.join(@priv, "libemily_nif.so")

  @impl true
  def run(args) do
    say_left_out(Mix.Project.config()[:left_out] || [])
    variant = variant()
    settings = for name <- ~w(EMILY_CUDA EMILY_BUILD), do: System.get_env(name, "")
    stamp = Enum.join([variant | settings] ++ [digest()], " ")

    if "--force" not in args and File.read(@stamp) == {:ok, stamp} and File.exists?(@nif) do
      {:noop, []}
    else
      version = Mix.Project.config()[:version]
      # priv/ is of no build until it is full again.
      File.rm(@stamp)

      case Emily.Artifact.install(@priv, version, variant) do
        {:ok, files} ->
          settle(files, nvidia(variant), stamp)

        :none ->
          build(variant, stamp)
      end

      {:ok, []}
    end
  end

  @impl true
  def manifests, do: [@stamp]

  @impl true
  def clean, do: File.rm_rf!(@priv)

  defp say_left_out([]), do: :ok

  defp say_left_out(files) do
    {tests, sources} = Enum.split_with(files, &String.starts_with?(&1, "test/"))

    parts =
      for path <- sources, uniq: true, do: path |> Path.split() |> Enum.at(2) |> Path.rootname()

    Mix.shell().info(
      "Nx cannot be loaded: left out lib/emily/{#{Enum.join(parts, ",")}}, which need it " <>
        "(#{length(sources)} files), and #{length(tests)} test files"
    )
  end

  ## What is built

  defp variant do
    {default, known} =
      case :os.type() do
        {:unix, :darwin} -> {"metal", ["metal"]}
        {:unix, :linux} -> {"cpu", ["cpu", "cuda12", "cuda13"]}
        other -> Mix.raise("MLX runs on macOS and Linux, got #{inspect(other)}")
      end

    variant = System.get_env("EMILY_MLX_VARIANT", default)

    if variant not in known do
      Mix.raise(
        "EMILY_MLX_VARIANT: expected one of #{Enum.join(known, ", ")} here, got #{inspect(variant)}"
      )
    end

    variant
  end

  defp digest do
    paths = Path.wildcard("native/**/*.*") -- Path.wildcard("native/*/{tests,benches}/**")
    sources = for path <- ["Cargo.toml", "Cargo.lock" | paths], File.regular?(path), do: path

    [:erlang.system_info(:system_architecture)]
    |> Enum.concat(for path <- sources, do: [path, File.read!(path)])
    |> :erlang.md5()
    |> Base.encode16()
  end

  # Wheels, the files in them that are needed, and the folder of priv/ for them. MLX compiles kernels that
  # it fuses, and those for CUDA, against its headers when they are first used. Some of CUDA's headers
  # include crt/, which CUDA's runtime has no more in PyPI, and MLX looks for headers in its own folder first.
  defp companions("metal"), do: [{"mlx-metal", ["mlx/lib/*"], "."}]
  defp companions("cpu"), do: [mlx_cpu("."), blas()]

  # Without a GPU the build of MLX for CUDA does not load, and the one for the CPU takes its place.
  defp companions("cuda" <> version) do
    files = ["mlx/lib/*", "mlx_cuda_*.libs/*", "mlx/include/**"]

    [
      {"mlx-cuda-#{version}", files, "."},
      {crt(version), ["include/crt/*"], "mlx"},
      mlx_cpu(@cpu),
      blas()
    ]
  end

  # The folder in the wheel behind its name.
  defp crt("12"), do: "nvidia-crt-12/nvidia/cuda_nvcc"
  defp crt("13"), do: "nvidia-crt-13/nvidia/cu13"

  defp mlx_cpu(folder), do: {"mlx-cpu", ["mlx/lib/*", "mlx_cpu.libs/*", "mlx/include/**"], folder}
  defp blas, do: {"scipy-openblas32", ["scipy_openblas32/lib/*.so"], "."}

  # The libraries that cargo builds, and where they go. Both builds of MLX have the same symbols, so
  # that one NIF serves both.
  defp libraries("cuda" <> _) do
    nif = {"emily_nif", [@nif, Path.join([@priv, @cpu, Path.basename(@nif)])]}
    [nif, {"emily_preflight", [Path.join(@priv, "libemily_preflight.so")]}]
  end

  defp libraries(_), do: [{"emily_nif", [@nif]}]

  ## Building

  defp build(variant, stamp) do
    check_tools()

    wheels =
      for {package, files, folder} <- companions(variant), do: {fetch(package), files, folder}

    nvidia = nvidia(variant)
    built = cargo_build(for {name, _} <- libraries(variant), do: name)

    companions =
      for {wheel, patterns, folder} <- wheels,
          pattern <- patterns,
          file <- Path.wildcard(Path.join(wheel, pattern)),
          File.regular?(file),
          do: {file, Path.expand(Path.relative_to(file, wheel), Path.join(@priv, folder))}

    libraries =
      for {name, places} <- libraries(variant), to <- places, do: {library(built, name), to}

    files = for {from, to} <- libraries ++ companions, do: {from, Path.relative_to_cwd(to)}
    for {from, to} <- files, do: copy(from, to)
    settle(for({_from, to} <- files, do: to), nvidia, stamp)
  end

  defp settle(files, nvidia, stamp) do
    remove_others(files)
    link_nvidia(nvidia)
    File.write!(@stamp, stamp)
    # Mix has linked priv/ into the build before this compiler ran, if it was there.
    Mix.Project.build_structure()
  end

  # A stop before cargo starts costs a second; a compiler that is too old shows after minutes.
  defp check_tools do
    if command("bash", ["scripts/setup.sh", "--check"]) != 0 do
      Mix.raise("The NIF cannot be built without what is named above")
    end
  end

  defp fetch(package) do
    [package | inside] = Path.split(package)

    case System.cmd("python3", ["native/fetch.py", package]) do
      {folder, 0} -> Path.join([String.trim(folder) | inside])
      {_, _} -> Mix.raise("native/fetch.py #{package} failed, see above")
    end
  end

  defp cargo_build(libraries) do
    target = target_folder()
    Mix.shell().info("Building the NIF with cargo in #{target} (minutes the first time)")
    packages = Enum.flat_map(libraries, &["--package", String.replace(&1, "_", "-")])

    # The crates are optimised as one here, and not in the manifest: each of the core's tests would be linked
    # so as well, at half a minute each.
    profile = ["--config", ~s(profile.release.lto="thin")]
    args = ~w(build --release --locked --target-dir) ++ [target | profile ++ packages]
    # Where rustup puts it, whether or not the shell was told.
    cargo = System.find_executable("cargo") || Path.expand("~/.cargo/bin/cargo")
    if command(cargo, args) != 0, do: Mix.raise("cargo could not build the NIF, see above")

    Path.join(target, "release")
  end

  defp library(folder, name) do
    extension = if match?({:unix, :darwin}, :os.type()), do: "dylib", else: "so"
    Path.join(folder, "lib#{name}.#{extension}")
  end

  # As a dependency beside the builds of the project, where it outlives an update of emily and
  # serves each Mix environment.
  defp target_folder do
    dependency? = Path.dirname(File.cwd!()) == Path.expand(Mix.Project.deps_path())

    System.get_env("CARGO_TARGET_DIR") ||
      if(dependency?, do: Path.expand("../emily_cargo", Mix.Project.build_path()), else: "target")
  end

  defp command(program, args) do
    {_, status} =
      System.cmd(program, args, into: IO.stream(:stdio, :line), stderr_to_stdout: true)

    status
  end

  ## Filling priv/

  # Files of another variant must not stay. Those with new- and a number at their end are another Mix's, which
  # an editor may run at the same time.
  defp remove_others(files) do
    folders = Path.wildcard("#{@priv}/{mlx,mlx_*,scipy_*,cpu}/**")

    for file <- ["#{@priv}/libemily_preflight.so" | folders],
        File.regular?(file) and file not in files and not (file =~ ~r/\.new-\d+$/),
        do: File.rm(file)
  end

  # Renamed into place, since a running VM may have the old file mapped.
  defp copy(from, to) do
    File.mkdir_p!(Path.dirname(to))
    fresh = "#{to}.new-#{System.pid()}"
    File.cp!(from, fresh)
    File.rename!(fresh, to)
  end

  ## NVIDIA's libraries

  # Gigabytes, so that they are linked and not copied: from the wheels, whose versions are pinned, unless
  # the system has all of them. EMILY_CUDA decides: `system`, `wheels`, or a folder laid out as pip's
  # `nvidia`.
  defp nvidia("cuda" <> version) do
    case System.get_env("EMILY_CUDA", "") do
      "" -> if system_cuda?(version), do: nil, else: nvidia_wheels(version)
      "system" -> nil
      "wheels" -> nvidia_wheels(version)
      folder -> given(Path.expand(folder))
    end
  end

  defp nvidia(_), do: nil

  defp given(folder) do
    if File.dir?(folder), do: folder, else: Mix.raise("EMILY_CUDA: there is no folder #{folder}")
  end

  defp nvidia_wheels(version) do
    Mix.shell().info(
      "NVIDIA's libraries take 2 GB in the cache (EMILY_CUDA=system uses the system's)"
    )

    Path.join(fetch("nvidia-cuda-#{version}"), "nvidia")
  end

  @system_cuda %{
    "12" => ~w(libcublasLt.so.12 libcufft.so.11 libnvrtc.so.12 libcudnn.so.9 libnccl.so.2),
    "13" => ~w(libcublasLt.so.13 libcufft.so.12 libnvrtc.so.13 libcudnn.so.9 libnccl.so.2)
  }

  # The loader is asked, which knows more places than there are lists of.
  defp system_cuda?(version) do
    script = "import ctypes, sys; [ctypes.CDLL(name) for name in sys.argv[1:]]"
    args = ["-c", script | @system_cuda[version]]
    match?({_, 0}, System.cmd("python3", args, stderr_to_stdout: true))
  end

  # libmlx looks in the folder `nvidia` beside its own, as pip lays them out.
  defp link_nvidia(folder) do
    link = Path.join(@priv, "nvidia")
    File.rm(link)
    if folder, do: File.ln_s!(folder, link)
  end
end
