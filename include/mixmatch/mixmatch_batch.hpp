#pragma once

#include <torch/arg.h>
#include <mixmatch/detail/join_rows.hpp>
#include <mixmatch/guess_labels.hpp>
#include <mixmatch/mixup.hpp>
#include <mixmatch/one_hot.hpp>
#include <mixmatch/workspace.hpp>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mixmatch {

/// What is mixed with what, in the ablation's notation: before the dot labeled rows x, after it unlabeled
/// rows y; "xx.yxy" reads "mix x with x; mix y with both x and y".
enum class MixMode {
  none,    ///< "."        no MixUp
  xx,      ///< "xx."      labeled rows among themselves
  yy,      ///< ".yy"      unlabeled rows among themselves
  xx_yy,   ///< "xx.yy"    each among themselves
  xxy,     ///< "xxy."     labeled rows with all rows
  yxy,     ///< ".yxy"     unlabeled rows with all rows
  xx_yxy,  ///< "xx.yxy"
  xx_yx,   ///< "xx.yx"    unlabeled rows with labeled ones only
  all      ///< "xxy.yxy"  all rows with all rows: MixMatch
};

namespace detail {

inline constexpr std::array<std::pair<MixMode, std::string_view>, 9> kMixModes{{{MixMode::none, "."},
                                                                                {MixMode::xx, "xx."},
                                                                                {MixMode::yy, ".yy"},
                                                                                {MixMode::xx_yy, "xx.yy"},
                                                                                {MixMode::xxy, "xxy."},
                                                                                {MixMode::yxy, ".yxy"},
                                                                                {MixMode::xx_yxy, "xx.yxy"},
                                                                                {MixMode::xx_yx, "xx.yx"},
                                                                                {MixMode::all, "xxy.yxy"}}};

}  // namespace detail

/// The mode of that name; throws, quoting it, if there is none.
inline MixMode parse_mix_mode(std::string_view name) {
  for (const auto& [mode, text] : detail::kMixModes) {
    if (text == name) {
      return mode;
    }
  }
  TORCH_CHECK(false, "parse_mix_mode: unknown mixing mode \"", std::string(name),
              "\"; expected one of . xx. .yy xx.yy xxy. .yxy xx.yxy xx.yx xxy.yxy");
}

inline std::string_view to_string(MixMode mode) {
  for (const auto& [known, text] : detail::kMixModes) {
    if (known == mode) {
      return text;
    }
  }
  return "?";
}

struct MixMatchOptions {
  /// Sharpening temperature T of the guessed labels.
  TORCH_ARG(double, temperature) = 0.5;
  /// K, the number of augmentations of each unlabeled row, >= 1.
  TORCH_ARG(int64_t, num_augmentations) = 2;
  /// MixUp's Beta(alpha, alpha).
  TORCH_ARG(double, alpha) = 0.75;
  /// Another alpha for the unlabeled rows where a mode mixes them apart; joint mixing then uses the mean of
  /// both.
  TORCH_ARG(std::optional<double>, alpha_unlabeled) = std::nullopt;
  TORCH_ARG(MixMode, mix_mode) = MixMode::all;
  /// One lambda per row (the papers), or one for the whole batch (a deviation of several ports that costs
  /// accuracy).
  TORCH_ARG(bool, per_sample) = true;
  /// Where the memory of the step's inputs comes from, joined, mixed and (methods::mixmatch_loss)
  /// interleaved: for loops, see Workspace. Without, from LibTorch. One thread at a time may use it.
  TORCH_ARG(std::shared_ptr<Workspace>, workspace) = nullptr;
};

/// [B, …], [B, L], [K*U, …], [K*U, L]; unlabeled rows are ordered view by view.
struct MixMatchBatch {
  Tensor labeled_inputs, labeled_targets, unlabeled_inputs, unlabeled_targets;
};

