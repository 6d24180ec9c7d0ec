#pragma once

// Every switch on the LibTorch version lives in this file.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/version.h>

#include <cmath>
#include <optional>

#define MIXMATCH_TORCH_AT_LEAST(major, minor) \
  (TORCH_VERSION_MAJOR > (major) || (TORCH_VERSION_MAJOR == (major) && TORCH_VERSION_MINOR >= (minor)))

#if defined(MIXMATCH_HAS_CUDA) && MIXMATCH_TORCH_AT_LEAST(2, 9)
#define MIXMATCH_HOST_ALLOCATOR_HEADER <ATen/core/CachingHostAllocator.h>
#include MIXMATCH_HOST_ALLOCATOR_HEADER
#endif

namespace mixmatch::detail {

#if MIXMATCH_TORCH_AT_LEAST(2, 5)
template <class T>
using AtenOptional = std::optional<T>;
#else
template <class T>
using AtenOptional = c10::optional<T>;  // not yet an alias of std::optional
#endif
using OptionalGenerator = AtenOptional<at::Generator>;
using OptionalTensor = AtenOptional<at::Tensor>;

/// uint16, which LibTorch has from 2.3 on.
inline std::optional<at::ScalarType> uint16_type() {
#if MIXMATCH_TORCH_AT_LEAST(2, 3)
  return at::kUInt16;
#else
  return std::nullopt;
#endif
}

inline bool is_uint16(at::ScalarType type) { return uint16_type() == type; }

/// The generator in the optional type that this LibTorch's operators take.
inline OptionalGenerator to_aten(const std::optional<at::Generator>& generator) {
  if (generator.has_value()) {
    return OptionalGenerator(*generator);
  }
  return OptionalGenerator();
}

/// Autocast for one device type: whether it is on, and in which dtype.
struct AutocastState {
  bool enabled;
  at::ScalarType dtype;
};

inline AutocastState autocast_state(at::DeviceType device) {
#if MIXMATCH_TORCH_AT_LEAST(2, 4)
  return {at::autocast::is_autocast_enabled(device), at::autocast::get_autocast_dtype(device)};
#else
  return device == at::kCUDA
             ? AutocastState{at::autocast::is_enabled(), at::autocast::get_autocast_gpu_dtype()}
             : AutocastState{at::autocast::is_cpu_enabled(), at::autocast::get_autocast_cpu_dtype()};
#endif
}

inline void set_autocast_state(at::DeviceType device, const AutocastState& state) {
#if MIXMATCH_TORCH_AT_LEAST(2, 4)
  at::autocast::set_autocast_enabled(device, state.enabled);
  at::autocast::set_autocast_dtype(device, state.dtype);
#else
  if (device == at::kCUDA) {
    at::autocast::set_enabled(state.enabled);
    at::autocast::set_autocast_gpu_dtype(state.dtype);
  } else {
    at::autocast::set_cpu_enabled(state.enabled);
    at::autocast::set_autocast_cpu_dtype(state.dtype);
  }
#endif
}

/// Ends a backend of collectives before its process ends, where LibTorch wants to be told: ProcessGroupNCCL
/// has shutdown() for that in 2.6 and 2.14, and warns without it, and has none in 1.13.
template <class Backend>
void shut_down(Backend& backend) {
  if constexpr (requires { backend.shutdown(); }) {
    backend.shutdown();
  }
}

/// softmax(q k^T / sqrt(d)) v of tensors [N, heads, T, d]; LibTorch 2 fuses it.
inline at::Tensor scaled_dot_product_attention(const at::Tensor& q, const at::Tensor& k,
                                               const at::Tensor& v) {
#if MIXMATCH_TORCH_AT_LEAST(2, 0)
  return at::scaled_dot_product_attention(q, k, v);
#else
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(-1)));
  return at::matmul(at::softmax(at::matmul(q * scale, k.transpose(-2, -1)), -1), v);
#endif
}

/// Whether convolutions in bfloat16 run on the CUDA device: Ampere or newer.
inline bool cuda_has_bfloat16() {
  return at::hasCUDA() && at::detail::getCUDAHooks().supportsBFloat16ConvolutionWithCuDNNv8();
}

/// Lets a graph that is about to be captured manage a CUDA generator: LibTorch 2.4 to 2.14 want to be told,
/// later ones find the generators that are drawn from, and earlier ones manage the device's default alone.
/// `Impl` is at::CUDAGeneratorImpl; a template, as this file reads no header of CUDA's.
template <class Impl, class Graph>
void register_generator(Impl& generator, Graph& graph, bool is_default) {
  if constexpr (requires { generator.register_graph(&graph); }) {
    generator.register_graph(&graph);
  } else if constexpr (!requires { generator.graphsafe_get_state(); }) {
    TORCH_CHECK(is_default, "this LibTorch, ", TORCH_VERSION,
                ", captures draws from the device's default generator only, not from another one");
  }
}

/// Gives a CUDA generator the state that it had before a capture that failed; `fresh` is a new generator of
/// the same device. With LibTorch 2.4 to 2.14 the generator may still believe that it is being captured, and
/// is given another memory; earlier graphs keep the old one.
template <class Impl, class Generator>
void recover_generator(Impl& implementation, Generator& generator, Generator fresh, const at::Tensor& state) {
  if constexpr (requires { implementation.register_graph(nullptr); }) {
    fresh.set_state(state);
    generator.graphsafe_set_state(fresh);
  } else {
    if constexpr (requires { implementation.capture_epilogue(); }) {
      implementation.capture_epilogue();
    }
    generator.set_state(state);
  }
}

/// Whether what is allocated on a second stream that joined a capture is the graph's memory: LibTorch about
/// 2.1 knows the capture by its stream alone.
template <class Allocator>
constexpr bool captures_second_streams() {
  return !requires(Allocator & allocator) { &Allocator::endAllocateStreamToPool; };
}

/// Tells the allocators of CUDA's memory and of pinned memory that a capture into `pool` is over, which
/// LibTorch 2.1 to 2.14 may not do of one that failed: they would go on asking the graph, which is gone by
/// then, and keep its memory. `Allocator` is c10::cuda::CUDACachingAllocator::CUDAAllocator. Where the
/// allocators know already, nothing happens.
template <class Allocator, class Stream, class Pool>
void end_failed_capture(Allocator& allocator, c10::DeviceIndex device, Stream stream, Pool pool) {
#if !MIXMATCH_TORCH_AT_LEAST(2, 15)  // from there on the graph's destructor does
  try {
    if constexpr (requires { allocator.endAllocateToPool(device, pool); }) {
      allocator.endAllocateToPool(device, pool);
      allocator.releasePool(device, pool);
    } else if constexpr (requires { allocator.endAllocateStreamToPool(device, stream); }) {
      allocator.endAllocateStreamToPool(device, stream);
      allocator.releasePool(device, pool);
    }
  } catch (const c10::Error&) {  // it says that nothing is being captured
  }
#ifdef MIXMATCH_HOST_ALLOCATOR_HEADER
  try {
    [&](auto* host) {
      if constexpr (requires { host->end_allocate_to_pool(pool); }) {
        host->end_allocate_to_pool(pool);
        host->release_pool(pool);
      }
    }(at::getHostAllocator(at::kCUDA));
  } catch (const c10::Error&) {
  }
#endif
#endif
  static_cast<void>(allocator);
  static_cast<void>(device);
  static_cast<void>(stream);
  static_cast<void>(pool);
}

}  // namespace mixmatch::detail
