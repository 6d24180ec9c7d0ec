// Batch norm + leaky ReLU in training mode, channels-last, forward and backward, at the sizes of WRN-28-2:
// fused against ATen's two operations.

#include <fmt/format.h>
#include <torch/torch.h>
#include <mixmatch/nn/batch_norm_leaky_relu.hpp>

#include "catch.hpp"

using torch::Tensor;

TEST_CASE("batch norm + leaky ReLU, forward and backward") {
  struct Size {
    int64_t channels, side;
  };
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const auto [channels, side] : {Size{32, 32}, Size{64, 16}, Size{128, 8}}) {
      const Tensor x = torch::randn({64, channels, side, side})
                           .to(type)
                           .contiguous(at::MemoryFormat::ChannelsLast)
                           .requires_grad_();
      const Tensor gradient = torch::randn_like(x);
      mixmatch::models::BatchNormLeakyReLU fused(torch::nn::BatchNormOptions(channels), /*leaky_slope=*/0.1);
      torch::nn::BatchNorm2d norm{torch::nn::BatchNorm2dOptions(channels)};
      const auto name =
          fmt::format("{}, 64x{}x{}x{} | ", type == at::kFloat ? "fp32" : "bf16", channels, side, side);
      BENCHMARK(name + "BatchNormLeakyReLU") {
        return torch::autograd::grad({fused->forward(x)}, {x, fused->weight, fused->bias}, {gradient});
      };
      BENCHMARK(name + "ATen calls") {
        return torch::autograd::grad({torch::leaky_relu(norm->forward(x), 0.1)},
                                     {x, norm->weight, norm->bias}, {gradient});
      };
    }
  }
}
