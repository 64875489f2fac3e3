defmodule Emily.DoctorTest do
  use ExUnit.Case, async: true

  alias Mix.Tasks.Emily.Doctor

  @fine %{
    os_type: {:unix, :linux},
    arch: "x86_64-pc-linux-gnu",
    variant: "cpu",
    priv_dir: "/priv",
    nx: true
  }

  # Every answer is given, so that nothing of this host is asked.
  defp diagnose(facts) do
    answers = %{
      file_exists?: fn _ -> true end,
      preflight: fn -> [] end,
      nif_loader: fn -> :ok end,
      devices: fn -> [cpu: "a processor, 8.0 GiB"] end,
      blas: fn -> "libopenblas.so" end,
      smoke_test: fn _device -> :ok end
    }

    @fine |> Map.merge(answers) |> Map.merge(Map.new(facts)) |> Doctor.diagnose()
  end

  defp statuses(report), do: for(check <- report.checks, do: {check.name, check.status})
  defp check(report, name), do: Enum.find(report.checks, &(&1.name == name))

  test "this host works" do
    report = Doctor.diagnose()
    assert report.status in [:ok, :warn]
    assert check(report, :smoke_test).status == :ok
    assert check(report, :devices).summary =~ "cpu: "
  end

  test "all is well" do
    report = diagnose([])
    assert report.status == :ok
    assert [gpu: :skip] = Enum.reject(statuses(report), &match?({_, :ok}, &1))
  end

  test "an unknown platform is an error, and what rests on it is skipped" do
    report = diagnose(os_type: {:win32, :nt}, arch: "win32")
    assert report.status == :error

    assert statuses(report) == [
             platform: :error,
             variant: :skip,
             libraries: :skip,
             gpu: :skip,
             nif: :skip,
             devices: :skip,
             blas: :skip,
             nx: :ok,
             smoke_test: :skip
           ]
  end

  test "a build that is missing, of another system, or not complete says how to make it" do
    for facts <- [[variant: nil], [variant: "metal"], [file_exists?: &(not (&1 =~ "libmlx"))]] do
      report = diagnose(facts)
      assert report.status == :error
      failed = Enum.find(report.checks, &(&1.status == :error))
      assert failed.guidance =~ "mix compile --force"
      assert check(report, :nif).status == :skip
    end
  end

  test "what a GPU lacks is a warning with the fix" do
    problem = %{what: "libcudnn.so.9 does not load (no such file)", fix: "fetch it"}
    report = diagnose(variant: "cuda13", preflight: fn -> [problem] end)
    assert report.status == :warn
    assert %{status: :warn, summary: summary, guidance: "fetch it"} = check(report, :gpu)
    assert summary =~ "libcudnn.so.9 does not load"
    assert check(report, :smoke_test).status == :ok
    assert check(diagnose(variant: "cuda13"), :gpu).status == :ok
  end

  test "a library that does not load skips what needs it" do
    report = diagnose(nif_loader: fn -> {:error, "GLIBC_2.38 not found"} end)
    assert check(report, :nif).summary =~ "GLIBC_2.38 not found"
    assert check(report, :nif).guidance =~ "mix compile"
    for name <- [:devices, :blas, :smoke_test], do: assert(check(report, name).status == :skip)
  end

  test "without OpenBLAS and without Nx it warns" do
    report = diagnose(blas: fn -> nil end, nx: false)

    assert {report.status, check(report, :blas).status, check(report, :nx).status} ==
             {:warn, :warn, :warn}

    assert diagnose(os_type: {:unix, :darwin}, arch: "aarch64-apple-darwin", variant: "metal").status ==
             :ok
  end

  test "a device that computes wrong is an error that names it" do
    devices = fn -> [cpu: "a processor", gpu: "a card"] end
    wrong = fn device -> if device == :gpu, do: {:error, "a sum is wrong"}, else: :ok end
    report = diagnose(devices: devices, smoke_test: wrong)
    assert {report.status, check(report, :smoke_test).summary} == {:error, "gpu: a sum is wrong"}
  end

  test "the report names every check, its status and the fix" do
    text = Doctor.format_report(diagnose(blas: fn -> nil end))
    assert text =~ "[ok]     platform: Linux on x86_64"
    assert text =~ ~r/\[warn\] +blas: OpenBLAS is not loaded.*\n +fix: mix compile --force/
    assert text =~ "emily: warn"
  end

  test "arguments and unknown options are refused" do
    assert_raise Mix.Error, ~r/takes no argument, got: now/, fn -> Doctor.run(["now"]) end
    assert_raise Mix.Error, ~r/no option --fast/, fn -> Doctor.run(["--fast"]) end
  end
end
