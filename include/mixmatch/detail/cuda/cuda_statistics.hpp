#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>

#include <algorithm>
#include <cstdint>
#include <string>

namespace mixmatch::detail {

inline constexpr CudaSource cuda_statistics_source{"mixmatch_statistics.cu", R"cuda(
// running <- lerp(running, batch, max(least, 1 / (*step + 1))), as ATen rounds it, and counts <- counts + 1.
template <class Scalar>
__global__ void move_statistics(Scalar* running, const Scalar* batch, i64 size, i64* counts, i64 layers,
                                const i64* step, double least) {
  const double plain = 1 / (static_cast<double>(*step) + 1);
  const Scalar weight = static_cast<Scalar>(plain > least ? plain : least);
  const i64 stride = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < size || i < layers; i += stride) {
    if (i < size) {
      const Scalar change = batch[i] - running[i];
      running[i] = weight < static_cast<Scalar>(0.5) ? running[i] + weight * change : batch[i] - change * (1 - weight);
    }
    if (i < layers) {
      counts[i] += 1;
    }
  }
}
)cuda"};

/// Whether the kernel moves such statistics at a step, int64 [].
inline bool can_move_statistics_on_cuda(const at::Tensor& running, const at::Tensor& step) {
  return running.defined() && has_cuda_memory(running) && has_cuda_memory(step) &&
         step.device() == running.device() && step.scalar_type() == at::kLong && step.dim() == 0 &&
         (running.scalar_type() == at::kFloat || running.scalar_type() == at::kDouble) &&
         cuda_kernels_available(running.device());
}

/// Moves them towards `batch` by batch_norm_momentum(step, least), and adds 1 to `counts`, int64, in one
/// kernel. All contiguous.
inline void move_statistics_on_cuda(const at::Tensor& running, const at::Tensor& batch,
                                    const at::Tensor& counts, const at::Tensor& step, double least) {
  constexpr int64_t threads = 128;
  launch_cuda_kernel(
      cuda_statistics_source, std::string("move_statistics<") + cuda_type_name(running.scalar_type()) + ">",
      running.device(),
      {.blocks_x = cuda_blocks(std::max(running.numel(), counts.numel()), threads), .threads = threads},
      running.data_ptr(), batch.data_ptr(), running.numel(), counts.data_ptr(), counts.numel(),
      step.data_ptr(), least);
}

}  // namespace mixmatch::detail
