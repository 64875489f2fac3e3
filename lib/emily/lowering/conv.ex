defmodule Emily.Lowering.Conv do
  @moduledoc false

  # Convolution. MLX wants channels last, one to three spatial axes and real floats: layouts are
  # permuted, more spatial axes are written as a product over windows, complex numbers as four real
  # convolutions, and batch groups as feature groups.

  import Emily.Emitter, only: [emit: 3]
  import Emily.Lowering.Type, only: [astype: 3, is_half: 1, operand: 3]

  alias Emily.Emitter
  alias Emily.Lowering.Shape

  def conv(e, %{type: type} = out, tensor, kernel, opts) do
    compute = if is_half(type) and Emitter.device(e) == :cpu, do: {:f, 32}, else: type
    spatial = tuple_size(tensor.shape) - 2

    {x, x_shape} =
      channels_last(e, operand(e, tensor, compute), tensor.shape, opts[:input_permutation])

    {w, w_shape} =
      channels_last(e, operand(e, kernel, compute), kernel.shape, opts[:kernel_permutation])

    {x, x_shape, groups} = group(e, x, x_shape, opts)
    {x, x_shape, padding} = crop(e, x, x_shape, opts[:padding], opts[:input_dilation])
    {low, high} = Enum.unzip(padding)

    attrs = %{
      strides: opts[:strides],
      padding_low: low,
      padding_high: high,
      kernel_dilation: opts[:kernel_dilation],
      input_dilation: opts[:input_dilation],
      groups: groups,
      flip: false
    }

    run = &run(e, attrs, &1, x_shape, &2, w_shape)
    result = if match?({:c, _}, compute), do: complex(e, x, w, run), else: run.(x, w)

    # The result is {batch, spatial.., filters}; Nx names its axes batch, filters, spatial...
    order = Shape.inverse(opts[:output_permutation])
    last = spatial + 1

    positions =
      Enum.map(order, fn
        0 -> 0
        1 -> last
        axis -> axis - 1
      end)

    permuted = Shape.permute(e, result, positions)

    if compute == out.type, do: permuted, else: astype(e, permuted, out.type)
  end

  defp channels_last(e, handle, shape, [first, channels | spatial]) do
    order = [first] ++ spatial ++ [channels]
    {Shape.permute(e, handle, order), Enum.map(order, &elem(shape, &1))}
  end

  # Batch group g meets the filters of group g: its rows become channels of the same rows.
  defp group(e, x, [batch | rest] = shape, opts) do
    case opts[:batch_group_size] do
      1 ->
        {x, shape, opts[:feature_group_size]}

      groups ->
        rows = div(batch, groups)
        {spatial, [channels]} = Enum.split(rest, -1)
        split = emit(e, {:reshape, %{shape: [groups, rows] ++ rest}}, [x])
        rank = length(rest) + 2
        order = Enum.to_list(1..(rank - 2)//1) ++ [0, rank - 1]
        grouped = [rows] ++ spatial ++ [groups * channels]

        {emit(e, {:reshape, %{shape: grouped}}, [Shape.permute(e, split, order)]), grouped,
         groups}
    end
  end

  # Negative padding cuts elements off, counted after the input's dilation.
  defp crop(e, x, shape, padding, dilation) do
    if Enum.all?(padding, fn {low, high} -> low >= 0 and high >= 0 end) do
      {x, shape, padding}
    else
      config =
        Enum.zip_with(padding, dilation, fn {low, high}, step ->
          {min(low, 0), min(high, 0), step - 1}
        end)

      zero = Emitter.scalar(e, 0, {:f, 32})
      cut? = Enum.any?(dilation, &(&1 > 1))

      # Only an undilated input can be cut before MLX dilates it.
      if cut?,
        do:
          raise(
            ArgumentError,
            "conv: negative padding of a dilated input is not supported, got #{inspect(padding)}"
          )

      full = [{0, 0, 0}] ++ config ++ [{0, 0, 0}]
      handle = Shape.pad_to(e, x, List.to_tuple(shape), zero, full)
      sizes = Enum.zip_with(shape, full, fn size, {low, high, 0} -> size + low + high end)
      {handle, sizes, Enum.map(padding, fn {low, high} -> {max(low, 0), max(high, 0)} end)}
    end
  end

  defp complex(e, x, w, run) do
    [xr, xi, wr, wi] = [
      emit(e, :real, [x]),
      emit(e, :imag, [x]),
      emit(e, :real, [w]),
      emit(e, :imag, [w])
    ]

    real = emit(e, :subtract, [run.(xr, wr), run.(xi, wi)])
    imag = emit(e, :add, [run.(xr, wi), run.(xi, wr)])
    join(e, real, imag)
  end

  defp join(e, real, imag) do
    unit = Emitter.scalar(e, Complex.new(0, 1), {:c, 64})
    emit(e, :add, [real, emit(e, :multiply, [imag, unit])])
  end

  defp run(e, attrs, x, x_shape, w, w_shape) do
    if length(x_shape) <= 5,
      do: emit(e, {:conv_general, attrs}, [x, w]),
      else: by_windows(e, attrs, x, x_shape, w, w_shape)
  end

  # A view of every window, then one product: {batch, windows.., taps.., channels} with the kernel.
  defp by_windows(e, attrs, x, [batch | rest], w, [filters | kernel]) do
    {spatial, [channels]} = Enum.split(rest, -1)
    {taps, [depth]} = Enum.split(kernel, -1)

    config =
      Enum.zip_with([attrs.padding_low, attrs.padding_high, attrs.input_dilation], fn [
                                                                                        low,
                                                                                        high,
                                                                                        step
                                                                                      ] ->
        {low, high, step - 1}
      end)

    zero = emit(e, {:zeros, %{shape: [], dtype: {:f, 32}}}, [])
    full = [{0, 0, 0}] ++ config ++ [{0, 0, 0}]
    padded = Shape.pad_to(e, x, List.to_tuple([batch | rest]), zero, full)

    sizes =
      Enum.zip_with(spatial, config, fn size, {low, high, between} ->
        size + (size - 1) * between + low + high
      end)

    windows =
      Enum.zip_with([sizes, taps, attrs.kernel_dilation, attrs.strides], fn [
                                                                              size,
                                                                              tap,
                                                                              dilation,
                                                                              stride
                                                                            ] ->
        div(size - (tap - 1) * dilation - 1, stride) + 1
      end)

    [batch_step | steps] = row_major([batch] ++ sizes ++ [channels])
    {steps, [1]} = Enum.split(steps, -1)

    view = %{
      shape: [batch] ++ windows ++ taps ++ [channels],
      strides:
        [batch_step] ++ times(steps, attrs.strides) ++ times(steps, attrs.kernel_dilation) ++ [1],
      offset: 0
    }

    places = Enum.product(windows)
    columns = Enum.product(taps)
    view = emit(e, {:as_strided, view}, [emit(e, :contiguous, [padded])])

    # {groups, batch * windows, taps * depth} by {groups, taps * depth, filters / groups}.
    groups = attrs.groups
    view = emit(e, {:reshape, %{shape: [batch * places, columns, groups, depth]}}, [view])
    view = emit(e, {:transpose, %{axes: [2, 0, 1, 3]}}, [view])
    view = emit(e, {:reshape, %{shape: [groups, batch * places, columns * depth]}}, [view])
    w = emit(e, {:reshape, %{shape: [groups, div(filters, groups), columns * depth]}}, [w])
    product = emit(e, :matmul, [view, Shape.matrix_transpose(e, w)])
    product = emit(e, {:transpose, %{axes: [1, 0, 2]}}, [product])
    emit(e, {:reshape, %{shape: [batch] ++ windows ++ [filters]}}, [product])
  end

  defp times(a, b), do: Enum.zip_with(a, b, &(&1 * &2))

  defp row_major(shape) do
    {steps, _} =
      List.foldr(shape, {[], 1}, fn size, {steps, step} -> {[step | steps], step * size} end)

    steps
  end
end
