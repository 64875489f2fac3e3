defmodule Emily.QuantizedWeight do
  @moduledoc """
  A weight of a few bits an element, in groups along the last axis that share a scale.

  | mode | group size | bits | an element is |
  | --- | --- | --- | --- |
  | `"affine"` | 32, 64, 128 | 2, 3, 4, 6, 8 | `scale * q + bias` |
  | `"mxfp4"` | 32 | 4 | a float of 4 bits times a power of two |
  | `"mxfp8"` | 32 | 8 | a float of 8 bits (e4m3) times a power of two |
  | `"nvfp4"` | 16 | 4 | a float of 4 bits times one of 8 bits |

  The last three are the [microscaling formats](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf)
  of the Open Compute Project, and NVIDIA's.

  It is an `Nx.Container`, so that it can be an argument of a `defn` and part of a model's parameters:

    * `:value` - the elements of a weight `{.., rows, k}`, packed into `{.., rows, k * bits / 32}` of `{:u, 32}`
    * `:scales` - `{.., rows, k / group_size}`, of the weight's type; `{:u, 8}` in the microscaled modes
    * `:biases` - like the scales; a scalar 0 that stands for none in the microscaled modes
    * `:group_size`, `:bits`, `:mode` - see above
    * `:transpose` - whether products are with the transpose, as those of dense layers that have a row
      for each output are
  """

  alias Emily.Emitter
  alias Emily.Emitter.Eager
  alias Emily.Quantization.Scheme
  alias Nx.Tensor, as: T

  @derive {Nx.Container,
           containers: [:value, :scales, :biases], keep: [:group_size, :bits, :transpose, :mode]}
  @enforce_keys [:value, :scales, :biases, :group_size, :bits, :transpose, :mode]
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          value: Nx.Tensor.t(),
          scales: Nx.Tensor.t(),
          biases: Nx.Tensor.t(),
          group_size: pos_integer(),
          bits: pos_integer(),
          transpose: boolean(),
          mode: String.t()
        }

  @doc """
  Quantises a weight of rank 2 or more, of `{:f, 32}`, `{:f, 16}` or `{:bf, 16}`, on MLX.

  ## Options

    * `:group_size` - `64` for affine, else the mode's
    * `:bits` - `4`, for mxfp8 `8`
    * `:transpose` - `true`
    * `:mode` - `"affine"`

  Raises ArgumentError for modes, group sizes and bits other than those above, weights of another type or
  rank, and a last axis that is not divisible by the group size.
  """
  @spec from_dense(Nx.Tensor.t(), keyword()) :: t()
  def from_dense(%T{} = weight, opts \\ []) do
    opts = Keyword.validate!(opts, [:group_size, :bits, transpose: true, mode: "affine"])
    scheme = Scheme.new!(opts[:mode], opts[:group_size], opts[:bits])
    dense!(weight, scheme)

    e = Eager.for_tensors([weight])
    op = {:quantize, Scheme.attrs(scheme)}
    parts = e |> Emitter.emit_all(op, [Emitter.input(e, weight)]) |> Enum.map(&Emily.to_nx/1)
    assemble(parts, scheme, opts[:transpose])
  end

  defp dense!(%T{type: type, shape: shape} = weight, scheme) do
    unless type in [{:f, 32}, {:f, 16}, {:bf, 16}] do
      raise ArgumentError,
            "from_dense/2 requires a weight of type {:f, 32}, {:f, 16} or {:bf, 16}, got: #{inspect(type)}"
    end

    if tuple_size(shape) < 2 or weight.vectorized_axes != [] do
      raise ArgumentError,
            "from_dense/2 requires a weight of rank 2 or more that is not vectorized, got: #{inspect(shape)}"
    end

    unless rem(elem(shape, tuple_size(shape) - 1), scheme.group_size) == 0 do
      raise ArgumentError,
            "from_dense/2 requires a last axis divisible by :group_size #{scheme.group_size}, " <>
              "got: #{inspect(shape)}"
    end
  end

  defp assemble([value, scales], scheme, transpose),
    do: assemble([value, scales, no_biases()], scheme, transpose)

  defp assemble([value, scales, biases], scheme, transpose) do
    unless is_boolean(transpose) do
      raise ArgumentError, "expected :transpose to be a boolean, got: #{inspect(transpose)}"
    end

    struct!(
      __MODULE__,
      [value: value, scales: scales, biases: biases, transpose: transpose] ++ Map.to_list(scheme)
    )
  end

  defp no_biases, do: Emily.to_nx(Emily.from_binary(<<0.0::float-32-native>>, [], {:f, 32}))

  @doc """
  A weight that is quantised already, of its parts: Nx tensors or references.

  `biases` are nil in the microscaled modes.

  ## Options

    * `:group_size` - `64` for affine, else the mode's
    * `:bits` - what the shapes say of that group size
    * `:transpose` - `true`
    * `:mode` - `"affine"`

  Raises ArgumentError for parts that do not fit each other.
  """
  @spec from_parts(part, part, part | nil, keyword()) :: t()
        when part: Nx.Tensor.t() | Emily.tensor()
  def from_parts(value, scales, biases \\ nil, opts \\ []) do
    opts = Keyword.validate!(opts, [:group_size, :bits, transpose: true, mode: "affine"])
    {value, scales} = {part(value), part(scales)}
    biases = if biases, do: part(biases)
    bits = opts[:bits] || bits_of_shapes(opts[:mode], value, scales, opts[:group_size])
    scheme = Scheme.new!(opts[:mode], opts[:group_size], bits)
    Scheme.check_parts!(scheme, value, scales, biases)
    assemble(Enum.reject([value, scales, biases], &is_nil/1), scheme, opts[:transpose])
  end

  defp part(ref) when is_reference(ref), do: Emily.to_nx(ref)
  defp part(tensor), do: Nx.to_tensor(tensor)

  # A group of n elements has n bits / 32 words.
  defp bits_of_shapes("affine", %T{type: {:u, 32}, shape: value}, %T{shape: scales}, group_size)
       when tuple_size(value) > 0 and tuple_size(scales) > 0 do
    last = &elem(&1, tuple_size(&1) - 1)
    div(last.(value) * 32, last.(scales) * (group_size || Scheme.group_size("affine")))
  end

  defp bits_of_shapes(_mode, _value, _scales, _group_size), do: nil

  @doc """
  A weight of a checkpoint: `name.weight`, `name.scales` and, for affine, `name.biases` of the tensors of
  `Emily.load/1`.

  Options are those of `from_parts/4`. GGUF files have groups of 32.

      %{tensors: tensors} = Emily.load("model.gguf")
      Emily.QuantizedWeight.from_checkpoint(tensors, "blk.0.attn_q", group_size: 32)

  Raises ArgumentError for a name without the tensors of a quantised weight.
  """
  @spec from_checkpoint(%{String.t() => Emily.tensor()}, String.t(), keyword()) :: t()
  def from_checkpoint(tensors, name, opts \\ []) when is_map(tensors) and is_binary(name) do
    fetch = fn part ->
      tensors["#{name}.#{part}"] ||
        raise ArgumentError, "from_checkpoint/3 found no tensor #{inspect("#{name}.#{part}")}"
    end

    {value, scales} = {fetch.("weight"), fetch.("scales")}
    biases = if Keyword.get(opts, :mode, "affine") == "affine", do: fetch.("biases")
    from_parts(value, scales, biases, opts)
  end

  @doc """
  The dense weight, `{.., rows, k}` whatever `:transpose` says; affine ones in the type of the scales, others
  in `{:bf, 16}`.
  """
  @spec to_dense(t()) :: Nx.Tensor.t()
  def to_dense(%__MODULE__{} = weight), do: Emily.Quantization.dequantize_defn(weight)

  @doc false
  # The biases as MLX takes them.
  def biases_ref("affine", %T{} = biases), do: Emily.from_nx(biases)
  def biases_ref(_mode, _biases), do: nil
end
