#pragma once

// CUDA C++ without nvcc: NVRTC compiles a kernel's source for the device at hand when it is first used. Both
// NVRTC and the driver are found at run time, in the libraries that LibTorch itself brings for this
// (libcaffe2_nvrtc), so users link to neither and need no headers of them: the few functions are declared
// here. Nothing in this file needs a GPU or a LibTorch with CUDA.

#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::detail {

/// A file's worth of kernels. The same text compiles as host C++ under the tests' emulation.
struct CudaSource {
  const char* name;  ///< for messages
  const char* text;
};

/// What every source may use: fixed-size types, half precision by its bits (cuda_fp16.h is not always there
/// for NVRTC), values that are moved together, and sums and maxima over a block.
inline constexpr char cuda_prelude[] = R"cuda(
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct BFloat16 { u16 bits; };
struct Half { u16 bits; };

struct Strides { i64 image, channel, row, column; };

// Read and written as one: 16 bytes where memory is aligned for it.
template <class Scalar, int width>
struct alignas(sizeof(Scalar) * width) Pack { Scalar values[width]; };

// The type that arithmetic is done in.
template <class Scalar> struct ComputeOf { typedef float type; };
template <> struct ComputeOf<double> { typedef double type; };

__device__ inline double widen(double value) { return value; }
__device__ inline float widen(float value) { return value; }
__device__ inline float widen(BFloat16 value) { return __uint_as_float((u32)value.bits << 16); }
__device__ inline float widen(Half value) {
#ifdef __CUDA_ARCH__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  const u32 sign = (u32)(value.bits & 0x8000u) << 16;
  const u32 magnitude = value.bits & 0x7fffu;
  u32 bits;
  if (magnitude >= 0x7c00u) {
    bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else if (magnitude >= 0x0400u) {
    bits = (magnitude << 13) + (112u << 23);
  } else {
    bits = __float_as_uint((float)magnitude * 5.9604644775390625e-8f);  // 2^-24, a subnormal's unit
  }
  return __uint_as_float(sign | bits);
#endif
}

// To the nearest, ties to even. On a device that can, by its own instruction: the same but for a NaN's bits.
__device__ inline void narrow(double& to, double value) { to = value; }
__device__ inline void narrow(float& to, float value) { to = value; }
__device__ inline void narrow(BFloat16& to, float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(value));
#else
  const u32 bits = __float_as_uint(value);
  to.bits = value != value ? (u16)0x7fc0u : (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}
__device__ inline void narrow(Half& to, float value) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(value));
#else
  const u32 word = __float_as_uint(value);
  const u32 sign = (word >> 16) & 0x8000u;
  const u32 magnitude = word & 0x7fffffffu;
  u32 bits;
  if (magnitude > 0x7f800000u) {
    bits = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    bits = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {
    const u32 rebased = magnitude - (112u << 23);
    bits = (rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13;
  } else {  // 0.5 has the unit of half's subnormals, so the sum is rounded as they are
    bits = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
  }
  to.bits = (u16)(sign | bits);
#endif
}

// Two at a time, `low` in the lower half of a word.
template <class Scalar>
__device__ inline u32 narrow_two(Scalar, float low, float high) {
  Scalar first, second;
  narrow(first, low);
  narrow(second, high);
  return first.bits | (u32)second.bits << 16;
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
__device__ inline u32 narrow_two(BFloat16, float low, float high) {
  u32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
__device__ inline u32 narrow_two(Half, float low, float high) {
  u32 word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
#endif

__device__ inline float exponential(float value) { return expf(value); }
__device__ inline double exponential(double value) { return exp(value); }
__device__ inline float power(float base, float exponent) { return powf(base, exponent); }
__device__ inline double power(double base, double exponent) { return pow(base, exponent); }
__device__ inline float square_root(float value) { return sqrtf(value); }
__device__ inline double square_root(double value) { return sqrt(value); }

// NaN wins, as in amax.
template <class Value>
__device__ inline Value larger_of(Value a, Value b) { return a > b || a != a ? a : b; }

// SplitMix64's: see CounterRng.
__device__ inline u64 mix_bits(u64 value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ull;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBull;
  return value ^ (value >> 31);
}

// The upper half of number `place` of CounterRng(seed, step); `seed_bits` is mix_bits(seed + golden).
__device__ inline u64 counter_state(u64 seed_bits, i64 step) {
  return mix_bits(seed_bits + static_cast<u64>(step + 1) * 0x9E3779B97F4A7C15ull);
}
__device__ inline i64 counter_word(u64 state, i64 place) {
  return static_cast<i64>(mix_bits(state + static_cast<u64>(place + 1) * 0x9E3779B97F4A7C15ull) >> 32);
}

// Over the block, in every thread, in one order for every run. blockDim.x is a power of two; `scratch` has
// as many elements. All threads must call it.
template <bool maximum, class Value>
__device__ inline Value reduce_block(Value value, Value* scratch) {
  __syncthreads();  // whoever used scratch before is done
  scratch[threadIdx.x] = value;
  __syncthreads();
  for (u32 rest = blockDim.x / 2; rest > 0; rest /= 2) {
    if (threadIdx.x < rest) {
      const Value other = scratch[threadIdx.x + rest];
      scratch[threadIdx.x] = maximum ? larger_of(scratch[threadIdx.x], other) : scratch[threadIdx.x] + other;
    }
    __syncthreads();
  }
  return scratch[0];
}
)cuda";

/// The functions of NVRTC and of the CUDA driver that are called, with the types of their C interfaces.
struct CudaFunctions {
  using Result = int;  // nvrtcResult, CUresult: 0 is success
  using Handle = void*;

  Result (*create_program)(Handle*, const char*, const char*, int, const char* const*, const char* const*);
  Result (*destroy_program)(Handle*);
  Result (*compile_program)(Handle, int, const char* const*);
  Result (*add_name)(Handle, const char*);
  Result (*lowered_name)(Handle, const char*, const char**);
  Result (*log_size)(Handle, std::size_t*);
  Result (*log)(Handle, char*);
  Result (*ptx_size)(Handle, std::size_t*);
  Result (*ptx)(Handle, char*);
  Result (*cubin_size)(Handle, std::size_t*);  // from CUDA 11.1
  Result (*cubin)(Handle, char*);
  Result (*num_archs)(int*);  // from CUDA 11.2
  Result (*archs)(int*);
  const char* (*error_string)(Result);

  Result (*current_context)(Handle*);
  Result (*set_context)(Handle);
  Result (*get_device)(int*, int);
  Result (*primary_context)(Handle*, int);
  Result (*load_module)(Handle*, const void*);
  Result (*get_function)(Handle*, Handle, const char*);
  Result (*launch)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle,
                   void**, void**);
  Result (*driver_error)(Result, const char**);
};

/// The names by which the dynamic linker may know NVRTC: first that of a CUDA version's `major` number, as a
/// driver may not load what a newer NVRTC makes.
inline std::vector<std::string> nvrtc_libraries(int major = 0) {
  std::vector<std::string> names{"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"};
  std::stable_partition(names.begin(), names.end(), [&](const std::string& name) {
    return name.starts_with("libnvrtc.so." + std::to_string(major));
  });
  return names;
}

/// NVRTC as found on this machine, and the driver.
class CudaCompiler {
 public:
  struct Program {
    std::string code;  ///< a cubin, or PTX for a device newer than this NVRTC
    std::string entry;
  };

  /// Looks for the functions in `libraries`, in that order; the first that opens and has an NVRTC that
  /// compiles serves (one that misses a library of its own tells only then). The driver is what it is linked
  /// to, or else the system's.
  explicit CudaCompiler(const std::vector<std::string>& libraries) {
    for (const auto& name : libraries) {
      void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: kernels live in it
      if (library == nullptr) {
        const char* error = dlerror();
        why_not_ += (why_not_.empty() ? "" : "; ") + std::string(error != nullptr ? error : name);
        continue;
      }
      find_compiler(library);
      const std::string failure = can_compile_ ? try_it() : "no nvrtcCompileProgram";
      can_compile_ = failure.empty();
      if (can_compile_) {
        find_driver(library);
        void* driver = can_launch_ ? nullptr : dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (driver != nullptr) {
          find_driver(driver);
        }
        why_not_ = can_launch_ ? "" : "no CUDA driver (libcuda.so.1)";
        return;
      }
      why_not_ += (why_not_.empty() ? "" : "; ") + name + ": " + failure;
    }
  }

  bool can_compile() const { return can_compile_; }
  bool can_launch() const { return can_launch_; }
  /// One line, for the case that it cannot.
  const std::string& why_not() const { return why_not_; }
  const CudaFunctions& functions() const { return functions_; }

  /// The kernel `entry` of a source, a C++ expression such as "mix_rows<float, 4>", for devices of compute
  /// capability major * 10 + minor. Throws with NVRTC's log if the source does not compile.
  Program compile(const CudaSource& source, const std::string& entry, int capability) const {
    TORCH_CHECK(can_compile_, "mixmatch: cannot compile CUDA kernels: ", why_not_);
    const auto [architecture, native] = architecture_for(capability);
    const std::string text = std::string(cuda_prelude) + source.text;
    CudaFunctions::Handle program = nullptr;
    check(functions_.create_program(&program, text.c_str(), source.name, 0, nullptr, nullptr), source, entry);
    const ProgramGuard guard{functions_, program};
    check(functions_.add_name(program, entry.c_str()), source, entry);
    const std::string target = "--gpu-architecture=" + architecture;
    const char* options[] = {target.c_str(), "--std=c++17"};
    const auto result = functions_.compile_program(program, 2, options);
    if (result != 0) {
      std::size_t size = 0;
      std::string log;
      if (functions_.log_size(program, &size) == 0 && size > 1) {
        log.resize(size);
        functions_.log(program, log.data());
        log.resize(size - 1);
      }
      TORCH_CHECK(false, "mixmatch: NVRTC (", functions_.error_string(result), ") does not compile ",
                  source.name, ", kernel ", entry, ", for ", architecture, ":\n", log);
    }
    Program compiled;
    const char* name = nullptr;
    check(functions_.lowered_name(program, entry.c_str(), &name), source, entry);
    compiled.entry = name;
    std::size_t size = 0;
    check((native ? functions_.cubin_size : functions_.ptx_size)(program, &size), source, entry);
    compiled.code.resize(size);
    check((native ? functions_.cubin : functions_.ptx)(program, compiled.code.data()), source, entry);
    return compiled;
  }

 private:
  struct ProgramGuard {
    const CudaFunctions& functions;
    CudaFunctions::Handle program;
    ~ProgramGuard() { functions.destroy_program(&program); }
  };

  template <class F>
  static bool find_one(void* library, const char* name, F*& function) {
    // Also finds what the library itself is linked to.
    function = reinterpret_cast<F*>(dlsym(library, name));
    return function != nullptr;
  }

  void find_compiler(void* library) {
    auto& f = functions_;
    can_compile_ =
        find_one(library, "nvrtcCreateProgram", f.create_program) &&
        find_one(library, "nvrtcDestroyProgram", f.destroy_program) &&
        find_one(library, "nvrtcCompileProgram", f.compile_program) &&
        find_one(library, "nvrtcAddNameExpression", f.add_name) &&
        find_one(library, "nvrtcGetLoweredName", f.lowered_name) &&
        find_one(library, "nvrtcGetProgramLogSize", f.log_size) &&
        find_one(library, "nvrtcGetProgramLog", f.log) && find_one(library, "nvrtcGetPTXSize", f.ptx_size) &&
        find_one(library, "nvrtcGetPTX", f.ptx) && find_one(library, "nvrtcGetErrorString", f.error_string);
    has_cubin_ = find_one(library, "nvrtcGetCUBINSize", f.cubin_size) &&
                 find_one(library, "nvrtcGetCUBIN", f.cubin) &&
                 find_one(library, "nvrtcGetNumSupportedArchs", f.num_archs) &&
                 find_one(library, "nvrtcGetSupportedArchs", f.archs);
  }

  void find_driver(void* library) {
    auto& f = functions_;
    can_launch_ = find_one(library, "cuCtxGetCurrent", f.current_context) &&
                  find_one(library, "cuCtxSetCurrent", f.set_context) &&
                  find_one(library, "cuDeviceGet", f.get_device) &&
                  find_one(library, "cuDevicePrimaryCtxRetain", f.primary_context) &&
                  find_one(library, "cuModuleLoadData", f.load_module) &&
                  find_one(library, "cuModuleGetFunction", f.get_function) &&
                  find_one(library, "cuLaunchKernel", f.launch) &&
                  find_one(library, "cuGetErrorString", f.driver_error);
  }

  /// What goes wrong with the smallest kernel, in one line; nothing if it compiles.
  std::string try_it() const {
    const auto known = known_architectures();
    try {
      compile({"a trial", "template <class T> __global__ void nothing(T*) {}"}, "nothing<float>",
              known.empty() ? 52 : known.front());
      return "";
    } catch (const c10::Error& error) {
      std::string text = error.what_without_backtrace();
      std::replace(text.begin(), text.end(), '\n', ' ');
      return text;
    }
  }

  /// Those that NVRTC makes cubins for; none where it cannot say.
  std::vector<int> known_architectures() const {
    int count = 0;
    std::vector<int> known;
    if (has_cubin_ && functions_.num_archs(&count) == 0) {
      known.resize(static_cast<std::size_t>(count));
      functions_.archs(known.data());
    }
    return known;
  }

  /// sm_NN where NVRTC knows the device; else PTX of the newest architecture that the device can run.
  std::pair<std::string, bool> architecture_for(int capability) const {
    if (!has_cubin_) {
      return {"compute_" + std::to_string(capability), false};
    }
    const auto known = known_architectures();
    if (std::find(known.begin(), known.end(), capability) != known.end()) {
      return {"sm_" + std::to_string(capability), true};
    }
    int newest = 0;
    for (const int arch : known) {
      newest = arch < capability ? std::max(newest, arch) : newest;
    }
    return {"compute_" + std::to_string(newest > 0 ? newest : capability), false};
  }

  void check(CudaFunctions::Result result, const CudaSource& source, const std::string& entry) const {
    TORCH_CHECK(result == 0, "mixmatch: NVRTC: ", functions_.error_string(result), " for ", source.name,
                ", kernel ", entry);
  }

  CudaFunctions functions_{};
  bool can_compile_ = false, can_launch_ = false, has_cubin_ = false;
  std::string why_not_;
};

}  // namespace mixmatch::detail
