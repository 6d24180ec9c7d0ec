#pragma once

#include <torch/optim/optimizer.h>
#include <mixmatch/ema_model.hpp>

namespace mixmatch::training {

/// One update in the papers' order, after loss.backward(): the optimiser's step (Adam), decoupled decay of
/// kernels by `weight_decay` * `learning_rate`, then the moving average, the latter two in one pass over
/// memory. Clears the gradients.
template <class Model>
void optimizer_step(torch::optim::Optimizer& optimizer, EmaModel<Model>& ema, double learning_rate,
                    double weight_decay) {
  TORCH_CHECK(weight_decay >= 0, "optimizer_step: weight_decay must be >= 0, got ", weight_decay);
  optimizer.step();
  ema.decay_weights_and_update(weight_decay * learning_rate);
  optimizer.zero_grad();
}

}  // namespace mixmatch::training
