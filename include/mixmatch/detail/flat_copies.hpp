#pragma once

#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace mixmatch::detail {

using torch::Tensor;

/// Copies of tensors one after the other in one block of memory for each dtype and device, with their own
/// sizes and, where they are dense, strides: for one pass over all of them.
inline std::vector<Tensor> flat_copies(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> copies(tensors.size());
  for (size_t first = 0; first < tensors.size(); ++first) {
    if (copies[first].defined()) {
      continue;
    }
    const auto alike = [&](const Tensor& tensor) {
      return tensor.scalar_type() == tensors[first].scalar_type() &&
             tensor.device() == tensors[first].device();
    };
    int64_t total = 0;
    for (size_t i = first; i < tensors.size(); ++i) {
      total += alike(tensors[i]) ? tensors[i].numel() : 0;
    }
    const Tensor block = at::empty({total}, tensors[first].options().requires_grad(false));
    int64_t offset = 0;
    for (size_t i = first; i < tensors.size(); ++i) {
      if (!alike(tensors[i])) {
        continue;
      }
      const Tensor part = block.narrow(0, offset, tensors[i].numel());
      copies[i] = tensors[i].is_non_overlapping_and_dense()
                      ? part.as_strided(tensors[i].sizes(), tensors[i].strides())
                      : part.view(tensors[i].sizes());
      copies[i].copy_(tensors[i]);
      offset += tensors[i].numel();
    }
  }
  return copies;
}

}  // namespace mixmatch::detail
