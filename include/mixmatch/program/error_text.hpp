#pragma once

#include <fmt/format.h>
#include <mixmatch/evaluation/proportion.hpp>

#include <cmath>
#include <cstdint>
#include <string>

namespace mixmatch::training {

/// The 95 % interval (wilson_interval) of an error in percent of so many images, in percent; NaN for an error
/// that is NaN.
inline Interval error_interval(double error, int64_t images) {
  if (std::isnan(error)) {
    return {error, error};
  }
  const auto interval = wilson_interval(std::llround(error / 100 * static_cast<double>(images)), images);
  return {100 * interval.low, 100 * interval.high};
}

/// An error as programs print it, with that interval: "12.50 % [5.46, 26.11]".
inline std::string error_text(double error, int64_t images) {
  const auto interval = error_interval(error, images);
  return fmt::format("{:.2f} % [{:.2f}, {:.2f}]", error, interval.low, interval.high);
}

}  // namespace mixmatch::training
