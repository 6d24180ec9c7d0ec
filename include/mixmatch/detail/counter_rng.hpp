#pragma once

#include <cstdint>
#include <limits>
#include <utility>

namespace mixmatch::detail {

/// Splitmix64's finaliser: every bit of the result depends on every bit of `value`.
constexpr uint64_t mix_bits(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9U;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBU;
  return value ^ (value >> 31);
}

/// Random integers that are a pure function of (seed, stream, how many came before), in integer arithmetic
/// alone: the same numbers on every machine, compiler and standard library, which
/// std::uniform_int_distribution and std::shuffle do not promise.
class CounterRng {
 public:
  explicit constexpr CounterRng(uint64_t seed, uint64_t stream = 0)
      : state_(mix_bits(mix_bits(seed + golden) + (stream + 1) * golden)) {}

  constexpr uint64_t next() {
    state_ += golden;
    return mix_bits(state_);
  }

  /// Uniform in [0, bound), without bias; bound > 0.
  constexpr int64_t below(int64_t bound) {
    const auto range = static_cast<uint64_t>(bound);
    const uint64_t largest = std::numeric_limits<uint64_t>::max();
    const uint64_t limit = largest - largest % range;
    uint64_t drawn = next();
    while (drawn >= limit) {
      drawn = next();
    }
    return static_cast<int64_t>(drawn % range);
  }

  /// Uniform in [low, high], both included.
  constexpr int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }

  /// Fisher and Yates's shuffle of data[0 … count - 1].
  template <class T>
  constexpr void shuffle(T* data, int64_t count) {
    for (int64_t i = count - 1; i > 0; --i) {
      std::swap(data[i], data[below(i + 1)]);
    }
  }

 private:
  static constexpr uint64_t golden = 0x9E3779B97F4A7C15U;
  uint64_t state_;
};

}  // namespace mixmatch::detail
