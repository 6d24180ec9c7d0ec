#pragma once

#include <torch/types.h>
#include <mixmatch/detail/version.hpp>
#include <mixmatch/step/graphed_step.hpp>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// A predictor whose pass is captured in a CUDA graph at the first images of a shape, and replayed from then
/// on: for a network that is evaluated again and again while it trains.
///
///     training::GraphedPredictor averaged([&](const Tensor& images) { return ema.forward(images); });
///     while (…) {
///       … steps …
///       const double error = training::error_percent(averaged, test, options);
///     }
///
/// The predictor is any callable `Tensor(const Tensor& images)` that a GraphedStep can capture: the same work
/// at each call, no waiting for the device. Weights may change between calls, but stay where they are in
/// memory; the mode is to be set within the predictor.
///
/// images: [B, C, ...], any dtype and device. A pass is captured for each of the first `most_shapes` shapes,
/// with device memory of its own. Other passes run as they are written: those of more than `most_pixels`
/// pixels, which cost more than their launches, all on the CPU, and all with `enabled` false. Carries no
/// gradient, draws nothing. The result of a call is overwritten by the next one of the same shape. Throws as
/// GraphedStep does where a pass cannot be captured. Not thread-safe.
template <class Predictor>
class GraphedPredictor {
 public:
  static constexpr size_t most_shapes = 4;
  static constexpr int64_t most_pixels = 4 << 20;

  explicit GraphedPredictor(Predictor predictor, bool enabled = true)
      : predictor_(std::move(predictor)), enabled_(enabled) {}
  GraphedPredictor(const GraphedPredictor&) = delete;
  GraphedPredictor& operator=(const GraphedPredictor&) = delete;

  Tensor operator()(const Tensor& images) {
    const torch::NoGradGuard no_grad;
    Pass* pass = enabled_ && images.is_cuda() ? pass_of(images) : nullptr;
    if (pass == nullptr) {
      return predictor_(images);
    }
    pass->images.copy_(images);
    return (*pass->graphed)();
  }

  /// Passes that are captured.
  size_t num_graphs() const { return passes_.size(); }

 private:
  struct Pass {
    Tensor images;
    mixmatch::detail::AutocastState autocast;
    std::unique_ptr<GraphedStep<std::function<Tensor()>>> graphed;
  };

  /// Null: none.
  Pass* pass_of(const Tensor& images) {
    const auto autocast = mixmatch::detail::autocast_state(images.device().type());
    const auto found = std::find_if(passes_.begin(), passes_.end(), [&](const auto& pass) {
      return pass->autocast.enabled == autocast.enabled && pass->autocast.dtype == autocast.dtype &&
             pass->images.sizes() == images.sizes() && pass->images.strides() == images.strides() &&
             pass->images.scalar_type() == images.scalar_type() && pass->images.device() == images.device();
    });
    if (found != passes_.end()) {
      return found->get();
    }
    if (passes_.size() == most_shapes || !images.is_non_overlapping_and_dense() ||
        images.numel() > most_pixels * images.size(1)) {
      return nullptr;
    }
    auto pass = std::make_unique<Pass>();
    pass->images = images.clone();
    pass->autocast = autocast;
    pass->graphed = std::make_unique<GraphedStep<std::function<Tensor()>>>(
        [this, place = pass->images] { return predictor_(place); }, images.device());
    passes_.push_back(std::move(pass));
    return passes_.back().get();
  }

  Predictor predictor_;
  bool enabled_;
  std::vector<std::unique_ptr<Pass>> passes_;  // after predictor_, which they call
};

}  // namespace mixmatch::training
