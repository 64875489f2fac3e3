defmodule Emily.Page do
  @moduledoc false
  # The Elixir code of a page of Markdown or of a livebook, run as a reader would run it: block after
  # block, with what earlier blocks have bound, imported and aliased.
  #
  # A block that ends with a line `#=> VALUE` has that value. `<!-- not run: REASON -->` before a block
  # leaves it out; cells with Mix.install and blocks of iex> examples, which doctest_file runs, are
  # no blocks here.

  @enforce_keys [:line, :code, :reason]
  defstruct @enforce_keys

  @type t :: %__MODULE__{line: pos_integer, code: String.t(), reason: String.t() | nil}

  @doc "The blocks of a text; those that are not run have a reason."
  @spec blocks(String.t()) :: [t]
  def blocks(text) do
    lines = text |> String.split("\n") |> Enum.with_index(1)
    for block <- scan(lines, nil), not left_to_others?(block), do: block
  end

  defp scan([], nil), do: []
  defp scan([], reason), do: raise("no block of Elixir follows: not run: #{reason}")

  defp scan([{"```elixir" <> _, line} | rest], reason) do
    {code, rest} = Enum.split_while(rest, fn {text, _} -> text != "```" end)
    code = Enum.map_join(code, "\n", &elem(&1, 0))
    [%__MODULE__{line: line + 1, code: code, reason: reason} | scan(rest, nil)]
  end

  defp scan([{text, _line} | rest], reason) do
    case Regex.run(~r/^<!-- not run: (.+) -->$/, text) do
      [_, reason] -> scan(rest, reason)
      nil when text == "" -> scan(rest, reason)
      nil when reason == nil -> scan(rest, nil)
      nil -> raise "no block of Elixir follows: not run: #{reason}"
    end
  end

  defp left_to_others?(%{code: code}), do: code =~ ~r/^iex>/ or code =~ "Mix.install"

  @doc "Runs the blocks that are run, and returns how many they were."
  @spec run([t], Path.t()) :: non_neg_integer
  def run(blocks, path) do
    blocks = Enum.filter(blocks, &is_nil(&1.reason))
    env = Code.env_for_eval(file: Path.expand(path))
    Enum.reduce(blocks, {[], env}, &run_block(&1, path, &2))
    length(blocks)
  end

  defp run_block(block, path, {binding, env}) do
    quoted =
      Code.string_to_quoted!(block.code, file: Path.expand(path), line: block.line, columns: true)

    {value, binding, env} = Code.eval_quoted_with_env(quoted, binding, env)
    check_value!(block, path, value)
    {binding, env}
  end

  defp check_value!(%{code: code, line: line}, path, value) do
    with [_, expected] <- Regex.run(~r/\n#=> (.*)\z/, code),
         got when got != expected <- inspect(value, charlists: :as_lists) do
      raise "#{path}:#{line}: expected #{expected}, got #{got}"
    end
  end

  @doc "Whether the wheel of that name, pinned in native/wheels, is in the cache."
  @spec cached?(String.t()) :: boolean
  def cached?(wheel) do
    base = System.get_env("XDG_CACHE_HOME") || Path.expand("~/.cache")
    cache = System.get_env("EMILY_CACHE") || Path.join(base, "emily")
    Path.wildcard(Path.join(Path.expand(cache), "wheels/#{wheel}-*")) != []
  end
end
