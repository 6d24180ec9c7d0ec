#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>

#include <cstdint>
#include <iterator>
#include <vector>

namespace mixmatch::detail {

inline constexpr CudaSource cuda_meter_source{"mixmatch_meter.cu", R"cuda(
struct NumberTable {
  const void* from[64];
  u8 type[64];  // 0: double, 1: float, 2: BFloat16, 3: Half, 4: i64, 5: a byte
};

// sums[i] += number i, counts[i] += 1, but for NaN other than of number 0; *all_finite &= *finite. One block.
template <class Sum>
__global__ void add_numbers(Sum* sums, Sum* counts, u8* all_finite, const u8* finite, NumberTable numbers,
                            i64 size) {
  const i64 i = threadIdx.x;
  if (i < size) {
    const void* from = numbers.from[i];
    const int type = numbers.type[i];
    const Sum number = type == 0   ? static_cast<Sum>(*static_cast<const double*>(from))
                       : type == 1 ? static_cast<Sum>(*static_cast<const float*>(from))
                       : type == 2 ? static_cast<Sum>(widen(*static_cast<const BFloat16*>(from)))
                       : type == 3 ? static_cast<Sum>(widen(*static_cast<const Half*>(from)))
                       : type == 4 ? static_cast<Sum>(*static_cast<const i64*>(from))
                                   : static_cast<Sum>(*static_cast<const u8*>(from));
    if (i == 0 || number == number) {
      sums[i] += number;
      counts[i] += 1;
    }
  }
  if (i == 0 && *finite == 0) {
    *all_finite = 0;
  }
}
)cuda"};

/// The kernel's NumberTable.
struct CudaNumberTable {
  const void* from[64];
  uint8_t type[64];
};

/// Adds each number, 0-dimensional or of one element, to `sums` and 1 to `counts`, float64, where it is not
/// NaN, the first in any case, and `finite` to `all_finite`, bool [], all in one kernel; false, having done
/// nothing, where it does not apply.
inline bool add_numbers_on_cuda(const at::Tensor& sums, const at::Tensor& counts,
                                const at::Tensor& all_finite, const at::Tensor& finite,
                                const std::vector<at::Tensor>& numbers) {
  CudaNumberTable table{};
  if (!has_cuda_memory(sums) || !has_cuda_memory(finite) || finite.device() != sums.device() ||
      finite.scalar_type() != at::kBool || numbers.size() > 64 || !cuda_kernels_available(sums.device())) {
    return false;
  }
  constexpr at::ScalarType types[] = {at::kDouble, at::kFloat, at::kBFloat16,
                                      at::kHalf,   at::kLong,  at::kBool};
  for (size_t i = 0; i < numbers.size(); ++i) {
    uint8_t type = 0;
    while (type < std::size(types) && types[type] != numbers[i].scalar_type()) {
      ++type;
    }
    if (type == std::size(types) || !has_cuda_memory(numbers[i]) || numbers[i].device() != sums.device()) {
      return false;
    }
    table.from[i] = numbers[i].data_ptr();
    table.type[i] = type;
  }
  launch_cuda_kernel(cuda_meter_source, "add_numbers<double>", sums.device(), {.threads = 64},
                     sums.data_ptr(), counts.data_ptr(), all_finite.data_ptr(), finite.data_ptr(), table,
                     static_cast<int64_t>(numbers.size()));
  return true;
}

}  // namespace mixmatch::detail
