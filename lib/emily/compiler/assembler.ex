defmodule Emily.Compiler.Assembler do
  @moduledoc false

  # From a graph of `Emily.Emitter.Recorder` to a native program. Only what the outputs need is
  # reached, equal ops on equal inputs are one step, and equal constants are one tensor.
  #
  # A branch of a condition and the two parts of a loop are programs of their own. A node belongs to
  # the outermost program that surely computes it; one that several conditions of a program need
  # belongs to the program, so that it is computed once. A program inside takes nodes of its
  # surroundings as further inputs, its captures.
  #
  # Inputs, constants and steps are counted while they are found, and get the numbers of their
  # registers when all are known.

  alias Emily.Compiler.Trace
  alias Emily.Emitter.Recorder
  alias Emily.Native.Call

  @enforce_keys [:worker, :types, :scope, :outer, :own, :fuse]
  defstruct @enforce_keys ++
              [
                registers: %{},
                equal: %{},
                inputs: [],
                captures: [],
                constants: [],
                constant_count: 0,
                steps: [],
                made: 0
              ]

  @doc """
  Makes the program of the root's outputs.

  Returns its reference, the positions of the parameters that it takes, in order, and the number of
  its steps.
  """
  def assemble(outputs, types, worker, fuse) do
    state = start(outputs, types, worker, fuse, :root, MapSet.new())
    {outputs, state} = Enum.map_reduce(outputs, state, &register/2)
    parameters = Enum.reverse(state.inputs)
    templates = for index <- parameters, do: Map.fetch!(types, {:parameter, :root, index})
    {compile(state, templates, outputs), parameters, length(state.steps)}
  end

  defp start(outputs, types, worker, fuse, scope, outer) do
    %__MODULE__{
      worker: worker,
      types: types,
      scope: scope,
      outer: outer,
      own: own(outputs, outer),
      fuse: fuse
    }
  end

  ## The register of a node

  defp register(nil, state), do: {nil, state}

  defp register({:part, node, index}, state) do
    case captured(node, index, state) do
      nil ->
        {{:made, first}, state} = register(node, state)
        {{:made, first + index}, state}

      found ->
        found
    end
  end

  defp register(node, state) do
    key = Recorder.key(node)

    case state.registers do
      %{^key => register} ->
        {register, state}

      %{} ->
        {register, state} = captured(node, nil, state) || place(node, state)
        {register, put_in(state.registers[key], register)}
    end
  end

  # A node of the surroundings is a capture. The root has none.
  defp captured(node, index, state) do
    key = if index, do: {Recorder.key(node), index}, else: Recorder.key(node)

    if foreign?(node, state) do
      case Enum.find_index(state.captures, &(Trace.type_key(&1) == key)) do
        nil ->
          node = if index, do: {:part, node, index}, else: node
          {{:capture, length(state.captures)}, %{state | captures: state.captures ++ [node]}}

        position ->
          {{:capture, position}, state}
      end
    end
  end

  defp foreign?({:parameter, scope, _}, state), do: scope != state.scope
  defp foreign?(node, state), do: MapSet.member?(state.outer, Recorder.key(node))

  defp place({:parameter, :root, index}, state),
    do: {{:input, length(state.inputs)}, %{state | inputs: [index | state.inputs]}}

  defp place({:parameter, _scope, index}, state), do: {{:input, index}, state}

  defp place({:constant, _id, binary, shape, type}, state) do
    constant({binary, shape, type}, state, fn -> made(state, binary, shape, type) end)
  end

  defp place({:tensor, ref}, state), do: constant(ref, state, fn -> ref end)

  # Numbers in a defn have a type of their own and are cast to that of the tensors that they meet.
  defp place({:op, _, {:astype, _} = cast, [{:constant, _, binary, shape, type}]}, state) do
    constant({cast, binary, shape, type}, state, fn ->
      Call.apply(state.worker, cast, [made(state, binary, shape, type)])
    end)
  end

  defp place({:op, _id, op, inputs}, state) do
    {inputs, state} = Enum.map_reduce(inputs, state, &register/2)

    case state.equal do
      %{{^op, ^inputs} => register} ->
        {register, state}

      %{} ->
        {register, state} = step({:apply, op, inputs, 1}, 1, state)
        {register, put_in(state.equal[{op, inputs}], register)}
    end
  end

  defp place({:several, _id, op, inputs}, state) do
    {inputs, state} = Enum.map_reduce(inputs, state, &register/2)
    count = Recorder.output_count(op)
    step({:apply, op, inputs, count}, count, state)
  end

  defp place({:while, _id, initial, scope, condition, body}, state) do
    {initial, state} = Enum.map_reduce(initial, state, &register/2)
    types = for index <- 0..(length(initial) - 1)//1, do: {:parameter, scope, index}

    {[condition, body], captures, state} =
      programs([{[condition], scope}, {body, scope}], types, state)

    step({:while, initial, captures, condition, body}, length(initial), state)
  end

  defp place({:cond, id, predicate, on_true, on_false}, state) do
    {predicate, state} = register(predicate, state)

    {[taken, other], captures, state} =
      programs([{on_true, {id, true}}, {on_false, {id, false}}], [], state)

    step({:cond, predicate, captures, taken, other}, length(on_true), state)
  end

  defp place({:call, _id, arguments, key, templates}, state) do
    {arguments, state} = Enum.map_reduce(arguments, state, &register/2)
    step({:call, arguments, key, templates}, length(templates), state)
  end

  defp step(step, count, state) do
    {{:made, state.made}, %{state | steps: [step | state.steps], made: state.made + count}}
  end

  defp constant(key, state, make) do
    case state.equal do
      %{{:constant, ^key} => register} ->
        {register, state}

      %{} ->
        register = {:constant, state.constant_count}

        {register,
         %{
           state
           | equal: Map.put(state.equal, {:constant, key}, register),
             constants: [make.() | state.constants],
             constant_count: state.constant_count + 1
         }}
    end
  end

  defp made(state, binary, shape, type),
    do: Emily.from_binary(binary, shape, type, Emily.Stream.device(state.worker))

  ## Programs inside

  # Programs with the same inputs and, therefore, the same captures.
  defp programs(parts, inputs, state) do
    outer = MapSet.union(state.outer, state.own)

    {parts, captures} =
      Enum.map_reduce(parts, [], fn {outputs, scope}, captures ->
        inside = start(outputs, state.types, state.worker, state.fuse, scope, outer)
        inside = %{inside | captures: captures}
        {outputs, inside} = Enum.map_reduce(outputs, inside, &register/2)
        {{outputs, inside}, inside.captures}
      end)

    keys = inputs ++ Enum.map(captures, &Trace.type_key/1)
    templates = Enum.map(keys, &Map.fetch!(state.types, &1))

    programs =
      for {outputs, inside} <- parts do
        compile(%{inside | inputs: inputs, captures: captures}, templates, outputs)
      end

    {captures, state} = Enum.map_reduce(captures, state, &register/2)
    {programs, captures, state}
  end

  defp compile(state, templates, outputs) do
    inputs = length(state.inputs)
    first_constant = inputs + length(state.captures)
    first_made = first_constant + state.constant_count

    number = fn
      nil -> nil
      {:input, index} -> index
      {:capture, index} -> inputs + index
      {:constant, index} -> first_constant + index
      {:made, index} -> first_made + index
    end

    numbers = &Enum.map(&1, number)

    steps =
      for step <- Enum.reverse(state.steps) do
        case step do
          {:apply, op, inputs, count} ->
            {:apply, op, numbers.(inputs), count}

          {:while, initial, captures, condition, body} ->
            {:while, numbers.(initial), numbers.(captures), condition, body}

          {:cond, predicate, captures, on_true, on_false} ->
            {:cond, number.(predicate), numbers.(captures), on_true, on_false}

          {:call, arguments, key, templates} ->
            {:call, numbers.(arguments), key, templates}
        end
      end

    constants = Enum.reverse(state.constants)
    outputs = numbers.(outputs)
    Call.compile_program(state.worker, templates, constants, steps, outputs, state.fuse)
  end

  ## Which nodes belong to a program

  # Those that its outputs surely need, and those that several of its conditions may need.
  defp own(outputs, outer) do
    {own, conditions} = Enum.reduce(outputs, {MapSet.new(), []}, &needed(&1, &2, outer))
    with_shared(own, conditions, outer)
  end

  defp with_shared(own, [], _outer), do: own
  defp with_shared(own, [_only], _outer), do: own

  defp with_shared(own, conditions, outer) do
    surroundings = MapSet.union(own, outer)

    # By key: a node holds all that it is computed from, and is no key of a map.
    counts =
      for {:cond, _id, _predicate, on_true, on_false} <- conditions,
          {key, node} <- Enum.reduce(on_true ++ on_false, %{}, &reached(&1, &2, surroundings)),
          reduce: %{} do
        counts -> Map.update(counts, key, {1, node}, fn {count, node} -> {count + 1, node} end)
      end

    case for {_key, {count, node}} <- counts, count > 1, do: node do
      [] ->
        own

      shared ->
        {own, conditions} = Enum.reduce(shared, {own, conditions}, &needed(&1, &2, outer))
        with_shared(own, conditions, outer)
    end
  end

  defp needed(node, {own, conditions}, outer) do
    visit(node, own, outer, {own, conditions}, fn node, key, {own, conditions} ->
      acc = {MapSet.put(own, key), with_condition(node, conditions)}
      Enum.reduce(inputs(node), acc, &needed(&1, &2, outer))
    end)
  end

  defp with_condition({:cond, _, _, _, _} = node, conditions), do: [node | conditions]
  defp with_condition(_node, conditions), do: conditions

  # Everything that a branch may compute, conditions inside included.
  defp reached(node, found, surroundings) do
    visit(node, found, surroundings, found, fn node, key, found ->
      found = Map.put(found, key, node)
      Enum.reduce(inputs(node) ++ branches(node), found, &reached(&1, &2, surroundings))
    end)
  end

  defp visit(nil, _seen, _outer, acc, _fun), do: acc
  defp visit({:part, node, _}, seen, outer, acc, fun), do: visit(node, seen, outer, acc, fun)

  # Inputs and constants are at hand everywhere.
  defp visit({:parameter, _, _}, _seen, _outer, acc, _fun), do: acc
  defp visit({:tensor, _}, _seen, _outer, acc, _fun), do: acc
  defp visit({:constant, _, _, _, _}, _seen, _outer, acc, _fun), do: acc

  defp visit(node, seen, outer, acc, fun) do
    key = Recorder.key(node)
    if member?(seen, key) or member?(outer, key), do: acc, else: fun.(node, key, acc)
  end

  defp member?(%MapSet{} = set, key), do: MapSet.member?(set, key)
  defp member?(map, key), do: is_map_key(map, key)

  defp inputs({:op, _id, _op, inputs}), do: inputs
  defp inputs({:several, _id, _op, inputs}), do: inputs
  defp inputs({:while, _id, initial, _scope, _condition, _body}), do: initial
  defp inputs({:cond, _id, predicate, _on_true, _on_false}), do: [predicate]
  defp inputs({:call, _id, arguments, _key, _templates}), do: arguments

  defp branches({:cond, _id, _predicate, on_true, on_false}), do: on_true ++ on_false
  defp branches(_node), do: []
end
