#pragma once

// Vector code in a header, for g++ and clang, whatever flags the user compiles with.
//
// A kernel is a struct with a template `run<Bytes>(...)`, Bytes the width of a vector. Its body and all that
// it calls are always inlined (MIXMATCH_INLINE) into one thin wrapper per instruction set, and only the
// wrapper names the instruction set. So the body has no intrinsics, which would be refused outside such a
// function, but the compilers' vector types, and it passes them by reference, since by value they have
// another ABI in each instruction set. Elsewhere run<0> is the plain loop.

#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/types.h>
#include <mixmatch/detail/cpu/fast_bfloat16.hpp>
#include <mixmatch/detail/float_types.hpp>

#include <cstdint>
#include <type_traits>

#if defined(__GNUC__) && defined(__x86_64__)
#define MIXMATCH_SIMD 1
#define MIXMATCH_INLINE inline __attribute__((always_inline))
#define MIXMATCH_INLINE_LAMBDA __attribute__((always_inline))
#else
#define MIXMATCH_SIMD 0
#define MIXMATCH_INLINE inline
#endif

namespace mixmatch::detail {

/// Whether the elements can be read and written at data_ptr: an ordinary CPU tensor, no wrapper, no lazy
/// negation.
inline bool has_plain_memory(const at::Tensor& tensor) {
  return tensor.device().is_cpu() && tensor.layout() == at::kStrided && !tensor.is_neg() &&
         !tensor._is_zerotensor() && !at::isTensorSubclassLike(tensor);
}

enum class SimdLevel { plain, avx2, avx512, avx512_bf16 };

/// What this machine has. Tests lower it.
inline SimdLevel& simd_level() {
  static SimdLevel level = [] {
#if MIXMATCH_SIMD
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      return has_fast_bfloat16() ? SimdLevel::avx512_bf16 : SimdLevel::avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      return SimdLevel::avx2;
    }
#endif
    return SimdLevel::plain;
  }();
  return level;
}

#if MIXMATCH_SIMD

template <class Kernel, class... Args>
__attribute__((target("avx2,fma"), flatten)) void run_avx2(Args... args) {
  Kernel::template run<32>(args...);
}

template <class Kernel, class... Args>
__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"), flatten)) void run_avx512(
    Args... args) {
  Kernel::template run<64>(args...);
}

/// For kernels that know the instructions of AVX512-BF16 by name.
template <class Kernel, class... Args>
__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"), flatten)) void
run_avx512_bf16(Args... args) {
  Kernel::template run<64>(args...);
}

#endif

/// Kernel::run for the widest vectors of this machine. Arguments are numbers and pointers.
template <class Kernel, class... Args>
void run_widest(Args... args) {
#if MIXMATCH_SIMD
  switch (simd_level()) {
    case SimdLevel::avx512_bf16:
    case SimdLevel::avx512:
      return run_avx512<Kernel>(args...);
    case SimdLevel::avx2:
      return run_avx2<Kernel>(args...);
    case SimdLevel::plain:
      break;
  }
#endif
  Kernel::template run<0>(args...);
}

/// One element at a time, under the names of FloatVectors.
template <class Scalar>
struct SingleLane {
  static constexpr int lanes = 1;
  using V = Compute<Scalar>;
  template <class From>
  static MIXMATCH_INLINE void load(V& v, const From* from) {
    v = static_cast<V>(*from);
  }
  template <class To>
  static MIXMATCH_INLINE void store(To* to, const V& v) {
    *to = static_cast<To>(v);
  }
};

#if MIXMATCH_SIMD

// Written out, as g++ loses a vector_size that depends on a template's argument.
#define MIXMATCH_VECTOR_TYPES(LANES)                                \
  template <>                                                       \
  struct VectorTypes<LANES> {                                       \
    typedef float Float __attribute__((vector_size(LANES * 4)));    \
    typedef int32_t Int __attribute__((vector_size(LANES * 4)));    \
    typedef uint32_t Word __attribute__((vector_size(LANES * 4)));  \
    typedef uint16_t Short __attribute__((vector_size(LANES * 2))); \
    typedef double Double __attribute__((vector_size(LANES * 8)));  \
  }
template <int Lanes>
struct VectorTypes;
MIXMATCH_VECTOR_TYPES(2);
MIXMATCH_VECTOR_TYPES(4);
MIXMATCH_VECTOR_TYPES(8);
MIXMATCH_VECTOR_TYPES(16);
#undef MIXMATCH_VECTOR_TYPES

/// Each lane as the other type.
template <class To, class From>
MIXMATCH_INLINE void convert_lanes(To& to, const From& from) {
  to = __builtin_convertvector(from, To);
}

/// Vectors of `Lanes` floats, and how every 16- and 32-bit type is read into them and written from them.
template <int Lanes>
struct FloatVectors {
  static constexpr int lanes = Lanes;
  using V = typename VectorTypes<Lanes>::Float;
  using I = typename VectorTypes<Lanes>::Int;
  using U = typename VectorTypes<Lanes>::Word;
  using Short = typename VectorTypes<Lanes>::Short;

