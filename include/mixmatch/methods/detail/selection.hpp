#pragma once

#include <mixmatch/evaluation/guess_quality.hpp>
#include <mixmatch/selection.hpp>
#include <mixmatch/step/batch.hpp>
#include <mixmatch/step/step_loss.hpp>

#include <cstdint>

namespace mixmatch::methods::detail {

/// `loss`, reported with what was selected of the unlabeled rows and how much of that is right.
inline StepLoss with_selection(StepLoss loss, const Selection& selected, int64_t num_classes,
                               const Batch& batch) {
  loss.values.emplace_back("guess_confidence", selected.confidence.mean());
  loss.values.emplace_back("guess_class_entropy",
                           training::guessed_class_entropy(selected.labels, num_classes));
  loss.values.emplace_back("mask_rate", selected.mask.mean());
  loss.values.emplace_back("mask_accuracy", selected_accuracy(selected, batch.hidden_labels));
  return loss;
}

}  // namespace mixmatch::methods::detail
