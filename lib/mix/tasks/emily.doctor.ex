defmodule Mix.Tasks.Emily.Doctor do
  @shortdoc "Checks that emily works on this host"

  @moduledoc """
  Checks that emily works on this host, and says for every failure how to mend it.

      mix emily.doctor [--help]

  Looked at are the platform, the build of MLX, the libraries in `priv/`, what a GPU needs (NVIDIA's driver,
  libraries and headers), whether the native library loads, the devices with their memory, the BLAS in
  use, Nx, and a short computation on each device. Each is `ok`, `warn` (it works, but not all of it),
  `error` or `skip` (not asked, because of an earlier failure).

  Raises `Mix.Error` where anything is an `error`, and for arguments and options it does not know.
  """

  use Mix.Task

  @impl true
  def run(args) do
    case OptionParser.parse(args, strict: [help: :boolean]) do
      {[help: true], [], []} -> Mix.shell().info(@moduledoc)
      {_, [], []} -> report()
      {_, [argument | _], _} -> Mix.raise("emily.doctor takes no argument, got: #{argument}")
      {_, _, [{option, _} | _]} -> Mix.raise("emily.doctor has no option #{option}")
    end
  end

  defp report do
    Mix.Task.run("compile")
    # Its reasons are in the report.
    Logger.configure(level: :error)
    report = diagnose()
    Mix.shell().info(format_report(report))
    if report.status == :error, do: Mix.raise("emily.doctor found errors, see above")
  end

  @doc false
  defdelegate diagnose(facts \\ %{}), to: Emily.Doctor

  @doc false
  defdelegate format_report(report), to: Emily.Doctor
end
