// What kernels of floats have in common. They compute in f32, whatever they read and write.

#pragma once

#include <stdexcept>
#include <type_traits>
#include <vector>

#include "primitive.h"

// g++ vectorises loops from -O3 on, and comparisons only where a NaN may stay unnoticed.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3", "no-trapping-math")
#endif

namespace emily {

// Calls `f` with a number of the dtype, one that the kernels take.
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
      throw std::invalid_argument("expected f32, f16 or bf16");
  }
}

inline void require_float(mx::Dtype dtype) {
  with_float(dtype, [](auto) {});
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

// The sum of f(0) .. f(count - 1), in as many partial sums as vector registers hold: faster than one, and
// more exact.
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

// The arrays of handles that are there, in their order.
inline std::vector<mx::array> arrays(std::initializer_list<mlx_array> handles) {
  std::vector<mx::array> arrays;
  for (const auto& handle : handles) {
    if (handle.ctx) {
      arrays.push_back(mlx_array_get_(handle));
    }
  }
  return arrays;
}

// What a stream keeps while it computes on arrays.
inline std::vector<mx::array> kept(const std::vector<mx::array>& arrays) {
  std::vector<mx::array> kept;
  kept.reserve(arrays.size());
  for (const auto& array : arrays) {
    kept.push_back(mx::array::unsafe_weak_copy(array));
  }
  return kept;
}

} // namespace emily
