#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/random.hpp>
#include <mixmatch/detail/version.hpp>

#include <algorithm>
#include <optional>

namespace mixmatch::augment {

using torch::Tensor;

struct CutoutOptions {
  /// Side of the square as a share of the image's shorter side, rounded down to pixels: 16 of 32. In [0, 2].
  TORCH_ARG(double, side) = 0.5;
  /// The square's value: grey for uint8 images; 0 is grey for images in [-1, 1].
  TORCH_ARG(double, fill) = 127;
};

/// Cutout (arXiv 1708.04552): a square [c - side / 2, c + side / 2) about a uniformly drawn pixel c of each
/// image becomes `fill`, in all channels, as far as it is inside.
///
/// `images`: uint8 or floating-point [N, C, H, W], any strides and device; the result is a new tensor of that
/// dtype. Gradients pass outside of the squares. Draws N x 2 uniform float32, row and column, from
/// `generator` (default: that of the images' device), on its device; on a GPU nothing waits for the device.
/// Throws on other dtypes and shapes, on a side outside of [0, 2] and on a fill that uint8 cannot hold.
/// rand_augment() has such a square of its own.
inline Tensor cutout(const Tensor& images, const CutoutOptions& options = {},
                     std::optional<at::Generator> generator = std::nullopt) {
  TORCH_CHECK(images.defined() && images.dim() == 4 &&
                  (images.scalar_type() == at::kByte || at::isFloatingType(images.scalar_type())),
              "cutout: images must be uint8 or floating-point [N, C, H, W], got ",
              mixmatch::detail::type_and_sizes(images));
  TORCH_CHECK(options.side() >= 0 && options.side() <= 2, "cutout: side must be in [0, 2], got ",
              options.side());
  TORCH_CHECK(images.scalar_type() != at::kByte || (options.fill() >= 0 && options.fill() <= 255),
              "cutout: fill must be in [0, 255] for uint8 images, got ", options.fill());
  const int64_t height = images.size(2), width = images.size(3);
  const auto side = static_cast<int64_t>(options.side() * static_cast<double>(std::min(height, width)));
  const Tensor uniform = mixmatch::detail::uniform_draws(images.size(0), 2, images.device(), generator);
  // Whether a row, or a column, is in the square of each image.
  const auto within = [&](int64_t draw, int64_t size) {
    const Tensor centre = uniform.select(1, draw).mul(size).floor().clamp_max(size - 1).unsqueeze(1);
    const Tensor from_start =
        at::arange(size, uniform.options()).unsqueeze(0) - (centre - static_cast<double>(side / 2));
    return from_start.ge(0).logical_and(from_start.lt(side));
  };
  const Tensor square = within(0, height)
                            .view({images.size(0), 1, height, 1})
                            .logical_and(within(1, width).view({images.size(0), 1, 1, width}));
  return images.masked_fill(square, options.fill());
}

}  // namespace mixmatch::augment
