#pragma once

#include <torch/arg.h>
#include <mixmatch/guess_filter.hpp>
#include <mixmatch/losses.hpp>
#include <mixmatch/methods/detail/joint_pass.hpp>
#include <mixmatch/methods/detail/selection.hpp>
#include <mixmatch/one_hot.hpp>
#include <mixmatch/selection.hpp>
#include <mixmatch/step/step_loss.hpp>

#include <cmath>
#include <utility>
#include <vector>

namespace mixmatch::methods {

struct FixMatchOptions {
  /// Least probability of the arg-max for a row to be learnt, in [0, 1].
  TORCH_ARG(double, threshold) = 0.95;
  /// Weight of the unlabeled loss, >= 0; not ramped, as the threshold does what a ramp would.
  TORCH_ARG(double, weight) = 1;
};

/// FixMatch (arXiv 2001.07685): the arg-max on a weakly augmented image, where the model is sure of it, is
/// the label of the same image strongly augmented.
///
///     L = CE(x) + weight 1/U sum_u [max p(weak u) >= threshold] CE(strong u, arg max p(weak u))
///
/// One weak and one strong view. All rows go through the model in one pass, which moves batch-norm
/// statistics, as in the authors' code; no gradient passes through the weak view. Draws nothing. With
/// a filter p is aligned, and rows that it leaves out are not selected. Reports the two terms, the share of
/// rows that are selected, and how many of those are right.
class FixMatch {
 public:
  explicit FixMatch(const FixMatchOptions& options = {}, GuessFilter filter = GuessFilter())
      : options_(options), filter_(std::move(filter)) {
    TORCH_CHECK(options.threshold() >= 0 && options.threshold() <= 1,
                "FixMatch: threshold must be in [0, 1], got ", options.threshold());
    TORCH_CHECK(options.weight() >= 0 && std::isfinite(options.weight()),
                "FixMatch: weight must be finite and >= 0, got ", options.weight());
  }

  static constexpr int64_t weak_views() { return 1; }
  static constexpr int64_t strong_views() { return 1; }

  template <class Model>
  StepLoss operator()(Model& model, const Batch& batch, const Tensor& /*step*/,
                      const at::Generator& /*generator*/) {
    const auto logits = detail::joint_pass(model, batch);
    const Tensor labeled = soft_cross_entropy(batch.for_labeled(logits.labeled),
                                              mixmatch::one_hot(batch.labels, logits.labeled.size(1)));
    const auto guess = filter_({logits.weak});
    auto selected = select_confident(guess.probabilities, options_.threshold());
    selected.mask = guess.kept(selected.mask);
    const Tensor unlabeled = masked_cross_entropy(logits.strong, selected.labels, selected.mask);
    return guess.reported(detail::with_selection(
        {labeled + options_.weight() * unlabeled, {{"loss_labeled", labeled}, {"loss_unlabeled", unlabeled}}},
        selected, logits.weak.size(1), batch));
  }

  /// The filter's.
  std::vector<Tensor> state() const { return filter_.state(); }
  void save(torch::serialize::OutputArchive& archive) const { filter_.save(archive); }
  void load(torch::serialize::InputArchive& archive) { filter_.load(archive); }
  void to(torch::Device device) { filter_.to(device); }

 private:
  FixMatchOptions options_;
  GuessFilter filter_;
};

}  // namespace mixmatch::methods
