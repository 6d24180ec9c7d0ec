#pragma once

#include <ATen/Parallel.h>
#include <torch/cuda.h>
#include <torch/types.h>

#include <algorithm>
#include <string>
#include <thread>

namespace mixmatch::training {

/// "auto" (CUDA if there is one), "cpu" or "cuda"; throws on another name and on cuda where there is none.
inline torch::Device parse_device(const std::string& name) {
  TORCH_CHECK(name == "auto" || name == "cpu" || name == "cuda", "device: expected auto, cpu or cuda, got \"",
              name, "\"");
  const bool available = torch::cuda::is_available();
  TORCH_CHECK(name != "cuda" || available,
              "device: cuda was asked for, but this LibTorch finds no CUDA device");
  return {name == "cuda" || (name == "auto" && available) ? torch::kCUDA : torch::kCPU};
}

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
