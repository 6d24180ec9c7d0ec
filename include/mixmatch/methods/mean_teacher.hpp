#pragma once

#include <mixmatch/methods/detail/consistency.hpp>

namespace mixmatch::methods {

/// Mean Teacher (arXiv 1703.01780): the averaged weights' prediction of one view is the target of the other.
///
///     L = CE(x) + w(step) mean over rows and classes of (softmax f(u_1) - softmax f_average(u_2))^2
///
/// The teacher runs in the model's mode, in training by batch statistics, without gradient: the model must
/// have `teacher(input)`, as training::Learner does. Only the labeled pass moves batch-norm statistics. Draws
/// nothing. Reports the two terms, the weight, and the targets' confidence, entropy and accuracy.
class MeanTeacher {
 public:
  /// `ramp`: weight of the unlabeled loss, 50, and its linear ramp, in the papers over 40 % of training.
  explicit MeanTeacher(const RampedLossOptions& ramp = RampedLossOptions().lambda_u(50).rampup_steps(0))
      : ramp_(ramp) {}

  static constexpr int64_t weak_views() { return 2; }

  template <class Model>
  StepLoss operator()(Model& model, const Batch& batch, const Tensor& step, const at::Generator&) const {
    return detail::consistency_loss(model, batch, step, ramp_, [&model](const Tensor& view) {
      return torch::softmax(mixmatch::detail::float_logits(model.teacher(view)), 1);
    });
  }

 private:
  RampedLoss ramp_;
};

}  // namespace mixmatch::methods
