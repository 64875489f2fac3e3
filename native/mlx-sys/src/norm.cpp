// Normalisation of rows on the CPU. MLX composes it there of five to nine operations, each a pass over
// memory and a node to schedule, which is most of what a short row costs.

#include <cmath>

#include "floats.h"

namespace {

using namespace emily;

// Weight and bias are inputs 1 and 2 where they are present, in this order.
struct Affine {
  bool weight, bias;

  bool operator==(const Affine&) const = default;
};

template <typename T>
const float* vector_or_null(const mx::array* v, std::vector<float>& room) {
  return v ? floats(v->data<T>(), v->strides(0), v->size(), room) : nullptr;
}

// `moments(row, length)` gives what is subtracted from a row and what it is multiplied with.
template <typename T, typename Moments>
void normalise_rows(
    const mx::array& x,
    const mx::array* weight,
    const mx::array* bias,
    mx::array& out,
    Moments moments) {
  const int64_t length = x.shape(-1), stride = x.strides(-1);
  std::vector<float> room, weight_room, bias_room;
  const float* w = vector_or_null<T>(weight, weight_room);
  const float* b = vector_or_null<T>(bias, bias_room);
  T* to = out.data<T>();
  Walk rows(x, 0, x.ndim() - 1);
  for (int64_t n = 0; n < rows.count(); ++n, to += length, rows.step()) {
    const float* row = floats(x.data<T>() + rows.offset(), stride, length, room);
    const auto [mean, factor] = moments(row, length);
    if (w && b) {
      for (int64_t i = 0; i < length; ++i) {
        to[i] = static_cast<T>((row[i] - mean) * factor * w[i] + b[i]);
      }
    } else if (w) {
      for (int64_t i = 0; i < length; ++i) {
        to[i] = static_cast<T>((row[i] - mean) * factor * w[i]);
      }
    } else {
      for (int64_t i = 0; i < length; ++i) {
        to[i] = static_cast<T>((row[i] - mean) * factor + (b ? b[i] : 0.0f));
      }
    }
  }
}

std::pair<float, float> root_mean_square(const float* row, int64_t length, float eps) {
  const float squares = sum_of(length, [row](int64_t i) { return row[i] * row[i]; });
  return {0.0f, 1.0f / std::sqrt(squares / length + eps)};
}

std::pair<float, float> mean_and_deviation(const float* row, int64_t length, float eps) {
  const float mean = sum_of(length, [row](int64_t i) { return row[i]; }) / length;
  const float squares = sum_of(length, [row, mean](int64_t i) {
    const float centred = row[i] - mean;
    return centred * centred;
  });
  return {mean, 1.0f / std::sqrt(squares / length + eps)};
}

template <bool centred>
class Norm : public HostPrimitive {
 public:
  Norm(mx::Stream stream, float eps, Affine affine)
      : HostPrimitive(stream), eps_(eps), affine_(affine) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    set_row_major(inputs[0], out);
    dispatch([inputs = kept(inputs),
              out = mx::array::unsafe_weak_copy(out),
              eps = eps_,
              affine = affine_]() mutable {
      const mx::array* weight = affine.weight ? &inputs[1] : nullptr;
      const mx::array* bias = affine.bias ? &inputs[1 + affine.weight] : nullptr;
      auto moments = [eps](const float* row, int64_t length) {
        return centred ? mean_and_deviation(row, length, eps) : root_mean_square(row, length, eps);
      };
      with_float(out.dtype(), [&](auto number) {
        normalise_rows<decltype(number)>(inputs[0], weight, bias, out, moments);
      });
    });
  }

  const char* name() const override {
    return centred ? "HostLayerNorm" : "HostRmsNorm";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& norm = static_cast<const Norm&>(other);
    return eps_ == norm.eps_ && affine_ == norm.affine_;
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

 private:
  float eps_;
  Affine affine_;
};

template <bool centred>
int norm(
    mlx_array* res,
    mlx_array x,
    mlx_array weight,
    mlx_array bias,
    float eps,
    mlx_stream s) {
  return answer(res, [&] {
    auto inputs = arrays({x, weight, bias});
    const auto shape = inputs[0].shape();
    const auto dtype = inputs[0].dtype();
    require_float(dtype);
    bool fits = !shape.empty();
    for (size_t i = 1; i < inputs.size(); ++i) {
      fits = fits && inputs[i].dtype() == dtype && inputs[i].shape() == mx::Shape{shape.back()};
    }
    if (!fits) {
      throw std::invalid_argument("expected rows, and vectors of their length and dtype");
    }
    const Affine affine{weight.ctx != nullptr, bias.ctx != nullptr};
    auto node = std::make_shared<Norm<centred>>(host_stream(s), eps, affine);
    return mx::array(shape, dtype, std::move(node), std::move(inputs));
  });
}

} // namespace

extern "C" int emily_rms_norm(
    mlx_array* res,
    const mlx_array x,
    const mlx_array weight,
    float eps,
    const mlx_stream s) {
  return norm<false>(res, x, weight, mlx_array{nullptr}, eps, s);
}

extern "C" int emily_layer_norm(
    mlx_array* res,
    const mlx_array x,
    const mlx_array weight,
    const mlx_array bias,
    float eps,
    const mlx_stream s) {
  return norm<true>(res, x, weight, bias, eps, s);
}
