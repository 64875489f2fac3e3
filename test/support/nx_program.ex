defmodule Emily.NxProgram do
  @moduledoc """
  What the compiler makes of a function, to be counted.
  """

  alias Emily.Compiler.Trace
  alias Nx.Defn.Composite

  @doc "How many ops of each name the program of a function has for these arguments."
  def ops(fun, arguments) do
    expr = apply(Nx.Defn.debug_expr(fun), arguments)

    {nodes, _types, _calls} =
      expr |> Composite.traverse(&Nx.devectorize/1) |> Trace.trace(:cpu, %{})

    {counts, _seen} = walk(nodes, {%{}, MapSet.new()})
    counts
  end

  # A node is a tuple that holds the nodes it is computed from.
  defp walk(nodes, acc) when is_list(nodes), do: Enum.reduce(nodes, acc, &walk/2)

  defp walk({kind, id, op, inputs}, {counts, seen} = acc) when kind in [:op, :several] do
    if id in seen do
      acc
    else
      name = if is_tuple(op), do: elem(op, 0), else: op
      walk(inputs, {Map.update(counts, name, 1, &(&1 + 1)), MapSet.put(seen, id)})
    end
  end

  defp walk({:constant, _, _, _, _}, acc), do: acc
  defp walk(node, acc) when is_tuple(node), do: node |> Tuple.to_list() |> walk(acc)
  defp walk(_other, acc), do: acc
end
