#pragma once

#include <mixmatch/model.hpp>

#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/normalization.h>

#include <algorithm>
#include <vector>

namespace mixmatch {

namespace detail {

/// Convolution and dense kernels: parameters of two or more dimensions, but for those of torch::nn's
/// embeddings and layer norms. A TorchScript module does not say what its parameters are for; there the
/// number of dimensions decides alone.
template <class Model>
std::vector<Tensor> model_kernels(Model& model) {
  std::vector<Tensor> others;
  if constexpr (!is_script_module<std::remove_const_t<Model>>) {
    nn_module(model).apply([&](torch::nn::Module& module) {
      if (module.as<torch::nn::Embedding>() != nullptr || module.as<torch::nn::EmbeddingBag>() != nullptr ||
          module.as<torch::nn::LayerNorm>() != nullptr) {
        for (const auto& parameter : module.parameters(/*recurse=*/false)) {
          others.push_back(parameter);
        }
      }
    });
  }
  std::vector<Tensor> kernels;
  for (auto& item : model_parameters(model)) {
    const auto same = [&](const Tensor& other) { return other.is_same(item.tensor); };
    if (item.tensor.dim() >= 2 && std::none_of(others.begin(), others.end(), same)) {
      kernels.push_back(std::move(item.tensor));
    }
  }
  return kernels;
}

}  // namespace detail

/// Decoupled weight decay w <- w (1 - rate) on trainable convolution and dense kernels only: no bias, no
/// batch-norm scale or shift, no embedding, nothing frozen (`requires_grad` false).
///
/// `rate` is the product of weight decay and learning rate (the paper's .02 * .002 = 4e-5), in [0, 1]; call
/// it after the optimiser's step. In place, without gradient, any dtype and device. Not to be confused with
/// AdamOptions::weight_decay, which adds an L2 term to the gradient of every parameter, biases included.
template <class Model>
void decay_weights(Model& model, double rate) {
  static_assert(ModuleModel<Model>,
                "mixmatch: decay_weights needs a module with parameters, not a plain callable");
  TORCH_CHECK(rate >= 0 && rate <= 1, "decay_weights: rate must be in [0, 1], got ", rate);
  if (rate == 0) {
    return;
  }
  torch::NoGradGuard no_grad;
  std::vector<Tensor> kernels = detail::model_kernels(model);
  std::erase_if(kernels, [](const Tensor& kernel) { return !kernel.requires_grad(); });
  if (!kernels.empty()) {
    at::_foreach_mul_(kernels, 1.0 - rate);
  }
}

}  // namespace mixmatch
