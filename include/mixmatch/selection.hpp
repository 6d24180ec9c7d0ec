#pragma once

#include <mixmatch/detail/describe.hpp>
#include <mixmatch/guess_labels.hpp>

namespace mixmatch {

/// Labels of the rows that a model is sure of, all without gradient, on the probabilities' device.
struct Selection {
  Tensor labels;      ///< int64 [N]: the arg-max of each row, selected or not
  Tensor confidence;  ///< [N]: its probability
  Tensor mask;        ///< [N], the probabilities' dtype: 1 where confidence >= threshold, else 0
};

/// Hard labels of the rows whose largest probability is at least `threshold`: Pseudo-Label, FixMatch (arXiv
/// 2001.07685, eq. 4).
///
/// `probabilities`: floating-point [N, L], any device. `threshold` in [0, 1]; 0 selects all rows. Nothing is
/// left out of a batch and nothing waits for a device: losses multiply by the mask, and take the mean over
/// all rows (see masked_cross_entropy()). A row that is NaN is not selected. Draws nothing; throws on other
/// arguments.
inline Selection select_confident(const Tensor& probabilities, double threshold) {
  TORCH_CHECK(
      probabilities.defined() && probabilities.dim() == 2 && at::isFloatingType(probabilities.scalar_type()),
      "select_confident: probabilities must be floating-point [N, L], got ",
      detail::type_and_sizes(probabilities));
  TORCH_CHECK(threshold >= 0 && threshold <= 1, "select_confident: threshold must be in [0, 1], got ",
              threshold);
  const torch::NoGradGuard no_grad;
  const auto [confidence, labels] = probabilities.max(1);
  return {labels, confidence, confidence.ge(threshold).to(probabilities.scalar_type())};
}

/// Share of the selected rows whose label is that of `hidden_labels`, int64 [N], -1 where unknown (those rows
/// are left out): a scalar, NaN where there is none. For watching alone.
inline Tensor selected_accuracy(const Selection& selection, const Tensor& hidden_labels) {
  const torch::NoGradGuard no_grad;
  const Tensor known = selection.mask * hidden_labels.ne(-1);
  return (known * selection.labels.eq(hidden_labels)).sum() / known.sum();
}

}  // namespace mixmatch
