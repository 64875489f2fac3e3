// What mlx-c does not tell of an array, and the wait for an evaluation whose end is looked for.

#include <algorithm>
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

// Calls `found` with what has been scheduled, may not be there yet, and is freed with the last handles on what is
// dropped: itself, or what the graphs behind it alone hold. `found` says whether to go on. What others hold too is
// left alone: they may be changing it. Nobody may be scheduling meanwhile: who schedules lets go of a node before it
// has its event.
template <typename Found>
void each_in_flight(const mlx_array* dropped, size_t count, Found found) {
  // How often the graphs hold what others may hold too.
  std::unordered_map<std::uintptr_t, long> held;
  std::vector<array*> rest;
  const auto let_go = [&](array& node) {
    const long all = holders(node);
    if (all == 1 || ++held[node.id()] == all) {
      rest.push_back(&node);
    }
  };
  std::for_each(dropped, dropped + count, [&](auto handle) { let_go(mlx_array_get_(handle)); });
  // What others wrote before they let go of it is seen from here on.
  std::atomic_thread_fence(std::memory_order_acquire);
  while (!rest.empty()) {
    array& node = *rest.back();
    rest.pop_back();
    if (node.status() == array::Status::unscheduled) {
      for (auto& input : node.inputs()) {
        let_go(input);
      }
    } else if (node.status() == array::Status::evaluated && !found(node)) {
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
  each_in_flight(&array, 1, [&](auto& node) {
    is_in_flight = !node.is_available();
    return !is_in_flight;
  });
  return is_in_flight;
}

extern "C" void emily_arrays_find_in_flight(const mlx_array* dropped, size_t count, mlx_vector_array found) {
  // The driver is not asked, which takes time: who schedules waits meanwhile.
  each_in_flight(dropped, count, [&](auto& node) {
    mlx_vector_array_get_(found).push_back(node);
    return true;
  });
}

extern "C" void emily_arrays_wait(mlx_vector_array arrays) {
  for (auto& node : mlx_vector_array_get_(arrays)) {
    try {
      node.wait();
    } catch (std::exception&) {
      // Its failure has nobody to be told.
    }
  }
}
