#pragma once

#include <mixmatch/methods/detail/consistency.hpp>
#include <mixmatch/mixup.hpp>

#include <cmath>

namespace mixmatch::methods {

/// Interpolation Consistency Training (arXiv 1903.03825): between two unlabeled images, the prediction is to
/// lie between the averaged weights' predictions of them.
///
///     L = CE(x) + w(step) mean over rows and classes of (softmax f(mixed u) - mixed softmax f_average(u))^2
///
/// One weak view. The teacher runs as in MeanTeacher, without gradient, and the model must have
/// `teacher(input)`. Only the labeled pass moves batch-norm statistics, and labeled rows are not mixed, as in
/// the code released with MixMatch (the authors' mixes them too). Draws what mixup() does. Reports the two
/// terms, the weight, and the teacher's confidence, entropy and accuracy.
class Ict {
 public:
  /// `mixing`: Beta(1, 1), as the authors' code trains CIFAR-10, of a lambda per row; theirs is one a batch.
  /// `ramp`: weight of the unlabeled loss, 100, and its linear ramp, in MixMatch's comparison over 40 % of
  /// training (there 50, with Beta(.5, .5)).
  explicit Ict(const MixUpOptions& mixing = MixUpOptions().alpha(1).keep_dominant(false),
               const RampedLossOptions& ramp = RampedLossOptions().lambda_u(100).rampup_steps(0))
      : mixing_(mixing), ramp_(ramp) {
    TORCH_CHECK(mixing.alpha() >= 0 && std::isfinite(mixing.alpha()),
                "Ict: alpha must be finite and >= 0, got ", mixing.alpha());
  }

  static constexpr int64_t weak_views() { return 1; }

  template <class Model>
  StepLoss operator()(Model& model, const Batch& batch, const Tensor& step,
                      const at::Generator& generator) const {
    const Tensor labeled = detail::labeled_loss(model, batch);
    const auto frozen = freeze_batch_norm(model);
    const Tensor& view = batch.weak.at(0);
    const Tensor targets = torch::softmax(mixmatch::detail::float_logits(model.teacher(view)), 1);
    const auto mixed = mixup(view, targets, mixing_, generator);
    const Tensor unlabeled = softmax_mse(forward(model, mixed.inputs), mixed.targets);
    return detail::guessed_loss(labeled, unlabeled, ramp_.weight(step), targets, batch);
  }

 private:
  MixUpOptions mixing_;
  RampedLoss ramp_;
};

}  // namespace mixmatch::methods
