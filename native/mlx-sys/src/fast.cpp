// On a CPU MLX composes its fused kernels of operations, a root-mean-square norm of 13 and a rotary
// embedding of 30. Each of these takes one pass, in f32 inside as MLX's kernels on a GPU.

#include <cmath>
#include <optional>

#include "primitive.h"

// g++ vectorises loops from -O3 on.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3")
#endif

namespace {

using namespace emily;

bool is_computed(mx::Dtype dtype) {
  return dtype == mx::float32 || dtype == mx::float16 || dtype == mx::bfloat16;
}

// Calls `f` with a number of one of those dtypes.
template <typename F>
void with_number(mx::Dtype dtype, F&& f) {
  if (dtype == mx::float32) {
    f(float());
  } else if (dtype == mx::float16) {
    f(mx::float16_t());
  } else {
    f(mx::bfloat16_t());
  }
}

// Sums that are kept apart, so that they are added in vectors.
constexpr int64_t LANES = 16;

template <typename T>
float sum_of_squares(const T* x, int64_t count, int64_t stride) {
  float sums[LANES] = {};
  int64_t i = 0;
  if (stride == 1) {
    for (; i + LANES <= count; i += LANES) {
      for (int64_t lane = 0; lane < LANES; ++lane) {
        const float value = x[i + lane];
        sums[lane] += value * value;
      }
    }
  }
  for (; i < count; ++i) {
    const float value = x[i * stride];
    sums[i % LANES] += value * value;
  }
  for (int64_t half = LANES / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) {
      sums[lane] += sums[lane + half];
    }
  }
  return sums[0];
}

template <typename T>
void rms_norm(const mx::array& x, const mx::array* weight, mx::array& out, float eps) {
  const int last = x.ndim() - 1;
  const int64_t count = x.shape(last), stride = x.strides(last);
  Walk rows(x, 0, last);
  const T* weights = weight ? weight->data<T>() : nullptr;
  const int64_t weight_stride = weight ? weight->strides(0) : 0;
  const T* from = x.data<T>();
  T* to = out.data<T>();
  for (int64_t n = 0; n < rows.count(); ++n, rows.step(), to += count) {
    const T* row = from + rows.offset();
    const float squares = sum_of_squares(row, count, stride);
    const float scale = 1 / std::sqrt(squares / static_cast<float>(count) + eps);
    if (!weights) {
      for (int64_t i = 0; i < count; ++i) {
        to[i] = static_cast<T>(static_cast<float>(row[i * stride]) * scale);
      }
    } else if (stride == 1 && weight_stride == 1) {
      for (int64_t i = 0; i < count; ++i) {
        const float normal = static_cast<T>(static_cast<float>(row[i]) * scale);
        to[i] = static_cast<T>(normal * static_cast<float>(weights[i]));
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const float normal = static_cast<T>(static_cast<float>(row[i * stride]) * scale);
        to[i] = static_cast<T>(normal * static_cast<float>(weights[i * weight_stride]));
      }
    }
  }
}

class RmsNorm : public HostPrimitive {
 public:
  RmsNorm(mx::Stream stream, float eps) : HostPrimitive(stream), eps_(eps) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    set_row_major(inputs[0], out);
    std::optional<mx::array> weight;
    if (inputs.size() > 1) {
      weight = mx::array::unsafe_weak_copy(inputs[1]);
    }
    dispatch([x = mx::array::unsafe_weak_copy(inputs[0]),
              weight = std::move(weight),
              out = mx::array::unsafe_weak_copy(out),
              eps = eps_]() mutable {
      with_number(x.dtype(), [&](auto number) {
        rms_norm<decltype(number)>(x, weight ? &*weight : nullptr, out, eps);
      });
    });
  }

  const char* name() const override {
    return "HostRmsNorm";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    return eps_ == static_cast<const RmsNorm&>(other).eps_;
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

 private:
  float eps_;
};

struct Rotation {
  int dims;
  bool traditional;
  // Without frequencies.
  float base;
  float scale;

  bool operator==(const Rotation&) const = default;
};

// Radians that each pair turns from one position to the next.
std::vector<float> speeds(const Rotation& rotation, const mx::array* frequencies) {
  const int half = rotation.dims / 2;
  std::vector<float> speeds(half);
  for (int i = 0; i < half; ++i) {
    if (frequencies) {
      speeds[i] = 1 / frequencies->data<float>()[i * frequencies->strides(0)];
    } else {
      speeds[i] = std::exp(-i * std::log(static_cast<double>(rotation.base)) / half);
    }
  }
  return speeds;
}

// Turns the pairs of a row; `x` and `to` may be one place.
template <typename T>
void turn(
    const T* x,
    int64_t stride,
    T* to,
    const Rotation& rotation,
    const float* cosines,
    const float* sines) {
  const int half = rotation.dims / 2;
  // From one pair to the next, and inside a pair.
  const int64_t next = rotation.traditional ? 2 : 1, other = rotation.traditional ? 1 : half;
  for (int i = 0; i < half; ++i) {
    const float a = x[i * next * stride], b = x[(i * next + other) * stride];
    to[i * next] = static_cast<T>(a * cosines[i] - b * sines[i]);
    to[i * next + other] = static_cast<T>(a * sines[i] + b * cosines[i]);
  }
}

