#pragma once

#include <torch/types.h>
#include <mixmatch/detail/counter_rng.hpp>

#include <algorithm>
#include <cstdint>

namespace mixmatch::detail {

// A random permutation that is computed at single points, without memory and without sorting: the swap-or-not
// shuffle (Hoang, Morris, Rogaway 2012). Each round pairs place x with pivot - x (mod size), the same pair
// from both sides, and a hash of the pair's larger place decides whether the two change places. So a GPU
// finds the rows of a batch by itself, for any epoch, from a seed and a position.

inline constexpr int kShuffleRounds = 90;  // as in Ethereum's shuffle of its validators
inline constexpr uint64_t kGolden = 0x9E3779B97F4A7C15U;

/// The key of one epoch's permutation.
constexpr uint64_t shuffle_key(uint64_t seed, uint64_t epoch) {
  return mix_bits(mix_bits(seed + kGolden) + (epoch + 1) * kGolden);
}

/// Where the permutation of 0 … size - 1 with that key takes `index`; size < 2^31.
constexpr int64_t shuffled_index(int64_t index, int64_t size, uint64_t key) {
  auto place = static_cast<uint64_t>(index);
  const auto range = static_cast<uint64_t>(size);
  for (int round = 0; round < kShuffleRounds; ++round) {
    const uint64_t first = key + 3 * static_cast<uint64_t>(round) * kGolden;
    const uint64_t pivot = ((mix_bits(first) >> 32) * range) >> 32;
    uint64_t partner = pivot + range - place;
    partner = partner >= range ? partner - range : partner;
    // (a x + b) / 2^63: for random a and b any two x have independent results.
    const uint64_t hash =
        mix_bits(first + kGolden) * std::max(place, partner) + mix_bits(first + 2 * kGolden);
    place = hash >> 63 != 0 ? partner : place;
  }
  return static_cast<int64_t>(place);
}

/// mix_bits() of each element, unsigned in int64.
inline at::Tensor mix_bits(const at::Tensor& values) {
  const auto shifted = [](const at::Tensor& value, int64_t bits) {
    return value.bitwise_right_shift(bits).bitwise_and((int64_t{1} << (64 - bits)) - 1);
  };
  at::Tensor mixed = values.bitwise_xor(shifted(values, 30)) * static_cast<int64_t>(0xBF58476D1CE4E5B9U);
  mixed = mixed.bitwise_xor(shifted(mixed, 27)) * static_cast<int64_t>(0x94D049BB133111EBU);
  return mixed.bitwise_xor(shifted(mixed, 31));
}

/// shuffled_index() of each of `index` [B], with `epoch` [B], in ATen's calls: any device. `size`: int64_t,
/// or one for each, int64 [B].
template <class Size>
at::Tensor shuffled_indices(const at::Tensor& index, const at::Tensor& epoch, const Size& size,
                            uint64_t seed) {
  const auto golden = [](int64_t times) {
    return static_cast<int64_t>(static_cast<uint64_t>(times) * kGolden);
  };
  const auto base = static_cast<int64_t>(mix_bits(seed + kGolden));
  const at::Tensor key = mix_bits((epoch + 1) * golden(1) + base);
  // [rounds, B]
  const at::Tensor first =
      at::arange(kShuffleRounds, index.options()).mul_(golden(3)).unsqueeze(1) + key.unsqueeze(0);
  const at::Tensor high = mix_bits(first).bitwise_right_shift(32).bitwise_and(int64_t{0xFFFFFFFF});
  const at::Tensor pivot = (high * size).bitwise_right_shift(32);
  const at::Tensor factor = mix_bits(first + golden(1)), offset = mix_bits(first + golden(2));
  at::Tensor place = index;
  for (int64_t round = 0; round < kShuffleRounds; ++round) {
    const at::Tensor partner = (pivot[round] - place + size).remainder(size);
    const at::Tensor hash = factor[round] * at::maximum(place, partner) + offset[round];
    place = at::where(hash.lt(0), partner, place);
  }
  return place;
}

}  // namespace mixmatch::detail
