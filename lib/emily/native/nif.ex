defmodule Emily.Native.Nif do
  @moduledoc false
  # The stubs of the NIF library, one for each of its functions (a test compares the two lists).
  # Errors come back as `{:error, {kind, text}}`; Emily.Native.Call raises them.

  import Kernel, except: [apply: 3]

  # The compiler loads this module as soon as it is made: what on_load calls must have been made before.
  require Emily.Preflight

  @on_load :load

  @doc false
  def load do
    library = Emily.Preflight.library(List.to_string(:code.priv_dir(:emily)))
    warn(Emily.Preflight.found())

    case :erlang.load_nif(library, 0) do
      :ok ->
        :ok

      {:error, {reason, text}} ->
        # An @on_load that fails says nothing of its reason to whoever calls the module.
        :logger.error(~c"emily: the native library does not load (~s): ~ts", [reason, text])
        {:error, reason}
    end
  end

  # A host without NVIDIA's driver is one without a GPU, which whoever asks for the GPU is told.
  defp warn([%{what: "no NVIDIA driver" <> _}]), do: :ok
  defp warn([]), do: :ok

  defp warn(problems) do
    :logger.warning(~c"emily: the GPU is not used: ~ts", [Emily.Preflight.reason(problems)])
  end

  ## Contract
  def nifs, do: missing()
  def ops, do: missing()

  ## Tensors
  def from_binary(_bytes, _shape, _dtype, _device), do: missing()
  def from_large_binary(_bytes, _shape, _dtype, _device), do: missing()
  def random_key(_seed, _device), do: missing()
  def shape(_tensor), do: missing()
  def dtype(_tensor), do: missing()
  def device(_tensor), do: missing()
  def is_ready(_tensor), do: missing()
  def bytes(_tensor), do: missing()
  def deallocate(_tensor), do: missing()
  def pointer(_tensor), do: missing()
  def from_pointer(_address, _size, _shape, _dtype, _device), do: missing()

  ## Workers
  def devices, do: missing()
  def device_info(_device), do: missing()
  def worker_start(_device, _capacity), do: missing()
  def worker_close(_worker), do: missing()
  def worker_info(_worker), do: missing()

  ## Work; the last argument tags the message that answers
  def apply(_worker, _op, _inputs), do: missing()
  def apply_all(_worker, _op, _inputs, _tag), do: missing()
  def eval(_worker, _tensors, _tag), do: missing()
  def async_eval(_worker, _tensors, _tag), do: missing()
  def make_ready(_worker, _tensor, _tag), do: missing()
  def read(_worker, _tensor, _tag), do: missing()
  def load_file(_worker, _path, _tag), do: missing()
  def cancel(_job), do: missing()

  ## Programs
  def program_compile(_worker, _inputs, _constants, _steps, _outputs, _fuse), do: missing()
  def program_run(_worker, _program, _inputs, _mode, _tag), do: missing()
  def program_resume(_worker, _run, _tensors, _tag), do: missing()
  def program_abandon(_run), do: missing()
  def program_info(_program), do: missing()
  def program_fusion(_worker), do: missing()

  ## Memory
  def memory_stats, do: missing()
  def memory_reset_peak, do: missing()
  def memory_clear_cache, do: missing()
  def memory_set_limit(_limit, _bytes), do: missing()
  def memory_limit, do: missing()
  def memory_collect_above(_bytes), do: missing()
  def flush, do: missing()
  def free_collected, do: missing()

  defp missing, do: :erlang.nif_error(:nif_not_loaded)
end
