#pragma once

#include <torch/cuda.h>
#include <mixmatch/detail/cuda.hpp>

#include <iostream>

/// Whether a test that needs a GPU must be left out here; says why.
inline bool skip_without_cuda() {
  if (!mixmatch::detail::has_cuda) {
    std::cout << "SKIPPED: this build has no CUDA\n";
    return true;
  }
  if (!torch::cuda::is_available()) {
    std::cout << "SKIPPED: no CUDA device\n";
    return true;
  }
  return false;
}
