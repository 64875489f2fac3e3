defmodule Emily.Emitter.Eager do
  @moduledoc false

  # Builds every op at once, on the stream of the calling process or, where it has none, on the default
  # stream of the device that the operands are on.

  @behaviour Emily.Emitter

  alias Emily.Lowering.Type
  alias Emily.Native.{Call, Nif}
  alias Nx.Tensor, as: T

  @enforce_keys [:worker]
  defstruct [:worker]

  @doc "The emitter for an operation on tensors."
  def for_tensors(tensors) do
    case Process.get(:emily_worker) do
      nil -> %__MODULE__{worker: Emily.Stream.worker(device_of(tensors))}
      worker -> %__MODULE__{worker: worker}
    end
  end

  @doc "The emitter that makes tensors on a device."
  def for_device(device), do: %__MODULE__{worker: Emily.Stream.worker(device)}

  @doc "The emitter whose results are on a device, whatever the process's own stream computes on."
  def on_device(device), do: %__MODULE__{worker: Emily.Stream.worker_on(device)}

  @doc "Whether a tensor is where `on_device/1` would put it."
  def on_device?(ref, device) do
    one_device?() or
      Call.now(Nif.device(ref)) == Emily.Stream.device(Emily.Stream.worker_on(device))
  end

  # The backend's struct is matched as a map here and below: its module needs this one to compile.
  defp device_of(tensors) do
    if one_device?(), do: :preferred, else: first_device(tensors)
  end

  defp first_device([%T{data: %{__struct__: Emily.Backend, ref: ref}} | _]),
    do: Call.now(Nif.device(ref))

  defp first_device([_ | rest]), do: first_device(rest)
  defp first_device([]), do: :preferred

  defp one_device? do
    case :persistent_term.get({__MODULE__, :one_device}, nil) do
      nil ->
        one? = match?([_], Nif.devices())
        :persistent_term.put({__MODULE__, :one_device}, one?)
        one?

      one? ->
        one?
    end
  end

  @impl true
  def emit(%__MODULE__{worker: worker}, op, inputs), do: Call.apply(worker, op, inputs)

  @impl true
  def emit_all(%__MODULE__{worker: worker}, op, inputs), do: Call.apply_all(worker, op, inputs)

  @impl true
  def constant(%__MODULE__{} = e, binary, shape, type),
    do: Emily.from_binary(binary, shape, type, device(e))

  @impl true
  def input(%__MODULE__{}, %T{data: %{__struct__: Emily.Backend, ref: ref}}), do: ref

  # A foreign tensor stays its owner's: it is read, never transferred.
  def input(%__MODULE__{} = e, %T{shape: shape, type: type} = foreign) do
    Type.check!(e, type)
    Emily.Emitter.constant(e, Nx.to_binary(foreign), Tuple.to_list(shape), type)
  end

  @impl true
  def device(%__MODULE__{worker: worker}), do: Emily.Stream.device(worker)
end
