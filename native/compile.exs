defmodule Mix.Tasks.Compile.EmilyNif do
  @moduledoc false
  # Builds the NIF with cargo and fills priv/ with it, libmlx and what libmlx loads, in the folders
  # that their relative search paths expect. cargo is started only when a source or the variant of
  # MLX has changed: even a build with nothing to do costs more than reading the sources.

  use Mix.Task.Compiler

  @priv "priv"
  @stamp Path.join(@priv, "emily_nif.stamp")
  # Erlang asks for .so on macOS too.
  @nif Path.join(@priv, "libemily_nif.so")

  @impl true
  def run(args) do
    say_left_out(Mix.Project.config()[:left_out] || [])
    variant = variant()
    stamp = "#{variant} #{digest()}"

    if "--force" not in args and File.read(@stamp) == {:ok, stamp} and File.exists?(@nif) do
      {:noop, []}
    else
      build(variant, stamp)
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

  # Wheels and the files in them that must lie beside the NIF. MLX compiles kernels that it fuses, and those
  # for CUDA, against its headers when they are first used.
  defp companions("metal"), do: [{"mlx-metal", ["mlx/lib/*"]}]

  defp companions("cpu"),
    do: [{"mlx-cpu", ["mlx/lib/*", "mlx_cpu.libs/*", "mlx/include/**"]}, blas()]

  defp companions("cuda" <> version),
    do: [{"mlx-cuda-#{version}", ["mlx/lib/*", "mlx_cuda_*.libs/*", "mlx/include/**"]}, blas()]

  defp blas, do: {"scipy-openblas32", ["scipy_openblas32/lib/*.so"]}

  ## Building

  defp build(variant, stamp) do
    check_tools()

    wheels = for {package, files} <- companions(variant), do: {fetch(package), files}
    library = cargo_build()

    File.rm(@stamp)

    companions =
      for {wheel, patterns} <- wheels,
          pattern <- patterns,
          file <- Path.wildcard(Path.join(wheel, pattern)),
          File.regular?(file),
          do: {file, Path.join(@priv, Path.relative_to(file, wheel))}

    files = [{library, @nif} | companions]
    for {from, to} <- files, do: copy(from, to)
    remove_others(for {_from, to} <- files, do: to)
    link_nvidia(variant)
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
    case System.cmd("python3", ["native/fetch.py", package]) do
      {folder, 0} -> String.trim(folder)
      {_, _} -> Mix.raise("native/fetch.py #{package} failed, see above")
    end
  end

  defp cargo_build do
    target = target_folder()
    Mix.shell().info("Building the NIF with cargo in #{target} (minutes the first time)")
    args = ~w(build --release --locked --package emily-nif --target-dir) ++ [target]
    # Where rustup puts it, whether or not the shell was told.
    cargo = System.find_executable("cargo") || Path.expand("~/.cargo/bin/cargo")
    if command(cargo, args) != 0, do: Mix.raise("cargo could not build the NIF, see above")

    extension = if match?({:unix, :darwin}, :os.type()), do: "dylib", else: "so"
    Path.join(target, "release/libemily_nif.#{extension}")
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

  # Files of another variant must not stay. Those with a number behind their name are another Mix's, which
  # an editor may run at the same time.
  defp remove_others(files) do
    for file <- Path.wildcard("#{@priv}/{mlx,mlx_*,scipy_*}/**"),
        File.regular?(file) and file not in files and not (file =~ ~r/\.\d+$/),
        do: File.rm(file)
  end

  # Renamed into place, since a running VM may have the old file mapped.
  defp copy(from, to) do
    File.mkdir_p!(Path.dirname(to))
    fresh = "#{to}.#{System.pid()}"
    File.cp!(from, fresh)
    File.rename!(fresh, to)
  end

  # libmlx looks for NVIDIA's libraries in the folder `nvidia` beside its own, as pip lays them out.
  defp link_nvidia("cuda" <> version) do
    script = "import nvidia; print(list(nvidia.__path__)[0])"

    case System.cmd("python3", ["-c", script], stderr_to_stdout: true) do
      {folder, 0} ->
        File.rm(Path.join(@priv, "nvidia"))
        File.ln_s!(String.trim(folder), Path.join(@priv, "nvidia"))

      {_, _} ->
        [wheel | _] = "native/wheels/mlx-cuda-#{version}.txt" |> File.read!() |> String.split()

        Mix.shell().info(
          "python3 finds no NVIDIA libraries. Unless the system has them, get them with " <>
            "python3 -m pip install #{wheel}, and then run mix compile --force"
        )
    end
  end

  defp link_nvidia(_), do: :ok
end
