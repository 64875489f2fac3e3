defmodule Emily.NxDoctestTest do
  # The documentation of Nx 0.13, run with Emily as the default backend. Examples that cannot agree
  # are skipped one by one, each with its reason: leaving a function out would leave out all of its
  # examples.
  use ExUnit.Case, async: true

  # The last digits: Nx's are those of an algorithm in Elixir, MLX's those of its own or LAPACK's.
  rounding = [
    "Nx.erfc/1 (481)",
    "Nx.log1p/1 (484)",
    "Nx.LinAlg.cholesky/1 (4)",
    "Nx.LinAlg.cholesky/1 (7)",
    "Nx.LinAlg.solve/2 (43)",
    "Nx.LinAlg.solve/2 (46)",
    "Nx.LinAlg.pinv/2 (67)",
    "Nx.LinAlg.pinv/2 (68)",
    "Nx.LinAlg.eigh/2 (71)",
    "Nx.LinAlg.eigh/2 (72)",
    "Nx.LinAlg.svd/2 (75)",
    "Nx.LinAlg.lu/1 (79)",
    "Nx.LinAlg.matrix_power/2 (85)",
    "Nx.LinAlg.matrix_power/2 (87)",
    "Nx.LinAlg.determinant/1 (95)",
    "Nx.LinAlg.least_squares/3 (106)",
    "Nx.LinAlg.least_squares/3 (107)",
    "Nx.LinAlg.least_squares/3 (108)",
    "Nx.Random.normal/4 (16)",
    "Nx.Random.normal/4 (18)",
    "Nx.Random.normal/4 (19)",
    "Nx.Random.multivariate_normal/4 (21)",
    "Nx.Random.multivariate_normal/4 (23)"
  ]

  # Nx's approximation is good to seven digits; the doubles of the example differ from the eighth.
  approximation = ["Nx.erf_inv/1 (457)", "Nx.erf_inv/1 (480)"]

  # The sign of a column of Q, and the basis of an eigenspace of two dimensions, are free.
  convention = ["Nx.LinAlg.qr/2 (58)", "Nx.LinAlg.eigh/2 (70)"]

  # That a matrix is singular shows when the result is computed, which raises then.
  lazy = ["Nx.LinAlg.triangular_solve/3 (40)"]

  # MLX has no complex numbers of two doubles.
  unsupported = ["Nx.Constants.i/2 (27)"]

  setup do
    Nx.default_backend(Emily.Backend)
    :ok
  end

  doctest Nx
  doctest Nx.LinAlg
  doctest Nx.Random
  doctest Nx.Constants
  doctest Nx.Type

  reasons =
    for {reason, names} <- [
          {"rounding of the last digits", rounding},
          {"precision of Nx's approximation", approximation},
          {"free choice of a sign or basis", convention},
          {"raised when computed", lazy},
          {"type that MLX lacks", unsupported}
        ],
        name <- names,
        into: %{},
        do: {:"doctest #{name}", reason}

  tests = Module.get_attribute(__MODULE__, :ex_unit_tests)
  missing = Map.keys(reasons) -- Enum.map(tests, & &1.name)

  if missing != [] do
    raise "no such doctests in this version of Nx: #{inspect(missing)}"
  end

  Module.delete_attribute(__MODULE__, :ex_unit_tests)
  Module.register_attribute(__MODULE__, :ex_unit_tests, accumulate: true)

  for test <- Enum.reverse(tests) do
    reason = reasons[test.name]
    tags = if reason, do: Map.put(test.tags, :skip, reason), else: test.tags
    Module.put_attribute(__MODULE__, :ex_unit_tests, %{test | tags: tags})
  end
end
