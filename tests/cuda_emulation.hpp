#pragma once

// CUDA kernels as host C++: each thread of a block is a thread, blocks run one after the other, in an order
// that tests choose, as a GPU promises none. What kernels say in the common subset of both languages is what
// is tested; how a GPU runs it is not.

#include <torch/types.h>
#include <mixmatch/detail/cuda/cuda_kernel.hpp>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

// CUDA's own headers define some of these for host compilers.
#undef __device__
#undef __global__
#undef __shared__
#undef __launch_bounds__
#define __device__
#define __global__ inline
#define __shared__ static
#define __launch_bounds__(...)

namespace cuda_emulation {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline thread_local Index threadIdx, blockIdx;
inline Index blockDim, gridDim;
inline thread_local std::barrier<>* block_barrier = nullptr;  // of the launch that this thread belongs to

inline void __syncthreads() { block_barrier->arrive_and_wait(); }
[[noreturn]] inline void __trap() { std::abort(); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
using std::exp, std::log, std::pow, std::sqrt;
inline float expf(float value) { return std::exp(value); }
inline float powf(float base, float exponent) { return std::pow(base, exponent); }
inline float sqrtf(float value) { return std::sqrt(value); }
// Volatile, as a host compiler may fuse a product with a sum.
inline float __fmul_rn(float a, float b) {
  const volatile float product = a * b;
  return product;
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) {
  const volatile double product = a * b;
  return product;
}
inline double __dadd_rn(double a, double b) { return a + b; }
inline void atomicAdd(unsigned* to, unsigned value) {
  std::atomic_ref(*to).fetch_add(value, std::memory_order_relaxed);
}
/// Replaces `to` by the value while `better(value, to)`.
template <class Better>
void atomic_replace(int* to, int value, const Better& better) {
  const std::atomic_ref shared(*to);
  int held = shared.load();
  while (better(value, held) && !shared.compare_exchange_weak(held, value)) {
  }
}
inline void atomicMin(int* to, int value) { atomic_replace(to, value, std::less<int>()); }
inline void atomicMax(int* to, int value) { atomic_replace(to, value, std::greater<int>()); }

#include "cuda_compiler.inc"

enum class BlockOrder { forward, backward, shuffled };
inline BlockOrder block_order = BlockOrder::forward;

inline std::vector<Index> ordered_blocks(unsigned blocks_x, unsigned blocks_y) {
  std::vector<Index> blocks;
  for (unsigned y = 0; y < blocks_y; ++y) {
    for (unsigned x = 0; x < blocks_x; ++x) {
      blocks.push_back({x, y, 0});
    }
  }
  if (block_order == BlockOrder::backward) {
    std::reverse(blocks.begin(), blocks.end());
  } else if (block_order == BlockOrder::shuffled) {
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(blocks_x + blocks_y));
  }
  return blocks;
}

/// kernel<<<(blocks_x, blocks_y), threads>>>(arguments...)
template <class Kernel, class... Arguments>
void launch(unsigned blocks_x, unsigned blocks_y, unsigned threads, Kernel kernel, Arguments... arguments) {
  std::barrier<> barrier(static_cast<std::ptrdiff_t>(threads));
  gridDim = {blocks_x, blocks_y, 1};
  blockDim = {threads, 1, 1};
  const auto blocks = ordered_blocks(blocks_x, blocks_y);
  std::vector<std::thread> running;
  for (unsigned t = 0; t < threads; ++t) {
    running.emplace_back([=, &barrier, &blocks] {
      block_barrier = &barrier;
      threadIdx = {t, 0, 0};
      for (const Index& block : blocks) {
        blockIdx = block;
        kernel(arguments...);
        __syncthreads();
      }
    });
  }
  for (auto& thread : running) {
    thread.join();
  }
}

/// While it lives, the library's own launches run here: CPU tensors count as a GPU's, and its host code, with
/// its grids and arguments, is what is tested.
class EmulatedDevice {
 public:
  EmulatedDevice() {
    mixmatch::detail::cuda_is_emulated() = true;
    mixmatch::detail::cuda_emulator() = [this](const std::string& entry,
                                               const mixmatch::detail::CudaGrid& grid, void** arguments,
                                               const auto& types) {
      const auto found = kernels_.find(entry);
      TORCH_CHECK(found != kernels_.end(), "no kernel ", entry);
      TORCH_CHECK(found->second.types == types, "the arguments of ", entry, " are not its parameters");
      ++launches_;
      found->second.run(grid, arguments);
    };
  }
  EmulatedDevice(const EmulatedDevice&) = delete;
  EmulatedDevice& operator=(const EmulatedDevice&) = delete;
  ~EmulatedDevice() {
    mixmatch::detail::cuda_is_emulated() = false;
    mixmatch::detail::cuda_emulator() = nullptr;
  }

  template <class... Parameters>
  void add(const std::string& entry, void (*kernel)(Parameters...)) {
    kernels_[entry] = {[kernel](const mixmatch::detail::CudaGrid& grid, void** arguments) {
                         run(kernel, grid, arguments, std::index_sequence_for<Parameters...>());
                       },
                       {mixmatch::detail::cuda_argument_type<Parameters>()...}};
  }
  int launches() const { return launches_; }

 private:
  template <class... Parameters, size_t... places>
  static void run(void (*kernel)(Parameters...), const mixmatch::detail::CudaGrid& grid, void** arguments,
                  std::index_sequence<places...>) {
    launch(static_cast<unsigned>(grid.blocks_x), static_cast<unsigned>(grid.blocks_y),
           static_cast<unsigned>(grid.threads), kernel, *static_cast<Parameters*>(arguments[places])...);
  }

  struct Kernel {
    std::function<void(const mixmatch::detail::CudaGrid&, void**)> run;
    std::vector<mixmatch::detail::CudaArgumentType> types;
  };
  std::map<std::string, Kernel> kernels_;
  int launches_ = 0;
};

/// f(Scalar()) for the kernels' type of that dtype.
template <class F>
void dispatch(at::ScalarType type, const F& f) {
  switch (type) {
    case at::kFloat:
      return f(float());
    case at::kDouble:
      return f(double());
    case at::kBFloat16:
      return f(BFloat16());
    case at::kHalf:
      return f(Half());
    default:
      TORCH_CHECK(false, "no kernels for ", type);
  }
}

inline const std::vector<at::ScalarType> all_types{at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};

/// A tensor's memory as the kernels' type.
template <class T>
T* pointer(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

/// How far results of a dtype may be from exact arithmetic, relative and absolute.
inline double rounding_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return 1e-12;
    case at::kFloat:
      return 2e-6;
    case at::kHalf:
      return 1.0 / 1024;
    default:
      return 1.0 / 128;
  }
}

inline bool close(const at::Tensor& result, const at::Tensor& exact) {
  const double tolerance = rounding_of(result.scalar_type());
  return at::allclose(result.to(at::kDouble), exact.to(at::kDouble), tolerance, tolerance,
                      /*equal_nan=*/true);
}

}  // namespace cuda_emulation
