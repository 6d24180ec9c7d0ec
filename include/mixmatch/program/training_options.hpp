#pragma once

#include <fmt/format.h>
#include <mixmatch/augment/color_jitter.hpp>
#include <mixmatch/augment/random_crop_flip.hpp>
#include <mixmatch/augment/random_resized_crop.hpp>
#include <mixmatch/data/data_checksum.hpp>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/detail/io/parse_number.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/io/read_file.hpp>
#include <mixmatch/detail/io/shell_quote.hpp>
#include <mixmatch/evaluation/evaluate.hpp>
#include <mixmatch/guess_filter.hpp>
#include <mixmatch/io/atomic_file.hpp>
#include <mixmatch/logit_adjustment.hpp>
#include <mixmatch/mixmatch_batch.hpp>
#include <mixmatch/models/network.hpp>
#include <mixmatch/nn/channels_last.hpp>
#include <mixmatch/nn/precision.hpp>
#include <mixmatch/presets.hpp>
#include <mixmatch/program/device.hpp>
#include <mixmatch/program/threads.hpp>
#include <mixmatch/ramped_loss.hpp>
#include <mixmatch/run/run_directory.hpp>
#include <mixmatch/run/standard_streams.hpp>
#include <mixmatch/run/training_run.hpp>
#include <mixmatch/schedules.hpp>
#include <mixmatch/step/trainer.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// What the training programs can be told, with a preset's numbers as defaults; command_line.hpp makes
/// options of it. A plain struct: programs of one's own add to it what they need. Errors of the functions of
/// this header speak of these options as the command line does.
struct TrainingOptions {
  TrainingOptions() = default;
  explicit TrainingOptions(const Preset& preset)
      : steps(preset.total_steps),
        batch(preset.batch_size),
        widen(preset.filters / 16),
        filters(preset.filters % 16 == 0 ? 0 : preset.filters),
        scales(preset.scales),
        learning_rate(preset.learning_rate),
        weight_decay(preset.weight_decay),
        lambda_u(preset.lambda_u),
        rampup_steps(preset.rampup_steps),
        alpha(preset.alpha),
        temperature(preset.temperature),
        num_augmentations(preset.num_augmentations),
        ema_decay(preset.ema_decay),
        padding(preset.padding),
        mirror(preset.mirror),
        eval_every(preset.steps_per_checkpoint) {}

  // Where from and where to.
  std::string data, out, eval, split, weights;
  std::string program;  ///< how it was called, for the command that resumes a run
  bool resume = false;
  // What a run is defined by; a resumed run takes these from its checkpoint, and only `steps` and `threads`
  // may change.
  std::string method = "mixmatch";
  std::vector<std::string> methods{"mixmatch", "supervised"};  ///< those that the program knows
  int64_t labels = 250, validation = 1;
  int64_t steps = 0, batch = 64, unlabeled_ratio = 1;
  uint64_t seed = 1;
  std::string model = "wide_resnet", head = "random", freeze;
  std::string network_file;  ///< of torchscript:FILE, where it is now: a run's own copy; empty: FILE
  bool freeze_statistics = false;
  std::string train = "all";
  int64_t depth = 28, widen = 2, filters = 0, scales = 3;
  std::string precision = "auto";  ///< choose_device() puts the one chosen in its place
  int threads = 0;                 ///< the same; results are equal to the bit with equal numbers alone
  std::string optimizer = "adam", lr_schedule = "constant";
  int64_t schedule_steps = -1;  ///< -1: check_options() puts the steps in its place
  double learning_rate = 2e-3, backbone_rate = 1, weight_decay = 0.02, momentum = 0.9, l2 = 0;
  int64_t warmup_steps = 0;
  double lambda_u = 75;
  int64_t rampup_steps = 16384;  ///< -1: check_options() puts 40 % of the steps in its place
  std::string imbalance = "none", alignment = "none", prior, open_set = "none";
  double threshold = 0.95;
  std::string annealing = "linear";
  double entropy_weight = 0.06, radius = 6;
  double alpha = 0.75, temperature = 0.5;
  int64_t num_augmentations = 2;
  std::string mix_mode = "xxy.yxy";
  double ema_decay = 0.999;
  bool debias = true;
  int64_t padding = 4;
  bool mirror = true;
  std::string augment = "crop_flip";
  double crop_scale = 0.2, color_jitter = 0;
  std::string strong = "fixmatch";
  int64_t eval_every = 1024, log_every = 50;
  // How it is run, without changing its result.
  std::string device = "auto";
  bool prefetch = true;
  bool graph = true;  ///< on a GPU: the step as one CUDA graph
  int64_t checkpoint_every = 0;
  int64_t recalibrate = 16384;
  double target_precision = 0.95;  ///< see ConfidenceRule
  // No option: of adopt_data(), how many labeled images each class has.
  std::vector<int64_t> class_counts;
  // No option: the names of those that the command line gives (add_options()), for check_given_options().
  std::vector<std::string> given;
};

