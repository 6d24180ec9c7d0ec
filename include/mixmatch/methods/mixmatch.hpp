#pragma once

#include <mixmatch/interleave.hpp>
#include <mixmatch/mixmatch_batch.hpp>
#include <mixmatch/ramped_loss.hpp>

#include <optional>
#include <utility>

namespace mixmatch::methods {

/// `total` carries the gradient; `weight` is lambda_u at this step; `guesses` [U, L] are the sharpened labels
/// of the unlabeled rows before any mixing, to watch their quality.
struct MixMatchLoss {
  Tensor total, labeled, unlabeled;
  double weight;
  Tensor guesses;
};

/// The loss of one MixMatch step (arXiv 1905.02249), from images to eq. 5: augment, guess, sharpen and mix
/// (Algorithm 1), K + 1 interleaved forward passes, cross-entropy plus ramped squared error.
///
/// Arguments as mixmatch_batch(); `step` counts from 0 and sets the ramp's weight. The same as the loop that
/// examples/cifar10.cpp spells out.
template <class Model, class Augment>
MixMatchLoss mixmatch_loss(Model& model, Augment&& augment, const Tensor& labeled, const Tensor& labels,
                           const Tensor& unlabeled, int64_t step, const RampedLoss& criterion,
                           const MixMatchOptions& options = {},
                           std::optional<at::Generator> generator = std::nullopt) {
  const auto guessed = augment_and_guess(model, augment, labeled, labels, unlabeled, options);
  const auto mixed = mix_labeled_unlabeled(guessed, options, std::move(generator));
  const auto logits = forward_interleaved(model, mixed.labeled_inputs, mixed.unlabeled_inputs);
  const auto loss =
      criterion(logits.labeled, mixed.labeled_targets, logits.unlabeled, mixed.unlabeled_targets, step);
  return {loss.total, loss.labeled, loss.unlabeled, loss.weight,
          guessed.unlabeled_targets.narrow(0, 0, unlabeled.size(0))};
}

}  // namespace mixmatch::methods
