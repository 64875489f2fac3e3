defmodule Emily.Bundle do
  @moduledoc false
  # What `mix emily.bundle` packs. A folder is staged, then written as one tar.xz in parts.

  alias Emily.Bundle.Fatbin

  # Of Erlang's applications: what Elixir, Mix, ExUnit and emily start. The others are half of it.
  @erlang ~w(kernel stdlib compiler crypto sasl tools runtime_tools parsetools syntax_tools public_key
             ssl asn1 inets erts)

  @doc "Packs into `output`, and returns the paths of the parts."
  @spec pack(Path.t(), keyword) :: [Path.t()]
  def pack(output, options) do
    stage = Path.join(System.tmp_dir!(), "emily-bundle-#{System.pid()}")
    File.rm_rf!(stage)

    try do
      stage(stage, options)
      File.rm_rf!(output)
      File.mkdir_p!(output)
      write_parts(stage, output, options[:part_bytes])
      File.write!(Path.join(output, "unpack.sh"), unpack_script())
      output |> Path.join("emily.tar.xz.*") |> Path.wildcard()
    after
      File.rm_rf!(stage)
    end
  end

  ## Staging

  defp stage(stage, options) do
    erlang(Path.join(stage, "erlang"))
    elixir(Path.join(stage, "elixir"))
    applications(Path.join(stage, "erl_libs"))
    shrink(Path.join(stage, "erl_libs/emily/priv/mlx/lib/libmlx.so"), options[:cuda_arch])
    if options[:tests], do: sources(stage, ~w(lib test bench examples README.md))
    sources(stage, options[:add])
    write(stage, "bin/erl", erl_script())
    # Erlang puts this folder first on the path of what it starts.
    erts = "erlang/erts-#{:erlang.system_info(:version)}/bin/erl"
    write(stage, erts, inner_erl_script())
    write(stage, "env.sh", env_script())
    write(stage, "run_tests.sh", tests_script())
    write(stage, "run_tests.exs", tests_runner())
  end

  # Its own `erl` has the folder of the installation written into it, and is replaced.
  defp erlang(to) do
    root = List.to_string(:code.root_dir())
    erts = "erts-#{:erlang.system_info(:version)}"
    copy(Path.join(root, "releases"), Path.join(to, "releases"))
    copy(Path.join([root, erts, "bin"]), Path.join([to, erts, "bin"]))
    copy(Path.join(root, "bin/no_dot_erlang.boot"), Path.join(to, "bin/no_dot_erlang.boot"))
    copy(Path.join(root, "bin/start.boot"), Path.join(to, "bin/start.boot"))
    copy(Path.join(root, "bin/start_clean.boot"), Path.join(to, "bin/start_clean.boot"))

    for name <- @erlang,
        folder = :code.lib_dir(String.to_atom(name)),
        is_list(folder),
        part <- ~w(ebin priv) do
      folder = List.to_string(folder)
      copy(Path.join(folder, part), Path.join([to, "lib", Path.basename(folder), part]))
    end
  end

  defp elixir(to) do
    root = :elixir |> :code.lib_dir() |> List.to_string() |> Path.join("../..") |> Path.expand()
    copy(Path.join(root, "bin"), Path.join(to, "bin"))

    for name <- File.ls!(Path.join(root, "lib")), part = Path.join(["lib", name, "ebin"]) do
      copy(Path.join(root, part), Path.join(to, part))
    end
  end

  # emily itself, its dependencies and what is on ERL_LIBS, each with ebin and priv.
  defp applications(to) do
    built = Path.wildcard(Path.join(Mix.Project.build_path(), "lib/*"))
    given = System.get_env("ERL_LIBS", "") |> String.split(":", trim: true)

    for folder <- built ++ Enum.flat_map(given, &Path.wildcard("#{&1}/*")),
        part <- ~w(ebin priv) do
      copy(Path.join(folder, part), Path.join([to, Path.basename(folder), part]))
    end

    # A link to gigabytes, which the host has of its own.
    File.rm_rf!(Path.join(to, "emily/priv/nvidia"))
  end

  defp sources(stage, paths) do
    for path <- paths, do: copy(path, Path.join(stage, Path.basename(path)))
  end

  # Links are followed: what they point to stays here. One with a folder of gigabytes is not.
  defp copy(from, to) do
    cond do
      Path.basename(from) == "nvidia" ->
        :ok

      File.dir?(from) ->
        File.mkdir_p!(to)
        for name <- File.ls!(from), do: copy(Path.join(from, name), Path.join(to, name))

      File.regular?(from) ->
        File.mkdir_p!(Path.dirname(to))
        File.cp!(from, to)

      true ->
        :ok
    end
  end

  defp shrink(_library, nil), do: :ok

  defp shrink(library, arch) do
    if System.find_executable("strip"), do: command("strip", ["--strip-unneeded", library])
    File.write!(library, Fatbin.keep(File.read!(library), arch))
  end

  defp write(stage, name, text) do
    path = Path.join(stage, name)
    File.mkdir_p!(Path.dirname(path))
    File.write!(path, text)
    File.chmod!(path, 0o755)
  end

  ## Parts

  defp write_parts(stage, output, bytes) do
    script = ~S(set -o pipefail; tar -C "$0" -cf - . | xz -T0 -6 | split -b "$1" -d - "$2")
    command("bash", ["-c", script, stage, "#{bytes}", Path.join(output, "emily.tar.xz.")])
  end

  defp command(program, args) do
    case System.cmd(program, args, stderr_to_stdout: true) do
      {_, 0} -> :ok
      {text, status} -> raise "#{program} ended with #{status}: #{text}"
    end
  end

  ## Scripts of the bundle

  defp erl_script do
    """
    #!/bin/sh
    here=$(cd "$(dirname "$0")/.." && pwd)
    export ROOTDIR="$here/erlang" BINDIR="$here/erlang/erts-#{:erlang.system_info(:version)}/bin"
    export EMU=beam PROGNAME=erl
    exec "$BINDIR/erlexec" "$@"
    """
  end

  defp inner_erl_script do
    """
    #!/bin/sh
    exec "$(dirname "$0")/../../../bin/erl" "$@"
    """
  end

  defp env_script do
    """
    # To be read by a shell: . ./env.sh
    EMILY_BUNDLE=$(cd "$(dirname "${BASH_SOURCE:-./env.sh}")" && pwd)
    export EMILY_BUNDLE PATH="$EMILY_BUNDLE/bin:$EMILY_BUNDLE/elixir/bin:$PATH"
    export ERL_LIBS="$EMILY_BUNDLE/erl_libs" LC_ALL="${LC_ALL:-C.UTF-8}"
    """
  end

  defp unpack_script do
    """
    #!/bin/sh
    # sh unpack.sh [DIR]: puts the bundle together in DIR (default: emily).
    set -e
    parts=$(cd "$(dirname "$0")" && pwd)
    to=${1:-emily}
    mkdir -p "$to"
    cat "$parts"/emily.tar.xz.* | xz -dc | tar -xf - -C "$to"
    cd "$to"
    priv=erl_libs/emily/priv
    if [ -d "$priv/cpu" ]; then
      nvidia=$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null || true)
      if [ -n "$nvidia" ]; then ln -sfn "$nvidia" "$priv/nvidia"; fi
    fi
    echo "Unpacked into $(pwd). Then, in bash:"
    echo "  cd $(pwd) && . ./env.sh && elixir -e 'Application.ensure_all_started(:emily); IO.inspect Emily.Stream.devices()'"
    if [ -d test ]; then echo "  EMILY_TEST_DEVICE=gpu ./run_tests.sh [files and options of mix test]"; fi
    """
  end

  defp tests_script do
    """
    #!/usr/bin/env bash
    # As `mix test`, without Mix's compiler: files, --include TAG, --exclude TAG, --only TAG, --seed N.
    cd "$(dirname "${BASH_SOURCE[0]}")" && . ./env.sh && exec elixir run_tests.exs "$@"
    """
  end

  defp tests_runner do
    ~S"""
    {options, files, wrong} =
      OptionParser.parse(System.argv(),
        strict: [include: :keep, exclude: :keep, only: :keep, seed: :integer, max_cases: :integer, trace: :boolean]
      )

    if wrong != [], do: raise("unknown options: #{inspect(wrong)}")
    filters = &ExUnit.Filters.parse(Keyword.get_values(options, &1))

    {:ok, _} = Application.ensure_all_started(:ex_unit)
    for name <- [:nx, :axon, :stream_data, :emily], do: Application.ensure_all_started(name)
    {:module, _} = Code.ensure_loaded(Emily.Native.Nif)

    Code.require_file("test/test_helper.exs")
    set = Keyword.take(options, [:seed, :max_cases, :trace])
    excluded = ExUnit.configuration()[:exclude] ++ filters.(:exclude)

    {excluded, included} =
      case filters.(:only) do
        [] -> {excluded, filters.(:include)}
        only -> {[:test | excluded], only ++ filters.(:include)}
      end

    ExUnit.configure([autorun: false, exclude: excluded, include: included] ++ set)
    files = if files == [], do: Path.wildcard("test/**/*_test.exs"), else: files
    nx? = Code.ensure_loaded?(Nx)

    for file <- Enum.sort(files), nx? or not (File.read!(file) =~ "Nx."), do: Code.require_file(file)

    %{failures: failures} = ExUnit.run()
    System.halt(if failures == 0, do: 0, else: 2)
    """
  end
end
