#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace mixmatch::detail {

/// One of the nested loops over the elements of several tensors of one shape, with each tensor's step.
template <size_t Tensors>
struct MemoryLoop {
  int64_t size;
  std::array<int64_t, Tensors> steps;

  /// Whether this loop around `inner` visits what one longer loop would.
  bool continues(const MemoryLoop& inner) const {
    for (size_t i = 0; i < Tensors; ++i) {
      if (steps[i] != inner.steps[i] * inner.size) {
        return false;
      }
    }
    return true;
  }
};

/// Orders the loops, outermost first, by how far tensor `by` steps, and joins those that can be one.
template <size_t Tensors>
void order_and_join(std::vector<MemoryLoop<Tensors>>& loops, size_t by) {
  // By insertion: there are few, and equal steps keep their order.
  for (size_t i = 1; i < loops.size(); ++i) {
    for (size_t j = i; j > 0 && loops[j - 1].steps[by] < loops[j].steps[by]; --j) {
      std::swap(loops[j - 1], loops[j]);
    }
  }
  size_t last = 0;
  for (size_t i = 1; i < loops.size(); ++i) {
    if (loops[last].continues(loops[i])) {
      loops[last] = {loops[last].size * loops[i].size, loops[i].steps};
    } else {
      loops[++last] = loops[i];
    }
  }
  if (!loops.empty()) {
    loops.resize(last + 1);
  }
}

/// Where each tensor's element lies at pass `index` through the first `count` loops.
template <size_t Tensors>
std::array<int64_t, Tensors> offsets_at(const std::vector<MemoryLoop<Tensors>>& loops, size_t count,
                                        int64_t index) {
  std::array<int64_t, Tensors> offsets{};
  for (size_t d = count; d-- > 0;) {
    const int64_t place = index % loops[d].size;
    index /= loops[d].size;
    for (size_t i = 0; i < Tensors; ++i) {
      offsets[i] += place * loops[d].steps[i];
    }
  }
  return offsets;
}

}  // namespace mixmatch::detail
