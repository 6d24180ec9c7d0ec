// Adam, decay of kernels and moving average of all parameters: one pass over memory, against LibTorch's Adam
// followed by the other two, in one pass of ours or as loops over ATen's calls.

#include <fmt/format.h>
#include <torch/optim/adam.h>
#include <torch/torch.h>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/optim/fused_adam.hpp>

#include <memory>
#include <vector>

#include "catch.hpp"

using torch::Tensor;

namespace {

mixmatch::models::WideResNet model_with_gradients(int64_t widen) {
  mixmatch::models::WideResNet model(mixmatch::models::WideResNetOptions(10).depth(28).widen_factor(widen));
  for (auto& parameter : model->parameters()) {
    parameter.mutable_grad() = torch::randn_like(parameter);
  }
  return model;
}

}  // namespace

TEST_CASE("Adam, weight decay and EMA") {
  for (const int64_t widen : {1, 2, 8}) {
    auto fused_model = model_with_gradients(widen);
    mixmatch::training::FusedAdam fused(fused_model);
    mixmatch::EmaModel fused_ema(fused_model);

    auto model = model_with_gradients(widen);
    torch::optim::Adam adam(model->parameters(), torch::optim::AdamOptions(2e-3));
    mixmatch::EmaModel ema(model);
    std::vector<Tensor> live = model->parameters(), average;
    for (const auto& parameter : live) {
      average.push_back(parameter.detach().clone());
    }

    const auto name = fmt::format("WRN-28-{} | ", widen);
    BENCHMARK(name + "FusedAdam") { fused.step(fused_ema, 0.02); };
    BENCHMARK(name + "Adam, then EmaModel") {
      adam.step();
      ema.decay_weights_and_update(4e-5);
    };
    BENCHMARK(name + "Adam, then ATen loop") {
      adam.step();
      const torch::NoGradGuard no_grad;
      for (size_t i = 0; i < live.size(); ++i) {
        if (live[i].dim() > 1) {
          live[i].mul_(1 - 4e-5);
        }
        average[i].mul_(0.999).add_(live[i], 0.001);
      }
    };
  }
}
