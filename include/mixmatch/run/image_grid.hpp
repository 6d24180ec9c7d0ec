#pragma once

#include <ATen/ATen.h>
#include <mixmatch/detail/describe.hpp>

#include <algorithm>
#include <cstdint>

namespace mixmatch::training {

/// Lays a batch out as one picture, row by row, for eyes: images [N, C, H, W] with C = 1 or 3, uint8 or
/// floating point in [-1, 1] (values beyond are clipped, NaN is black), any strides and device. Returns uint8
/// [3, H', W'] on the CPU, `gap` white pixels between neighbours; rows hold `columns` images, or N if there
/// are fewer; places without an image are white. Throws c10::Error for another shape or dtype, N = 0, columns
/// < 1 or gap < 0.
inline at::Tensor make_image_grid(const at::Tensor& images, int64_t columns = 8, int64_t gap = 2) {
  TORCH_CHECK(images.defined() && images.dim() == 4 && (images.size(1) == 1 || images.size(1) == 3) &&
                  images.numel() > 0,
              "make_image_grid: images must be a non-empty [N, C, H, W] with C = 1 or 3, got ",
              images.defined() ? images.sizes() : at::IntArrayRef());
  TORCH_CHECK(images.scalar_type() == at::kByte || at::isFloatingType(images.scalar_type()),
              "make_image_grid: images must be uint8 or floating point, got ", images.scalar_type());
  TORCH_CHECK(columns >= 1, "make_image_grid: columns must be >= 1, got ", columns);
  TORCH_CHECK(gap >= 0, "make_image_grid: gap must be >= 0, got ", gap);
  auto pixels = images.detach().cpu();
  if (pixels.scalar_type() != at::kByte) {
    pixels =
        pixels.to(at::kFloat).add(1).mul(127.5).nan_to_num(0, 255, 0).clamp(0, 255).round().to(at::kByte);
  }
  const int64_t count = pixels.size(0);
  const int64_t height = pixels.size(2);
  const int64_t width = pixels.size(3);
  columns = std::min(columns, count);
  const int64_t rows = (count + columns - 1) / columns;
  auto grid = at::full({3, rows * (height + gap) - gap, columns * (width + gap) - gap}, 255,
                       at::TensorOptions().dtype(at::kByte));
  for (int64_t i = 0; i < count; ++i) {
    grid.narrow(1, i / columns * (height + gap), height)
        .narrow(2, i % columns * (width + gap), width)
        .copy_(pixels[i]);
  }
  return grid;
}

/// Images of any kind as uint8 [N, 1 or 3, H, W] that can be looked at: uint8 ones of one or three channels
/// as they are. Of two channels the first, of more than three the first three; other types stretched from the
/// least value of each image to its largest (0 where that is one value; NaN is 0).
inline at::Tensor displayable(const at::Tensor& images) {
  TORCH_CHECK(images.defined() && images.dim() == 4 && images.size(1) > 0,
              "displayable: images must be [N, C, H, W], got ", mixmatch::detail::type_and_sizes(images));
  const int64_t channels = images.size(1);
  const at::Tensor shown = images.detach().narrow(1, 0, channels == 1 || channels == 2 ? 1 : 3);
  if (shown.scalar_type() == at::kByte || shown.numel() == 0) {
    return shown.to(at::kByte);
  }
  const at::Tensor values = shown.to(at::kFloat).nan_to_num(0, 0, 0);
  const at::Tensor least = values.amin({1, 2, 3}, true), range = values.amax({1, 2, 3}, true) - least;
  return ((values - least) * (255 / range.clamp_min(1e-30))).round().clamp(0, 255).to(at::kByte);
}

}  // namespace mixmatch::training
