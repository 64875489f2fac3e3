defmodule Emily.Gate do
  @moduledoc false
  # Holds a worker inside a job for as long as a test wants, so that what is queued behind stays queued:
  # the job loads a file that is a named pipe, and the system lets nobody open one for reading before
  # somebody opens it for writing.

  alias Emily.Native.Call

  @enforce_keys [:path, :holder]
  defstruct [:path, :holder]

  @doc "Holds the worker; returns when it is inside and its queue is empty."
  def hold(worker, folder) do
    path = Path.join(folder, "gate-#{System.unique_integer([:positive])}.npy")
    {_, 0} = System.cmd("mkfifo", [path])
    holder = spawn(fn -> load(worker, path) end)
    Emily.Eventually.eventually(fn -> inside?(holder, worker) end)
    %__MODULE__{path: path, holder: holder}
  end

  @doc "Lets the worker go on, and waits for the job's answer where its caller lives."
  def open(%__MODULE__{path: path, holder: holder}) do
    # Both ends, so that opening does not wait, and bytes that are no npy file, so that reading does not.
    # They stay for as long as the calling process lives, because the worker opens the pipe twice.
    script = "exec 3<>\"$0\"; printf '%4096s' x >&3; read -r line"
    shell = System.find_executable("sh")
    Port.open({:spawn_executable, shell}, [:binary, args: ["-c", script, path]])
    monitor = Process.monitor(holder)

    receive do
      {:DOWN, ^monitor, :process, ^holder, _reason} -> :ok
    end
  end

  defp load(worker, path) do
    Call.load(worker, path)
  rescue
    # The bytes are no file.
    RuntimeError -> :ok
  end

  # The caller waits for its answer, and its job waits no more: so it runs.
  defp inside?(holder, worker) do
    Emily.Stream.info(%Emily.Stream{worker: worker}).queue_depth == 0 and
      match?({:current_function, {Call, :load, 2}}, Process.info(holder, :current_function)) and
      match?({:status, :waiting}, Process.info(holder, :status))
  end
end
