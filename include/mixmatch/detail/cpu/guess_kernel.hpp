#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cpu/parallel.hpp>
#include <mixmatch/detail/cpu/sharpen_kernel.hpp>
#include <mixmatch/detail/cpu/simd.hpp>
#include <mixmatch/detail/cpu/simd_reduce.hpp>
#include <mixmatch/detail/float_types.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

namespace mixmatch::detail {

using torch::Tensor;

template <class C, class Scalar>
void add_softmaxes_plain(C* out, C* raised, const Scalar* const* views, int64_t num_views, int64_t first_row,
                         int64_t rows, int64_t classes) {
  std::fill(out, out + rows * classes, C(0));
  for (int64_t row = 0; row < rows; ++row, out += classes) {
    for (int64_t k = 0; k < num_views; ++k) {
      const Scalar* in = views[k] + (first_row + row) * classes;
      C largest = -std::numeric_limits<C>::infinity(), sum = 0;
      for (int64_t c = 0; c < classes; ++c) {
        largest = std::max(largest, static_cast<C>(in[c]));
      }
      for (int64_t c = 0; c < classes; ++c) {
        raised[c] = std::exp(static_cast<C>(in[c]) - largest);
        sum += raised[c];
      }
      for (int64_t c = 0; c < classes; ++c) {
        out[c] += raised[c] / sum;
      }
    }
  }
}

#if MIXMATCH_SIMD

/// e^x for x <= 0, to about one unit in the last place; 0 below the normal numbers. NaN stays NaN.
template <class F>
MIXMATCH_INLINE void exp_of_negative(typename F::V& v) {
  using V = typename F::V;
  using U = typename F::U;
  // x = n log(2) + rest, n whole, log(2) split so that the first product is exact; e^rest by Cephes'
  // polynomial.
  const V total = v * 1.44269504088896341f;
  constexpr float to_whole = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const V shifted = total + to_whole;
  const V n = shifted - to_whole;
  const V rest = (v - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  p = p * (rest * rest) + rest + 1.0f;
  // Without a sign: what is thrown away below may be of any size.
  const V scale = (V)(((U)shifted - (U)(V{} + to_whole) + 127u) << 23);
  v = total < -126.0f ? V{} : p * scale;
}

/// add_softmaxes() below.
struct AddSoftmaxes {
  static constexpr float no_class = -std::numeric_limits<float>::infinity();

  template <class F>
  static MIXMATCH_INLINE void mask_off(typename F::V& v, const typename F::I& mask) {
    using V = typename F::V;
    using I = typename F::I;
    v = (V)(((I)v & mask) | ((I)(V{} + no_class) & ~mask));
  }

  /// Rows of at most F::lanes classes, F::lanes at a time.
  template <class F, class Scalar>
  static MIXMATCH_INLINE void short_rows(float* out, const Scalar* const* views, int64_t num_views,
                                         int64_t first_row, int64_t rows, int64_t classes) {
    using V = typename F::V;
    constexpr int lanes = F::lanes;
    typename F::I mask;
    F::first_lanes(mask, classes);
    alignas(64) float padded_out[lanes * (lanes + 1)];
    alignas(64) Scalar padded[lanes * (lanes + 1)] = {};
    for (int64_t row = 0; row < rows; row += lanes) {
      // The last rows through copies, so that nothing outside is read.
      const bool whole = (rows - row - lanes) * classes >= lanes;
      const int64_t count = std::min<int64_t>(lanes, rows - row) * classes;
      V sums[lanes] = {};
      for (int64_t k = 0; k < num_views; ++k) {
        const Scalar* in = views[k] + (first_row + row) * classes;
        if (!whole) {
          std::copy_n(in, count, padded);
          in = padded;
        }
        V values[lanes], largest, total;
        unrolled<lanes>([&](int i) MIXMATCH_INLINE_LAMBDA {
          F::load(values[i], in + i * classes);
          mask_off<F>(values[i], mask);
        });
        reduce_rows<Max, lanes>(largest, values);
        alignas(64) float of_rows[lanes];
        F::store(of_rows, largest);
        unrolled<lanes>([&](int i) MIXMATCH_INLINE_LAMBDA {
          values[i] = values[i] - of_rows[i];
          exp_of_negative<F>(values[i]);
        });
        reduce_rows<Add, lanes>(total, values);
        F::store(of_rows, 1.0f / total);
        unrolled<lanes>([&](int i) MIXMATCH_INLINE_LAMBDA { sums[i] += values[i] * of_rows[i]; });
      }
      // Each row's surplus lanes are overwritten by the next row.
      float* const to = whole ? out + row * classes : padded_out;
      unrolled<lanes>([&](int i) MIXMATCH_INLINE_LAMBDA { F::store(to + i * classes, sums[i]); });
      if (!whole) {
        std::copy_n(padded_out, count, out + row * classes);
      }
    }
  }

  /// One row of more than F::lanes classes. The last vector overlaps the one before, apart from the lanes of
  /// `mask`. `raised` has room for the classes and, as `out`, for a vector's surplus.
  template <class F, class Scalar>
  static MIXMATCH_INLINE void long_row(float* out, float* raised, const Scalar* const* views,
                                       int64_t num_views, int64_t offset, int64_t classes,
                                       const typename F::I& mask) {
    using V = typename F::V;
    using I = typename F::I;
    constexpr int lanes = F::lanes;
    const int64_t last = classes - lanes, whole = classes - classes % lanes;
    for (int64_t k = 0; k < num_views; ++k) {
      const Scalar* in = views[k] + offset;
      V v, largest, total = V{};
      F::load(largest, in + last);
      for (int64_t i = 0; i < whole; i += lanes) {
        F::load(v, in + i);
        Max::apply(largest, v, largest);
      }
      const float maximum = reduce_lanes<Max, lanes>(largest);
      for (int64_t i = 0; i < whole; i += lanes) {
        F::load(v, in + i);
        v = v - maximum;
        exp_of_negative<F>(v);
        total += v;
        F::store(raised + i, v);
      }
      F::load(v, in + last);
      v = v - maximum;
      exp_of_negative<F>(v);
      total += (V)((I)v & mask);
      F::store(raised + last, v);
      const float factor = 1.0f / reduce_lanes<Add, lanes>(total);
      for (int64_t i = 0; i < classes; i += lanes) {
        V sum = V{};
        F::load(v, raised + i);
        if (k > 0) {
          F::load(sum, out + i);
        }
        F::store(out + i, sum + v * factor);
      }
    }
  }

  template <int Bytes, class Scalar>
  static MIXMATCH_INLINE void run(float* out, float* raised, const Scalar* const* views, int64_t num_views,
                                  int64_t first_row, int64_t rows, int64_t classes) {
    if constexpr (Bytes >= 32) {
      if (classes <= 8) {
        short_rows<FloatVectors<8>>(out, views, num_views, first_row, rows, classes);
        return;
      }
      using F = FloatVectors<Bytes / 4>;
      if (classes <= F::lanes) {
        short_rows<F>(out, views, num_views, first_row, rows, classes);
        return;
      }
      // The lanes of a row's last vector that no other holds.
      typename F::I mask;
      F::last_lanes(mask, classes % F::lanes);
      for (int64_t row = 0; row < rows; ++row) {
        long_row<F>(out + row * classes, raised, views, num_views, (first_row + row) * classes, classes,
                    mask);
      }
    }
  }
};

#endif

/// out = sum over views of softmax(view), of `rows` rows from `first_row` on, which come first in `out`. That
/// and `raised`, which holds a row, have room for 16 numbers more.
template <class C, class Scalar>
void add_softmaxes(C* out, C* raised, const Scalar* const* views, int64_t num_views, int64_t first_row,
                   int64_t rows, int64_t classes) {
#if MIXMATCH_SIMD
  if constexpr (std::is_same_v<C, float>) {
    if (simd_level() != SimdLevel::plain) {
      return run_widest<AddSoftmaxes>(out, raised, views, num_views, first_row, rows, classes);
    }
  }
#endif
  add_softmaxes_plain(out, raised, views, num_views, first_row, rows, classes);
}

/// out = sharpen(mean over views of softmax(view)) in one pass over memory, for contiguous CPU logits [N, L];
/// false where it does not apply. Sharpening makes a mean of the sum.
inline bool guess_fused(Tensor& out, const std::vector<Tensor>& logits, double temperature) {
  const Tensor& first = logits.front();
  const bool applies = std::all_of(logits.begin(), logits.end(), [&](const Tensor& view) {
    return has_plain_memory(view) && view.is_contiguous() && view.scalar_type() == first.scalar_type();
  });
  if (!applies) {
    return false;
  }
  if (first.numel() == 0) {
    return true;
  }
  const auto num_views = static_cast<int64_t>(logits.size());
  const int64_t rows = first.size(0), classes = first.size(1);
  const SharpenPower power(temperature);
  return for_float_type(first.scalar_type(), [&](auto element) {
    using Scalar = decltype(element);
    using C = Compute<Scalar>;
    std::vector<const Scalar*> views;
    for (const Tensor& view : logits) {
      views.push_back(view.data_ptr<Scalar>());
    }
    C* guess = out.data_ptr<C>();
    const int64_t grain = std::max<int64_t>(1, 8192 / (num_views * classes));
    parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      // A few rows at a time, whose sums stay in the cache.
      const int64_t tile = std::min(end - begin, std::max<int64_t>(1, 4096 / classes));
      std::vector<C> sums(static_cast<size_t>(tile * classes + 16)),
          raised(static_cast<size_t>(classes + 16));
      for (; begin < end; begin += tile) {
        const int64_t count = std::min(tile, end - begin);
        add_softmaxes(sums.data(), raised.data(), static_cast<const Scalar* const*>(views.data()), num_views,
                      begin, count, classes);
        sharpen_rows(guess + begin * classes, static_cast<const C*>(sums.data()), count, classes, power);
      }
    });
  });
}

}  // namespace mixmatch::detail
