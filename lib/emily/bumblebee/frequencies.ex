defmodule Emily.Bumblebee.Frequencies do
  @moduledoc false

  # The frequencies of rotary embeddings by Bumblebee's scaling strategies, as Emily.Fast.rope_with_freqs/4
  # takes them: by which a position is divided. Sequence lengths are known when a model is traced.

  @doc """
  `{frequencies, factor of the positions, factor of the result}` of a layer's options.
  """
  def new(opts, length) do
    {size, base, max_positions} = {opts[:size], opts[:base], opts[:max_positions]}

    case opts[:scaling_strategy] do
      %{type: :linear, factor: factor} ->
        {plain(size, base), 1 / factor, 1}

      %{type: :dynamic, factor: factor} when length > max_positions ->
        # Bumblebee raises the base to the power too, which the strategy's definition does not.
        stretch = factor * length / max_positions - (factor - 1)
        stretched = :math.pow(base * stretch, size / (size - 2))
        {plain(size, stretched), 1.0, 1}

      %{type: :longrope, original_max_positions: original} = strategy ->
        factors = if length > original, do: strategy.long_factor, else: strategy.short_factor
        freqs = Enum.zip_with(plain(size, base), factors, &(&1 * &2))
        {freqs, 1.0, long_factor(max_positions / original, original)}

      %{type: :llama3} = strategy ->
        {Enum.map(plain(size, base), &llama3(&1, strategy)), 1.0, 1}

      _none ->
        {plain(size, base), 1.0, 1}
    end
  end

  defp plain(size, base), do: for(i <- 0..(div(size, 2) - 1), do: :math.pow(base, 2 * i / size))

  defp long_factor(scale, _original) when scale <= 1, do: 1
  defp long_factor(scale, original), do: :math.sqrt(1 + :math.log(scale) / :math.log(original))

  # Short wavelengths stay, long ones are stretched, those between are in between.
  defp llama3(freq, %{low_frequency_factor: low, high_frequency_factor: high} = strategy) do
    wavelength = 2 * :math.pi() * freq
    original = strategy.original_max_positions

    cond do
      wavelength < original / high ->
        freq

      wavelength > original / low ->
        freq * strategy.factor

      true ->
        smooth = (original / wavelength - low) / (high - low)
        freq / ((1 - smooth) / strategy.factor + smooth)
    end
  end
end
