#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/detail/cpu/augment_kernel.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/pixel_types.hpp>
#include <mixmatch/detail/version.hpp>

#include <cmath>
#include <optional>
#include <vector>

namespace mixmatch::augment {

using torch::Tensor;

struct NormalizeOptions {
  /// The value that is 1 for mean and stddev; by default 255 for uint8 images, 65535 for uint16, 1 for
  /// others.
  TORCH_ARG(std::optional<double>, scale) = std::nullopt;
  /// Per channel, or one number for all, on the scale 0 to 1; .5 and .5 give x * 2 / 255 - 1 of uint8.
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

/// (x / 255 - mean) / stddev = (x - shift) / scale, with another number for 255 where the options say so or
/// the images are of another type.
inline mixmatch::detail::PixelScale pixel_scale(const char* function, const NormalizeOptions& options,
                                                int64_t channels, at::ScalarType type = at::kByte) {
  const double one = options.scale().value_or(type == at::kByte                   ? 255.0
                                              : mixmatch::detail::is_uint16(type) ? 65535.0
                                                                                  : 1.0);
  TORCH_CHECK(one > 0 && std::isfinite(one), function, ": scale must be a finite number > 0, got ", one);
  mixmatch::detail::PixelScale scale{per_channel(function, "mean", options.mean(), channels),
                                     per_channel(function, "stddev", options.stddev(), channels)};
  TORCH_CHECK(at::isFloatingType(options.dtype()), function, ": dtype must be floating-point, got ",
              options.dtype());
  for (const double value : scale.scale) {
    TORCH_CHECK(value > 0, function, ": stddev must be > 0, got ", value);
  }
  for (size_t c = 0; c < scale.shift.size(); ++c) {
    scale.shift[c] *= one;
    scale.scale[c] *= one;
  }
  return scale;
}

}  // namespace detail

/// (x / scale - mean) / stddev, without augmentation: x * 2 / 255 - 1 of uint8 images by default.
///
/// `images`: uint8, uint16 (LibTorch 2.3 and newer; before that as int32, with scale(65535)), int16, int32 or
/// floating-point [N, C, H, W], any strides and device. Returns options.dtype(), channels-last, of uint8 in
/// one pass over memory on the CPU. Differentiable in floating-point images. Draws nothing. Throws on other
/// dtypes and shapes. For training see random_crop_flip(), which normalises too.
inline Tensor normalize(const Tensor& images, const NormalizeOptions& options = {}) {
  TORCH_CHECK(images.defined() && images.dim() == 4 && mixmatch::detail::is_pixel_type(images.scalar_type()),
              "normalize: images must be ", mixmatch::detail::pixel_type_names, " [N, C, H, W], got ",
              mixmatch::detail::type_and_sizes(images));
  const auto scale = detail::pixel_scale("normalize", options, images.size(1), images.scalar_type());
  if (images.scalar_type() == at::kByte) {
    return mixmatch::detail::crop_flip(images, {}, scale, options.dtype());
  }
  return mixmatch::detail::scale_pixels_composite(images, scale, options.dtype());
}

}  // namespace mixmatch::augment
