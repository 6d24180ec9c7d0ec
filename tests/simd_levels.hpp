#pragma once

#include <mixmatch/detail/cpu/simd.hpp>

#include <vector>

/// The instruction sets that this machine can run, the plain loop among them.
inline std::vector<mixmatch::detail::SimdLevel> simd_levels() {
  using mixmatch::detail::SimdLevel;
  std::vector<SimdLevel> levels;
  for (const auto level : {SimdLevel::plain, SimdLevel::avx2, SimdLevel::avx512, SimdLevel::avx512_bf16}) {
    if (level <= mixmatch::detail::simd_level()) {
      levels.push_back(level);
    }
  }
  return levels;
}

/// Makes the kernels use one instruction set for the length of a scope.
class SimdLevelGuard {
 public:
  explicit SimdLevelGuard(mixmatch::detail::SimdLevel level) : before_(mixmatch::detail::simd_level()) {
    mixmatch::detail::simd_level() = level;
  }
  SimdLevelGuard(const SimdLevelGuard&) = delete;
  SimdLevelGuard& operator=(const SimdLevelGuard&) = delete;
  ~SimdLevelGuard() { mixmatch::detail::simd_level() = before_; }

 private:
  mixmatch::detail::SimdLevel before_;
};
