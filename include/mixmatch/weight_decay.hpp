#pragma once

#include <mixmatch/model.hpp>

#include <string_view>
#include <vector>

namespace mixmatch {

namespace detail {

/// Convolution and dense kernels: parameters of two or more dimensions. Biases and norm scales have one.
inline bool is_kernel(const Tensor& parameter) { return parameter.dim() >= 2; }

}  // namespace detail

/// Decoupled weight decay w <- w (1 - rate) on convolution and dense kernels only: no bias, no batch-norm
/// scale or shift.
///
/// `rate` is the product of weight decay and learning rate (the paper's .02 * .002 = 4e-5), in [0, 1]; call
/// it after the optimiser's step. In place, without gradient, any dtype and device. Not to be confused with
/// AdamOptions:: weight_decay, which adds an L2 term to the gradient of every parameter, biases included.
template <class Model>
void decay_weights(Model& model, double rate) {
  static_assert(ModuleModel<Model>,
                "mixmatch: decay_weights needs a module with parameters, not a plain callable");
  TORCH_CHECK(rate >= 0 && rate <= 1, "decay_weights: rate must be in [0, 1], got ", rate);
  if (rate == 0) {
    return;
  }
  torch::NoGradGuard no_grad;
  std::vector<Tensor> kernels;
  for (const auto& item : detail::model_parameters(model)) {
    if (detail::is_kernel(item.tensor)) {
      kernels.push_back(item.tensor);
    }
  }
  if (!kernels.empty()) {
    at::_foreach_mul_(kernels, 1.0 - rate);
  }
}

}  // namespace mixmatch
