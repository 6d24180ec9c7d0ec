// Decay of kernels and moving average of WRN-28-2's parameters in one pass, against ATen's fused lists.

#include <fmt/format.h>
#include <torch/torch.h>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/models/wide_resnet.hpp>

#include <vector>

#include "catch.hpp"

using torch::Tensor;

TEST_CASE("EMA and weight decay") {
  const torch::NoGradGuard no_grad;
  for (const int64_t widen : {1, 2, 8}) {
    mixmatch::models::WideResNet model(mixmatch::models::WideResNetOptions(10).depth(28).widen_factor(widen));
    mixmatch::EmaModel ema(model);
    std::vector<Tensor> live, average, kernels;
    int64_t count = 0;
    for (const auto& parameter : model->parameters()) {
      live.push_back(parameter);
      average.push_back(parameter.clone());
      count += parameter.numel();
      if (parameter.dim() > 1) {
        kernels.push_back(parameter);
      }
    }
    const auto name =
        fmt::format("WRN-28-{}, {:.1f}M parameters | ", widen, static_cast<double>(count) / 1e6);
    BENCHMARK(name + "EmaModel") { ema.decay_weights_and_update(4e-5); };
    BENCHMARK(name + "ATen foreach") {
      at::_foreach_mul_(kernels, 1 - 4e-5);
      at::_foreach_mul_(average, 0.999);
      at::_foreach_add_(average, live, 0.001);
    };
    BENCHMARK(name + "ATen loop") {
      for (auto& kernel : kernels) {
        kernel.mul_(1 - 4e-5);
      }
      for (size_t i = 0; i < live.size(); ++i) {
        average[i].mul_(0.999).add_(live[i], 0.001);
      }
    };
  }
}
