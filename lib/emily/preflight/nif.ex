defmodule Emily.Preflight.Nif do
  @moduledoc false
  # A small library that needs no MLX and asks what the host has. It is built with a CUDA build of MLX
  # only, and loaded by hand: a module whose on_load has not run yet cannot be called by another's.

  @doc "Loads the library; it may be loaded already."
  def load(priv) do
    case :erlang.load_nif(Path.join(priv, "libemily_preflight"), 0) do
      :ok -> :ok
      {:error, reason} when elem(reason, 0) == :reload -> :ok
      {:error, reason} -> {:error, reason |> elem(1) |> List.to_string()}
    end
  end

  @doc "Loads a library by path or name, and keeps it: `{:ok, true}` or `{:error, text}`."
  def open(_library), do: missing()

  @doc "`{:ok, {version, [{name, bytes}]}}` of NVIDIA's driver and its devices, or `{:error, text}`."
  def driver, do: missing()

  defp missing, do: :erlang.nif_error(:nif_not_loaded)
end
