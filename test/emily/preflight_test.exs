defmodule Emily.PreflightTest do
  use ExUnit.Case, async: true

  alias Emily.Preflight

  @fine %{
    cuda: 13,
    driver: {:ok, {13_000, [{"NVIDIA H100", 80_000_000_000}]}},
    libraries: [{"libcudnn.so.9", {:ok, true}}],
    headers: [{"MLX's headers", true}]
  }

  test "nothing is missing" do
    assert Preflight.problems(@fine) == []
    assert Preflight.problems(%{cuda: nil}) == []
  end

  test "no driver, and that alone is told" do
    facts = %{
      @fine
      | driver: {:error, "libcuda.so.1: cannot open"},
        libraries: [{"x", {:error, "y"}}]
    }

    assert [%{what: what, fix: fix}] = Preflight.problems(facts)
    assert what == "no NVIDIA driver can be used (libcuda.so.1: cannot open)"
    assert fix =~ "install NVIDIA's driver"
  end

  test "a driver without a device" do
    assert [%{what: "the NVIDIA driver finds no device", fix: fix}] =
             Preflight.problems(%{@fine | driver: {:ok, {13_000, []}}})

    assert fix =~ "CUDA_VISIBLE_DEVICES"
  end

  test "a driver that is too old says what to do" do
    old = %{@fine | driver: {:ok, {12_090, [{"NVIDIA T4", 1}]}}}
    assert [%{what: what, fix: fix}] = Preflight.problems(old)
    assert what =~ "serves CUDA up to 12.9, this build of MLX needs 13.0"
    assert fix == "install driver 580 or newer, or build with EMILY_MLX_VARIANT=cuda12"
    assert Preflight.problems(%{old | cuda: 12}) == []
  end

  test "each missing library and header, with the command that gets it" do
    facts = %{
      @fine
      | libraries: [{"libcudnn.so.9", {:error, "no such file"}}, {"libnccl.so.2", {:ok, true}}],
        headers: [{"MLX's headers", true}, {"CUDA's headers", false}]
    }

    assert [cudnn, headers] = Preflight.problems(facts)
    assert cudnn.what == "libcudnn.so.9 does not load (no such file)"
    assert headers.what == "CUDA's headers are missing"
    assert cudnn.fix =~ "EMILY_CUDA=wheels EMILY_MLX_VARIANT=cuda13 mix compile --force"

    assert Preflight.reason([cudnn, headers]) =~
             "libcudnn.so.9 does not load (no such file): EMILY"
  end

  @tag :tmp_dir
  test "the variant is the first word of the stamp", %{tmp_dir: folder} do
    assert Preflight.variant(folder) == nil
    File.write!(Path.join(folder, "emily_nif.stamp"), "cuda13 wheels ABC")
    assert Preflight.variant(folder) == "cuda13"
  end

  @tag :tmp_dir
  test "a build for CUDA whose own library is missing computes on the CPU", %{tmp_dir: folder} do
    File.write!(Path.join(folder, "emily_nif.stamp"), "cuda13 wheels ABC")
    assert folder |> Preflight.facts() |> Preflight.problems() != []
  end
end
