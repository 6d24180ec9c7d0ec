#pragma once

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <mixmatch/models/network.hpp>
#include <mixmatch/presets.hpp>
#include <mixmatch/program/library_options.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/ramped_loss.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

namespace mixmatch::training {

namespace detail {

inline void check_shared_batch(const TrainingOptions& o) {
  const int64_t ranks = o.processes != nullptr ? o.processes->world_size() : 1;
  TORCH_CHECK(o.batch % ranks == 0, "--batch must be a multiple of the ", ranks, " processes, got ", o.batch);
}

/// Every rank that takes a step of its own forms MixMatch's groups of its own rows.
inline void check_interleaved_groups(const TrainingOptions& o) {
  const int64_t ranks = o.processes != nullptr && o.ranks == "separate" ? o.processes->world_size() : 1;
  const int64_t groups = o.num_augmentations * o.unlabeled_ratio + 1;
  const std::string too_few =
      ranks > 1 ? fmt::format("leaves each of {} processes {} rows, less", ranks, o.batch / ranks)
                : "is less";
  TORCH_CHECK(o.method != "mixmatch" || o.batch / ranks >= groups, "--batch ", o.batch, " ", too_few,
              " than the ", groups, " groups that MixMatch interleaves with --num-augmentations ",
              o.num_augmentations, " and --unlabeled-ratio ", o.unlabeled_ratio);
}

/// OptionText::no_effect, or that o.method is none of those that look at it.
inline std::string why_no_effect(const OptionText& text, const TrainingOptions& o) {
  const auto& methods = text.methods;
  if (methods.empty() || std::find(methods.begin(), methods.end(), o.method) != methods.end()) {
    return text.no_effect;
  }
  std::string known;
  for (const auto& method : o.methods) {
    if (std::find(methods.begin(), methods.end(), method) != methods.end()) {
      known += fmt::format("{}{}", known.empty() ? ": it is for " : ", ", method);
    }
  }
  return fmt::format(" with --method {}{}", o.method, known);
}

}  // namespace detail

/// Throws one line at the first option that the command line gives (o.given) and that has no effect beside
/// the others. A text that is "none" or empty asks for nothing. A resumed run has the options of its start:
/// those that define it are not looked at.
template <class Options>
void check_given_options(const Options& o) {
  visit_options(o, [&o](const OptionText& text, const auto& value, const auto&...) {
    const bool given = std::find(o.given.begin(), o.given.end(), text.name) != o.given.end();
    if (!given || (o.resume && text.role == OptionRole::run)) {
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

/// Throws on options that do not fit together or that were given and have no effect (check_given_options()),
/// before anything is read or written. Settles the ramp and the schedule that are left to the number of
/// steps, which may be another when the run is resumed.
template <class Options>
void check_options(Options& o) {
  detail::check_shared_batch(o);
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
  TORCH_CHECK(o.optimizer == "adam" || o.momentum < 1, "--momentum must be less than 1, got ", o.momentum);
  TORCH_CHECK(o.method != "vat" || o.radius > 0, "--radius must be greater than 0, got ", o.radius);
  detail::check_interleaved_groups(o);
  TORCH_CHECK(!o.deterministic || !o.measure_convolutions,
              "--deterministic and --measure-convolutions exclude each other");
  RampedLoss{ramped_loss_options(o)};
}

}  // namespace mixmatch::training
