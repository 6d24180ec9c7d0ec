#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cpu/parallel.hpp>

#include <cstring>

/// The machine's limit: to = from, on all threads.
inline void parallel_memcpy(const torch::Tensor& to, const torch::Tensor& from) {
  auto* target = static_cast<char*>(to.data_ptr());
  const auto* source = static_cast<const char*>(from.data_ptr());
  const auto bytes = static_cast<int64_t>(from.nbytes());
  mixmatch::detail::parallel_for(0, bytes, 1 << 17, [&](int64_t begin, int64_t end) {
    std::memcpy(target + begin, source + begin, static_cast<size_t>(end - begin));
  });
}
