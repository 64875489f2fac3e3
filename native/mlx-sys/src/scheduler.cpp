// MLX lets an evaluation schedule only so far ahead of what is computed: it waits while more than
// ten groups of operations are scheduled in the whole process. Of several evaluations one then fills
// the room alone, and the streams of the others run dry. The room is a constant of libmlx, so that
// it is made larger by lowering the count that is compared with it.

#include <mutex>
#include <vector>

#include "mlx/array.h"
#include "mlx/c/private/mlx.h"
#include "mlx/primitives.h"
#include "mlx/scheduler.h"

namespace {

using mlx::core::scheduler::Scheduler;

// The arguments of an explicit instantiation may name private members.
template <typename Tag, typename Tag::Member member>
struct Expose {
  friend typename Tag::Member expose(Tag) {
    return member;
  }
};

struct Count {
  using Member = int Scheduler::*;
  friend Member expose(Count);
};
template struct Expose<Count, &Scheduler::n_active_tasks_>;

struct Lock {
  using Member = std::mutex Scheduler::*;
  friend Member expose(Lock);
};
template struct Expose<Lock, &Scheduler::mtx>;

struct Changed {
  using Member = std::condition_variable Scheduler::*;
  friend Member expose(Changed);
};
template struct Expose<Changed, &Scheduler::completion_cv>;

} // namespace

extern "C" void emily_scheduler_add_room(int groups) {
  auto& scheduler = mlx::core::scheduler::scheduler();
  {
    std::lock_guard<std::mutex> lock(scheduler.*expose(Lock{}));
    scheduler.*expose(Count{}) -= groups;
  }
  if (groups > 0) {
    (scheduler.*expose(Changed{})).notify_all();
  }
}

namespace {

// Names of nodes. The standard set takes an allocation for each, which is felt before every evaluation.
class Seen {
 public:
  // Whether it is new. Names are addresses, and none is null.
  bool insert(std::uintptr_t name) {
    if (2 * count_ >= slots_.size()) {
      grow();
    }
    auto& slot = place(name);
    if (slot == name) {
      return false;
    }
    slot = name;
    ++count_;
    return true;
  }

 private:
  // Where a name is, or may go.
  std::uintptr_t& place(std::uintptr_t name) {
    // Addresses are multiples of 16.
    size_t at = (name >> 4) * 0x9E3779B97F4A7C15 >> 32;
    while (slots_[at &= slots_.size() - 1] != 0 && slots_[at] != name) {
      ++at;
    }
    return slots_[at];
  }

  void grow() {
    auto names = std::move(slots_);
    slots_.assign(2 * names.size(), 0);
    for (const auto name : names) {
      if (name != 0) {
        place(name) = name;
      }
    }
  }

  // A power of two.
  std::vector<std::uintptr_t> slots_ = std::vector<std::uintptr_t>(64);
  size_t count_ = 0;
};

} // namespace

extern "C" size_t emily_graph_bytes(const mlx_vector_array outputs, size_t most, bool* has_cpu) {
  using mlx::core::array;
  size_t bytes = 0;
  *has_cpu = false;
  Seen seen;
  std::vector<const array*> rest;
  const auto visit = [&](const array& node) {
    if (node.status() == array::Status::unscheduled && seen.insert(node.id())) {
      rest.push_back(&node);
    }
  };
  for (const auto& output : mlx_vector_array_get_(outputs)) {
    visit(output);
  }
  while (!rest.empty() && bytes <= most) {
    const array& node = *rest.back();
    rest.pop_back();
    bytes += node.nbytes();
    *has_cpu |= node.has_primitive() && node.primitive().stream().device == mlx::core::Device::cpu;
    for (const auto& input : node.inputs()) {
      visit(input);
    }
  }
  return bytes;
}
