#pragma once

#include <ATen/core/Tensor.h>
#include <mixmatch/detail/version.hpp>

namespace mixmatch::detail {

inline constexpr const char* pixel_type_names = "uint8, uint16, int16, int32 or floating-point";

/// Whether images may be of the dtype.
inline bool is_pixel_type(at::ScalarType type) {
  return type == at::kByte || type == at::kShort || type == at::kInt || is_uint16(type) ||
         at::isFloatingType(type);
}

/// The same memory as a dtype that all of LibTorch's functions move: they know little of uint16.
inline at::Tensor movable(const at::Tensor& images) {
  return is_uint16(images.scalar_type()) ? images.view(at::kShort) : images;
}

}  // namespace mixmatch::detail
