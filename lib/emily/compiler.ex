defmodule Emily.Compiler do
  @moduledoc """
  An `Nx.Defn.Compiler` that makes one native program of a defn.

      Nx.Defn.default_options(compiler: Emily.Compiler)
      Nx.Defn.jit(&MyModel.predict/2, compiler: Emily.Compiler)

  A call of a compiled defn is one job on the stream of the calling process (see `Emily.Stream`),
  whatever the defn does: loops and conditions run on the worker. Operations mean what they mean in
  `Emily.Backend`, and give the same bits. Arguments of other backends are copied in.

  ## Options

    * `:native` - `true` (default): one program; `false`: operation by operation, by
      `Nx.Defn.Evaluator` on `Emily.Backend`.
    * `:native_fallback` - what happens to a defn that no program can be made of: `:eval` (default) has it
      evaluated operation by operation, with the event `[:emily, :compiler, :fallback]` and one log
      line; `:raise` raises ArgumentError.
    * `:fuse` - `true` has MLX fuse elementwise operations into kernels of its own. Results may then differ
      in the last bits. On a CPU MLX needs a C++ compiler for that at run time, and compiles for some
      hundred milliseconds at the first call; without a compiler nothing is fused. Default: `false`.
    * `:device` - `:gpu` (default) or `:cpu`: where a process without a stream computes.
    * `:max_concurrency` - the number of partitions of an `Nx.Serving`, each of which has a stream of its
      own. Default: 1.
    * `:donate` - the positions of the arguments, from 0, that calls give away; see below. Default: none.
    * `:hooks` - functions in place of those of named hooks, by name.

  Other options are ignored. `config :emily, native: false`, and so for `:native_fallback` and `:fuse`, sets
  the default.

  ## What is called back

  Hooks (`Nx.Defn.Kernel.hook/3`), `Nx.runtime_call/4` and `Nx.reduce/4` with a function that is no known
  monoid run in the calling process in the middle of the program. The worker is free meanwhile, so
  that they may compute on the same stream.

  ## Donation

  A call gives the tensors of the arguments in `:donate` away, and those that `Nx.donatable/1` (since Nx 0.13.2)
  has marked: their buffers may be reused for results, so that a cache that is passed on is updated in
  place. Later uses of such a tensor raise. One that stands in several places of the arguments is not
  given away.

  ## Cache

  A function is traced and compiled once for each signature: the shapes, types and names of its tensors and
  everything else in its arguments. Closures with equal captured values are one function. At most
  `config :emily, compiler_cache_limit: 256` programs are kept, the most recently used ones; they keep
  what their functions captured. `[:emily, :compiler, :compile]` is a telemetry span around each compilation, and
  a function that was compiled for 64 signatures within a minute is logged.
  """

  @behaviour Nx.Defn.Compiler

  require Logger

  alias Emily.Compiler.{Cache, Executable, Trace}
  alias Emily.Native.{Call, Nif}
  alias Emily.Telemetry
  alias Nx.Defn.{Composite, Evaluator}

  @impl true
  def __partitions_options__(opts) do
    case Keyword.get(opts, :max_concurrency) do
      count when count in [nil, 1] ->
        [opts]

      count when is_integer(count) and count > 1 ->
        for _ <- 1..count, do: [stream: Emily.Stream.new(device(opts))] ++ opts

      other ->
        raise ArgumentError,
              "invalid :max_concurrency, expected a positive integer, got: #{inspect(other)}"
    end
  end

  @impl true
  def __to_backend__(opts), do: {Emily.Backend, [device: device(opts)]}

  @impl true
  def __jit__(key, vars, fun, args_list, opts) do
    __compile__(key, vars, fun, opts).(args_list)
  end

  @impl true
  def __compile__(key, vars, fun, opts) do
    config = config(opts)

    if config.native do
      case executable(key, vars, fun, config, worker(opts)) do
        {:ok, executable} -> &run(&1, executable, key, vars, fun, config, opts)
        {:unsupported, error} -> fall_back(error, key, vars, fun, config, opts)
      end
    else
      evaluator(key, vars, fun, opts)
    end
  end

  ## Options

  defp config(opts) do
    %{
      native: boolean(:native, opts, true),
      fuse: boolean(:fuse, opts, false),
      fallback: fallback(opts),
      hooks: Map.new(Keyword.get(opts, :hooks, %{})),
      donate: donate(Keyword.get(opts, :donate, []))
    }
  end

  defp option(name, opts, default) do
    Keyword.get_lazy(opts, name, fn -> Application.get_env(:emily, name, default) end)
  end

  defp boolean(name, opts, default) do
    case option(name, opts, default) do
      value when is_boolean(value) ->
        value

      other ->
        raise ArgumentError,
              "invalid #{inspect(name)}, expected a boolean, got: #{inspect(other)}"
    end
  end

  defp fallback(opts) do
    case option(:native_fallback, opts, :eval) do
      mode when mode in [:eval, :raise] ->
        mode

      other ->
        raise ArgumentError,
              "invalid :native_fallback, expected :eval or :raise, got: #{inspect(other)}"
    end
  end

  defp donate(positions) do
    if is_list(positions) and Enum.all?(positions, &(is_integer(&1) and &1 >= 0)) do
      positions
    else
      raise ArgumentError,
            "invalid :donate, expected a list of positions of arguments, got: #{inspect(positions)}"
    end
  end

  defp device(opts) do
    case Keyword.get(opts, :device, :gpu) do
      device when device in [:cpu, :gpu] ->
        device

      other ->
        raise ArgumentError, "expected :device to be :cpu or :gpu, got: #{inspect(other)}"
    end
  end

  # The process's stream, a partition's own, or the default one.
  defp worker(opts) do
    case {Process.get(:emily_worker), opts[:stream]} do
      {nil, %Emily.Stream{worker: worker}} -> worker
      _ -> Emily.Stream.worker(device(opts))
    end
  end

  ## The native lane

  defp run([arguments], executable, key, vars, fun, config, opts) do
    worker = worker(opts)

    executable =
      if Emily.Stream.device(worker) == executable.device do
        executable
      else
        {:ok, other} = executable(key, vars, fun, config, worker)
        other
      end

    [Executable.run(executable, arguments, worker)]
  end

  defp executable(key, vars, fun, config, worker) do
    device = Emily.Stream.device(worker)
    cache_key = {key, signature(vars), device, config.fuse, config.hooks, config.donate}

    Cache.fetch(cache_key, key, fn -> compile(key, vars, fun, config, worker) end)
  end

  # What is not a tensor in the arguments is part of the signature, too.
  defp signature(vars) do
    Enum.map(vars, fn var ->
      Composite.traverse(var, fn t ->
        {t.type, t.shape, t.names, t.vectorized_axes, Executable.donatable?(t)}
      end)
    end)
  end

  defp compile(key, vars, fun, config, worker) do
    if config.fuse and not Call.now(Nif.program_fusion(worker)), do: Telemetry.warn_unfused()

    Telemetry.span([:emily, :compiler, :compile], %{key: key}, fn ->
      executable = Executable.compile(fun, vars, worker, config)
      {{:ok, executable}, %{key: key, op_count: executable.op_count}}
    end)
  rescue
    error in Trace.Unsupported -> {:unsupported, error}
  end

  ## The evaluator

  defp fall_back(error, _key, _vars, _fun, %{fallback: :raise}, _opts) do
    raise ArgumentError, "Emily.Compiler: #{Exception.message(error)}"
  end

  defp fall_back(error, key, vars, fun, _config, opts) do
    Telemetry.compiler_fallback(key, error)
    evaluator(key, vars, fun, opts)
  end

  # Every tensor is to be on MLX: a parameter that is not would take its operations elsewhere.
  defp evaluator(key, vars, fun, opts) do
    backend = __to_backend__(opts)

    evaluate =
      Evaluator.__compile__(key, vars, fun, Keyword.take(opts, [:hooks, :garbage_collect]))

    fn [arguments] ->
      arguments = Enum.map(arguments, fn argument -> fn -> on_mlx(argument.(), backend) end end)
      evaluate = fn -> Nx.with_default_backend(backend, fn -> evaluate.([arguments]) end) end
      on_stream(opts[:stream], evaluate)
    end
  end

  defp on_mlx(%Nx.Tensor{data: %Emily.Backend{}} = t, _backend), do: t
  defp on_mlx(t, backend), do: Nx.backend_copy(t, backend)

  defp on_stream(%Emily.Stream{} = stream, fun) do
    if Process.get(:emily_worker), do: fun.(), else: Emily.Stream.with_stream(stream, fun)
  end

  defp on_stream(nil, fun), do: fun.()
end
