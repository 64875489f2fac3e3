defmodule Emily.Emitter.Recorder do
  @moduledoc false

  # Writes ops down instead of building them. A handle is a node of a graph, which holds the nodes
  # that it is computed from: what no result needs is never reached by `Emily.Compiler.Assembler`,
  # which makes programs of graphs.
  #
  #     {:op, id, op, inputs}                      one output
  #     {:several, id, op, inputs}                 several outputs, each a {:part, node, index}
  #     {:constant, id, binary, shape, type}       known elements
  #     {:tensor, ref}                             a tensor that the function captured
  #     {:parameter, scope, index}                 an input of a program
  #     {:while, id, initial, scope, condition, body}    parts: the final state
  #     {:cond, id, predicate, on_true, on_false}  parts: the outputs of the branch taken
  #     {:call, id, arguments, key, templates}     parts: what the calling process answers
  #
  # An input may be nil: an op's absent one.

  @behaviour Emily.Emitter

  alias Emily.Lowering.Type
  alias Nx.Tensor, as: T

  defmodule Value do
    @moduledoc false
    # The data of a tensor whose elements a node stands for.
    @enforce_keys [:node]
    defstruct [:node]
  end

  @enforce_keys [:device]
  defstruct [:device]

  @doc "The parts of a node with several outputs."
  def parts(node, count), do: for(index <- 0..(count - 1)//1, do: {:part, node, index})

  @doc "A number that no other node has."
  def id, do: :erlang.unique_integer()

  @doc "What tells a node from all others, and is the same for all parts of one."
  def key({:part, node, _index}), do: key(node)
  def key({:tensor, _} = node), do: node
  def key({:parameter, _, _} = node), do: node
  def key(node), do: elem(node, 1)

  @impl true
  def emit(%__MODULE__{}, op, inputs), do: {:op, id(), op, inputs}

  @impl true
  def emit_all(%__MODULE__{}, op, inputs),
    do: parts({:several, id(), op, inputs}, output_count(op))

  @doc "How many outputs an op with several has."
  def output_count(:linalg_lu), do: 3
  def output_count(:linalg_svd), do: 3
  def output_count(:linalg_qr), do: 2
  def output_count(:linalg_eig), do: 2
  def output_count({:linalg_eigh, _}), do: 2
  def output_count({:quantize, %{mode: "affine"}}), do: 3
  def output_count({:quantize, _}), do: 2

  @impl true
  def constant(%__MODULE__{}, binary, shape, type), do: {:constant, id(), binary, shape, type}

  # The backend's struct is matched as a map: its module needs the emitters to compile.
  @impl true
  def input(%__MODULE__{}, %T{data: %Value{node: node}}), do: node
  def input(%__MODULE__{}, %T{data: %{__struct__: Emily.Backend, ref: ref}}), do: {:tensor, ref}

  def input(%__MODULE__{} = e, %T{shape: shape, type: type} = foreign) do
    Type.check!(e, type)
    Emily.Emitter.constant(e, Nx.to_binary(foreign), Tuple.to_list(shape), type)
  end

  @impl true
  def device(%__MODULE__{device: device}), do: device
end
