defmodule Emily.Native.Call do
  @moduledoc false
  # The only `receive` of the package, and the only place where native errors are raised.
  #
  # A lazy input that is at home in another stream's slot is made ready there first: the NIF says
  # `{:elsewhere, tensors}` instead of working, and is asked again when they are. So a caller waits only
  # when it mixes streams.
  #
  # Each function makes its own tag and has its own `receive`: only where both stand in one function does
  # the BEAM skip the messages that were there before.

  import Kernel, except: [apply: 3]

  alias Emily.Native.Nif

  @doc "Builds an op with one output on the worker's stream; nothing is computed yet."
  @spec apply(reference, atom | {atom, map}, [reference | nil]) :: reference
  def apply(worker, op, inputs) do
    case Nif.apply(worker, op, inputs) do
      tensor when is_reference(tensor) ->
        tensor

      # Much was built, and what this process has dropped is not seen by its own garbage collector.
      {:collect, tensor} ->
        :erlang.garbage_collect()
        tensor

      {:elsewhere, tensors} ->
        make_ready(worker, tensors)
        apply(worker, op, inputs)

      {:error, reason} ->
        raise_error(reason)
    end
  end

  @doc "Builds and evaluates an op on the worker; returns all its outputs, ready."
  @spec apply_all(reference, atom | {atom, map}, [reference | nil]) :: [reference]
  def apply_all(worker, op, inputs) do
    tag = make_ref()

    case Nif.apply_all(worker, op, inputs, tag) do
      {:ok, job} ->
        receive do
          {^tag, {:ok, tensors}} -> tensors
          {^tag, {:error, reason}} -> raise_error(reason)
        after
          timeout() -> give_up(job, tag)
        end

      {:elsewhere, tensors} ->
        make_ready(worker, tensors)
        apply_all(worker, op, inputs)

      {:error, reason} ->
        raise_error(reason)
    end
  end

  @doc "Evaluates tensors and waits."
  @spec eval(reference, [reference]) :: :ok
  def eval(worker, tensors) do
    tag = make_ref()

    case Nif.eval(worker, tensors, tag) do
      :ok ->
        :ok

      {queued, job} when queued in [:ok, :collect] ->
        tidy(queued)

        receive do
          {^tag, :ok} -> :ok
          {^tag, {:error, reason}} -> raise_error(reason)
        after
          timeout() -> give_up(job, tag)
        end

      {:elsewhere, foreign} ->
        make_ready(worker, foreign)
        eval(worker, tensors)

      {:error, reason} ->
        raise_error(reason)
    end
  end

  @doc """
  Has tensors computed and does not wait for it; they stay lazy until somebody waits.

  Where other jobs wait, it waits until the tensors are scheduled: a caller in a loop does not fill the queue.
  """
  @spec async_eval(reference, [reference]) :: :ok
  def async_eval(worker, tensors) do
    tag = make_ref()

    case Nif.async_eval(worker, tensors, tag) do
      queued when queued in [:ok, :collect] ->
        tidy(queued)

      {queued, job} when queued in [:ok, :collect] ->
        tidy(queued)

        receive do
          {^tag, :ok} -> :ok
          {^tag, {:error, reason}} -> raise_error(reason)
        after
          timeout() -> give_up(job, tag)
        end

      {:elsewhere, foreign} ->
        make_ready(worker, foreign)
        async_eval(worker, tensors)

      {:error, reason} ->
        raise_error(reason)
    end
  end

  @doc "The elements of a tensor, row-major in native byte order; evaluates it."
  @spec to_binary(reference, reference) :: binary
  def to_binary(worker, tensor) do
    case Nif.bytes(tensor) do
      bytes when is_binary(bytes) -> bytes
      :pending -> read(worker, tensor)
      {:error, reason} -> raise_error(reason)
    end
  end

  @doc """
  The address of a tensor's elements in order, how many bytes they take, and a binary that keeps them
  there; evaluates it.
  """
  @spec pointer(reference, reference) :: {pos_integer, non_neg_integer, binary}
  def pointer(worker, tensor) do
    :ok = eval(worker, [tensor])

    case now(Nif.pointer(tensor)) do
      {_address, _size, _keeper} = found ->
        found

      :pending ->
        in_order = apply(worker, :contiguous, [tensor])
        :ok = eval(worker, [in_order])
        now(Nif.pointer(in_order))
    end
  end

  @doc "The tensors and the metadata of a file, each a list of pairs."
  @spec load(reference, String.t()) :: {[{String.t(), reference}], [{String.t(), term}]}
  def load(worker, path) do
    tag = make_ref()

    case Nif.load_file(worker, path, tag) do
      {:ok, job} ->
        receive do
          {^tag, {:ok, loaded}} -> loaded
          {^tag, {:error, reason}} -> raise_error(reason)
        after
          timeout() -> give_up(job, tag)
        end

      {:error, reason} ->
        raise_error(reason)
    end
  end

  @typedoc "Shape and dtype."
  @type template :: {[non_neg_integer], {atom, pos_integer}}

  @typedoc "Numbers of registers, in which a program computes: inputs, constants, outputs of each step."
  @type registers :: [non_neg_integer]

  @type step ::
          {:apply, atom | {atom, map}, [non_neg_integer | nil], output_count :: pos_integer}
          | {:while, state :: registers, captures :: registers, condition :: reference,
             body :: reference}
          | {:cond, predicate :: non_neg_integer, captures :: registers, on_true :: reference,
             on_false :: reference}
          | {:call, registers, key :: integer, [template]}

  @doc "Checks a program for the worker's device and returns its reference."
  @spec compile_program(reference, [template], [reference], [step], registers, boolean) ::
          reference
  def compile_program(worker, inputs, constants, steps, outputs, fuse) do
    case Nif.program_compile(worker, inputs, constants, steps, outputs, fuse) do
      program when is_reference(program) ->
        program

      {:elsewhere, tensors} ->
        make_ready(worker, tensors)
        compile_program(worker, inputs, constants, steps, outputs, fuse)

      {:error, reason} ->
        raise_error(reason)
    end
  end

  @doc """
  Runs a program and returns its outputs, ready. An input `{:donate, tensor}` is used up: later uses of
  the tensor are errors, unless it is another input, too. `on_call` answers each `:call` step, given its key
  and its tensors, ready.

  With `:schedule` the outputs are not waited for: they are lazy, as after `async_eval/2`. Programs whose
  ops can fail, such as decompositions, are waited for all the same.
  """
  @spec run_program(
          reference,
          reference,
          [reference | {:donate, reference}],
          (integer, [reference] -> [reference]),
          :wait | :schedule
        ) :: [reference]
  def run_program(worker, program, inputs, on_call, mode \\ :wait) do
    tag = make_ref()

    case Nif.program_run(worker, program, inputs, mode, tag) do
      {:ok, job} ->
        receive do
          {^tag, {:ok, tensors}} -> tensors
          {^tag, {:call, run, key, tensors}} -> answer(worker, run, key, tensors, on_call)
          {^tag, {:error, reason}} -> raise_error(reason)
        after
          timeout() -> give_up(job, tag)
        end

      {:elsewhere, tensors} ->
        make_ready(worker, tensors)
        run_program(worker, program, inputs, on_call, mode)

      {:error, reason} ->
        raise_error(reason)
    end
  end

  defp answer(worker, run, key, tensors, on_call) do
    resume(worker, run, ask(run, key, tensors, on_call), on_call)
  end

  # Where the answer fails, the run's memory goes now, and not when its reference is collected.
  defp ask(run, key, tensors, on_call) do
    on_call.(key, tensors)
  catch
    kind, reason ->
      Nif.program_abandon(run)
      :erlang.raise(kind, reason, __STACKTRACE__)
  end

  defp resume(worker, run, answers, on_call) do
    tag = make_ref()

    case Nif.program_resume(worker, run, answers, tag) do
      {:ok, job} ->
        receive do
          {^tag, {:ok, tensors}} -> tensors
          {^tag, {:call, run, key, tensors}} -> answer(worker, run, key, tensors, on_call)
          {^tag, {:error, reason}} -> raise_error(reason)
        after
          timeout() -> give_up(job, tag)
        end

      {:elsewhere, tensors} ->
        make_ready(worker, tensors)
        resume(worker, run, answers, on_call)

      {:error, reason} ->
        Nif.program_abandon(run)
        raise_error(reason)
    end
  end

  @doc "Starts a worker whose queue holds as many jobs."
  @spec start_worker(:cpu | :gpu, pos_integer) :: reference
  def start_worker(device, queue_limit) do
    case Nif.worker_start(device, queue_limit) do
      # As a rule no stream is free, though this process has dropped some that nobody has collected.
      {:error, reason} when elem(reason, 0) == :runtime ->
        :erlang.garbage_collect()
        :ok = Nif.flush()
        now(Nif.worker_start(device, queue_limit))

      result ->
        now(result)
    end
  end

  @doc "Returns the result of a NIF that answers at once, or raises its error."
  def now({:error, reason}), do: raise_error(reason)
  def now(result), do: result

  defp read(worker, tensor) do
    tag = make_ref()

    case Nif.read(worker, tensor, tag) do
      {queued, job} when queued in [:ok, :collect] ->
        tidy(queued)

        receive do
          {^tag, {:ok, bytes}} -> bytes
          {^tag, {:error, reason}} -> raise_error(reason)
        after
          timeout() -> give_up(job, tag)
        end

      {:elsewhere, tensors} ->
        make_ready(worker, tensors)
        to_binary(worker, tensor)

      {:error, reason} ->
        raise_error(reason)
    end
  end

  # This process may be the only one that still refers to what was built on the way to a result. Some
  # microseconds after the worker has begun it is not any more, and MLX uses those buffers again.
  defp tidy(:ok), do: :ok

  defp tidy(:collect) do
    :erlang.garbage_collect(self(), type: :minor)
    Nif.free_collected()
  end

  defp make_ready(worker, tensors), do: Enum.each(tensors, &make_one_ready(worker, &1))

  defp make_one_ready(worker, tensor) do
    tag = make_ref()

    case Nif.make_ready(worker, tensor, tag) do
      :ok ->
        :ok

      {:ok, job} ->
        receive do
          {^tag, :ok} -> :ok
          {^tag, {:error, reason}} -> raise_error(reason)
        after
          timeout() -> give_up(job, tag)
        end

      {:error, reason} ->
        raise_error(reason)
    end
  end

  defp timeout, do: :persistent_term.get({Emily, :await_timeout}, :infinity)

  # Whoever settles the job first wins. Where the answer did, it is in the mailbox or about to be.
  defp give_up(job, tag) do
    unless Nif.cancel(job) do
      receive do
        {^tag, _late} -> :ok
      end
    end

    raise "no answer from the stream in time (config :emily, :await_timeout)"
  end

  # Everything but a wrong argument is a RuntimeError, as users of hex emily rescue it.
  defp raise_error({:invalid_argument, text}), do: raise(ArgumentError, text)
  defp raise_error({_kind, text}), do: raise(RuntimeError, text)
end
