// The protection of the pages where libmlx keeps addresses of functions.

#pragma once

#include <cstddef>
#include <cstdint>

#include <sys/mman.h>
#include <unistd.h>

namespace emily {

inline uintptr_t page_of(uintptr_t address) {
  return address & ~(static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)) - 1);
}

// Of the page that the address is in.
inline bool set_protection(void* address, int protection) {
  auto* page = reinterpret_cast<void*>(page_of(reinterpret_cast<uintptr_t>(address)));
  return mprotect(page, static_cast<size_t>(sysconf(_SC_PAGESIZE)), protection) == 0;
}

} // namespace emily
