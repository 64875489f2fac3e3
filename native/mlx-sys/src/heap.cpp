// Where MLX's nodes are allocated, and what this library keeps of each: in a heap of their own, which is jemalloc's.
// One thread builds a node and as a rule another frees it, which glibc does with the heap of the first locked, at
// times for milliseconds.
//
// Only `new` in libmlx and here allocates there. Others may free it: libstdc++ a string that it makes longer, or another
// library whose copy of a template the loader has chosen for all. So `delete` is replaced everywhere, and tells the
// blocks of both heaps apart by their addresses. In libstdc++ itself all kinds of it end in one, which has to be.

// Defines __GLIBC__, too.
#include <cstddef>

#if defined(__linux__) && defined(__GLIBC__) && defined(__LP64__)

#include <atomic>
#include <cstdint>
#include <mutex>

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include "protection.h"
#include "slots.h"

extern "C" {
// As jemalloc 5 declares them, with the prefix that tikv-jemalloc-sys gives.
struct extent_hooks_t {
  void* (*alloc)(extent_hooks_t*, void*, size_t, size_t, bool*, bool*, unsigned);
  bool (*dalloc)(extent_hooks_t*, void*, size_t, bool, unsigned);
  void (*destroy)(extent_hooks_t*, void*, size_t, bool, unsigned);
  bool (*commit)(extent_hooks_t*, void*, size_t, size_t, size_t, unsigned);
  bool (*decommit)(extent_hooks_t*, void*, size_t, size_t, size_t, unsigned);
  bool (*purge_lazy)(extent_hooks_t*, void*, size_t, size_t, size_t, unsigned);
  bool (*purge_forced)(extent_hooks_t*, void*, size_t, size_t, size_t, unsigned);
  bool (*split)(extent_hooks_t*, void*, size_t, size_t, size_t, bool, unsigned);
  bool (*merge)(extent_hooks_t*, void*, size_t, void*, size_t, bool, unsigned);
};
void* _rjem_malloc(size_t);
void _rjem_free(void*);
int _rjem_mallctl(const char*, void*, size_t*, void*, size_t);
bool emily_heap_free(void*);

// Its own arenas, which nobody uses.
const char* _rjem_malloc_conf = "narenas:1";
}

