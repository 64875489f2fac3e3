defmodule Emily.Stream do
  @moduledoc """
  Streams: every process its own line of work on the device, over one shared copy of the weights.

  By default all processes share one stream, the default worker's, and their work runs one after the
  other. `new/1` makes a stream with a worker, a dedicated OS thread that evaluates on it, and
  `with_stream/2` makes a process use it:

      iex> stream = Emily.Stream.new(:cpu)
      iex> Emily.Stream.with_stream(stream, fn ->
      ...>   Emily.to_binary(Emily.from_binary(<<1.0::float-32-native>>, [1], {:f, 32}))
      ...> end)
      <<1.0::float-32-native>>

  With Nx nothing else is needed: `Emily.Backend` passes the process's stream to every operation.

  ## Which process computes where

  `with_stream/2` speaks for the process that calls it, so `Nx.Serving.run/2`, which computes in the
  caller, is on the caller's stream. `Nx.Serving.batched_run/2` computes in the serving's own process,
  which does not see the caller's stream: give the serving its own with `Emily.Serving`.

  ## What is promised

    * **Order.** Jobs of one stream run in the order in which they came. Nothing is said of the order
      between streams.
    * **Tensors cross streams.** A tensor made on one stream may be used on any other at any time. If
      it is not computed yet, it is computed on its own stream first, and its user waits for that. It
      stays usable after its stream was closed or collected.
    * **Back-pressure.** At most `config :emily, worker_queue_limit: 8192` jobs wait on a stream. One
      more raises RuntimeError ("stream queue full"), at once.
    * **Time.** With `config :emily, await_timeout: milliseconds` whoever waits longer gets RuntimeError. The
      work is given up: it is not begun if it still waits, and its answer is dropped if it runs.
    * **A caller that dies.** Its queued jobs are dropped unrun. A job that runs ends and its answer is
      dropped.
    * **The end.** `close/1` ends a stream now, and a stream that nobody refers to any more is ended
      after its queued jobs. Either way its thread is joined, never by a scheduler, and its MLX stream
      is kept for the next `new/1`.

  ## Devices

  `:cpu` computes on the processor, `:gpu` on Metal or CUDA. Where there is no GPU, `:gpu` computes on the
  CPU after one logged warning, so that code written for a Mac runs on any machine; with
  `config :emily, gpu_unavailable: :raise` it raises ArgumentError instead.
  """

  alias Emily.Native.{Call, Nif}
  alias Emily.Stream.Default

  @enforce_keys [:worker]
  defstruct [:worker]

  @type t :: %__MODULE__{worker: reference}
  @type device :: :cpu | :gpu

  @doc """
  Makes a stream on a device.

  Its worker ends when the stream is collected or closed. Raises ArgumentError for another device, and
  RuntimeError where the system has no room for a thread or all 512 MLX streams are in use.

      iex> match?(%Emily.Stream{}, Emily.Stream.new(:gpu))
      true
  """
  @spec new(device) :: t
  def new(device \\ :gpu) do
    %__MODULE__{worker: Default.start_worker(device)}
  end

  @doc """
  Calls `fun` with the stream as this process's.

  The stream that was in use before, if any, is in use again afterwards, also when `fun` raises; so calls
  nest. Returns what `fun` returns. Raises ArgumentError for anything but a stream and a function
  without arguments.

      iex> Emily.Stream.with_stream(Emily.Stream.new(), fn -> 42 end)
      42
  """
  @spec with_stream(t, (-> result)) :: result when result: var
  def with_stream(%__MODULE__{worker: worker}, fun)
      when is_reference(worker) and is_function(fun, 0) do
    previous = Process.put(:emily_worker, worker)

    try do
      fun.()
    after
      if previous,
        do: Process.put(:emily_worker, previous),
        else: Process.delete(:emily_worker)
    end
  end

  def with_stream(%__MODULE__{worker: worker}, fun) when is_reference(worker) do
    raise ArgumentError,
          "with_stream: expected a function without arguments, got: #{inspect(fun)}"
  end

  def with_stream(other, _fun) do
    raise ArgumentError, "with_stream: expected an Emily.Stream, got: #{inspect(other)}"
  end

  @doc """
  Closes a stream.

  A job that runs comes to its end. Callers whose jobs wait get RuntimeError ("stream stopped"), and so does
  every later use, in whatever process. Closing it again does nothing. Tensors made on the stream stay
  usable on others.

      iex> stream = Emily.Stream.new()
      iex> Emily.Stream.close(stream)
      :ok
  """
  @spec close(t) :: :ok
  def close(%__MODULE__{worker: worker}) do
    Call.now(Nif.worker_close(worker))
    Default.closed(worker)
  end

  def close(other) do
    raise ArgumentError, "close: expected an Emily.Stream, got: #{inspect(other)}"
  end

  @doc """
  Describes a stream: its device, how many jobs wait, whether it is open, and the bytes of the tensors
  that were made on it and live, computed or not.

      iex> Emily.Stream.info(Emily.Stream.new(:cpu))
      %{device: :cpu, queue_depth: 0, open: true, bytes: 0}
  """
  @spec info(t) :: %{
          device: device,
          queue_depth: non_neg_integer,
          open: boolean,
          bytes: non_neg_integer
        }
  def info(%__MODULE__{worker: worker}) do
    {device, depth, open, bytes} = Call.now(Nif.worker_info(worker))
    %{device: device, queue_depth: depth, open: open, bytes: bytes}
  end

  def info(other) do
    raise ArgumentError, "info: expected an Emily.Stream, got: #{inspect(other)}"
  end

  @doc """
  The devices of this host, `:cpu` first.
  """
  @spec devices() :: [device]
  def devices, do: Nif.devices()

  @doc false
  # The worker that this process computes on: its own, or the default one.
  @spec worker() :: reference
  def worker do
    case Process.get(:emily_worker) do
      nil -> Default.worker(:preferred)
      worker -> worker
    end
  end

  @doc false
  # The same, where a process without a stream wants a device.
  @spec worker(device) :: reference
  def worker(device) do
    case Process.get(:emily_worker) do
      nil -> Default.worker(device)
      worker -> worker
    end
  end

  @doc false
  # The worker on just this device: the process's own if it is, or the default one.
  @spec worker_on(device) :: reference
  def worker_on(device) do
    own = Process.get(:emily_worker)
    default = fn -> Default.worker(device) end

    cond do
      own == nil -> default.()
      match?([_], devices()) or device(own) == device(default.()) -> own
      true -> default.()
    end
  end

  @doc false
  # What a worker really computes on, whatever was asked for.
  @spec device(reference) :: device
  def device(worker) do
    {device, _depth, _open, _bytes} = Call.now(Nif.worker_info(worker))
    device
  end
end
