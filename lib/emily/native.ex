defmodule Emily.Native do
  @moduledoc """
  MLX's operations on tensor references, one function each.

  The first argument `w` of most functions is a worker, the `worker` field of an `Emily.Stream`. Shapes, axes
  and permutations are lists of integers, axes may be negative; a dtype is a tuple such as `{:f, 32}`,
  `{:pred, 1}` for booleans. Operands broadcast as numpy's do, and mixed dtypes are promoted as MLX does.

  A function with one result returns at once; the tensor is computed when it is read or evaluated. Functions
  with several results (`linalg_lu/2`, `linalg_svd/2`, `linalg_qr/2`, `linalg_eigh/3`, `quantize/5`, `split/4`) return
  when they are computed.

  Wrong arguments raise ArgumentError naming the operation, what was expected and what it got. A failure of
  MLX or the device, a closed stream and a full one raise RuntimeError. Data cannot do harm: an index out
  of range is clamped, an update out of range is dropped, and integers divided by zero give -1 (all
  bits set for unsigned ones), with the dividend as the remainder.
  """

  alias Emily.Native.{Call, Nif, Plain}

  @type worker :: reference
  @type tensor :: reference
  @type dtype :: Emily.dtype()

  ## Tensors

  @doc "As `Emily.from_binary/3`."
  @spec from_binary(binary, [integer], dtype) :: tensor
  defdelegate from_binary(binary, shape, dtype), to: Emily

  @doc "The elements of `t`, row-major in native byte order; evaluates it."
  @spec to_binary(worker, tensor) :: binary
  defdelegate to_binary(w, t), to: Call

  @doc "The sizes of the axes."
  @spec shape(tensor) :: [non_neg_integer]
  def shape(t), do: Call.now(Nif.shape(t))

  @doc "The dtype."
  @spec dtype(tensor) :: dtype
  def dtype(t), do: Call.now(Nif.dtype(t))

  @doc "The device that a tensor was made for."
  @spec device(tensor) :: :cpu | :gpu
  def device(t), do: Call.now(Nif.device(t))

  @doc "Whether a tensor is computed."
  @spec ready?(tensor) :: boolean
  def ready?(t), do: Call.now(Nif.is_ready(t))

  @doc "Evaluates a tensor, or a list of them, and waits."
  @spec eval(worker, tensor | [tensor]) :: :ok
  def eval(w, t), do: Call.eval(w, if(is_list(t), do: t, else: [t]))

  @doc """
  Begins to evaluate and returns a reference; the message `{reference, {:ok, :ok}}` or
  `{reference, {:error, {kind, text}}}` follows.
  """
  @spec eval_nif(worker, tensor) :: reference
  def eval_nif(w, t) do
    # The message of a worker is `{tag, :ok}`; a process of our own makes it what callers wait for.
    {caller, tag} = {self(), make_ref()}

    spawn(fn ->
      answer =
        try do
          {:ok, Call.eval(w, [t])}
        rescue
          error in ArgumentError -> {:error, {:argument, error.message}}
          error -> {:error, {:runtime, Exception.message(error)}}
        end

      send(caller, {tag, answer})
    end)

    tag
  end

  @doc """
  Gives a tensor's memory back now instead of when its reference is collected; later uses raise.

  A buffer that another tensor or a binary shares stays. Returns whether there was anything to give
  back.
  """
  @spec deallocate(tensor) :: boolean
  def deallocate(t), do: Call.now(Nif.deallocate(t))

  ## Workers

  @doc "Starts a worker; `Emily.Stream.new/1` is the way for users."
  @spec create_worker() :: worker
  def create_worker, do: Emily.Stream.Default.start_worker(:gpu)

  @doc "Ends a worker; `Emily.Stream.close/1` is the way for users."
  @spec stop_worker(worker) :: :ok
  def stop_worker(w), do: Emily.Stream.close(%Emily.Stream{worker: w})

  @doc "How many jobs wait on a worker."
  @spec worker_queue_depth(worker) :: non_neg_integer
  def worker_queue_depth(w) do
    {_device, depth, _open, _bytes} = Call.now(Nif.worker_info(w))
    depth
  end

  ## Creation and casts

  @doc "Zeros."
  def zeros(w, shape, dtype), do: one(w, {:zeros, %{shape: shape, dtype: dtype}}, [])

  @doc "Ones."
  def ones(w, shape, dtype), do: one(w, {:ones, %{shape: shape, dtype: dtype}}, [])

  @doc "`value`, a scalar tensor, everywhere."
  def full(w, shape, value, dtype), do: one(w, {:full, %{shape: shape, dtype: dtype}}, [value])

  @doc "Numbers from `start` to `stop`, which is not included."
  def arange(w, start, stop, step, dtype) do
    one(w, {:arange, %{start: start, stop: stop, step: step, dtype: dtype}}, [])
  end

  @doc "A matrix with ones on diagonal `k`, above the main one when positive."
  def eye(w, rows, cols, k, dtype) do
    one(w, {:eye, %{rows: rows, cols: cols, k: k, dtype: dtype}}, [])
  end

  @doc "Converts the elements; floats are truncated towards zero."
  def astype(w, t, dtype), do: one(w, {:astype, %{dtype: dtype}}, [t])

  @doc "Reinterprets the bytes; the last axis changes with the width."
  def bitcast(w, t, dtype), do: one(w, {:bitcast, %{dtype: dtype}}, [t])

  ## Elementwise, and the products of two tensors

  for {name, text} <- Plain.unary() do
    @doc text <> "."
    @spec unquote(name)(worker, tensor) :: tensor
    def unquote(name)(w, t), do: one(w, unquote(name), [t])
  end

  @doc "Rounds to `decimals`, half to even."
  def round(w, t, decimals), do: one(w, {:round, %{decimals: decimals}}, [t])

  for {name, text} <- Plain.binary() do
    @doc text <> "."
    @spec unquote(name)(worker, tensor, tensor) :: tensor
    def unquote(name)(w, a, b), do: one(w, unquote(name), [a, b])
  end

  @doc "`x` where `cond` is true, `y` elsewhere."
  def where(w, cond, x, y), do: one(w, :where, [cond, x, y])

  @doc "Limits the elements to what lies between two tensors."
  def clip(w, t, min, max), do: one(w, :clip, [t, min, max])

  @doc "A scalar `{:pred, 1}`: whether shapes and elements are equal."
  def array_equal(w, a, b, equal_nan), do: one(w, {:array_equal, %{equal_nan: equal_nan}}, [a, b])

  ## Reductions

  for {name, text} <- [
        sum: "The sum",
        mean: "The mean",
        prod: "The product",
        max: "The greatest element",
        min: "The least element",
        all: "Whether no element is zero",
        any: "Whether an element is not zero",
        logsumexp: "`log(sum(exp(t)))`"
      ] do
    @doc text <> " over `axes`; no axes reduces nothing."
    @spec unquote(name)(worker, tensor, [integer], boolean) :: tensor
    def unquote(name)(w, t, axes, keepdims) do
      one(w, {unquote(name), %{axes: axes, keep_axes: keepdims}}, [t])
    end
  end

  for {name, text} <- [var: "The variance", std: "The standard deviation"] do
    @doc text <> " over `axes`; the divisor is the count less `ddof`."
    @spec unquote(name)(worker, tensor, [integer], boolean, integer) :: tensor
    def unquote(name)(w, t, axes, keepdims, ddof) do
      one(w, {unquote(name), %{axes: axes, keep_axes: keepdims, ddof: ddof}}, [t])
    end
  end

  for {name, text} <- [argmax: "greatest", argmin: "least"] do
    @doc "The u32 index of the first #{text} element along `axis`."
    @spec unquote(name)(worker, tensor, integer, boolean) :: tensor
    def unquote(name)(w, t, axis, keepdims) do
      one(w, {unquote(name), %{axis: axis, keep_axis: keepdims}}, [t])
    end
  end

  for {name, text} <- [
        cumsum: "sum",
        cumprod: "product",
        cummax: "maximum",
        cummin: "minimum",
        logcumsumexp: "`log(sum(exp(t)))`"
      ] do
    @doc "The running #{text} along `axis`, from its end when `reverse`, itself included when `inclusive`."
    @spec unquote(name)(worker, tensor, integer, boolean, boolean) :: tensor
    def unquote(name)(w, t, axis, reverse, inclusive) do
      one(w, {unquote(name), %{axis: axis, reverse: reverse, inclusive: inclusive}}, [t])
    end
  end

  @doc "Softmax over `axes`; `precise` computes half types in f32."
  def softmax(w, t, axes, precise), do: one(w, {:softmax, %{axes: axes, precise: precise}}, [t])

  ## Order

  @doc "Sorts along `axis`, ascending, NaN last."
  def sort(w, t, axis), do: one(w, {:sort, %{axis: axis}}, [t])

  @doc "The u32 indices that sort along `axis`."
  def argsort(w, t, axis), do: one(w, {:argsort, %{axis: axis}}, [t])

  @doc "Puts the element of rank `kth` in its place, lesser ones before it, greater ones behind."
  def partition(w, t, kth, axis), do: one(w, {:partition, %{kth: kth, axis: axis}}, [t])

  @doc "The u32 indices that partition along `axis`."
  def argpartition(w, t, kth, axis), do: one(w, {:argpartition, %{kth: kth, axis: axis}}, [t])

  @doc "The `k` greatest elements along `axis`, in no order."
  def topk(w, t, k, axis), do: one(w, {:topk, %{k: k, axis: axis}}, [t])

  ## Shape

  @doc "The same elements in another shape."
  def reshape(w, t, shape), do: one(w, {:reshape, %{shape: shape}}, [t])

  @doc "Permutes the axes."
  def transpose(w, t, permutation), do: one(w, {:transpose, %{axes: permutation}}, [t])

  @doc "Drops axes of size 1."
  def squeeze(w, t, axes), do: one(w, {:squeeze, %{axes: axes}}, [t])

  @doc "Adds axes of size 1, at these positions of the result."
  def expand_dims(w, t, axes), do: one(w, {:expand_dims, %{axes: axes}}, [t])

  @doc "Broadcasts, aligning the last axes."
  def broadcast_to(w, t, shape), do: one(w, {:broadcast_to, %{shape: shape}}, [t])

  @doc "Joins tensors along an axis."
  def concatenate(w, tensors, axis), do: one(w, {:concatenate, %{axis: axis}}, tensors)

  @doc "Joins tensors along a new axis."
  def stack(w, tensors, axis), do: one(w, {:stack, %{axis: axis}}, tensors)

  @doc "Joins the axes from `start_axis` to `end_axis`."
  def flatten(w, t, start_axis, end_axis) do
    one(w, {:flatten, %{start_axis: start_axis, end_axis: end_axis}}, [t])
  end

  @doc "Repeats the whole tensor."
  def tile(w, t, reps), do: one(w, {:tile, %{reps: reps}}, [t])

  @doc "Swaps two axes."
  def swapaxes(w, t, axis1, axis2), do: one(w, {:swapaxes, %{axis1: axis1, axis2: axis2}}, [t])

  @doc "Pads `axes` with `value`, a scalar tensor."
  def pad(w, t, axes, lows, highs, value) do
    one(w, {:pad, %{axes: axes, low: lows, high: highs}}, [t, value])
  end

  @doc "Repeats each element `count` times along `axis`."
  def repeat(w, t, count, axis), do: one(w, {:repeat, %{count: count, axis: axis}}, [t])

  @doc "Reverses an axis; a scalar stays as it is."
  def flip(w, t, axis) do
    axes = if shape(t) == [], do: [], else: [axis]
    one(w, {:flip, %{axes: axes}}, [t])
  end

  @doc "Rotates along `axis` by `shift` places."
  def roll(w, t, shift, axis), do: one(w, {:roll, %{shift: shift, axis: axis}}, [t])

  @doc "Cuts an axis into equal parts; a list of tensors."
  @spec split(worker, tensor, pos_integer, integer) :: [tensor]
  def split(w, t, parts, axis), do: Call.apply_all(w, {:split, %{parts: parts, axis: axis}}, [t])

  ## Slices and indices

  @doc "A part of a tensor; stops are not included."
  def slice(w, t, starts, stops, strides) do
    one(w, {:slice, %{starts: starts, stops: stops, strides: strides}}, [t])
  end

  @doc "Replaces the part of `source` at `starts` by `update`."
  def slice_update(w, source, update, starts) do
    strides = List.duplicate(1, length(starts))
    one(w, {:slice_update, %{starts: starts, strides: strides}}, [source, update])
  end

  @doc "Slices along `axis` at the places that an index tensor names."
  def take(w, t, indices, axis), do: one(w, {:take, %{axis: axis}}, [t, indices])

  @doc "Elements along `axis` at indices of the same rank."
  def take_along_axis(w, t, indices, axis) do
    one(w, {:take_along_axis, %{axis: axis}}, [t, indices])
  end

  @doc "Overwrites elements along `axis`."
  def put_along_axis(w, t, indices, values, axis) do
    one(w, {:put_along_axis, %{axis: axis}}, [t, indices, values])
  end

  @doc "Adds to elements along `axis`."
  def scatter_add_axis(w, t, indices, values, axis) do
    one(w, {:scatter_add_axis, %{axis: axis}}, [t, indices, values])
  end

  @doc "Slices at the places that one index tensor for each of `axes` names; shape `indices ++ slice_sizes`."
  def gather(w, t, indices, axes, slice_sizes) do
    one(w, {:gather, %{axes: axes, slice_sizes: slice_sizes}}, [t | indices])
  end

  @doc "Overwrites slices; `updates` has the shape `indices ++ slice`, with 1 on indexed axes."
  def scatter(w, t, indices, updates, axes) do
    one(w, {:scatter, %{axes: axes}}, [t | indices ++ [updates]])
  end

  @doc "Adds to slices, as `scatter/5`."
  def scatter_add(w, t, indices, updates, axes) do
    one(w, {:scatter_add, %{axes: axes}}, [t | indices ++ [updates]])
  end

  ## Windows

  for {name, text} <- [
        window_sum: "sum",
        window_max: "greatest element",
        window_min: "least element",
        window_product: "product"
      ] do
    @doc "The #{text} of each window; `init`, a scalar tensor, pads."
    def unquote(name)(w, t, window, strides, pad_lo, pad_hi, dilations, init) do
      attributes = %{
        window: window,
        strides: strides,
        low: pad_lo,
        high: pad_hi,
        dilations: dilations
      }

      one(w, {unquote(name), attributes}, [t, init])
    end
  end

  for {name, text} <- [window_scatter_max: "greatest", window_scatter_min: "least"] do
    @doc "Adds each element of `source` at the #{text} element of its window, starting from `init`."
    def unquote(name)(w, t, source, init, window, strides, pad_lo, pad_hi) do
      attributes = %{window: window, strides: strides, low: pad_lo, high: pad_hi}
      one(w, {unquote(name), attributes}, [t, source, init])
    end
  end

  ## Products and linear algebra

  @doc "A product that contracts `axes_a` of `a` with `axes_b` of `b`; floats only."
  def tensordot(w, a, b, axes_a, axes_b) do
    one(w, {:tensordot, %{axes_a: axes_a, axes_b: axes_b}}, [a, b])
  end

  @doc "Einstein summation, such as `\"ij,jk->ik\"`."
  def einsum(w, equation, tensors), do: one(w, {:einsum, %{equation: equation}}, tensors)

  @doc """
  Convolution of `input` `{n, spatial.., channels}` with `weight` `{out, spatial.., channels / groups}`.
  """
  def conv_general(w, input, weight, strides, padding, dilation, groups, flip)
      when tuple_size(padding) == 2 and tuple_size(dilation) == 2 do
    {padding_low, padding_high} = padding
    {kernel_dilation, input_dilation} = dilation

    attributes = %{
      strides: strides,
      padding_low: padding_low,
      padding_high: padding_high,
      kernel_dilation: kernel_dilation,
      input_dilation: input_dilation,
      groups: groups,
      flip: flip
    }

    one(w, {:conv_general, attributes}, [input, weight])
  end

  @doc "`{permutation, l, u}` with `a = l[permutation] * u`; the permutation is u32."
  def linalg_lu(w, a), do: several(w, :linalg_lu, [a])

  @doc "`{u, s, vt}` with full matrices."
  def linalg_svd(w, a), do: several(w, :linalg_svd, [a])

  @doc "`{q, r}`, reduced."
  def linalg_qr(w, a), do: several(w, :linalg_qr, [a])

  @doc "`{values, vectors}` of a symmetric matrix, ascending; reads the triangle `\"L\"` or `\"U\"`."
  def linalg_eigh(w, a, triangle) when triangle in ["L", "U"] do
    several(w, {:linalg_eigh, %{upper: triangle == "U"}}, [a])
  end

  def linalg_eigh(_w, _a, triangle) do
    raise ArgumentError,
          ~s(linalg_eigh: wrong triangle, expected "L" or "U", got #{inspect(triangle)})
  end

  @doc "The Cholesky factor of a positive definite matrix."
  def linalg_cholesky(w, a, upper), do: one(w, {:linalg_cholesky, %{upper: upper}}, [a])

  @doc "Solves `a x = b` for a vector or a matrix `b`."
  def linalg_solve(w, a, b), do: one(w, :linalg_solve, [a, b])

  @doc "Solves `a x = b` for a triangular `a`."
  def linalg_solve_triangular(w, a, b, upper) do
    one(w, {:linalg_solve_triangular, %{upper: upper}}, [a, b])
  end

  ## Fourier transforms

  for {name, text} <- [
        fftn: "The discrete Fourier transform",
        ifftn: "The inverse transform, divided by the count",
        rfftn: "The transform of real numbers; the last size becomes `n / 2 + 1`",
        irfftn: "The inverse of `rfftn/4`"
      ] do
    @doc text <> ", over `axes`, padded or cut to `sizes`."
    def unquote(name)(w, t, sizes, axes) do
      one(w, {unquote(name), %{sizes: sizes, axes: axes}}, [t])
    end
  end

  ## Random numbers

  # Without a key the numbers follow Erlang's generator of the calling process, and so its seed.

  @doc "A key from an integer: u32 `{2}`."
  @spec random_key(integer) :: tensor
  def random_key(seed) do
    Call.now(Nif.random_key(seed, Emily.Stream.device(Emily.Stream.worker())))
  end

  @doc "`n` new keys from a key: u32 `{n, 2}`."
  def random_split(w, key, n), do: one(w, {:random_split, %{num: n}}, [key])

  @doc "Uniform numbers from `low` to `high`, scalar tensors; `high` is not included."
  def random_uniform(w, low, high, shape, dtype, key) do
    one(w, {:random_uniform, %{shape: shape, dtype: dtype}}, [low, high, key(key)])
  end

  @doc "Uniform integers from `low` to `high`, scalar tensors; `high` is not included."
  def random_randint(w, low, high, shape, dtype, key) do
    one(w, {:random_randint, %{shape: shape, dtype: dtype}}, [low, high, key(key)])
  end

  @doc "Normally distributed numbers of mean `loc` and standard deviation `scale`."
  def random_normal(w, shape, dtype, loc, scale, key) do
    attributes = %{shape: shape, dtype: dtype, loc: loc, scale: scale}
    one(w, {:random_normal, attributes}, [key(key)])
  end

  @doc "Booleans that are true with probability `p`, a tensor."
  def random_bernoulli(w, p, shape, key) do
    one(w, {:random_bernoulli, %{shape: shape}}, [p, key(key)])
  end

  @doc "Numbers of the standard Gumbel distribution."
  def random_gumbel(w, shape, dtype, key) do
    one(w, {:random_gumbel, %{shape: shape, dtype: dtype}}, [key(key)])
  end

  @doc "`n` samples of the categories along `axis` of `logits`."
  def random_categorical(w, logits, axis, n, key) do
    one(w, {:random_categorical, %{axis: axis, num_samples: n}}, [logits, key(key)])
  end

  ## Quantisation

  @doc """
  `{packed, scales, biases}` of a weight quantised along its last axis; `biases` is nil in the microscaled
  modes. `mode` is `"affine"`, `"mxfp4"`, `"mxfp8"` or `"nvfp4"`.
  """
  def quantize(w, weight, group_size, bits, mode) do
    attributes = %{group_size: group_size, bits: bits, mode: mode}

    case Call.apply_all(w, {:quantize, attributes}, [weight]) do
      [packed, scales, biases] -> {packed, scales, biases}
      [packed, scales] -> {packed, scales, nil}
    end
  end

  @doc "The dense weight."
  def dequantize(w, packed, scales, biases, group_size, bits, mode) do
    attributes = %{group_size: group_size, bits: bits, mode: mode}
    one(w, {:dequantize, attributes}, [packed, scales, biases])
  end

  @doc "`x` times a quantised weight, or its transpose."
  def quantized_matmul(w, x, packed, scales, biases, transpose, group_size, bits, mode) do
    attributes = %{transpose: transpose, group_size: group_size, bits: bits, mode: mode}
    one(w, {:quantized_matmul, attributes}, [x, packed, scales, biases])
  end

  ## Fused kernels

  @doc "Root mean square normalisation over the last axis; `weight` may be nil."
  def fast_rms_norm(w, x, weight, eps), do: one(w, {:fast_rms_norm, %{eps: eps}}, [x, weight])

  @doc "Layer normalisation over the last axis; `weight` and `bias` may be nil."
  def fast_layer_norm(w, x, weight, bias, eps) do
    one(w, {:fast_layer_norm, %{eps: eps}}, [x, weight, bias])
  end

  @doc """
  Rotary embedding of the first `dims` features at positions from `offset`, an integer tensor, along axis -2. Either
  `base` or `freqs` is nil.
  """
  def fast_rope(w, x, dims, traditional, base, scale, offset, freqs) do
    attributes = %{dims: dims, traditional: traditional, base: base, scale: scale}
    one(w, {:fast_rope, attributes}, [x, offset, freqs])
  end

  @doc "The same from an integer position."
  def fast_rope_int(w, x, dims, traditional, base, scale, offset, freqs) do
    attributes = %{dims: dims, traditional: traditional, base: base, scale: scale, offset: offset}
    one(w, {:fast_rope_int, attributes}, [x, freqs])
  end

  @doc """
  Attention over `{batch, heads, length, features}`. `mode` is `""`, `"causal"` or `"array"` with one additive mask in
  `mask`; `sinks` has one tensor or none.
  """
  def fast_scaled_dot_product_attention(w, q, k, v, scale, mode, mask, sinks)
      when mode in ["", "causal", "array"] and is_list(mask) and is_list(sinks) do
    attributes = %{scale: scale, causal: mode == "causal"}
    inputs = [q, k, v, List.first(mask), List.first(sinks)]
    one(w, {:fast_scaled_dot_product_attention, attributes}, inputs)
  end

  ## Memory

  @doc "Bytes in tensors that live."
  def get_active_memory, do: Call.now(Nif.memory_stats()).active

  @doc "The most bytes that were active since the last reset."
  def get_peak_memory, do: Call.now(Nif.memory_stats()).peak

  @doc "Bytes kept for reuse."
  def get_cache_memory, do: Call.now(Nif.memory_stats()).cache

  @doc "Lets the peak begin again."
  def reset_peak_memory, do: Emily.Memory.reset_peak()

  @doc "Gives the cache back to the system."
  def clear_cache, do: Emily.Memory.clear_cache()

  defp one(w, op, inputs), do: Call.apply(w, op, inputs)

  defp several(w, op, inputs), do: List.to_tuple(Call.apply_all(w, op, inputs))

  defp key(nil), do: random_key(:rand.uniform(4_294_967_296) - 1)
  defp key(key), do: key
end
