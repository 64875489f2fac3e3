// What mlx-c does not tell of an array, and an evaluation whose end is looked for.

#include <chrono>
#include <cstdint>

#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"
#include "mlx/transforms.h"

extern "C" uintptr_t emily_array_id(mlx_array array) {
  return mlx_array_get_(array).id();
}

extern "C" bool emily_array_is_computed(mlx_array array) {
  return mlx_array_get_(array).status() != mlx::core::array::Status::unscheduled;
}

extern "C" bool emily_array_is_sole_owner(mlx_array array) {
  return mlx_array_get_(array).data_shared_ptr().use_count() <= 1;
}

namespace {

// Asking the driver takes a lock that those who launch kernels take too.
void pause_between_looks() {
  const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(2);
  while (std::chrono::steady_clock::now() < until) {
  }
}

} // namespace

extern "C" int emily_eval_awake(const mlx_vector_array outputs, unsigned microseconds) {
  try {
    auto& arrays = mlx_vector_array_get_(outputs);
    mlx::core::async_eval(arrays);
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(microseconds);
    for (const auto& array : arrays) {
      while (!array.is_available() && std::chrono::steady_clock::now() < until) {
        pause_between_looks();
      }
    }
    for (auto& array : arrays) {
      array.wait();
    }
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}
