#pragma once

#include <torch/cuda.h>
#include <mixmatch/detail/cuda/cuda.hpp>

#include "skip.hpp"

/// Whether a test that needs a GPU must be left out here; says why.
inline bool skip_without_cuda() {
  if (!mixmatch::detail::has_cuda) {
    skip("this build has no CUDA");
    return true;
  }
  if (!torch::cuda::is_available()) {
    skip("no CUDA device");
    return true;
  }
  return false;
}
