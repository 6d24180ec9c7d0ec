#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cuda/cuda_shuffle.hpp>
#include <mixmatch/detail/shuffled_index.hpp>

#include <cstdint>

namespace mixmatch::detail {

/// counter_words() in ATen's calls.
inline at::Tensor counter_words_composite(const at::Tensor& step, uint64_t seed, int64_t count) {
  const auto golden = static_cast<int64_t>(kGolden);
  const at::Tensor state = mix_bits((step + 1) * golden + static_cast<int64_t>(mix_bits(seed + kGolden)));
  const at::Tensor place = at::arange(1, count + 1, step.options()) * golden;
  return mix_bits(place + state).bitwise_right_shift(32).bitwise_and(int64_t{0xFFFFFFFF});
}

/// The upper halves of CounterRng(seed, step)'s first `count` numbers: int64 [count], uniform in [0, 2^32),
/// on the device of `step`, int64 []. A pure function of (seed, step) with the same result on every device;
/// does not wait for it.
inline at::Tensor counter_words(const at::Tensor& step, uint64_t seed, int64_t count) {
  at::Tensor words = at::empty({count}, step.options());
  if (step.is_cpu()) {
    CounterRng random(seed, static_cast<uint64_t>(*step.data_ptr<int64_t>()));
    auto* out = words.data_ptr<int64_t>();
    for (int64_t i = 0; i < count; ++i) {
      out[i] = static_cast<int64_t>(random.next() >> 32);
    }
    return words;
  }
  return counter_words_on_cuda(words, step, mix_bits(seed + kGolden))
             ? words
             : counter_words_composite(step, seed, count);
}

/// Of such words: integers in [0, bound), to 2^-32 uniform.
inline at::Tensor words_below(const at::Tensor& words, int64_t bound) {
  return words.mul(bound).bitwise_right_shift(32);
}

/// Of such words: float32 in [0, 1).
inline at::Tensor words_to_uniform(const at::Tensor& words) {
  return words.bitwise_right_shift(8).to(at::kFloat).mul_(1.0 / (1 << 24));
}

}  // namespace mixmatch::detail
