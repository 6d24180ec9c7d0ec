#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>

#include <cstdint>
#include <string>

namespace mixmatch::detail {

inline constexpr CudaSource cuda_guess_quality_source{"mixmatch_guess_quality.cu", R"cuda(
// Of rows of probabilities, at most 1024 of them a row, and labels, -1 where unknown: the entropy of the
// guessed classes' shares, the mean largest probability, the rows' mean entropy, and the share of known labels
// that are the guessed class. One block of at most 256 threads.
template <class Scalar>
__global__ void guess_quality(double* out, const Scalar* guessed, const i64* labels, i64 rows, i64 classes) {
  __shared__ double scratch[256];
  __shared__ u32 rows_of_class[1024];
  for (i64 c = threadIdx.x; c < classes; c += blockDim.x) {
    rows_of_class[c] = 0;
  }
  __syncthreads();
  double largest_sum = 0, entropy = 0, known = 0, right = 0;
  for (i64 row = threadIdx.x; row < rows; row += blockDim.x) {
    const Scalar* own = guessed + row * classes;
    double largest = static_cast<double>(widen(own[0]));
    i64 predicted = 0;
    for (i64 c = 0; c < classes; ++c) {
      const double q = static_cast<double>(widen(own[c]));
      if (q > largest || (q != q && largest == largest)) {  // NaN is the largest, and shows
        largest = q;
        predicted = c;
      }
      entropy -= q == 0 ? 0 : q * log(q);
    }
    largest_sum += largest;
    known += labels[row] != -1 ? 1 : 0;
    right += labels[row] == predicted ? 1 : 0;
    atomicAdd(&rows_of_class[predicted], 1u);
  }
  largest_sum = reduce_block<false>(largest_sum, scratch);
  entropy = reduce_block<false>(entropy, scratch);
  known = reduce_block<false>(known, scratch);
  right = reduce_block<false>(right, scratch);
  double of_classes = 0;
  for (i64 c = threadIdx.x; c < classes; c += blockDim.x) {
    const double share = static_cast<double>(rows_of_class[c]) / static_cast<double>(rows);
    of_classes -= share == 0 ? 0 : share * log(share);
  }
  of_classes = reduce_block<false>(of_classes, scratch);
  if (threadIdx.x == 0) {
    out[0] = of_classes;
    out[1] = largest_sum / static_cast<double>(rows);
    out[2] = entropy / static_cast<double>(rows);
    out[3] = right / known;
  }
}
)cuda"};

/// The four numbers, in that order, float64 [4], in one kernel; an undefined tensor where it does not apply.
/// `guessed` [N, L], `labels` int64 [N].
inline at::Tensor guess_quality_on_cuda(const at::Tensor& guessed, const at::Tensor& labels) {
  if (!has_cuda_memory(guessed) || !has_cuda_memory(labels) || !guessed.is_contiguous() ||
      !labels.is_contiguous() || cuda_type_name(guessed.scalar_type()) == nullptr || guessed.size(1) > 1024 ||
      !cuda_kernels_available(guessed.device())) {
    return {};
  }
  const at::Tensor out = at::empty({4}, guessed.options().dtype(at::kDouble).requires_grad(false));
  launch_cuda_kernel(cuda_guess_quality_source,
                     std::string("guess_quality<") + cuda_type_name(guessed.scalar_type()) + ">",
                     guessed.device(), {.threads = 256}, out.data_ptr(), guessed.data_ptr(),
                     labels.data_ptr(), guessed.size(0), guessed.size(1));
  return out;
}

}  // namespace mixmatch::detail
