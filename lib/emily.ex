defmodule Emily do
  @moduledoc """
  Machine learning from Elixir on Apple's MLX: on Metal, on NVIDIA GPUs and on plain CPUs.

  `Emily.Backend` is a backend for Nx, and this module is the layer below it: tensors by reference,
  without Nx.

      iex> tensor = Emily.from_binary(<<1, 2, 3>>, [3], {:u, 8})
      iex> {Emily.shape(tensor), Emily.dtype(tensor)}
      {[3], {:u, 8}}
      iex> Emily.to_binary(tensor)
      <<1, 2, 3>>

  `Emily.Native` has the operations, `Emily.Stream` lets processes compute side by side, and
  `Emily.Memory` tells what MLX holds.

  A dtype is an Nx type: `{:f, 16 | 32 | 64}`, `{:bf, 16}`, `{:s | :u, 8 | 16 | 32 | 64}`, `{:c, 64}`, or
  `{:pred, 1}` for booleans of one byte each. `{:f, 64}` computes on CPU streams only.
  """

  alias Emily.Native.{Call, Nif}

  @type tensor :: reference
  @type dtype :: {:f | :bf | :s | :u | :c | :pred, pos_integer}

  # Copying so much takes about as long as a NIF may take on a scheduler.
  @large 262_144

  @doc """
  Makes a tensor with a copy of `binary`, which holds the elements row-major in native byte order.

  Raises ArgumentError for a binary of the wrong length ("binary size mismatch"), an "unsupported dtype",
  and sizes that are negative or no int32.
  """
  @spec from_binary(binary, [non_neg_integer], dtype) :: tensor
  def from_binary(binary, shape, dtype) when is_binary(binary) and is_list(shape) do
    from_binary(binary, shape, dtype, Emily.Stream.device(Emily.Stream.worker()))
  end

  @doc false
  # The same, for a device of the caller's choice.
  def from_binary(binary, shape, dtype, device) do
    Call.now(
      if byte_size(binary) > @large,
        do: Nif.from_large_binary(binary, shape, dtype, device),
        else: Nif.from_binary(binary, shape, dtype, device)
    )
  end

  @doc """
  The elements of a tensor, row-major in native byte order; computes it if it is not computed yet.

  On a CPU the binary points into the tensor's buffer, which it keeps alive: nothing is copied, unless
  the elements do not lie in order. Emits the span `[:emily, :to_binary]`.
  """
  @spec to_binary(tensor) :: binary
  def to_binary(tensor) do
    metadata = %{shape: shape(tensor), dtype: dtype(tensor)}

    Emily.Telemetry.span([:emily, :to_binary], metadata, fn ->
      binary = Call.to_binary(Emily.Stream.worker(), tensor)
      {binary, Map.put(metadata, :byte_size, byte_size(binary))}
    end)
  end

  @doc """
  The sizes of a tensor's axes. Computes nothing.
  """
  @spec shape(tensor) :: [non_neg_integer]
  def shape(tensor), do: Call.now(Nif.shape(tensor))

  @doc """
  The type of a tensor's elements. Computes nothing.
  """
  @spec dtype(tensor) :: dtype
  def dtype(tensor), do: Call.now(Nif.dtype(tensor))

  @doc """
  Computes a tensor and waits for it. Emits the span `[:emily, :eval]`.
  """
  @spec eval(tensor) :: :ok
  def eval(tensor) do
    Emily.Telemetry.span([:emily, :eval], %{}, fn ->
      {Call.eval(Emily.Stream.worker(), [tensor]), %{}}
    end)
  end

  @doc """
  Has tensors computed and does not wait for it, so that the caller can prepare what comes next meanwhile.
  Whoever reads one of them waits, and is told where there was no memory for it.

  What can fail while it is computed, such as the inverse of a matrix, is waited for. Where other work waits
  for the stream, this waits for that. Emits the span `[:emily, :async_eval]`.
  """
  @spec async_eval([tensor]) :: :ok
  def async_eval(tensors) when is_list(tensors) do
    Emily.Telemetry.span([:emily, :async_eval], %{}, fn ->
      {Call.async_eval(Emily.Stream.worker(), tensors), %{}}
    end)
  end

  @doc """
  Loads a checkpoint: a `.gguf`, `.safetensors` or `.npy` file.

  Returns its tensors and its metadata by name. The tensor of an `.npy` file is called `"array"`. Metadata
  are texts, lists of texts, or tensors of numbers (scalars or vectors). The tensors of safetensors
  and npy files are read from the file when they are first computed with, those of GGUF files at once;
  quantised GGUF weights come as MLX has them: `NAME.weight` packed in u32, `NAME.scales`, `NAME.biases`.

  Raises ArgumentError for another file name and RuntimeError for a file that cannot be read.
  """
  @spec load(Path.t()) :: %{
          tensors: %{String.t() => tensor},
          metadata: %{String.t() => String.t() | [String.t()] | tensor}
        }
  def load(path) do
    {tensors, metadata} = Call.load(Emily.Stream.worker(), Path.expand(path))
    %{tensors: Map.new(tensors), metadata: Map.new(metadata)}
  end

  @doc """
  The Nx tensor of a tensor by reference, which shares its data: needs Nx.

  Booleans, which Nx lacks, become `{:u, 8}`.
  """
  @spec to_nx(tensor) :: struct
  def to_nx(tensor), do: Emily.Backend.from_ref(tensor)

  @doc """
  The reference of an Nx tensor, which shares its data; tensors of other backends are copied in.

  The integers of 2 and 4 bits have a byte an element there, `f8` and `f8_e4m3fn` two.
  """
  @spec from_nx(struct) :: tensor
  def from_nx(tensor), do: Emily.Backend.to_ref(tensor)
end