/// What an option is for.
enum class OptionRole {
  place,     ///< where from and where to
  run,       ///< defines the run: a part of its configuration that does not change when it is resumed
  progress,  ///< a part of the configuration that may change
  how        ///< how it is run, without changing its result: repeated when it is resumed
};

struct OptionText {
  const char *name, *description;
  OptionRole role = OptionRole::run;
  std::vector<std::string> methods = {};  ///< that look at it, if not all: for these alone is it offered
  /// Beside the other options as they are: why it has no effect, " with --model resnet18, …"; "" if it has.
  std::string no_effect = "";
};

/// Limits of a number, both included; names that a text must be one of.
template <class T>
struct Range {
  T least, most = std::numeric_limits<T>::max();
};
using Choice = std::vector<std::string>;
/// Names, or a file's name behind a prefix.
struct ChoiceOrFile {
  Choice names;
  std::string prefix;
};
/// A flag without a value, which makes a boolean false.
struct Off {};

namespace detail {

/// Whether a method learns from what differs between an image's augmentations.
inline bool compares_views(const std::string& method) {
  return method == "pi_model" || method == "mean_teacher" || method == "uda" || method == "fixmatch";
}

/// The methods that look at unlabeled images; those that ramp the weight of their loss; those that have a
/// GuessFilter.
inline std::vector<std::string> unlabeled_methods() {
  return {"mixmatch", "pseudo_label", "pi_model", "mean_teacher", "mixup", "ict", "vat", "uda", "fixmatch"};
}
inline std::vector<std::string> ramped_methods() {
  return {"mixmatch", "pseudo_label", "pi_model", "mean_teacher", "ict", "vat"};
}
inline std::vector<std::string> filtering_methods() { return {"mixmatch", "uda", "fixmatch"}; }

/// `reason` if there is one, else the next.
inline std::string first_reason(const std::string& reason, const std::string& next) {
  return reason.empty() ? next : reason;
}

/// Why options of the wide_resnet, of the optimiser's schedule, of batch norm, of layers that are frozen one
/// by one and of augmentation have no effect; "" where they have one.
inline std::string why_no_wide_resnet(const TrainingOptions& o) {
  return o.model == "wide_resnet" ? "" : " with --model " + o.model + ", which is no wide_resnet";
}
inline std::string why_no_schedule(const TrainingOptions& o) {
  return o.lr_schedule != "constant"                  ? ""
         : o.method == "uda" && o.annealing != "none" ? ""
         : o.method == "uda"                          ? " with --lr-schedule constant and --annealing none"
                                                      : " with --lr-schedule constant";
}
inline std::string why_no_batch_norm(const TrainingOptions& o) {
  return o.model.starts_with("vit_") ? " with --model " + o.model + ", which has no batch norm" : "";
}
inline std::string why_no_recalibration(const TrainingOptions& o) {
  return o.train == "head"     ? " with --train head, whose statistics do not move"
         : o.freeze_statistics ? " with --freeze-statistics"
                               : why_no_batch_norm(o);
}
inline std::string why_no_layers(const TrainingOptions& o) {
  return o.train == "head" ? " with --train head, which trains the last layer alone" : "";
}
inline std::string why_no_augmentation(const TrainingOptions& o) {
  return o.train == "head" ? " with --train head, for which images are not augmented; take --train all" : "";
}
inline std::string why_none_held_out(const TrainingOptions& o) {
  const bool known = !o.class_counts.empty();
  return known && o.validation == 0 ? " where no image is held out (--validation)" : "";
}
inline std::string why_no_split(const TrainingOptions& o) {
  return o.split.empty() ? "" : " with --split, which says which images are labeled and held out";
}

inline Choice model_names() {
  Choice names{"wide_resnet"};
  names.insert(names.end(), models::network_names().begin(), models::network_names().end());
  return names;
}

}  // namespace detail

