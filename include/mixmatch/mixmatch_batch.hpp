#pragma once

#include <torch/arg.h>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/join_rows.hpp>
#include <mixmatch/guess_labels.hpp>
#include <mixmatch/mixup.hpp>
#include <mixmatch/one_hot.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
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

/// In the order of MixMode.
inline constexpr std::array<std::string_view, 9> kMixModes{".",    "xx.",    ".yy",   "xx.yy",  "xxy.",
                                                           ".yxy", "xx.yxy", "xx.yx", "xxy.yxy"};

}  // namespace detail

/// The mode of that name; throws, quoting it, if there is none.
inline MixMode parse_mix_mode(std::string_view name) {
  const auto* found = std::find(detail::kMixModes.begin(), detail::kMixModes.end(), name);
  TORCH_CHECK(found != detail::kMixModes.end(), "parse_mix_mode: unknown mixing mode \"",
              detail::printable_beginning(name, 40),
              "\"; expected one of . xx. .yy xx.yy xxy. .yxy xx.yxy xx.yx xxy.yxy");
  return static_cast<MixMode>(found - detail::kMixModes.begin());
}

inline std::string_view to_string(MixMode mode) {
  const auto index = static_cast<size_t>(mode);
  return index < detail::kMixModes.size() ? detail::kMixModes[index] : "?";
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
};

/// [B, …], [B, L], [K*U, …], [K*U, L]; unlabeled rows are ordered view by view.
struct MixMatchBatch {
  Tensor labeled_inputs, labeled_targets, unlabeled_inputs, unlabeled_targets;
};

namespace detail {

/// How errors call a function and its arguments: those of the one that the user called.
struct BatchNames {
  const char *function, *labeled, *unlabeled;
};

struct LabeledRows {
  Tensor inputs, targets;
};

/// y mixed with rows of x only: partners run through random orders of x until every row of y has one.
inline LabeledRows mixed_with(const BatchNames& names, const LabeledRows& y, const LabeledRows& x,
                              const MixUpOptions& options, const std::optional<at::Generator>& generator) {
  const int64_t rows = y.inputs.size(0);
  const int64_t draws = options.per_sample() ? rows : 1;
  if (rows == 0) {
    return y;
  }
  TORCH_CHECK(x.inputs.size(0) > 0, names.function,
              ": mode xx.yx mixes unlabeled rows with labeled ones, got none");
  const auto lambda_type = y.inputs.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  Tensor lambda = options.alpha() == 0 ? torch::ones({draws}, y.inputs.options().dtype(lambda_type))
                                       : sample_symmetric_beta(draws, options.alpha(), y.inputs.device(),
                                                               lambda_type, generator, /*dominant=*/true);
  if (!options.per_sample()) {
    lambda = lambda.squeeze(0);
  }
  std::vector<Tensor> orders;
  for (int64_t covered = 0; covered < rows; covered += x.inputs.size(0)) {
    orders.push_back(random_permutation(x.inputs.size(0), x.inputs.device(), generator));
  }
  const Tensor partners = torch::cat(orders).narrow(0, 0, rows);
  return {mix_rows(y.inputs, x.inputs, partners, lambda, names.function),
          mix_rows(y.targets, x.targets, partners, lambda, names.function)};
}

/// What the mode mixes labeled and unlabeled rows with: its name before and after the dot.
struct MixPartners {
  std::string_view labeled, unlabeled;

