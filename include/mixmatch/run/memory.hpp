#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>  // defines __GLIBC__ where that is the C library
#include <fstream>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace mixmatch::training {

/// Lets the allocator keep the memory that a training step frees for the next one, instead of giving it back
/// to the system and taking fresh pages again: that costs several per cent of a CPU step. Freed memory then
/// stays with the process until it ends. glibc alone; elsewhere, and where the allocator was replaced, of no
/// effect. Call it first in main().
inline void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);  // a mapping of its own is given back as soon as it is free
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}

/// Bytes of memory that the machine has, or, where that is less, that the process's control group may use.
inline int64_t machine_memory() {
  int64_t memory = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    int64_t limit = 0;
    if (std::ifstream(path) >> limit && limit > 0) {  // "max" is no number
      memory = std::min(memory, limit);
    }
  }
  return memory;
}

}  // namespace mixmatch::training
