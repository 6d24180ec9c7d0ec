#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>

#include <algorithm>
#include <cstdint>
#include <string>

namespace mixmatch::detail {

inline constexpr CudaSource cuda_mixup_source{"mixmatch_mixup.cu", R"cuda(
// Row i of out is weight[i] x[i] + (1 - weight[i]) partners[permutation[i]], rows of `packs` packs. Blocks
// along x have a row each, those along y share its packs.
template <class Scalar, int width>
__global__ void mix_rows(Pack<Scalar, width>* out, const Pack<Scalar, width>* x,
                         const Pack<Scalar, width>* partners, const i64* permutation,
                         const typename ComputeOf<Scalar>::type* weights, i64 weight_step, i64 packs,
                         i64 partner_rows) {
  typedef typename ComputeOf<Scalar>::type Compute;
  const i64 row = blockIdx.x;
  const i64 partner = permutation[row];
  if (partner < 0 || partner >= partner_rows) {
    __trap();
  }
  const Compute weight = weights[row * weight_step];
  const Compute rest = 1 - weight;
  const i64 step = static_cast<i64>(gridDim.y) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.y) * blockDim.x + threadIdx.x; i < packs; i += step) {
    Pack<Scalar, width> mixed = x[row * packs + i];
    if (weight != 1) {  // else exactly x, whatever the partner holds
      const Pack<Scalar, width> other = partners[partner * packs + i];
      for (int k = 0; k < width; ++k) {
        narrow(mixed.values[k], weight * widen(mixed.values[k]) + rest * widen(other.values[k]));
      }
    }
    out[row * packs + i] = mixed;
  }
}

// lambda[i] ~ Beta(alpha, alpha) of two draws of Gamma(alpha + 1) and two uniform ones in [0, 1), each [2, count]:
// see sample_symmetric_beta(). With `dominant` max(lambda, 1 - lambda).
template <class Scalar>
__global__ void beta_of_draws(Scalar* lambda, const double* gamma, const double* uniform, double alpha, int dominant,
                              i64 count) {
  const i64 step = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const double of_gamma = log(gamma[i]) - log(gamma[count + i]);
    const double of_uniform = log(1 - uniform[i]) - log(1 - uniform[count + i]);
    const Scalar drawn = static_cast<Scalar>(1 / (1 + exp(-(of_gamma + of_uniform / alpha))));
    lambda[i] = dominant != 0 ? larger_of(drawn, 1 - drawn) : drawn;
  }
}

// The targets of labeled rows, 1 at the label and 0 elsewhere, then those of guessed ones, once for each view:
// [labeled + views * guesses, classes].
template <class Scalar>
__global__ void join_targets(Scalar* targets, const i64* labels, const Scalar* guessed, i64 labeled, i64 guesses,
                             i64 views, i64 classes) {
  const i64 step = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < (labeled + views * guesses) * classes;
       i += step) {
    const i64 row = i / classes, column = i % classes;
    if (row >= labeled) {
      targets[i] = guessed[(row - labeled) % guesses * classes + column];
      continue;
    }
    if (labels[row] < 0 || labels[row] >= classes) {
      __trap();
    }
    narrow(targets[i], column == labels[row] ? 1.0f : 0.0f);
  }
}
)cuda"};

/// The last part of sample_symmetric_beta() in one kernel: float32 or float64 [N] of float64 [2, N]; with
/// `dominant` max(lambda, 1 - lambda). An undefined tensor where it does not apply.
inline at::Tensor beta_of_draws_on_cuda(const at::Tensor& gamma, const at::Tensor& uniform, double alpha,
                                        at::ScalarType type, bool dominant) {
  if (!has_cuda_memory(gamma) || gamma.numel() == 0 || (type != at::kFloat && type != at::kDouble) ||
      !cuda_kernels_available(gamma.device())) {
    return {};
  }
  const at::Tensor lambda = at::empty({gamma.size(1)}, gamma.options().dtype(type));
  constexpr int64_t threads = 64;
  launch_cuda_kernel(cuda_mixup_source, std::string("beta_of_draws<") + cuda_type_name(type) + ">",
                     gamma.device(), {.blocks_x = cuda_blocks(lambda.numel(), threads), .threads = threads},
                     lambda.data_ptr(), gamma.data_ptr(), uniform.data_ptr(), alpha,
                     static_cast<int>(dominant), lambda.numel());
  return lambda;
}