  MixPartners(const BatchNames& names, MixMode mode) {
    const auto name = to_string(mode);
    const size_t dot = name.find('.');
    TORCH_CHECK(dot != name.npos, names.function, ": mix_mode is not one of the nine modes");
    labeled = name.substr(0, dot);
    unlabeled = name.substr(dot + 1);
  }
  /// Whether labeled and unlabeled rows make one batch, or are partners.
  bool join_rows() const { return labeled == "xxy" || unlabeled == "yxy" || unlabeled == "yx"; }
};

inline void check_rows_alike(const BatchNames& names, const Tensor& labeled, const Tensor& unlabeled) {
  TORCH_CHECK(labeled.sizes().slice(1) == unlabeled.sizes().slice(1), names.function, ": ", names.unlabeled,
              " must have rows like those of ", names.labeled, " ", labeled.sizes(), ", got ",
              unlabeled.sizes());
  TORCH_CHECK(labeled.device() == unlabeled.device(), names.function, ": ", names.unlabeled,
              " must be on the device of ", names.labeled, ", ", labeled.device(), ", got ",
              unlabeled.device());
}

/// with_guessed_labels(), with the guesses that `guess_of()` gives, [U, L], once the rows are checked.
template <class Guess>
MixMatchBatch with_guesses(const BatchNames& names, const Tensor& labeled_view, const Tensor& labels,
                           const std::vector<Tensor>& views, const MixMatchOptions& options,
                           Guess&& guess_of) {
  TORCH_CHECK(!views.empty() && static_cast<int64_t>(views.size()) == options.num_augmentations(),
              names.function, ": expected num_augmentations = ", options.num_augmentations(), " views, got ",
              views.size());
  TORCH_CHECK(labeled_view.defined() && labeled_view.dim() >= 1 && labels.defined() && labels.dim() >= 1 &&
                  labels.size(0) == labeled_view.size(0),
              names.function, ": labels must have one row for each row of ", names.labeled, " ",
              sizes_text(labeled_view), ", got ", sizes_text(labels));
  for (const Tensor& view : views) {
    TORCH_CHECK(view.defined() && view.dim() >= 1 && view.sizes() == views.front().sizes(), names.function,
                ": all views of ", names.unlabeled, " must have one shape [U, ...], that of the first ",
                sizes_text(views.front()), ", got ", sizes_text(view));
  }
  if (MixPartners(names, options.mix_mode()).join_rows()) {
    check_rows_alike(names, labeled_view, views.front());
  }
  const Tensor guess = guess_of();
  const int64_t count = options.num_augmentations();
  if (const Tensor joined = join_targets_on_cuda(labels, guess, count); joined.defined()) {
    return {labeled_view, separate_rows(joined, 0, labels.size(0)), join_rows(views),
            separate_rows(joined, labels.size(0), count * guess.size(0))};
  }
  Tensor targets = labels;
  if (!at::isFloatingType(labels.scalar_type())) {
    targets = one_hot(labels, guess.size(1), guess.scalar_type());
  } else {
    TORCH_CHECK(labels.dim() == 2 && labels.size(1) == guess.size(1), names.function,
                ": labels must be int64 [B] or [B, ", guess.size(1),
                "] probabilities as the model has classes, got ", labels.sizes());
    targets = labels.to(guess.scalar_type());
  }
  return {labeled_view, targets, join_rows(views), guess.repeat({count, 1})};
}

template <class Model>
MixMatchBatch with_guessed_labels(const BatchNames& names, Model& model, const Tensor& labeled_view,
                                  const Tensor& labels, const std::vector<Tensor>& views,
                                  const MixMatchOptions& options) {
  return with_guesses(names, labeled_view, labels, views, options, [&] {
    return guess_labels(model, views, GuessLabelsOptions().temperature(options.temperature()));
  });
}

/// Algorithm 1, line 5: K augmentations of the unlabeled rows.
template <class Augment>
std::vector<Tensor> augmented_views(const BatchNames& names, Augment&& augment, const Tensor& unlabeled,
                                    int64_t num_augmentations) {
  TORCH_CHECK(num_augmentations >= 1, names.function, ": num_augmentations must be >= 1, got ",
              num_augmentations);
  std::vector<Tensor> views;
  for (int64_t k = 0; k < num_augmentations; ++k) {
    views.push_back(augment(unlabeled));
  }
  return views;
}

/// Throws unless the rows can be mixed by the options.
inline void check_unmixed(const BatchNames& names, const LabeledRows& x, const LabeledRows& y,
                          const MixMatchOptions& options) {
  const auto check = [&names](const char* name, const LabeledRows& rows) {
    TORCH_CHECK(
        rows.inputs.defined() && rows.inputs.dim() >= 1 && at::isFloatingType(rows.inputs.scalar_type()),
        names.function, ": ", name, " must be a floating-point [N, ...] tensor, got ",
        type_and_sizes(rows.inputs));
    TORCH_CHECK(rows.targets.defined() && rows.targets.dim() == 2 &&
                    at::isFloatingType(rows.targets.scalar_type()) &&
                    rows.targets.size(0) == rows.inputs.size(0),
                names.function, ": targets of ", name, " must be floating-point [", rows.inputs.size(0),
                ", L] as it has rows, got ", type_and_sizes(rows.targets));
  };
  check(names.labeled, x);
  check(names.unlabeled, y);
  if (MixPartners(names, options.mix_mode()).join_rows()) {
    check_rows_alike(names, x.inputs, y.inputs);
    TORCH_CHECK(x.targets.size(1) == y.targets.size(1), names.function, ": targets of ", names.unlabeled,
                " must have as many classes as those of ", names.labeled, ", ", x.targets.size(1), ", got ",
                y.targets.size(1));
  }
  for (const double alpha : {options.alpha(), options.alpha_unlabeled().value_or(options.alpha())}) {
    TORCH_CHECK(alpha >= 0 && std::isfinite(alpha), names.function, ": alpha must be finite and >= 0, got ",
                alpha);
  }
}

/// `kept`: 0 for unlabeled rows that are to be mixed into no other; undefined for none.
inline MixMatchBatch mix_labeled_unlabeled(const BatchNames& names, const MixMatchBatch& unmixed,
                                           const MixMatchOptions& options,
                                           const std::optional<at::Generator>& generator,
                                           const Tensor& kept = {}) {
  const LabeledRows x{unmixed.labeled_inputs, unmixed.labeled_targets};
  const LabeledRows y{unmixed.unlabeled_inputs, unmixed.unlabeled_targets};
  check_unmixed(names, x, y, options);
  const double alpha_x = options.alpha(), alpha_y = options.alpha_unlabeled().value_or(alpha_x);
  const auto options_of = [&](double alpha) {
    return MixUpOptions().alpha(alpha).per_sample(options.per_sample());
  };
  const auto mix = [&](const LabeledRows& rows, double alpha, const Tensor& partners = {}) {
    auto mixed = mixup(rows.inputs, rows.targets, options_of(alpha).partners(partners), generator);
    return LabeledRows{std::move(mixed.inputs), std::move(mixed.targets)};
  };
  const MixPartners with(names, options.mix_mode());
  LabeledRows labeled = x, unlabeled = y;
  if (with.labeled == "xx") {
    labeled = mix(x, alpha_x);
  }
  if (with.labeled == "xxy" || with.unlabeled == "yxy") {
    const auto all =
        mix({join_rows({x.inputs, y.inputs}), join_rows({x.targets, y.targets})}, 0.5 * (alpha_x + alpha_y),
            kept.defined() ? at::cat({at::ones({x.inputs.size(0)}, kept.options()), kept}) : kept);
    const auto part = [&all](int64_t first, int64_t count) {
      return LabeledRows{all.inputs.narrow(0, first, count), all.targets.narrow(0, first, count)};
    };
    labeled = with.labeled == "xxy" ? part(0, x.inputs.size(0)) : labeled;
    unlabeled = with.unlabeled == "yxy" ? part(x.inputs.size(0), y.inputs.size(0)) : y;
  }
  if (with.unlabeled == "yy") {
    unlabeled = mix(y, alpha_y, kept);
  } else if (with.unlabeled == "yx") {
    unlabeled = mixed_with(names, y, x, options_of(alpha_y), generator);
  }
  return {labeled.inputs, labeled.targets, unlabeled.inputs, unlabeled.targets};
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
  return detail::with_guessed_labels({"with_guessed_labels", "labeled_view", "views"}, model, labeled_view,
                                     labels, views, options);
}

/// MixUp of a labeled batch x and an unlabeled batch y (all K views, with their guessed labels) by one of
/// nine modes: Algorithm 1, lines 10-14. Inputs are floating-point [N, …], targets [N, L]. Draws a
/// permutation and lambdas from `generator` for each mixing that the mode asks for.
inline MixMatchBatch mix_labeled_unlabeled(const MixMatchBatch& unmixed, const MixMatchOptions& options = {},
                                           std::optional<at::Generator> generator = std::nullopt) {
  return detail::mix_labeled_unlabeled({"mix_labeled_unlabeled", "labeled_inputs", "unlabeled_inputs"},
                                       unmixed, options, generator);
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
  constexpr detail::BatchNames names{"mixmatch_batch", "labeled", "unlabeled"};
  const Tensor labeled_view = augment(labeled);
  const auto views = detail::augmented_views(names, augment, unlabeled, options.num_augmentations());
  const auto unmixed = detail::with_guessed_labels(names, model, labeled_view, labels, views, options);
  return detail::mix_labeled_unlabeled(names, unmixed, options, generator);
}

}  // namespace mixmatch
