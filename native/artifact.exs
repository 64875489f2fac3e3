defmodule Emily.Artifact do
  @moduledoc false
  # A build of priv/ as one file, so that who installs emily needs no Rust and no C++ compiler. Packing and
  # unpacking are written here, beside the Mix compiler, since both exist before the package is compiled.
  #
  # An artifact is taken only where native/checksums.txt, a part of the package, has its SHA-256: what a
  # release page, a folder or the cache holds is believed no further than that.

  @manifest "manifest"
  @checksums "native/checksums.txt"
  @retry "EMILY_BUILD=1 builds from source"

  @doc "The file's name."
  @spec name(String.t(), String.t(), String.t()) :: String.t()
  def name(version, variant, target \\ target()),
    do: "emily-#{version}-#{target}-#{variant}.tar.gz"

  @doc "This host as a target: processor, system and, on Linux, the kind of C library."
  @spec target() :: String.t()
  def target do
    architecture = List.to_string(:erlang.system_info(:system_architecture))

    case {String.split(architecture, "-"), :os.type()} do
      {[cpu | _], {:unix, :darwin}} -> "#{arm(cpu)}-apple-darwin"
      {[cpu | rest], {:unix, :linux}} -> "#{arm(cpu)}-linux-#{List.last(rest)}"
    end
  end

  defp arm("arm64"), do: "aarch64"
  defp arm(cpu), do: cpu

  ## Packing

  @doc "Packs a filled priv/ into `folder`. Returns the path, and its line for the file of checksums."
  @spec pack(Path.t(), Path.t(), String.t(), String.t()) :: {Path.t(), String.t()}
  def pack(priv, folder, version, variant) do
    File.mkdir_p!(folder)
    path = Path.join(folder, name(version, variant))
    files = contents(priv)
    sums = for file <- files, do: "sha256 #{digest(Path.join(priv, file))} #{file}\n"
    head = "version #{version}\ntarget #{target()}\nvariant #{variant}\n"

    entries = for file <- files, do: {to_charlist(file), to_charlist(Path.join(priv, file))}
    entries = [{to_charlist(@manifest), IO.iodata_to_binary([head | sums])} | entries]
    :ok = :erl_tar.create(to_charlist(path), entries, [:compressed, :dereference])
    {path, "#{digest(path)}  #{Path.basename(path)}"}
  end

  # NVIDIA's libraries are gigabytes that every host links for itself; the stamp is of this folder alone.
  defp contents(priv) do
    for path <- Path.wildcard(Path.join(priv, "**")),
        File.regular?(path),
        file = Path.relative_to(path, priv),
        file != "emily_nif.stamp" and not String.starts_with?(file, "nvidia/"),
        do: file
  end

  defp digest(path) do
    path
    |> File.stream!(1_048_576)
    |> Enum.reduce(:crypto.hash_init(:sha256), &:crypto.hash_update(&2, &1))
    |> :crypto.hash_final()
    |> Base.encode16(case: :lower)
  end

  ## Installing

  @doc """
  Fills priv/ from a matching artifact and returns its files, or `:none` where there is none.

  Options, each with the environment's or the configuration's value as default: `:folder`, `:url`, `:cache`,
  `:checksums`, `:build`. Raises Mix.Error for an artifact that is not the one of the package.
  """
  @spec install(Path.t(), String.t(), String.t(), keyword) :: {:ok, [Path.t()]} | :none
  def install(priv, version, variant, options \\ []) do
    options = Keyword.merge(defaults(), options)
    name = name(version, variant)

    with false <- options[:build],
         {:ok, sum} <- expected(name, options),
         {:ok, path} <- find(name, sum, options) do
      Mix.shell().info("Taking the native library from #{path}")
      {:ok, unpack(path, priv, version, variant)}
    else
      _ -> :none
    end
  end

  defp defaults do
    [
      folder: System.get_env("EMILY_ARTIFACT_DIR") || Application.get_env(:emily, :artifact_dir),
      url: System.get_env("EMILY_ARTIFACT_URL") || Application.get_env(:emily, :artifact_url),
      cache: Path.join(cache(), "artifacts"),
      checksums: @checksums,
      build: System.get_env("EMILY_BUILD") in ["1", "true"]
    ]
  end

  # As native/fetch.py has it.
  defp cache do
    base = System.get_env("XDG_CACHE_HOME") || Path.expand("~/.cache")
    Path.expand(System.get_env("EMILY_CACHE") || Path.join(base, "emily"))
  end

  # One line for each artifact, as sha256sum writes them.
  defp expected(name, options) do
    lines = if File.exists?(options[:checksums]), do: File.read!(options[:checksums]), else: ""

    sums =
      for line <- String.split(lines, "\n"), [sum, ^name] <- [String.split(line)], do: sum

    case sums do
      [sum | _] ->
        {:ok, String.downcase(sum)}

      [] ->
        if options[:folder] || options[:url] do
          Mix.shell().info("#{options[:checksums]} has no line for #{name}: building from source")
        end

        :none
    end
  end

  defp find(name, sum, options) do
    given = options[:folder] && Path.expand(name, options[:folder])
    cached = Path.join(options[:cache], name)

    cond do
      given && File.regular?(given) ->
        {:ok, verified(given, sum)}

      File.regular?(cached) and digest(cached) == sum ->
        {:ok, cached}

      url = options[:url] ->
        download("#{String.trim_trailing(url, "/")}/#{name}", cached, sum)

      true ->
        :none
    end
  end

  defp verified(path, sum) do
    case digest(path) do
      ^sum ->
        path

      other ->
        Mix.raise(
          "#{path} is not the artifact of this package: expected SHA-256 #{sum}, got #{other}. #{@retry}"
        )
    end
  end

  ## Downloading

  defp download(url, cached, sum) do
    File.mkdir_p!(Path.dirname(cached))
    fresh = "#{cached}.#{System.pid()}"

    try do
      case get(url, fresh) do
        :ok ->
          fresh |> verified(sum) |> File.rename!(cached)
          {:ok, cached}

        {:error, why} ->
          Mix.shell().info("#{url} cannot be had (#{why}): building from source")
          :none
      end
    after
      File.rm(fresh)
    end
  end

  defp get(url, to) do
    for application <- [:inets, :ssl, :public_key], do: Mix.ensure_application!(application)
    {:ok, _} = Application.ensure_all_started([:inets, :ssl])

    with {:ok, tls} <- tls(url) do
      http = [connect_timeout: 30_000, timeout: 600_000] ++ tls

      case :httpc.request(:get, {to_charlist(url), []}, http, stream: to_charlist(to)) do
        {:ok, :saved_to_file} -> :ok
        {:ok, {{_, status, _}, _headers, _body}} -> {:error, "status #{status}"}
        {:error, reason} -> {:error, inspect(reason)}
      end
    end
  end

  # The certificates that the system trusts. Erlang raises where it finds none.
  defp tls("https" <> _) do
    match = :public_key.pkix_verify_hostname_match_fun(:https)
    cacerts = :public_key.cacerts_get()
    verify = [verify: :verify_peer, depth: 5, customize_hostname_check: [match_fun: match]]
    {:ok, [ssl: [cacerts: cacerts] ++ verify]}
  rescue
    _ -> {:error, "this system has no certificates to check the server's with"}
  end

  defp tls(_), do: {:ok, []}

  ## Unpacking

  defp unpack(path, priv, version, variant) do
    entries =
      case :erl_tar.extract(to_charlist(path), [:memory, :compressed]) do
        {:ok, entries} -> for {name, bytes} <- entries, do: {List.to_string(name), bytes}
        {:error, reason} -> refuse(path, inspect(reason))
      end

    {[{_, manifest}], files} = split_manifest(path, entries)
    sums = manifest!(path, manifest, version, variant)
    check_files!(path, files, sums)
    for {name, bytes} <- files, do: write(Path.join(priv, name), bytes)
  end

  defp split_manifest(path, entries) do
    case Enum.split_with(entries, &match?({@manifest, _}, &1)) do
      {[_], _} = split -> split
      _ -> refuse(path, "it has no manifest")
    end
  end

  defp manifest!(path, manifest, version, variant) do
    lines =
      for line <- String.split(manifest, "\n", trim: true), do: String.split(line, " ", parts: 3)

    for {key, value} <- [version: version, target: target(), variant: variant],
        ["#{key}", value] not in lines,
        do: refuse(path, "its #{key} is not #{value}")

    for ["sha256", sum, file] <- lines, into: %{}, do: {file, sum}
  end

  # All of them before the first is written.
  defp check_files!(path, files, sums) do
    for {name, bytes} <- files do
      if Path.safe_relative(name) != {:ok, name},
        do: refuse(path, "#{name} leads out of the folder")

      sum = Base.encode16(:crypto.hash(:sha256, bytes), case: :lower)
      if sums[name] != sum, do: refuse(path, "#{name} is not what the manifest says")
    end

    names = MapSet.new(files, fn {name, _} -> name end)
    missing = for {name, _} <- sums, name not in names, do: name
    if missing != [], do: refuse(path, "it lacks #{Enum.join(missing, ", ")}")
  end

  defp refuse(path, why), do: Mix.raise("#{path} is refused: #{why}. #{@retry}")

  # Renamed into place, since a running VM may have the old file mapped.
  defp write(to, bytes) do
    File.mkdir_p!(Path.dirname(to))
    fresh = "#{to}.new-#{System.pid()}"
    File.write!(fresh, bytes)
    File.rename!(fresh, to)
    to
  end
end
