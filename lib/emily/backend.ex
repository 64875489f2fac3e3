defmodule Emily.Backend do
  @moduledoc """
  An `Nx.Backend` on MLX.

      Nx.default_backend(Emily.Backend)
      Nx.default_backend({Emily.Backend, device: :cpu})

  Operations build lazy MLX arrays on the stream of the calling process (see `Emily.Stream`) and are
  computed when a result is read. A process without a stream computes on the default stream of the
  device that its tensors are on. Operands of other backends are copied in and stay their owner's.

  ## Options

    * `:device` - `:gpu` (default) or `:cpu`: where `Nx.tensor/2`, `Nx.backend_copy/2` and
      `Nx.backend_transfer/2` put a tensor.

  ## Types

  All types of Nx but `c128`, which MLX lacks and which raises `ArgumentError`. `f64` is computed on CPU
  streams only and raises on a GPU. The integers of 2 and 4 bits take a byte an element, `f8` and
  `f8_e4m3fn` two.

  ## Where results differ from `Nx.BinaryBackend`

  | what | here |
  | --- | --- |
  | floats beyond an integer type's range, cast to 32 or 64 signed bits | the nearest limit; elsewhere they wrap |
  | integers divided by zero | -1 (all bits set where unsigned), and the dividend as remainder |
  | integers to a negative power | 0, except for the bases 1 and -1 |
  | indices out of range | clamped in reads, where those down to the negative size count from the end; dropped in writes |
  | `clip` of NaN | NaN |
  | `fft` and its relatives | in single precision; `f64` would give `c128` and raises |
  | `qr`, `svd` | LAPACK's signs |
  | `eigh` | Nx's order, and vectors whose first component is positive |
  | `solve` of a singular matrix | raises when the result is computed; `invert` gives NaN, and so does `cholesky` of a matrix that is not positive definite |
  | `exp`, `sin`, `cos`, `erf` of `f64` | composed, since MLX has them in single precision; within a few units in the last place |

  ## Memory

  `Nx.backend_deallocate/1` gives the memory back at once, unless another tensor shares it, and
  `Nx.backend_transfer/2` to another backend does so after the copy.

  `Nx.reduce/4` and `Nx.window_reduce/5` run on MLX for functions that are one of `Nx.add/2`,
  `Nx.multiply/2`, `Nx.max/2`, `Nx.min/2` and, for `reduce`, `Nx.logical_and/2` and `Nx.logical_or/2`.
  Other functions run on `Nx.BinaryBackend` (see `Emily.Telemetry`).

  ## Pointers

  `Nx.to_pointer/2` computes the tensor and gives the address of its elements, row-major in the host's byte
  order, and their size. The memory is the tensor's own, or a copy's where the elements do not lie in
  order (a transposed tensor, say). It stays, and holds these elements, while the `:handle` of the pointer is
  in use: an opaque binary, which may be kept and sent within the VM, but whose copy (`:binary.copy/1`,
  `:erlang.term_to_binary/1`) keeps nothing; `Nx.backend_deallocate/1` does not end it. The address alone keeps nothing. It
  may be read by other code of this operating system process, and not written, for tensors share memory.
  `Nx.from_pointer/5` copies what is at the address, whoever owns it; it raises for an address that is nil, null or
  in no memory of this process, and for a `:data_size` that is not the shape's (nil is none). Both raise for other
  modes and kinds than `:local`, for the types that are kept in wider ones, and `Nx.to_pointer/2` for
  tensors on a GPU.

  ## Debugging

  `config :emily, debug_bounds_check: true` makes indices out of range raise, which otherwise are
  clamped in reads and dropped in writes. `config :emily, debug_detect_nan_inf: true` makes `Nx.dot/2`,
  `Nx.conv/3`, and the norms and the attention of `Emily.Fast` raise for a NaN or an infinity in their
  result. Both are read when Emily is compiled and
  cost a synchronisation per operation.
  """

  @behaviour Nx.Backend

  import Emily.Lowering.Narrow, only: [is_narrow: 1]

  alias Emily.Emitter
  alias Emily.Emitter.Eager
  alias Emily.{Lowering, Native, Telemetry}
  alias Emily.Lowering.{Narrow, Shape, Type}
  alias Emily.Native.{Call, Nif}
  alias Nx.Tensor, as: T

  @enforce_keys [:ref]
  defstruct [:ref]

  @type t :: %__MODULE__{ref: reference()}

  @bounds_check Application.compile_env(:emily, :debug_bounds_check, false)
  @detect_nan_inf Application.compile_env(:emily, :debug_detect_nan_inf, false)

  @impl true
  def init(opts) do
    opts = Keyword.validate!(opts, device: :gpu)

    unless opts[:device] in [:cpu, :gpu] do
      raise ArgumentError, "expected :device to be :cpu or :gpu, got: #{inspect(opts[:device])}"
    end

    opts
  end

  defp on_device(opts), do: Eager.for_device(device(opts))
  defp device(opts), do: Keyword.get(opts, :device, :gpu)

  # What a lowering returned, as the tensor of its template.
  defp finish(e, %T{type: type} = out, ref) when is_narrow(type),
    do: wrap(out, Lowering.settle(e, ref, type))

  defp finish(_e, out, ref), do: wrap(out, ref)

  defp wrap(out, ref) when is_reference(ref), do: %{out | data: %__MODULE__{ref: ref}}

  ## Creation

  @impl true
  def constant(out, number, opts) do
    e = on_device(opts)
    finish(e, out, Lowering.constant(e, out, number))
  end

  @impl true
  def iota(out, axis, opts) do
    e = on_device(opts)
    finish(e, out, Lowering.iota(e, out, axis))
  end

  @impl true
  def eye(out, opts), do: wrap(out, Lowering.eye(on_device(opts), out))

  @impl true
  def from_binary(%T{shape: shape, type: type} = out, binary, opts) do
    e = on_device(opts)
    Type.check!(e, type)
    wrap(out, Emitter.constant(e, bytes(binary), Tuple.to_list(shape), type))
  end

  defp bytes(binary) when is_binary(binary), do: binary
  defp bytes(iodata), do: :erlang.list_to_bitstring(List.wrap(iodata))

  ## References

  @doc """
  The Nx tensor of a reference, such as one of `Emily.load/1` or `Emily.Native`. Copies nothing.

  Booleans, which Nx lacks, become `{:u, 8}`.
  """
  @spec from_ref(Emily.tensor()) :: Nx.Tensor.t()
  def from_ref(ref) when is_reference(ref) do
    type = Emily.dtype(ref)
    out = ref |> Emily.shape() |> List.to_tuple() |> Nx.template(nx_type(type))
    tensor = wrap(out, ref)

    if type == nx_type(type) do
      tensor
    else
      e = Eager.for_tensors([tensor])
      wrap(out, Type.astype(e, ref, nx_type(type)))
    end
  end

  defp nx_type({:pred, 1}), do: {:u, 8}
  defp nx_type(type), do: type

  @doc """
  The reference of a tensor, copied in from other backends. The integers of 2 and 4 bits have a byte an
  element there, `f8` and `f8_e4m3fn` two.
  """
  @spec to_ref(Nx.Tensor.t()) :: Emily.tensor()
  def to_ref(%T{vectorized_axes: []} = tensor),
    do: Emitter.input(Eager.for_tensors([tensor]), tensor)

  def to_ref(%T{} = tensor), do: tensor |> Nx.devectorize() |> to_ref()

  ## Transfer

  @impl true
  def to_binary(%T{shape: shape, type: {_, bits} = type} = tensor, limit) do
    e = Eager.for_tensors([tensor])
    ref = first_elements(e, Emitter.input(e, tensor), shape, limit)

    Telemetry.span([:emily, :to_binary], %{shape: shape, dtype: type}, fn ->
      binary = e.worker |> Call.to_binary(ref) |> packed(type)
      size = limit * bits
      binary = if bit_size(binary) > size, do: first_bits(binary, size), else: binary
      {binary, %{shape: shape, dtype: type, byte_size: byte_size(binary)}}
    end)
  end

  defp packed(binary, type) when is_narrow(type), do: Narrow.pack(binary, type)
  defp packed(binary, _type), do: binary

  defp first_bits(binary, size) do
    <<first::bitstring-size(size), _::bitstring>> = binary
    first
  end

  # Rows first, so that no more than the rows in question is copied into order.
  defp first_elements(e, ref, shape, limit) do
    axis = Enum.find_index(Tuple.to_list(shape), &(&1 > 1))

    if axis == nil or limit >= Tuple.product(shape) do
      ref
    else
      row = div(Tuple.product(shape), elem(shape, axis))
      Shape.slice_axis(e, ref, shape, axis, 0, div(limit + row - 1, row))
    end
  end

  @impl true
  def backend_copy(tensor, Nx.Tensor, _opts), do: tensor

  # The copy shares the data, and has a life of its own.
  def backend_copy(tensor, __MODULE__, opts) do
    e = Eager.on_device(device(opts))
    wrap(tensor, Emitter.emit(e, :stop_gradient, [Emitter.input(e, tensor)]))
  end

  def backend_copy(tensor, backend, opts) do
    backend.from_binary(tensor, to_binary(tensor, Nx.size(tensor)), opts)
  end

  @impl true
  def backend_transfer(tensor, Nx.Tensor, _opts), do: tensor

  def backend_transfer(%T{data: %__MODULE__{ref: ref}} = tensor, __MODULE__, opts) do
    if Eager.on_device?(ref, device(opts)), do: tensor, else: move(tensor, __MODULE__, opts)
  end

  def backend_transfer(tensor, backend, opts), do: move(tensor, backend, opts)

  defp move(tensor, backend, opts) do
    copy = backend_copy(tensor, backend, opts)
    backend_deallocate(tensor)
    copy
  end

  @impl true
  def backend_deallocate(%T{data: %__MODULE__{ref: ref}}) do
    if Native.deallocate(ref), do: :ok, else: :already_deallocated
  end

  @impl true
  def to_batched(out, %T{shape: shape} = tensor, opts) do
    e = Eager.for_tensors([tensor])
    ref = Emitter.input(e, tensor)
    count = elem(shape, 0)
    size = elem(out.shape, 0)
    rest = rem(count, size)
    whole = div(count, size)
    batch = fn e, from, to -> Shape.slice_axis(e, ref, shape, 0, from, to) end

    indices =
      if rest != 0 and opts[:leftover] == :repeat, do: 0..whole, else: 0..(whole - 1)//1

    # The stream may be consumed in another process, with another Emily.Stream.
    Stream.map(indices, fn
      ^whole ->
        e = Eager.for_tensors([tensor])
        parts = [batch.(e, whole * size, count), batch.(e, 0, size - rest)]
        wrap(out, Emitter.emit(e, {:concatenate, %{axis: 0}}, parts))

      index ->
        wrap(out, batch.(Eager.for_tensors([tensor]), index * size, (index + 1) * size))
    end)
  end

  @impl true
  def inspect(%T{} = tensor, %Inspect.Opts{limit: limit} = opts) do
    binary = Nx.to_binary(tensor, if(limit == :infinity, do: [], else: [limit: limit + 1]))
    Nx.Backend.inspect(tensor, binary, opts)
  end

  ## Pointers

  @impl true
  def to_pointer(%T{type: type} = tensor, opts) do
    local!("to_pointer", opts[:mode] || :local)
    Keyword.validate!(opts, [:mode])
    as_stored!("to_pointer", type)
    e = Eager.for_tensors([tensor])
    ref = Emitter.input(e, tensor)

    if Call.now(Nif.device(ref)) == :gpu do
      raise ArgumentError,
            "to_pointer: expected a tensor on the CPU, got one on the GPU: copy it with " <>
              "Nx.backend_copy(tensor, {Emily.Backend, device: :cpu}) first"
    end

    {address, size, keeper} = Call.pointer(e.worker, ref)
    %Nx.Pointer{kind: :local, address: address, data_size: size, handle: keeper}
  end

  @impl true
  def from_pointer(%Nx.Pointer{} = pointer, type, shape, backend_opts, opts) do
    local!("from_pointer", pointer.kind)
    opts = Keyword.validate!(opts, [:names])
    as_stored!("from_pointer", type)
    e = on_device(init(backend_opts))
    Type.check!(e, type)
    {_, bits} = type
    size = div(Tuple.product(shape) * bits, 8)

    if pointer.data_size not in [nil, size] do
      raise ArgumentError,
            "from_pointer: expected a data_size of #{size} bytes for shape #{inspect(shape)} of " <>
              "#{Nx.Type.to_string(type)}, got: #{inspect(pointer.data_size)}"
    end

    sizes = Tuple.to_list(shape)
    ref = Nif.from_pointer(pointer.address, size, sizes, type, Emitter.device(e))
    wrap(Nx.template(shape, type, opts), Call.now(ref))
  end

  def from_pointer(other, _type, _shape, _backend_opts, _opts) do
    raise ArgumentError, "from_pointer: expected an Nx.Pointer, got: #{inspect(other)}"
  end

  defp local!(_function, :local), do: :ok

  defp local!(function, other) do
    raise ArgumentError,
          "#{function}: expected the mode :local, the only one that Emily.Backend offers, " <>
            "got: #{inspect(other)}"
  end

  # The bytes of the others are not Nx's.
  defp as_stored!(function, type) when is_narrow(type) do
    raise ArgumentError,
          "#{function}: expected a type whose elements are in memory as Nx has them, got " <>
            "#{Nx.Type.to_string(type)}, which MLX keeps in a wider type"
  end

  defp as_stored!(_function, _type), do: :ok

  ## Operations of one tensor

  for name <- Lowering.unary() ++ [:as_type, :bitcast, :reshape] do
    @impl true
    def unquote(name)(out, tensor) do
      e = Eager.for_tensors([tensor])
      finish(e, out, Lowering.unquote(name)(e, out, tensor))
    end
  end

  for name <-
        Lowering.reductions() ++ [:squeeze, :transpose, :reverse, :sort, :argsort, :fft, :ifft] do
    @impl true
    def unquote(name)(out, tensor, opts) do
      e = Eager.for_tensors([tensor])
      finish(e, out, Lowering.unquote(name)(e, out, tensor, opts))
    end
  end

  for name <- Lowering.windows() ++ [:broadcast] do
    @impl true
    def unquote(name)(out, tensor, shape, opts) do
      e = Eager.for_tensors([tensor])
      finish(e, out, Lowering.unquote(name)(e, out, tensor, shape, opts))
    end
  end

  ## Operations of several tensors

  for name <- Lowering.binary() do
    @impl true
    def unquote(name)(out, a, b) do
      e = Eager.for_tensors([a, b])
      finish(e, out, Lowering.unquote(name)(e, out, a, b))
    end
  end

  for name <- [:concatenate, :stack] do
    @impl true
    def unquote(name)(out, tensors, axis) do
      e = Eager.for_tensors(tensors)
      finish(e, out, Lowering.unquote(name)(e, out, tensors, axis))
    end
  end

  for name <- [:select, :clip] do
    @impl true
    def unquote(name)(out, a, b, c) do
      e = Eager.for_tensors([a, b, c])
      finish(e, out, Lowering.unquote(name)(e, out, a, b, c))
    end
  end

  for name <- [:pad, :triangular_solve] do
    @impl true
    def unquote(name)(out, a, b, opts) do
      e = Eager.for_tensors([a, b])
      finish(e, out, Lowering.unquote(name)(e, out, a, b, opts))
    end
  end

  for name <- [:window_scatter_max, :window_scatter_min] do
    @impl true
    def unquote(name)(out, tensor, source, init, window, opts) do
      e = Eager.for_tensors([tensor, source, init])
      finish(e, out, Lowering.unquote(name)(e, out, tensor, source, init, window, opts))
    end
  end

  @impl true
  def slice(out, tensor, starts, lengths, strides) do
    e = Eager.for_tensors([tensor])
    finish(e, out, Lowering.slice(e, out, tensor, starts, lengths, strides))
  end

  @impl true
  def put_slice(out, tensor, starts, slice) do
    e = Eager.for_tensors([tensor, slice])
    finish(e, out, Lowering.put_slice(e, out, tensor, starts, slice))
  end

  @impl true
  def dot(out, a, contract_a, batch_a, b, contract_b, batch_b) do
    e = Eager.for_tensors([a, b])
    ref = Lowering.dot(e, out, a, contract_a, batch_a, b, contract_b, batch_b)
    finish(e, out, finite!(:dot, ref, e))
  end

  @impl true
  def conv(out, tensor, kernel, opts) do
    e = Eager.for_tensors([tensor, kernel])
    finish(e, out, finite!(:conv, Lowering.conv(e, out, tensor, kernel, opts), e))
  end

  @impl true
  def gather(out, tensor, indices, opts) do
    e = Eager.for_tensors([tensor, indices])
    in_bounds!(:gather, e, tensor, indices, opts[:axes])
    finish(e, out, Lowering.gather(e, out, tensor, indices, opts))
  end

  for name <- [:indexed_add, :indexed_put] do
    @impl true
    def unquote(name)(out, target, indices, updates, opts) do
      e = Eager.for_tensors([target, indices, updates])
      in_bounds!(unquote(name), e, target, indices, opts[:axes])
      finish(e, out, Lowering.unquote(name)(e, out, target, indices, updates, opts))
    end
  end

  ## Functions of the user's

  @impl true
  def reduce(out, tensor, acc, opts, fun) do
    e = Eager.for_tensors([tensor, acc])

    case Lowering.reduce(e, out, tensor, acc, opts, fun) do
      :default -> fallback(:reduce, out, [tensor, acc], [opts, fun])
      ref -> finish(e, out, ref)
    end
  end

  @impl true
  def window_reduce(out, tensor, acc, window, opts, fun) do
    e = Eager.for_tensors([tensor, acc])

    case Lowering.window_reduce(e, out, tensor, acc, window, opts, fun) do
      :default -> fallback(:window_reduce, out, [tensor, acc], [window, opts, fun])
      ref -> finish(e, out, ref)
    end
  end

  # The function's own constants go to the default backend, which must be the one that runs it.
  defp fallback(op, out, tensors, rest) do
    Telemetry.fallback(op, tensors, fn ->
      result =
        Nx.with_default_backend(Nx.BinaryBackend, fn ->
          tensors = Enum.map(tensors, &Nx.backend_copy(&1, Nx.BinaryBackend))
          apply(Nx.BinaryBackend, op, [out | tensors] ++ rest)
        end)

      wrap(out, Emitter.input(Eager.for_tensors(tensors), result))
    end)
  end

  ## Blocks

  @impl true
  def block(struct, out, args, fun) do
    tensors = Enum.filter(args, &is_struct(&1, T))
    e = Eager.for_tensors(tensors)
    indices_in_bounds!(struct, e, tensors)

    case Lowering.block(e, struct, out, args) do
      :default -> apply(fun, [struct | args])
      refs when is_tuple(refs) -> finish_each(e, out, refs)
      ref -> finish(e, out, finite_block!(struct, ref, e))
    end
  end

  defp finish_each(e, outs, refs) do
    Enum.zip_with(Tuple.to_list(outs), Tuple.to_list(refs), &finish(e, &1, &2))
    |> List.to_tuple()
  end

  ## Debug checks

  if @detect_nan_inf do
    defp finite!(op, ref, e) do
      Emily.Backend.Checks.check_nan_inf!(op, ref, e.worker)
      ref
    end

    @checked_blocks %{
      Emily.Fast.Block.RMSNorm => :rms_norm,
      Emily.Fast.Block.LayerNorm => :layer_norm,
      Emily.Fast.Block.SDPA => :scaled_dot_product_attention,
      Emily.Fast.Block.SDPAWithSinks => :scaled_dot_product_attention,
      Emily.Fast.Block.SDPAWithMask => :scaled_dot_product_attention,
      Emily.Fast.Block.SDPAWithMaskAndSinks => :scaled_dot_product_attention
    }

    defp finite_block!(%module{}, ref, e) when is_map_key(@checked_blocks, module),
      do: finite!(@checked_blocks[module], ref, e)

    defp finite_block!(_struct, ref, _e), do: ref
  else
    defp finite!(_op, ref, _e), do: ref
    defp finite_block!(_struct, ref, _e), do: ref
  end

  if @bounds_check do
    defp in_bounds!(op, e, tensor, indices, axes) do
      rank = tuple_size(indices.shape)
      ref = Emitter.input(e, indices)

      columns =
        for at <- 0..(length(axes) - 1)//1,
            do: Shape.slice_axis(e, ref, indices.shape, rank - 1, at, at + 1)

      Emily.Backend.Checks.check_bounds!(op, tensor.shape, columns, axes, e.worker)
    end

    defp indices_in_bounds!(%Nx.Block.Take{axis: axis}, e, [tensor, indices]),
      do: check_indices!(:take, e, tensor, indices, axis)

    defp indices_in_bounds!(%Nx.Block.TakeAlongAxis{axis: axis}, e, [tensor, indices]),
      do: check_indices!(:take_along_axis, e, tensor, indices, axis)

    defp indices_in_bounds!(_struct, _e, _tensors), do: :ok

    defp check_indices!(op, e, tensor, indices, axis) do
      refs = [Emitter.input(e, indices)]
      Emily.Backend.Checks.check_bounds!(op, tensor.shape, refs, [axis], e.worker)
    end
  else
    defp in_bounds!(_op, _e, _tensor, _indices, _axes), do: :ok
    defp indices_in_bounds!(_struct, _e, _tensors), do: :ok
  end
end
