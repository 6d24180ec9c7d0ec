#pragma once

#include <mixmatch/losses.hpp>
#include <mixmatch/methods/detail/selection.hpp>
#include <mixmatch/methods/supervised.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/ramped_loss.hpp>
#include <mixmatch/selection.hpp>
#include <mixmatch/step/batch.hpp>
#include <mixmatch/step/step_loss.hpp>

namespace mixmatch::methods {

/// Pseudo-Label (D.-H. Lee, 2013): the model's own arg-max on an unlabeled image is its label where the model
/// is sure.
///
///     L = CE(x) + w(step) 1/U sum_u [max p(u) >= threshold] CE(u, arg max p(u))
///
/// One weak view. Only the labeled pass moves batch-norm statistics. Draws nothing. Reports the two terms,
/// the weight, the share of rows that are selected, and how many of those are right.
class PseudoLabel {
 public:
  /// `threshold` in [0, 1]; `ramp`: weight of the unlabeled loss, 1, and its linear ramp, in the papers over
  /// 40 % of training.
  explicit PseudoLabel(double threshold = 0.95,
                       const RampedLossOptions& ramp = RampedLossOptions().lambda_u(1).rampup_steps(0))
      : threshold_(threshold), ramp_(ramp) {
    TORCH_CHECK(threshold >= 0 && threshold <= 1, "PseudoLabel: threshold must be in [0, 1], got ",
                threshold);
  }

  static constexpr int64_t weak_views() { return 1; }

  template <class Model>
  StepLoss operator()(Model& model, const Batch& batch, const Tensor& step, const at::Generator&) const {
    const Tensor labeled = detail::labeled_loss(model, batch);
    const auto frozen = freeze_batch_norm(model);
    const Tensor logits_u = forward(model, batch.weak.at(0));
    const auto selected =
        select_confident(torch::softmax(mixmatch::detail::float_logits(logits_u.detach()), 1), threshold_);
    const Tensor unlabeled = masked_cross_entropy(logits_u, selected.labels, selected.mask);
    const Tensor weight = ramp_.weight(step);
    return detail::with_selection(
        {labeled + weight.to(unlabeled.scalar_type()) * unlabeled,
         {{"loss_labeled", labeled}, {"loss_unlabeled", unlabeled}, {"lambda_u", weight}}},
        selected, logits_u.size(1), batch);
  }

 private:
  double threshold_;
  RampedLoss ramp_;
};

}  // namespace mixmatch::methods
