#pragma once

#include <mixmatch/guess_labels.hpp>
#include <mixmatch/losses.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/one_hot.hpp>
#include <mixmatch/schedules.hpp>
#include <mixmatch/step/batch.hpp>
#include <mixmatch/step/step_loss.hpp>
#include <mixmatch/training/guess_quality.hpp>

namespace mixmatch::methods {

struct PiModelOptions {
  /// Of the unlabeled loss, after a linear ramp over `rampup_steps` (the papers: 40 % of training; 0: at
  /// once).
  TORCH_ARG(double, weight) = 20;
  TORCH_ARG(int64_t, rampup_steps) = 0;
};

/// Pi-Model (arXiv 1610.02242): two views of an unlabeled image are to have the same prediction.
///
///     L = CE(x) + w(step) mean over rows and classes of (softmax f(u_1) - softmax f(u_2))^2
///
/// The second view is the target and has no gradient. Only the labeled pass moves batch-norm statistics.
/// Draws nothing. Reports the two terms, the weight, and the targets' confidence, entropy and accuracy.
class PiModel {
 public:
  explicit PiModel(const PiModelOptions& options = {}) : options_(options) {}

  static constexpr int64_t weak_views = 2;

  template <class Model>
  StepLoss operator()(Model& model, const Batch& batch, const Tensor& step, const at::Generator&) const {
    const Tensor logits_x = forward(model, batch.labeled);
    const Tensor labeled = soft_cross_entropy(logits_x, mixmatch::one_hot(batch.labels, logits_x.size(1)));
    const auto frozen = freeze_batch_norm(model);
    const Tensor target = guess_labels(model, {batch.weak.at(1)}, GuessLabelsOptions().temperature(1));
    const Tensor unlabeled = softmax_mse(forward(model, batch.weak.at(0)), target);
    const Tensor weight = linear_rampup(step, options_.rampup_steps()) * options_.weight();
    const auto quality = training::guess_quality(target, batch.hidden_labels);
    return {labeled + weight.to(unlabeled.scalar_type()) * unlabeled,
            {{"loss_labeled", labeled},
             {"loss_unlabeled", unlabeled},
             {"lambda_u", weight},
             {"guess_confidence", quality.mean_max_probability},
             {"guess_entropy", quality.mean_entropy},
             {"guess_accuracy", quality.accuracy}}};
  }

 private:
  PiModelOptions options_;
};

}  // namespace mixmatch::methods
