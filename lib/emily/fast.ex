defmodule Emily.Fast do
  @moduledoc """
  Operations of transformers that MLX has as one kernel: norms, rotary embeddings, attention, einsum.

  All can be called eagerly, inside `defn`, and on any backend. On `Emily.Backend` and in programs of
  `Emily.Compiler` the kernel computes; elsewhere, and for gradients, the same function composed of
  operations of Nx does. So it does for vectorized tensors, and for `{:f, 64}`, which the kernels would
  compute in single precision.

  Tensors are of a real float type. The half types are computed in single precision and rounded once on
  CPUs, where MLX would compute them slower and less exactly; on a GPU the kernel decides. A result has the
  type and names of the first tensor, whatever the types of the others.

  Tensors of the wrong shape or type, unknown options, and options of the wrong kind raise ArgumentError.
  """

  import Nx.Defn

  alias Emily.Fast.{Attention, Einsum, LayerNorm, RMSNorm, Rotary}

  @doc """
  Divides by the root mean square of the last axis: `x / sqrt(mean(x^2) + eps) * weight`.

  `x` is `{.., n}`, `weight` `{n}`. After [Zhang and Sennrich](https://arxiv.org/abs/1910.07467).

  ## Options

    * `:eps` - `1.0e-6`
  """
  deftransform rms_norm(x, weight, opts \\ []) do
    RMSNorm.call(x, weight, opts)
  end

  @doc """
  Normalises the last axis: `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`.

  `x` is `{.., n}`, `weight` and `bias` `{n}`. After [Ba et al.](https://arxiv.org/abs/1607.06450).

  ## Options

    * `:eps` - `1.0e-5`
  """
  deftransform layer_norm(x, weight, bias, opts \\ []) do
    LayerNorm.call(x, weight, bias, opts)
  end

  @doc """
  Rotates pairs of features by angles that grow with the position.

  `x` is `{.., positions, features}`: the position axis is the one before the last. `offset` is the
  position of the first, an integer or an integer tensor: a scalar, or `{batch}` for `x` of rank 3 or more.
  Pair `i` is rotated by `(position + offset) * scale * base^(-2i / dims)`. Angles are in single
  precision, so that their error grows with the position, by up to 1.0e-7 times it. After
  [Su et al.](https://arxiv.org/abs/2104.09864).

  ## Options

    * `:dims` - how many features are rotated, an even number (required); those behind pass through
    * `:traditional` - pairs neighbours, `{2i, 2i + 1}`, instead of halves, `{i, i + dims / 2}`;
      `false`
    * `:base` - `10_000.0`
    * `:scale` - factor of the positions, `1.0`
  """
  deftransform rope(x, offset, opts) do
    Rotary.rope(x, offset, opts)
  end

  @doc """
  As `rope/3` with frequencies of one's own: `freqs`, `{dims / 2}`.

  They are MLX's frequencies, by which the position is *divided*: pair `i` is rotated by
  `(position + offset) * scale / freqs[i]`. Those of `rope/3` are `base^(2i / dims)`. Of inverse
  frequencies, which models often store, pass the reciprocal.

  ## Options

    * `:dims`, `:traditional`, `:scale` - as in `rope/3`
  """
  deftransform rope_with_freqs(x, offset, freqs, opts) do
    Rotary.rope_with_freqs(x, offset, freqs, opts)
  end

  @doc """
  As `rope/3` where each row has a position of its own.

  `positions` are integers, `{positions}` or, for `x` of rank 3 or more, `{batch, positions}`, in any
  order, such as those of sequences that are padded on the left.

  ## Options

    * `:dims`, `:traditional`, `:base`, `:scale` - as in `rope/3`
    * `:freqs` - frequencies as in `rope_with_freqs/4`, in place of `:base`
  """
  deftransform rope_with_positions(x, positions, opts) do
    Rotary.rope_with_positions(x, positions, opts)
  end

  @doc """
  Attention: `softmax(scale * q k^T) v`.

  `q` is `{batch, heads, queries, depth}`, `k` and `v` `{batch, kv_heads, keys, depth}`, where `v` may have a
  last axis of its own. Each key head serves `heads / kv_heads` neighbouring query heads.
  After [Vaswani et al.](https://arxiv.org/abs/1706.03762).

  ## Options

    * `:scale` - `1 / sqrt(depth)`
    * `:causal` - query `i` sees keys up to `i + keys - queries`, so that the last query sees all;
      `false`
    * `:sinks` - one more score for each head that takes its share of the softmax and has no value: a tensor
      `{heads}`, or one that broadcasts to `{1, heads, 1, 1}`; none

  """
  deftransform scaled_dot_product_attention(q, k, v, opts \\ []) do
    Attention.call(q, k, v, nil, opts)
  end

  @doc """
  Attention with a mask that broadcasts to `{batch, heads, queries, keys}`.

  A mask of floats is added to the scores. One of `{:u, 8}`, which Nx's comparisons return, is 1
  where a key is seen and 0 elsewhere; of a query that sees no key the result is the mean of the values.

  ## Options

    * `:scale`, `:sinks` - as in `scaled_dot_product_attention/4`
  """
  deftransform scaled_dot_product_attention_with_mask(q, k, v, mask, opts \\ []) do
    Attention.call(q, k, v, mask, opts)
  end

  @doc """
  Writes new rows into a cache of keys or values: `new {batch, heads, t, depth}` to the positions from
  `offset` of `cache {batch, heads, max, depth}`.

  `offset` is an integer or an integer scalar; one at which the rows would not fit is clamped. MLX writes in
  place where nothing else holds the cache, as after `Nx.backend_deallocate/1` of it, which may come
  before the result is computed; otherwise into a copy.
  """
  deftransform kv_cache_update(cache, new, offset) do
    Attention.update_cache(cache, new, offset)
  end

  @doc """
  Updates the caches of keys and values, and attends to what they hold up to the new rows.

  Returns `{attention, k_cache, v_cache}`. Shapes and `offset` are those of `kv_cache_update/3`
  and `scaled_dot_product_attention/4`. Query `i` sees the positions up to `offset + i`.

  ## Options

    * `:scale`, `:sinks` - as in `scaled_dot_product_attention/4`
    * `:key_mask` - `{batch, max}` of `{:u, 8}`, 0 for positions that nothing sees, such as padding
  """
  deftransform kv_cache_attention(q, k, v, k_cache, v_cache, offset, opts \\ []) do
    Attention.with_cache(q, k, v, k_cache, v_cache, offset, opts)
  end

  @doc """
  The gate of Llama's feed-forward layers: `gate * sigmoid(gate) * up`, for tensors of one shape.

  After [Shazeer](https://arxiv.org/abs/2002.05202).
  """
  deftransform swiglu(gate, up) do
    import Emily.Fast.Operand

    {gate, up} = {float!(gate, "swiglu", "gate"), float!(up, "swiglu", "up")}
    shape!(up, gate.shape, "swiglu", "up")
    wide = wide(gate.type)
    x = widen(gate, wide)
    product = Nx.multiply(Nx.multiply(x, Nx.sigmoid(x)), widen(up, wide))
    Nx.as_type(product, gate.type)
  end

  @doc """
  Sums of products by Einstein's convention: `einsum("bij,bjk->bik", [a, b])`.

  A letter stands for each axis, a list of them for each tensor; `...` for any axes, which broadcast.
  Letters that the result lacks are summed over. Without `->` the result has the letters that stand
  once, in alphabetical order. The result's type is the tensors' merged one; it has no names.

  Raises ArgumentError for an equation of another form, or one that does not fit the tensors.

      iex> Emily.Fast.einsum("ij,j->i", [Nx.tensor([[1.0, 2.0], [3.0, 4.0]]), Nx.tensor([1.0, 10.0])])
      ...> |> Nx.to_flat_list()
      [21.0, 43.0]
  """
  deftransform einsum(equation, tensors) when is_binary(equation) and is_list(tensors) do
    Einsum.call(equation, tensors)
  end
end
