#pragma once

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <thread>

namespace mixmatch::training {

/// Sets LibTorch's CPU threads (Debian's build starts with one, others with one a hyper-thread); 0 means one
/// a processor, at most 16, beyond which small networks only wait for each other. Returns the number set.
inline int set_threads(int threads) {
  TORCH_CHECK(threads >= 0, "threads: expected >= 0, got ", threads);
  const int count =
      threads > 0 ? threads : std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 16);
  at::set_num_threads(count);
  return count;
}

}  // namespace mixmatch::training
