#pragma once

#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/evaluation/predict.hpp>
#include <mixmatch/model.hpp>

#include <limits>

namespace mixmatch::training {

/// Share of images in percent that the predictor, any callable `Tensor(const Tensor& images)` that returns
/// logits, puts into another class than their label. Images are normalised by the options; nothing is
/// augmented or drawn, no gradient is recorded. The predictor chooses weights and mode: EmaModel::forward
/// does both; see evaluate_model.
template <class Predictor>
double error_percent(Predictor&& predictor, const data::ImageDataset& dataset,
                     const EvaluateOptions& options = {}) {
  ProcessGroup* group = options.processes();
  Tensor labels, counted;  // where the logits are: the host waits once, at the end
  detail::for_each_logits(
      "error_percent", predictor, dataset, options,
      [&](int64_t begin, const Tensor& logits) {
        if (!labels.defined()) {
          labels = detail::to_device_in_order(dataset.labels, logits.device());
        }
        const Tensor wrong = logits.argmax(1).ne(labels.narrow(0, begin, logits.size(0))).sum();
        counted = counted.defined() ? counted + wrong : wrong;
      },
      group != nullptr ? group->rank() : 0, group != nullptr ? group->world_size() : 1);
  int64_t wrong = counted.defined() ? counted.item<int64_t>() : 0;
  if (group != nullptr) {
    wrong = group->gather(at::full({1}, wrong, at::kLong)).sum().item<int64_t>();
  }
  return 100.0 * static_cast<double>(wrong) / static_cast<double>(dataset.size());
}

/// error_percent of a model's own weights in evaluation mode; its modes are restored. NaN for an empty data
/// set, such as a validation set that is not wanted.
template <class Model>
double evaluate_model(Model& model, const data::ImageDataset& dataset, const EvaluateOptions& options = {}) {
  if (dataset.size() == 0) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  mixmatch::detail::EvaluationModeGuard evaluation(model);
  return error_percent([&](const Tensor& images) { return forward(model, images); }, dataset, options);
}

/// error_percent of a model's averaged weights; NaN for an empty data set.
template <class Model>
double evaluate_ema(EmaModel<Model>& ema, const data::ImageDataset& dataset,
                    const EvaluateOptions& options = {}) {
  if (dataset.size() == 0) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  return error_percent([&](const Tensor& images) { return ema.forward(images); }, dataset, options);
}

}  // namespace mixmatch::training
