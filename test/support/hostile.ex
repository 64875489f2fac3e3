defmodule Emily.Hostile do
  @moduledoc false
  # Random arguments for the native functions, from `:rand`: some right, some nearly so, some of any kind.

  alias Emily.Elements

  @dtypes [
    {:f, 16},
    {:f, 32},
    {:f, 64},
    {:bf, 16},
    {:s, 8},
    {:s, 16},
    {:s, 32},
    {:s, 64},
    {:u, 8},
    {:u, 16},
    {:u, 32},
    {:u, 64},
    {:c, 64},
    {:pred, 1}
  ]

  @edges [
    0,
    1,
    -1,
    2_147_483_647,
    2_147_483_648,
    -2_147_483_648,
    -2_147_483_649,
    9_223_372_036_854_775_807,
    -9_223_372_036_854_775_808,
    18_446_744_073_709_551_615,
    18_446_744_073_709_551_616
  ]

  # Attributes by the kind of their value. One map of all of them decodes as the attributes of any op.
  @integers ~w(rows cols k decimals ddof axis kth start_axis end_axis axis1 axis2 count shift offset groups
               num width num_samples dims parts)a
  @lists ~w(shape axes reps low high strides starts stops sizes slice_sizes window dilations axes_a axes_b
            padding_low padding_high kernel_dilation input_dilation)a
  @floats ~w(start stop step alpha beta loc scale eps base)a
  @booleans ~w(equal_nan keep_axes keep_axis precise reverse inclusive right sorted flip upper transpose
               traditional causal)a

  @spatial ~w(strides padding_low padding_high kernel_dilation input_dilation)a

  # Ops that have no attributes and so are atoms.
  @bare ~w(contiguous stop_gradient negative abs sign floor ceil trunc sqrt rsqrt exp expm1 log log1p log2
           log10 sin cos tan arcsin arccos arctan sinh cosh tanh arcsinh arccosh arctanh sigmoid erf erfinv
           square reciprocal logical_not bitwise_invert isnan isinf isfinite isposinf isneginf real imag
           conjugate degrees radians add subtract multiply divide floor_divide remainder quotient power
           maximum minimum logaddexp arctan2 equal not_equal less less_equal greater greater_equal
           logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor left_shift right_shift
           where clip matmul outer inner linalg_inv linalg_pinv linalg_solve linalg_det linalg_lu
           linalg_svd linalg_qr linalg_eig)a

  @doc "Terms that no native function takes anywhere, and some that are nearly right."
  def terms(worker) do
    dead = Elements.tensor([1.0], {:f, 32})
    Emily.Native.deallocate(dead)

    [
      nil,
      :atom,
      true,
      1.5,
      "binary",
      <<1::3>>,
      [],
      [-1],
      [2_147_483_648],
      [1 | 2],
      [:a],
      [[1]],
      {},
      {1, 2},
      {:f, 33},
      %{},
      self(),
      make_ref(),
      fn -> :ok end,
      dead,
      worker,
      Elements.tensor([1, 2, 3], {:s, 32}),
      Elements.tensor([], {:f, 32}, [2, 0])
      | @edges
    ]
  end

  def dtypes, do: @dtypes

  @doc "An op and its inputs, which often fit together."
  def call(names) do
    rank = pick([0, 1, 2, 2, 3, 3, 4, 5])
    {op(pick(names), rank), inputs(rank)}
  end

  defp op(name, rank) do
    case :rand.uniform(40) do
      1 -> name
      2 -> {name, term()}
      3 -> {name, Map.put(attributes(rank), pick(@integers ++ @lists), term())}
      _ when name in @bare -> name
      _ -> {name, attributes(rank)}
    end
  end

  defp inputs(rank) do
    dtype = pick(@dtypes)
    shape = shape(rank)

    case :rand.uniform(30) do
      1 ->
        term()

      _ ->
        for _ <- 1..pick([0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5])//1 do
          case :rand.uniform(20) do
            1 -> nil
            2 -> tensor(pick(@dtypes), shape(pick([0, 1, 2, 3])))
            3 -> tensor(pick(@dtypes), shape)
            4 -> tensor({:s, 32}, shape(pick([0, 1, 2])))
            5 -> tensor(dtype, [])
            6 -> tensor(dtype, Enum.reverse(shape))
            _ -> tensor(dtype, shape)
          end
        end
    end
  end

  defp shape(rank) do
    large = if rank < 4, do: [32, 64], else: []
    shape = for _ <- 1..rank//1, do: pick([0, 1, 1, 2, 2, 2, 3, 3, 4, 5 | large])
    if Enum.product(shape) > 5_000, do: shape(rank), else: shape
  end

  defp attributes(rank) do
    [
      Enum.map(@integers, &{&1, integer(rank)}),
      Enum.map(@lists, &{&1, integers(&1, rank)}),
      Enum.map(@floats, &{&1, float()}),
      Enum.map(@booleans, &{&1, :rand.uniform(2) == 1}),
      group_size: pick([16, 32, 64, 128, 0, -1]),
      bits: pick([2, 3, 4, 5, 6, 8, 0]),
      dtype: pick(@dtypes),
      mode: pick(~w(affine affine mxfp4 mxfp8 nvfp4 other)),
      equation:
        pick(~w(i,i-> ij,jk->ik ij->ji i,j->ij ...i,i ii->i -> ab ,-> ij ij,ij->j abc,abc->))
    ]
    |> List.flatten()
    |> Map.new()
  end

  @doc "A tensor with elements that are mostly small."
  def tensor(dtype, shape) do
    count = Enum.product(shape)

    values =
      case dtype do
        {:c, 64} -> for _ <- 1..count//1, do: {number(), number()}
        {:pred, 1} -> for _ <- 1..count//1, do: :rand.uniform(2) - 1
        {kind, _} when kind in [:u, :s] -> for _ <- 1..count//1, do: index()
        _ -> for _ <- 1..count//1, do: number()
      end

    Elements.tensor(values, dtype, shape)
  end

  @doc "Any term."
  def term(depth \\ 3) do
    case :rand.uniform(if depth == 0, do: 10, else: 14) do
      1 -> pick(@edges)
      2 -> :rand.uniform(10) - 5
      3 -> number()
      4 -> pick([nil, true, false, :cpu, :gpu, :cache, :memory, :exp, :add, :zzz])
      5 -> :rand.bytes(:rand.uniform(20))
      6 -> pick([<<1::3>>, "", "weights.npy", <<255, 0>>])
      7 -> make_ref()
      8 -> pick([self(), fn -> :ok end, hd(Port.list())])
      9 -> tensor(pick(@dtypes), shape(:rand.uniform(3)))
      10 -> pick(@dtypes)
      11 -> for _ <- 1..(:rand.uniform(5) - 1)//1, do: term(depth - 1)
      12 -> [term(depth - 1) | term(depth - 1)]
      13 -> List.to_tuple(for _ <- 1..(:rand.uniform(5) - 1)//1, do: term(depth - 1))
      14 -> Map.new(1..3, fn _ -> {term(depth - 1), term(depth - 1)} end)
    end
  end

  def pick(list), do: Enum.at(list, :rand.uniform(length(list)) - 1)

  defp integer(rank) do
    case :rand.uniform(40) do
      1 -> pick(@edges)
      2 -> pick([32, 64, 128, 8, 1000])
      3 -> :rand.uniform(8) - 3
      _ -> :rand.uniform(max(rank, 1) + 1) - 1
    end
  end

  # As many as there are axes, or spatial axes; distinct where they are likely to be axes.
  defp integers(name, rank) do
    case :rand.uniform(60) do
      1 -> Enum.to_list(1..40)
      2 -> pick([[1 | 2], [1.5], :none, [nil], []])
      3 -> for _ <- 1..rank//1, do: integer(rank)
      _ when name in [:axes, :axes_a, :axes_b] -> axes(rank)
      _ when name in @spatial -> for _ <- 1..(rank - pick([0, 2, 2]))//1, do: small(name)
      _ -> for _ <- 1..rank//1, do: small(name)
    end
  end

  defp axes(rank) do
    all = Enum.shuffle(Enum.to_list(0..(rank - 1)//1))
    Enum.take(all, pick([rank, rank, 1, :rand.uniform(rank + 1) - 1]))
  end

  defp small(name) when name in [:starts, :low, :high, :padding_low, :padding_high] do
    pick([0, 0, 0, 1, 1, 2])
  end

  defp small(name) when name in [:stops, :shape, :sizes], do: pick([1, 2, 3, 3, 4, 5, 0])
  defp small(_name), do: pick([1, 1, 1, 2, 2, 3])

  defp index do
    if :rand.uniform(20) == 1, do: pick(@edges), else: :rand.uniform(8) - 3
  end

  defp float, do: pick([0.0, 1.0, -1.0, 0.5, 2.0, 10_000.0, 1.0e-5, 1.0e300, 3.0, 10.0])
  defp number, do: pick([0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 1.0e4, :rand.normal()])
end
