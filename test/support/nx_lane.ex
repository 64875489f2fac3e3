defmodule Emily.NxLane do
  @moduledoc """
  The options with which tests of whole models compile a `defn`.
  """

  def options, do: [compiler: Emily.Compiler, native_fallback: :raise]
end
