#pragma once

#include <fmt/format.h>
#include <mixmatch/distributed/process_group.hpp>
#include <mixmatch/models/network.hpp>
#include <mixmatch/presets.hpp>
#include <mixmatch/run/config.hpp>

#include <concepts>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace mixmatch::training {

/// What the training programs can be told, with a preset's numbers as defaults; command_line.hpp makes
/// options of it. A plain struct: programs of one's own add to it what they need. Errors of program/ speak of
/// these options as the command line does.
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
  /// Of several processes: the group (join_processes()), and how they share a step.
  ProcessGroup* processes = nullptr;
  std::string launcher;  ///< no option: what started this process as one of several, or as the only one
  std::string ranks = "joint";
  bool sync_batch_norm = false;
  int64_t check_replicas = 1000;
  double timeout = 60;
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
  bool graph = true;    ///< on a GPU: steps and evaluations as CUDA graphs
  bool overlap = true;  ///< on a GPU: weight gradients on a second stream
  bool measure_convolutions = false, deterministic = false;
  int64_t checkpoint_every = 0;
  int64_t recalibrate = 16384;
  bool test_time_flips = false;
  double target_precision = 0.95;  ///< see ConfidenceRule
  // No option: of adopt_data(), how many labeled images each class has.
  std::vector<int64_t> class_counts;
  std::string data_checksum;  ///< the same, of the training images
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
/// One that makes it true.
struct On {};

namespace detail {

/// For options of several processes.
inline std::string why_one_process(const TrainingOptions& o) {
  return o.processes == nullptr && o.launcher.empty()
             ? " in one process that no launcher (torchrun, mpirun, srun) has started"
             : "";
}

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
  return o.model == "wide_resnet" ? "" : fmt::format(" with --model {}, which is no wide_resnet", o.model);
}
inline std::string why_no_widen(const TrainingOptions& o) {
  return first_reason(
      why_no_wide_resnet(o),
      o.filters == 0 ? "" : fmt::format(" with --filters {}, which gives the width", o.filters));
}
inline std::string why_no_schedule(const TrainingOptions& o) {
  return o.lr_schedule != "constant"                  ? ""
         : o.method == "uda" && o.annealing != "none" ? ""
         : o.method == "uda"                          ? " with --lr-schedule constant and --annealing none"
                                                      : " with --lr-schedule constant";
}
inline std::string why_no_momentum(const TrainingOptions& o) {
  return o.optimizer != "adam" ? "" : fmt::format(" with --optimizer {}", o.optimizer);
}
inline std::string why_no_batch_norm(const TrainingOptions& o) {
  return o.model.starts_with("vit_") ? fmt::format(" with --model {}, which has no batch norm", o.model) : "";
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
/// The same of an option of --augment NAME.
inline std::string why_no_augmentation(const TrainingOptions& o, const char* name) {
  return first_reason(why_no_augmentation(o),
                      o.augment == name ? "" : fmt::format(" with --augment {}", o.augment));
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
  visit(OptionText{"no-graph", "On a GPU: launch steps and evaluations piece by piece, not as CUDA graphs",
                   R::how},
        o.graph, Off{});
  visit(OptionText{"no-overlap",
                   "On a GPU in bf16: weight gradients after the other gradients, not beside them", R::how},
        o.overlap, Off{});
  visit(OptionText{"measure-convolutions",
                   "On a GPU: the fastest convolutions, measured before the graph is captured, in place of "
                   "cuDNN's rule; a resumed run may then differ in rounding",
                   R::how},
        o.measure_convolutions, On{});
  visit(
      OptionText{"deterministic", "On a GPU: only convolutions of cuDNN's that add up in one order", R::how},
      o.deterministic, On{});
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
  visit(OptionText{"widen", "wide_resnet: widen factor", R::run, {}, detail::why_no_widen(o)}, o.widen,
        Whole{1});
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
  visit(
      OptionText{
          "optimizer",
          "adam; sgd with Nesterov momentum; muon: kernels by orthogonalised momentum, the rest by adam"},
      o.optimizer, Choice{"adam", "sgd", "muon"});
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
  visit(OptionText{"momentum", "Of sgd and muon", R::run, {}, detail::why_no_momentum(o)}, o.momentum,
        Real{0, 1});
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
  visit(OptionText{"padding",
                   "crop_flip: pixels of reflection before the random crop",
                   R::run,
                   {},
                   detail::why_no_augmentation(o, "crop_flip")},
        o.padding, Whole{0});
  visit(OptionText{"crop-scale",
                   "resized_crop: least share of the area",
                   R::run,
                   {},
                   detail::why_no_augmentation(o, "resized_crop")},
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
  visit(
      OptionText{
          "test-time-flips",
          "Give the last test error again, with each image's and its mirror image's probabilities averaged",
          R::how,
          {},
          o.train == "head" ? " with --train head, whose images are features" : ""},
      o.test_time_flips, On{});
  visit(
      OptionText{"ranks",
                 "Of several processes, joint: they share one step, as if one process did it; separate: each "
                 "takes a step of its own with its part of the batch, and their gradients are averaged",
                 R::progress,
                 {},
                 detail::why_one_process(o)},
      o.ranks, Choice{"joint", "separate"});
  visit(OptionText{"sync-batch-norm",
                   "Batch norms normalise over the rows of all processes",
                   R::progress,
                   {},
                   detail::first_reason(detail::why_one_process(o), detail::why_no_recalibration(o))},
        o.sync_batch_norm, On{});
  visit(OptionText{"check-replicas",
                   "Steps between checks that all processes have the same weights; 0 = at the start alone",
                   R::how,
                   {},
                   detail::why_one_process(o)},
        o.check_replicas, Whole{0});
  visit(
      OptionText{
          "timeout", "Seconds that processes wait for each other", R::how, {}, detail::why_one_process(o)},
      o.timeout, Real{1, 86400});
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

}  // namespace mixmatch::training
