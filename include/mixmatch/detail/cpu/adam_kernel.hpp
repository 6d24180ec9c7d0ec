#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cpu/piecewise.hpp>
#include <mixmatch/detail/cpu/simd.hpp>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace mixmatch::detail {

using torch::Tensor;

/// The numbers of one step of Adam (arXiv 1412.6980), in the form that PyTorch computes:
///
///     m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
///     w = w - step_size m / (sqrt(v) / root_correction + eps)
///     step_size = lr / (1 - beta1^t),   root_correction = sqrt(1 - beta2^t)
struct AdamNumbers {
  double learning_rate, beta1, beta2, eps;

  /// For a parameter's t-th step.
  double step_size(int64_t t) const { return learning_rate / (1 - std::pow(beta1, static_cast<double>(t))); }
  double root_correction(int64_t t) const { return std::sqrt(1 - std::pow(beta2, static_cast<double>(t))); }
};

/// One tensor's part of a step: its memory, all of one layout. `average` may be null, and then nothing is
/// averaged; `shrink` is the decoupled weight decay's factor.
struct AdamTask {
  void *weight, *gradient, *first_moment, *second_moment, *average;
  int64_t size;
  double shrink, step_size, root_correction;
};

#if MIXMATCH_SIMD
/// The square root of each lane, which vector types have no operator for and std::sqrt hides behind errno.
template <class V>
MIXMATCH_INLINE void square_root(V& v) {
#ifdef __clang__
  // It checks an assembler line against the template's own instruction set, before it is inlined.
  for (unsigned i = 0; i < sizeof v / sizeof v[0]; ++i) {
    v[i] = __builtin_sqrtf(v[i]);
  }
#else
  __asm__("vsqrtps {%1, %0|%0, %1}" : "=v"(v) : "v"(v));
#endif
}
#endif

/// A step of Adam, then decay, then moving average, over a run of memory: every array is read and written
/// once.
struct AdamKernel {
  template <int Bytes, class Scalar>
  static MIXMATCH_INLINE void run(Scalar* weight, const AdamTask* task, const AdamNumbers* numbers,
                                  double decay, int64_t begin, int64_t end) {
    const auto* gradient = static_cast<const Scalar*>(task->gradient);
    auto* first = static_cast<Scalar*>(task->first_moment);
    auto* second = static_cast<Scalar*>(task->second_moment);
    auto* average = static_cast<Scalar*>(task->average);
    const auto beta1 = static_cast<Scalar>(numbers->beta1), rest1 = static_cast<Scalar>(1 - numbers->beta1);
    const auto beta2 = static_cast<Scalar>(numbers->beta2), rest2 = static_cast<Scalar>(1 - numbers->beta2);
    const auto eps = static_cast<Scalar>(numbers->eps), size = static_cast<Scalar>(task->step_size);
    const auto correction = static_cast<Scalar>(1 / task->root_correction);
    const auto shrink = static_cast<Scalar>(task->shrink);
    const auto keep = static_cast<Scalar>(decay), take = static_cast<Scalar>(1 - decay);
    int64_t i = begin;
#if MIXMATCH_SIMD
    if constexpr (Bytes >= 16 && std::is_same_v<Scalar, float>) {
      using F = FloatVectors<Bytes / 4>;
      for (; i + F::lanes <= end; i += F::lanes) {
        typename F::V w, g, m, v, root;
        F::load(w, weight + i);
        F::load(g, gradient + i);
        F::load(m, first + i);
        F::load(v, second + i);
        m = m * beta1 + g * rest1;
        v = v * beta2 + g * g * rest2;
        F::store(first + i, m);
        F::store(second + i, v);
        root = v;
        square_root(root);
        root = root * correction + eps;
        w = (w - m * size / root) * shrink;
        F::store(weight + i, w);
        if (average != nullptr) {
          if (decay == 0) {  // a copy, whatever infinity the average holds
            F::store(average + i, w);
          } else {
            F::load(m, average + i);
            m = m * keep + w * take;
            F::store(average + i, m);
          }
        }
      }
    }
#endif
    for (; i < end; ++i) {
      first[i] = first[i] * beta1 + gradient[i] * rest1;
      second[i] = second[i] * beta2 + gradient[i] * gradient[i] * rest2;
      const Scalar root = std::sqrt(second[i]) * correction + eps;
      weight[i] = (weight[i] - first[i] * size / root) * shrink;
      if (average != nullptr) {
        average[i] = decay == 0 ? weight[i] : average[i] * keep + weight[i] * take;
      }
    }
  }
};

/// Whether a run of memory holds nothing but finite numbers: `*finite` is 0 if not, and else left alone. By
/// their exponents' bits, which no compiler flag assumes away.
struct FiniteKernel {
  template <int Bytes, class Scalar>
  static MIXMATCH_INLINE void run(const Scalar* data, int64_t size, int* finite) {
    int64_t i = 0;
#if MIXMATCH_SIMD
    if constexpr (Bytes >= 16 && std::is_same_v<Scalar, float>) {
      using F = FloatVectors<Bytes / 4>;
      typename F::U bad = {};
      for (; i + F::lanes <= size; i += F::lanes) {
        typename F::U bits;
        __builtin_memcpy(&bits, data + i, sizeof bits);
        bad |= (typename F::U)((bits & 0x7f800000u) == 0x7f800000u);
      }
      for (int lane = 0; lane < F::lanes; ++lane) {
        if (bad[lane] != 0) {
          *finite = 0;
        }
      }
    }
#endif
    using Bits = std::conditional_t<std::is_same_v<Scalar, double>, uint64_t, uint32_t>;
    constexpr Bits exponent =
        static_cast<Bits>(std::is_same_v<Scalar, double> ? 0x7ff0000000000000U : 0x7f800000U);
    for (; i < size; ++i) {
      Bits bits;
      std::memcpy(&bits, data + i, sizeof bits);
      if ((bits & exponent) == exponent) {
        *finite = 0;
      }
    }
  }
};

/// Whether all the tensors' elements are finite: dense CPU tensors of one floating-point type.
template <class Scalar>
bool all_finite(const std::vector<AdamTask>& tasks) {
  std::vector<int64_t> sizes;
  for (const auto& task : tasks) {
    sizes.push_back(task.size);
  }
  std::atomic<bool> finite{true};
  for_each_piece(sizes, [&](size_t i, int64_t begin, int64_t end) {
    int piece = 1;
    run_widest<FiniteKernel>(static_cast<const Scalar*>(tasks[i].gradient) + begin, end - begin, &piece);
    if (piece == 0) {
      finite = false;
    }
  });
  return finite;
}

template <class Scalar>
void adam_step(const std::vector<AdamTask>& tasks, const AdamNumbers& numbers, double decay) {
  std::vector<int64_t> sizes;
  for (const auto& task : tasks) {
    sizes.push_back(task.size);
  }
  for_each_piece(sizes, [&](size_t i, int64_t begin, int64_t end) {
    run_widest<AdamKernel>(static_cast<Scalar*>(tasks[i].weight), &tasks[i], &numbers, decay, begin, end);
  });
}

}  // namespace mixmatch::detail
