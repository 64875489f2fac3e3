defmodule Emily.Stream.Default do
  @moduledoc false
  # The default workers, one for each device in use. They are in :persistent_term, where a look-up copies
  # nothing and asks nobody, and where they survive this process: it only sees to it that of several
  # processes that find none one makes one, and that a closed one is replaced.

  use GenServer
  require Logger

  alias Emily.Native.{Call, Nif}

  @queue_limit 8192
  @names [:cpu, :gpu, :preferred]

  def start_link(_options), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @doc """
  The default worker of a device; `:preferred` is the GPU where there is one, and `:gpu` asks for it.
  """
  def worker(device) do
    installed(device) || start(device)
  end

  @doc "Lets the next process that looks for a default worker make one, if this one was closed."
  def closed(worker) do
    if Enum.any?(@names, &(installed(&1) == worker)), do: ask(:forget_closed), else: :ok
  end

  @doc "Forgets the default workers: each ends when the last process that computes on it has done so."
  def forget, do: Enum.each(@names, &:persistent_term.erase({__MODULE__, &1}))

  @doc "Starts a worker that the caller owns."
  def start_worker(device) do
    limit = Application.get_env(:emily, :worker_queue_limit, @queue_limit)
    Call.start_worker(present!(device), limit)
  end

  @impl true
  def init(nil), do: {:ok, nil}

  @impl true
  def handle_call({:worker, device}, _from, state) do
    {:reply, {:ok, installed(device) || install(device)}, state}
  rescue
    error -> {:reply, {:error, error}, state}
  end

  def handle_call(:forget_closed, _from, state) do
    for name <- @names, worker = installed(name), not open?(worker) do
      :persistent_term.erase({__MODULE__, name})
    end

    {:reply, :ok, state}
  end

  defp installed(device), do: :persistent_term.get({__MODULE__, device}, nil)

  defp install(device) do
    worker = same_device(device) || start_worker(device)
    :persistent_term.put({__MODULE__, device}, worker)
    worker
  end

  defp start(device) when device in @names do
    case ask({:worker, device}) do
      {:ok, worker} -> worker
      {:error, error} -> raise error
    end
  end

  defp start(device), do: present!(device)

  defp ask(question) do
    GenServer.call(__MODULE__, question)
  catch
    :exit, {:noproc, _call} -> raise RuntimeError, "the application :emily is not started"
  end

  # Several names may mean one device, which has one default worker.
  defp same_device(device) do
    real = present!(device)

    Enum.find_value(@names, fn name ->
      worker = installed(name)
      worker && open?(worker) && Emily.Stream.device(worker) == real && worker
    end)
  end

  defp open?(worker) do
    {_device, _depth, open, _bytes} = Call.now(Nif.worker_info(worker))
    open
  end

  defp present!(:cpu), do: :cpu
  defp present!(:preferred), do: List.last(Nif.devices())

  defp present!(:gpu) do
    cond do
      :gpu in Nif.devices() -> :gpu
      Application.get_env(:emily, :gpu_unavailable, :cpu) == :raise -> raise_no_gpu()
      true -> warn_once()
    end
  end

  defp present!(other) do
    raise ArgumentError, "expected :device to be :cpu or :gpu, got: #{inspect(other)}"
  end

  defp raise_no_gpu do
    raise ArgumentError,
          "there is no GPU on this host (#{Emily.Preflight.reason(Emily.Preflight.found())}); " <>
            "use :cpu, or config :emily, gpu_unavailable: :cpu"
  end

  defp warn_once do
    unless :persistent_term.get({__MODULE__, :warned}, false) do
      :persistent_term.put({__MODULE__, :warned}, true)
      reason = Emily.Preflight.reason(Emily.Preflight.found())

      Logger.warning(
        "emily: there is no GPU on this host, :gpu streams compute on the CPU (#{reason})"
      )
    end

    :cpu
  end
end
