#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace mixmatch::detail {

// One block a row. Each pass over the classes computes the mean anew, from logits that are in the cache by
// then: rows of any length need no memory, and `out` may be the one view.
inline constexpr CudaSource cuda_sharpen_source{"mixmatch_sharpen.cu", R"cuda(
struct Views { const void* data[16]; };

// p^exponent for a row's largest p scaled to 1; `hot`: the limit, 1 for the largest and 0 else.
template <class Compute>
__device__ inline Compute sharp(Compute p, Compute largest, double exponent, bool hot) {
  if (hot) {
    return largest != largest ? largest : static_cast<Compute>(p == largest ? 1 : 0);
  }
  if (largest == 0) {
    return 1;  // a row of zeros: all are tied
  }
  const Compute ratio = p / largest;
  return exponent == 1   ? ratio
         : exponent == 2 ? ratio * ratio
                         : power(ratio, static_cast<Compute>(exponent));
}

// q = sharpen(mean over views of softmax(logits)) if `softmax`, else sharpen(the one view).
template <class Scalar, class Out>
__global__ void sharpen_views(Out* out, Views views, int count, int softmax, i64 classes, double exponent,
                              int hot) {
  typedef typename ComputeOf<Scalar>::type Compute;
  __shared__ Compute scratch[256];
  __shared__ Compute top[16];
  __shared__ Compute sums[16];
  const i64 row = static_cast<i64>(blockIdx.x) * classes;
  for (int k = 0; softmax != 0 && k < count; ++k) {
    const Scalar* logits = static_cast<const Scalar*>(views.data[k]) + row;
    Compute largest = widen(logits[0]);
    for (i64 c = threadIdx.x; c < classes; c += blockDim.x) {
      largest = larger_of(largest, static_cast<Compute>(widen(logits[c])));
    }
    largest = reduce_block<true>(largest, scratch);
    Compute sum = 0;
    for (i64 c = threadIdx.x; c < classes; c += blockDim.x) {
      sum += exponential(widen(logits[c]) - largest);
    }
    sum = reduce_block<false>(sum, scratch);
    if (threadIdx.x == 0) {
      top[k] = largest;
      sums[k] = sum;
    }
    __syncthreads();
  }
  const auto probability = [&](i64 c) -> Compute {
    if (softmax == 0) {
      return widen(static_cast<const Scalar*>(views.data[0])[row + c]);
    }
    Compute total = 0;
    for (int k = 0; k < count; ++k) {
      total += exponential(widen(static_cast<const Scalar*>(views.data[k])[row + c]) - top[k]) / sums[k];
    }
    return total / static_cast<Compute>(count);
  };
  Compute largest = probability(0);
  for (i64 c = threadIdx.x; c < classes; c += blockDim.x) {
    largest = larger_of(largest, probability(c));
  }
  largest = reduce_block<true>(largest, scratch);
  Compute sum = 0;
  for (i64 c = threadIdx.x; c < classes; c += blockDim.x) {
    sum += sharp(probability(c), largest, exponent, hot != 0);
  }
  sum = reduce_block<false>(sum, scratch);
  for (i64 c = threadIdx.x; c < classes; c += blockDim.x) {
    narrow(out[row + c], sharp(probability(c), largest, exponent, hot != 0) / sum);
  }
}
)cuda"};

/// The kernel's parameter of that name.
struct CudaViews {
  const void* data[16];
};

inline bool sharpen_rows_on_cuda(at::Tensor& out, const at::Tensor& first) {
  return has_cuda_memory(first) && has_cuda_memory(out) && first.dim() >= 1 && first.is_contiguous() &&
         out.is_contiguous() && first.numel() / std::max<int64_t>(first.size(-1), 1) < INT32_MAX &&
         cuda_type_name(first.scalar_type()) != nullptr && cuda_type_name(out.scalar_type()) != nullptr &&
         cuda_kernels_available(first.device());
}

inline void launch_sharpen(at::Tensor& out, const std::vector<at::Tensor>& views, bool softmax,
                           double temperature) {
  const at::Tensor& first = views.front();
  const int64_t classes = first.size(-1);
  CudaViews data{};
  for (size_t k = 0; k < views.size(); ++k) {
    data.data[k] = views[k].data_ptr();
  }
  const double exponent = 1.0 / temperature;
  int64_t threads = 32;
  while (threads < 256 && threads < classes) {
    threads *= 2;
  }
  const std::string entry = std::string("sharpen_views<") + cuda_type_name(first.scalar_type()) + ", " +
                            cuda_type_name(out.scalar_type()) + ">";
  launch_cuda_kernel(cuda_sharpen_source, entry, first.device(),
                     {.blocks_x = first.numel() / classes, .threads = threads}, out.data_ptr(), data,
                     static_cast<int>(views.size()), softmax ? 1 : 0, classes, exponent,
                     std::isinf(exponent) ? 1 : 0);
}

/// sharpen() of contiguous CUDA rows along the last dimension in one kernel; false where it does not apply.
/// `out` may be `in`.
inline bool sharpen_on_cuda(at::Tensor& out, const at::Tensor& in, double temperature, int64_t dim) {
  if ((dim != -1 && dim != in.dim() - 1) || !sharpen_rows_on_cuda(out, in)) {
    return false;
  }
  if (in.numel() != 0) {
    launch_sharpen(out, {in}, /*softmax=*/false, temperature);
  }
  return true;
}

/// sharpen(mean over k of softmax(logits[k])) of CUDA logits in one kernel into `out`, float32 or, for
/// float64 logits, float64; false where it does not apply.
inline bool sharpen_views_on_cuda(at::Tensor& out, const std::vector<at::Tensor>& logits,
                                  double temperature) {
  const bool alike = std::all_of(logits.begin(), logits.end(), [&](const at::Tensor& view) {
    return view.scalar_type() == logits.front().scalar_type() && view.device() == logits.front().device() &&
           has_cuda_memory(view) && view.is_contiguous();
  });
  if (!alike || logits.size() > std::size(CudaViews{}.data) || !sharpen_rows_on_cuda(out, logits.front())) {
    return false;
  }
  if (out.numel() != 0) {
    launch_sharpen(out, logits, /*softmax=*/true, temperature);
  }
  return true;
}

}  // namespace mixmatch::detail