  /// All bits of the first, or of the last, `count` lanes.
  static MIXMATCH_INLINE void first_lanes(I& mask, int64_t count) {
    for (int i = 0; i < Lanes; ++i) {
      mask[i] = i < count ? -1 : 0;
    }
  }
  static MIXMATCH_INLINE void last_lanes(I& mask, int64_t count) {
    for (int i = 0; i < Lanes; ++i) {
      mask[i] = i >= Lanes - count ? -1 : 0;
    }
  }

  static MIXMATCH_INLINE void load(V& v, const float* from) { __builtin_memcpy(&v, from, sizeof v); }
  static MIXMATCH_INLINE void store(float* to, const V& v) { __builtin_memcpy(to, &v, sizeof v); }

  static MIXMATCH_INLINE void load(V& v, const c10::BFloat16* from) {
    Short bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    U wide;
    convert_lanes(wide, bits);
    v = (V)(wide << 16);
  }
  /// To the nearest, ties to even.
  static MIXMATCH_INLINE void store(c10::BFloat16* to, const V& v) {
    const U bits = (U)v;
    const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const U nan = (U)(v != v);
    Short result;
    convert_lanes(result, U((rounded & ~nan) | (nan & 0x7fc0u)));
    __builtin_memcpy(to, &result, sizeof result);
  }

  // The conversions of c10/util/Half.h, whose comments derive the constants.
  static MIXMATCH_INLINE void load(V& v, const c10::Half* from) {
    Short half;
    __builtin_memcpy(&half, from, sizeof half);
    U word;
    convert_lanes(word, half);
    word = word << 16;
    const U twice = word + word;
    const V normal = (V)((twice >> 4) + (0xe0u << 23)) * 0x1p-112f;
    const V subnormal = (V)((twice >> 17) | (126u << 23)) - 0.5f;
    const U small = (U)(twice < (1u << 27));
    v = (V)((word & 0x80000000u) | (small & (U)subnormal) | (~small & (U)normal));
  }
  static MIXMATCH_INLINE void store(c10::Half* to, const V& v) {
    const U word = (U)v;
    const U twice = word + word;
    const U sign = word & 0x80000000u;
    const V magnitude = ((V)(word & 0x7fffffffu) * 0x1p+112f) * 0x1p-110f;
    const U exponent = twice & 0xff000000u;
    const U low = (U)(exponent < 0x71000000u);
    const U bias = (exponent & ~low) | (low & 0x71000000u);
    const U bits = (U)((V)((bias >> 1) + 0x07800000u) + magnitude);
    const U finite = ((bits >> 13) & 0x7c00u) + (bits & 0xfffu);
    const U nan = (U)(twice > 0xff000000u);
    Short result;
    convert_lanes(result, U((sign >> 16) | (nan & 0x7e00u) | (finite & ~nan)));
    __builtin_memcpy(to, &result, sizeof result);
  }
};

template <int Lanes>
struct DoubleVectors {
  static constexpr int lanes = Lanes;
  using V = typename VectorTypes<Lanes>::Double;
  static MIXMATCH_INLINE void load(V& v, const double* from) { __builtin_memcpy(&v, from, sizeof v); }
  static MIXMATCH_INLINE void store(double* to, const V& v) { __builtin_memcpy(to, &v, sizeof v); }
};

/// f(0), f(1) … f(count - 1), written out: compilers leave a loop over arrays of vectors in memory.
template <int count, class F>
MIXMATCH_INLINE void unrolled(const F& f) {
  if constexpr (count > 0) {
    unrolled<count - 1>(f);
    f(count - 1);
  }
}

/// Vectors of `Bytes` in the arithmetic type of `Scalar`; one element at a time where those are too few.
template <class Scalar, int Bytes, int size = (Bytes >= 16 ? Bytes : 16)>
using Lanes = std::conditional_t<
    (Bytes < 16), SingleLane<Scalar>,
    std::conditional_t<std::is_same_v<Scalar, double>, DoubleVectors<size / 8>, FloatVectors<size / 4>>>;

#else

template <class Scalar, int Bytes>
using Lanes = SingleLane<Scalar>;

#endif

/// to[i] = from[i], from one type to another.
struct ConvertKernel {
  template <int Bytes, class To, class From>
  static MIXMATCH_INLINE void run(To* to, const From* from, int64_t size) {
    constexpr bool has_double = std::is_same_v<To, double> || std::is_same_v<From, double>;
    using L = Lanes<To, has_double ? 0 : Bytes>;
    int64_t i = 0;
    for (; i + L::lanes <= size; i += L::lanes) {
      typename L::V v;
      L::load(v, from + i);
      L::store(to + i, v);
    }
    if constexpr (L::lanes > 1) {
      run<0>(to + i, from + i, size - i);
    }
  }
};

}  // namespace mixmatch::detail
