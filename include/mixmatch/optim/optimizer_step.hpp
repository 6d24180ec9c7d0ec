#pragma once

#include <torch/optim/optimizer.h>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/optim/fused_adam.hpp>

#include <vector>

namespace mixmatch::training {

/// Whether every gradient that the optimiser would use is finite, by one sum a tensor: an overflowing sum of
/// finite gradients counts as not finite. Waits for the device.
inline bool gradients_are_finite(const torch::optim::Optimizer& optimizer) {
  const torch::NoGradGuard no_grad;
  std::vector<Tensor> sums;
  for (const auto& group : optimizer.param_groups()) {
    for (const auto& parameter : group.params()) {
      if (parameter.grad().defined()) {
        sums.push_back(parameter.grad().sum(at::kFloat));
      }
    }
  }
  return sums.empty() || torch::stack(sums).isfinite().all().item<bool>();
}

/// One update in the papers' order, after loss.backward(): the optimiser's step (Adam), decoupled decay of
/// kernels by `weight_decay` * `learning_rate`, then the moving average, the latter two in one pass over
/// memory. Clears the gradients.
///
/// Returns false if a gradient is not finite; then the gradients are cleared and nothing else has changed, so
/// that weights, averages and the optimiser's moments are still worth saving.
template <class Model>
bool optimizer_step(torch::optim::Optimizer& optimizer, EmaModel<Model>& ema, double learning_rate,
                    double weight_decay) {
  TORCH_CHECK(weight_decay >= 0, "optimizer_step: weight_decay must be >= 0, got ", weight_decay);
  const bool finite = gradients_are_finite(optimizer);
  if (finite) {
    optimizer.step();
    ema.decay_weights_and_update(weight_decay * learning_rate);
  }
  optimizer.zero_grad();
  return finite;
}

/// The same with an optimiser that takes decay and average along in its own pass, at its learning rate.
template <class Model>
bool optimizer_step(FusedAdam& optimizer, EmaModel<Model>& ema, double weight_decay) {
  const bool finite = optimizer.gradients_are_finite();
  if (finite) {
    optimizer.step(ema, weight_decay);
  }
  optimizer.zero_grad();
  return finite;
}

}  // namespace mixmatch::training
