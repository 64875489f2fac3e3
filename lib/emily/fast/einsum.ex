defmodule Emily.Fast.Block.Einsum do
  @moduledoc false
  # See Emily.Fast.Block.RMSNorm.
  defstruct [:equation]

  defdelegate lower(e, block, out, args), to: Emily.Fast.Einsum
end

defmodule Emily.Fast.Einsum do
  @moduledoc false

  # Emily.Fast.einsum/2: an equation as lists of letters, as products of two tensors at a time, and as
  # MLX's op.

  import Emily.Fast.Operand

  alias Emily.Emitter
  alias Emily.Fast.Block
  alias Emily.Lowering.Type

  @op "einsum"
  @letters Enum.map(Enum.concat(?a..?z, ?A..?Z), &<<&1>>)

  def call(equation, tensors) do
    tensors = Enum.map(tensors, &(&1 |> Nx.to_tensor() |> unnamed()))
    {terms, result} = parse(equation, tensors)
    sizes = sizes(terms, tensors, equation)

    case Enum.reject(result, &is_map_key(sizes, &1)) ++ (result -- Enum.uniq(result)) do
      [] -> :ok
      _ -> wrong!(equation, "a result of letters of the tensors, each once")
    end

    type = tensors |> Enum.map(& &1.type) |> Enum.reduce(&Nx.Type.merge/2)
    shape = result |> Enum.map(&sizes[&1]) |> List.to_tuple()
    default = &composed(&1, terms, result, type)

    if length(tensors) > most_tensors() do
      default.(tensors)
    else
      text = Enum.map_join(terms, ",", &Enum.join/1) <> "->" <> Enum.join(result)
      block(%Block.Einsum{equation: text}, tensors, {shape, type}, default)
    end
  end

  ## The equation

  defp parse(equation, tensors) do
    {left, right} =
      case equation |> String.replace(" ", "") |> String.split("->") do
        [left] -> {left, nil}
        [left, right] -> {left, right}
        _ -> wrong!(equation, "one arrow")
      end

    terms = left |> String.split(",") |> Enum.map(&term(&1, equation))

    if length(terms) != length(tensors),
      do: wrong!(equation, "one list of letters for each of #{length(tensors)} tensors")

    hidden =
      Enum.zip_with(terms, tensors, fn term, tensor ->
        rest = tuple_size(tensor.shape) - length(letters(term))

        if rest == 0 or (rest > 0 and :rest in term),
          do: rest,
          else:
            wrong!(
              equation,
              "#{tuple_size(tensor.shape)} letters for a tensor of shape #{inspect(tensor.shape)}"
            )
      end)

    # Letters for the axes of the longest ellipsis; a shorter one stands for the last of them.
    used = String.graphemes(equation)
    longest = Enum.max(hidden)
    unused = Enum.take(@letters -- used, longest)
    if length(unused) < longest, do: wrong!(equation, "letters for the axes of the ellipsis")

    written =
      Enum.zip_with(terms, hidden, fn term, count -> expand(term, Enum.take(unused, -count)) end)

    result =
      if right do
        right |> term(equation) |> expand(unused)
      else
        all = Enum.flat_map(terms, &letters/1)
        once = for {letter, 1} <- Enum.frequencies(all), do: letter
        unused ++ Enum.sort(once)
      end

    {written, result}
  end

  # Letters, and :rest for an ellipsis.
  defp term(text, equation) do
    parts = text |> String.split("...") |> Enum.map(&String.graphemes/1)

    if length(parts) > 2 or Enum.any?(Enum.concat(parts), &(&1 not in @letters)),
      do: wrong!(equation, "letters, one ellipsis a list, commas and an arrow")

    parts |> Enum.intersperse([:rest]) |> Enum.concat()
  end

  defp letters(term), do: List.delete(term, :rest)
  defp expand(term, hidden), do: Enum.flat_map(term, &if(&1 == :rest, do: hidden, else: [&1]))

  # A size of 1 fits any other, but not within one tensor.
  defp sizes(terms, tensors, equation) do
    for {term, tensor} <- Enum.zip(terms, tensors), reduce: %{} do
      sizes ->
        own = Enum.zip(term, Tuple.to_list(tensor.shape))

        Enum.reduce(own, sizes, fn {letter, size}, sizes ->
          common = Map.get(sizes, letter, size)
          alone? = Enum.all?(own, fn {other, got} -> other != letter or got == size end)

          if alone? and (size == common or size == 1 or common == 1),
            do: Map.put(sizes, letter, max(size, common)),
            else: wrong!(equation, "one size for #{letter}, not #{common} and #{size}")
        end)
    end
  end

  defp wrong!(equation, expected) do
    raise ArgumentError, "#{@op}: expected #{expected}, got: #{inspect(equation)}"
  end

  ## The composition

  defp composed(tensors, terms, result, type) do
    [first | rest] =
      Enum.zip_with(tensors, terms, fn tensor, term ->
        {widen(tensor, wide(type)), term} |> diagonals() |> without_ones()
      end)

    {product, letters} =
      for {next, later} <- Enum.zip(rest, later_letters(rest, result)), reduce: first do
        product -> multiply(sum_out(product, [elem(next, 1) | later]), next, later)
      end

    {product, letters} = sum_out({product, letters}, [result])
    # A letter whose sizes are all 1 went with them.
    missing = result -- letters
    product = Nx.reshape(product, append(product.shape, Enum.map(missing, fn _ -> 1 end)))
    order = for letter <- result, do: Enum.find_index(letters ++ missing, &(&1 == letter))
    product |> Nx.transpose(axes: order) |> Nx.as_type(type)
  end

  # What is still needed after each of the products.
  defp later_letters(rest, result) do
    for index <- 1..length(rest)//1,
        do: [result | rest |> Enum.drop(index) |> Enum.map(&elem(&1, 1))]
  end

  # A letter that stands twice in a list means the elements with equal indices.
  defp diagonals({tensor, term}) do
    case term -- Enum.uniq(term) do
      [] ->
        {tensor, term}

      [letter | _] ->
        [one, other] =
          term
          |> Enum.with_index()
          |> Enum.filter(&(elem(&1, 0) == letter))
          |> Enum.take(2)
          |> Enum.map(&elem(&1, 1))

        equal = Nx.equal(Nx.iota(tensor.shape, axis: one), Nx.iota(tensor.shape, axis: other))
        kept = Nx.select(equal, tensor, Nx.tensor(0, type: tensor.type))
        summed = Nx.sum(kept, axes: [other])
        diagonals({Nx.as_type(summed, tensor.type), List.delete_at(term, other)})
    end
  end

  # An axis of 1 makes no difference to a product.
  defp without_ones({tensor, term}) do
    ones = for {_, at} <- Enum.with_index(term), Nx.axis_size(tensor, at) == 1, do: at

    {Nx.squeeze(tensor, axes: ones),
     Enum.reject(Enum.with_index(term), &(elem(&1, 1) in ones)) |> Enum.map(&elem(&1, 0))}
  end

  # Sums over the axes whose letters stand in none of the lists.
  defp sum_out({tensor, letters}, lists) do
    axes =
      for {letter, at} <- Enum.with_index(letters), not Enum.any?(lists, &(letter in &1)), do: at

    if axes == [],
      do: {tensor, letters},
      else:
        {tensor |> Nx.sum(axes: axes) |> Nx.as_type(tensor.type),
         Enum.reject(Enum.with_index(letters), &(elem(&1, 1) in axes)) |> Enum.map(&elem(&1, 0))}
  end

  defp multiply({a, left}, {b, right}, later) do
    {b, right} = sum_out({b, right}, [left | later])
    common = Enum.filter(left, &(&1 in right))

    {batch, contracted} =
      Enum.split_with(common, fn letter -> Enum.any?(later, &(letter in &1)) end)

    at = fn term, letters -> Enum.map(letters, fn l -> Enum.find_index(term, &(&1 == l)) end) end

    # Nx wants the batch axes in front.
    {a, left} = in_front({a, left}, batch)
    {b, right} = in_front({b, right}, batch)
    axes = Enum.to_list(0..(length(batch) - 1)//1)
    product = Nx.dot(a, at.(left, contracted), axes, b, at.(right, contracted), axes)
    {product, batch ++ (left -- common) ++ (right -- common)}
  end

  defp in_front({tensor, letters}, first) do
    order = first ++ (letters -- first)
    axes = for letter <- order, do: Enum.find_index(letters, &(&1 == letter))
    {Nx.transpose(tensor, axes: axes), order}
  end

  defp append(shape, sizes), do: List.to_tuple(Tuple.to_list(shape) ++ sizes)

  ## MLX's op

  # MLX multiplies matrices of floats only.
  def lower(_e, _block, %{type: {kind, _}}, _args) when kind in [:s, :u], do: :default

  def lower(e, %{equation: equation}, out, args) do
    type = if half?(out.type) and Emitter.device(e) == :cpu, do: {:f, 32}, else: out.type
    inputs = Enum.map(args, &Type.operand(e, &1, type))
    Type.cast(e, Emitter.emit(e, {:einsum, %{equation: equation}}, inputs), type, out.type)
  end

  defp half?(type), do: wide(type) != type
end
