// The protection of the pages where libmlx keeps addresses of functions.

#pragma once

#include <cstdint>

#include <sys/mman.h>
#include <unistd.h>

namespace emily {

// Of the page that the address is in.
inline bool set_protection(void* address, int protection) {
  const auto size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto page = reinterpret_cast<uintptr_t>(address) & ~(size - 1);
  return mprotect(reinterpret_cast<void*>(page), size, protection) == 0;
}

} // namespace emily
