#pragma once

#include <torch/arg.h>
#include <mixmatch/adversarial.hpp>
#include <mixmatch/methods/detail/consistency.hpp>

#include <cmath>

namespace mixmatch::methods {

struct VatOptions {
  /// L2 length of the perturbation of an image, > 0.
  TORCH_ARG(double, radius) = 6;
  /// Of the predictions' entropy in the loss, >= 0, from the first step on.
  TORCH_ARG(double, entropy_weight) = 0.06;
  /// How its direction is found.
  TORCH_ARG(VirtualAdversarialOptions, direction) = {};
};

/// Virtual adversarial training (arXiv 1704.03976) with entropy minimisation: the prediction is to stay where
/// it is under the perturbation that changes it most.
///
///     L = CE(x) + w(step) KL(p(u) || p(u + radius d)) + entropy_weight H(p(u))
///
/// Means over rows; d of virtual_adversarial_direction(); the first p(u) is a target without gradient. One
/// weak view. Only the labeled pass moves batch-norm statistics. Draws d. Reports the two terms, the weight,
/// and the predictions' confidence, entropy (the third term) and accuracy.
class Vat {
 public:
  /// `ramp`: weight of the unlabeled loss, .3, and its linear ramp, in MixMatch's comparison over 40 % of
  /// training.
  explicit Vat(const VatOptions& options = {},
               const RampedLossOptions& ramp = RampedLossOptions().lambda_u(0.3).rampup_steps(0))
      : options_(options), ramp_(ramp) {
    TORCH_CHECK(options.radius() > 0 && std::isfinite(options.radius()),
                "Vat: radius must be finite and > 0, got ", options.radius());
    TORCH_CHECK(options.entropy_weight() >= 0 && std::isfinite(options.entropy_weight()),
                "Vat: entropy_weight must be finite and >= 0, got ", options.entropy_weight());
    mixmatch::detail::check_virtual_adversarial("Vat", options.direction());
  }

  static constexpr int64_t weak_views() { return 1; }

  template <class Model>
  StepLoss operator()(Model& model, const Batch& batch, const Tensor& step,
                      const at::Generator& generator) const {
    const Tensor labeled = detail::labeled_loss(model, batch);
    const auto frozen = freeze_batch_norm(model);
    const Tensor& view = batch.weak.at(0);
    const Tensor logits = forward(model, view);
    const Tensor target = torch::softmax(mixmatch::detail::float_logits(logits.detach()), 1);
    const Tensor direction = virtual_adversarial_direction(model, view, options_.direction(), generator);
    const Tensor divergence = kl_divergence(forward(model, view + options_.radius() * direction), target);
    StepLoss loss = detail::guessed_loss(labeled, divergence, ramp_.weight(step), target, batch);
    loss.total = loss.total + options_.entropy_weight() * softmax_entropy(logits);
    return loss;
  }

 private:
  VatOptions options_;
  RampedLoss ramp_;
};

}  // namespace mixmatch::methods
