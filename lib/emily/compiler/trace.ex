defmodule Emily.Compiler.Trace do
  @moduledoc false

  # From an `Nx.Defn.Expr` to the graph of `Emily.Emitter.Recorder`. Each node of the expression goes
  # through the lowering of its operation, which is the one that `Emily.Backend` computes with.
  #
  # Only syntax is handled here: loops, conditions, containers and calls of Elixir functions. Nodes
  # of a condition's branches are written down like all others; which of them only a branch needs is
  # found out when the graph becomes a program.

  alias Emily.Emitter
  alias Emily.Emitter.Recorder
  alias Emily.Emitter.Recorder.Value
  alias Emily.Lowering
  alias Emily.Lowering.Narrow
  alias Nx.Defn.{Composite, Expr, Tree}
  alias Nx.Tensor, as: T

  defmodule Unsupported do
    @moduledoc false
    # Something in a defn that no program can have.
    defexception [:op, :reason]

    @impl true
    def message(%{op: op, reason: reason}), do: "#{op}: #{reason}"
  end

  @enforce_keys [:emitter, :hooks, :parameters]
  defstruct [:emitter, :hooks, :parameters, seen: %{}, types: %{}, calls: []]

  @doc """
  Traces a container of expressions without vectorized axes.

  Returns the nodes of its tensors, the types of nodes that may become inputs of programs inside (by
  `Recorder.key/1`), and the functions that the program calls, by key.
  """
  def trace(container, device, hooks) do
    state = %__MODULE__{
      emitter: %Recorder{device: device},
      hooks: hooks,
      parameters: :root
    }

    Code.ensure_loaded!(Lowering)
    {values, state} = each(container, state)
    {nodes(values), state.types, calls(state)}
  end

  defp calls(%{calls: calls}), do: calls |> Enum.reverse() |> List.to_tuple()

  # The values of a container's tensors, in order.
  defp each(container, state) do
    [container] |> Composite.flatten_list() |> Enum.map_reduce(state, &value/2)
  end

  defp nodes(values), do: Enum.map(values, & &1.data.node)

  # A tensor whose data is a node, or a tuple of such. Nx gives one expression different shapes by
  # vectorizing it: what is computed has all axes.
  defp value(%T{vectorized_axes: [_ | _]} = t, state), do: value(Nx.devectorize(t), state)

  defp value(%T{data: %Expr{id: id, op: op, args: args}} = t, state) do
    case state.seen do
      %{^id => %T{data: data}} ->
        {%{t | data: data}, state}

      %{^id => values} ->
        {values, state}

      %{} ->
        {value, state} = visit(op, args, t, state)
        {value, put_in(state.seen[id], value)}
    end
  end

  defp finish(t, node, state) do
    node = Lowering.settle(state.emitter, node, t.type)
    {with_node(t, node), note_type(node, t, state)}
  end

  defp with_node(t, node), do: %{t | data: %Value{node: node}}

  # Emitted ops may share a node with a value of another shape only if they change nothing.
  defp note_type(node, t, state), do: put_in(state.types[type_key(node)], template(t))

  @doc "The key of one output in the types."
  def type_key({:part, node, index}), do: {Recorder.key(node), index}
  def type_key(node), do: Recorder.key(node)

  defp template(%T{shape: shape, type: type}), do: {Tuple.to_list(shape), Narrow.storage(type)}

  # The values that several nodes have, for the templates of a tuple or a single tensor.
  defp finish_each(templates, nodes, state) do
    Enum.zip(templates, nodes)
    |> Enum.map_reduce(state, fn {t, node}, state ->
      {with_node(t, node), note_type(node, t, state)}
    end)
  end

  defp shaped(values, %T{type: {:tuple, _}}), do: List.to_tuple(values)
  defp shaped([value], t), do: %{t | data: value.data}

  ## Inputs

  defp visit(:parameter, [index], t, %{parameters: :root} = state) do
    node = {:parameter, :root, index}
    {with_node(t, node), note_type(node, t, state)}
  end

  defp visit(:parameter, [index], t, state),
    do: {%{t | data: elem(state.parameters, index).data}, state}

  defp visit(:tensor, [tensor], t, state) do
    node = Emitter.input(state.emitter, tensor)
    {with_node(t, node), note_type(node, t, state)}
  end

  ## Containers

  defp visit(:metadata, [%T{} = expr, _metadata], t, state) do
    {value, state} = value(expr, state)
    {%{t | data: value.data}, state}
  end

  defp visit(:metadata, [exprs, _metadata], _t, state) when is_tuple(exprs) do
    {values, state} = each(exprs, state)
    {List.to_tuple(values), state}
  end

  defp visit(:elem, [tuple, index], t, state) do
    {values, state} = value(tuple, state)
    {%{t | data: elem(values, index).data}, state}
  end

  ## Control flow

  defp visit(:while, [initial, arguments, condition, body], t, state) do
    {initial, state} = each(initial, state)
    templates = Composite.flatten_list([arguments])
    scope = Recorder.id()
    inputs = for {_, index} <- Enum.with_index(templates), do: {:parameter, scope, index}

    {inside, inner} = finish_each(templates, inputs, state)
    inner = enter(inner, inside)
    {condition, inner} = value(condition, inner)
    {next, inner} = each(body, inner)
    state = leave(inner, state)

    node =
      {:while, Recorder.id(), nodes(initial), scope, condition.data.node, nodes(next)}

    {values, state} = finish_each(initial, Recorder.parts(node, length(initial)), state)
    {shaped(values, t), state}
  end

  defp visit(:cond, [clauses, last], t, state) do
    {values, state} = clauses(clauses, last, state)
    {shaped(values, t), state}
  end

  defp visit(:block, [struct, arguments, expr, _fun], t, state) do
    {tensors, options} = Enum.split_while(arguments, &(not is_list(&1)))
    {tensors, state} = Enum.map_reduce(tensors, state, &value/2)
    out = if match?(%T{type: {:tuple, _}}, t), do: expr, else: t

    case Lowering.block(state.emitter, struct, out, tensors ++ options) do
      :default ->
        {values, inner} = each(expr, enter(state, tensors))
        {shaped(values, t), leave(inner, state)}

      nodes when is_tuple(nodes) and is_tuple(out) ->
        {values, state} =
          Enum.zip(Tuple.to_list(out), Tuple.to_list(nodes))
          |> Enum.map_reduce(state, fn {out, node}, state -> finish(out, node, state) end)

        {shaped(values, t), state}

      node ->
        finish(t, node, state)
    end
  end

  ## Calls of Elixir functions

  defp visit(:io_call, [arguments, callback, template, _ref], t, state) do
    {values, state} = each(arguments, state)

    case hook(callback, state.hooks) do
      nil ->
        {shaped(values, t), state}

      hook ->
        call(values, values, t, state, fn refs ->
          hook.(from_refs(template, refs))
          refs
        end)
    end
  end

  defp visit(:runtime_call, [arguments, fun, template, options], t, state) do
    {values, state} = each(arguments, state)
    inputs = Nx.to_template(arguments)

    outputs = for output <- Composite.flatten_list([template]), do: Nx.devectorize(output)

    call(values, outputs, t, state, fn refs ->
      result = fun.(from_refs(inputs, refs), options)

      if not Nx.compatible?(template, result) do
        raise "expected the runtime_call function to match the given output template"
      end

      to_refs(result)
    end)
  end

  ## Functions given to an operation

  defp visit(op, arguments, t, state) when op in [:reduce, :window_reduce] do
    {[tensor, acc], rest} = Enum.split(arguments, 2)
    {tensor, state} = value(tensor, state)
    {acc, state} = value(acc, state)
    {options, [fun]} = Enum.split(rest, -1)
    arguments = options ++ [callable(fun)]

    case apply(Lowering, op, [state.emitter, t, tensor, acc | arguments]) do
      :default ->
        # Templates, since what a call keeps outlives the expression.
        {inputs, out} = {Nx.to_template({tensor, acc}), Nx.to_template(t)}

        call([tensor, acc], [t], t, state, fn refs ->
          {tensor, acc} = from_refs(inputs, refs)
          to_refs(apply(Emily.Backend, op, [out, tensor, acc | arguments]))
        end)

      node ->
        finish(t, node, state)
    end
  end

  ## Operations

  defp visit(op, _arguments, t, state) do
    {arguments, state} = Tree.apply_args(t, :scope, state, &value/2)

    if function_exported?(Lowering, op, length(arguments) + 2) do
      finish(t, apply(Lowering, op, [state.emitter, t | arguments]), state)
    else
      raise Unsupported, op: op, reason: "no program can have this operation"
    end
  end

  ## Scopes

  # A gradient may have one expression in several loops, where its parameters are others.
  defp enter(state, parameters),
    do: %{state | parameters: List.to_tuple(parameters), seen: %{}}

  defp leave(inner, state), do: %{inner | parameters: state.parameters, seen: state.seen}

  ## Conditions

  # A condition has two branches: what follows the first clause is the other branch of it.
  defp clauses([], last, state), do: each(last, state)

  defp clauses([{predicate, body} | rest], last, state) do
    {predicate, state} = value(predicate, state)
    {on_true, state} = each(body, state)
    {on_false, state} = clauses(rest, last, state)

    node =
      {:cond, Recorder.id(), predicate.data.node, nodes(on_true), nodes(on_false)}

    finish_each(on_false, Recorder.parts(node, length(on_false)), state)
  end

  ## Calls

  defp call(values, templates, t, state, fun) do
    key = length(state.calls)
    node = {:call, Recorder.id(), nodes(values), key, Enum.map(templates, &template/1)}
    state = %{state | calls: [fun | state.calls]}
    {values, state} = finish_each(templates, Recorder.parts(node, length(templates)), state)
    {shaped(values, t), state}
  end

  @doc "A container of tensors from their references, and what is left of these."
  def from_refs(template, refs) do
    {container, []} =
      Composite.traverse(template, refs, fn t, [ref | refs] ->
        {%{t | data: %Emily.Backend{ref: ref}}, refs}
      end)

    container
  end

  defp to_refs(container) do
    eager = Emitter.Eager.for_tensors([])
    for t <- Composite.flatten_list([container]), do: Emitter.input(eager, Nx.to_tensor(t))
  end

  defp hook({:fn, fun}, _hooks), do: fun
  defp hook({:named, name, callback}, hooks), do: hooks[name] || callback

  # The function itself, for tensors of any backend.
  defp callable(%T{data: %Expr{op: :fun, args: [_parameters, body, _mfa]}}) do
    evaluate = Nx.Defn.Evaluator.__compile__(nil, [], fn [] -> body end, [])

    fn element, acc ->
      [result] = evaluate.([[fn -> Nx.to_tensor(element) end, fn -> Nx.to_tensor(acc) end]])
      result
    end
  end
end
