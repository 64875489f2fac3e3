defmodule Emily.Quantization.Scheme do
  @moduledoc false

  # The combinations of mode, group size and bits that there are, and how the parts of a weight fit.

  alias Nx.Tensor, as: T

  @pinned %{"mxfp4" => {32, 4}, "mxfp8" => {32, 8}, "nvfp4" => {16, 4}}
  @modes ["affine" | Map.keys(@pinned)]
  @bits [2, 3, 4, 6, 8]
  @group_sizes [32, 64, 128]

  def bits, do: @bits
  def group_size("affine"), do: 64

  @doc "A scheme, as the fields of a weight; nil stands for the mode's default."
  def new!(mode, group_size, bits) do
    mode in @modes || refuse!(":mode must be one of #{inspect(@modes)}", mode)
    {default_group_size, default_bits} = Map.get(@pinned, mode, {group_size("affine"), 4})
    {group_size, bits} = {group_size || default_group_size, bits || default_bits}
    bits in @bits || refuse!(":bits must be one of #{inspect(@bits)}", bits)

    case @pinned do
      %{^mode => {^group_size, ^bits}} ->
        :ok

      %{^mode => {pinned_size, pinned_bits}} ->
        refuse!(
          "mode #{mode} requires group_size: #{pinned_size} and bits: #{pinned_bits}",
          {group_size, bits}
        )

      _affine ->
        group_size in @group_sizes ||
          refuse!(":group_size must be one of #{inspect(@group_sizes)}", group_size)
    end

    %{mode: mode, group_size: group_size, bits: bits}
  end

  @doc "What the ops take."
  def attrs(scheme), do: Map.take(scheme, [:mode, :group_size, :bits])

  def check_parts!(%{mode: mode} = scheme, %T{} = value, %T{} = scales, biases) do
    value.type == {:u, 32} || refuse!("the packed value must be of type {:u, 32}", value.type)

    tuple_size(value.shape) >= 2 ||
      refuse!("the packed value must be of rank 2 or more", value.shape)

    {rows, [words]} = value.shape |> Tuple.to_list() |> Enum.split(-1)
    k = div(words * 32, scheme.bits)

    if rem(words * 32, scheme.bits) != 0 or rem(k, scheme.group_size) != 0 do
      refuse!(
        "the packed value must hold groups of #{scheme.group_size} elements of #{scheme.bits} bits",
        value.shape
      )
    end

    groups = List.to_tuple(rows ++ [div(k, scheme.group_size)])

    scales.shape == groups ||
      refuse!("the scales must have the shape #{inspect(groups)}", scales.shape)

    case {mode, biases} do
      {"affine", %T{shape: ^groups} = biases} ->
        for {name, part} <- [scales: scales, biases: biases],
            part.type not in [{:f, 32}, {:f, 16}, {:bf, 16}],
            do: refuse!("the #{name} must be of type {:f, 32}, {:f, 16} or {:bf, 16}", part.type)

      {"affine", %T{shape: shape}} ->
        refuse!("the biases must have the shape #{inspect(groups)}", shape)

      {"affine", nil} ->
        refuse!("affine weights must have biases", nil)

      {_, nil} ->
        scales.type == {:u, 8} || refuse!("the scales must be of type {:u, 8}", scales.type)

      {mode, _} ->
        refuse!("biases must be nil in mode #{mode}", :biases)
    end

    :ok
  end

  defp refuse!(expected, got), do: raise(ArgumentError, "#{expected}, got: #{inspect(got)}")
end
