// On a machine with a GPU: each kernel on the device against the composite in float64.

#include "cuda_device.hpp"
#include "../benchmarks/gpu/kernel_checks.hpp"
#include "catch.hpp"

TEST_CASE("this machine's GPU runs kernels that are compiled at run time") {
  if (skip_without_cuda()) {
    return;
  }
  CHECK(mixmatch::detail::cuda_kernels_available(torch::kCUDA));
}

TEST_CASE("every kernel on the GPU is its composite in float64") {
  if (skip_without_cuda()) {
    return;
  }
  for (const bool kernels : {true, false}) {
    mixmatch::detail::cuda_kernels_enabled() = kernels;
    for (const auto& check : kernel_checks::run_all(torch::Device(torch::kCUDA, 0))) {
      INFO(check.name << ", kernels " << kernels);
      CHECK(check.error <= check.tolerance);
    }
    mixmatch::detail::cuda_kernels_enabled() = true;
  }
}
