defmodule Emily.NxDoctestTest do
  # The documentation of Nx 0.13, run with Emily as the default backend. Examples that cannot agree
  # are skipped one by one, each with its reason and its place among the examples of its function:
  # leaving a function out would leave out all of them.
  use ExUnit.Case, async: true

  # The last digits: Nx's are those of an algorithm in Elixir, MLX's those of its own or LAPACK's.
  rounding = [
    {"Nx.erfc/1", 2},
    {"Nx.log1p/1", 2},
    {"Nx.LinAlg.cholesky/1", 2},
    {"Nx.LinAlg.cholesky/1", 5},
    {"Nx.LinAlg.solve/2", 1},
    {"Nx.LinAlg.solve/2", 4},
    {"Nx.LinAlg.pinv/2", 5},
    {"Nx.LinAlg.pinv/2", 6},
    {"Nx.LinAlg.eigh/2", 3},
    {"Nx.LinAlg.eigh/2", 4},
    {"Nx.LinAlg.svd/2", 2},
    {"Nx.LinAlg.lu/1", 3},
    {"Nx.LinAlg.matrix_power/2", 4},
    {"Nx.LinAlg.matrix_power/2", 6},
    {"Nx.LinAlg.determinant/1", 7},
    {"Nx.LinAlg.least_squares/3", 1},
    {"Nx.LinAlg.least_squares/3", 2},
    {"Nx.LinAlg.least_squares/3", 3},
    {"Nx.Random.normal/4", 1},
    {"Nx.Random.normal/4", 3},
    {"Nx.Random.normal/4", 4},
    {"Nx.Random.multivariate_normal/4", 2},
    {"Nx.Random.multivariate_normal/4", 4}
  ]

  # Nx's approximation is good to seven digits; the doubles of the example differ from the eighth.
  approximation = [{"Nx.erf_inv/1", 1}, {"Nx.erf_inv/1", 2}]

  # The sign of a column of Q, and the basis of an eigenspace of two dimensions, are free.
  convention = [{"Nx.LinAlg.qr/2", 4}, {"Nx.LinAlg.eigh/2", 2}]

  # That a matrix is singular shows when the result is computed, which raises then.
  lazy = [{"Nx.LinAlg.triangular_solve/3", 15}]

  # MLX has no complex numbers of two doubles.
  unsupported = [{"Nx.Constants.i/2", 2}]

  # The same digits, as a GPU has them.
  rounding_on_gpu =
    [{"Nx.phase/1", 1}, {"Nx.phase/1", 3}, {"Nx.Random.gumbel/2", 2}, {"Nx.LinAlg.lu/1", 1}] ++
      for(place <- 5..9, do: {"Nx.logsumexp/2", place}) ++
      for(place <- 1..3, do: {"Nx.atan2/2", place}) ++
      for(place <- [1, 4, 11], do: {"Nx.LinAlg.triangular_solve/3", place})

  # No GPU computes with doubles.
  doubles =
    for(
      name <-
        ~w(acos acosh asin asinh atan atanh cbrt cos cosh erf exp expm1 log rsqrt sigmoid sin sinh
                 sqrt tan tanh),
      place <- [1, 2],
      do: {"Nx.#{name}/1", place}
    ) ++
      for(
        name <- ~w(e/2 epsilon/2 euler_gamma/2 pi/2 smallest_positive_normal/2),
        do: {"Nx.Constants.#{name}", 1}
      ) ++
      for(place <- [2, 6, 7, 16, 17], do: {"Nx.LinAlg.triangular_solve/3", place}) ++
      [
        {"Nx.LinAlg.solve/2", 2},
        {"Nx.Constants.infinity/2", 5},
        {"Nx.Constants.nan/2", 5},
        {"Nx.Constants.neg_infinity/2", 5},
        {"Nx.all_close/3", 10},
        {"Nx.all_close/3", 11},
        {"Nx.as_type/2", 5},
        {"Nx.as_type/2", 8},
        {"Nx.as_type/2", 9},
        {"Nx.atan2/2", 4},
        {"Nx.erfc/1", 1},
        {"Nx.from_binary/3", 2},
        {"Nx.iota/2", 6},
        {"Nx.log1p/1", 1},
        {"Nx.tensor/2", 14}
      ]

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
          {"type that MLX lacks", unsupported},
          {"rounding on a GPU", if(Emily.TestDevice.gpu?(), do: rounding_on_gpu, else: [])},
          {"doubles on a GPU", if(Emily.TestDevice.gpu?(), do: doubles, else: [])}
        ],
        name <- names,
        into: %{},
        do: {name, reason}

  # ExUnit counts examples through the whole module, which a new one anywhere before them changes.
  {tests, counts} =
    __MODULE__
    |> Module.get_attribute(:ex_unit_tests)
    |> Enum.reverse()
    |> Enum.map_reduce(%{}, fn test, counts ->
      "doctest " <> name = Atom.to_string(test.name)
      function = name |> String.split(" (") |> hd()
      counts = Map.update(counts, function, 1, &(&1 + 1))
      {{test, {function, counts[function]}}, counts}
    end)

  missing =
    for {function, place} = name <- Map.keys(reasons),
        place > Map.get(counts, function, 0),
        do: name

  if missing != [] do
    raise "no such doctests in this version of Nx: #{inspect(missing)}"
  end

  Module.delete_attribute(__MODULE__, :ex_unit_tests)
  Module.register_attribute(__MODULE__, :ex_unit_tests, accumulate: true)

  for {test, name} <- tests do
    reason = reasons[name]
    tags = if reason, do: Map.put(test.tags, :skip, reason), else: test.tags
    Module.put_attribute(__MODULE__, :ex_unit_tests, %{test | tags: tags})
  end
end
