#pragma once

#include <torch/types.h>

#include <cstdint>

namespace mixmatch::models::detail {

/// An option of a network that counts something.
inline void check_positive(const char* network, const char* option, int64_t value) {
  TORCH_CHECK(value >= 1, network, ": ", option, " must be >= 1, got ", value);
}

/// What forward() is given.
inline void check_images(const char* network, const at::Tensor& images, int64_t in_channels) {
  TORCH_CHECK(images.dim() == 4 && images.size(1) == in_channels, network, ": input must be [N, ",
              in_channels, ", H, W], got ", images.sizes());
}

}  // namespace mixmatch::models::detail
