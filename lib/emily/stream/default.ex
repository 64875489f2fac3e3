defmodule Emily.Stream.Default do
  @moduledoc false
  # Owns the default workers, one for each device in use, so that they live as long as the application
  # and are replaced when somebody closes one. Processes find them in :persistent_term: a look-up
  # that copies nothing and asks nobody.

  use GenServer
  require Logger

  alias Emily.Native.{Call, Nif}

  @queue_limit 8192

  def start_link(_options), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @doc """
  The default worker of a device; `:preferred` is the GPU where there is one, and `:gpu` asks for it.
  """
  def worker(device) do
    case :persistent_term.get({__MODULE__, device}, nil) do
      nil -> start(device)
      worker -> worker
    end
  end

  @doc "Replaces default workers that were closed."
  def renew, do: GenServer.call(__MODULE__, :renew)

  @doc "Starts a worker that the caller owns."
  def start_worker(device) do
    limit = Application.get_env(:emily, :worker_queue_limit, @queue_limit)
    Call.now(Nif.worker_start(present!(device), limit))
  end

  @impl true
  def init(nil), do: {:ok, %{}}

  @impl true
  def handle_call({:worker, device}, _from, workers) do
    # Of several processes that found none, the first has made one.
    case workers do
      %{^device => worker} ->
        {:reply, {:ok, worker}, workers}

      %{} ->
        try do
          worker = same_device(workers, device) || start_worker(device)
          :persistent_term.put({__MODULE__, device}, worker)
          {:reply, {:ok, worker}, Map.put(workers, device, worker)}
        rescue
          error -> {:reply, {:error, error}, workers}
        end
    end
  end

  def handle_call(:renew, _from, workers) do
    {open, closed} = Enum.split_with(workers, fn {_device, worker} -> open?(worker) end)
    for {device, _worker} <- closed, do: :persistent_term.erase({__MODULE__, device})
    {:reply, :ok, Map.new(open)}
  end

  defp start(device) when device in [:cpu, :gpu, :preferred] do
    case GenServer.call(__MODULE__, {:worker, device}) do
      {:ok, worker} -> worker
      {:error, error} -> raise error
    end
  end

  defp start(device), do: present!(device)

  # Several names may mean one device, which has one default worker.
  defp same_device(workers, device) do
    real = present!(device)

    Enum.find_value(workers, fn {_name, worker} ->
      open?(worker) and Emily.Stream.device(worker) == real and worker
    end)
  end

  defp open?(worker) do
    {_device, _depth, open, _slot} = Call.now(Nif.worker_info(worker))
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
          "there is no GPU on this host (or this build of MLX is for the CPU); " <>
            "use :cpu, or config :emily, gpu_unavailable: :cpu"
  end

  defp warn_once do
    unless :persistent_term.get({__MODULE__, :warned}, false) do
      :persistent_term.put({__MODULE__, :warned}, true)
      Logger.warning("emily: there is no GPU on this host, :gpu streams compute on the CPU")
    end

    :cpu
  end
end
