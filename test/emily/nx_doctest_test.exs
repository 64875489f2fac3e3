defmodule Emily.NxDoctestTest do
  # The documentation of Nx, run with Emily as the default backend.
  use ExUnit.Case, async: true

  setup do
    Nx.default_backend(Emily.Backend)
    :ok
  end

  doctest Nx
  doctest Nx.LinAlg
  doctest Nx.Random
  doctest Nx.Constants
  doctest Nx.Type
end