/// visit(text, value, limits) for each option of the training programs, in the order of --help. All that is
/// said of an option is said here: the command line, config.json, what may change on resuming and the command
/// that resumes a run follow from it. A program with more options has an overload for its own type that
/// visits these first. `limits`: Range, Choice, Off, or nothing for texts and booleans. `Options` is a
/// TrainingOptions, const or not.
template <class Options, class Visit>
void visit_training_options(Options& o, Visit&& visit) {
  using R = OptionRole;
  using Whole = Range<int64_t>;
  using Real = Range<double>;
  const std::string no_layers = detail::why_no_layers(o), no_augmentation = detail::why_no_augmentation(o);
  const std::string no_wide_resnet = detail::why_no_wide_resnet(o), no_split = detail::why_no_split(o);
  visit(OptionText{"data", "Directory of the data set", R::place}, o.data);
  // A program whose default is 0 has a meaning for it.
  visit(OptionText{"labels", "Labeled images, class-balanced", R::run, {}, o.labels == 0 ? "" : no_split},
        o.labels, Whole{o.labels == 0 ? 0 : 1});
  visit(OptionText{"validation", "Images held out from training", R::run, {}, no_split}, o.validation,
        Whole{0});
  visit(OptionText{"split",
                   "File that says which images are labeled, as a run's split.txt, in place of --labels and "
                   "--validation",
                   R::place},
        o.split);
  visit(OptionText{"steps", "Optimiser steps", R::progress}, o.steps, Whole{1});
  visit(OptionText{"batch", "Labeled images a step"}, o.batch, Whole{1, 65536});
  visit(OptionText{"unlabeled-ratio", "Unlabeled images for each labeled one", R::run,
                   detail::unlabeled_methods()},
        o.unlabeled_ratio, Whole{1, 1024});
  visit(OptionText{"seed", "Seed of split, weights, batches, augmentation and MixUp"}, o.seed,
        Range<uint64_t>{0});
  visit(OptionText{"out", "Run directory to write", R::place}, o.out);
  visit(OptionText{"method", "How to learn from unlabeled images; supervised: from the labeled ones alone"},
        o.method, o.methods);
  visit(OptionText{"device", "Where to train", R::how}, o.device, Choice{"auto", "cpu", "cuda"});
  visit(OptionText{"precision",
                   "bf16: autocast, weights stay fp32; auto: bf16 where the processor computes in it"},
        o.precision, Choice{"auto", "fp32", "bf16"});
  visit(OptionText{"threads", "CPU threads; 0 = one a processor, at most 16", R::progress}, o.threads,
        Range<int>{0, 1024});
  visit(OptionText{"prefetch", "Read the next images on a thread of its own", R::how}, o.prefetch);
  visit(OptionText{"no-graph", "On a GPU: launch the step piece by piece, not as one CUDA graph", R::how},
        o.graph, Off{});
  visit(OptionText{"model", "Network; torchscript:FILE: one from Python, see docs/GUIDE.md"}, o.model,
        ChoiceOrFile{detail::model_names(), "torchscript:"});
  visit(OptionText{"weights",
                   "Published weights of that network to start from, as safetensors "
                   "(examples/python/convert_weights.py); a head for other classes starts anew, batch-norm "
                   "statistics go on from the file's"},
        o.weights);
  visit(
      OptionText{
          "head",
          "Last layer to start from, unless --weights has one of these classes: probe = a linear probe "
          "on the labeled images"},
      o.head, Choice{"random", "probe"});
  visit(
      OptionText{
          "freeze",
          "Layers that are not trained and keep their statistics, by their names, separated by commas; "
          "backbone = all but the last",
          R::run,
          {},
          no_layers},
      o.freeze);
  visit(OptionText{"freeze-statistics",
                   "Batch norms use their running statistics, which do not move",
                   R::run,
                   {},
                   detail::first_reason(no_layers, detail::why_no_batch_norm(o))},
        o.freeze_statistics);
  visit(OptionText{"depth", "wide_resnet: 6 n + 4 layers", R::run, {}, no_wide_resnet}, o.depth, Whole{1});
  visit(OptionText{"widen",
                   "wide_resnet: widen factor",
                   R::run,
                   {},
                   detail::first_reason(no_wide_resnet,
                                        o.filters == 0 ? "" : " with --filters, which gives the width")},
        o.widen, Whole{1});
  visit(OptionText{"filters",
                   "wide_resnet: filters of the first scale; 0 = 16 times the widen factor",
                   R::run,
                   {},
                   no_wide_resnet},
        o.filters, Whole{0});
  visit(
      OptionText{
          "scales", "wide_resnet: scales, each half the size of the one before", R::run, {}, no_wide_resnet},
      o.scales, Whole{1});
  visit(OptionText{"optimizer", "adam, or sgd with Nesterov momentum"}, o.optimizer, Choice{"adam", "sgd"});
  visit(OptionText{"lr", "Learning rate"}, o.learning_rate, Real{0});
  visit(OptionText{"backbone-rate", "Times --lr for all layers but the last", R::run, {}, no_layers},
        o.backbone_rate, Real{0});
  visit(
      OptionText{
          "lr-schedule",
          "cosine: times cos(7/16 pi t), FixMatch's, with t from 0 to 1; half_cosine: times (1 + cos(pi "
          "t)) / 2"},
      o.lr_schedule, Choice{"constant", "cosine", "half_cosine"});
  visit(OptionText{"warmup-steps", "Steps in which the learning rate rises from 0, linearly"}, o.warmup_steps,
        Whole{0});
  visit(OptionText{"schedule-steps",
                   "Length of that schedule, and of UDA's annealing; -1 = --steps",
                   R::run,
                   {},
                   detail::why_no_schedule(o)},
        o.schedule_steps, Whole{-1});
  visit(
      OptionText{
          "momentum", "Of sgd", R::run, {}, o.optimizer == "sgd" ? "" : " with --optimizer " + o.optimizer},
      o.momentum, Real{0, 1});
  visit(OptionText{"weight-decay", "Decoupled, of kernels, times the learning rate"}, o.weight_decay,
        Real{0});
  visit(OptionText{"l2", "L2 penalty on kernels, in their gradient"}, o.l2, Real{0});
  visit(OptionText{"lambda-u", "Weight of the unlabeled loss", R::run, detail::unlabeled_methods()},
        o.lambda_u, Real{0});
  visit(OptionText{"rampup-steps", "Steps until that weight; -1 = 40 % of --steps", R::run,
                   detail::ramped_methods()},
        o.rampup_steps, Whole{-1});
  visit(OptionText{"threshold",
                   "Least probability of a guessed label that is trained on",
                   R::run,
                   {"pseudo_label", "uda", "fixmatch"}},
        o.threshold, Real{0, 1});
  visit(OptionText{"annealing", "UDA: how the labeled loss is annealed", R::run, {"uda"}}, o.annealing,
        Choice{"none", "linear", "exp", "log"});
  visit(OptionText{"radius", "VAT: length of an image's perturbation", R::run, {"vat"}}, o.radius, Real{0});
  visit(OptionText{"entropy-weight", "VAT: weight of the predictions' entropy", R::run, {"vat"}},
        o.entropy_weight, Real{0});
  visit(OptionText{"alpha", "MixUp's Beta(alpha, alpha)", R::run, {"mixmatch", "mixup", "ict"}}, o.alpha,
        Real{0});
  visit(OptionText{"temperature", "Sharpening", R::run, {"mixmatch", "uda"}}, o.temperature, Real{0});
  visit(OptionText{"num-augmentations", "MixMatch: K, views of each unlabeled image", R::run, {"mixmatch"}},
        o.num_augmentations, Whole{1, 1024});
  visit(OptionText{"mix-mode", "MixMatch: what is mixed with what", R::run, {"mixmatch"}}, o.mix_mode,
        Choice{".", "xx.", ".yy", "xx.yy", "xxy.", ".yxy", "xx.yxy", "xx.yx", "xxy.yxy"});
  visit(OptionText{"ema-decay", "Of the weights' moving average"}, o.ema_decay, Real{0, 1});
  visit(OptionText{"debias",
                   "Let EMA and batch-norm statistics forget the random start sooner; matters in the first "
                   "thousands of steps only. false = as in the papers"},
        o.debias);
  visit(OptionText{"augment",
                   "crop_flip: moved by a few pixels and mirrored, for small images; resized_crop: a random "
                   "part, enlarged, and mirrored, for photographs",
                   R::run,
                   {},
                   no_augmentation},
        o.augment, Choice{"crop_flip", "resized_crop"});
  const std::string no_other = " with --augment " + o.augment;
  visit(OptionText{"padding",
                   "crop_flip: pixels of reflection before the random crop",
                   R::run,
                   {},
                   detail::first_reason(no_augmentation, o.augment == "crop_flip" ? "" : no_other)},
        o.padding, Whole{0});
  visit(OptionText{"crop-scale",
                   "resized_crop: least share of the area",
                   R::run,
                   {},
                   detail::first_reason(no_augmentation, o.augment == "resized_crop" ? "" : no_other)},
        o.crop_scale, Real{1e-6, 1});
  visit(OptionText{"mirror", "Mirror at random", R::run, {}, no_augmentation}, o.mirror);
  visit(OptionText{"color-jitter",
                   "Brightness, contrast and saturation by factors of 1 - x to 1 + x, hue by a quarter of x; "
                   "0 = none",
                   R::run,
                   {},
                   o.color_jitter > 0 ? no_augmentation : ""},
        o.color_jitter, Real{0, 2});
  visit(
      OptionText{
          "strong", "Strong views: RandAugment and cutout of which paper", R::run, {"uda", "fixmatch"}},
      o.strong, Choice{"fixmatch", "uda"});
  visit(OptionText{"eval-every", "Steps between evaluations"}, o.eval_every, Whole{1});
  visit(OptionText{"log-every", "Steps between rows of metrics.csv"}, o.log_every, Whole{1});
  visit(OptionText{"checkpoint-every", "Steps between checkpoints; 0 = at each evaluation, and each minute",
                   R::how},
        o.checkpoint_every, Whole{0});
  visit(OptionText{"recalibrate",
                   "Images for recomputed batch-norm statistics in the last evaluation; 0 = none",
                   R::how,
                   {},
                   o.recalibrate > 0 ? detail::why_no_recalibration(o) : ""},
        o.recalibrate, Whole{0});
  visit(OptionText{"target-precision",
                   "Precision that held-out images must show for predictions that do not abstain",
                   R::how,
                   {},
                   detail::why_none_held_out(o)},
        o.target_precision, Real{0, 1});
}

