#pragma once

#include <fmt/format.h>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/evaluation/paired_comparison.hpp>
#include <mixmatch/evaluation/predict.hpp>
#include <mixmatch/methods/supervised.hpp>
#include <mixmatch/program/library_options.hpp>
#include <mixmatch/program/network.hpp>
#include <mixmatch/program/run_tensors.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/progress.hpp>
#include <mixmatch/step/trainer.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>

namespace mixmatch::training {

/// The line where there is nothing to compare.
inline std::string verdict_without(const std::string& reason) {
  return "verdict: whether the unlabeled images helped cannot be told: " + reason;
}

/// What a run is compared with, and what to do where that is better.
struct Baseline {
  std::string name = "supervised training", advice = "train with --method supervised";
};

/// Whether a run was worth it, in a line that begins with "verdict:": the first classifier of the comparison
/// was trained by `method`, the second is the baseline. One is called better where the exact McNemar test
/// says so at 5 %.
inline std::string verdict_text(const std::string& method, const PairedComparison& c,
                                const Baseline& baseline = {}) {
  const int64_t images = c.both + c.first_only + c.second_only + c.neither;
  if (images == 0) {
    return verdict_without("no image was held out (--validation)");
  }
  const auto percent = [images](int64_t wrong) {
    return 100 * static_cast<double>(wrong) / static_cast<double>(images);
  };
  const std::string numbers = fmt::format(
      "error {:.1f} % against {:.1f} % on {} held-out images, {:+.1f} points [{:+.1f}, {:+.1f}], p = {:.2g}",
      percent(c.second_only + c.neither), percent(c.first_only + c.neither), images, -100 * c.difference,
      -100 * c.interval.high, -100 * c.interval.low, c.p_value);
  if (c.p_value >= 0.05) {
    return fmt::format("verdict: no difference between {} and {} is shown: {}", method, baseline.name,
                       numbers);
  }
  return c.difference > 0 ? fmt::format("verdict: {} is better than {}: {}", method, baseline.name, numbers)
                          : fmt::format("verdict: {} is worse than {}, so {}: {}", method, baseline.name,
                                        baseline.advice, numbers);
}

namespace detail {

/// The classes, int64 [N], that `forward` predicts for the validation images.
template <class Forward>
Tensor held_out_classes(Forward&& forward, const TrainingOptions& o, const TrainingData& data,
                        torch::Device device) {
  return predict_probabilities(forward, data.validation, evaluate_options(o, device)).argmax(1);
}

}  // namespace detail

/// The classes, int64 [N], that the supervised baseline of a run predicts for the validation images: the same
/// network, options and seed, `steps` steps on the labeled images alone, averaged weights. Undefined where
/// it diverges. Keeps nothing; an interrupt ends the process.
template <class Options>
Tensor baseline_predictions(Options o, const TrainingData& data, torch::Device device, int64_t steps,
                            RunTensors* shared = nullptr) {
  o.method = "supervised";
  o.alignment = o.open_set = "none";
  o.resume = false;
  o.schedule_steps = o.schedule_steps == o.steps ? steps : o.schedule_steps;
  o.steps = steps;
  TrainState state(make_network(o, data, device, /*quiet=*/true, shared), train_state_options(o));
  TrainedOn seen(o, state.model, data, device, /*labeled_only=*/true, shared);
  Trainer trainer(state, methods::Supervised(), seen.data(), trainer_options(o));
  Progress progress("supervised baseline", steps);
  while (state.step < steps) {
    const auto means = trainer.run(std::min<int64_t>(o.log_every, steps - state.step));
    if (!means.problem().empty()) {
      return {};
    }
    progress.update(state.step, "");
  }
  progress.finish();
  seen.end();
  return detail::held_out_classes([&](const Tensor& images) { return state.ema.forward(images); }, o, data,
                                  device);
}

/// The classes, int64 [N], that the linear probe of the network that a run starts from predicts for the
/// validation images.
inline Tensor probe_predictions(TrainingOptions o, const TrainingData& data, torch::Device device,
                                RunTensors* shared = nullptr) {
  o.resume = false;
  auto network = make_network(o, data.pool.num_classes(), device);
  use_probe(network, data, evaluate_options(o, device), shared);
  network->eval();
  return detail::held_out_classes([&](const Tensor& images) { return network->forward(images); }, o, data,
                                  device);
}

/// The verdict on a finished run by its held-out images: against supervised training of `baseline_steps` (-1:
/// of as many steps as the run), which tells whether the unlabeled images helped, and with published weights
/// a linear probe's error beside it; a supervised run against the probe. What the run has in `shared` is not
/// computed again.
template <class Options, class State>
std::string verdict(const Options& o, const TrainingData& data, State& state, torch::Device device,
                    int64_t baseline_steps, RunTensors shared = {}) {
  if (o.processes != nullptr) {
    o.processes->meet();
  }
  const bool supervised = o.method == "supervised", probes = o.head == "probe" && !o.weights.empty();
  if ((supervised && !probes) || baseline_steps == 0) {
    return verdict_without(supervised ? "training was supervised" : "--baseline-steps is 0");
  }
  if (data.validation.size() == 0) {
    return verdict_text(o.method, {});
  }
  std::error_code ignored;
  if (!o.weights.empty() && !std::filesystem::exists(o.weights, ignored)) {
    return verdict_without(mixmatch::detail::printable(o.weights) +
                           ", from which a baseline would start, is gone");
  }
  const Tensor truth = data.validation.labels;
  const Tensor classes =
      shared.held_out_probabilities.defined()
          ? shared.held_out_probabilities.argmax(1)
          : detail::held_out_classes([&](const Tensor& images) { return state.ema.forward(images); }, o, data,
                                     device);
  const Tensor probe = probes ? probe_predictions(o, data, device, &shared) : Tensor();
  if (supervised) {
    return o.train == "head"
               ? verdict_text("training of the last layer", compare_predictions(truth, classes, probe),
                              {"a linear probe", "take fewer --steps"})
               : verdict_text("fine-tuning", compare_predictions(truth, classes, probe),
                              {"a linear probe", "train less (--train head)"});
  }
  const Tensor baseline =
      baseline_predictions(o, data, device, baseline_steps < 0 ? o.steps : baseline_steps, &shared);
  if (!baseline.defined()) {
    return verdict_without("the supervised baseline diverged");
  }
  Baseline against;
  if (!o.weights.empty()) {
    against.name += " from the same weights";
  }
  const std::string text = verdict_text(o.method, compare_predictions(truth, classes, baseline), against);
  return probe.defined() ? fmt::format("{}; a linear probe: {:.1f} %", text,
                                       100 * probe.ne(truth).to(at::kDouble).mean().item<double>())
                         : text;
}

}  // namespace mixmatch::training
