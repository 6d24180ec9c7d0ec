#pragma once

#include <torch/cuda.h>
#include <torch/types.h>

#include <string>

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

}  // namespace mixmatch::training
