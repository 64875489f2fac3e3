// What mlx-c does not tell of an array.

#include <cstdint>

#include "mlx/c/private/mlx.h"

extern "C" uintptr_t emily_array_id(mlx_array array) {
  return mlx_array_get_(array).id();
}
