defmodule Mix.Tasks.Emily.Package do
  @shortdoc "Packs the native libraries of this host as a precompiled artifact"

  @moduledoc """
  Packs what `mix compile` has put into `priv/`, the native library, MLX and what they load, as one file:

      mix emily.package [--output DIR]

    * `--output` - the folder for it (default: `artifacts`).

  The file is `emily-VERSION-TARGET-VARIANT.tar.gz`. Its first entry, `manifest`, names version, target and
  variant, and each file with its SHA-256. NVIDIA's libraries are not packed.

  The line that is printed, the SHA-256 and the name, goes into `native/checksums.txt` of the package.
  `mix compile` then takes the artifact instead of building, from `EMILY_ARTIFACT_DIR`, the cache, or
  `EMILY_ARTIFACT_URL`; see the deployment guide. The host that takes it needs a C library that is no older than
  that of the host that packs it.

  Raises `Mix.Error` for arguments and options that it does not know, and where `priv/` holds no build.
  """

  use Mix.Task

  @requirements ["compile"]

  @impl true
  def run(args) do
    case OptionParser.parse(args, strict: [output: :string]) do
      {options, [], []} ->
        package(Keyword.get(options, :output, "artifacts"))

      {_, [argument | _], _} ->
        Mix.raise("emily.package takes no argument, got: #{argument}")

      {_, _, [{option, _} | _]} ->
        Mix.raise("emily.package: wrong option #{option}, see mix help emily.package")
    end
  end

  defp package(folder) do
    variant = Emily.Preflight.variant("priv") || Mix.raise("priv/ holds no finished build")
    version = Mix.Project.config()[:version]
    {path, line} = Emily.Artifact.pack("priv", folder, version, variant)
    Mix.shell().info("#{path} #{Float.round(File.stat!(path).size / 1_048_576, 1)} MiB")
    Mix.shell().info(line)
  end
end
