#pragma once

#include <c10/util/Exception.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace mixmatch {

// Schedules are plain functions of the optimiser step.

namespace detail {

inline double progress(const char* function, const char* argument, int64_t step, int64_t length) {
  TORCH_CHECK(length >= 0, function, ": ", argument, " must be >= 0, got ", length);
  if (length == 0) {
    return 1.0;
  }
  return std::clamp(static_cast<double>(step) / static_cast<double>(length), 0.0, 1.0);
}

}  // namespace detail

/// clamp(step / rampup_steps, 0, 1): MixMatch's ramp of lambda_u. rampup_steps = 0 gives 1 at once.
inline double linear_rampup(int64_t step, int64_t rampup_steps) {
  return detail::progress("linear_rampup", "rampup_steps", step, rampup_steps);
}

/// The same of a step counter on a device, int64 []: float64 [] there, without waiting for it, so that a
/// captured step (training::GraphedStep) ramps at each replay.
inline torch::Tensor linear_rampup(const torch::Tensor& step, int64_t rampup_steps) {
  TORCH_CHECK(rampup_steps >= 0, "linear_rampup: rampup_steps must be >= 0, got ", rampup_steps);
  const torch::Tensor now = step.to(at::kDouble);
  return rampup_steps == 0 ? torch::ones_like(now) : (now / static_cast<double>(rampup_steps)).clamp_(0, 1);
}

/// exp(-5 (1 - t)^2) with t = clamp(step / rampup_steps, 0, 1): the ramp of Pi-Model and Mean Teacher (arXiv
/// 1703.01780). Starts at exp(-5), not at 0.
inline double sigmoid_rampup(int64_t step, int64_t rampup_steps) {
  const double rest = 1.0 - detail::progress("sigmoid_rampup", "rampup_steps", step, rampup_steps);
  return std::exp(-5.0 * rest * rest);
}

/// cos(7 pi t / 16) with t = clamp(step / total_steps, 0, 1): FixMatch's factor on the learning rate (arXiv
/// 2001.07685). Ends near .195, not at 0.
inline double cosine_decay(int64_t step, int64_t total_steps) {
  constexpr double pi = 3.14159265358979323846;
  TORCH_CHECK(total_steps > 0, "cosine_decay: total_steps must be > 0, got ", total_steps);
  return std::cos(7.0 * pi / 16.0 * detail::progress("cosine_decay", "total_steps", step, total_steps));
}

/// The same of a step counter on a device, int64 []: float64 [] there, without waiting for it.
inline torch::Tensor cosine_decay(const torch::Tensor& step, int64_t total_steps) {
  constexpr double pi = 3.14159265358979323846;
  TORCH_CHECK(total_steps > 0, "cosine_decay: total_steps must be > 0, got ", total_steps);
  return (step.to(at::kDouble) / static_cast<double>(total_steps)).clamp_(0, 1).mul_(7.0 * pi / 16.0).cos_();
}

/// (1 + cos(pi t)) / 2 with t = clamp(step / total_steps, 0, 1): from 1 to 0, as fine-tuning uses it (SGDR
/// without restarts, arXiv 1608.03983).
inline double half_cosine_decay(int64_t step, int64_t total_steps) {
  constexpr double pi = 3.14159265358979323846;
  TORCH_CHECK(total_steps > 0, "half_cosine_decay: total_steps must be > 0, got ", total_steps);
  return (1.0 + std::cos(pi * detail::progress("half_cosine_decay", "total_steps", step, total_steps))) / 2;
}

/// The same of a step counter on a device, int64 []: float64 [] there, without waiting for it.
inline torch::Tensor half_cosine_decay(const torch::Tensor& step, int64_t total_steps) {
  constexpr double pi = 3.14159265358979323846;
  TORCH_CHECK(total_steps > 0, "half_cosine_decay: total_steps must be > 0, got ", total_steps);
  const torch::Tensor t = (step.to(at::kDouble) / static_cast<double>(total_steps)).clamp_(0, 1);
  return t.mul_(pi).cos_().add_(1).div_(2);
}

}  // namespace mixmatch
