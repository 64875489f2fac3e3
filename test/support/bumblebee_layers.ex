defmodule Bumblebee.Layers do
  @moduledoc """
  Stands in for the module of this name: its layers call private functions of the names and arities that
  `Emily.Bumblebee.FastKernels` looks for, captured as Bumblebee captures them. What they compute is
  written down here from the definitions of the layers.
  """

  import Nx.Defn

  def rms_norm(input, opts) do
    weight =
      Axon.param("weight", fn shape -> {elem(shape, tuple_size(shape) - 1)} end,
        initializer: &spread/3
      )

    op =
      case opts[:upcast] do
        :all -> &rms_norm_impl_upcast_all/3
        _ -> &rms_norm_impl_upcast_normalization/3
      end

    layer_opts = Keyword.take(opts, [:name, :shift, :epsilon, :channel_index])
    Axon.layer(op, [input, weight], [op_name: :rms_norm] ++ layer_opts)
  end

  # Weights that differ, so that a layer that ignores them is found out.
  defp spread(shape, type, _key), do: shape |> Nx.iota(type: type) |> Nx.sin() |> Nx.add(1.5)

  def rotary_embedding(query, key, positions, mask, opts) do
    both =
      Axon.layer(&apply_rotary_embedding/5, [query, key, positions, Axon.optional(mask)], opts)

    {Axon.nx(both, &elem(&1, 0)), Axon.nx(both, &elem(&1, 1))}
  end

  def attention(query, key, value, key_mask, head_mask, bias, offset, opts) do
    {rate, opts} = Keyword.pop(opts, :dropout_rate, 0.0)
    optional = Enum.map([key_mask, head_mask, bias, offset], &Axon.optional/1)
    optional = if opts[:without_offset], do: Enum.take(optional, 3), else: optional
    op = if opts[:without_offset], do: &attention_weights_impl/6, else: &attention_weights_impl/7
    opts = Keyword.delete(opts, :without_offset)
    weights = op |> Axon.layer([query, key | optional], opts) |> Axon.dropout(rate: rate)
    {Axon.layer(&attention_output_impl/3, [weights, value], opts), weights}
  end

  def none, do: Axon.layer(fn _opts -> %Axon.None{} end, [], op_name: :none)

  ## What the layers compute

  defnp rms_norm_impl_upcast_normalization(x, weight, opts \\ []) do
    opts = keyword!(opts, shift: 0.0, epsilon: 1.0e-6, channel_index: -1, mode: :train)

    Nx.as_type(by_root_mean_square(Nx.as_type(x, :f32), opts), Nx.type(x)) *
      (weight + opts[:shift])
  end

  defnp rms_norm_impl_upcast_all(x, weight, opts \\ []) do
    opts = keyword!(opts, shift: 0.0, epsilon: 1.0e-6, channel_index: -1, mode: :train)
    by_root_mean_square(Nx.as_type(x, :f32), opts) * (Nx.as_type(weight, :f32) + opts[:shift])
  end

  defnp by_root_mean_square(x, opts) do
    x / Nx.sqrt(Nx.mean(x * x, axes: [opts[:channel_index]], keep_axes: true) + opts[:epsilon])
  end

  # Complex numbers: the first half of the features is the real part, the second the imaginary one.
  deftransformp apply_rotary_embedding(query, key, positions, mask, opts \\ []) do
    opts =
      Keyword.validate!(opts, [:size, :scaling_strategy, :mode, max_positions: 2048, base: 10_000])

    length = Nx.axis_size(if(match?(%Axon.None{}, mask), do: positions, else: mask), 1)
    {speeds, factor} = speeds(opts, length)
    angles = Nx.multiply(Nx.new_axis(positions, -1), Nx.tensor(speeds))

    turn =
      Nx.new_axis(
        Nx.complex(Nx.multiply(Nx.cos(angles), factor), Nx.multiply(Nx.sin(angles), factor)),
        2
      )

    half = div(opts[:size], 2)

    turned = fn x ->
      z =
        Nx.multiply(
          Nx.complex(x[[.., .., .., 0..(half - 1)//1]], x[[.., .., .., half..-1//1]]),
          turn
        )

      Nx.as_type(Nx.concatenate([Nx.real(z), Nx.imag(z)], axis: -1), Nx.type(x))
    end

    {turned.(query), turned.(key)}
  end

  # Radians by which a position turns each pair.
  defp speeds(%{} = opts, length) do
    plain = fn base ->
      for i <- 0..(div(opts.size, 2) - 1), do: 1 / :math.pow(base, 2 * i / opts.size)
    end

    case opts.scaling_strategy do
      nil ->
        {plain.(opts.base), 1.0}

      %{type: :linear, factor: factor} ->
        {Enum.map(plain.(opts.base), &(&1 / factor)), 1.0}

      %{type: :dynamic, factor: factor} ->
        # As Bumblebee has it: the power is of the base too.
        if length > opts.max_positions do
          stretch = factor * length / opts.max_positions - factor + 1
          {plain.(:math.pow(opts.base * stretch, opts.size / (opts.size - 2))), 1.0}
        else
          {plain.(opts.base), 1.0}
        end

      %{type: :longrope, original_max_positions: original} = strategy ->
        factors = if length > original, do: strategy.long_factor, else: strategy.short_factor
        ratio = opts.max_positions / original

        factor =
          if ratio > 1, do: :math.sqrt(1 + :math.log(ratio) / :math.log(original)), else: 1.0

        {Enum.zip_with(plain.(opts.base), factors, &(&1 / &2)), factor}

      %{type: :llama3, factor: factor, original_max_positions: original} = strategy ->
        {low, high} = {strategy.low_frequency_factor, strategy.high_frequency_factor}

        speeds =
          for speed <- plain.(opts.base) do
            turns = original * speed / (2 * :math.pi())
            kept = ((turns - low) / (high - low)) |> max(0.0) |> min(1.0)
            kept * speed + (1 - kept) * speed / factor
          end

        {speeds, 1.0}
    end
  end

  defp speeds(opts, length),
    do: opts |> Map.new() |> Map.put_new(:scaling_strategy, nil) |> speeds(length)

  deftransformp attention_weights_impl(query, key, key_mask, head_mask, bias, offset, opts \\ []) do
    opts = Keyword.validate!(opts, [:mode, :window_size, :scale, causal: false])
    {queries, keys} = {Nx.axis_size(query, 1), Nx.axis_size(key, 1)}
    scale = opts[:scale] || 1 / :math.sqrt(Nx.axis_size(query, 3))
    scores = Nx.multiply(Nx.dot(query, [3], [0], key, [3], [0]) |> per_head(query, key), scale)
    offset = if match?(%Axon.None{}, offset), do: 0, else: offset

    ahead =
      Nx.subtract(
        Nx.iota({queries, keys}, axis: 1),
        Nx.add(Nx.iota({queries, keys}, axis: 0), offset)
      )

    hidden =
      if opts[:causal],
        do: Nx.greater(ahead, 0),
        else: Nx.broadcast(Nx.tensor(0, type: :u8), {queries, keys})

    hidden =
      case opts[:window_size] do
        nil ->
          hidden

        {left, right} ->
          hidden
          |> Nx.logical_or(Nx.less(ahead, -left))
          |> Nx.logical_or(Nx.greater(ahead, right))
      end

    hidden =
      case key_mask do
        %Axon.None{} ->
          hidden

        %{shape: {_, _}} ->
          Nx.logical_or(hidden, Nx.equal(Nx.reshape(key_mask, {:auto, 1, 1, keys}), 0))

        _ ->
          Nx.logical_or(hidden, Nx.equal(key_mask, 0))
      end

    scores = if match?(%Axon.None{}, bias), do: scores, else: Nx.add(scores, bias)
    scores = Nx.select(Nx.broadcast(hidden, scores.shape), -1.0e30, scores)
    weights = Axon.Activations.softmax(scores, axis: -1)

    if match?(%Axon.None{}, head_mask),
      do: weights,
      else: Nx.multiply(weights, Nx.reshape(head_mask, {1, :auto, 1, 1}))
  end

  # {batch, queries, heads, keys, heads}: the products of a head with itself.
  defp per_head(products, query, _key) do
    heads = Nx.axis_size(query, 2)
    own = for h <- 0..(heads - 1), do: products[[.., .., h, .., h]]
    Nx.stack(own, axis: 1)
  end

  deftransformp attention_output_impl(weights, value, _opts \\ []) do
    Nx.dot(weights, [3], [0, 1], Nx.transpose(value, axes: [0, 2, 1, 3]), [2], [0, 1])
    |> Nx.transpose(axes: [0, 2, 1, 3])
  end
end
