#pragma once

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <thread>

namespace mixmatch::training {

/// One a processor, shared by so many processes, and at most 16, beyond which small networks only wait for
/// each other.
inline int usual_threads(int processes = 1) {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / processes, 1, 16);
}

/// Sets LibTorch's CPU threads (Debian's build starts with one, others with one a hyper-thread); 0 means
/// usual_threads(). Returns the number set.
inline int set_threads(int threads) {
  TORCH_CHECK(threads >= 0, "threads: expected >= 0, got ", threads);
  const int count = threads > 0 ? threads : usual_threads();
  at::set_num_threads(count);
  return count;
}

}  // namespace mixmatch::training
