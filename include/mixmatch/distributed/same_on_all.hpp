#pragma once

#include <torch/types.h>
#include <mixmatch/detail/io/crc32c.hpp>
#include <mixmatch/distributed/process_group.hpp>

#include <cstdint>
#include <string_view>
#include <vector>

namespace mixmatch::training {

/// A checksum of the tensors' bytes. Waits for the device.
inline uint32_t checksum_of(const std::vector<Tensor>& tensors) {
  uint32_t sum = 0;
  for (const Tensor& tensor : tensors) {
    const Tensor bytes = tensor.detach().cpu().contiguous();
    sum = mixmatch::detail::crc32c({static_cast<const char*>(bytes.data_ptr()), bytes.nbytes()}, sum);
  }
  return sum;
}

/// The first rank whose number is not rank 0's; -1 where all are the same.
inline int64_t first_to_differ(uint64_t number, ProcessGroup& group) {
  const Tensor all = group.gather(at::full({1}, static_cast<int64_t>(number), at::kLong)).view({-1});
  for (int64_t rank = 1; rank < all.numel(); ++rank) {
    if (all[rank].item<int64_t>() != all[0].item<int64_t>()) {
      return rank;
    }
  }
  return -1;
}

/// The first rank whose tensor is farther from rank 0's than rounding takes it: a hundredth of the sum of its
/// elements' magnitudes; -1 where all are near. Of any dtype but complex ones.
inline int64_t first_to_be_far(const Tensor& tensor, ProcessGroup& group) {
  const Tensor all = group.gather(tensor.detach()).to(at::kDouble).nan_to_num();
  for (int64_t rank = 1; rank < all.size(0); ++rank) {
    const double distance = (all[rank] - all[0]).abs().sum().item<double>();
    if (distance > 0.01 * all[0].abs().sum().item<double>()) {
      return rank;
    }
  }
  return -1;
}

}  // namespace mixmatch::training
