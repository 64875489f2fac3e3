defmodule Emily.Emitter do
  @moduledoc false

  # Where a lowering puts the MLX operations that it is made of. `Emily.Emitter.Eager` builds each
  # on the stream of the calling process; another emitter may write them down for later.
  #
  # A handle stands for one array and carries nothing that a lowering could ask for: the lowering
  # knows shapes and types from Nx's templates. Dispatch is on the emitter's struct, since it is on
  # the path of every operation and a protocol costs more.

  import Emily.Lowering.Narrow, only: [is_narrow: 1]

  alias Emily.Lowering.{Narrow, Type}
  alias Nx.Tensor, as: T

  @type t :: struct()
  @type handle :: term()
  @type op :: atom() | {atom(), map()}

  @doc "Emits an op with one output."
  @callback emit(t, op, [handle | nil]) :: handle

  @doc "Emits an op with several outputs."
  @callback emit_all(t, op, [handle | nil]) :: [handle]

  @doc "Emits an array of known elements, in native byte order."
  @callback constant(t, binary(), shape :: [non_neg_integer()], Nx.Type.t()) :: handle

  @doc "The handle of a tensor that an operation takes; a tensor of another backend is copied in."
  @callback input(t, Nx.Tensor.t()) :: handle

  @doc "The device that computes."
  @callback device(t) :: :cpu | :gpu

  @spec emit(t, op, [handle | nil]) :: handle
  def emit(%module{} = e, op, inputs), do: module.emit(e, op, inputs)

  @spec emit_all(t, op, [handle | nil]) :: [handle]
  def emit_all(%module{} = e, op, inputs), do: module.emit_all(e, op, inputs)

  @spec constant(t, binary(), [non_neg_integer()], Nx.Type.t()) :: handle
  def constant(e, binary, shape, type) when is_narrow(type),
    do: constant(e, Narrow.unpack(binary, type), shape, Narrow.storage(type))

  def constant(%module{} = e, binary, shape, type), do: module.constant(e, binary, shape, type)

  @spec input(t, T.t()) :: handle
  def input(%module{} = e, tensor), do: module.input(e, tensor)

  @spec device(t) :: :cpu | :gpu
  def device(%module{} = e), do: module.device(e)

  @doc "Emits a scalar; the number may be one of Nx's non-finite atoms."
  @spec scalar(t, number() | Complex.t() | atom(), Nx.Type.t()) :: handle
  def scalar(e, number, type), do: constant(e, Type.number_to_binary(number, type), [], type)
end
