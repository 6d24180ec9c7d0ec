#pragma once

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <torch/version.h>

#include <fstream>
#include <string>

/// What a measurement was made on: processor, threads, LibTorch.
inline std::string machine_line() {
  std::string processor = "unknown processor";
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("model name", 0) == 0) {
      processor = line.substr(line.find(": ") + 2);
      break;
    }
  }
  return fmt::format("{}, {} threads, LibTorch {}", processor, at::get_num_threads(), TORCH_VERSION);
}
