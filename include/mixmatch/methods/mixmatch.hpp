#pragma once

#include <mixmatch/guess_filter.hpp>
#include <mixmatch/interleave.hpp>
#include <mixmatch/methods/detail/consistency.hpp>
#include <mixmatch/mixmatch_batch.hpp>
#include <mixmatch/ramped_loss.hpp>
#include <mixmatch/step/batch.hpp>
#include <mixmatch/step/step_loss.hpp>

#include <optional>
#include <utility>
#include <vector>

namespace mixmatch::methods {

/// `total` carries the gradient; `weight` is lambda_u at this step, float64 []; `guesses` [U, L] are the
/// sharpened labels of the unlabeled rows before any mixing, to watch their quality, and `filtered` says with
/// them which rows were left out.
struct MixMatchLoss {
  Tensor total, labeled, unlabeled, weight, guesses;
  FilteredGuess filtered;
};

namespace detail {

template <class Model>
MixMatchLoss mixmatch_loss_of_batch(const mixmatch::detail::BatchNames& names, Model& model,
                                    const Batch& batch, const Tensor& step, const RampedLoss& criterion,
                                    const MixMatchOptions& options, GuessFilter& filter,
                                    const std::optional<at::Generator>& generator) {
  FilteredGuess guess;
  const auto guessed =
      mixmatch::detail::with_guesses(names, batch.labeled, batch.labels, batch.weak, options, [&] {
        guess =
            guess_labels(model, batch.weak, GuessLabelsOptions().temperature(options.temperature()), filter);
        return guess.probabilities;
      });
  const Tensor kept =
      guess.weights.defined() ? guess.weights.repeat({options.num_augmentations()}) : Tensor();
  const auto mixed = mixmatch::detail::mix_labeled_unlabeled(names, guessed, options, generator, kept);
  const auto logits = forward_interleaved(model, mixed.labeled_inputs, mixed.unlabeled_inputs);
  const auto loss = criterion(batch.for_labeled(logits.labeled), mixed.labeled_targets, logits.unlabeled,
                              mixed.unlabeled_targets, step, kept);
  return {loss.total, loss.labeled, loss.unlabeled, loss.weight, guess.probabilities, guess};
}

template <class Model>
MixMatchLoss mixmatch_loss_of_views(const mixmatch::detail::BatchNames& names, Model& model,
                                    const Tensor& labeled, const Tensor& labels,
                                    const std::vector<Tensor>& views, const Tensor& step,
                                    const RampedLoss& criterion, const MixMatchOptions& options,
                                    const std::optional<at::Generator>& generator) {
  GuessFilter nothing;
  return mixmatch_loss_of_batch(names, model, Batch{labeled, labels, views, {}}, step, criterion, options,
                                nothing, generator);
}

}  // namespace detail

/// The loss of one MixMatch step (arXiv 1905.02249) from images that were augmented already (lines 3 and 5 of
/// Algorithm 1) to eq. 5: guess, sharpen and mix, K + 1 interleaved forward passes, cross-entropy plus ramped
/// squared error.
///
/// `labeled` [B, …] with int64 labels [B] or probabilities [B, L]; `views`: K augmentations [B, …] of the
/// unlabeled rows; `step` counts from 0, int64 [] on their device or the CPU, and sets the ramp's weight.
/// `generator` drives MixUp. The same as the step that examples/cifar10.cpp spells out.
template <class Model>
MixMatchLoss mixmatch_loss_of_views(Model& model, const Tensor& labeled, const Tensor& labels,
                                    const std::vector<Tensor>& views, const Tensor& step,
                                    const RampedLoss& criterion, const MixMatchOptions& options = {},
                                    std::optional<at::Generator> generator = std::nullopt) {
  return detail::mixmatch_loss_of_views({"mixmatch_loss_of_views", "labeled", "views"}, model, labeled,
                                        labels, views, step, criterion, options, generator);
}

/// The same with the step's number.
template <class Model>
MixMatchLoss mixmatch_loss_of_views(Model& model, const Tensor& labeled, const Tensor& labels,
                                    const std::vector<Tensor>& views, int64_t step,
                                    const RampedLoss& criterion, const MixMatchOptions& options = {},
                                    std::optional<at::Generator> generator = std::nullopt) {
  return mixmatch_loss_of_views(model, labeled, labels, views,
                                at::full({}, step, at::TensorOptions(at::kLong)), criterion, options,
                                std::move(generator));
}

/// mixmatch_loss_of_views() of one augmentation of the labeled rows and K of the unlabeled ones, at step
/// number `step`. Other arguments as mixmatch_batch().
template <class Model, class Augment>
MixMatchLoss mixmatch_loss(Model& model, Augment&& augment, const Tensor& labeled, const Tensor& labels,
                           const Tensor& unlabeled, int64_t step, const RampedLoss& criterion,
                           const MixMatchOptions& options = {},
                           std::optional<at::Generator> generator = std::nullopt) {
  constexpr mixmatch::detail::BatchNames names{"mixmatch_loss", "labeled", "unlabeled"};
  const Tensor labeled_view = augment(labeled);
  const auto views =
      mixmatch::detail::augmented_views(names, augment, unlabeled, options.num_augmentations());
  return detail::mixmatch_loss_of_views(names, model, labeled_view, labels, views,
                                        at::full({}, step, at::TensorOptions(at::kLong)), criterion, options,
                                        generator);
}

/// MixMatch as a method of a training step: mixmatch_loss_of_views() of a batch, K being its weak views. With
/// a filter guesses are aligned before they are sharpened, and a row that is left out neither counts in the
/// loss nor is mixed into another. Reports the loss's two terms, lambda_u and the quality of the guesses.
class MixMatch {
 public:
  explicit MixMatch(MixMatchOptions mixing = {}, const RampedLossOptions& loss = {},
                    GuessFilter filter = GuessFilter())
      : mixing_(std::move(mixing)), criterion_(loss), filter_(std::move(filter)) {}

  int64_t weak_views() const { return mixing_.num_augmentations(); }

  template <class Model>
  StepLoss operator()(Model& model, const Batch& batch, const Tensor& step, const at::Generator& generator) {
    const auto loss = detail::mixmatch_loss_of_batch({"MixMatch", "labeled", "weak"}, model, batch, step,
                                                     criterion_, mixing_, filter_, generator);
    return loss.filtered.reported(detail::with_guess_quality(loss.total, loss.labeled, loss.unlabeled,
                                                             loss.weight, loss.guesses, batch));
  }

  /// The filter's.
  std::vector<Tensor> state() const { return filter_.state(); }
  void save(torch::serialize::OutputArchive& archive) const { filter_.save(archive); }
  void load(torch::serialize::InputArchive& archive) { filter_.load(archive); }
  void to(torch::Device device) { filter_.to(device); }

 private:
  MixMatchOptions mixing_;
  RampedLoss criterion_;
  GuessFilter filter_;
};

}  // namespace mixmatch::methods
