# A compiler must exist before the code of its project does, here and where emily is a dependency.
Code.require_file("native/compile.exs", __DIR__)

defmodule Emily.MixProject do
  use Mix.Project

  @version "0.1.0"

  # What needs Nx: the names of files and folders in lib/emily and test/support, and the first words
  # of the names in test/emily and test/examples.
  @needs_nx ~w(backend block bumblebee compiler emitter fast generation guides lowering minilm) ++
              ~w(mixed_precision nx program quantization quantized_weight serving smollm2_nx)

  def project do
    [
      app: :emily,
      version: @version,
      description: "Nx on MLX, with a stream of its own for every process that wants one",
      elixir: "~> 1.17",
      compilers: [:emily_nif | Mix.compilers()],
      elixirc_paths: elixirc_paths(Mix.env()),
      start_permanent: Mix.env() == :prod,
      # Mix consolidates with the implementations of dependencies only, not of what is on ERL_LIBS.
      consolidate_protocols: not system_deps?(),
      deps: deps(),
      docs: docs(),
      package: package()
    ] ++ without_nx()
  end

  def application do
    [
      mod: {Emily.Application, []},
      extra_applications: [:logger | system_applications()]
    ]
  end

  # With EMILY_SYSTEM_DEPS=1 no dependency is listed, so that Mix needs no Hex, and those that are
  # found on ERL_LIBS are used. Without Nx among them, all but the Nx side is built and tested.
  defp system_deps?, do: System.get_env("EMILY_SYSTEM_DEPS") in ["1", "true"]
  defp nx?, do: not system_deps?() or Code.ensure_loaded?(Nx)

  defp deps do
    if system_deps?() do
      []
    else
      [
        {:nx, "~> 0.13"},
        {:telemetry, "~> 1.0"},
        {:telemetry_metrics, "~> 1.0", optional: true},
        {:axon, "~> 0.7", optional: true},
        {:stream_data, "~> 1.0", only: [:dev, :test]},
        {:ex_doc, "~> 0.34", only: :dev, runtime: false}
      ]
    end
  end

  # Mix takes applications that are neither dependencies nor listed here off the code path.
  defp system_applications do
    ours = if Mix.env() == :prod, do: [], else: [:axon, :stream_data, :telemetry_metrics]
    found? = &(:code.lib_dir(&1) != {:error, :bad_name})
    if system_deps?(), do: Enum.filter([:nx, :telemetry] ++ ours, found?), else: []
  end

  ## Without Nx

  defp elixirc_paths(env) do
    folders = if env == :test, do: ["lib", "test/support"], else: ["lib"]
    if nx?(), do: folders, else: Enum.reject(files(folders, "*.ex"), &needs_nx?/1)
  end

  defp without_nx do
    if nx?() do
      []
    else
      left_out = Enum.filter(files(["lib", "test"], "*.{ex,exs}"), &needs_nx?/1)
      tests = files(["test"], "*_test.exs") -- left_out

      [
        # The names of the other tests: Mix takes no list of tests to leave out.
        test_pattern: "{#{Enum.map_join(tests, ",", &Path.basename/1)}}",
        # Named in code that is not reached without Nx.
        xref: [exclude: [:telemetry, Nx, Nx.Tensor, Emily.Backend, Emily.Compiler]],
        left_out: left_out
      ]
    end
  end

  defp files(folders, pattern), do: Enum.flat_map(folders, &Path.wildcard("#{&1}/**/#{pattern}"))

  defp needs_nx?(path) do
    path =~ ~r"^(lib|test)/(emily|examples|support)/(#{Enum.join(@needs_nx, "|")})[/._]"
  end

  ## Docs and package

  defp docs do
    [
      main: "readme",
      extras:
        ["README.md"] ++
          guides() ++ livebooks() ++ ["bench/results/cuda.md", "CHANGELOG.md", "LICENSE"],
      groups_for_extras: [Guides: guides(), Livebooks: livebooks()],
      groups_for_modules: [
        Computing: [Emily.Backend, Emily.Compiler, Emily.Stream, Emily.Serving],
        Models: [
          ~r/^Emily\.Fast/,
          ~r/^Emily\.Quanti/,
          ~r/^Emily\.MixedPrecision/,
          ~r/^Emily\.Generation/,
          ~r/^Emily\.Bumblebee/
        ],
        Operating: [Emily.Memory, Emily.Telemetry],
        "Without Nx": [Emily, Emily.Native]
      ]
    ]
  end

  # In the order in which to read them.
  defp guides do
    for name <-
          ~w(introduction streams compiler quantisation training deployment troubleshooting) ++
            ~w(backend internals),
        do: "guides/#{name}.md"
  end

  defp livebooks do
    for name <- ~w(many_streams smollm2_chat minilm_search train_a_classifier quantise_a_weight),
        do: "livebooks/#{name}.livemd"
  end

  defp package do
    [
      licenses: ["Apache-2.0"],
      links: %{},
      files: ~w(lib native/**/*.{rs,toml,lock,cpp,h,py,txt,exs} Cargo.toml Cargo.lock
                scripts/setup.sh scripts/situation.sh guides livebooks bench/results
                mix.exs .formatter.exs README.md CHANGELOG.md LICENSE)
    ]
  end
end
