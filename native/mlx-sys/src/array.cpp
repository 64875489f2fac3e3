// What mlx-c does not tell of an array, and the wait for an evaluation whose end is looked for.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "mlx/array.h"
#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"

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

using mlx::core::array;

// The arguments of an explicit instantiation may name private members.
struct Description {
  friend auto expose(Description);
};
template <typename Tag, auto member>
struct Expose {
  friend auto expose(Tag) {
    return member;
  }
};
template struct Expose<Description, &array::array_desc_>;

long holders(const array& a) {
  return (a.*expose(Description{})).use_count();
}

// Calls `found` with what is still being computed and is freed with the last handle on `dropped`: itself, or
// what the graph behind it alone holds. `found` says whether to go on. What others hold too is left alone: they
// may be changing it.
template <typename Found>
void each_in_flight(array& dropped, Found found) {
  if (holders(dropped) > 1) {
    return;
  }
  // What they wrote before they let go of it is seen from here on.
  std::atomic_thread_fence(std::memory_order_acquire);
  // How often the graph holds what others may hold too.
  std::unordered_map<std::uintptr_t, long> held;
  std::vector<array*> rest{&dropped};
  while (!rest.empty()) {
    array& node = *rest.back();
    rest.pop_back();
    if (node.status() == array::Status::unscheduled) {
      for (auto& input : node.inputs()) {
        const long all = holders(input);
        if (all == 1 || ++held[input.id()] == all) {
          rest.push_back(&input);
        }
      }
    } else if (node.status() == array::Status::evaluated && !node.is_available() && !found(node)) {
      return;
    }
  }
}

// Asking the driver takes a lock that those who launch kernels take too.
void pause_between_looks() {
  const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(2);
  while (std::chrono::steady_clock::now() < until) {
  }
}

} // namespace

extern "C" int emily_wait_awake(const mlx_vector_array outputs, unsigned microseconds) {
  try {
    auto& arrays = mlx_vector_array_get_(outputs);
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

extern "C" bool emily_array_is_shared(mlx_array array) {
  return holders(mlx_array_get_(array)) > 1;
}

// Freeing gives a buffer to whoever allocates next, on any stream. MLX keeps the inputs of what is being
// computed, but not an output that was scheduled and is dropped before it is there: where several streams
// allocate, the next owner's elements would be overwritten.
extern "C" bool emily_array_is_in_flight(mlx_array array) {
  bool is_in_flight = false;
  each_in_flight(mlx_array_get_(array), [&](auto&) {
    is_in_flight = true;
    return false;
  });
  return is_in_flight;
}

extern "C" void emily_array_wait_in_flight(mlx_array array) {
  each_in_flight(mlx_array_get_(array), [](auto& node) {
    try {
      node.wait();
    } catch (std::exception&) {
      // Its failure has nobody to be told.
    }
    return true;
  });
}
