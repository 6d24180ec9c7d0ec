#pragma once

#include <mixmatch/evaluation/guess_quality.hpp>
#include <mixmatch/losses.hpp>
#include <mixmatch/methods/supervised.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/ramped_loss.hpp>
#include <mixmatch/step/batch.hpp>
#include <mixmatch/step/step_loss.hpp>

namespace mixmatch::methods::detail {

/// `total`, reported with its terms and the quality of `targets`, the guessed labels of the unlabeled rows.
inline StepLoss with_guess_quality(const Tensor& total, const Tensor& labeled, const Tensor& unlabeled,
                                   const Tensor& weight, const Tensor& targets, const Batch& batch) {
  const auto quality = training::guess_quality(targets, batch.hidden_labels);
  return {total,
          {{"loss_labeled", labeled},
           {"loss_unlabeled", unlabeled},
           {"lambda_u", weight},
           {"guess_confidence", quality.mean_max_probability},
           {"guess_entropy", quality.mean_entropy},
           {"guess_class_entropy", quality.class_entropy},
           {"guess_accuracy", quality.accuracy}}};
}

/// labeled + weight unlabeled, reported so.
inline StepLoss guessed_loss(const Tensor& labeled, const Tensor& unlabeled, const Tensor& weight,
                             const Tensor& targets, const Batch& batch) {
  return with_guess_quality(labeled + weight.to(unlabeled.scalar_type()) * unlabeled, labeled, unlabeled,
                            weight, targets, batch);
}

/// What Pi-Model and Mean Teacher have in common: L = CE(x) + w(step) mean over rows and classes of
/// (softmax f(u_1) - target(u_2))^2. Only the labeled pass moves batch-norm statistics.
template <class Model, class Target>
StepLoss consistency_loss(Model& model, const Batch& batch, const Tensor& step, const RampedLoss& ramp,
                          Target&& target_of) {
  const Tensor labeled = labeled_loss(model, batch);
  const auto frozen = freeze_batch_norm(model);
  const Tensor target = target_of(batch.weak.at(1));
  const Tensor unlabeled = softmax_mse(forward(model, batch.weak.at(0)), target);
  return guessed_loss(labeled, unlabeled, ramp.weight(step), target, batch);
}

}  // namespace mixmatch::methods::detail
