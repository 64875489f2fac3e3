defmodule Emily.FusionTest do
  # Fused programs where the environment decides: each case is an operating system process of its own.
  use ExUnit.Case, async: true

  @moduletag :tmp_dir
  @moduletag timeout: 120_000
  @moduletag skip:
               Emily.TestDevice.gpu?() &&
                 "a GPU's kernels are compiled without the host's compiler"

  # Prints whether the CPU can fuse, and what a fused program makes of 1 and 2.
  @script """
  alias Emily.Native.{Call, Nif}
  {:ok, _} = Application.ensure_all_started(:emily)
  w = Emily.Stream.new(Emily.TestDevice.device()).worker
  steps = [{:apply, :add, [0, 0], 1}, {:apply, :square, [1], 1}, {:apply, :negative, [2], 1}]
  program = Call.compile_program(w, [{[2], {:f, 32}}], [], steps, [3], true)
  x = Emily.from_binary(<<1.0::float-32-native, 2.0::float-32-native>>, [2], {:f, 32})

  run = fn ->
    [y] = Call.run_program(w, program, [x], fn _, _ -> raise "asked" end)
    for <<x::float-32-native <- Call.to_binary(w, y)>>, do: x
  end

  outcome =
    try do
      {run.(), run.()}
    rescue
      error in RuntimeError -> error.message
    end

  IO.inspect({Call.now(Nif.program_fusion(w)), outcome}, limit: :infinity, printable_limit: :infinity)
  """

  defp run(env) do
    folders = Path.wildcard(Path.join(Application.app_dir(:emily), "../*/ebin"))
    arguments = Enum.flat_map(folders, &["-pa", &1]) ++ ["-e", @script]
    elixir = System.find_executable("elixir")
    {output, status} = System.cmd(elixir, arguments, env: env, stderr_to_stdout: true)
    assert {status, output} == {0, output}
    {term, _} = Code.eval_string(output)
    term
  end

  test "kernels are compiled by the VM", %{tmp_dir: folder} do
    assert run([{"TMPDIR", folder}]) == {true, {[-4.0, -16.0], [-4.0, -16.0]}}
    assert [_ | _] = Path.wildcard(Path.join(folder, "mlx/**/*.so"))
  end

  test "a temporary folder that is none is an error of the run", %{tmp_dir: folder} do
    file = Path.join(folder, "file")
    File.write!(file, "")
    assert {true, message} = run([{"TMPDIR", file}])
    assert message =~ ~r/^program: .*#{Regex.escape(file)}/s
  end

  test "without a C++ compiler the program runs op by op", %{tmp_dir: folder} do
    # What the VM's own start needs, and nothing else.
    for name <- ~w(erl elixir sh sed dirname basename readlink uname env cat) do
      found = System.find_executable(name)
      if found, do: File.ln_s!(found, Path.join(folder, name))
    end

    env = [{"PATH", folder}, {"TMPDIR", folder}]
    assert run(env) == {false, {[-4.0, -16.0], [-4.0, -16.0]}}
    assert Path.wildcard(Path.join(folder, "mlx/**/*.so")) == []
  end
end
