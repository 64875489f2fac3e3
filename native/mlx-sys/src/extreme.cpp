// MLX's argmax and argmin give the first of equal elements and never a NaN. Where the last one is wanted,
// or a NaN counts above all, MLX's operations take eight passes; this takes one.

#include <type_traits>

#include "mlx/dtype_utils.h"
#include "primitive.h"

namespace {

using namespace emily;

struct Choice {
  int axis;
  bool greatest, last;
  // Of the positions.
  mx::Dtype::Val dtype;

  bool operator==(const Choice&) const = default;
};

// The half types are compared as floats.
template <typename T>
using Number = std::conditional_t<mx::is_floating_point_v<T> && sizeof(T) == 2, float, T>;

// Where the greatest or least of `count > 0` elements stands, the first or the last of equal ones; the last
// NaN where there is one.
template <bool GREATEST, bool LAST, typename T>
int64_t position(const T* elements, int64_t count, int64_t stride) {
  int64_t found = 0, nan = -1;
  Number<T> extreme = elements[0];
  for (int64_t i = 0; i < count; ++i) {
    const Number<T> x = elements[i * stride];
    bool wins;
    if constexpr (GREATEST) {
      wins = LAST ? x >= extreme : x > extreme;
    } else {
      wins = LAST ? x <= extreme : x < extreme;
    }
    // A first element that is NaN never loses, and does not count then.
    if (wins) {
      found = i;
      extreme = x;
    }
    if constexpr (mx::is_floating_point_v<T>) {
      if (x != x) {
        nan = i;
      }
    }
  }
  return nan < 0 ? found : nan;
}

template <typename T, typename Position>
void positions(const mx::array& in, mx::array& out, Choice choice) {
  const int64_t count = in.shape(choice.axis), stride = in.strides(choice.axis);
  Walk others(in, 0, choice.axis);
  others.add(in, choice.axis + 1, in.ndim());
  const T* from = in.data<T>();
  Position* to = out.data<Position>();
  const auto find = choice.greatest
      ? (choice.last ? position<true, true, T> : position<true, false, T>)
      : (choice.last ? position<false, true, T> : position<false, false, T>);
  for (int64_t n = 0; n < others.count(); ++n, others.step()) {
    to[n] = static_cast<Position>(find(from + others.offset(), count, stride));
  }
}

class ArgExtreme : public HostPrimitive {
 public:
  ArgExtreme(mx::Stream stream, Choice choice) : HostPrimitive(stream), choice_(choice) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    dispatch([in = mx::array::unsafe_weak_copy(inputs[0]),
              out = mx::array::unsafe_weak_copy(out),
              choice = choice_]() mutable {
      mx::dispatch_real_types(in.dtype(), "[arg_extreme]", [&](auto type) {
        using T = MLX_GET_TYPE(type);
        // Positions are not negative, whether their type has a sign or not.
        if (out.itemsize() == 4) {
          positions<T, uint32_t>(in, out, choice);
        } else {
          positions<T, uint64_t>(in, out, choice);
        }
      });
    });
  }

  const char* name() const override {
    return "ArgExtreme";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    return choice_ == static_cast<const ArgExtreme&>(other).choice_;
  }

  static mx::Shape shape_of(const mx::array& in, int axis) {
    auto shape = in.shape();
    shape.erase(shape.begin() + axis);
    return shape;
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {shape_of(inputs[0], choice_.axis)};
  }

 private:
  Choice choice_;
};

} // namespace

extern "C" int emily_arg_extreme(
    mlx_array* res,
    const mlx_array a,
    int axis,
    bool greatest,
    bool last,
    mlx_dtype dtype,
    const mlx_stream s) {
  return answer(res, [&] {
    const auto& in = mlx_array_get_(a);
    const auto stream = host_stream(s);
    const auto to = mlx_dtype_to_cpp(dtype);
    const bool fits = axis >= 0 && axis < static_cast<int>(in.ndim()) && in.shape(axis) > 0;
    if (!fits || in.dtype() == mx::complex64 || !mx::issubdtype(to, mx::integer) ||
        mx::size_of(to) < 4) {
      throw std::invalid_argument("expected real numbers and an axis that has elements");
    }
    return mx::array(
        ArgExtreme::shape_of(in, axis),
        to,
        std::make_shared<ArgExtreme>(stream, Choice{axis, greatest, last, to.val()}),
        {in});
  });
}
