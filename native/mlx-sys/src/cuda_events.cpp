// Events of CUDA, used again. In MLX 0.32.2 each evaluation makes an event and ends it. While other threads launch
// kernels, either takes the driver as long as ten launches.
//
// The CUDA runtime is a part of libmlx, and asks the driver for its functions by name. What it gets for these two is
// replaced.

#ifdef __linux__

#include <cstdint>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include <dlfcn.h>

#include "slots.h"

namespace {

using Context = void*;
using Event = void*;

// As in cuda.h.
constexpr int success = 0;

struct Driver {
  int (*find)(const char*, void**, int, uint64_t, int*);
  // The same without a status.
  int (*find_plain)(const char*, void**, int, uint64_t);
  int (*current)(Context*);
  int (*create)(Event*, unsigned);
  int (*destroy)(Event);
} driver{};

// Events that were given back, and of what kind all are. A wait that was asked for keeps what it waits for
// when its event is recorded anew.
class Events {
 public:
  int create(Event* event, unsigned flags) {
    Context context = nullptr;
    driver.current(&context);
    const Kind kind{context, flags};
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (auto& [free_kind, events] : free_) {
        if (free_kind == kind && !events.empty()) {
          *event = events.back();
          events.pop_back();
          return success;
        }
      }
    }
    const int status = driver.create(event, flags);
    if (status == success) {
      std::lock_guard<std::mutex> lock(mutex_);
      kinds_[*event] = kind;
    }
    return status;
  }

  int destroy(Event event) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto found = kinds_.find(event);
      if (found != kinds_.end()) {
        auto& events = free_of(found->second);
        if (events.size() < most) {
          events.push_back(event);
          return success;
        }
        kinds_.erase(found);
      }
    }
    return driver.destroy(event);
  }

 private:
  using Kind = std::pair<Context, unsigned>;

  // More than live at a time but for bursts.
  static constexpr size_t most = 4096;

  std::vector<Event>& free_of(Kind kind) {
    for (auto& [free_kind, events] : free_) {
      if (free_kind == kind) {
        return events;
      }
    }
    return free_.emplace_back(kind, std::vector<Event>{}).second;
  }

  std::mutex mutex_;
  std::unordered_map<Event, Kind> kinds_;
  // Of one or two kinds.
  std::vector<std::pair<Kind, std::vector<Event>>> free_;
};

// Never ended: MLX's threads use them to the last.
Events& events() {
  static auto* events = new Events;
  return *events;
}

int create_event(Event* event, unsigned flags) {
  return events().create(event, flags);
}

int destroy_event(Event event) {
  return events().destroy(event);
}

template <typename Function>
void replace(void** found, Function& original, Function replacement) {
  original = reinterpret_cast<Function>(*found);
  *found = reinterpret_cast<void*>(replacement);
}

int find_plain(const char* name, void** found, int version, uint64_t flags);

void replace_if_ours(const char* name, void** found) {
  if (found == nullptr || *found == nullptr) {
    return;
  }
  if (std::strcmp(name, "cuEventCreate") == 0) {
    replace(found, driver.create, create_event);
  } else if (std::strcmp(name, "cuEventDestroy") == 0) {
    replace(found, driver.destroy, destroy_event);
  } else if (std::strcmp(name, "cuGetProcAddress") == 0) {
    // The runtime asks for the rest through the one that it finds here.
    replace(found, driver.find_plain, find_plain);
  }
}

int find_plain(const char* name, void** found, int version, uint64_t flags) {
  const int result = driver.find_plain(name, found, version, flags);
  if (result == success) {
    replace_if_ours(name, found);
  }
  return result;
}

int find_with_status(const char* name, void** found, int version, uint64_t flags, int* status) {
  const int result = driver.find(name, found, version, flags, status);
  if (result == success) {
    replace_if_ours(name, found);
  }
  return result;
}

void* find_symbol(void* handle, const char* name) {
  void* found = dlsym(handle, name);
  if (found != nullptr && std::strcmp(name, "cuGetProcAddress_v2") == 0) {
    driver.current = reinterpret_cast<decltype(driver.current)>(dlsym(handle, "cuCtxGetCurrent"));
    if (driver.current != nullptr) {
      replace(&found, driver.find, find_with_status);
    }
  }
  return found;
}

} // namespace

extern "C" bool emily_cuda_keep_events() {
  // Only MLX's CUDA build has it.
  void* known = dlsym(RTLD_DEFAULT, "_ZN3mlx4core2cu6deviceEi");
  Dl_info libmlx;
  if (known == nullptr || dladdr(known, &libmlx) == 0) {
    return false;
  }
  return emily::replace(libmlx.dli_fbase, "dlsym", nullptr, reinterpret_cast<void*>(find_symbol));
}
#else
extern "C" bool emily_cuda_keep_events() {
  return false;
}
#endif
