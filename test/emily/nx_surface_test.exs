defmodule Emily.NxSurfaceTest do
  # What users of hex `emily` call, by name and arity: 0.3.5's functions and those that 1.0 added.
  use ExUnit.Case, async: true

  @surface [
    {Emily, from_binary: 3, to_binary: 1, shape: 1, dtype: 1, eval: 1, async_eval: 1},
    {Emily.Stream, new: 0, new: 1, with_stream: 2, close: 1},
    {Emily.Memory, stats: 0, reset_peak: 0, clear_cache: 0},
    {Emily.Telemetry,
     memory_stats: 0, init_dedup_table: 0, reset_dedup: 0, maybe_warn_fallback: 2},
    {Emily.Fast,
     rms_norm: 2,
     rms_norm: 3,
     layer_norm: 3,
     layer_norm: 4,
     rope: 3,
     rope_with_freqs: 4,
     scaled_dot_product_attention: 3,
     scaled_dot_product_attention: 4,
     scaled_dot_product_attention_with_mask: 4,
     scaled_dot_product_attention_with_mask: 5,
     einsum: 2},
    {Emily.Quantization,
     defn_supported_bits: 0, quantized_matmul: 2, dequantize_defn: 1, quantized_matmul_defn: 2},
    {Emily.Quantization.Layers, quantized_dense: 2, quantized_dense: 3, quantized_dense: 4},
    {Emily.QuantizedWeight, from_dense: 1, from_dense: 2, to_dense: 1, biases_ref: 2},
    {Emily.MixedPrecision,
     cast_params: 2,
     accumulate_grad: 2,
     loss_scale: 0,
     loss_scale: 1,
     scale_loss: 2,
     unscale: 2,
     update: 2,
     has_overflow?: 1},
    {Emily.MixedPrecision.LossScaler, new: 0, new: 1},
    {Emily.Generation, greedy: 1, stream: 2},
    {Emily.Compiler, __jit__: 5, __compile__: 4, __partitions_options__: 1, __to_backend__: 1},
    {Emily.Bumblebee.FastKernels,
     apply: 1,
     apply_rms_norm: 1,
     apply_layer_norm: 1,
     apply_rope: 1,
     apply_attention: 1,
     fast_rms_norm_impl: 2,
     fast_rms_norm_impl: 3,
     fast_layer_norm_impl: 3,
     fast_layer_norm_impl: 4,
     fast_rope_impl: 4,
     fast_rope_impl: 5,
     fast_sdpa_impl: 7,
     fast_sdpa_impl: 8}
  ]

  for {module, functions} <- @surface do
    if module == Emily.Bumblebee.FastKernels and not Code.ensure_loaded?(Axon) do
      test "#{inspect(module)} is left out, since Axon is" do
        refute Code.ensure_loaded?(unquote(module))
      end
    else
      test "#{inspect(module)}" do
        Code.ensure_loaded!(unquote(module))
        exported = unquote(module).__info__(:functions)
        assert unquote(functions) -- exported == []
      end
    end
  end

  test "structs have the fields of 0.3.5" do
    fields = fn module -> module.__struct__() |> Map.keys() |> MapSet.new() end

    for {module, names} <- [
          {Emily.Backend, [:ref]},
          {Emily.Stream, [:worker]},
          {Emily.QuantizedWeight,
           [:value, :scales, :biases, :group_size, :bits, :transpose, :mode]},
          {Emily.MixedPrecision.LossScaler,
           [
             :scale,
             :growth_factor,
             :backoff_factor,
             :growth_interval,
             :min_scale,
             :counter
           ]}
        ] do
      assert MapSet.subset?(MapSet.new(names), fields.(module))
    end
  end
end
