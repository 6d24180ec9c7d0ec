#pragma once

#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/evaluation/evaluate.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/step/graphed_predictor.hpp>
#include <mixmatch/step/train_state.hpp>

#include <functional>
#include <limits>
#include <vector>

namespace mixmatch::training {

/// The errors of a model that trains, measured again and again. On a GPU the passes are captured in CUDA
/// graphs at the first evaluation and replayed from then on (GraphedPredictor). With `graph` false, in
/// several processes, for a bare torch::jit::Module and on the CPU they run as they are written.
///
///     training::RunEvaluation evaluation(state, training::EvaluateOptions().device(device));
///     while (run.running()) {
///       … steps …
///       run.record_errors(evaluation(validation, test));
///     }
///
/// `state` must outlive it, and its weights and averages stay where they are in memory. The first evaluation
/// on a GPU does three passes more for each shape; the graphs' memory is free again when this goes.
template <ModuleModel Model>
class RunEvaluation {
 public:
  explicit RunEvaluation(TrainState<Model>& state, const EvaluateOptions& options = {}, bool graph = true)
      : options_(options),
        raw_(
            [&state](const Tensor& images) {
              const mixmatch::detail::EvaluationModeGuard evaluation(state.model);
              return forward(state.model, images);
            },
            captures(options, graph)),
        averaged_([&state](const Tensor& images) { return state.ema.forward(images); },
                  captures(options, graph)) {}

  /// Errors in percent for TrainingRun::record_errors, in the columns of training_run_options(): validation
  /// (averaged weights), test (raw weights), test (averaged weights); NaN for an empty set.
  std::vector<double> operator()(const data::ImageDataset& validation, const data::ImageDataset& test) {
    return {error_of(averaged_, validation), error_of(raw_, test), error_of(averaged_, test)};
  }

  /// The averaged weights' logits of normalised images, as a predictor: a result is overwritten by the next
  /// one of the same shape, by those of operator() too.
  Tensor averaged(const Tensor& images) { return averaged_(images); }

  /// As given to the constructor.
  const EvaluateOptions& options() const { return options_; }

 private:
  using Predictor = GraphedPredictor<std::function<Tensor(const Tensor&)>>;

  static bool captures(const EvaluateOptions& options, bool graph) {
    return graph && options.processes() == nullptr && mixmatch::detail::is_capturable_model<Model>;
  }

  double error_of(Predictor& predictor, const data::ImageDataset& dataset) {
    return dataset.size() == 0 ? std::numeric_limits<double>::quiet_NaN()
                               : error_percent(predictor, dataset, options_);
  }

  EvaluateOptions options_;
  Predictor raw_, averaged_;
};

}  // namespace mixmatch::training
