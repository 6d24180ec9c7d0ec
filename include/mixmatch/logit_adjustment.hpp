#pragma once

#include <torch/types.h>
#include <mixmatch/detail/describe.hpp>

#include <cmath>

namespace mixmatch {

using torch::Tensor;

namespace detail {

/// Throws unless `prior` is floating-point [L], finite, >= 0 and not all 0. Waits for its device.
inline void check_prior(const char* function, const Tensor& prior) {
  TORCH_CHECK(
      prior.defined() && prior.dim() == 1 && prior.size(0) >= 1 && at::isFloatingType(prior.scalar_type()),
      function, ": prior must be floating-point [L], got ", type_and_sizes(prior));
  TORCH_CHECK(
      prior.isfinite().all().item<bool>() && prior.ge(0).all().item<bool>() && prior.sum().item<double>() > 0,
      function, ": prior must hold finite shares >= 0 that are not all 0");
}

}  // namespace detail

/// log(prior^tau + 1e-12): what logit adjustment (Menon et al., arXiv 2007.07314, eq. 10) adds to the logits
/// in the loss of training, and not where the model predicts:
///
///     L = CE(softmax(f(x) + tau log prior), y)
///
/// So a class that is rare among the labeled images has to be told apart by f itself, and not by how often it
/// comes: the error that falls is the balanced one, the mean over classes. `prior`: the classes' shares or
/// numbers in training, floating-point [L], finite, >= 0, not all 0; it is normalised. `tau` finite and >= 0;
/// 1 is the paper's, 0 adjusts nothing. Float32 [L] on the prior's device, without gradient. Draws nothing;
/// throws on other arguments. Not to be confused with DistributionAlignment, which moves guessed labels.
inline Tensor logit_adjustment(const Tensor& prior, double tau = 1) {
  detail::check_prior("logit_adjustment", prior);
  TORCH_CHECK(tau >= 0 && std::isfinite(tau), "logit_adjustment: tau must be finite and >= 0, got ", tau);
  const torch::NoGradGuard no_grad;
  const Tensor shares = prior.to(at::kDouble);
  return (shares / shares.sum()).pow(tau).add(1e-12).log().to(at::kFloat);
}

}  // namespace mixmatch
