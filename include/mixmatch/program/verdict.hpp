#pragma once

#include <fmt/format.h>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/evaluation/paired_comparison.hpp>
#include <mixmatch/evaluation/predict.hpp>
#include <mixmatch/methods/supervised.hpp>
#include <mixmatch/program/network.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/progress.hpp>
#include <mixmatch/step/trainer.hpp>

#include <algorithm>
#include <cstdint>
#include <string>

namespace mixmatch::training {

/// The line where there is nothing to compare.
inline std::string verdict_without(const std::string& reason) {
  return "verdict: whether the unlabeled images helped cannot be told: " + reason;
}

/// Whether the unlabeled images helped, in a line that begins with "verdict:": the first classifier of the
/// comparison was trained by `method`, the second on the labeled images alone. One is called better where the
/// exact McNemar test says so at 5 %.
inline std::string verdict_text(const std::string& method, const PairedComparison& c) {
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
    return fmt::format("verdict: no difference between {} and supervised training is shown: {}", method,
                       numbers);
  }
  return c.difference > 0
             ? fmt::format("verdict: {} is better than supervised training: {}", method, numbers)
             : fmt::format(
                   "verdict: {} is worse than supervised training, so train with --method supervised: {}",
                   method, numbers);
}

/// The classes, int64 [N], that the supervised baseline of a run predicts for the validation images: the same
/// network, options and seed, `steps` steps on the labeled images alone, averaged weights. Undefined where
/// it diverges. Keeps nothing; an interrupt ends the process.
template <class Options>
Tensor baseline_predictions(Options o, const TrainingData& data, torch::Device device, int64_t steps) {
  o.method = "supervised";
  o.resume = false;
  o.schedule_steps = o.schedule_steps == o.steps ? steps : o.schedule_steps;
  o.steps = steps;
  TrainState state(make_network(o, data, device, /*quiet=*/true), train_state_options(o));
  Trainer trainer(state, methods::Supervised(), data, trainer_options(o));
  Progress progress("supervised baseline", steps);
  while (state.step < steps) {
    const auto means = trainer.run(std::min<int64_t>(o.log_every, steps - state.step));
    if (!means.problem().empty()) {
      return {};
    }
    progress.update(state.step, "");
  }
  progress.finish();
  return predict_probabilities([&](const Tensor& images) { return state.ema.forward(images); },
                               data.validation.images, evaluate_options(o, device))
      .argmax(1);
}

}  // namespace mixmatch::training
