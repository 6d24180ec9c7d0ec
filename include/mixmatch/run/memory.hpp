#pragma once

#include <cstdlib>  // defines __GLIBC__ where that is the C library

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

}  // namespace mixmatch::training
