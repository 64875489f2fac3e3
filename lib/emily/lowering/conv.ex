defmodule Emily.Lowering.Conv do
  @moduledoc false

  # Convolution. MLX wants channels last, one to three spatial axes and real floats of at most 32
  # bits: layouts are permuted, more axes and f64 are written as a product over windows, complex
  # numbers as four real convolutions, and batch groups as feature groups.

  import Emily.Emitter, only: [emit: 3]
  import Emily.Lowering.Type, only: [astype: 3, is_small_float: 1, operand: 3]

  alias Emily.Emitter
  alias Emily.Lowering.Shape

  def conv(e, %{type: type} = out, tensor, kernel, opts) do
    compute = if is_small_float(type) and Emitter.device(e) == :cpu, do: {:f, 32}, else: type
    spatial = tuple_size(tensor.shape) - 2

    {x, x_shape} =
      channels_last(e, operand(e, tensor, compute), tensor.shape, opts[:input_permutation])

    {w, w_shape} =
      channels_last(e, operand(e, kernel, compute), kernel.shape, opts[:kernel_permutation])

    {x, x_shape, groups} = group(e, x, x_shape, opts)
    {x, x_shape, padding, dilation} = crop(e, x, x_shape, compute, opts)
    {low, high} = Enum.unzip(padding)

    attrs = %{
      strides: opts[:strides],
      padding_low: low,
      padding_high: high,
      kernel_dilation: opts[:kernel_dilation],
      input_dilation: dilation,
      groups: groups,
      flip: false
    }

    real = if match?({:c, _}, compute), do: {:f, 32}, else: compute
    run = &run(e, attrs, real, &1, x_shape, &2, w_shape)
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

  # Padding below zero cuts elements off, which counts those that a dilation puts in between; so the
  # whole of padding and dilation is done here.
  defp crop(e, x, shape, type, opts) do
    if Enum.all?(opts[:padding], fn {low, high} -> low >= 0 and high >= 0 end) do
      {x, shape, opts[:padding], opts[:input_dilation]}
    else
      inner =
        Enum.zip_with(opts[:padding], opts[:input_dilation], fn {low, high}, step ->
          {low, high, step - 1}
        end)

      config = [{0, 0, 0}] ++ inner ++ [{0, 0, 0}]
      handle = Shape.pad_to(e, x, List.to_tuple(shape), Emitter.scalar(e, 0, type), config)

      sizes =
        Enum.zip_with(shape, config, fn size, {low, high, between} ->
          size + (size - 1) * between + low + high
        end)

      {handle, sizes, Enum.map(inner, fn _ -> {0, 0} end), Enum.map(inner, fn _ -> 1 end)}
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

  defp run(e, attrs, type, x, x_shape, w, w_shape) do
    if length(x_shape) <= 5 and type != {:f, 64},
      do: emit(e, {:conv_general, attrs}, [x, w]),
      else: by_windows(e, attrs, type, x, x_shape, w, w_shape)
  end

  # A view of every window, then one product: {batch, windows.., taps.., channels} with the kernel.
  defp by_windows(e, attrs, type, x, [batch | rest], w, [filters | kernel]) do
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

    zero = Emitter.scalar(e, 0, type)
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
