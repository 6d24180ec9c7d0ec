// Adam or SGD, decay of kernels and moving average of all parameters: one pass over memory, against
// LibTorch's optimiser followed by the other two, in one pass of ours or as loops over ATen's calls.

#include <fmt/format.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>
#include <torch/torch.h>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/optim/optimizer.hpp>

#include <string>
#include <vector>

#include "catch.hpp"

using torch::Tensor;

namespace {

mixmatch::models::WideResNet network_to_update(int64_t widen) {
  return mixmatch::models::WideResNet(mixmatch::models::WideResNetOptions(10).depth(28).widen_factor(widen));
}

std::vector<Tensor> gradients_of(mixmatch::models::WideResNet& model) {
  std::vector<Tensor> gradients;
  for (const auto& parameter : model->parameters()) {
    gradients.push_back(torch::randn_like(parameter));
  }
  return gradients;
}

/// A step lets go of the gradients: each hands them over anew, as backward() does.
void hand_over(mixmatch::models::WideResNet& model, const std::vector<Tensor>& gradients) {
  const auto parameters = model->parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    parameters[i].mutable_grad() = gradients[i];
  }
}

template <class Reference, class ReferenceOptions>
void compare_updates(const std::string& name, int64_t widen, const mixmatch::training::UpdateRule& rule,
                     const ReferenceOptions& reference_options) {
  auto model = network_to_update(widen);
  mixmatch::EmaModel ema(model);
  mixmatch::training::Optimizer optimizer(
      model, ema, mixmatch::training::OptimizerOptions(2e-3).rule(rule).weight_decay(0.02));
  const auto gradients = gradients_of(model);

  auto plain = network_to_update(widen);
  Reference reference(plain->parameters(), reference_options);
  mixmatch::EmaModel plain_ema(plain);
  const auto plain_gradients = gradients_of(plain);
  std::vector<Tensor> live = plain->parameters(), average;
  for (const auto& parameter : live) {
    average.push_back(parameter.detach().clone());
  }

  const auto prefix = fmt::format("WRN-28-{} | ", widen);
  BENCHMARK(prefix + "Optimizer") {
    hand_over(model, gradients);
    return optimizer.step();
  };
  BENCHMARK(prefix + name + ", then EmaModel") {
    hand_over(plain, plain_gradients);
    reference.step();
    plain_ema.decay_weights_and_update(4e-5);
  };
  BENCHMARK(prefix + name + ", then ATen loop") {
    hand_over(plain, plain_gradients);
    reference.step();
    const torch::NoGradGuard no_grad;
    for (size_t i = 0; i < live.size(); ++i) {
      if (live[i].dim() > 1) {
        live[i].mul_(1 - 4e-5);
      }
      average[i].mul_(0.999).add_(live[i], 0.001);
    }
  };
}

}  // namespace

TEST_CASE("Adam, weight decay and EMA") {
  for (const int64_t widen : {1, 2, 8}) {
    compare_updates<torch::optim::Adam>("Adam", widen, mixmatch::training::AdamRule{},
                                        torch::optim::AdamOptions(2e-3));
  }
}

TEST_CASE("SGD, weight decay and EMA") {
  for (const int64_t widen : {1, 2, 8}) {
    compare_updates<torch::optim::SGD>("SGD", widen, mixmatch::training::SgdRule{},
                                       torch::optim::SGDOptions(2e-3).momentum(0.9).nesterov(true));
  }
}