/// visit() for the options of the programs whose loop is train_classifier(): what is trained, and data whose
/// classes are unequal, or whose unlabeled images are of none.
template <class Options, class Visit>
void visit_train_classifier_options(Options& o, Visit&& visit) {
  using R = OptionRole;
  visit(OptionText{"train",
                   "all layers; head: the last one alone, on the features of images as they are, not "
                   "augmented, which are computed once"},
        o.train, Choice{"all", "head"});
  visit(
      OptionText{"imbalance",
                 "Labeled classes of unequal size: batches in which each comes as often, or the logarithm of "
                 "its share on its logit in the loss"},
      o.imbalance, Choice{"none", "balanced_batches", "logit_adjustment"});
  visit(
      OptionText{"alignment",
                 "Which distribution of classes guessed labels are aligned to: the labeled images', the same "
                 "for all, or --prior",
                 R::run, detail::filtering_methods()},
      o.alignment, Choice{"none", "labeled", "uniform", "prior"});
  visit(OptionText{"prior", "For --alignment prior: the classes' shares in their order, as 5,3,2", R::run,
                   detail::filtering_methods()},
        o.prior);
  visit(OptionText{"open-set", "energy: leave unlabeled images out that look like no class", R::run,
                   detail::filtering_methods()},
        o.open_set, Choice{"none", "energy"});
}