namespace detail {

struct LabeledRows {
  Tensor inputs, targets;
};

inline LabeledRows joined(const LabeledRows& first, const LabeledRows& second, Workspace* workspace) {
  return {join_rows({first.inputs, second.inputs}, workspace), join_rows({first.targets, second.targets})};
}

inline LabeledRows mixed(const LabeledRows& rows, const MixUpOptions& options,
                         const std::optional<at::Generator>& generator) {
  auto result = mixup(rows.inputs, rows.targets, options, generator);
  return {std::move(result.inputs), std::move(result.targets)};
}

/// y mixed with rows of x only: partners run through random orders of x until every row of y has one.
inline LabeledRows mixed_with(const LabeledRows& y, const LabeledRows& x, const MixUpOptions& options,
                              const std::optional<at::Generator>& generator) {
  const int64_t rows = y.inputs.size(0);
  const int64_t draws = options.per_sample() ? rows : 1;
  if (rows == 0) {
    return y;
  }
  TORCH_CHECK(x.inputs.size(0) > 0,
              "mixmatch_batch: mode xx.yx mixes unlabeled rows with labeled ones, got none");
  const auto lambda_type = y.inputs.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  Tensor lambda = options.alpha() == 0 ? torch::ones({draws}, y.inputs.options().dtype(lambda_type))
                                       : sample_symmetric_beta(draws, options.alpha(), y.inputs.device(),
                                                               lambda_type, generator);
  lambda = torch::maximum(lambda, 1 - lambda);
  if (!options.per_sample()) {
    lambda = lambda.squeeze(0);
  }
  std::vector<Tensor> orders;
  for (int64_t covered = 0; covered < rows; covered += x.inputs.size(0)) {
    orders.push_back(random_permutation(x.inputs.size(0), x.inputs.device(), generator));
  }
  const Tensor partners = torch::cat(orders).narrow(0, 0, rows);
  return {mix_rows(y.inputs, x.inputs, partners, lambda, "mixmatch_batch", options.workspace().get()),
          mix_rows(y.targets, x.targets, partners, lambda, "mixmatch_batch")};
}

}  // namespace detail

/// Algorithm 1, lines 7-8, for rows that were augmented already: the labels guessed over all K views, joined
/// with the labeled rows, nothing mixed yet; see mixmatch_batch(). `labeled_view` is [B, …], `views` are K
/// augmentations of the same U rows. The guesses stand in the first U rows of `unlabeled_targets`, and again
/// for each further view. Several views that follow each other in memory, as slices of one batch do, are
/// joined without a copy: `unlabeled_inputs` is then that memory. So are the labeled rows with them, where
/// they come right before.
template <class Model>
MixMatchBatch with_guessed_labels(Model& model, const Tensor& labeled_view, const Tensor& labels,
                                  const std::vector<Tensor>& views, const MixMatchOptions& options = {}) {
  TORCH_CHECK(!views.empty() && static_cast<int64_t>(views.size()) == options.num_augmentations(),
              "mixmatch_batch: expected num_augmentations = ", options.num_augmentations(), " views, got ",
              views.size());
  TORCH_CHECK(labeled_view.dim() >= 1 && labels.dim() >= 1 && labels.size(0) == labeled_view.size(0),
              "mixmatch_batch: labels must have one row for each row of labeled ", labeled_view.sizes(),
              ", got ", labels.sizes());
  const Tensor guess = guess_labels(model, views, GuessLabelsOptions().temperature(options.temperature()));
  Tensor targets = labels;
  if (!at::isFloatingType(labels.scalar_type())) {
    targets = one_hot(labels, guess.size(1), guess.scalar_type());
  } else {
    TORCH_CHECK(labels.dim() == 2 && labels.size(1) == guess.size(1),
                "mixmatch_batch: labels must be int64 [B] or [B, ", guess.size(1),
                "] probabilities as the model has classes, got ", labels.sizes());
    targets = labels.to(guess.scalar_type());
  }
  return {labeled_view, targets, detail::join_rows(views, options.workspace().get()),
          guess.repeat({options.num_augmentations(), 1})};
}

/// Algorithm 1, line 5: K augmentations of the unlabeled rows.
template <class Augment>
std::vector<Tensor> augmented_views(Augment&& augment, const Tensor& unlabeled, int64_t num_augmentations) {
  TORCH_CHECK(num_augmentations >= 1, "mixmatch_batch: num_augmentations must be >= 1, got ",
              num_augmentations);
  std::vector<Tensor> views;
  for (int64_t k = 0; k < num_augmentations; ++k) {
    views.push_back(augment(unlabeled));
  }
  return views;
}

/// Algorithm 1, lines 2-8: one augmentation of the labeled rows with their labels, K of the unlabeled rows,
/// and with_guessed_labels() of these.
template <class Model, class Augment>
MixMatchBatch augment_and_guess(Model& model, Augment&& augment, const Tensor& labeled, const Tensor& labels,
                                const Tensor& unlabeled, const MixMatchOptions& options = {}) {
  const Tensor labeled_view = augment(labeled);
  return with_guessed_labels(model, labeled_view, labels,
                             augmented_views(augment, unlabeled, options.num_augmentations()), options);
}

