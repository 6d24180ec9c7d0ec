#pragma once

#include <ATen/core/grad_mode.h>
#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mixmatch::detail {

/// Whether a gradient of what is made of these is recorded.
inline bool gradient_recorded(const std::vector<at::Tensor>& parts) {
  return at::GradMode::is_enabled() &&
         std::any_of(parts.begin(), parts.end(), [](const at::Tensor& part) { return part.requires_grad(); });
}

/// Whether `parts`, one tensor's rows after the other's, are one stretch of memory already: slices of one
/// batch, in their order.
inline bool are_neighbours(const std::vector<at::Tensor>& parts) {
  const at::Tensor& first = parts.front();
  // A view of an inference tensor stays one, which a copy does not.
  if (!first.has_storage() || first.is_inference() || first.dim() == 0 || first.numel() == 0 ||
      !(first.is_contiguous() || first.is_contiguous(at::MemoryFormat::ChannelsLast)) ||
      first.stride(0) * first.size(0) != first.numel()) {
    return false;
  }
  int64_t end = first.storage_offset();
  return std::all_of(parts.begin(), parts.end(), [&](const at::Tensor& part) {
    const bool next = part.is_alias_of(first) && part.storage_offset() == end &&
                      part.scalar_type() == first.scalar_type() && part.is_neg() == first.is_neg() &&
                      part.is_conj() == first.is_conj() && part.strides() == first.strides() &&
                      part.sizes().slice(1) == first.sizes().slice(1);
    end += part.numel();
    return next;
  });
}

/// torch::cat(parts), without a copy where several are neighbours in memory and no gradient is recorded: the
/// result is then a view of them.
inline at::Tensor join_rows(const std::vector<at::Tensor>& parts) {
  if (parts.size() < 2 || gradient_recorded(parts) || !are_neighbours(parts)) {
    return at::cat(parts);
  }
  std::vector<int64_t> sizes = parts.front().sizes().vec();
  for (size_t i = 1; i < parts.size(); ++i) {
    sizes[0] += parts[i].size(0);
  }
  return parts.front().as_strided(sizes, parts.front().strides());
}

/// `count` rows of `all` from `first` on, in its memory, with a version of their own for autograd: whoever is
/// given them may write to them, and what was saved of the others stays valid. Without gradient.
inline at::Tensor separate_rows(const at::Tensor& all, int64_t first, int64_t count) {
  return all.narrow(0, first, count).variable_data();
}

}  // namespace mixmatch::detail
