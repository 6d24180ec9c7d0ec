#pragma once

#include <mixmatch/detail/cuda/cuda.hpp>
#include <mixmatch/detail/cuda/cuda_compiler.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace mixmatch::detail {

/// The name that kernels' sources have for a dtype; null for one that they do not know.
inline const char* cuda_type_name(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return "float";
    case at::kDouble:
      return "double";
    case at::kBFloat16:
      return "BFloat16";
    case at::kHalf:
      return "Half";
    default:
      return nullptr;
  }
}

/// What a kernel is given for a tensor that may be undefined.
inline void* data_or_null(const at::Tensor& tensor) { return tensor.defined() ? tensor.data_ptr() : nullptr; }

/// The sources' Strides, of images [N, C, H, W].
struct CudaStrides {
  int64_t image, channel, row, column;
};
inline CudaStrides strides_for_cuda(const at::Tensor& images) {
  return {images.stride(0), images.stride(1), images.stride(2), images.stride(3)};
}

/// A kernel's grid: blocks along x and y, threads in a block.
struct CudaGrid {
  int64_t blocks_x = 1, blocks_y = 1;
  int64_t threads = 1;
};

/// The blocks of `threads` that cover `work` items, at most `most`: kernels loop over the rest.
inline int64_t cuda_blocks(int64_t work, int64_t threads, int64_t most = 4096) {
  return std::clamp<int64_t>((work + threads - 1) / threads, 1, most);
}

#ifdef MIXMATCH_HAS_CUDA

/// Where LibTorch's CUDA libraries are, libcaffe2_nvrtc, which brings the driver too, among them; then NVRTC
/// itself.
inline std::vector<std::string> cuda_compiler_libraries() {
  std::vector<std::string> libraries;
  Dl_info info{};
  const auto* known = reinterpret_cast<const void*>(&c10::cuda::device_count);
  if (dladdr(known, &info) != 0 && info.dli_fname != nullptr) {
    const std::string path = info.dli_fname;
    const auto slash = path.rfind('/');
    if (slash != std::string::npos) {
      libraries.push_back(path.substr(0, slash + 1) + "libcaffe2_nvrtc.so");
    }
  }
  libraries.emplace_back("libcaffe2_nvrtc.so");
  for (auto& name : nvrtc_libraries(CUDART_VERSION / 1000)) {
    libraries.push_back(std::move(name));
  }
  return libraries;
}

inline const CudaCompiler& cuda_compiler() {
  static const CudaCompiler compiler(cuda_compiler_libraries());
  return compiler;
}

/// Throws what the driver has to say of a result that is not success.
inline void check_driver(CudaFunctions::Result result, const char* what, const CudaSource& source,
                         const std::string& entry) {
  if (result != 0) {
    const char* reason = nullptr;
    cuda_compiler().functions().driver_error(result, &reason);
    TORCH_CHECK(false, "mixmatch: ", what, " of ", source.name, ", kernel ", entry,
                ", failed: ", reason != nullptr ? reason : "unknown error");
  }
}

/// Calls of the driver need the device's context in their thread, which those of the runtime bring along: a
/// thread of the autograd engine may have made none yet, or its last one for another device. No call of the
/// runtime's here, as a step may be being captured.
inline void bind_cuda_context(c10::DeviceIndex device, const CudaSource& source, const std::string& entry) {
  static std::mutex mutex;
  static std::map<int, CudaFunctions::Handle> contexts;
  const auto& driver = cuda_compiler().functions();
  const std::lock_guard<std::mutex> lock(mutex);
  auto& context = contexts[static_cast<int>(device)];
  if (context == nullptr) {
    int ordinal = 0;
    check_driver(driver.get_device(&ordinal, static_cast<int>(device)), "finding the device", source, entry);
    check_driver(driver.primary_context(&context, ordinal), "getting the context", source, entry);
  }
  CudaFunctions::Handle current = nullptr;
  check_driver(driver.current_context(&current), "asking for the context", source, entry);
  if (current != context) {
    check_driver(driver.set_context(context), "setting the context", source, entry);
  }
}

