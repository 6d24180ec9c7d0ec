#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cpu/piecewise.hpp>
#include <mixmatch/detail/cpu/simd.hpp>
#include <mixmatch/detail/update_rule.hpp>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <variant>
#include <vector>

namespace mixmatch::detail {

using torch::Tensor;

/// One tensor's part of a step: its memory, all of one layout. `second_moment` is Adam's; `average` may be
/// null, and then nothing is averaged. `rate_factor` times the step's learning rate is the tensor's; `l2` w
/// joins the gradient; `shrink` is the decoupled weight decay's factor.
struct UpdateTask {
  void *weight, *gradient, *first_moment, *second_moment, *average;
  int64_t size;
  double rate_factor, shrink, l2;
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

/// What differs from rule to rule: the numbers of step t, counted from 1, and how one vector or number moves.
template <class Rule, class Scalar>
struct RuleStep;

template <class Scalar>
struct RuleStep<AdamRule, Scalar> {
  static constexpr bool has_second_moment = true;
  Scalar keep1, take1, keep2, take2, eps, size, correction;

  RuleStep(const AdamRule& rule, double rate, double t)
      : keep1(static_cast<Scalar>(rule.beta1)),
        take1(static_cast<Scalar>(1 - rule.beta1)),
        keep2(static_cast<Scalar>(rule.beta2)),
        take2(static_cast<Scalar>(1 - rule.beta2)),
        eps(static_cast<Scalar>(rule.eps)),
        size(static_cast<Scalar>(rate / (1 - std::pow(rule.beta1, t)))),
        correction(static_cast<Scalar>(1 / std::sqrt(1 - std::pow(rule.beta2, t)))) {}

  void scale_rate(double factor) { size *= static_cast<Scalar>(factor); }

  template <class V>
  MIXMATCH_INLINE void move(V& w, const V& g, V& m, V& v) const {
    m = m * keep1 + g * take1;
    v = v * keep2 + g * g * take2;
    V root = v;
    square_root(root);
    root = root * correction + eps;
    w = w - m * size / root;
  }
};

template <class Scalar>
struct RuleStep<SgdRule, Scalar> {
  static constexpr bool has_second_moment = false;
  Scalar rate, momentum, gradient, moved;

  RuleStep(const SgdRule& rule, double learning_rate, double /*t*/)
      : rate(static_cast<Scalar>(learning_rate)),
        momentum(static_cast<Scalar>(rule.momentum)),
        gradient(static_cast<Scalar>(rule.nesterov ? 1 : 0)),
        moved(static_cast<Scalar>(rule.nesterov ? rule.momentum : 1)) {}

  void scale_rate(double factor) { rate *= static_cast<Scalar>(factor); }

  template <class V>
  MIXMATCH_INLINE void move(V& w, const V& g, V& m, V&) const {
    m = m * momentum + g;
    w = w - (g * gradient + m * moved) * rate;
  }
};

/// A step of the optimiser, then decay, then moving average, over a run of memory: every array is read and
/// written once.
struct UpdateKernel {
  template <int Bytes, class Scalar, class Step>
  static MIXMATCH_INLINE void run(Scalar* weight, const UpdateTask* task, const Step* numbers, double decay,
                                  int64_t begin, int64_t end) {
    using L = Lanes<Scalar, std::is_same_v<Scalar, float> ? Bytes : 0>;
    Step step = *numbers;
    step.scale_rate(task->rate_factor);
    const auto* gradient = static_cast<const Scalar*>(task->gradient);
    auto* first = static_cast<Scalar*>(task->first_moment);
    auto* second = static_cast<Scalar*>(task->second_moment);
    auto* average = static_cast<Scalar*>(task->average);
    const auto l2 = static_cast<Scalar>(task->l2), shrink = static_cast<Scalar>(task->shrink);
    const auto keep = static_cast<Scalar>(decay), take = static_cast<Scalar>(1 - decay);
    int64_t i = begin;
    for (; i + L::lanes <= end; i += L::lanes) {
      typename L::V w, g, m, v = {};
      L::load(w, weight + i);
      L::load(g, gradient + i);
      L::load(m, first + i);
      if constexpr (Step::has_second_moment) {
        L::load(v, second + i);
      }
      if (l2 != 0) {
        g = g + w * l2;
      }
      step.move(w, g, m, v);
      L::store(first + i, m);
      if constexpr (Step::has_second_moment) {
        L::store(second + i, v);
      }
      w = w * shrink;
      L::store(weight + i, w);
      if (average != nullptr) {
        if (decay == 0) {  // a copy, whatever infinity the average holds
          L::store(average + i, w);
        } else {
          L::load(m, average + i);
          m = m * keep + w * take;
          L::store(average + i, m);
        }
      }
    }
    if constexpr (L::lanes > 1) {
      run<0>(weight, task, numbers, decay, i, end);
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

/// Step t of the rule, with averages that keep the share `decay`.
template <class Scalar>
void update(const std::vector<UpdateTask>& tasks, const UpdateRule& rule, double rate, double t,
            double decay) {
  std::visit(
      [&](const auto& chosen) {
        const RuleStep<std::decay_t<decltype(chosen)>, Scalar> step(chosen, rate, t);
        for_each_piece(sizes_of(tasks), [&](size_t i, int64_t begin, int64_t end) {
          run_widest<UpdateKernel>(static_cast<Scalar*>(tasks[i].weight), &tasks[i], &step, decay, begin,
                                   end);
        });
      },
      rule);
}

}  // namespace mixmatch::detail
