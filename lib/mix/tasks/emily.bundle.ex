defmodule Mix.Tasks.Emily.Bundle do
  @shortdoc "Packs what a host without a network needs to run emily"

  @moduledoc """
  Packs this build for a host that has no network, no compiler and no Erlang: the native libraries in
  `priv/`, the compiled project, what is on `ERL_LIBS` and among the dependencies, and this machine's
  Erlang and Elixir. The host must have the same processor and a C library that is no older.

      mix emily.bundle [--output DIR] [--part-size MIB] [--tests] [--cuda-arch 90] [--add PATH]

    * `--output` - the folder for the parts and `unpack.sh` (default: `bundle`);
    * `--part-size` - the most MiB in one part (default: 1024);
    * `--tests` - also `test/`, `bench/` and `examples/`, for `run_tests.sh`; to be packed with `MIX_ENV=test`;
    * `--cuda-arch` - keeps the kernels of one kind of NVIDIA card only, `90` for an H100 or H200, and
      drops symbols, which brings MLX's library from 67 MB to 15 MB;
    * `--add` - one more file or folder, may be repeated.

  On the host, `sh unpack.sh [DIR]` puts the parts together in a folder and says how to go on. NVIDIA's
  libraries are not packed: `unpack.sh` links those that the host's Python has, and otherwise the system's
  are looked for.
  """

  use Mix.Task

  alias Emily.Bundle

  @requirements ["compile"]
  @switches [
    output: :string,
    part_size: :integer,
    tests: :boolean,
    cuda_arch: :integer,
    add: :keep
  ]

  @impl true
  def run(args) do
    case OptionParser.parse(args, strict: @switches) do
      {options, [], []} ->
        pack(options)

      {_, [argument | _], _} ->
        Mix.raise("emily.bundle takes no argument, got: #{argument}")

      {_, _, [{option, _} | _]} ->
        Mix.raise("emily.bundle: wrong option #{option}, see mix help emily.bundle")
    end
  end

  defp pack(options) do
    size = Keyword.get(options, :part_size, 1024)
    if size < 1, do: Mix.raise("emily.bundle: --part-size is at least 1, got: #{size}")
    output = Path.expand(Keyword.get(options, :output, "bundle"))

    parts =
      Bundle.pack(output,
        part_bytes: size * 1024 * 1024,
        tests: Keyword.get(options, :tests, false),
        cuda_arch: options[:cuda_arch],
        add: Keyword.get_values(options, :add)
      )

    for part <- parts do
      Mix.shell().info("#{part} #{Float.round(File.stat!(part).size / 1024 / 1024, 1)} MiB")
    end

    Mix.shell().info("On the host: sh unpack.sh DIR, with all of #{output} beside it")
  end
end
