#pragma once

#if defined(__GNUC__) && defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mixmatch::detail {

/// Whether this processor multiplies bfloat16 in hardware: AVX512-BF16, which every processor with AMX has as
/// well. Others emulate it, slower than float32.
inline bool has_fast_bfloat16() {
#if defined(__GNUC__) && defined(__x86_64__)
  // That the system keeps the registers, which the instruction's own bit does not tell.
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512f")) {
    return false;
  }
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 5)) != 0;
#else
  return false;
#endif
}

}  // namespace mixmatch::detail