template <typename T>
void rotate(
    const mx::array& x,
    const mx::array& offset,
    const mx::array* frequencies,
    mx::array& out,
    const Rotation& rotation) {
  const int rank = x.ndim(), half = rotation.dims / 2;
  const int64_t features = x.shape(rank - 1), stride = x.strides(rank - 1);
  const int64_t positions = x.shape(rank - 2);
  const int64_t batches = rank > 2 ? x.shape(0) : 1;
  Walk heads(x, 1, rank - 2);
  const auto speed = speeds(rotation, frequencies);
  std::vector<float> cosines(half), sines(half);
  const int32_t* offsets = offset.data<int32_t>();
  const bool one_offset = offset.size() == 1;
  const T* from = x.data<T>();
  T* to = out.data<T>();
  for (int64_t position = 0; position < positions; ++position) {
    for (int64_t batch = 0; batch < batches; ++batch) {
      if (batch == 0 || !one_offset) {
        const int32_t start = offsets[one_offset ? 0 : batch * offset.strides(0)];
        const float at = (static_cast<float>(position) + static_cast<float>(start)) * rotation.scale;
        for (int i = 0; i < half; ++i) {
          cosines[i] = std::cos(at * speed[i]);
          sines[i] = std::sin(at * speed[i]);
        }
      }
      const T* here = from + position * x.strides(rank - 2) + (rank > 2 ? batch * x.strides(0) : 0);
      for (int64_t head = 0; head < heads.count(); ++head, heads.step()) {
        const T* row = here + heads.offset();
        T* result = to + ((batch * heads.count() + head) * positions + position) * features;
        if (stride == 1) {
          turn(row, 1, result, rotation, cosines.data(), sines.data());
        } else {
          turn(row, stride, result, rotation, cosines.data(), sines.data());
        }
        for (int64_t i = rotation.dims; i < features; ++i) {
          result[i] = row[i * stride];
        }
      }
    }
  }
}

class Rope : public HostPrimitive {
 public:
  Rope(mx::Stream stream, Rotation rotation) : HostPrimitive(stream), rotation_(rotation) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    set_row_major(inputs[0], out);
    std::optional<mx::array> frequencies;
    if (inputs.size() > 2) {
      frequencies = mx::array::unsafe_weak_copy(inputs[2]);
    }
    dispatch([x = mx::array::unsafe_weak_copy(inputs[0]),
              offset = mx::array::unsafe_weak_copy(inputs[1]),
              frequencies = std::move(frequencies),
              out = mx::array::unsafe_weak_copy(out),
              rotation = rotation_]() mutable {
      with_number(x.dtype(), [&](auto number) {
        const mx::array* given = frequencies ? &*frequencies : nullptr;
        rotate<decltype(number)>(x, offset, given, out, rotation);
      });
    });
  }

  const char* name() const override {
    return "HostRope";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    return rotation_ == static_cast<const Rope&>(other).rotation_;
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

 private:
  Rotation rotation_;
};

} // namespace

extern "C" int emily_rms_norm(
    mlx_array* res,
    const mlx_array x_,
    const mlx_array weight_,
    float eps,
    const mlx_stream s) {
  return answer(res, [&] {
    const auto& x = mlx_array_get_(x_);
    const auto stream = host_stream(s);
    std::vector<mx::array> inputs{x};
    bool fits = x.ndim() > 0 && is_computed(x.dtype());
    if (weight_.ctx) {
      const auto& weight = mlx_array_get_(weight_);
      fits = fits && weight.ndim() == 1 && weight.shape(0) == x.shape(-1);
      fits = fits && weight.dtype() == x.dtype();
      inputs.push_back(weight);
    }
    if (!fits) {
      throw std::invalid_argument("expected floats and a weight that fits them");
    }
    return mx::array(
        x.shape(), x.dtype(), std::make_shared<RmsNorm>(stream, eps), std::move(inputs));
  });
}

extern "C" int emily_rope(
    mlx_array* res,
    const mlx_array x_,
    int dims,
    bool traditional,
    float base,
    float scale,
    const mlx_array offset_,
    const mlx_array frequencies_,
    const mlx_stream s) {
  return answer(res, [&] {
    const auto &x = mlx_array_get_(x_), &offset = mlx_array_get_(offset_);
    const auto stream = host_stream(s);
    std::vector<mx::array> inputs{x, offset};
    bool fits = x.ndim() > 1 && is_computed(x.dtype()) && dims > 0 && dims % 2 == 0;
    fits = fits && dims <= x.shape(-1) && offset.dtype() == mx::int32;
    fits = fits &&
        (offset.size() == 1 ||
         (x.ndim() > 2 && offset.ndim() == 1 && offset.shape(0) == x.shape(0)));
    if (frequencies_.ctx) {
      const auto& frequencies = mlx_array_get_(frequencies_);
      fits = fits && frequencies.dtype() == mx::float32;
      fits = fits && frequencies.ndim() == 1 && frequencies.shape(0) == dims / 2;
      inputs.push_back(frequencies);
    }
    if (!fits) {
      throw std::invalid_argument("expected floats, their positions and frequencies that fit them");
    }
    const Rotation rotation{dims, traditional, base, scale};
    return mx::array(
        x.shape(), x.dtype(), std::make_shared<Rope>(stream, rotation), std::move(inputs));
  });
}
