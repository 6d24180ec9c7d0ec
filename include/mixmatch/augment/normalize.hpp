#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/detail/cpu/augment_kernel.hpp>
#include <mixmatch/detail/describe.hpp>

#include <vector>

namespace mixmatch::augment {

using torch::Tensor;

struct NormalizeOptions {
  /// Per channel, or one number for all, on the scale 0 to 1; .5 and .5 give x * 2 / 255 - 1.
  TORCH_ARG(std::vector<double>, mean) = {0.5};
  /// As mean; > 0.
  TORCH_ARG(std::vector<double>, stddev) = {0.5};
  /// Of the result: float32, bfloat16, float16 or float64. Computed in float32 (float64 for float64).
  TORCH_ARG(at::ScalarType, dtype) = at::kFloat;
};

namespace detail {

inline std::vector<double> per_channel(const char* function, const char* name,
                                       const std::vector<double>& values, int64_t channels) {
  TORCH_CHECK(values.size() == 1 || static_cast<int64_t>(values.size()) == channels, function, ": ", name,
              " must have one number or one a channel, ", channels, ", got ", values.size());
  return values.size() == 1 ? std::vector<double>(static_cast<size_t>(channels), values[0]) : values;
}

/// (x / 255 - mean) / stddev = (x - shift) / scale.
inline mixmatch::detail::PixelScale pixel_scale(const char* function, const NormalizeOptions& options,
                                                int64_t channels) {
  mixmatch::detail::PixelScale scale{per_channel(function, "mean", options.mean(), channels),
                                     per_channel(function, "stddev", options.stddev(), channels)};
  TORCH_CHECK(at::isFloatingType(options.dtype()), function, ": dtype must be floating-point, got ",
              options.dtype());
  for (const double value : scale.scale) {
    TORCH_CHECK(value > 0, function, ": stddev must be > 0, got ", value);
  }
  for (size_t c = 0; c < scale.shift.size(); ++c) {
    scale.shift[c] *= 255;
    scale.scale[c] *= 255;
  }
  return scale;
}

}  // namespace detail

/// (x / 255 - mean) / stddev of uint8 images, without augmentation: x * 2 / 255 - 1 by default.
///
/// `images`: uint8 [N, C, H, W], any strides and device. Returns options.dtype(), channels-last, in one pass
/// over memory on the CPU. Draws nothing. Throws on other dtypes and shapes. For training see
/// random_crop_flip(), which normalises too.
inline Tensor normalize(const Tensor& images, const NormalizeOptions& options = {}) {
  TORCH_CHECK(images.defined() && images.dim() == 4 && images.scalar_type() == at::kByte,
              "normalize: images must be uint8 [N, C, H, W], got ", mixmatch::detail::type_and_sizes(images));
  const auto scale = detail::pixel_scale("normalize", options, images.size(1));
  return mixmatch::detail::crop_flip(images, {}, scale, options.dtype());
}

}  // namespace mixmatch::augment
