#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>

#include <cstdint>
#include <string>

namespace mixmatch::detail {

inline constexpr CudaSource cuda_losses_source{"mixmatch_losses.cu", R"cuda(
// p = softmax of a row of logits, one number after the other: exp(logit - largest) / sum.
template <class Compute>
struct RowOfLogits {
  Compute largest, sum;
};

template <class Scalar>
__device__ inline RowOfLogits<typename ComputeOf<Scalar>::type> row_of_logits(const Scalar* logits, i64 classes) {
  typedef typename ComputeOf<Scalar>::type Compute;
  RowOfLogits<Compute> row;
  row.largest = widen(logits[0]);
  for (i64 c = 1; c < classes; ++c) {
    row.largest = larger_of(row.largest, static_cast<Compute>(widen(logits[c])));
  }
  row.sum = 0;
  for (i64 c = 0; c < classes; ++c) {
    row.sum += exponential(widen(logits[c]) - row.largest);
  }
  return row;
}

// *loss = scale * sum over rows and classes of targets * -log p (squared false) or (p - targets)^2 (true).
// One block of at most 256 threads, each with every so many-th row.
template <class Scalar, bool squared>
__global__ void class_loss(typename ComputeOf<Scalar>::type* loss, const Scalar* logits,
                           const typename ComputeOf<Scalar>::type* targets, i64 rows, i64 classes, double scale) {
  typedef typename ComputeOf<Scalar>::type Compute;
  __shared__ double scratch[256];
  double total = 0;
  for (i64 r = threadIdx.x; r < rows; r += blockDim.x) {
    const Scalar* own = logits + r * classes;
    const RowOfLogits<Compute> row = row_of_logits(own, classes);
    const Compute log_sum = static_cast<Compute>(log(static_cast<double>(row.sum)));
    Compute of_row = 0;
    for (i64 c = 0; c < classes; ++c) {
      const Compute centred = widen(own[c]) - row.largest;
      const Compute target = targets[r * classes + c];
      if (squared) {
        const Compute difference = exponential(centred) / row.sum - target;
        of_row += difference * difference;
      } else {
        of_row += target * (log_sum - centred);
      }
    }
    total += static_cast<double>(of_row);
  }
  total = reduce_block<false>(total, scratch);
  if (threadIdx.x == 0) {
    *loss = static_cast<Compute>(scale * total);
  }
}

// Its gradient by the logits, times *factor. A thread has a row.
template <class Scalar, bool squared>
__global__ void class_loss_gradient(Scalar* gradient, const Scalar* logits,
                                    const typename ComputeOf<Scalar>::type* targets,
                                    const typename ComputeOf<Scalar>::type* factor, i64 rows, i64 classes,
                                    double scale) {
  typedef typename ComputeOf<Scalar>::type Compute;
  const i64 step = static_cast<i64>(gridDim.x) * blockDim.x;
  const Compute scaled = static_cast<Compute>(scale) * *factor;
  for (i64 r = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; r < rows; r += step) {
    const Scalar* own = logits + r * classes;
    const RowOfLogits<Compute> row = row_of_logits(own, classes);
    Compute sum = 0;  // of the targets; of p (p - target)
    for (i64 c = 0; c < classes; ++c) {
      const Compute target = targets[r * classes + c];
      const Compute p = exponential(widen(own[c]) - row.largest) / row.sum;
      sum += squared ? p * (p - target) : target;
    }
    for (i64 c = 0; c < classes; ++c) {
      const Compute target = targets[r * classes + c];
      const Compute p = exponential(widen(own[c]) - row.largest) / row.sum;
      narrow(gradient[r * classes + c], scaled * (squared ? 2 * p * (p - target - sum) : p * sum - target));
    }
  }
}

__device__ inline float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// *weight = lambda_u clamp(*step * per_step, 0, 1), or lambda_u where per_step is 0, *factor the same as Number,
// and *total = *labeled + *factor * *unlabeled, rounded as two operations are.
template <class Number>
__global__ void ramped_total(Number* total, Number* factor, double* weight, const Number* labeled,
                             const Number* unlabeled, const i64* step, double per_step, double lambda_u) {
  const double ramp = per_step == 0 ? 1 : static_cast<double>(*step) * per_step;
  *weight = (ramp < 0 ? 0 : ramp > 1 ? 1 : ramp) * lambda_u;
  *factor = static_cast<Number>(*weight);
  *total = *labeled + rounded_product(*factor, *unlabeled);
}
)cuda"};

/// Which of the two losses: a sum over rows and classes, divided by `count`.
struct ClassLoss {
  bool squared;  ///< of (softmax(logits) - targets)^2, else of -targets log softmax(logits)
  double count;
};

/// Whether the kernels take them: rows of few classes, targets in the arithmetic type.
inline bool class_loss_on_cuda_fits(const at::Tensor& logits, const at::Tensor& targets) {
  const auto type = logits.scalar_type();
  return has_cuda_memory(logits) && has_cuda_memory(targets) && targets.device() == logits.device() &&
         cuda_type_name(type) != nullptr &&
         targets.scalar_type() == (type == at::kDouble ? at::kDouble : at::kFloat) && logits.numel() > 0 &&
         logits.size(1) <= 128 && logits.size(0) <= 16384 && cuda_kernels_available(logits.device());
}

inline std::string class_loss_entry(const char* kernel, at::ScalarType type, const ClassLoss& loss) {
  return std::string(kernel) + "<" + cuda_type_name(type) + (loss.squared ? ", true>" : ", false>");
}

/// The loss, 0-dimensional in the targets' dtype. Both contiguous.
inline at::Tensor class_loss_on_cuda(const at::Tensor& logits, const at::Tensor& targets,
                                     const ClassLoss& loss) {
  at::Tensor result = at::empty({}, targets.options().requires_grad(false));
  launch_cuda_kernel(cuda_losses_source, class_loss_entry("class_loss", logits.scalar_type(), loss),
                     logits.device(), {.threads = 256}, result.data_ptr(), logits.data_ptr(),
                     targets.data_ptr(), logits.size(0), logits.size(1), 1 / loss.count);
  return result;
}

/// Its gradient by the logits, in their dtype, times `factor`, 0-dimensional in the targets' dtype.
inline at::Tensor class_loss_gradient_on_cuda(const at::Tensor& logits, const at::Tensor& targets,
                                              const at::Tensor& factor, const ClassLoss& loss) {
  at::Tensor gradient = at::empty_like(logits);
  constexpr int64_t threads = 64;
  launch_cuda_kernel(cuda_losses_source, class_loss_entry("class_loss_gradient", logits.scalar_type(), loss),
                     logits.device(), {.blocks_x = cuda_blocks(logits.size(0), threads), .threads = threads},
                     gradient.data_ptr(), logits.data_ptr(), targets.data_ptr(), factor.data_ptr(),
                     logits.size(0), logits.size(1), 1 / loss.count);
  return gradient;
}

/// labeled + factor * unlabeled, the factor, and the weight that it was rounded from, float64; all
/// 0-dimensional.
struct RampedTotal {
  at::Tensor total, factor, weight;
};

/// Whether the kernel takes two losses, 0-dimensional, and a step, int64 [].
inline bool ramped_total_on_cuda_fits(const at::Tensor& labeled, const at::Tensor& unlabeled,
                                      const at::Tensor& step) {
  const auto type = labeled.scalar_type();
  return has_cuda_memory(labeled) && has_cuda_memory(unlabeled) && has_cuda_memory(step) &&
         unlabeled.device() == labeled.device() && step.device() == labeled.device() &&
         (type == at::kFloat || type == at::kDouble) && unlabeled.scalar_type() == type &&
         step.scalar_type() == at::kLong && labeled.dim() == 0 && unlabeled.dim() == 0 && step.dim() == 0 &&
         cuda_kernels_available(labeled.device());
}

/// weight = lambda_u linear_rampup(step, rampup_steps), as ATen's calls on CUDA round it: a quotient by a
/// number is a product with its reciprocal there.
inline RampedTotal ramped_total_on_cuda(const at::Tensor& labeled, const at::Tensor& unlabeled,
                                        const at::Tensor& step, int64_t rampup_steps, double lambda_u) {
  const auto options = labeled.options().requires_grad(false);
  const RampedTotal result{at::empty({}, options), at::empty({}, options),
                           at::empty({}, options.dtype(at::kDouble))};
  launch_cuda_kernel(cuda_losses_source,
                     std::string("ramped_total<") + cuda_type_name(labeled.scalar_type()) + ">",
                     labeled.device(), {}, result.total.data_ptr(), result.factor.data_ptr(),
                     result.weight.data_ptr(), labeled.data_ptr(), unlabeled.data_ptr(), step.data_ptr(),
                     rampup_steps == 0 ? 0.0 : 1.0 / static_cast<double>(rampup_steps), lambda_u);
  return result;
}

}  // namespace mixmatch::detail
