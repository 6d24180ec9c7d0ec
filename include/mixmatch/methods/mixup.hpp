#pragma once

#include <mixmatch/guess_labels.hpp>
#include <mixmatch/methods/detail/consistency.hpp>
#include <mixmatch/mixup.hpp>
#include <mixmatch/one_hot.hpp>

#include <cmath>

namespace mixmatch::methods {

/// MixUp (arXiv 1710.09412) as the semi-supervised baseline of the MixMatch paper: labeled rows are mixed
/// among themselves, unlabeled ones too, with the model's own prediction as their label.
///
///     L = CE(mixed x, mixed labels) + weight CE(mixed u, mixed p),   p = softmax f(u)
///
/// Means over rows; the prediction is not sharpened and has no gradient, and the weight, 1, is not
/// ramped, as in the code released with that paper. One weak view. Only the pass of the mixed labeled rows
/// moves batch-norm statistics. Draws what mixup() does, first for the labeled rows. Reports the two terms,
/// the weight, and the predictions' confidence, entropy and accuracy.
class MixUp {
 public:
  /// `mixing`: a lambda per row, nearer to its own row, by default from Beta(.75, .75) as in MixMatch; that
  /// code's own default for this method is .5.
  explicit MixUp(const MixUpOptions& mixing = {}, double weight = 1) : mixing_(mixing), weight_(weight) {
    TORCH_CHECK(mixing.alpha() >= 0 && std::isfinite(mixing.alpha()),
                "MixUp: alpha must be finite and >= 0, got ", mixing.alpha());
    TORCH_CHECK(weight >= 0 && std::isfinite(weight), "MixUp: weight must be finite and >= 0, got ", weight);
  }

  static constexpr int64_t weak_views() { return 1; }

  template <class Model>
  StepLoss operator()(Model& model, const Batch& batch, const Tensor& step,
                      const at::Generator& generator) const {
    const Tensor guesses = guess_labels(model, {batch.weak.at(0)}, GuessLabelsOptions().temperature(1));
    const Tensor labels = mixmatch::one_hot(batch.labels, guesses.size(1), guesses.scalar_type());
    const auto mixed_x = mixup(batch.labeled, labels, mixing_, generator);
    const Tensor labeled =
        soft_cross_entropy(batch.for_labeled(forward(model, mixed_x.inputs)), mixed_x.targets);

    const auto frozen = freeze_batch_norm(model);
    const auto mixed_u = mixup(batch.weak.at(0), guesses, mixing_, generator);
    const Tensor unlabeled = soft_cross_entropy(forward(model, mixed_u.inputs), mixed_u.targets);
    const Tensor weight = at::full({}, weight_, step.options().dtype(at::kDouble));
    return detail::guessed_loss(labeled, unlabeled, weight, guesses, batch);
  }

 private:
  MixUpOptions mixing_;
  double weight_;
};

}  // namespace mixmatch::methods
