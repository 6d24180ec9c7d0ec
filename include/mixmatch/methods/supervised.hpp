#pragma once

#include <mixmatch/losses.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/one_hot.hpp>
#include <mixmatch/step/batch.hpp>
#include <mixmatch/step/step_loss.hpp>

namespace mixmatch::methods {

namespace detail {

/// Cross-entropy on the labeled images, mean over rows, of adjusted logits (Batch::for_labeled()): the first
/// term of every method that does not mix them.
template <class Model>
Tensor labeled_loss(Model& model, const Batch& batch) {
  const Tensor logits = batch.for_labeled(forward(model, batch.labeled));
  return soft_cross_entropy(logits, mixmatch::one_hot(batch.labels, logits.size(1)));
}

}  // namespace detail

/// The baseline that semi-supervised methods are measured against: cross-entropy on the labeled images alone,
/// mean over rows. Unlabeled images are not looked at; draws nothing.
struct Supervised {
  static constexpr int64_t weak_views() { return 0; }

  template <class Model>
  StepLoss operator()(Model& model, const Batch& batch, const Tensor& /*step*/,
                      const at::Generator& /*generator*/) const {
    const Tensor loss = detail::labeled_loss(model, batch);
    return {loss, {{"loss_labeled", loss}}};
  }
};

}  // namespace mixmatch::methods