/// The overload that a program's own options have in its place.
template <class Options, class Visit>
requires std::same_as<std::remove_const_t<Options>, TrainingOptions>
void visit_options(Options& o, Visit&& visit) { visit_training_options(o, visit); }

/// What defines a run, by the names of the command line.
template <class Options>
Config config_of(const Options& o) {
  Config config;
  visit_options(o, [&config](const OptionText& text, const auto& value, const auto&...) {
    if (text.role == OptionRole::run || text.role == OptionRole::progress) {
      config.emplace_back(text.name, fmt::format("{}", value));
    }
  });
  return config;
}

/// The names of the configuration that may change when a run is resumed.
template <class Options>
std::vector<std::string> changeable_of(const Options& o) {
  std::vector<std::string> names;
  visit_options(o, [&names](const OptionText& text, const auto&...) {
    if (text.role == OptionRole::progress) {
      names.emplace_back(text.name);
    }
  });
  return names;
}

namespace detail {

/// OptionText::no_effect, or that o.method is none of those that look at it.
inline std::string why_no_effect(const OptionText& text, const TrainingOptions& o) {
  const auto& methods = text.methods;
  if (methods.empty() || std::find(methods.begin(), methods.end(), o.method) != methods.end()) {
    return text.no_effect;
  }
  std::string known;
  for (const auto& method : o.methods) {
    if (std::find(methods.begin(), methods.end(), method) != methods.end()) {
      known += (known.empty() ? "" : ", ") + method;
    }
  }
  return " with --method " + o.method + (known.empty() ? "" : ": it is for " + known);
}

}  // namespace detail

/// Throws one line at the first option that the command line gives (o.given) and that has no effect beside
/// the others. A text that is "none" or empty asks for nothing. A resumed run has the options of its start;
/// of those, how it is run alone is looked at.
template <class Options>
void check_given_options(const Options& o) {
  visit_options(o, [&o](const OptionText& text, const auto& value, const auto&...) {
    const bool given = std::find(o.given.begin(), o.given.end(), text.name) != o.given.end();
    if (!given || (o.resume && text.role != OptionRole::how)) {
      return;
    }
    const std::string shown = fmt::format("{}", value);
    if (std::is_same_v<std::decay_t<decltype(value)>, std::string> && (shown.empty() || shown == "none")) {
      return;
    }
    const std::string reason = detail::why_no_effect(text, o);
    TORCH_CHECK(reason.empty(), "--", text.name, " ", shown, " has no effect", reason);
  });
}

/// --prior as shares, float64 [num_classes]. Throws on anything but as many numbers >= 0, not all 0.
inline Tensor parse_prior(const std::string& text, int64_t num_classes) {
  std::vector<double> shares;
  size_t begin = 0;
  bool right = true;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const auto number = mixmatch::detail::parse_number<double>(text.substr(begin, end - begin));
    right = right && number.has_value() && *number >= 0 && std::isfinite(*number);
    shares.push_back(number.value_or(0));
    begin = end + 1;
  }
  right = right && std::any_of(shares.begin(), shares.end(), [](double share) { return share > 0; });
  TORCH_CHECK(right && static_cast<int64_t>(shares.size()) == num_classes, "--prior: expected the shares of ",
              num_classes, " classes, numbers >= 0 with commas between that are not all 0, got ",
              text.empty() ? "nothing" : mixmatch::detail::printable_beginning(text, 80));
  const Tensor prior = at::tensor(shares, at::kDouble);
  return prior / prior.sum();
}

/// The labeled images' shares of the classes, float64 [L]. Throws before adopt_data().
inline Tensor labeled_prior(const TrainingOptions& o) {
  TORCH_CHECK(!o.class_counts.empty(), "labeled_prior: no data was adopted (adopt_data)");
  const Tensor counts = at::tensor(o.class_counts, at::kLong).to(at::kDouble);
  return counts / counts.sum();
}

