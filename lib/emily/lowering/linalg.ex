defmodule Emily.Lowering.Linalg do
  @moduledoc false

  # Decompositions and systems, in f32 or f64: LAPACK has no half types, and MLX no complex
  # numbers here but for eigenvalues. `:default` leaves a case to Nx's own definition.

  import Emily.Emitter, only: [emit: 3, emit_all: 3, scalar: 3]
  import Emily.Lowering.Type, only: [astype: 3, cast: 4, operand: 3]

  alias Emily.Emitter
  alias Emily.Lowering.{Creation, Shape}

  defp real(type), do: if(type == {:f, 64}, do: type, else: {:f, 32})

  defp work({:c, _}), do: {:c, 64}
  defp work(type), do: real(type)

  defp dims(shape) do
    rank = tuple_size(shape)
    {rank, elem(shape, rank - 2), elem(shape, rank - 1)}
  end

  ## Decompositions

  def cholesky(_e, %{type: {:c, _}}, _tensor), do: :default

  def cholesky(e, %{type: type}, tensor) do
    work = real(type)
    lower = emit(e, {:linalg_cholesky, %{upper: false}}, [operand(e, tensor, work)])
    cast(e, lower, work, type)
  end

  def lu(_e, {_, %{type: {:c, _}}, _}, _tensor), do: :default

  def lu(e, {p_out, l_out, u_out}, tensor) do
    work = real(l_out.type)
    {_rank, n, _} = dims(tensor.shape)
    [rows, lower, upper] = emit_all(e, :linalg_lu, [operand(e, tensor, work)])

    # Row i of P has its one in column rows[i].
    columns = Creation.range(e, n, {:u, 32})
    rows = emit(e, {:expand_dims, %{axes: [-1]}}, [rows])
    p = astype(e, emit(e, :equal, [rows, columns]), p_out.type)
    {p, cast(e, lower, work, l_out.type), cast(e, upper, work, u_out.type)}
  end

  def qr(_e, {%{type: {:c, _}}, _}, _tensor, _mode), do: :default

  def qr(e, {q_out, r_out}, tensor, mode) do
    work = real(q_out.type)
    {rank, m, n} = dims(tensor.shape)
    a = operand(e, tensor, work)

    {q, r} =
      if mode == :complete and m > n do
        # Columns of zeros change no reflection, and make Q square.
        config = List.duplicate({0, 0, 0}, rank - 1) ++ [{0, m - n, 0}]
        square = Shape.pad_to(e, a, tensor.shape, scalar(e, 0, work), config)
        [q, r] = emit_all(e, :linalg_qr, [square])
        {q, Shape.slice_axis(e, r, put_elem(tensor.shape, rank - 1, m), rank - 1, 0, n)}
      else
        [q, r] = emit_all(e, :linalg_qr, [a])
        {q, r}
      end

    {unsigned_zeros(e, q, work, q_out.type), unsigned_zeros(e, r, work, r_out.type)}
  end

  # LAPACK leaves zeros with a sign, which readers take for noise.
  defp unsigned_zeros(e, handle, work, type),
    do: cast(e, emit(e, :add, [handle, scalar(e, 0, work)]), work, type)

  # LAPACK orders the eigenvalues upwards, Nx by their magnitude downwards. The sign of a vector is
  # arbitrary: its first component is made positive, so that results do not depend on the library.
  def eigh(e, {values_out, vectors_out}, tensor) do
    work = work(vectors_out.type)
    {rank, _n, _} = dims(tensor.shape)
    [values, vectors] = emit_all(e, {:linalg_eigh, %{upper: false}}, [operand(e, tensor, work)])
    values_type = if match?({:c, _}, work), do: {:f, 32}, else: work

    magnitudes = emit(e, :negative, [emit(e, :abs, [values])])
    order = emit(e, {:argsort, %{axis: rank - 2}}, [magnitudes])
    values = emit(e, {:take_along_axis, %{axis: rank - 2}}, [values, order])
    columns = emit(e, {:expand_dims, %{axes: [rank - 2]}}, [order])
    columns = Shape.broadcast_to(e, columns, nil, tensor.shape)
    vectors = emit(e, {:take_along_axis, %{axis: rank - 1}}, [vectors, columns])

    vectors = first_positive(e, vectors, work, tensor.shape)

    {cast(e, values, values_type, values_out.type),
     unsigned_zeros(e, vectors, work, vectors_out.type)}
  end

  defp first_positive(_e, vectors, {:c, _}, _shape), do: vectors

  defp first_positive(e, vectors, type, shape) do
    first = Shape.slice_axis(e, vectors, shape, tuple_size(shape) - 2, 0, 1)
    negative = emit(e, :less, [first, scalar(e, 0, type)])
    emit(e, :where, [negative, emit(e, :negative, [vectors]), vectors])
  end

  def svd(_e, {%{type: {:c, _}}, _, _}, _tensor, _full?), do: :default

  def svd(e, {u_out, s_out, vt_out}, tensor, full?) do
    work = real(u_out.type)
    {_rank, m, n} = dims(tensor.shape)
    a = operand(e, tensor, work)

    [u, s, vt] =
      cond do
        full? or m == n ->
          emit_all(e, :linalg_svd, [a])

        # A thin Q carries the factors of the small R, where MLX would make all of U.
        m > n ->
          [q, r] = emit_all(e, :linalg_qr, [a])
          [u, s, vt] = emit_all(e, :linalg_svd, [r])
          [emit(e, :matmul, [q, u]), s, vt]

        true ->
          [q, r] = emit_all(e, :linalg_qr, [Shape.matrix_transpose(e, a)])
          [u, s, vt] = emit_all(e, :linalg_svd, [Shape.matrix_transpose(e, r)])
          [u, s, emit(e, :matmul, [vt, Shape.matrix_transpose(e, q)])]
      end

    {unsigned_zeros(e, u, work, u_out.type), cast(e, s, work, s_out.type),
     unsigned_zeros(e, vt, work, vt_out.type)}
  end

  def determinant(_e, %{type: {:c, _}}, _tensor), do: :default

  # MLX takes the exponential of a sum of logarithms, which it has in single precision only. In
  # double precision it is the product of U's diagonal, with the sign of the rows' permutation.
  def determinant(e, %{type: {:f, 64} = type}, tensor) do
    {rank, _n, _} = dims(tensor.shape)
    [rows, _lower, upper] = emit_all(e, :linalg_lu, [operand(e, tensor, type)])
    diagonal = emit(e, {:diagonal, %{offset: 0, axis1: rank - 2, axis2: rank - 1}}, [upper])
    product = emit(e, {:prod, %{axes: [-1], keep_axes: false}}, [diagonal])

    before = emit(e, {:expand_dims, %{axes: [-1]}}, [rows])
    behind = emit(e, {:expand_dims, %{axes: [-2]}}, [rows])
    swapped = astype(e, emit(e, :greater, [before, behind]), {:s, 32})

    swaps =
      emit(e, {:sum, %{axes: [-2, -1], keep_axes: false}}, [emit(e, {:triu, %{k: 1}}, [swapped])])

    odd = emit(e, :bitwise_and, [swaps, scalar(e, 1, {:s, 32})])
    emit(e, :where, [odd, emit(e, :negative, [product]), product])
  end

  def determinant(e, %{type: type}, tensor) do
    work = system(e, type)
    cast(e, emit(e, :linalg_det, [operand(e, tensor, work)]), work, type)
  end

  ## Systems

  # MLX solves by multiplying with an inverse, which costs digits that doubles have to spare.
  defp system(e, type) do
    case work(type) do
      {:f, 32} -> if Emitter.device(e) == :cpu, do: {:f, 64}, else: {:f, 32}
      other -> other
    end
  end

  # A right side of one rank less than the matrix is a vector for each matrix.
  def solve(e, %{type: type}, a, b) do
    work = system(e, type)
    vector? = tuple_size(b.shape) == tuple_size(a.shape) - 1
    right = operand(e, b, work)
    right = if vector?, do: emit(e, {:expand_dims, %{axes: [-1]}}, [right]), else: right
    solution = solve_matrix(e, operand(e, a, work), right, work, dims(a.shape))
    solution = if vector?, do: emit(e, {:squeeze, %{axes: [-1]}}, [solution]), else: solution
    cast(e, solution, work, type)
  end

  def triangular_solve(e, %{type: type}, a, b, opts) do
    work = system(e, type)
    vector? = tuple_size(b.shape) == tuple_size(a.shape) - 1
    lower? = !!opts[:lower]
    left? = !!opts[:left_side]

    matrix = operand(e, a, work)
    matrix = if opts[:transform_a] == :conjugate, do: conjugate(e, matrix, work), else: matrix

    # X op(A) = B is solved as op(A)^T X^T = B^T; a vector is its own transpose.
    transposed? = opts[:transform_a] == :transpose != not left?
    right = operand(e, b, work)

    right =
      cond do
        vector? -> emit(e, {:expand_dims, %{axes: [-1]}}, [right])
        left? -> right
        true -> Shape.matrix_transpose(e, right)
      end

    matrix = if transposed?, do: Shape.matrix_transpose(e, matrix), else: matrix
    upper? = lower? == transposed?
    solution = solve_triangle(e, matrix, right, upper?, work, dims(a.shape))

    solution =
      cond do
        vector? -> emit(e, {:squeeze, %{axes: [-1]}}, [solution])
        left? -> solution
        true -> Shape.matrix_transpose(e, solution)
      end

    cast(e, solution, work, type)
  end

  defp conjugate(e, handle, {:c, _}), do: emit(e, :conjugate, [handle])
  defp conjugate(_e, handle, _type), do: handle

  defp solve_triangle(e, matrix, right, upper?, {:c, _} = work, dims) do
    part = if upper?, do: {:triu, %{k: 0}}, else: {:tril, %{k: 0}}
    solve_matrix(e, emit(e, part, [matrix]), right, work, dims)
  end

  defp solve_triangle(e, matrix, right, upper?, _type, _dims) do
    emit(e, {:linalg_solve_triangular, %{upper: upper?}}, [matrix, right])
  end

  # A complex system as a real one of twice the size:
  # [[Re A, -Im A], [Im A, Re A]] [Re X; Im X] = [Re B; Im B].
  defp solve_matrix(e, matrix, right, {:c, _}, {rank, n, _}) do
    {re, im} = {emit(e, :real, [matrix]), emit(e, :imag, [matrix])}
    join = &emit(e, {:concatenate, %{axis: &1}}, &2)
    above = join.(rank - 1, [re, emit(e, :negative, [im])])
    below = join.(rank - 1, [im, re])
    parts = join.(rank - 2, [emit(e, :real, [right]), emit(e, :imag, [right])])
    solved = emit(e, :linalg_solve, [join.(rank - 2, [above, below]), parts])

    rows = Creation.range(e, n, {:s, 32})
    later = emit(e, :add, [rows, scalar(e, n, {:s, 32})])
    [x_re, x_im] = for at <- [rows, later], do: emit(e, {:take, %{axis: rank - 2}}, [solved, at])
    imaginary = emit(e, :multiply, [x_im, scalar(e, Complex.new(0, 1), {:c, 64})])
    emit(e, :add, [x_re, imaginary])
  end

  defp solve_matrix(e, matrix, right, _type, _dims), do: emit(e, :linalg_solve, [matrix, right])
end
