defmodule Emily.Compiler.Executable do
  @moduledoc false

  # What a defn has become: a native program, which inputs it takes, what it calls and what its results
  # are. Made once, run from any process on any stream of its device.

  alias Emily.Compiler.{Assembler, Trace}
  alias Emily.Emitter
  alias Emily.Native.Call
  alias Nx.Defn.Composite
  alias Nx.Tensor, as: T

  @enforce_keys [:program, :device, :parameters, :calls, :outputs, :op_count]
  defstruct @enforce_keys

  @doc """
  Compiles the function that builds an expression from its parameters.

  `donate` has the positions of the arguments whose tensors are given away. Raises
  `Emily.Compiler.Trace.Unsupported` for what no program can have.
  """
  def compile(fun, vars, worker, %{fuse: fuse, hooks: hooks, donate: donate}) do
    donated = donated(vars, donate)
    container = fun.(vars)
    outputs = Composite.traverse(container, &undonated(Nx.to_template(&1)))
    device = Emily.Stream.device(worker)

    {nodes, types, calls} =
      container |> Composite.traverse(&Nx.devectorize/1) |> Trace.trace(device, hooks)

    {program, parameters, op_count} = Assembler.assemble(nodes, types, worker, fuse)

    %__MODULE__{
      program: program,
      device: device,
      parameters: for(index <- parameters, do: {index, index in donated}),
      calls: calls,
      outputs: outputs,
      op_count: op_count
    }
  end

  # The positions of tensors among those of all arguments.
  defp donated(vars, donate) do
    for {var, argument} <- Enum.with_index(vars),
        t <- Composite.flatten_list([var]),
        argument in donate or donatable?(t) do
      %T{data: %Nx.Defn.Expr{op: :parameter, args: [index]}} = t
      index
    end
  end

  @doc "Whether a tensor is marked by `Nx.donatable/1`, which Nx has since 0.13.2."
  def donatable?(t), do: Map.get(t, :donatable?, false)

  # Whoever gets a result has not given it away.
  defp undonated(%{donatable?: true} = t), do: %{t | donatable?: false}
  defp undonated(t), do: t

  @doc """
  Runs on a worker with the arguments of a call, functions that give tensors. Returns when the results are
  computed (`:wait`) or scheduled (`:schedule`).
  """
  def run(%__MODULE__{} = executable, arguments, worker, mode) do
    eager = %Emitter.Eager{worker: worker}
    arguments = List.to_tuple(arguments)

    inputs =
      for {index, donated?} <- executable.parameters do
        ref = Emitter.input(eager, argument(elem(arguments, index)))
        if donated?, do: {:donate, ref}, else: ref
      end

    calls = executable.calls
    answer = fn key, refs -> elem(calls, key).(refs) end
    refs = Call.run_program(worker, executable.program, inputs, answer, mode)
    Trace.from_refs(executable.outputs, refs)
  end

  defp argument(fun) do
    case fun.() do
      %T{data: %Nx.Defn.Expr{}} = t ->
        raise ArgumentError,
              "cannot pass a tensor expression as argument to defn, got: #{inspect(t)}"

      %T{} = t ->
        Nx.devectorize(t)
    end
  end
end
