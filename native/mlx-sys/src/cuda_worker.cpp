// The threads that MLX starts for CUDA streams, one each, to free what a stream has used once it is
// computed. In MLX 0.32.2 `Worker::thread_fn` (mlx/backend/cuda/worker.cpp) forgets in each pass which
// work it has seen, so that once a stream has had work its thread never sleeps again: it takes and gives
// back, without end, the mutex that each evaluation and each notice of the driver needs. Here these threads
// run a loop that remembers.

#ifdef __linux__

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include <dlfcn.h>

#include "protection.h"

namespace {

using Tasks = std::vector<std::function<void()>>;

// As in mlx/backend/cuda/worker.h, whose includes need CUDA's own headers. Never made here.
struct Worker {
  std::weak_ptr<Worker> self; // of enable_shared_from_this
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t committed;
  uint64_t signaled;
  void* signal_stream;
  struct {
    void* handle;
    void* device;
    int flags;
  } signal_event;
  bool stop;
  Tasks pending;
  std::map<uint64_t, Tasks> tasks;
};

// The state of a std::thread that calls a member function of a Worker, as libstdc++ lays it out.
struct Thread {
  void* methods;
  std::shared_ptr<Worker> worker;
};

using Run = void (*)(Thread*);

// MLX's own loop.
Run run_as_made = nullptr;

// Whether a worker is what the structure above says. Its own pointer and an ordered map that has nothing,
// in the places where they should be, are not there by chance.
bool is_known(Thread* thread) {
  Worker& worker = *thread->worker;
  std::lock_guard<std::mutex> lock(worker.mutex);
  return !worker.self.owner_before(thread->worker) && !thread->worker.owner_before(worker.self) &&
      worker.committed == worker.signaled && !worker.stop && worker.tasks.empty() &&
      worker.tasks.begin() == worker.tasks.end();
}

void serve(Worker& worker) {
  uint64_t seen = 0;
  for (;;) {
    std::vector<Tasks> batches;
    {
      std::unique_lock<std::mutex> lock(worker.mutex);
      worker.changed.wait(lock, [&] { return worker.signaled > seen || worker.stop; });
      if (worker.signaled == seen) {
        return;
      }
      seen = worker.signaled;
      const auto end = worker.tasks.upper_bound(seen);
      for (auto batch = worker.tasks.begin(); batch != end; ++batch) {
        batches.push_back(std::move(batch->second));
      }
      worker.tasks.erase(worker.tasks.begin(), end);
    }
    for (auto& tasks : batches) {
      for (auto& task : tasks) {
        // What the task holds is freed before the next one runs, as MLX does it.
        const auto taken = std::move(task);
        taken();
      }
    }
  }
}

void run(Thread* thread) {
  // Of one, so of all: a thread that starts late may find work already.
  static std::atomic<bool> known{false};
  if (known || is_known(thread)) {
    known = true;
    serve(*thread->worker);
  } else {
    run_as_made(thread);
  }
}

const char* const thread_methods =
    "_ZTVNSt6thread11_State_implINS_8_InvokerISt5tupleIJMN3mlx4core2cu6WorkerEFvvESt10shared_ptrIS6_EEEEEEE";

} // namespace

extern "C" bool emily_cuda_quiet_workers() {
  auto* methods = static_cast<void**>(dlsym(RTLD_DEFAULT, thread_methods));
  if (methods == nullptr) {
    return false;
  }
  // Offset, type, two destructors, and the function that the thread runs.
  void** slot = methods + 4;
  Dl_info table;
  Dl_info code;
  if (dladdr(methods, &table) == 0 || dladdr(*slot, &code) == 0 || table.dli_fbase != code.dli_fbase ||
      !emily::set_protection(slot, PROT_READ | PROT_WRITE)) {
    return false;
  }
  run_as_made = reinterpret_cast<Run>(*slot);
  *slot = reinterpret_cast<void*>(run);
  // It was read-only before, and works either way.
  emily::set_protection(slot, PROT_READ);
  return true;
}
#else
extern "C" bool emily_cuda_quiet_workers() {
  return false;
}
#endif
