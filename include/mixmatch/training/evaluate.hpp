#pragma once

#include <mixmatch/augment/normalize.hpp>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/training/precision.hpp>

#include <algorithm>
#include <optional>

namespace mixmatch::training {

struct EvaluateOptions {
  TORCH_ARG(int64_t, batch_size) = 250;
  TORCH_ARG(at::ScalarType, precision) = at::kFloat;
  TORCH_ARG(torch::Device, device) = torch::kCPU;
};

/// Share of images in percent that the predictor, any callable `Tensor(const Tensor& images)` that returns
/// logits, puts into another class than their label. Images are normalised to [-1, 1]; nothing is augmented
/// or drawn, no gradient is recorded. The predictor chooses weights and mode: EmaModel::forward does both;
/// see evaluate_model.
template <class Predictor>
double error_percent(Predictor&& predictor, const data::ImageDataset& dataset,
                     const EvaluateOptions& options = {}) {
  TORCH_CHECK(dataset.size() > 0, "error_percent: the data set holds no images");
  TORCH_CHECK(options.batch_size() > 0, "error_percent: batch_size must be > 0, got ", options.batch_size());
  torch::NoGradGuard no_grad;
  Autocast autocast(options.device(), options.precision());
  int64_t wrong = 0;
  for (int64_t begin = 0; begin < dataset.size(); begin += options.batch_size()) {
    const int64_t count = std::min(options.batch_size(), dataset.size() - begin);
    const Tensor rows = dataset.gather(at::arange(begin, begin + count, at::kLong));
    const Tensor images = augment::normalize(rows.to(options.device()));
    const Tensor predicted = predictor(images).argmax(1).to(torch::kCPU);
    wrong += predicted.ne(dataset.labels.narrow(0, begin, count)).sum().template item<int64_t>();
  }
  return 100.0 * static_cast<double>(wrong) / static_cast<double>(dataset.size());
}

/// error_percent of a model's own weights in evaluation mode; its modes are restored.
template <class Model>
double evaluate_model(Model& model, const data::ImageDataset& dataset, const EvaluateOptions& options = {}) {
  mixmatch::detail::EvaluationModeGuard evaluation(model);
  return error_percent([&](const Tensor& images) { return forward(model, images); }, dataset, options);
}

}  // namespace mixmatch::training