namespace {

// Addresses of the heap. Memory is taken as it is used.
constexpr size_t reserved = size_t{1} << 36;

std::atomic<uintptr_t> start{0};
std::atomic<size_t> used{0};

bool is_ours(const void* block) {
  const uintptr_t from = start.load(std::memory_order_relaxed);
  return from != 0 && reinterpret_cast<uintptr_t>(block) - from < reserved;
}

void* extend(extent_hooks_t*, void* wanted, size_t size, size_t alignment, bool* zero, bool* commit, unsigned) {
  const uintptr_t from = start.load(std::memory_order_relaxed);
  if (wanted != nullptr || size > reserved) {
    return nullptr;
  }
  size_t end = used.load(std::memory_order_relaxed);
  size_t begin;
  do {
    begin = ((from + end + alignment - 1) & ~(alignment - 1)) - from;
    if (begin > reserved - size) {
      return nullptr;
    }
  } while (!used.compare_exchange_weak(end, begin + size, std::memory_order_relaxed));
  void* extent = reinterpret_cast<void*>(from + begin);
  if (mprotect(extent, size, PROT_READ | PROT_WRITE) != 0) {
    return nullptr;
  }
  *zero = true;
  *commit = true;
  return extent;
}

// Gives the memory back, and keeps the addresses.
bool purge(extent_hooks_t*, void* extent, size_t, size_t offset, size_t length, unsigned) {
  return madvise(static_cast<char*>(extent) + offset, length, MADV_DONTNEED) != 0;
}

bool split(extent_hooks_t*, void*, size_t, size_t, size_t, bool, unsigned) {
  return false;
}

bool merge(extent_hooks_t*, void*, size_t, void*, size_t, bool, unsigned) {
  return false;
}

// What is missing jemalloc does without: it keeps the extents that it has.
extent_hooks_t hooks{extend, nullptr, nullptr, nullptr, nullptr, nullptr, purge, split, merge};

// As many as there are processors, made as threads come.
constexpr unsigned most_arenas = 64;
unsigned arenas[most_arenas];
unsigned arena_count = 0;
std::mutex making_arenas;

unsigned processors() {
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online < 1 ? 1 : online > most_arenas ? most_arenas : static_cast<unsigned>(online);
}

thread_local bool has_chosen = false;

void choose_arena() {
  static std::atomic<unsigned> threads{0};
  static const unsigned count = processors();
  has_chosen = true;
  const unsigned turn = threads.fetch_add(1, std::memory_order_relaxed) % count;
  std::lock_guard<std::mutex> lock(making_arenas);
  for (; arena_count <= turn; ++arena_count) {
    extent_hooks_t* given = &hooks;
    size_t size = sizeof(unsigned);
    if (_rjem_mallctl("arenas.create", &arenas[arena_count], &size, &given, sizeof(given)) != 0) {
      return;
    }
  }
  _rjem_mallctl("thread.arena", nullptr, nullptr, &arenas[turn], sizeof(unsigned));
}

// What is larger is not a node.
constexpr size_t largest = size_t{1} << 15;

// Aligned for everything of so many bytes. Null where the heap has nothing to give.
void* allocate(size_t size) {
  if (size > largest) {
    return nullptr;
  }
  if (!has_chosen) {
    choose_arena();
  }
  void* block = _rjem_malloc(size);
  if (block == nullptr || is_ours(block)) {
    return block;
  }
  // No arena of ours could be had: `is_ours` has to tell blocks apart.
  _rjem_free(block);
  return nullptr;
}

// The functions that are replaced.
struct {
  void* (*make)(size_t);
  void* (*make_array)(size_t);
  void (*free)(void*);
  void (*free_sized)(void*, size_t);
  void (*free_array)(void*);
} before{};

void* make(size_t size) {
  void* block = allocate(size);
  return block != nullptr ? block : before.make(size);
}

void* make_array(size_t size) {
  void* block = allocate(size);
  return block != nullptr ? block : before.make_array(size);
}

void free_any(void* block) {
  if (!emily_heap_free(block)) {
    before.free(block);
  }
}

void free_sized(void* block, size_t size) {
  if (!emily_heap_free(block)) {
    before.free_sized(block, size);
  }
}

void free_array(void* block) {
  if (!emily_heap_free(block)) {
    before.free_array(block);
  }
}

template <typename Function>
bool find(const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
  return function != nullptr;
}

const void* library_of(const void* address) {
  Dl_info library;
  return address == nullptr || dladdr(address, &library) == 0 ? nullptr : library.dli_fbase;
}

bool begin() {
  if (!find("_Znwm", before.make) || !find("_Znam", before.make_array) || !find("_ZdlPv", before.free) ||
      !find("_ZdlPvm", before.free_sized) || !find("_ZdaPv", before.free_array)) {
    return false;
  }
  const void* libstdcxx = library_of(dlsym(RTLD_DEFAULT, "_ZNSt8ios_base4InitC1Ev"));
  const void* libmlx = library_of(dlsym(RTLD_DEFAULT, "_ZN3mlx4core5array9ArrayDescD1Ev"));
  const void* here = library_of(reinterpret_cast<const void*>(&begin));
  // Somebody has brought an allocator of his own.
  if (libstdcxx == nullptr || libmlx == nullptr || library_of(reinterpret_cast<void*>(before.free)) != libstdcxx) {
    return false;
  }
  // The first call through libstdc++'s slot writes to it, too: it must not come later.
  before.free_sized(before.make(1), 1);
  void* addresses = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (addresses == MAP_FAILED) {
    return false;
  }
  start.store(reinterpret_cast<uintptr_t>(addresses));
  const auto replace = [](const void* library, const char* name, auto* only, auto* by) {
    return emily::replace(library, name, reinterpret_cast<void*>(only), reinterpret_cast<void*>(by));
  };
  if (!replace(libstdcxx, "_ZdlPv", before.free, free_any)) {
    start.store(0);
    munmap(addresses, reserved);
    return false;
  }
  // Not where a library has one of its own.
  replace(nullptr, "_ZdlPv", before.free, free_any);
  replace(nullptr, "_ZdlPvm", before.free_sized, free_sized);
  replace(nullptr, "_ZdaPv", before.free_array, free_array);
  for (const void* library : {libmlx, here}) {
    emily::replace(library, "_Znwm", nullptr, reinterpret_cast<void*>(make));
    emily::replace(library, "_Znam", nullptr, reinterpret_cast<void*>(make_array));
  }
  return true;
}

} // namespace

extern "C" bool emily_heap_start() {
  static const bool started = begin();
  return started;
}

extern "C" void* emily_heap_allocate(size_t size) {
  return start.load(std::memory_order_relaxed) == 0 ? nullptr : allocate(size);
}

extern "C" bool emily_heap_free(void* block) {
  if (!is_ours(block)) {
    return false;
  }
  _rjem_free(block);
  return true;
}

extern "C" size_t emily_heap_taken() {
  return used.load(std::memory_order_relaxed);
}

extern "C" void emily_heap_trim() {
  // "arena.4096" means all of them.
  if (start.load() != 0) {
    _rjem_mallctl("thread.tcache.flush", nullptr, nullptr, nullptr, 0);
    _rjem_mallctl("arena.4096.purge", nullptr, nullptr, nullptr, 0);
  }
}
#else
extern "C" bool emily_heap_start() {
  return false;
}

extern "C" void* emily_heap_allocate(size_t) {
  return nullptr;
}

extern "C" bool emily_heap_free(void*) {
  return false;
}

extern "C" size_t emily_heap_taken() {
  return 0;
}

extern "C" void emily_heap_trim() {}
#endif
