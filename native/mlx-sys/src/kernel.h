// What the CPU kernels of this crate have in common: how they become nodes of MLX's graph, and how they
// walk over an array of any strides.

#pragma once

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"
#include "mlx/primitives.h"

// g++ vectorises loops from -O3 on, and comparisons only where a NaN may stay unnoticed.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3", "no-trapping-math")
#endif

namespace emily {

namespace mx = mlx::core;

// A node that only CPU streams compute, with one output.
class CpuPrimitive : public mx::UnaryPrimitive {
 public:
  explicit CpuPrimitive(mx::Stream stream) : UnaryPrimitive(stream) {}

  void eval_gpu(const std::vector<mx::array>&, mx::array&) override {
    throw std::runtime_error(std::string(name()) + " is computed on a CPU stream only");
  }

 protected:
  // Gives the output memory of its own, row by row, and has `compute` fill it when the stream's turn comes.
  void schedule(
      const std::vector<mx::array>& inputs,
      mx::array& out,
      std::function<void(const std::vector<mx::array>&, mx::array&)> compute) {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    std::vector<mx::array> kept;
    kept.reserve(inputs.size());
    for (const auto& input : inputs) {
      kept.push_back(mx::array::unsafe_weak_copy(input));
    }
    mx::cpu::get_command_encoder(stream()).dispatch(
        [kept = std::move(kept),
         out = mx::array::unsafe_weak_copy(out),
         compute = std::move(compute)]() mutable { compute(kept, out); });
  }
};

// The offsets, in elements, of the parts that an array's last `inner` axes make, in order.
class Parts {
 public:
  Parts(const mx::array& a, int inner)
      : axes_(a.ndim() - inner),
        shape_(a.shape().begin(), a.shape().end() - inner),
        strides_(a.strides().begin(), a.strides().end() - inner),
        at_(axes_, 0) {}

  int64_t offset() const {
    return offset_;
  }

  void next() {
    for (int axis = axes_ - 1; axis >= 0; --axis) {
      offset_ += strides_[axis];
      if (++at_[axis] < shape_[axis]) {
        return;
      }
      offset_ -= strides_[axis] * shape_[axis];
      at_[axis] = 0;
    }
  }

 private:
  int axes_;
  std::vector<int64_t> shape_, strides_, at_;
  int64_t offset_{0};
};

// Calls `f` with a zero of the type that kernels of floats compute on.
template <typename F>
void with_float(mx::Dtype dtype, F f) {
  switch (dtype.val()) {
    case mx::Dtype::Val::float32:
      return f(float{});
    case mx::Dtype::Val::float16:
      return f(mx::float16_t{});
    case mx::Dtype::Val::bfloat16:
      return f(mx::bfloat16_t{});
    default:
      throw std::invalid_argument("a kernel of floats takes f32, f16 and bf16");
  }
}

// `count` elements as f32, one after the other: those in memory if they lie so, or a copy in `room`.
template <typename T>
const float* floats(const T* from, int64_t stride, int64_t count, std::vector<float>& room) {
  if constexpr (std::is_same_v<T, float>) {
    if (stride == 1) {
      return from;
    }
  }
  room.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    room[i] = static_cast<float>(from[i * stride]);
  }
  return room.data();
}

// The sum of f(0) .. f(count - 1), in as many partial sums as a vector register may hold: faster than one,
// and more exact.
template <typename F>
float sum_of(int64_t count, F f) {
  constexpr int64_t width = 16;
  float parts[width] = {};
  int64_t i = 0;
  for (; i + width <= count; i += width) {
    for (int64_t part = 0; part < width; ++part) {
      parts[part] += f(i + part);
    }
  }
  for (; i < count; ++i) {
    parts[i % width] += f(i);
  }
  for (int64_t half = width / 2; half > 0; half /= 2) {
    for (int64_t part = 0; part < half; ++part) {
      parts[part] += parts[part + half];
    }
  }
  return parts[0];
}

// A C function's body that makes a node: what is thrown becomes mlx-c's error.
template <typename F>
int make_node(mlx_array* res, F make) {
  try {
    mlx_array_set_(*res, make());
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}

// The stream of a handle, which must be the CPU's.
inline mx::Stream cpu_stream(mlx_stream s) {
  auto stream = mlx_stream_get_(s);
  if (stream.device != mx::Device::cpu) {
    throw std::invalid_argument("a kernel of the CPU takes a CPU stream");
  }
  return stream;
}

} // namespace emily
