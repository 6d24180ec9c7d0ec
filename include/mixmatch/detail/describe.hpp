#pragma once

#include <torch/types.h>

#include <string>

namespace mixmatch::detail {

/// A tensor as errors name it: "[2, 3]", or "undefined".
inline std::string sizes_text(const at::Tensor& tensor) {
  return tensor.defined() ? c10::str(tensor.sizes()) : std::string("undefined");
}

/// "Float [2, 3]", or "undefined".
inline std::string type_and_sizes(const at::Tensor& tensor) {
  return tensor.defined() ? c10::str(tensor.scalar_type(), " ", tensor.sizes()) : std::string("undefined");
}

}  // namespace mixmatch::detail
