// MLX lets an evaluation schedule only so far ahead of what is computed: it waits while more than
// ten groups of operations are scheduled in the whole process. Of several evaluations one then fills
// the room alone, and the streams of the others run dry. The room is a constant of libmlx, so that
// it is made larger by lowering the count that is compared with it.

#include <mutex>

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
