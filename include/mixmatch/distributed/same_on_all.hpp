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

}  // namespace mixmatch::training
