defmodule Emily.Application do
  @moduledoc false
  use Application

  @impl true
  def start(_type, _args) do
    Emily.Telemetry.init_dedup_table()
    Emily.Memory.configure()
    :persistent_term.put({Emily, :await_timeout}, await_timeout())
    Supervisor.start_link(children(), strategy: :one_for_one, name: Emily.Supervisor)
  end

  @impl true
  def stop(_state), do: Emily.Stream.Default.forget()

  # Without Nx there is no compiler.
  defp children do
    for module <- [Emily.Stream.Default, Emily.Compiler.Cache],
        Code.ensure_loaded?(module),
        do: module
  end

  defp await_timeout do
    case Application.get_env(:emily, :await_timeout, :infinity) do
      :infinity ->
        :infinity

      milliseconds when is_integer(milliseconds) and milliseconds >= 0 ->
        milliseconds

      other ->
        raise ArgumentError,
              "config :emily, :await_timeout: expected milliseconds or :infinity, got: #{inspect(other)}"
    end
  end
end
