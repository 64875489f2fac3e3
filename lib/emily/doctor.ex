defmodule Emily.Doctor do
  @moduledoc false
  # The checks of `mix emily.doctor`. What they ask the host is a map of facts, so that tests can give other
  # answers; whatever may fail to load is asked in a function, late.

  alias Emily.Native.{Call, Nif}
  alias Emily.Preflight

  @type status :: :ok | :warn | :error | :skip
  @type check :: %{
          name: atom,
          status: status,
          summary: String.t(),
          guidance: String.t() | nil
        }
  @type report :: %{status: status, checks: [check]}

  @rebuild "mix compile --force builds it again"

  @doc "What is asked of this host."
  @spec facts() :: map
  def facts do
    priv = List.to_string(:code.priv_dir(:emily))

    %{
      os_type: :os.type(),
      arch: List.to_string(:erlang.system_info(:system_architecture)),
      variant: Preflight.variant(priv),
      priv_dir: priv,
      file_exists?: &(Path.wildcard(&1) != []),
      preflight: fn -> priv |> Preflight.facts() |> Preflight.problems() end,
      nif_loader: fn -> load(priv) end,
      devices: &devices/0,
      blas: &blas/0,
      nx: Code.ensure_loaded?(Nx),
      smoke_test: &smoke_test/1
    }
  end

  @doc "Runs the checks. A check whose prerequisite failed is skipped."
  @spec diagnose(map | keyword) :: report
  def diagnose(facts \\ %{}) do
    facts = Map.merge(facts(), Map.new(facts))

    checks =
      [
        platform: [],
        variant: [:platform],
        libraries: [:variant],
        gpu: [:libraries],
        nif: [:libraries],
        devices: [:nif],
        blas: [:nif],
        nx: [],
        smoke_test: [:devices]
      ]
      |> Enum.reduce([], fn {name, needs}, done -> [check(name, needs, facts, done) | done] end)
      |> Enum.reverse()

    %{status: worst(checks), checks: checks}
  end

  defp check(name, needs, facts, done) do
    case Enum.find(done, &(&1.name in needs and &1.status in [:error, :skip])) do
      nil -> name |> run(facts) |> Map.put(:name, name)
      %{name: failed} -> Map.put(skip("not asked, because of: #{failed}"), :name, name)
    end
  end

  defp worst(checks) do
    statuses = Enum.map(checks, & &1.status)
    Enum.find([:error, :warn], :ok, &(&1 in statuses))
  end

  ## The checks

  defp run(:platform, %{os_type: os, arch: arch}) do
    case {os, arch |> String.split("-") |> hd()} do
      {{:unix, :linux}, cpu} when cpu in ["x86_64", "aarch64"] ->
        ok("Linux on #{cpu}")

      {{:unix, :darwin}, cpu} when cpu in ["aarch64", "arm64"] ->
        ok("macOS on #{cpu}")

      _ ->
        error(
          "MLX has no build for #{inspect(os)} on #{arch}",
          "use Linux on x86_64 or aarch64, or macOS on Apple silicon"
        )
    end
  end

  defp run(:variant, %{variant: nil, priv_dir: priv}) do
    error("#{priv} holds no finished build", @rebuild)
  end

  defp run(:variant, %{variant: variant, os_type: {_, os}}) do
    known = if os == :darwin, do: ["metal"], else: ["cpu", "cuda12", "cuda13"]

    if variant in known,
      do: ok("MLX for #{variant}"),
      else:
        error(
          "MLX for #{variant} is not for this system",
          "EMILY_MLX_VARIANT is one of #{Enum.join(known, ", ")}; #{@rebuild}"
        )
  end

  defp run(:libraries, %{variant: variant, priv_dir: priv, file_exists?: exists?}) do
    case Enum.reject(libraries(variant), &exists?.(Path.join(priv, &1))) do
      [] -> ok("complete in #{priv}")
      missing -> error("missing in #{priv}: #{Enum.join(missing, ", ")}", @rebuild)
    end
  end

  defp run(:gpu, %{variant: "cuda" <> _, preflight: preflight}) do
    case preflight.() do
      [] ->
        ok("driver, device, libraries and headers are there")

      problems ->
        warn(join(problems, :what) <> "; :gpu computes on the CPU", join(problems, :fix))
    end
  end

  defp run(:gpu, %{variant: "metal"}), do: ok("Metal")

  defp run(:gpu, _facts),
    do: skip("this build of MLX is for the CPU; EMILY_MLX_VARIANT=cuda13 builds for NVIDIA")

  defp run(:nif, %{nif_loader: loader}) do
    case loader.() do
      :ok ->
        ok("the native library loads")

      {:error, text} ->
        error(
          "the native library does not load: #{text}",
          "mix clean && mix compile, on this system"
        )
    end
  end

  defp run(:devices, %{devices: devices}) do
    ok(
      Enum.map_join(devices.(), "; ", fn {device, description} -> "#{device}: #{description}" end)
    )
  end

  defp run(:blas, %{os_type: {_, :darwin}}), do: ok("Accelerate")

  defp run(:blas, %{blas: blas}) do
    case blas.() do
      nil -> warn("OpenBLAS is not loaded: products on the CPU take 50 times as long", @rebuild)
      library -> ok(library)
    end
  end

  defp run(:nx, %{nx: true}), do: ok("Nx is there")

  defp run(:nx, %{nx: false}) do
    warn(
      "Nx is not there: Emily.Backend and what goes with it are left out",
      "add {:nx, \"~> 0.13\"} to the dependencies, or have it on ERL_LIBS"
    )
  end

  defp run(:smoke_test, %{devices: devices, smoke_test: smoke_test}) do
    failed =
      for {device, _} <- devices.(),
          {:error, text} <- [smoke_test.(device)],
          do: "#{device}: #{text}"

    case failed do
      [] ->
        ok("a product, a sum and a decomposition are right on every device")

      _ ->
        error(
          Enum.join(failed, "; "),
          "MLX does not compute right here; please report it with this output"
        )
    end
  end

  defp join(problems, key), do: Enum.map_join(problems, "; ", & &1[key])

  # Relative to priv/, as patterns.
  defp libraries("metal"), do: ["libemily_nif.so", "mlx/lib/libmlx.dylib", "mlx/lib/mlx.metallib"]

  defp libraries("cpu") do
    ["libemily_nif.so", "mlx/lib/libmlx.so", "mlx_cpu.libs/*", "scipy_openblas32/lib/*.so"]
  end

  defp libraries("cuda" <> version) do
    cpu = ["cpu/libemily_nif.so", "cpu/mlx/lib/libmlx.so", "cpu/mlx_cpu.libs/*"]
    headers = ["mlx/include/cccl", "mlx/include/crt"]
    cuda = ["mlx_cuda_#{version}.libs/*", "libemily_preflight.so" | headers]
    ["libemily_nif.so", "mlx/lib/libmlx.so", "scipy_openblas32/lib/*.so"] ++ cuda ++ cpu
  end

  defp ok(summary), do: result(:ok, summary, nil)
  defp skip(summary), do: result(:skip, summary, nil)
  defp warn(summary, guidance), do: result(:warn, summary, guidance)
  defp error(summary, guidance), do: result(:error, summary, guidance)

  defp result(status, summary, guidance) do
    %{status: status, summary: summary, guidance: guidance}
  end

  ## Asking this host

  defp load(priv) do
    case Code.ensure_loaded(Nif) do
      {:module, _} -> :ok
      {:error, _} -> {:error, why(priv)}
    end
  end

  # An on_load that fails does not say why. A library that is loaded for a wrong module is refused after the
  # system's loader has had its say.
  defp why(priv) do
    case :erlang.load_nif(Preflight.library(priv), 0) do
      {:error, reason} when elem(reason, 0) == :load_failed ->
        reason |> elem(1) |> List.to_string()

      _ ->
        "it loads, but MLX does not start (its reason is above)"
    end
  end

  defp devices do
    for device <- Nif.devices() do
      info = Map.new(Call.now(Nif.device_info(device)))
      memory = info["total_memory"] || info["memory_size"]
      gib = if is_integer(memory), do: ", #{Float.round(memory / 1024 ** 3, 1)} GiB", else: ""
      {device, "#{info["device_name"] || "unknown"}#{gib}"}
    end
  end

  defp blas do
    with {:ok, maps} <- File.read("/proc/self/maps"),
         [path] <- Regex.run(~r"/\S*openblas\S*", maps) do
      Path.basename(path)
    else
      _ -> nil
    end
  end

  defp smoke_test(device) do
    {:ok, _} = Application.ensure_all_started(:emily)
    %{worker: w} = stream = Emily.Stream.new(device)
    a = Emily.from_binary(floats([2, 1, 1, 3]), [2, 2], {:f, 32})
    product = Emily.Native.matmul(w, a, a)
    sum = Emily.Native.sum(w, product, [0, 1], false)
    {q, r} = Emily.Native.linalg_qr(w, a)
    again = Emily.Native.to_binary(w, Emily.Native.matmul(w, q, r))
    got = [Emily.Native.to_binary(w, product), Emily.Native.to_binary(w, sum)]
    Emily.Stream.close(stream)

    close? =
      [2, 1, 1, 3]
      |> Enum.zip(for <<x::float-32-native <- again>>, do: x)
      |> Enum.all?(fn {a, b} -> abs(a - b) < 0.01 end)

    cond do
      got != [floats([5, 5, 5, 10]), floats([25])] -> {:error, "a product or sum is wrong"}
      not close? -> {:error, "a decomposition is wrong"}
      true -> :ok
    end
  rescue
    error -> {:error, Exception.message(error)}
  end

  defp floats(numbers), do: for(x <- numbers, into: <<>>, do: <<x::float-32-native>>)

  ## The report

  @doc "The report as text."
  @spec format_report(report) :: String.t()
  def format_report(%{status: status, checks: checks}) do
    lines =
      for %{name: name, status: status, summary: summary, guidance: guidance} <- checks do
        line = "#{String.pad_trailing("[#{status}]", 8)} #{name}: #{summary}"
        if guidance, do: line <> "\n         fix: " <> guidance, else: line
      end

    Enum.join(lines ++ ["", "emily: #{status}"], "\n")
  end
end
