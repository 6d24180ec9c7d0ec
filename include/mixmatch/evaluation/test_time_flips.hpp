#pragma once

#include <torch/types.h>
#include <mixmatch/guess_labels.hpp>

#include <utility>

namespace mixmatch::training {

/// A predictor's answer to an image and to its mirror image, averaged, in the place of its logits:
///
///     log((softmax(f(x)) + softmax(f(mirror x))) / 2),    float32 [B, L]
///
///     training::error_percent(training::with_test_time_flips(predictor), dataset, options);
///
/// For error_percent() and predict_probabilities(), whose softmax and arg-max are then the mean's. Calls the
/// predictor twice on [B, C, H, W], of any device; draws nothing. An error with it is that of a predictor of
/// twice the cost, to be named so: papers on semi-supervised learning report errors without. Of images whose
/// mirror image is another class, such as digits, it is worse.
template <class Predictor>
auto with_test_time_flips(Predictor&& predictor) {
  return [predictor = std::forward<Predictor>(predictor)](const torch::Tensor& images) mutable {
    const auto probabilities = [&](const torch::Tensor& views) {
      return torch::softmax(mixmatch::detail::float_logits(predictor(views)), 1);
    };
    const torch::Tensor straight = probabilities(images);
    return straight.add(probabilities(images.flip(3))).div_(2).log_();
  };
}

}  // namespace mixmatch::training
