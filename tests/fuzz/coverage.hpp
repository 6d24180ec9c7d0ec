#pragma once

// What code compiled with -fsanitize-coverage=trace-pc,trace-cmp calls: which edges an execution took, and
// which numbers it compared. An input that takes a new edge is changed further; a number that was compared
// with another is put in its place. Included by the engine alone, which is compiled without those options.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fuzz::coverage {

struct Comparison {
  uint64_t left, right;
  int bytes;
};

inline constexpr size_t map_size = size_t{1} << 16;
inline std::array<uint8_t, map_size> counts{};
inline std::array<uint32_t, map_size> touched{};
inline size_t touched_size = 0;
inline std::array<Comparison, 256> comparisons{};
inline size_t comparison_count = 0;
inline uint64_t edges = 0;  ///< of this execution: its length, which unlike its time is the same in each run
// Only the thread that executes is watched, and only while it does.
inline thread_local bool watching = false;
inline thread_local uintptr_t previous = 0;

inline void begin() {
  touched_size = 0;
  comparison_count = 0;
  edges = 0;
  previous = 0;
  watching = true;
}

/// Ends what begin() began. Whether this execution took an edge, or took it in an order of magnitude of
/// times, that none did before.
inline bool end() {
  static std::array<uint8_t, map_size> seen{};  // a bit an order of magnitude
  watching = false;
  bool is_new = false;
  for (size_t i = 0; i < touched_size; ++i) {
    const uint32_t edge = touched[i];
    const auto bit = static_cast<uint8_t>(1U << (std::bit_width(counts[edge]) - 1));
    is_new = is_new || (seen[edge] & bit) == 0;
    seen[edge] = static_cast<uint8_t>(seen[edge] | bit);
    counts[edge] = 0;
  }
  return is_new;
}

inline void edge(uintptr_t place) {
  if (!watching) {
    return;
  }
  ++edges;
  const size_t index = (place ^ (previous << 5)) % map_size;
  previous = place;
  if (counts[index] == 0) {
    touched[touched_size++] = static_cast<uint32_t>(index);
  }
  counts[index] = static_cast<uint8_t>(counts[index] + (counts[index] < 255 ? 1 : 0));
}

inline void compare(uint64_t left, uint64_t right, int bytes) {
  if (watching && left != right) {
    comparisons[comparison_count++ % comparisons.size()] = {left, right, bytes};
  }
}

}  // namespace fuzz::coverage

extern "C" {
inline void fuzz_coverage_anchor() {}

// Relative to this program, which is loaded at another address each time.
__attribute__((used)) void __sanitizer_cov_trace_pc() {
  fuzz::coverage::edge(reinterpret_cast<uintptr_t>(__builtin_return_address(0)) -
                       reinterpret_cast<uintptr_t>(&fuzz_coverage_anchor));
}
void __sanitizer_cov_trace_cmp1(uint8_t, uint8_t) {}  // a byte is as soon guessed
void __sanitizer_cov_trace_cmp2(uint16_t a, uint16_t b) { fuzz::coverage::compare(a, b, 2); }
void __sanitizer_cov_trace_cmp4(uint32_t a, uint32_t b) { fuzz::coverage::compare(a, b, 4); }
void __sanitizer_cov_trace_cmp8(uint64_t a, uint64_t b) { fuzz::coverage::compare(a, b, 8); }
void __sanitizer_cov_trace_const_cmp1(uint8_t, uint8_t) {}
void __sanitizer_cov_trace_const_cmp2(uint16_t a, uint16_t b) { fuzz::coverage::compare(a, b, 2); }
void __sanitizer_cov_trace_const_cmp4(uint32_t a, uint32_t b) { fuzz::coverage::compare(a, b, 4); }
void __sanitizer_cov_trace_const_cmp8(uint64_t a, uint64_t b) { fuzz::coverage::compare(a, b, 8); }
void __sanitizer_cov_trace_cmpf(float, float) {}
void __sanitizer_cov_trace_cmpd(double, double) {}
void __sanitizer_cov_trace_switch(uint64_t value, void* list) {
  const auto* cases = static_cast<const uint64_t*>(list);  // how many, bits of each, and then they
  for (uint64_t i = 0; i < cases[0]; ++i) {
    fuzz::coverage::compare(value, cases[2 + i], static_cast<int>(cases[1] / 8));
  }
}
}