/// MixUp of a labeled batch x and an unlabeled batch y (all K views, with their guessed labels) by one of
/// nine modes: Algorithm 1, lines 10-14. Inputs are floating-point [N, …], targets [N, L]. Draws a
/// permutation and lambdas from `generator` for each mixing that the mode asks for.
inline MixMatchBatch mix_labeled_unlabeled(const MixMatchBatch& unmixed, const MixMatchOptions& options = {},
                                           std::optional<at::Generator> generator = std::nullopt) {
  const detail::LabeledRows x{unmixed.labeled_inputs, unmixed.labeled_targets};
  const detail::LabeledRows y{unmixed.unlabeled_inputs, unmixed.unlabeled_targets};
  const double alpha_x = options.alpha();
  const double alpha_y = options.alpha_unlabeled().value_or(alpha_x);
  const int64_t num_labeled = x.inputs.size(0);
  const auto mixup_options = [&](double alpha) {
    return MixUpOptions().alpha(alpha).per_sample(options.per_sample()).workspace(options.workspace());
  };
  const auto mix = [&](const detail::LabeledRows& rows, double alpha) {
    return detail::mixed(rows, mixup_options(alpha), generator);
  };
  const auto mix_all = [&] {
    return mix(detail::joined(x, y, options.workspace().get()), 0.5 * (alpha_x + alpha_y));
  };
  const auto head = [&](const detail::LabeledRows& rows) {
    return detail::LabeledRows{rows.inputs.narrow(0, 0, num_labeled), rows.targets.narrow(0, 0, num_labeled)};
  };
  const auto tail = [&](const detail::LabeledRows& rows) {
    const int64_t rest = rows.inputs.size(0) - num_labeled;
    return detail::LabeledRows{rows.inputs.narrow(0, num_labeled, rest),
                               rows.targets.narrow(0, num_labeled, rest)};
  };
  const auto batch = [](const detail::LabeledRows& labeled, const detail::LabeledRows& unlabeled) {
    return MixMatchBatch{labeled.inputs, labeled.targets, unlabeled.inputs, unlabeled.targets};
  };
  switch (options.mix_mode()) {
    case MixMode::none:
      return batch(x, y);
    case MixMode::xx:
      return batch(mix(x, alpha_x), y);
    case MixMode::yy:
      return batch(x, mix(y, alpha_y));
    case MixMode::xx_yy: {
      const auto labeled = mix(x, alpha_x);
      return batch(labeled, mix(y, alpha_y));
    }
    case MixMode::xxy:
      return batch(head(mix_all()), y);
    case MixMode::yxy:
      return batch(x, tail(mix_all()));
    case MixMode::xx_yxy: {
      const auto labeled = mix(x, alpha_x);
      return batch(labeled, tail(mix_all()));
    }
    case MixMode::xx_yx: {
      const auto labeled = mix(x, alpha_x);
      return batch(labeled, detail::mixed_with(y, x, mixup_options(alpha_y), generator));
    }
    case MixMode::all: {
      const auto rows = mix_all();
      return batch(head(rows), tail(rows));
    }
  }
  // Not TORCH_CHECK, which unoptimised code is seen to come back from.
  C10_THROW_ERROR(Error, "mixmatch_batch: mix_mode is not one of the nine modes");
}

/// MixMatch's data augmentation, Algorithm 1 of the paper, whole:
///
///     x^      = Augment(x)                                         line 3
///     u^_k    = Augment(u), k = 1 … K                              line 5
///     q       = Sharpen(1/K sum_k p_model(y | u^_k), T)            lines 7-8
///     x', u'  = MixUp of x^ and all u^_k with their targets        lines 10-14
///
/// `augment` is any callable `Tensor(const Tensor&)` that differs at each call; it may turn uint8 images into
/// the floating-point inputs that the model takes. `labeled` is [B, …], `labels` int64 [B] or probabilities
/// [B, L], `unlabeled` [U, …] of any batch size. The number of classes L is that of the model's output.
/// Guessed labels carry no gradient (see guess_labels). `generator` drives MixUp; `augment` brings its own.
template <class Model, class Augment>
MixMatchBatch mixmatch_batch(Model& model, Augment&& augment, const Tensor& labeled, const Tensor& labels,
                             const Tensor& unlabeled, const MixMatchOptions& options = {},
                             std::optional<at::Generator> generator = std::nullopt) {
  return mix_labeled_unlabeled(augment_and_guess(model, augment, labeled, labels, unlabeled, options),
                               options, std::move(generator));
}

}  // namespace mixmatch
