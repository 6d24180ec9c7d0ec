#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>

#include <cstdint>
#include <string>

namespace mixmatch::detail {

inline constexpr CudaSource cuda_interleave_source{"mixmatch_interleave.cu", R"cuda(
// interleave() of `batches` batches of `rows` rows of `width` elements: the first batch lies by itself, here and
// there, and the others follow each other.
template <class Scalar>
__global__ void interleave_rows(Scalar* first, Scalar* others, const Scalar* from_first, const Scalar* from_others,
                                i64 batches, i64 rows, i64 width) {
  // Groups of a batch: so many of `least` rows, then those that have one more.
  const i64 least = rows / batches, small = batches - rows % batches;
  const i64 step = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < batches * rows * width; i += step) {
    const i64 batch = i / (rows * width), place = i % (rows * width), row = place / width;
    const i64 group = row < small * least ? row / least : small + (row - small * least) / (least + 1);
    const i64 source = batch == 0 ? group : group == batch ? 0 : batch;
    const Scalar value = source == 0 ? from_first[place] : from_others[(source - 1) * rows * width + place];
    (batch == 0 ? first[place] : others[(batch - 1) * rows * width + place]) = value;
  }
}
)cuda"};

/// Equal batches, the first and the others, [B, …] and [(batches - 1) B, …].
struct FirstAndOthers {
  at::Tensor first, others;
};

/// Whether the kernel takes batches that follow each other in `rows`.
inline bool interleave_on_cuda_fits(const at::Tensor& rows) {
  return has_cuda_memory(rows) && rows.is_contiguous() && rows.numel() > 0 &&
         cuda_type_name(rows.scalar_type()) != nullptr && cuda_kernels_available(rows.device());
}

/// interleave() of `count` batches from one place to another in one kernel; all contiguous.
inline void interleave_on_cuda(const FirstAndOthers& to, const FirstAndOthers& from, int64_t count) {
  constexpr int64_t threads = 128;
  const at::Tensor& first = from.first;
  launch_cuda_kernel(
      cuda_interleave_source, std::string("interleave_rows<") + cuda_type_name(first.scalar_type()) + ">",
      first.device(), {.blocks_x = cuda_blocks(count * first.numel(), threads), .threads = threads},
      to.first.data_ptr(), to.others.data_ptr(), from.first.data_ptr(), from.others.data_ptr(), count,
      first.size(0), first.numel() / first.size(0));
}

}  // namespace mixmatch::detail