/// What --alignment and --open-set ask for.
inline GuessFilter guess_filter(const TrainingOptions& o) {
  GuessFilterOptions options;
  if (o.alignment == "labeled") {
    options.prior(labeled_prior(o));
  } else if (o.alignment == "uniform") {
    options.prior(at::ones_like(labeled_prior(o)));
  } else if (o.alignment == "prior") {
    options.prior(parse_prior(o.prior, static_cast<int64_t>(o.class_counts.size())));
  }
  return GuessFilter(options.open_set(o.open_set == "energy"));
}

inline MixMatchOptions mixmatch_options(const TrainingOptions& o) {
  return MixMatchOptions()
      .temperature(o.temperature)
      .num_augmentations(o.num_augmentations)
      .alpha(o.alpha)
      .mix_mode(parse_mix_mode(o.mix_mode));
}

inline RampedLossOptions ramped_loss_options(const TrainingOptions& o) {
  return RampedLossOptions().lambda_u(o.lambda_u).rampup_steps(o.rampup_steps);
}

/// Steps of a schedule over the whole run.
inline int64_t schedule_length(const TrainingOptions& o) {
  return std::max<int64_t>(1, o.schedule_steps < 0 ? o.steps : o.schedule_steps);
}

inline OptimizerOptions optimizer_options(const TrainingOptions& o) {
  const UpdateRule rule =
      o.optimizer == "sgd" ? UpdateRule(SgdRule{o.momentum, /*nesterov=*/true}) : UpdateRule(AdamRule{});
  auto options = OptimizerOptions(o.learning_rate).rule(rule).weight_decay(o.weight_decay).l2(o.l2);
  if (o.backbone_rate != 1) {
    options.rate_factor([factor = o.backbone_rate, head = models::head_name(o.model) + "."](
                            const std::string& name) { return name.rfind(head, 0) == 0 ? 1.0 : factor; });
  }
  if (o.lr_schedule != "constant" || o.warmup_steps > 0) {
    options.schedule([length = schedule_length(o), name = o.lr_schedule,
                      warmup = o.warmup_steps](const Tensor& step) -> Tensor {
      const Tensor decay = name == "cosine"        ? cosine_decay(step, length)
                           : name == "half_cosine" ? half_cosine_decay(step, length)
                                                   : at::ones_like(step, at::kDouble);
      return warmup > 0 ? decay * linear_rampup(step + 1, warmup) : decay;
    });
  }
  return options;
}

inline TrainStateOptions train_state_options(const TrainingOptions& o) {
  return TrainStateOptions()
      .seed(o.seed)
      .ema(EmaModelOptions().decay(o.ema_decay).warmup(o.debias))
      .optimizer(optimizer_options(o));
}

inline augment::RandomCropFlipOptions augment_options(const TrainingOptions& o) {
  return augment::RandomCropFlipOptions().padding(o.padding).mirror(o.mirror);
}

inline std::optional<augment::RandomResizedCropOptions> resized_crop_options(const TrainingOptions& o) {
  return o.augment == "resized_crop"
             ? std::optional(augment::RandomResizedCropOptions().min_scale(o.crop_scale).mirror(o.mirror))
             : std::nullopt;
}

namespace detail {

/// For features in the place of images: neither augmented nor normalised.
inline augment::RandomCropFlipOptions unchanged_features() {
  return augment::RandomCropFlipOptions().padding(0).mirror(false).normalization(
      augment::NormalizeOptions().mean({0.0}).stddev({1.0}));
}

}  // namespace detail

inline TrainerOptions trainer_options(const TrainingOptions& o) {
  const bool features = o.train == "head";
  return TrainerOptions()
      .feed(FeedOptions()
                .batch_size(o.batch)
                .unlabeled_ratio(o.unlabeled_ratio)
                .balanced(o.imbalance == "balanced_batches")
                .weak_views(o.num_augmentations)
                .seed(o.seed)
                .augmentation(features ? detail::unchanged_features() : augment_options(o))
                .resized_crop(features ? std::nullopt : resized_crop_options(o))
                .color_jitter(augment::ColorJitterOptions::of_strength(features ? 0 : o.color_jitter))
                .strong_augmentation(o.strong == "uda" ? augment::RandAugmentOptions::uda()
                                                       : augment::RandAugmentOptions::fixmatch()))
      // Published statistics are no random start to be forgotten.
      .learner(LearnerOptions().warmup(o.debias && o.weights.empty()))
      .precision(parse_precision(o.precision))
      .logit_adjustment(o.imbalance == "logit_adjustment" ? logit_adjustment(labeled_prior(o)) : Tensor())
      // TorchScript's executor looks at the host.
      .graph(o.graph && models::script_file_of(o.model).empty())
      .prefetch(o.prefetch);
}

