// MLX's cast of floats to integers is C++'s, which leaves NaN and what lies beyond the integers
// undefined. Mending that with MLX's operations takes eight passes over memory; this takes one.

#include <cstdint>
#include <limits>

#include "mlx/backend/common/unary.h"
#include "primitive.h"

// g++ vectorises the loop from -O3 on, and only where a comparison with a NaN may stay unnoticed.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3", "no-trapping-math")
#endif

namespace {

using namespace emily;

template <typename From, typename To>
To saturated(From x) {
  using Limits = std::numeric_limits<To>;
  constexpr From least = static_cast<From>(Limits::min());
  // The greatest integer plus one: a power of two, and so a float.
  constexpr From above = static_cast<From>(Limits::max() / 2 + 1) * 2;
  // Every cast is of a number in range: comparisons are false for a NaN.
  From inside = x > least ? x : least;
  inside = inside < above ? inside : From(0);
  To number = static_cast<To>(inside);
  number = x >= above ? Limits::max() : number;
  return x == x ? number : To(0);
}

template <typename From, typename To>
void convert(const mx::array& in, mx::array& out) {
  const From* from = in.data<From>();
  To* to = out.data<To>();
  if (in.flags().contiguous) {
    const size_t count = in.data_size();
    // The output may lie in the input's memory.
    for (size_t i = 0; i < count; ++i) {
      to[i] = saturated<From, To>(from[i]);
    }
    return;
  }
  // A scalar is contiguous, so that there is a last axis.
  const int last = in.ndim() - 1;
  const int64_t length = in.shape(last), stride = in.strides(last);
  Walk rows(in, 0, last);
  for (int64_t n = 0; n < rows.count(); ++n, rows.step(), to += length) {
    for (int64_t i = 0; i < length; ++i) {
      to[i] = saturated<From, To>(from[rows.offset() + i * stride]);
    }
  }
}

template <typename From>
void convert_to(const mx::array& in, mx::array& out) {
  switch (out.dtype().val()) {
    case mx::Dtype::Val::uint8:
      return convert<From, uint8_t>(in, out);
    case mx::Dtype::Val::uint16:
      return convert<From, uint16_t>(in, out);
    case mx::Dtype::Val::uint32:
      return convert<From, uint32_t>(in, out);
    case mx::Dtype::Val::uint64:
      return convert<From, uint64_t>(in, out);
    case mx::Dtype::Val::int8:
      return convert<From, int8_t>(in, out);
    case mx::Dtype::Val::int16:
      return convert<From, int16_t>(in, out);
    case mx::Dtype::Val::int32:
      return convert<From, int32_t>(in, out);
    default:
      return convert<From, int64_t>(in, out);
  }
}

class SaturatingCast : public HostPrimitive {
 public:
  SaturatingCast(mx::Stream stream, mx::Dtype to) : HostPrimitive(stream), to_(to.val()) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    mx::set_unary_output_data(inputs[0], out);
    dispatch([in = mx::array::unsafe_weak_copy(inputs[0]),
              out = mx::array::unsafe_weak_copy(out)]() mutable {
      if (in.dtype() == mx::float64) {
        convert_to<double>(in, out);
      } else {
        convert_to<float>(in, out);
      }
    });
  }

  const char* name() const override {
    return "SaturatingCast";
  }

  // MLX compares inputs and primitives where it joins nodes, and nothing else.
  bool is_equivalent(const mx::Primitive& other) const override {
    return to_ == static_cast<const SaturatingCast&>(other).to_;
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

 private:
  mx::Dtype::Val to_;
};

bool is_integer(mx::Dtype dtype) {
  return mx::issubdtype(dtype, mx::integer);
}

} // namespace

extern "C" int emily_saturating_cast(
    mlx_array* res,
    const mlx_array a,
    mlx_dtype dtype,
    const mlx_stream s) {
  return answer(res, [&] {
    const auto& in = mlx_array_get_(a);
    const auto to = mlx_dtype_to_cpp(dtype);
    const auto stream = host_stream(s);
    const bool is_float = in.dtype() == mx::float32 || in.dtype() == mx::float64;
    if (!is_float || !is_integer(to)) {
      throw std::invalid_argument("a saturating cast takes f32 or f64 to integers");
    }
    return mx::array(in.shape(), to, std::make_shared<SaturatingCast>(stream, to), {in});
  });
}
