#pragma once

#include <mixmatch/losses.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/one_hot.hpp>
#include <mixmatch/schedules.hpp>
#include <mixmatch/step/batch.hpp>
#include <mixmatch/step/step_loss.hpp>
#include <mixmatch/training/guess_quality.hpp>

namespace mixmatch::methods {

struct MeanTeacherOptions {
  /// Of the unlabeled loss, after a linear ramp over `rampup_steps` (the papers: 40 % of training; 0: at
  /// once).
  TORCH_ARG(double, weight) = 50;
  TORCH_ARG(int64_t, rampup_steps) = 0;
};

/// Mean Teacher (arXiv 1703.01780): the averaged weights' prediction of one view is the target of the other.
///
///     L = CE(x) + w(step) mean over rows and classes of (softmax f(u_1) - softmax f_average(u_2))^2
///
/// The teacher runs in the model's mode, in training by batch statistics, without gradient: the model must
/// have `teacher(input)`, as training::Learner does. Only the labeled pass moves batch-norm statistics. Draws
/// nothing. Reports the two terms, the weight, and the targets' confidence, entropy and accuracy.
class MeanTeacher {
 public:
  explicit MeanTeacher(const MeanTeacherOptions& options = {}) : options_(options) {}

  static constexpr int64_t weak_views = 2;

  template <class Model>
  StepLoss operator()(Model& model, const Batch& batch, const Tensor& step, const at::Generator&) const {
    const Tensor logits_x = forward(model, batch.labeled);
    const Tensor labeled = soft_cross_entropy(logits_x, mixmatch::one_hot(batch.labels, logits_x.size(1)));
    const auto frozen = freeze_batch_norm(model);
    const Tensor target = torch::softmax(mixmatch::detail::float_logits(model.teacher(batch.weak.at(1))), 1);
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
  MeanTeacherOptions options_;
};

}  // namespace mixmatch::methods
