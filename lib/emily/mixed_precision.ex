defmodule Emily.MixedPrecision do
  @moduledoc """
  Training in a half type with master parameters in single precision, after
  [Micikevicius et al.](https://arxiv.org/abs/1710.03740).

  Cast the master parameters, compute loss and gradients in the half type, cast the gradients up and update
  the master parameters:

      half = MixedPrecision.cast_params(params, {:bf, 16})
      {loss, grads} = Nx.Defn.value_and_grad(half, &loss(&1, batch))
      grads = MixedPrecision.accumulate_grad(grads, {:f, 32})

  `{:bf, 16}` has the range of single precision. With `{:f, 16}` small gradients vanish, unless the loss is
  scaled: multiply it with `scale_loss/2`, divide the gradients with `unscale/2`, leave out the steps
  that overflowed, and let `update/2` find the scale.

      {grads, overflow?} = MixedPrecision.unscale(grads, scaler)
      scaler = MixedPrecision.update(scaler, overflow?)

  Parameters and gradients are tensors in maps, tuples and lists, nested at will. Structs other than tensors
  stay as they are: of an `Axon.ModelState` pass the `data`.
  """

  alias Emily.MixedPrecision.LossScaler
  alias Nx.Tensor, as: T

  @doc """
  Casts the tensors of float types to a type; others stay.
  """
  @spec cast_params(term(), Nx.Type.t()) :: term()
  def cast_params(params, type) do
    type = Nx.Type.normalize!(type)
    map_floats(params, &Nx.as_type(&1, type))
  end

  @doc """
  Casts gradients to the type in which they are accumulated; the same as `cast_params/2`.
  """
  @spec accumulate_grad(term(), Nx.Type.t()) :: term()
  def accumulate_grad(grads, type), do: cast_params(grads, type)

  @doc """
  A scale that adapts itself; the same as `LossScaler.new/1`.
  """
  @spec loss_scale(keyword()) :: LossScaler.t()
  defdelegate loss_scale(opts \\ []), to: LossScaler, as: :new

  @doc """
  The loss times the scale, in single precision at least: half types do not reach the first scale.
  """
  @spec scale_loss(Nx.Tensor.t(), LossScaler.t()) :: Nx.Tensor.t()
  def scale_loss(loss, %LossScaler{scale: scale}) do
    loss = Nx.to_tensor(loss)
    wide = wide(loss.type)
    loss |> Nx.as_type(wide) |> Nx.multiply(Nx.tensor(scale, type: wide))
  end

  @doc """
  The gradients divided by the scale, each in its own type, and whether any of them is no finite number.

  Waits for the gradients.
  """
  @spec unscale(term(), LossScaler.t()) :: {term(), boolean()}
  def unscale(grads, %LossScaler{scale: scale}) do
    overflow? = has_overflow?(grads)

    unscaled =
      map_floats(grads, fn grad ->
        wide = wide(grad.type)
        inverse = Nx.tensor(1 / scale, type: wide)
        grad |> Nx.as_type(wide) |> Nx.multiply(inverse) |> Nx.as_type(grad.type)
      end)

    {unscaled, overflow?}
  end

  defp wide({_, 64} = type), do: type
  defp wide({:c, _} = type), do: type
  defp wide(_type), do: {:f, 32}

  @doc """
  The scaler for the next step: see `Emily.MixedPrecision.LossScaler`.
  """
  @spec update(LossScaler.t(), boolean()) :: LossScaler.t()
  def update(%LossScaler{} = scaler, true) do
    %{scaler | scale: max(scaler.scale * scaler.backoff_factor, scaler.min_scale), counter: 0}
  end

  def update(%LossScaler{counter: counter, growth_interval: interval} = scaler, false)
      when counter + 1 >= interval do
    %{scaler | scale: scaler.scale * scaler.growth_factor, counter: 0}
  end

  def update(%LossScaler{} = scaler, false), do: %{scaler | counter: scaler.counter + 1}

  @doc """
  Whether any tensor of a float type has an infinity or a NaN. Waits for them, once for all.
  """
  @spec has_overflow?(term()) :: boolean()
  def has_overflow?(structure) do
    case structure |> floats([]) |> Enum.map(&overflow/1) do
      [] -> false
      flags -> flags |> Enum.reduce(&Nx.logical_or/2) |> Nx.to_number() == 1
    end
  end

  defp overflow(tensor) do
    tensor = Nx.devectorize(tensor)
    Nx.any(Nx.logical_or(Nx.is_nan(tensor), Nx.is_infinity(tensor)))
  end

  ## Structures

  defp float?({kind, _}), do: kind in [:f, :bf, :f8_e4m3fn]

  defp map_floats(%T{type: type} = tensor, fun),
    do: if(float?(type), do: fun.(tensor), else: tensor)

  defp map_floats(%_{} = struct, _fun), do: struct

  defp map_floats(map, fun) when is_map(map),
    do: Map.new(map, fn {k, v} -> {k, map_floats(v, fun)} end)

  defp map_floats(list, fun) when is_list(list), do: Enum.map(list, &map_floats(&1, fun))

  defp map_floats(tuple, fun) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> map_floats(fun) |> List.to_tuple()

  defp map_floats(other, _fun), do: other

  defp floats(%T{type: type} = tensor, found),
    do: if(float?(type), do: [tensor | found], else: found)

  defp floats(%_{}, found), do: found
  defp floats(map, found) when is_map(map), do: map |> Map.values() |> floats(found)
  defp floats(list, found) when is_list(list), do: Enum.reduce(list, found, &floats/2)
  defp floats(tuple, found) when is_tuple(tuple), do: tuple |> Tuple.to_list() |> floats(found)
  defp floats(_other, found), do: found
end
