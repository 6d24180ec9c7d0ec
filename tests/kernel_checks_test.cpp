#include "../benchmarks/gpu/kernel_checks.hpp"
#include "catch.hpp"

TEST_CASE("the GPU's checks hold for the CPU's kernels, too") {
  for (const auto& check : kernel_checks::run_all(torch::kCPU)) {
    INFO(check.name);
    CHECK(check.error <= check.tolerance);
  }
}