/// one_hot(labels) of the guesses' dtype, then the guesses [U, L] `views` times, in one kernel; an undefined
/// tensor where it does not apply.
inline at::Tensor join_targets_on_cuda(const at::Tensor& labels, const at::Tensor& guessed, int64_t views) {
  if (!has_cuda_memory(labels) || !has_cuda_memory(guessed) || labels.device() != guessed.device() ||
      labels.dim() != 1 || labels.scalar_type() != at::kLong || !labels.is_contiguous() ||
      guessed.dim() != 2 || !guessed.is_contiguous() || guessed.numel() == 0 ||
      cuda_type_name(guessed.scalar_type()) == nullptr || !cuda_kernels_available(guessed.device())) {
    return {};
  }
  const int64_t classes = guessed.size(1);
  const at::Tensor targets =
      at::empty({labels.size(0) + views * guessed.size(0), classes}, guessed.options().requires_grad(false));
  constexpr int64_t threads = 128;
  launch_cuda_kernel(
      cuda_mixup_source, std::string("join_targets<") + cuda_type_name(guessed.scalar_type()) + ">",
      guessed.device(), {.blocks_x = cuda_blocks(targets.numel(), threads), .threads = threads},
      targets.data_ptr(), labels.data_ptr(), guessed.data_ptr(), labels.size(0), guessed.size(0), views,
      classes);
  return targets;
}

/// mix_rows of dense CUDA rows that lie alike in memory, in one kernel; false where it does not apply.
inline bool mix_rows_on_cuda(at::Tensor& out, const at::Tensor& x, const at::Tensor& partners,
                             const at::Tensor& permutation, const at::Tensor& lambda) {
  const auto type = x.scalar_type();
  if (!has_cuda_memory(x) || !has_cuda_memory(partners) || !has_cuda_memory(out) ||
      cuda_type_name(type) == nullptr || partners.scalar_type() != type || out.scalar_type() != type ||
      partners.device() != x.device() || out.device() != x.device() || !cuda_kernels_available(x.device())) {
    return false;
  }
  if (x.numel() == 0) {
    return true;
  }
  const int64_t rows = x.size(0);
  const int64_t row = x.numel() / rows;
  for (const at::Tensor* tensor : {&x, &partners, static_cast<const at::Tensor*>(&out)}) {
    // Several rows, each dense, one after the other, in one order of their elements.
    if (!tensor->is_non_overlapping_and_dense() || (tensor->size(0) > 1 && tensor->stride(0) != row) ||
        tensor->strides().slice(1) != x.strides().slice(1)) {
      return false;
    }
  }
  const auto compute = type == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor weights = lambda.to(x.device(), compute).contiguous();
  const at::Tensor order = permutation.to(x.device()).contiguous();
  const auto aligned = [](const at::Tensor& tensor) {
    return reinterpret_cast<std::uintptr_t>(tensor.data_ptr()) % 16 == 0;
  };
  const auto wide = 16 / static_cast<int64_t>(x.element_size());
  const int64_t width =
      row % wide == 0 && aligned(x) && aligned(partners) && aligned(static_cast<const at::Tensor&>(out))
          ? wide
          : 1;
  const int64_t packs = row / width;
  const int64_t threads = packs >= 256 ? 256 : (packs >= 64 ? 64 : 32);
  const std::string entry =
      std::string("mix_rows<") + cuda_type_name(type) + ", " + std::to_string(width) + ">";
  launch_cuda_kernel(cuda_mixup_source, entry, x.device(),
                     {.blocks_x = rows, .blocks_y = cuda_blocks(packs, threads, 64), .threads = threads},
                     out.data_ptr(), x.data_ptr(), partners.data_ptr(), order.data_ptr(), weights.data_ptr(),
                     static_cast<int64_t>(weights.dim() == 0 ? 0 : 1), packs, partners.size(0));
  return true;
}

}  // namespace mixmatch::detail