/// A kernel that is loaded on one device, ready to be launched.
inline CudaFunctions::Handle loaded_cuda_kernel(const CudaSource& source, const std::string& entry,
                                                c10::DeviceIndex device) {
  static std::mutex mutex;
  static std::map<std::pair<std::string, int>, CudaFunctions::Handle> kernels;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& kernel = kernels[{entry, static_cast<int>(device)}];
  if (kernel == nullptr) {
    int major = 0, minor = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    const auto& compiler = cuda_compiler();
    const auto program = compiler.compile(source, entry, 10 * major + minor);
    CudaFunctions::Handle module = nullptr, function = nullptr;
    check_driver(compiler.functions().load_module(&module, program.code.data()), "loading", source, entry);
    check_driver(compiler.functions().get_function(&function, module, program.entry.c_str()), "the entry",
                 source, entry);
    kernel = function;
  }
  return kernel;
}

#endif

/// What can be said of an argument's type where the kernel's own names are not known. A GPU's driver is told
/// nothing of it.
struct CudaArgumentType {
  enum class Kind { pointer, integer, real, record } kind;
  size_t size;
  bool operator==(const CudaArgumentType&) const = default;
};
template <class Argument>
constexpr CudaArgumentType cuda_argument_type() {
  using Kind = CudaArgumentType::Kind;
  return {std::is_pointer_v<Argument> || std::is_null_pointer_v<Argument> ? Kind::pointer
          : std::is_integral_v<Argument>                                  ? Kind::integer
          : std::is_floating_point_v<Argument>                            ? Kind::real
                                                                          : Kind::record,
          sizeof(Argument)};
}

/// What runs kernels where cuda_is_emulated(): gets the entry, the grid, pointers to the arguments and their
/// types.
using CudaEmulator = std::function<void(const std::string& entry, const CudaGrid& grid, void** arguments,
                                        const std::vector<CudaArgumentType>& types)>;
inline CudaEmulator& cuda_emulator() {
  static CudaEmulator emulator;
  return emulator;
}

/// Tests set it to see the composites where kernels would serve.
inline bool& cuda_kernels_enabled() {
  static bool enabled = true;
  return enabled;
}

/// Whether run-time compiled kernels can run on that device. Where they cannot on a CUDA device, it says why
/// once, and callers use their ATen composites.
inline bool cuda_kernels_available(at::Device device) {
  if (cuda_is_emulated()) {
    return true;
  }
#ifdef MIXMATCH_HAS_CUDA
  if (!device.is_cuda() || !cuda_kernels_enabled()) {
    return false;
  }
  if (!cuda_compiler().can_launch()) {
    TORCH_WARN_ONCE("mixmatch: CUDA kernels are not compiled at run time, slower ATen calls serve: ",
                    cuda_compiler().why_not());
    return false;
  }
  return true;
#else
  static_cast<void>(device);
  return false;
#endif
}

/// Runs the kernel `entry` of a source on the device's current stream, compiling it at its first use. The
/// arguments have the types of the kernel's parameters, but that pointers may be void*, and records are twins
/// of the source's, field by field. Only after cuda_kernels_available().
template <class... Arguments>
void launch_cuda_kernel(const CudaSource& source, const std::string& entry, at::Device device,
                        const CudaGrid& grid, Arguments... arguments) {
  std::array<void*, sizeof...(Arguments)> pointers{static_cast<void*>(&arguments)...};
  if (cuda_is_emulated()) {
    cuda_emulator()(entry, grid, pointers.data(), {cuda_argument_type<Arguments>()...});
    return;
  }
#ifdef MIXMATCH_HAS_CUDA
  const c10::cuda::CUDAGuard guard(device);
  const auto index = device.has_index() ? device.index() : c10::cuda::current_device();
  bind_cuda_context(index, source, entry);
  const auto kernel = loaded_cuda_kernel(source, entry, index);
  check_driver(cuda_compiler().functions().launch(
                   kernel, static_cast<unsigned>(grid.blocks_x), static_cast<unsigned>(grid.blocks_y), 1,
                   static_cast<unsigned>(grid.threads), 1, 1, 0,
                   static_cast<CudaFunctions::Handle>(c10::cuda::getCurrentCUDAStream(index).stream()),
                   pointers.data(), nullptr),
               "the launch", source, entry);
#else
  static_cast<void>(source);
  static_cast<void>(device);
  TORCH_CHECK(false, "mixmatch: this build has no CUDA");
#endif
}

}  // namespace mixmatch::detail