namespace detail {

/// The command that continues the run: the data, and how it is run, which the checkpoint does not have.
template <class Options>
std::string resume_command(const Options& o) {
  using mixmatch::detail::shell_quote;
  std::string command =
      fmt::format("{}{}{} --out {} --resume", shell_quote(o.program), o.data.empty() ? "" : " --data ",
                  o.data.empty() ? "" : shell_quote(o.data), shell_quote(o.out));
  const auto how = [](const Options& options) {
    Config values;
    visit_options(options, [&](const OptionText& text, const auto& value, const auto&... limits) {
      if (text.role == OptionRole::how) {
        const bool is_flag = (std::is_same_v<decltype(limits), const Off&> || ...);
        values.emplace_back(text.name, is_flag ? (value == std::decay_t<decltype(value)>{} ? "on" : "")
                                               : fmt::format("{}", value));
      }
    });
    return values;
  };
  const Config usual = how(Options()), mine = how(o);
  for (size_t i = 0; i < mine.size(); ++i) {
    if (mine[i] != usual[i]) {
      command += fmt::format(" --{}", mine[i].first);
      command += mine[i].second == "on" ? "" : " " + shell_quote(mine[i].second);
    }
  }
  return command;
}

}  // namespace detail

/// With the errors that every program's metrics.csv has. The data's checksum joins the configuration, so that
/// a run does not go on with other images.
template <class Options>
TrainingRunOptions training_run_options(const Options& o, const TrainingData& data, torch::Device device) {
  Config config = config_of(o);
  config.emplace_back("training-data", "crc32c " + data::data_checksum(data.pool));
  return TrainingRunOptions()
      .label(o.method)
      .steps(o.steps)
      .eval_every(o.eval_every)
      .log_every(o.log_every)
      .checkpoint_every(o.checkpoint_every)
      .errors({"validation_error", "test_error", "ema_test_error"})
      .config(std::move(config))
      .changeable(changeable_of(o))
      .surroundings({{"data", o.data}, {"device", device.str()}})
      .resume_command(detail::resume_command(o));
}

inline EvaluateOptions evaluate_options(const TrainingOptions& o, torch::Device device) {
  return EvaluateOptions().device(device).precision(parse_precision(o.precision));
}

/// The device that `--device` names. Chooses the precision that `--precision auto` and the number of threads
/// that `--threads 0` leave open, once for the whole run, and prints all three: a resumed run keeps what its
/// start had chosen.
inline torch::Device choose_device(TrainingOptions& o) {
  const auto device = parse_device(o.device);
  o.threads = set_threads(o.threads);
  if (o.precision == "auto") {
    o.precision = fastest_precision(device) == at::kBFloat16 ? "bf16" : "fp32";
  }
  const int threads = at::get_num_threads();
  print_message(stdout, "device {}, {} CPU thread{}, precision {}\n", device.str(), threads,
                threads == 1 ? "" : "s", o.precision);
  return device;
}

/// Throws where o.out holds a run, which a new one would overwrite: before what may take long.
inline void check_new_run(const TrainingOptions& o) {
  std::error_code ignored;
  if (std::filesystem::exists(std::filesystem::path(o.out) / "checkpoint.pt", ignored)) {
    static_cast<void>(RunDirectory::resume(o.out));  // that it is in use is said first
    TORCH_CHECK(!std::filesystem::exists(std::filesystem::path(o.out) / "config.json", ignored), o.out,
                " already holds a run: continue it with --resume, or choose another --out");
  }
}

/// The directory of a run: that of adopt_run() where it goes on, else o.out, made for a new one, with a copy
/// of the network of torchscript:FILE, so that the run needs that file no more.
inline RunDirectory run_directory(const TrainingOptions& o, const std::optional<RunDirectory>& resumed) {
  if (resumed.has_value()) {
    return *resumed;
  }
  check_new_run(o);
  auto directory = RunDirectory::create(o.out);
  if (const auto script = models::script_file_of(o.model); !script.empty()) {
    write_file_atomically(directory.network(), mixmatch::detail::read_whole_file(script));
  }
  return directory;
}

/// Puts the numbers of the method o.method in the place of MixMatch's (presets.hpp).
inline void use_method_preset(TrainingOptions& o) {
  const auto consistency = [&o](double weight) {
    o.lambda_u = weight;
    o.rampup_steps = -1;
  };
  const auto strong = [&o](double weight, double threshold) {
    o.lambda_u = weight;
    o.rampup_steps = 0;
    o.threshold = threshold;
    o.strong = o.method;
    o.unlabeled_ratio = presets::unlabeled_ratio;
    o.optimizer = "sgd";
    o.lr_schedule = "cosine";
    o.learning_rate = presets::sgd_learning_rate;
    o.momentum = presets::sgd_momentum;
    o.l2 = presets::sgd_l2;
    o.weight_decay = 0;
  };
  if (o.method == "pseudo_label") {
    consistency(presets::pseudo_label_weight);
  } else if (o.method == "pi_model") {
    consistency(presets::pi_model_weight);
  } else if (o.method == "mean_teacher") {
    consistency(presets::mean_teacher_weight);
  } else if (o.method == "vat") {
    consistency(presets::vat_weight);
    o.radius = presets::vat_radius;
    o.entropy_weight = presets::vat_entropy_weight;
  } else if (o.method == "ict") {
    consistency(presets::ict_weight);
    o.alpha = presets::ict_alpha;
  } else if (o.method == "mixup") {
    o.lambda_u = presets::mixup_weight;
    o.rampup_steps = 0;
    o.alpha = presets::mixup_alpha;
  } else if (o.method == "uda") {
    strong(presets::uda_weight, presets::uda_threshold);
    o.temperature = presets::uda_temperature;
  } else if (o.method == "fixmatch") {
    strong(presets::fixmatch_weight, presets::fixmatch_threshold);
  }
}

