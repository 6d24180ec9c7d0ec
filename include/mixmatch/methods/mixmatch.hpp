#pragma once

#include <mixmatch/interleave.hpp>
#include <mixmatch/mixmatch_batch.hpp>
#include <mixmatch/ramped_loss.hpp>

#include <optional>
#include <utility>
#include <vector>

namespace mixmatch::methods {

/// `total` carries the gradient; `weight` is lambda_u at this step; `guesses` [U, L] are the sharpened labels
/// of the unlabeled rows before any mixing, to watch their quality.
struct MixMatchLoss {
  Tensor total, labeled, unlabeled;
  double weight;
  Tensor guesses;
};

namespace detail {

template <class Model>
MixMatchLoss mixmatch_loss_of_views(const mixmatch::detail::BatchNames& names, Model& model,
                                    const Tensor& labeled, const Tensor& labels,
                                    const std::vector<Tensor>& views, int64_t step,
                                    const RampedLoss& criterion, const MixMatchOptions& options,
                                    const std::optional<at::Generator>& generator) {
  const auto guessed = mixmatch::detail::with_guessed_labels(names, model, labeled, labels, views, options);
  const auto mixed = mixmatch::detail::mix_labeled_unlabeled(names, guessed, options, generator);
  const auto logits =
      forward_interleaved(model, mixed.labeled_inputs, mixed.unlabeled_inputs, options.workspace().get());
  const auto loss =
      criterion(logits.labeled, mixed.labeled_targets, logits.unlabeled, mixed.unlabeled_targets, step);
  return {loss.total, loss.labeled, loss.unlabeled, loss.weight,
          guessed.unlabeled_targets.narrow(0, 0, views.front().size(0))};
}

}  // namespace detail

/// The loss of one MixMatch step (arXiv 1905.02249) from images that were augmented already (lines 3 and 5 of
/// Algorithm 1) to eq. 5: guess, sharpen and mix, K + 1 interleaved forward passes, cross-entropy plus ramped
/// squared error.
///
/// `labeled` [B, …] with int64 labels [B] or probabilities [B, L]; `views`: K augmentations [B, …] of the
/// unlabeled rows; `step` counts from 0 and sets the ramp's weight. `generator` drives MixUp. The same as the
/// loop that examples/cifar10.cpp spells out.
template <class Model>
MixMatchLoss mixmatch_loss_of_views(Model& model, const Tensor& labeled, const Tensor& labels,
                                    const std::vector<Tensor>& views, int64_t step,
                                    const RampedLoss& criterion, const MixMatchOptions& options = {},
                                    std::optional<at::Generator> generator = std::nullopt) {
  return detail::mixmatch_loss_of_views({"mixmatch_loss_of_views", "labeled", "views"}, model, labeled,
                                        labels, views, step, criterion, options, generator);
}

/// mixmatch_loss_of_views() of one augmentation of the labeled rows and K of the unlabeled ones. Arguments as
/// mixmatch_batch().
template <class Model, class Augment>
MixMatchLoss mixmatch_loss(Model& model, Augment&& augment, const Tensor& labeled, const Tensor& labels,
                           const Tensor& unlabeled, int64_t step, const RampedLoss& criterion,
                           const MixMatchOptions& options = {},
                           std::optional<at::Generator> generator = std::nullopt) {
  constexpr mixmatch::detail::BatchNames names{"mixmatch_loss", "labeled", "unlabeled"};
  const Tensor labeled_view = augment(labeled);
  const auto views =
      mixmatch::detail::augmented_views(names, augment, unlabeled, options.num_augmentations());
  return detail::mixmatch_loss_of_views(names, model, labeled_view, labels, views, step, criterion, options,
                                        generator);
}

}  // namespace mixmatch::methods
