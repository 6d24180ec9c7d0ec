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
  double beta1, beta2, eps, step_size, root_correction;
};

/// Those of SGD with momentum, in PyTorch's form:
///
///     m = momentum m + g,   w = w - lr (nesterov ? g + momentum m : m)
struct SgdNumbers {
  double learning_rate, momentum;
  bool nesterov;
};

/// One tensor's part of a step: its memory, all of one layout. `second_moment` is Adam's; `average` may be
/// null, and then nothing is averaged. `l2` w joins the gradient; `shrink` is the decoupled weight decay's
/// factor.
struct UpdateTask {
  void *weight, *gradient, *first_moment, *second_moment, *average;
  int64_t size;
  double shrink, l2;
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
MIXMATCH_INLINE void square_root(float& value) { value = std::sqrt(value); }
MIXMATCH_INLINE void square_root(double& value) { value = std::sqrt(value); }

/// The moves of one vector or number: what differs from rule to rule.
struct AdamRuleKernel {
  template <class Scalar>
  struct Constants {
    explicit Constants(const AdamNumbers& n)
        : keep1(static_cast<Scalar>(n.beta1)),
          take1(static_cast<Scalar>(1 - n.beta1)),
          keep2(static_cast<Scalar>(n.beta2)),
          take2(static_cast<Scalar>(1 - n.beta2)),
          eps(static_cast<Scalar>(n.eps)),
          size(static_cast<Scalar>(n.step_size)),
          correction(static_cast<Scalar>(1 / n.root_correction)) {}
    Scalar keep1, take1, keep2, take2, eps, size, correction;
  };
  static constexpr bool has_second_moment = true;

  template <class V, class Scalar>
  static MIXMATCH_INLINE void move(V& w, const V& g, V& m, V& v, const Constants<Scalar>& c) {
    m = m * c.keep1 + g * c.take1;
    v = v * c.keep2 + g * g * c.take2;
    V root = v;
    square_root(root);
    root = root * c.correction + c.eps;
    w = w - m * c.size / root;
  }
};

struct SgdRuleKernel {
  template <class Scalar>
  struct Constants {
    explicit Constants(const SgdNumbers& n)
        : rate(static_cast<Scalar>(n.learning_rate)),
          momentum(static_cast<Scalar>(n.momentum)),
          gradient(static_cast<Scalar>(n.nesterov ? 1 : 0)),
          moved(static_cast<Scalar>(n.nesterov ? n.momentum : 1)) {}
    Scalar rate, momentum, gradient, moved;
  };
  static constexpr bool has_second_moment = false;

  template <class V, class Scalar>
  static MIXMATCH_INLINE void move(V& w, const V& g, V& m, V&, const Constants<Scalar>& c) {
    m = m * c.momentum + g;
    w = w - (g * c.gradient + m * c.moved) * c.rate;
  }
};

/// A step of the optimiser, then decay, then moving average, over a run of memory: every array is read and
/// written once.
template <class Rule>
struct UpdateKernel {
  template <int Bytes, class Scalar, class Numbers>
  static MIXMATCH_INLINE void run(Scalar* weight, const UpdateTask* task, const Numbers* numbers,
                                  double decay, int64_t begin, int64_t end) {
    const auto* gradient = static_cast<const Scalar*>(task->gradient);
    auto* first = static_cast<Scalar*>(task->first_moment);
    auto* second = static_cast<Scalar*>(task->second_moment);
    auto* average = static_cast<Scalar*>(task->average);
    const typename Rule::template Constants<Scalar> constants(*numbers);
    const auto l2 = static_cast<Scalar>(task->l2), shrink = static_cast<Scalar>(task->shrink);
    const auto keep = static_cast<Scalar>(decay), take = static_cast<Scalar>(1 - decay);
    int64_t i = begin;
#if MIXMATCH_SIMD
    if constexpr (Bytes >= 16 && std::is_same_v<Scalar, float>) {
      using F = FloatVectors<Bytes / 4>;
      for (; i + F::lanes <= end; i += F::lanes) {
        typename F::V w, g, m, v = {};
        F::load(w, weight + i);
        F::load(g, gradient + i);
        F::load(m, first + i);
        if constexpr (Rule::has_second_moment) {
          F::load(v, second + i);
        }
        if (l2 != 0) {
          g = g + w * l2;
        }
        Rule::move(w, g, m, v, constants);
        F::store(first + i, m);
        if constexpr (Rule::has_second_moment) {
          F::store(second + i, v);
        }
        w = w * shrink;
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
      Scalar w = weight[i], g = gradient[i], v = Rule::has_second_moment ? second[i] : Scalar(0);
      if (l2 != 0) {
        g += w * l2;
      }
      Rule::move(w, g, first[i], v, constants);
      if constexpr (Rule::has_second_moment) {
        second[i] = v;
      }
      weight[i] = w * shrink;
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

inline std::vector<int64_t> sizes_of(const std::vector<UpdateTask>& tasks) {
  std::vector<int64_t> sizes;
  for (const auto& task : tasks) {
    sizes.push_back(task.size);
  }
  return sizes;
}

/// Whether all gradients' elements are finite.
template <class Scalar>
bool all_finite(const std::vector<UpdateTask>& tasks) {
  std::atomic<bool> finite{true};
  for_each_piece(sizes_of(tasks), [&](size_t i, int64_t begin, int64_t end) {
    int piece = 1;
    run_widest<FiniteKernel>(static_cast<const Scalar*>(tasks[i].gradient) + begin, end - begin, &piece);
    if (piece == 0) {
      finite = false;
    }
  });
  return finite;
}

template <class Rule, class Scalar, class Numbers>
void update(const std::vector<UpdateTask>& tasks, const Numbers& numbers, double decay) {
  for_each_piece(sizes_of(tasks), [&](size_t i, int64_t begin, int64_t end) {
    run_widest<UpdateKernel<Rule>>(static_cast<Scalar*>(tasks[i].weight), &tasks[i], &numbers, decay, begin,
                                   end);
  });
}

}  // namespace mixmatch::detail
