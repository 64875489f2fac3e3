# Mix has taken them off the code path; in a bundle, where there is no project, they are on it.
if Process.whereis(Mix.ProjectStack) do
  for application <- [:inets, :ssl, :public_key], do: Mix.ensure_application!(application)
end

defmodule Emily.ArtifactTest do
  use ExUnit.Case

  import ExUnit.CaptureIO

  alias Emily.Artifact

  @moduletag :tmp_dir

  # As in a bundle, which has compiled what it tests.
  unless Process.whereis(Mix.ProjectStack), do: @moduletag(skip: "there is no Mix project")

  @files %{"libemily_nif.so" => "the NIF", "mlx/lib/libmlx.so" => "MLX", "x.libs/a.so.3.1" => "a"}

  setup %{tmp_dir: tmp} do
    priv = Path.join(tmp, "priv")
    for {name, bytes} <- @files, do: write(Path.join(priv, name), bytes)
    write(Path.join(priv, "emily_nif.stamp"), "cpu of this folder")
    write(Path.join(priv, "nvidia/cu13/lib/libcublas.so"), "gigabytes")

    {path, line} = Artifact.pack(priv, Path.join(tmp, "packed"), "1.2.3", "cpu")
    checksums = Path.join(tmp, "checksums.txt")
    File.write!(checksums, "# a comment\n#{line}\n")

    options = [
      folder: Path.dirname(path),
      url: nil,
      cache: Path.join(tmp, "cache"),
      checksums: checksums,
      build: false
    ]

    %{path: path, sum_line: line, options: options, to: Path.join(tmp, "taken")}
  end

  defp write(path, bytes) do
    File.mkdir_p!(Path.dirname(path))
    File.write!(path, bytes)
  end

  # What it says goes to the shell.
  defp install(context, change \\ []) do
    capture_io(fn ->
      options = Keyword.merge(context.options, change)
      send(self(), {:result, Artifact.install(context.to, "1.2.3", "cpu", options)})
    end)

    assert_received {:result, result}
    result
  end

  defp taken(folder) do
    for path <- Path.wildcard("#{folder}/**"), File.regular?(path), into: %{} do
      {Path.relative_to(path, folder), File.read!(path)}
    end
  end

  # An artifact with these entries, known to the file of checksums.
  defp forge(context, entries) do
    entries = for {name, bytes} <- entries, do: {to_charlist(name), bytes}
    :ok = :erl_tar.create(to_charlist(context.path), entries, [:compressed])
    sum = Base.encode16(:crypto.hash(:sha256, File.read!(context.path)), case: :lower)
    File.write!(context.options[:checksums], "#{sum}  #{Path.basename(context.path)}\n")
  end

  defp manifest(files, head \\ "version 1.2.3\ntarget #{Artifact.target()}\nvariant cpu\n") do
    sums =
      for {name, bytes} <- files do
        "sha256 #{Base.encode16(:crypto.hash(:sha256, bytes), case: :lower)} #{name}\n"
      end

    {"manifest", IO.iodata_to_binary([head | sums])}
  end

  describe "packing and taking" do
    test "all of priv/ but the stamp and NVIDIA's libraries", context do
      assert {:ok, files} = install(context)
      assert taken(context.to) == @files

      assert Enum.sort(files) ==
               @files |> Map.keys() |> Enum.map(&Path.join(context.to, &1)) |> Enum.sort()
    end

    test "the line is that of sha256sum", %{path: path, sum_line: line} do
      {sum, 0} =
        System.cmd("python3", [
          "-c",
          "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest(), end='')",
          path
        ])

      assert line == "#{sum}  emily-1.2.3-#{Artifact.target()}-cpu.tar.gz"
    end

    test "what has no line in the file of checksums is built", context do
      File.write!(context.options[:checksums], "# nothing\n")
      assert install(context) == :none
      assert install(context, checksums: "there/is/none.txt") == :none
    end

    test "EMILY_BUILD builds", context do
      assert install(context, build: true) == :none
    end

    test "nothing in the folder, no cache and no URL: it is built", context do
      assert install(context, folder: context.options[:cache]) == :none
    end
  end

  describe "what is refused" do
    test "a tampered file", context do
      <<first, rest::binary>> = File.read!(context.path)
      File.write!(context.path, <<first, rest::binary, 0>>)
      error = assert_raise Mix.Error, fn -> install(context) end
      assert error.message =~ "is not the artifact of this package: expected SHA-256"
      assert error.message =~ "EMILY_BUILD=1 builds from source"
      assert taken(context.to) == %{}
    end

    test "paths that lead out of the folder", context do
      for name <- ["../out.so", "/tmp/emily_out.so", "a/../../out.so"] do
        files = [{"libemily_nif.so", "good"}, {name, "evil"}]
        forge(context, [manifest(files) | files])
        assert_raise Mix.Error, ~r/leads out of the folder/, fn -> install(context) end
        assert taken(context.to) == %{}
      end
    end

    test "files that the manifest does not have, has otherwise, or has alone", context do
      for {listed, packed, text} <- [
            {[], [{"a.so", "a"}], ~r/a.so is not what the manifest says/},
            {[{"a.so", "a"}], [{"a.so", "b"}], ~r/a.so is not what the manifest says/},
            {[{"a.so", "a"}, {"b.so", "b"}], [{"a.so", "a"}], ~r/it lacks b.so/}
          ] do
        forge(context, [manifest(listed) | packed])
        assert_raise Mix.Error, text, fn -> install(context) end
      end
    end

    test "another version, target or variant, and no manifest", context do
      head = "version 1.2.4\ntarget #{Artifact.target()}\nvariant cpu\n"
      forge(context, [manifest([], head)])
      assert_raise Mix.Error, ~r/its version is not 1.2.3/, fn -> install(context) end

      forge(context, [
        manifest([], String.replace(head, "1.2.4", "1.2.3") |> String.replace("cpu", "metal"))
      ])

      assert_raise Mix.Error, ~r/its variant is not cpu/, fn -> install(context) end

      forge(context, [{"a.so", "a"}])
      assert_raise Mix.Error, ~r/it has no manifest/, fn -> install(context) end
    end
  end

  describe "downloading" do
    setup %{path: path} do
      {:ok, _} = Application.ensure_all_started([:inets, :ssl])
      %{url: "http://127.0.0.1:#{serve(Path.dirname(path))}/"}
    end

    defp serve(folder, options \\ []) do
      {:ok, server} =
        :inets.start(
          :httpd,
          [
            port: 0,
            bind_address: {127, 0, 0, 1},
            server_name: ~c"artifacts",
            server_root: to_charlist(folder),
            document_root: to_charlist(folder)
          ] ++ options
        )

      on_exit(fn -> :inets.stop(:httpd, server) end)
      :httpd.info(server)[:port]
    end

    test "goes into the cache, which is enough the next time", context do
      assert {:ok, _} = install(context, folder: nil, url: context.url)
      assert taken(context.to) == @files
      File.rm_rf!(context.to)
      assert {:ok, _} = install(context, folder: nil, url: nil)
      assert taken(context.to) == @files
    end

    test "of another file is refused, and is not kept", context do
      File.write!(context.path, "something else")
      raises = fn -> install(context, folder: nil, url: context.url) end
      assert_raise Mix.Error, ~r/expected SHA-256/, raises
      assert File.ls!(context.options[:cache]) == []
    end

    test "replaces a cached file that is not the right one", context do
      write(Path.join(context.options[:cache], Path.basename(context.path)), "half of it")
      assert {:ok, _} = install(context, folder: nil, url: context.url)
      assert taken(context.to) == @files
    end

    @tag :capture_log
    test "believes no server whose certificate nobody vouches for", context do
      kind = [digest: :sha256, key: {:namedCurve, :secp256r1}]
      certificate = :public_key.pkix_test_data(%{root: kind, peer: kind})
      port = serve(Path.dirname(context.path), socket_type: {:ssl, certificate})
      options = Keyword.merge(context.options, folder: nil, url: "https://127.0.0.1:#{port}")

      text =
        capture_io(fn ->
          assert Artifact.install(context.to, "1.2.3", "cpu", options) == :none
        end)

      assert text =~ "cannot be had"
      assert text =~ "unknown_ca" or text =~ "this system has no certificates"
    end

    test "what is not there is built", context do
      File.rm!(context.path)
      assert install(context, folder: nil, url: context.url) == :none
    end
  end

  test "mix emily.package takes no other arguments" do
    package = &Mix.Tasks.Emily.Package.run/1
    assert_raise Mix.Error, ~r/takes no argument, got: here/, fn -> package.(["here"]) end
    assert_raise Mix.Error, ~r/wrong option --to/, fn -> package.(["--to=here"]) end
  end

  # The Mix compiler of a copy of the project that has no cargo, no compiler and no cache.
  describe "mix compile.emily_nif" do
    setup %{tmp_dir: tmp} do
      # Hundreds of megabytes.
      on_exit(fn -> File.rm_rf!(tmp) end)
      copy = Path.join(tmp, "project")

      for path <- ~w(mix.exs Cargo.toml Cargo.lock native scripts) do
        File.mkdir_p!(copy)
        File.cp_r!(path, Path.join(copy, path))
      end

      tools = Path.join(tmp, "bin")
      File.mkdir_p!(tools)

      for tool <-
            ~w(bash sh env erl elixir mix sed dirname basename grep cut head sort find readlink uname),
          found = System.find_executable(tool),
          do: File.ln_s!(found, Path.join(tools, tool))

      real = Path.join(tmp, "real")
      text = capture_io(fn -> Mix.Tasks.Emily.Package.run(["--output", real]) end)
      line = text |> String.split("\n", trim: true) |> List.last()
      [_sum, name] = String.split(line)
      path = Path.join(real, name)

      File.write!(Path.join(copy, "native/checksums.txt"), line)
      %{copy: copy, tools: tools, real: path, home: tmp}
    end

    defp variant, do: Emily.Preflight.variant("priv")

    defp compile(context, environment) do
      environment =
        Map.merge(
          %{
            "PATH" => context.tools,
            "HOME" => context.home,
            "EMILY_CACHE" => Path.join(context.home, "none"),
            "EMILY_SYSTEM_DEPS" => "1",
            "EMILY_MLX_VARIANT" => variant(),
            "EMILY_CUDA" => "system",
            "EMILY_ARTIFACT_DIR" => nil,
            "EMILY_ARTIFACT_URL" => nil,
            "EMILY_BUILD" => nil,
            "CARGO_TARGET_DIR" => nil,
            "CXX" => nil
          },
          environment
        )

      mix = System.find_executable("mix")

      System.cmd(mix, ["compile.emily_nif"],
        cd: context.copy,
        env: environment,
        stderr_to_stdout: true
      )
    end

    test "takes the artifact of this host from a folder, without cargo", context do
      folder = %{"EMILY_ARTIFACT_DIR" => Path.dirname(context.real)}
      assert {text, 0} = compile(context, folder)
      assert text =~ "Taking the native library from #{context.real}"

      priv = Path.join(context.copy, "priv")
      sum = &:crypto.hash(:sha256, File.read!(&1))
      assert sum.(Path.join(priv, "libemily_nif.so")) == sum.("priv/libemily_nif.so")
      assert Emily.Preflight.variant(priv) == variant()

      # And is done with that.
      assert {text, 0} = compile(context, folder)
      refute text =~ "Taking"

      # A tampered one is refused, and without cargo there is no other way.
      File.rm_rf!(priv)
      File.write!(context.real, "something else")
      assert {text, 1} = compile(context, folder)
      assert text =~ "is not the artifact of this package: expected SHA-256"

      assert {text, 1} = compile(context, Map.put(folder, "EMILY_BUILD", "1"))
      assert text =~ "The NIF cannot be built without what is named above"
      refute File.exists?(Path.join(priv, "libemily_nif.so"))
    end
  end
end
