#pragma once

#include <fmt/format.h>
#include <torch/types.h>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/evaluation/evaluate.hpp>
#include <mixmatch/evaluation/guess_chance.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/training_run.hpp>
#include <mixmatch/step/train_state.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace mixmatch::training {

/// Warns of a ramp that is shorter than it takes a model to become better than chance: where the weight of
/// the unlabeled loss has stopped rising, or the run is over, looks once at the labeled images, as they are.
///
///     RampWatch ramp(o, data, options, state.step);     // behind run.start() or run.resume()
///     while (run.running()) {
///       … run.finish_step();
///       ramp.look(run, state);
///     }
///
/// Of methods without a ramp, and where the running statistics of batch norm still hold their random start
/// (o.debias false), there is nothing to look at. Draws nothing, and changes nothing of the run.
class RampWatch {
 public:
  /// `data`, which the steps see, must outlive it; `step`: those that are done. What lies behind a step was
  /// looked at by the process that did it.
  RampWatch(const TrainingOptions& o, const TrainingData& data, const EvaluateOptions& options, int64_t step)
      : data_(&data),
        options_(options),
        ramp_(o.rampup_steps),
        end_(std::min(std::max<int64_t>(o.rampup_steps, 1), o.steps)) {
    const auto ramped = detail::ramped_methods();
    done_ = step >= end_ || o.lambda_u == 0 || !o.debias ||
            std::find(ramped.begin(), ramped.end(), o.method) == ramped.end();
  }

  /// After the steps that run.steps_until_due() asked for.
  template <class Model>
  void look(TrainingRun& run, TrainState<Model>& state) {
    if (done_ || state.step < end_) {
      return;
    }
    done_ = true;
    constexpr int64_t most = 256;  // they tell enough, and take no longer than a few steps
    const int64_t labeled = data_->split.labeled.size(0), total = std::min(labeled, most);
    const Tensor rows = data_->split.labeled.index_select(
        0, at::arange(total, data_->split.labeled.options()).mul_(labeled).div_(total, "floor"));
    const data::ImageDataset images{data_->pool.gather(rows), data_->pool.labels_of(rows, torch::kCPU), {}};
    const double error = evaluate_model(state.model, images, options_);
    const auto right = static_cast<int64_t>(std::lround(static_cast<double>(total) * (1 - error / 100)));
    const int64_t classes = data_->pool.num_classes();
    if (guesses_at_chance(right, total, classes)) {
      run.warn(fmt::format(
          "the model is no better than chance, right on {} of {} labeled images of {} classes, where {}; a "
          "smaller --lambda-u, {} or published weights (--weights) may help",
          right, total, classes, ramp_ > state.step ? "the run is over" : "lambda_u has stopped rising",
          ramp_ > state.step ? "more --steps" : "a longer --rampup-steps"));
    }
  }

 private:
  const TrainingData* data_;
  EvaluateOptions options_;
  int64_t ramp_, end_;
  bool done_ = false;
};

}  // namespace mixmatch::training
