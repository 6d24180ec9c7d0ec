#pragma once

#include <torch/arg.h>
#include <mixmatch/augment/normalize.hpp>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/distributed/process_group.hpp>
#include <mixmatch/guess_labels.hpp>
#include <mixmatch/nn/precision.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

namespace mixmatch::training {

struct EvaluateOptions {
  /// Images of a forward pass; on a GPU more where they are small, as many as 1,000 of 32x32 have pixels, so
  /// that the passes and not their launches take the time.
  TORCH_ARG(int64_t, batch_size) = 250;
  TORCH_ARG(at::ScalarType, precision) = at::kFloat;
  TORCH_ARG(torch::Device, device) = torch::kCPU;
  /// What the predictor gets of the images; of uint8 ones values in [-1, 1] by default.
  TORCH_ARG(augment::NormalizeOptions, normalization) = {};
  /// Processes that share the batches of error_percent(), evaluate_model() and evaluate_ema(), which all of
  /// them call: every one has the same result. Null: this one has all.
  TORCH_ARG(std::add_pointer_t<ProcessGroup>, processes) = nullptr;
};

namespace detail {

/// From the host's memory to a GPU without waiting for what the GPU has still to do.
inline Tensor to_device_in_order(const Tensor& tensor, torch::Device device) {
  return tensor.is_cpu() && device.is_cuda() ? tensor.pin_memory().to(device, /*non_blocking=*/true)
                                             : tensor.to(device);
}

/// Images of a pass.
inline int64_t evaluation_batch_size(const EvaluateOptions& options, const data::ImageDataset& dataset) {
  if (!options.device().is_cuda()) {
    return options.batch_size();
  }
  const auto sizes = dataset.image_sizes();
  int64_t pixels = 1;
  for (size_t i = 1; i < sizes.size(); ++i) {
    pixels *= std::max<int64_t>(1, sizes[i]);
  }
  return std::max(options.batch_size(), 1000 * 32 * 32 / pixels);
}

/// consume(first, logits [B, L]) for each batch of images in order, without gradient; with several `ranks`
/// for every so many-th batch, from batch `rank` on.
template <class Predictor, class Consume>
void for_each_logits(const std::string& function, Predictor& predictor, const data::ImageDataset& dataset,
                     const EvaluateOptions& options, Consume&& consume, int64_t rank = 0, int64_t ranks = 1) {
  TORCH_CHECK(dataset.size() > 0, function, ": the data set holds no images");
  TORCH_CHECK(options.batch_size() > 0, function, ": batch_size must be > 0, got ", options.batch_size());
  torch::NoGradGuard no_grad;
  Autocast autocast(options.device(), options.precision());
  const int64_t batch = evaluation_batch_size(options, dataset);
  for (int64_t begin = rank * batch; begin < dataset.size(); begin += ranks * batch) {
    const int64_t count = std::min(batch, dataset.size() - begin);
    const Tensor images =
        to_device_in_order(dataset.gather(at::arange(begin, begin + count, at::kLong)), options.device());
    const Tensor logits = predictor(augment::normalize(images, options.normalization()));
    mixmatch::detail::check_logits(function.c_str(), logits);
    TORCH_CHECK(logits.size(0) == count, function, ": the predictor must return one row an image, got ",
                logits.sizes(), " for ", count, " images");
    consume(begin, logits);
  }
}

/// transform(output) of every batch, one below the other, float32 [N, ...] on the CPU.
template <class Predictor, class Transform>
Tensor collect_outputs(const std::string& function, Predictor& predictor, const data::ImageDataset& dataset,
                       const EvaluateOptions& options, Transform&& transform) {
  Tensor all;
  for_each_logits(function, predictor, dataset, options, [&](int64_t begin, const Tensor& output) {
    if (!all.defined()) {
      all = at::empty({dataset.size(), output.size(1)}, at::kFloat);
    }
    TORCH_CHECK(output.size(1) == all.size(1), function, ": the predictor returned ", all.size(1),
                " columns for the first batch and ", output.size(1), " for a later one");
    all.narrow(0, begin, output.size(0)).copy_(transform(output));
  });
  return all;
}

}  // namespace detail

/// softmax(logits) of every image, float32 [N, L] on the CPU: row n sums to 1.
///
/// `dataset`: N >= 1 images; labels are not looked at. The predictor is any callable `Tensor(const Tensor&
/// images)` that returns logits [B, L]; it gets images normalised by options.normalization(), a batch at a
/// time, on options.device(). Nothing is augmented or drawn, no gradient is recorded. The predictor chooses
/// weights and mode: EmaModel::forward does both. Throws on an empty set, batch_size < 1, or logits of
/// another shape. See confusion_matrix and most_confident_errors for what to do with it.
template <class Predictor>
Tensor predict_probabilities(Predictor&& predictor, const data::ImageDataset& dataset,
                             const EvaluateOptions& options = {}) {
  return detail::collect_outputs(
      "predict_probabilities", predictor, dataset, options,
      [](const Tensor& logits) { return torch::softmax(mixmatch::detail::float_logits(logits), 1); });
}

/// The same for images alone, [N, C, H, W] as an ImageDataset has them.
template <class Predictor>
Tensor predict_probabilities(Predictor&& predictor, const Tensor& images,
                             const EvaluateOptions& options = {}) {
  return predict_probabilities(predictor, data::ImageDataset{images, {}, {}}, options);
}

/// extract(images) of every image, float32 [N, D] on the CPU: a network's features, say, for
/// fit_linear_probe(). Arguments as predict_probabilities'; `extract` returns [B, D].
template <class Extractor>
Tensor extract_features(Extractor&& extract, const data::ImageDataset& dataset,
                        const EvaluateOptions& options = {}) {
  return detail::collect_outputs("extract_features", extract, dataset, options,
                                 [](const Tensor& features) { return features; });
}

}  // namespace mixmatch::training
