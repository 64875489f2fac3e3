defmodule Emily.FastEinsumTest do
  # Einstein sums against the operations of Nx that they stand for.
  use ExUnit.Case, async: true

  import Emily.NxReference

  alias Emily.Fast

  doctest Fast

  # As in FastTest.
  @moduletag timeout: 300_000, capture_log: true

  @cases [
    {"ij,jk->ik", [{2, 3}, {3, 4}], &Nx.dot/2},
    {"ij,jk", [{2, 3}, {3, 4}], &Nx.dot/2},
    {"ij->ji", [{2, 3}], &Nx.transpose/1},
    {"ij->", [{2, 3}], &Nx.sum/1},
    {"ij->j", [{2, 3}], &__MODULE__.columns/1},
    {"i,j->ij", [{2}, {3}], &Nx.outer/2},
    {"i,i->", [{4}, {4}], &Nx.dot/2},
    {"i,i->i", [{4}, {4}], &Nx.multiply/2},
    {"ij,ij->i", [{2, 3}, {2, 3}], &__MODULE__.row_products/2},
    {"bij,bjk->bik", [{2, 3, 4}, {2, 4, 2}], &__MODULE__.batched/2},
    {"bij, bjk -> bik", [{2, 3, 4}, {2, 4, 2}], &__MODULE__.batched/2},
    {"...ij,...jk->...ik", [{2, 3, 4}, {2, 4, 2}], &__MODULE__.batched/2},
    {"...ij,jk->...ik", [{2, 3, 4}, {4, 2}], &Nx.dot/2},
    {"bij,jk->kbi", [{2, 3, 4}, {4, 2}], &__MODULE__.moved/2},
    {"ij,jk,kl->il", [{2, 3}, {3, 2}, {2, 4}], &__MODULE__.chain/3},
    {"ii->i", [{3, 3}], &Nx.take_diagonal/1},
    {"ii", [{3, 3}], &__MODULE__.trace/1},
    {"ij,ij->ij", [{1, 3}, {2, 3}], &Nx.multiply/2},
    {"ij,k->ik", [{2, 3}, {4}], &__MODULE__.summed/2},
    {"bhqd,bhkd->bhqk", [{1, 2, 3, 4}, {1, 2, 5, 4}], &__MODULE__.scores/2},
    {"i,j,k->kji", [{1}, {2}, {3}], &__MODULE__.outer/3}
  ]

  def columns(a), do: Nx.sum(a, axes: [0])
  def row_products(a, b), do: Nx.sum(Nx.multiply(a, b), axes: [1])
  def batched(a, b), do: Nx.dot(a, [2], [0], b, [1], [0])
  def moved(a, b), do: Nx.transpose(Nx.dot(a, b), axes: [2, 0, 1])
  def chain(a, b, c), do: Nx.dot(a, Nx.dot(b, c))
  def trace(a), do: Nx.sum(Nx.take_diagonal(a))
  def summed(a, b), do: Nx.outer(Nx.sum(a, axes: [1]), b)
  def scores(a, b), do: Nx.dot(a, [3], [0, 1], b, [3], [0, 1])

  def outer(a, b, c),
    do: Nx.transpose(Nx.reshape(Nx.outer(Nx.outer(a, b), c), {1, 2, 3}), axes: [2, 1, 0])

  test "of floats, with gradients" do
    for {equation, shapes, reference} <- @cases do
      assert_in_all_types(shapes, einsum(equation, length(shapes)), reference, 16)
    end
  end

  test "of integers and of complex numbers" do
    fun = einsum("ij,jk->ik", 2)

    for type <- [s: 32, s: 64, c: 64] do
      [a, b] =
        for shape <- [{2, 3}, {3, 2}], do: Nx.iota(shape, type: type, backend: Nx.BinaryBackend)

      Emily.NxTensors.assert_like_binary_backend([a, b], fun)
      assert fun.(a, b) == Nx.dot(a, b)
    end
  end

  test "merges the types of tensors" do
    assert Fast.einsum("i,i->", [Nx.tensor([1, 2]), Nx.tensor([1.0, 0.5])]) |> Nx.to_number() ==
             2.0
  end

  test "of more tensors than a block takes" do
    twos = List.duplicate(Nx.tensor([2.0]), 12)
    equation = Enum.map_join(1..12, ",", fn _ -> "i" end) <> "->i"
    assert Nx.to_flat_list(Fast.einsum(equation, twos)) == [4096.0]
  end

  for {equation, shapes, text} <- [
        {"ij,jk->ik", [{2, 3}], "for each of 1 tensors"},
        {"ij->ij->ij", [{2, 3}], "one arrow"},
        {"i1->i", [{2, 3}], "letters, one ellipsis"},
        {"i......j->i", [{2, 3}], "letters, one ellipsis"},
        {"ijk->i", [{2, 3}], "2 letters for a tensor of shape {2, 3}"},
        {"ij->ik", [{2, 3}], "letters of the tensors"},
        {"ij->ii", [{2, 3}], "each once"},
        {"ij,jk->ik", [{2, 3}, {4, 2}], "one size for j, not 3 and 4"},
        {"ii->i", [{1, 3}], "one size for i"}
      ] do
    test "refuses #{equation} of #{inspect(shapes)}" do
      tensors = for shape <- unquote(Macro.escape(shapes)), do: Nx.iota(shape)

      error = assert_raise ArgumentError, fn -> Fast.einsum(unquote(equation), tensors) end
      assert error.message =~ unquote(text)
    end
  end

  defp einsum(equation, 1), do: &Fast.einsum(equation, [&1])
  defp einsum(equation, 2), do: &Fast.einsum(equation, [&1, &2])
  defp einsum(equation, 3), do: &Fast.einsum(equation, [&1, &2, &3])
end
