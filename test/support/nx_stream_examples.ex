defmodule Emily.NxStreamExamples do
  @moduledoc """
  The examples that users of streams know, run as doctests. They ask for a GPU, which is a CPU where there
  is none.

      iex> stream = Emily.Stream.new(:gpu)
      iex> Emily.Stream.with_stream(stream, fn -> 42 end)
      42

      iex> stream = Emily.Stream.new(:gpu)
      iex> match?(%Emily.Stream{}, stream)
      true

      iex> stream = Emily.Stream.new(:gpu)
      iex> Emily.Stream.with_stream(stream, fn ->
      ...>   Nx.tensor([1.0, 2.0, 3.0], backend: Emily.Backend)
      ...>   |> Nx.sum()
      ...>   |> Nx.to_number()
      ...> end)
      6.0
  """
end
