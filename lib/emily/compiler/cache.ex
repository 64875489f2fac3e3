defmodule Emily.Compiler.Cache do
  @moduledoc false

  # What was compiled, by function and signature. A look-up copies nothing: the table has the names of
  # persistent terms. This process owns the table and sees to it that of several processes that want
  # the same thing one makes it; it is made in that process, since tracing is bound to one.
  #
  # The least recently used entry makes room where there are too many. An entry keeps what its function
  # has captured, weights included, hence the bound.

  use GenServer
  require Logger

  @limit 256

  # So many signatures of one function within this time are taken for a mistake.
  @storm 64
  @storm_seconds 60

  def start_link(_options), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @doc "Returns what is cached under a key, or makes and caches it. `function` tells whose it is."
  def fetch(key, function, make) do
    with name when name != nil <- :ets.lookup_element(__MODULE__, key, 2, nil),
         {:ok, value} <- :persistent_term.get(name, nil) do
      :ets.update_element(__MODULE__, key, {3, now()})
      value
    else
      nil -> claim(key, function, make)
    end
  end

  @doc "Forgets everything."
  def clear, do: GenServer.call(__MODULE__, :clear)

  @doc "How many entries there are."
  def size, do: :ets.info(__MODULE__, :size)

  defp claim(key, function, make) do
    case GenServer.call(__MODULE__, {:claim, key}, :infinity) do
      :cached ->
        fetch(key, function, make)

      :claimed ->
        try do
          value = make.()
          GenServer.call(__MODULE__, {:put, key, value, identity(function)}, :infinity)
          value
        after
          GenServer.cast(__MODULE__, {:release, key, self()})
        end
    end
  end

  # Closures of one function of the source are the same function to whoever looks for a mistake.
  defp identity(function) when is_function(function) do
    {:module, module} = Function.info(function, :module)
    {:name, name} = Function.info(function, :name)
    {module, name}
  end

  defp identity(other), do: other

  defp now, do: :erlang.monotonic_time()

  @impl true
  def init(nil) do
    table = [:named_table, :public, :set, read_concurrency: true, write_concurrency: true]
    :ets.new(__MODULE__, table)
    {:ok, %{claims: %{}, compiled: %{}}}
  end

  @impl true
  def handle_call({:claim, key}, {pid, _} = from, state) do
    cond do
      :ets.member(__MODULE__, key) ->
        {:reply, :cached, state}

      claim = state.claims[key] ->
        waiting = [from | claim.waiting]
        {:noreply, put_in(state.claims[key], %{claim | waiting: waiting})}

      true ->
        {:reply, :claimed, put_in(state.claims[key], claim_of(pid))}
    end
  end

  def handle_call({:put, key, value, identity}, _from, state) do
    make_room()
    name = {__MODULE__, make_ref()}
    :persistent_term.put(name, {:ok, value})
    :ets.insert(__MODULE__, {key, name, now()})
    {:reply, :ok, count(state, identity)}
  end

  def handle_call(:clear, _from, state) do
    for {_key, name, _used} <- :ets.tab2list(__MODULE__), do: :persistent_term.erase(name)
    :ets.delete_all_objects(__MODULE__)
    {:reply, :ok, %{state | compiled: %{}}}
  end

  @impl true
  def handle_cast({:release, key, pid}, state), do: {:noreply, release(state, key, pid)}

  @impl true
  def handle_info({:DOWN, monitor, :process, pid, _reason}, state) do
    keys = for {key, %{monitor: ^monitor}} <- state.claims, do: key
    {:noreply, Enum.reduce(keys, state, &release(&2, &1, pid))}
  end

  defp claim_of(pid), do: %{pid: pid, monitor: Process.monitor(pid), waiting: []}

  # Those who wait look again; where nothing is cached, the first of them makes it.
  defp release(state, key, pid) do
    case state.claims[key] do
      %{pid: ^pid, monitor: monitor, waiting: waiting} ->
        Process.demonitor(monitor, [:flush])
        state = %{state | claims: Map.delete(state.claims, key)}

        if :ets.member(__MODULE__, key) or waiting == [] do
          Enum.each(waiting, &GenServer.reply(&1, :cached))
          state
        else
          [{next, _} = first | others] = Enum.reverse(waiting)
          GenServer.reply(first, :claimed)
          put_in(state.claims[key], %{claim_of(next) | waiting: Enum.reverse(others)})
        end

      _other ->
        state
    end
  end

  defp make_room do
    limit = Application.get_env(:emily, :compiler_cache_limit, @limit)

    if :ets.info(__MODULE__, :size) >= limit do
      entries = :ets.select(__MODULE__, [{{:"$1", :"$2", :"$3"}, [], [{{:"$3", :"$1", :"$2"}}]}])
      {_used, key, name} = Enum.min_by(entries, &elem(&1, 0))
      :ets.delete(__MODULE__, key)
      :persistent_term.erase(name)
    end
  end

  defp count(state, identity) do
    second = System.monotonic_time(:second)

    {since, count} =
      case state.compiled do
        %{^identity => {since, count}} when second - since < @storm_seconds -> {since, count + 1}
        %{} -> {second, 1}
      end

    if count == @storm do
      Logger.warning(
        "emily: #{inspect(identity)} was compiled for #{count} signatures within " <>
          "#{@storm_seconds} seconds; a compilation costs far more than a call, so give it few " <>
          "shapes (pad them) and no new closures"
      )
    end

    put_in(state.compiled[identity], {since, count})
  end
end
