#pragma once

#include <mixmatch/losses.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/one_hot.hpp>
#include <mixmatch/step/batch.hpp>
#include <mixmatch/step/step_loss.hpp>

namespace mixmatch::methods {

/// The baseline that semi-supervised methods are measured against: cross-entropy on the labeled images alone,
/// mean over rows. Unlabeled images are not looked at; draws nothing.
struct Supervised {
  static constexpr int64_t weak_views() { return 0; }

  template <class Model>
  StepLoss operator()(Model& model, const Batch& batch, const Tensor& /*step*/,
                      const at::Generator& /*generator*/) const {
    const Tensor logits = forward(model, batch.labeled);
    const Tensor loss = soft_cross_entropy(logits, mixmatch::one_hot(batch.labels, logits.size(1)));
    return {loss, {{"loss_labeled", loss}}};
  }
};

}  // namespace mixmatch::methods
