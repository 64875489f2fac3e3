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
#include <elf.h>
#include <link.h>

#include "protection.h"

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

#if defined(__x86_64__)
constexpr unsigned jump_slot = R_X86_64_JUMP_SLOT;
#elif defined(__aarch64__)
constexpr unsigned jump_slot = R_AARCH64_JUMP_SLOT;
#endif

// The place where a library keeps the address of a function that it calls.
void** place_of(const dl_phdr_info& library, const char* function) {
  const ElfW(Dyn)* entry = nullptr;
  for (int i = 0; i < library.dlpi_phnum; ++i) {
    if (library.dlpi_phdr[i].p_type == PT_DYNAMIC) {
      entry = reinterpret_cast<const ElfW(Dyn)*>(library.dlpi_addr + library.dlpi_phdr[i].p_vaddr);
    }
  }
  uintptr_t slots = 0;
  uintptr_t symbols = 0;
  uintptr_t names = 0;
  size_t bytes = 0;
  for (; entry != nullptr && entry->d_tag != DT_NULL; ++entry) {
    // Some loaders write addresses here, others leave offsets.
    const uintptr_t value = entry->d_un.d_ptr;
    const uintptr_t address = value < library.dlpi_addr ? library.dlpi_addr + value : value;
    switch (entry->d_tag) {
      case DT_JMPREL: slots = address; break;
      case DT_SYMTAB: symbols = address; break;
      case DT_STRTAB: names = address; break;
      case DT_PLTRELSZ: bytes = entry->d_un.d_val; break;
    }
  }
  if (slots == 0 || symbols == 0 || names == 0) {
    return nullptr;
  }
  const auto* slot = reinterpret_cast<const ElfW(Rela)*>(slots);
  for (size_t i = 0; i < bytes / sizeof(ElfW(Rela)); ++i, ++slot) {
    const auto& symbol = reinterpret_cast<const ElfW(Sym)*>(symbols)[ELF64_R_SYM(slot->r_info)];
    const char* name = reinterpret_cast<const char*>(names) + symbol.st_name;
    if (ELF64_R_TYPE(slot->r_info) == jump_slot && std::strcmp(name, function) == 0) {
      return reinterpret_cast<void**>(library.dlpi_addr + slot->r_offset);
    }
  }
  return nullptr;
}

struct Search {
  const void* base;
  void** place;
};

int search(dl_phdr_info* library, size_t, void* data) {
  auto& search = *static_cast<Search*>(data);
  if (reinterpret_cast<const void*>(library->dlpi_addr) != search.base) {
    return 0;
  }
  search.place = place_of(*library, "dlsym");
  return 1;
}

} // namespace

extern "C" bool emily_cuda_keep_events() {
  // Only MLX's CUDA build has it.
  void* known = dlsym(RTLD_DEFAULT, "_ZN3mlx4core2cu6deviceEi");
  Dl_info libmlx;
  if (known == nullptr || dladdr(known, &libmlx) == 0) {
    return false;
  }
  Search found{libmlx.dli_fbase, nullptr};
  dl_iterate_phdr(search, &found);
  if (found.place == nullptr) {
    return false;
  }
  // Read-only or not before, it works either way.
  if (!emily::set_protection(found.place, PROT_READ | PROT_WRITE)) {
    return false;
  }
  *found.place = reinterpret_cast<void*>(find_symbol);
  return true;
}
#else
extern "C" bool emily_cuda_keep_events() {
  return false;
}
#endif
