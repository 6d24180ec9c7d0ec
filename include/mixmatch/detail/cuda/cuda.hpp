#pragma once

// The one place that says whether this build has CUDA: MIXMATCH_HAS_CUDA is set by the CMake package where
// LibTorch was built with CUDA and the toolkit's headers are there. Without it everything compiles to the
// fallbacks, and no header of CUDA's is read.

#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/types.h>

#ifdef MIXMATCH_HAS_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#endif

namespace mixmatch::detail {

#ifdef MIXMATCH_HAS_CUDA
inline constexpr bool has_cuda = true;
#else
inline constexpr bool has_cuda = false;
#endif

/// Set by tests that run kernels as host code: CPU tensors then count as the device's.
inline bool& cuda_is_emulated() {
  static bool emulated = false;
  return emulated;
}

/// Whether what is asked of `device` now goes into a CUDA graph.
inline bool is_capturing(torch::Device device) {
#ifdef MIXMATCH_HAS_CUDA
  if (device.is_cuda()) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    C10_CUDA_CHECK(cudaStreamIsCapturing(c10::cuda::getCurrentCUDAStream(device.index()).stream(), &status));
    return status != cudaStreamCaptureStatusNone;
  }
#endif
  static_cast<void>(device);
  return false;
}

/// Whether the elements can be read and written at data_ptr by a CUDA kernel: an ordinary CUDA tensor, no
/// wrapper, no lazy negation.
inline bool has_cuda_memory(const at::Tensor& tensor) {
  return (tensor.device().is_cuda() || cuda_is_emulated()) && tensor.layout() == at::kStrided &&
         !tensor.is_neg() && !tensor._is_zerotensor() && !at::isTensorSubclassLike(tensor);
}

}  // namespace mixmatch::detail
