#include "checks.hpp"

#include <fmt/format.h>
#include <mixmatch/detail/cuda/cuda_kernel.hpp>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>

#include "kernel_checks.hpp"
#include "step_checks.hpp"

bool run_checks(torch::Device device, bool brief) {
  const bool kernels = mixmatch::detail::cuda_kernels_available(device);
  if (device.is_cuda() && !kernels) {
    fmt::print("no kernels on this machine: see the warning above\n");
    return false;
  }
  struct Worst {
    double error = 0, tolerance = 0;
    bool passed = true;
  };
  std::map<std::string, Worst> worst;
  auto checks = kernel_checks::run_all(device, brief);
  const auto of_steps = step_checks::run_all(device, brief);
  checks.insert(checks.end(), of_steps.begin(), of_steps.end());
  for (const auto& one : checks) {
    auto& entry = worst[one.name];
    entry = {std::max(entry.error, one.error), one.tolerance, entry.passed && one.passed()};
  }
  int64_t failed = 0;
  for (const auto& [name, entry] : worst) {
    failed += entry.passed ? 0 : 1;
    fmt::print("{:60} error {:.2e}, at most {:.0e}{}\n", name, entry.error, entry.tolerance,
               entry.passed ? "" : "   FAILED");
  }
  fmt::print("{} checks of {} on {}: {} failed\n", worst.size(), kernels ? "kernels" : "ATen composites",
             device.str(), failed);
  return failed == 0;
}
