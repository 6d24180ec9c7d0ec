#pragma once

#include <mixmatch/guess_labels.hpp>
#include <mixmatch/methods/detail/consistency.hpp>

namespace mixmatch::methods {

/// Pi-Model (arXiv 1610.02242): two views of an unlabeled image are to have the same prediction.
///
///     L = CE(x) + w(step) mean over rows and classes of (softmax f(u_1) - softmax f(u_2))^2
///
/// The second view is the target and has no gradient. Only the labeled pass moves batch-norm statistics.
/// Draws nothing. Reports the two terms, the weight, and the targets' confidence, entropy and accuracy.
class PiModel {
 public:
  /// `ramp`: weight of the unlabeled loss, 20, and its linear ramp, in the papers over 40 % of training.
  explicit PiModel(const RampedLossOptions& ramp = RampedLossOptions().lambda_u(20).rampup_steps(0))
      : ramp_(ramp) {}

  static constexpr int64_t weak_views() { return 2; }

  template <class Model>
  StepLoss operator()(Model& model, const Batch& batch, const Tensor& step, const at::Generator&) const {
    return detail::consistency_loss(model, batch, step, ramp_, [&model](const Tensor& view) {
      return guess_labels(model, {view}, GuessLabelsOptions().temperature(1));
    });
  }

 private:
  RampedLoss ramp_;
};

}  // namespace mixmatch::methods
