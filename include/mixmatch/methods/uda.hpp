#pragma once

#include <torch/arg.h>
#include <mixmatch/annealing.hpp>
#include <mixmatch/guess_filter.hpp>
#include <mixmatch/losses.hpp>
#include <mixmatch/methods/detail/joint_pass.hpp>
#include <mixmatch/methods/detail/selection.hpp>
#include <mixmatch/selection.hpp>
#include <mixmatch/sharpen.hpp>
#include <mixmatch/step/step_loss.hpp>

#include <cmath>
#include <utility>
#include <vector>

namespace mixmatch::methods {

struct UdaOptions {
  /// Of the target, >= 0; 1 leaves the prediction as it is.
  TORCH_ARG(double, temperature) = 0.4;
  /// The prediction's largest probability, before sharpening, must exceed it; in [0, 1].
  TORCH_ARG(double, threshold) = 0.8;
  /// Weight of the unlabeled loss, >= 0; not ramped.
  TORCH_ARG(double, weight) = 1;
  /// Of the labeled loss. The authors' runs: linear, and log for 250 labels of CIFAR-10.
  TORCH_ARG(Annealing, annealing) = Annealing::linear;
  /// Length of training, > 0, over which it anneals.
  TORCH_ARG(int64_t, total_steps) = int64_t{1} << 20;
};

/// Unsupervised Data Augmentation (arXiv 1904.12848): the sharpened prediction of a weakly augmented image,
/// where the model is sure of it, is the target of the same image strongly augmented; labeled images that are
/// learnt already are left out.
///
///     L = annealed CE(x) + weight 1/U sum_u [max p > threshold] KL(sharpen(p, T) || softmax f(strong u)),
///     p = softmax f(weak u)
///
/// One weak and one strong view; annealed_cross_entropy() at annealing_threshold(). All rows go through the
/// model in one pass, which moves batch-norm statistics, as in the authors' code; no gradient passes through
/// the weak view. Draws nothing. With a filter p is aligned, and rows that it leaves out are not selected.
/// Reports the two terms, the annealing's threshold and the share of labeled rows that it keeps, the share of
/// unlabeled rows that are selected, and how many of those are right.
class Uda {
 public:
  explicit Uda(const UdaOptions& options = {}, GuessFilter filter = GuessFilter())
      : options_(options), filter_(std::move(filter)) {
    TORCH_CHECK(options.temperature() >= 0, "Uda: temperature must be >= 0, got ", options.temperature());
    TORCH_CHECK(options.threshold() >= 0 && options.threshold() <= 1,
                "Uda: threshold must be in [0, 1], got ", options.threshold());
    TORCH_CHECK(options.weight() >= 0 && std::isfinite(options.weight()),
                "Uda: weight must be finite and >= 0, got ", options.weight());
    TORCH_CHECK(options.total_steps() > 0, "Uda: total_steps must be > 0, got ", options.total_steps());
  }

  static constexpr int64_t weak_views() { return 1; }
  static constexpr int64_t strong_views() { return 1; }

  template <class Model>
  StepLoss operator()(Model& model, const Batch& batch, const Tensor& step,
                      const at::Generator& /*generator*/) {
    const auto logits = detail::joint_pass(model, batch);
    const Tensor limit =
        annealing_threshold(step, options_.total_steps(), logits.labeled.size(1), options_.annealing());
    const auto labeled = annealed_cross_entropy(batch.for_labeled(logits.labeled), batch.labels, limit);

    const auto guess = filter_({logits.weak});
    auto selected = select_confident(guess.probabilities, options_.threshold());
    selected.mask = guess.kept(selected.confidence.gt(options_.threshold()).to(selected.mask.scalar_type()));
    const Tensor unlabeled = masked_kl_divergence(
        logits.strong, sharpen(guess.probabilities, options_.temperature()), selected.mask);
    return guess.reported(detail::with_selection({labeled.loss + options_.weight() * unlabeled,
                                                  {{"loss_labeled", labeled.loss},
                                                   {"loss_unlabeled", unlabeled},
                                                   {"annealing_threshold", limit},
                                                   {"annealing_rate", labeled.kept}}},
                                                 selected, logits.weak.size(1), batch));
  }

  /// The filter's.
  std::vector<Tensor> state() const { return filter_.state(); }
  void save(torch::serialize::OutputArchive& archive) const { filter_.save(archive); }
  void load(torch::serialize::InputArchive& archive) { filter_.load(archive); }
  void to(torch::Device device) { filter_.to(device); }

 private:
  UdaOptions options_;
  GuessFilter filter_;
};

}  // namespace mixmatch::methods
