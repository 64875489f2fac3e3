defmodule Emily.Gate do
  @moduledoc false
  # Holds a worker inside a job for as long as a test wants, so that what is queued behind stays queued:
  # the job loads a file that is a named pipe, and the system lets nobody open one for reading before
  # somebody opens it for writing.

  alias Emily.Native.{Call, Nif}

  defstruct [:path, :task]

  @doc "Holds the worker; returns when it is inside and its queue is empty."
  def hold(worker, folder) do
    path = Path.join(folder, "gate-#{System.unique_integer([:positive])}.npy")
    {_, 0} = System.cmd("mkfifo", [path])

    task =
      Task.async(fn ->
        try do
          Call.load(worker, path)
        rescue
          error in RuntimeError -> {:released, error.message}
        end
      end)

    Emily.Eventually.eventually(fn -> inside?(task, worker) end)
    %__MODULE__{path: path, task: task}
  end

  @doc "Lets the worker go on; returns when its job has answered."
  def open(%__MODULE__{path: path, task: task}) do
    # Both ends, so that opening does not wait, and bytes that are no npy file, so that reading does not.
    port =
      Port.open({:spawn_executable, System.find_executable("sh")}, [
        :binary,
        args: ["-c", "exec 3<>\"$0\"; printf '%4096s' x >&3; read -r line", path]
      ])

    {:released, _reason} = Task.await(task, 60_000)
    Port.close(port)
    :ok
  end

  # The caller waits for its answer, and its job waits no more: so it runs.
  defp inside?(task, worker) do
    {_device, depth, _open, _slot} = Nif.worker_info(worker)

    depth == 0 and
      match?({:current_function, {Call, :load, 2}}, Process.info(task.pid, :current_function)) and
      match?({:status, :waiting}, Process.info(task.pid, :status))
  end
end
