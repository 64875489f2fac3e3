// The places where a loaded library keeps the addresses of functions that it calls.

#pragma once

#if defined(__linux__) && defined(__LP64__)

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <elf.h>
#include <link.h>
#include <sys/mman.h>

#include "protection.h"

namespace emily {

#if defined(__x86_64__)
constexpr unsigned jump_slot = R_X86_64_JUMP_SLOT;
constexpr unsigned address_slot = R_X86_64_GLOB_DAT;
#elif defined(__aarch64__)
constexpr unsigned jump_slot = R_AARCH64_JUMP_SLOT;
constexpr unsigned address_slot = R_AARCH64_GLOB_DAT;
#endif

// Has the library that is loaded at `base`, or all where that is null, call `by` instead of `function`, but where it
// calls something other than `only`, unless that is null. Says whether something was replaced.
inline bool replace(const void* base, const char* function, const void* only, void* by) {
  struct Search {
    const void* base;
    const char* function;
    const void* only;
    void* by;
    bool found;
  } search{base, function, only, by, false};

  const auto visit = [](dl_phdr_info* library, size_t, void* data) {
    auto& search = *static_cast<Search*>(data);
    const uintptr_t base = library->dlpi_addr;
    const int end = search.base != nullptr;
    if (end && reinterpret_cast<const void*>(base) != search.base) {
      return 0;
    }
    const ElfW(Dyn)* entry = nullptr;
    uintptr_t read_only = 0;
    uintptr_t writable = 0;
    for (int i = 0; i < library->dlpi_phnum; ++i) {
      const auto& part = library->dlpi_phdr[i];
      if (part.p_type == PT_DYNAMIC) {
        entry = reinterpret_cast<const ElfW(Dyn)*>(base + part.p_vaddr);
      } else if (part.p_type == PT_GNU_RELRO) {
        // The loader leaves a page writable that this ends in.
        read_only = page_of(base + part.p_vaddr);
        writable = page_of(base + part.p_vaddr + part.p_memsz);
      }
    }
    struct Table {
      uintptr_t begin = 0;
      size_t bytes = 0;
    } calls, others;
    uintptr_t symbols = 0;
    uintptr_t names = 0;
    for (; entry != nullptr && entry->d_tag != DT_NULL; ++entry) {
      // Some loaders write addresses here, others leave offsets.
      const uintptr_t value = entry->d_un.d_ptr;
      const uintptr_t address = value < base ? base + value : value;
      switch (entry->d_tag) {
        case DT_JMPREL: calls.begin = address; break;
        case DT_PLTRELSZ: calls.bytes = entry->d_un.d_val; break;
        case DT_RELA: others.begin = address; break;
        case DT_RELASZ: others.bytes = entry->d_un.d_val; break;
        case DT_SYMTAB: symbols = address; break;
        case DT_STRTAB: names = address; break;
      }
    }
    if (symbols == 0 || names == 0) {
      return end;
    }
    for (const Table& table : {calls, others}) {
      const auto* relocation = reinterpret_cast<const ElfW(Rela)*>(table.begin);
      const size_t count = table.begin == 0 ? 0 : table.bytes / sizeof(*relocation);
      for (size_t i = 0; i < count; ++i, ++relocation) {
        const auto type = ELF64_R_TYPE(relocation->r_info);
        if (type != jump_slot && type != address_slot) {
          continue;
        }
        const auto& symbol = reinterpret_cast<const ElfW(Sym)*>(symbols)[ELF64_R_SYM(relocation->r_info)];
        if (std::strcmp(reinterpret_cast<const char*>(names) + symbol.st_name, search.function) != 0) {
          continue;
        }
        auto* slot = reinterpret_cast<void**>(base + relocation->r_offset);
        const bool is_read_only = base + relocation->r_offset - read_only < writable - read_only;
        if ((search.only != nullptr && *slot != search.only) ||
            (is_read_only && !set_protection(slot, PROT_READ | PROT_WRITE))) {
          continue;
        }
        __atomic_store_n(slot, search.by, __ATOMIC_RELEASE);
        search.found = true;
        if (is_read_only) {
          set_protection(slot, PROT_READ);
        }
      }
    }
    return end;
  };
  dl_iterate_phdr(visit, &search);
  return search.found;
}

} // namespace emily

#endif
