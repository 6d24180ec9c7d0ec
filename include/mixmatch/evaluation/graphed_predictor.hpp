#pragma once

#include <torch/types.h>
#include <mixmatch/step/graphed_step.hpp>

#include <algorithm>
#include <cstdint>
#include <exception>
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
/// at each call, no waiting for the device. Weights may change between calls, where they are: memory,
/// precision and mode are those of the first call, so set the mode within the predictor. Images of any shape
/// and dtype; of the first `most_shapes` shapes a pass is captured, with memory of its own, others run as
/// they are written. So does everything on the CPU, or with `enabled` false, and what cannot be captured,
/// after a warning. Carries no gradient, draws nothing. The result of a call is overwritten by the next one
/// of the same shape. Not thread-safe.
template <class Predictor>
class GraphedPredictor {
 public:
  static constexpr size_t most_shapes = 4;

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

  /// Shapes of which a pass is captured.
  size_t num_graphs() const { return passes_.size(); }

 private:
  struct Pass {
    Tensor images;
    std::unique_ptr<GraphedStep<std::function<Tensor()>>> graphed;
  };

  /// Null: none.
  Pass* pass_of(const Tensor& images) {
    const auto found = std::find_if(passes_.begin(), passes_.end(), [&](const auto& pass) {
      return pass->images.sizes() == images.sizes() && pass->images.strides() == images.strides() &&
             pass->images.scalar_type() == images.scalar_type() && pass->images.device() == images.device();
    });
    if (found != passes_.end()) {
      return found->get();
    }
    if (passes_.size() == most_shapes || !images.is_non_overlapping_and_dense()) {
      return nullptr;
    }
    auto pass = std::make_unique<Pass>();
    pass->images = images.clone();
    try {
      pass->graphed = std::make_unique<GraphedStep<std::function<Tensor()>>>(
          [this, place = pass->images] { return predictor_(place); }, images.device());
    } catch (const std::exception& error) {
      TORCH_WARN("mixmatch: evaluation runs without a CUDA graph: ", detail::one_line_of(error));
      enabled_ = false;
      return nullptr;
    }
    passes_.push_back(std::move(pass));
    return passes_.back().get();
  }

  Predictor predictor_;
  bool enabled_;
  std::vector<std::unique_ptr<Pass>> passes_;  // after predictor_, which they call
};

}  // namespace mixmatch::training
