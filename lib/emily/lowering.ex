defmodule Emily.Lowering do
  @moduledoc false

  # What each operation of Nx means in MLX's, said once. A function has the name and the arguments
  # of its `Nx.Backend` callback, behind the emitter that the ops go to, and returns a handle. The
  # node of an `Nx.Defn.Expr` has the same arguments, so that one function serves both lanes.

  alias Emily.Lowering.{Block, Conv, Creation, Dot, Elementwise, Fft, Index, Linalg, Reduce}
  alias Emily.Lowering.{Shape, Sort, Window}

  @doc """
  A result as a value of its type, for the types that MLX holds in wider ones. To be called on what
  the functions below return, unless it is used at once.
  """
  defdelegate settle(e, handle, type), to: Emily.Lowering.Narrow

  ## Creation and casts

  defdelegate constant(e, out, number), to: Creation
  defdelegate iota(e, out, axis), to: Creation
  defdelegate eye(e, out), to: Creation
  defdelegate as_type(e, out, tensor), to: Creation
  defdelegate bitcast(e, out, tensor), to: Creation

  ## Shape

  defdelegate reshape(e, out, tensor), to: Shape
  defdelegate squeeze(e, out, tensor, axes), to: Shape
  defdelegate broadcast(e, out, tensor, shape, axes), to: Shape
  defdelegate transpose(e, out, tensor, axes), to: Shape
  defdelegate pad(e, out, tensor, value, config), to: Shape
  defdelegate reverse(e, out, tensor, axes), to: Shape
  defdelegate concatenate(e, out, tensors, axis), to: Shape
  defdelegate stack(e, out, tensors, axis), to: Shape

  ## Elementwise

  @binary [:add, :subtract, :multiply, :divide, :pow, :remainder, :quotient, :atan2, :max, :min] ++
            [:bitwise_and, :bitwise_or, :bitwise_xor, :left_shift, :right_shift] ++
            [:equal, :not_equal, :less, :less_equal, :greater, :greater_equal] ++
            [:logical_and, :logical_or, :logical_xor]

  @unary [:exp, :expm1, :log, :log1p, :sigmoid, :cos, :sin, :tan, :cosh, :sinh, :tanh] ++
           [:acos, :asin, :atan, :acosh, :asinh, :atanh, :sqrt, :rsqrt, :cbrt] ++
           [:erf, :erfc, :erf_inv, :abs, :negate, :sign, :ceil, :floor, :round] ++
           [:bitwise_not, :count_leading_zeros, :population_count] ++
           [:conjugate, :real, :imag, :is_nan, :is_infinity]

  @doc "The operations of two tensors, element by element."
  def binary, do: @binary

  @doc "The operations of one tensor, element by element."
  def unary, do: @unary

  for name <- @binary do
    defdelegate unquote(name)(e, out, a, b), to: Elementwise
  end

  for name <- @unary do
    defdelegate unquote(name)(e, out, tensor), to: Elementwise
  end

  defdelegate select(e, out, pred, on_true, on_false), to: Elementwise
  defdelegate clip(e, out, tensor, min, max), to: Elementwise

  ## Parts

  defdelegate slice(e, out, tensor, starts, lengths, strides), to: Index
  defdelegate put_slice(e, out, tensor, starts, slice), to: Index
  defdelegate gather(e, out, tensor, indices, opts), to: Index
  defdelegate indexed_add(e, out, tensor, indices, updates, opts), to: Index
  defdelegate indexed_put(e, out, tensor, indices, updates, opts), to: Index

  ## Reductions and order

  @reductions [:sum, :product, :all, :any, :reduce_max, :reduce_min, :argmax, :argmin]

  @doc "The reductions that take options only."
  def reductions, do: @reductions

  for name <- @reductions do
    defdelegate unquote(name)(e, out, tensor, opts), to: Reduce
  end

  defdelegate sort(e, out, tensor, opts), to: Sort
  defdelegate argsort(e, out, tensor, opts), to: Sort

  @doc """
  A reduction by a function, or `:default` where the function is none of those that have an op of
  their own.
  """
  defdelegate reduce(e, out, tensor, acc, opts, fun), to: Reduce

  ## Windows

  @windows [:window_sum, :window_product, :window_max, :window_min]

  @doc "The window reductions that take options only."
  def windows, do: @windows

  for name <- @windows do
    defdelegate unquote(name)(e, out, tensor, window, opts), to: Window
  end

  @doc "As `reduce/6`, for windows."
  defdelegate window_reduce(e, out, tensor, acc, window, opts, fun), to: Window
  defdelegate window_scatter_max(e, out, tensor, source, init, window, opts), to: Window
  defdelegate window_scatter_min(e, out, tensor, source, init, window, opts), to: Window

  ## Products, systems and transforms

  defdelegate dot(e, out, a, contract_a, batch_a, b, contract_b, batch_b), to: Dot
  defdelegate conv(e, out, tensor, kernel, opts), to: Conv
  defdelegate triangular_solve(e, out, a, b, opts), to: Linalg
  defdelegate fft(e, out, tensor, opts), to: Fft
  defdelegate ifft(e, out, tensor, opts), to: Fft

  @doc "A block's handle or tuple of handles, or `:default` to compute it by its own definition."
  defdelegate block(e, struct, out, args), to: Block
end
