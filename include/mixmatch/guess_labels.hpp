#pragma once

#include <torch/arg.h>
#include <mixmatch/detail/cpu/guess_kernel.hpp>
#include <mixmatch/detail/cuda/cuda_sharpen.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/nn/forward_each.hpp>
#include <mixmatch/sharpen.hpp>

#include <vector>

namespace mixmatch {

struct GuessLabelsOptions {
  /// Sharpening temperature T >= 0; 1 leaves the average as it is.
  TORCH_ARG(double, temperature) = 0.5;
  /// Lets the guess passes move the batch-norm running statistics.
  TORCH_ARG(bool, update_batch_norm) = false;
};

namespace detail {

inline Tensor float_logits(const Tensor& logits) {
  const auto type = logits.scalar_type();
  return type == at::kHalf || type == at::kBFloat16 ? logits.to(at::kFloat) : logits;
}

inline void check_logits(const char* function, const Tensor& logits) {
  TORCH_CHECK(logits.defined() && logits.dim() == 2 && at::isFloatingType(logits.scalar_type()), function,
              ": logits must be a floating-point [N, L] tensor, got ", type_and_sizes(logits));
}

/// The formula in plain ATen calls, on any device.
inline Tensor guess_composite(const std::vector<Tensor>& logits, double temperature) {
  Tensor mean;
  for (const Tensor& view : logits) {
    Tensor probabilities = torch::softmax(float_logits(view), -1);
    mean = mean.defined() ? mean.add_(probabilities) : probabilities;
  }
  if (logits.size() > 1) {
    mean.div_(static_cast<double>(logits.size()));
  }
  return sharpen_(mean, temperature, -1);
}

/// The logits of the passes that guess labels, in a scope without gradient.
template <class Model>
std::vector<Tensor> guess_logits(const char* function, Model& model, const std::vector<Tensor>& views,
                                 const GuessLabelsOptions& options) {
  TORCH_CHECK(!views.empty(), function, ": views must hold at least one augmented batch, got none");
  std::vector<Tensor> logits;
  if (options.update_batch_norm()) {
    for (const Tensor& view : views) {
      logits.push_back(forward(model, view));
    }
  } else {
    const auto frozen = freeze_batch_norm(model);
    logits = forward_each(model, views);
  }
  forget_autocast_copies();
  return logits;
}

}  // namespace detail

/// sharpen(mean over k of softmax(logits[k]), temperature), without gradient: Algorithm 1, lines 7-8, from
/// the logits of the K views, each [N, L] of any floating dtype. The result is [N, L], float32 for
/// half-precision logits.
inline Tensor guess_labels_from_logits(const std::vector<Tensor>& logits, double temperature = 0.5) {
  TORCH_CHECK(!logits.empty(), "guess_labels_from_logits: logits must hold at least one view, got none");
  for (const Tensor& view : logits) {
    detail::check_logits("guess_labels_from_logits", view);
    TORCH_CHECK(view.sizes() == logits.front().sizes(),
                "guess_labels_from_logits: all views must have shape ", logits.front().sizes(), ", got ",
                view.sizes());
  }
  torch::NoGradGuard no_grad;
  detail::check_sharpen("guess_labels_from_logits", logits.front(), temperature, -1);
  const auto type = logits.front().scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  Tensor guess = torch::empty(logits.front().sizes(), logits.front().options().dtype(type));
  if (detail::guess_fused(guess, logits, temperature) ||
      detail::sharpen_views_on_cuda(guess, logits, temperature)) {
    return guess;
  }
  return detail::guess_composite(logits, temperature);
}

/// Guessed labels q = Sharpen(1/K sum_k p_model(y | view_k), T) for one unlabeled batch (Algorithm 1, lines
/// 7-8).
///
/// `views`: K >= 1 tensors that the model takes, one augmentation of the same N rows each; the model returns
/// [N, L] logits. The model runs in the mode it is in (the papers: training mode, so batch statistics), its
/// mode is not changed, no gradient is recorded, and batch-norm running statistics stay put unless
/// `update_batch_norm` is set. The one result serves all K views. Draws nothing itself.
template <class Model>
Tensor guess_labels(Model& model, const std::vector<Tensor>& views, const GuessLabelsOptions& options = {}) {
  torch::NoGradGuard no_grad;
  return guess_labels_from_logits(detail::guess_logits("guess_labels", model, views, options),
                                  options.temperature());
}

}  // namespace mixmatch
