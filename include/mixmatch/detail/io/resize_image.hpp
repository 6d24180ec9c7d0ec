#pragma once

#include <torch/nn/functional/upsampling.h>

#include <algorithm>
#include <cstdint>

namespace mixmatch::detail {

/// The middle square of a picture of interleaved RGB bytes, resized to three planes of size x size: bilinear,
/// and antialiased where it shrinks. One plane after the other, so that a large picture takes four bytes a
/// pixel beside its own three.
inline void resize_and_crop(uint8_t* pixels, int64_t width, int64_t height, int64_t size, uint8_t* out) {
  namespace F = torch::nn::functional;
  const torch::NoGradGuard no_grad;
  const int64_t side = std::min(width, height);
  const at::Tensor middle = at::from_blob(pixels, {height, width, 3}, at::kByte)
                                .narrow(0, (height - side) / 2, side)
                                .narrow(1, (width - side) / 2, side);
  const at::Tensor result = at::from_blob(out, {3, size, size}, at::kByte);
  const auto options = F::InterpolateFuncOptions()
                           .size(std::vector<int64_t>{size, size})
                           .mode(torch::kBilinear)
                           .align_corners(false)
                           .antialias(true);
  for (int64_t c = 0; c < 3; ++c) {
    const at::Tensor plane = middle.select(2, c).to(at::kFloat).view({1, 1, side, side});
    result[c].copy_(F::interpolate(plane, options)[0][0].round_().clamp_(0, 255));
  }
}

}  // namespace mixmatch::detail