/// Puts the settings of fine-tuning in the place of those for random weights, where o.weights are given.
inline void use_fine_tuning_preset(TrainingOptions& o) {
  if (o.weights.empty()) {
    return;
  }
  if (models::script_file_of(o.model).empty()) {  // a script's layers are not known
    o.head = "probe";
    o.freeze_statistics = true;
    o.backbone_rate = presets::fine_tuning_backbone_rate;
  }
  o.optimizer = "adam";
  o.learning_rate = presets::fine_tuning_learning_rate;
  o.lr_schedule = "half_cosine";
  o.warmup_steps = presets::fine_tuning_warmup;
  o.weight_decay = presets::fine_tuning_weight_decay;
  o.l2 = 0;
  o.ema_decay = presets::fine_tuning_ema_decay;
}

/// Throws on options that do not fit together or that were given and have no effect (check_given_options()),
/// before anything is read or written. Settles the ramp and the schedule that are left to the number of
/// steps, which may be another when the run is resumed.
template <class Options>
void check_options(Options& o) {
  check_given_options(o);
  if (o.rampup_steps < 0) {
    o.rampup_steps = static_cast<int64_t>(presets::consistency_rampup * static_cast<double>(o.steps));
  }
  const bool script = !models::script_file_of(o.model).empty();
  TORCH_CHECK(!script || o.head == "random", "--model ", o.model,
              " has no last layer that is known: --head must be random, got ", o.head);
  TORCH_CHECK(!script || !o.freeze_statistics, "--model ", o.model,
              " has no batch norms that are known: it cannot --freeze-statistics");
  TORCH_CHECK(!script || o.backbone_rate == 1, "--model ", o.model,
              " has no last layer that is known: --backbone-rate must be 1, got ", o.backbone_rate);
  TORCH_CHECK(!script || o.train == "all", "--model ", o.model,
              " has no last layer that is known: --train must be all, got ", o.train);
  if (o.train == "head") {
    TORCH_CHECK(!o.weights.empty(),
                "--train head needs --weights: a last layer on random features learns little");
    TORCH_CHECK(
        !detail::compares_views(o.method), "--train head: --method ", o.method,
        " learns from differences between augmentations, and features are not augmented; take --train "
        "all");
  }
  if (o.freeze_statistics || o.train == "head") {
    o.recalibrate = 0;  // there is nothing to recalibrate
  }
  TORCH_CHECK((o.alignment == "prior") == !o.prior.empty(),
              o.prior.empty() ? "--alignment prior needs --prior: the classes' shares"
                              : "--prior is for --alignment prior, got --alignment " + o.alignment);
  TORCH_CHECK(
      !o.resume || o.lr_schedule != "half_cosine" || o.schedule_steps < 0 || o.steps <= o.schedule_steps,
      "--steps ", o.steps, ": the run's learning rate has fallen to 0 at step ", o.schedule_steps,
      " (--lr-schedule half_cosine), so that it learns nothing more; start another from its weights");
  TORCH_CHECK(o.schedule_steps != 0, "--schedule-steps must be > 0, or -1, got 0");
  if (o.lr_schedule != "constant" || o.method == "uda") {
    o.schedule_steps = schedule_length(o);
  }
  TORCH_CHECK(o.learning_rate * o.weight_decay <= 1, "--lr ", o.learning_rate, " times --weight-decay ",
              o.weight_decay, " must be <= 1: the share that each step takes from the weights");
  TORCH_CHECK(o.optimizer != "sgd" || o.momentum < 1, "--momentum must be less than 1, got ", o.momentum);
  TORCH_CHECK(o.method != "vat" || o.radius > 0, "--radius must be greater than 0, got ", o.radius);
  const int64_t groups = o.num_augmentations * o.unlabeled_ratio + 1;
  TORCH_CHECK(o.method != "mixmatch" || o.batch >= groups, "--batch ", o.batch, " is less than the ", groups,
              " groups that MixMatch interleaves with --num-augmentations ", o.num_augmentations,
              " and --unlabeled-ratio ", o.unlabeled_ratio);
  RampedLoss{ramped_loss_options(o)};
}

}  // namespace mixmatch::training
