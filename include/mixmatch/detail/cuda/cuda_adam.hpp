#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>

#include <cstdint>
#include <string>

namespace mixmatch::detail {

inline constexpr CudaSource cuda_adam_source{"mixmatch_adam.cu", R"cuda(
// Adam, decoupled decay of the elements that `is_kernel` marks, and the moving average (where `average` is
// given), in one pass. What changes from step to step is read from the device. Nothing is done where *apply
// is 0.
template <class Scalar>
__global__ void adam_step(Scalar* parameters, const Scalar* gradients, Scalar* first_moment,
                          Scalar* second_moment, Scalar* average, const u8* is_kernel, const i64* steps_done,
                          const double* learning_rate, const double* average_decay, const u8* apply,
                          double beta1, double beta2, double eps, double weight_decay, i64 size) {
  __shared__ double numbers[4];
  if (apply != nullptr && *apply == 0) {
    return;
  }
  if (threadIdx.x == 0) {
    const double step = static_cast<double>(*steps_done + 1);
    numbers[0] = *learning_rate / (1 - pow(beta1, step));
    numbers[1] = sqrt(1 - pow(beta2, step));
    numbers[2] = 1 - *learning_rate * weight_decay;
    numbers[3] = average != nullptr ? *average_decay : 1.0;
  }
  __syncthreads();
  const Scalar step_size = static_cast<Scalar>(numbers[0]);
  const Scalar root_correction = static_cast<Scalar>(numbers[1]);
  const Scalar shrink = static_cast<Scalar>(numbers[2]);
  const Scalar keep = static_cast<Scalar>(numbers[3]);
  const Scalar take = static_cast<Scalar>(1 - numbers[3]);
  const Scalar keep1 = static_cast<Scalar>(beta1), take1 = static_cast<Scalar>(1 - beta1);
  const Scalar keep2 = static_cast<Scalar>(beta2), take2 = static_cast<Scalar>(1 - beta2);
  const i64 stride = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += stride) {
    const Scalar gradient = gradients[i];
    const Scalar first = keep1 * first_moment[i] + take1 * gradient;
    const Scalar second = keep2 * second_moment[i] + take2 * gradient * gradient;
    first_moment[i] = first;
    second_moment[i] = second;
    const Scalar root = square_root(second) / root_correction + static_cast<Scalar>(eps);
    Scalar parameter = parameters[i] - step_size * first / root;
    if (is_kernel[i] != 0) {
      parameter *= shrink;
    }
    parameters[i] = parameter;
    if (average != nullptr) {
      average[i] = keep * average[i] + take * parameter;
    }
  }
}
)cuda"};

/// All parameters of a model, one after the other: [P], contiguous, float32 or float64, of one device.
struct FlatParameters {
  at::Tensor parameters, gradients, first_moment, second_moment;
  at::Tensor average;    ///< of the parameters; may be undefined
  at::Tensor is_kernel;  ///< bool [P]: what weight decay shrinks
};

/// What a step may change without a new graph: 0-dimensional, on the parameters' device.
struct AdamScalars {
  at::Tensor steps_done;     ///< int64, before this step
  at::Tensor learning_rate;  ///< float64
  at::Tensor average_decay;  ///< float64; may be undefined without an average
  at::Tensor apply;          ///< bool: false leaves everything as it is; may be undefined
};

struct AdamConstants {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0;  ///< kernels shrink by 1 - learning rate * weight_decay
};

/// flat_adam_step_() in ATen's calls.
inline void flat_adam_composite_(const FlatParameters& flat, const AdamScalars& scalars,
                                 const AdamConstants& constants) {
  const auto type = flat.parameters.scalar_type();
  const at::Tensor step = (scalars.steps_done + 1).to(at::kDouble);
  const auto correction = [&](double beta) { return 1 - at::pow(at::Scalar(beta), step); };
  const at::Tensor step_size = (scalars.learning_rate / correction(constants.beta1)).to(type);
  const at::Tensor root_correction = correction(constants.beta2).sqrt().to(type);
  const at::Tensor& gradients = flat.gradients;
  const at::Tensor first = flat.first_moment * constants.beta1 + gradients * (1 - constants.beta1);
  const at::Tensor second =
      flat.second_moment * constants.beta2 + gradients * gradients * (1 - constants.beta2);
  const at::Tensor root = second.sqrt().div_(root_correction).add_(constants.eps);
  const at::Tensor moved = flat.parameters - step_size * first / root;
  const at::Tensor shrink = (1 - scalars.learning_rate * constants.weight_decay).to(type);
  const at::Tensor parameters = at::where(flat.is_kernel, moved * shrink, moved);
  const auto assign = [&](const at::Tensor& target, const at::Tensor& value) {
    target.copy_(scalars.apply.defined() ? at::where(scalars.apply, value, target) : value);
  };
  if (flat.average.defined()) {
    const at::Tensor keep = scalars.average_decay.to(type);
    const at::Tensor take = (1 - scalars.average_decay).to(type);
    assign(flat.average, flat.average * keep + parameters * take);
  }
  assign(flat.parameters, parameters);
  assign(flat.first_moment, first);
  assign(flat.second_moment, second);
}

/// One step of Adam (arXiv 1412.6980), decoupled weight decay and the moving average, in the papers' order:
///
///     m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2
///     w <- w - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps),   t = steps_done + 1
///     w <- w (1 - lr weight_decay)    where is_kernel
///     average <- average_decay average + (1 - average_decay) w
///
/// In place, without gradient, in one kernel on CUDA. Nothing waits for the device; steps_done is not moved.
inline void flat_adam_step_(const FlatParameters& flat, const AdamScalars& scalars,
                            const AdamConstants& constants) {
  const at::NoGradGuard no_grad;
  const at::Tensor& parameters = flat.parameters;
  const auto type = parameters.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble,
              "flat_adam_step_: parameters must be float32 or float64, got ", type);
  for (const at::Tensor* tensor : {&flat.gradients, &flat.first_moment, &flat.second_moment, &flat.average}) {
    TORCH_CHECK((!tensor->defined() && tensor == &flat.average) ||
                    (tensor->sizes() == parameters.sizes() && tensor->scalar_type() == type &&
                     tensor->device() == parameters.device() && tensor->is_contiguous()),
                "flat_adam_step_: all tensors must be contiguous ", type, " ", parameters.sizes(), " on ",
                parameters.device(), ", got ", tensor->scalar_type(), " ", tensor->sizes(), " on ",
                tensor->device());
  }
  if (!has_cuda_memory(parameters) || !cuda_kernels_available(parameters.device())) {
    flat_adam_composite_(flat, scalars, constants);
    return;
  }
  if (parameters.numel() == 0) {
    return;
  }
  const auto pointer = [](const at::Tensor& tensor) -> void* {
    return tensor.defined() ? tensor.data_ptr() : nullptr;
  };
  constexpr int64_t threads = 256;
  launch_cuda_kernel(
      cuda_adam_source, std::string("adam_step<") + cuda_type_name(type) + ">", parameters.device(),
      {.blocks_x = cuda_blocks(parameters.numel(), threads), .threads = threads}, pointer(parameters),
      pointer(flat.gradients), pointer(flat.first_moment), pointer(flat.second_moment), pointer(flat.average),
      pointer(flat.is_kernel), pointer(scalars.steps_done), pointer(scalars.learning_rate),
      pointer(scalars.average_decay), pointer(scalars.apply), constants.beta1, constants.beta2, constants.eps,
      constants.weight_decay, parameters.numel());
}

}  // namespace mixmatch::detail
