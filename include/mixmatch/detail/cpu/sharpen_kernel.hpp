#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cpu/memory_loops.hpp>
#include <mixmatch/detail/cpu/parallel.hpp>
#include <mixmatch/detail/cpu/simd.hpp>
#include <mixmatch/detail/cpu/simd_reduce.hpp>
#include <mixmatch/detail/float_types.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <type_traits>
#include <vector>

namespace mixmatch::detail {

using torch::Tensor;

/// 1/T, and what it is good for.
struct SharpenPower {
  enum class Kind { one, two, other };
  double exact;
  float high, low;  // exact = high + low
  Kind kind;

  explicit SharpenPower(double temperature)
      : exact(1.0 / temperature),
        high(static_cast<float>(exact)),
        low(static_cast<float>(exact - static_cast<double>(high))),
        kind(exact == 1   ? Kind::one
             : exact == 2 ? Kind::two
                          : Kind::other) {}
};

/// The plain loop: any power, T = 0 among them. Works in place.
template <class Scalar>
void sharpen_rows_plain(Scalar* out, const Scalar* in, int64_t rows, int64_t classes,
                        const SharpenPower& power) {
  const bool limit = std::isinf(power.exact);
  const auto exponent = static_cast<Scalar>(power.exact);
  for (int64_t row = 0; row < rows; ++row, in += classes, out += classes) {
    Scalar largest = in[0];
    for (int64_t c = 1; c < classes; ++c) {
      largest = in[c] > largest || in[c] != in[c] ? in[c] : largest;
    }
    if (largest != largest) {
      std::fill(out, out + classes, largest);
      continue;
    }
    Scalar sum = 0;
    for (int64_t c = 0; c < classes; ++c) {
      Scalar raised = 1;  // a row of zeros has no largest class: all of its classes tie
      if (largest != 0) {
        const Scalar ratio = in[c] / largest;
        if (limit) {
          raised = ratio == 1 ? Scalar(1) : ratio * 0;
        } else if (power.kind == SharpenPower::Kind::two) {
          raised = ratio * ratio;
        } else if (power.kind == SharpenPower::Kind::one) {
          raised = ratio;
        } else {
          raised = std::pow(ratio, exponent);
        }
      }
      out[c] = raised;
      sum += raised;
    }
    for (int64_t c = 0; c < classes; ++c) {
      out[c] /= sum;
    }
  }
}

#if MIXMATCH_SIMD

/// r^power for r in [0, 1] and power > 1; NaN stays NaN. The relative error is about (1 + power / 2) units in
/// the last place, within what rounding r itself costs; results below the normal numbers become 0. r = 1
/// gives exactly 1.
template <class F>
MIXMATCH_INLINE void power_of_ratio(typename F::V& v, float power, float power_low) {
  using V = typename F::V;
  using I = typename F::I;
  using U = typename F::U;
  // r = 2^k (1 + z), sqrt(1/2) <= 1 + z < sqrt(2); log(1 + z) by Cephes' polynomial.
  const I bits = (I)v;
  const I exponent = (bits - 0x3f3504f3) >> 23;
  V k;
  convert_lanes(k, exponent);
  const V z = (V)(bits - (exponent << 23)) - 1.0f;
  V p = z * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * z + 1.1676998740e-1f;
  p = p * z - 1.2420140846e-1f;
  p = p * z + 1.4249322787e-1f;
  p = p * z - 1.6668057665e-1f;
  p = p * z + 2.0000714765e-1f;
  p = p * z - 2.4999993993e-1f;
  p = p * z + 3.3333331174e-1f;
  const V square = z * z;
  // v * 0 carries a NaN over, which the bits have lost.
  const V log2_mantissa = (z + (square * z * p - square * 0.5f)) * 1.4426950408889634f + v * 0.0f;
  // power * log2(r) = n + rest, n whole, with the product k * power split without loss.
  const V fraction = log2_mantissa * power;
  const V product = k * power;
  const V total = product + fraction;
  constexpr float to_whole = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const V shifted = total + to_whole;
  const V n = shifted - to_whole;
  const V rest = (k * power - n) + (fraction + k * power_low);
  // 2^rest, |rest| <= 1/2 and a bit.
  V q = rest * 1.535336188319500e-4f + 1.339887440266574e-3f;
  q = q * rest + 9.618437357674640e-3f;
  q = q * rest + 5.550332471162809e-2f;
  q = q * rest + 2.402264791363012e-1f;
  q = q * rest + 6.931472028550421e-1f;
  q = q * rest + 1.0f;
  // Without a sign, as a power that is thrown away below may be of any size.
  const V scale = (V)(((U)shifted - (U)(V)(k * 0.0f + to_whole) + 127u) << 23);
  const V result = q * scale;
  v = total < -126.0f ? V{} : result;
}

template <SharpenPower::Kind Kind>
struct SharpenRows {
  static constexpr bool scale_first = Kind == SharpenPower::Kind::other;

  template <class F>
  static MIXMATCH_INLINE void raise(typename F::V& v, float power, float power_low) {
    if constexpr (Kind == SharpenPower::Kind::two) {
      v = v * v;
    } else if constexpr (Kind == SharpenPower::Kind::other) {
      power_of_ratio<F>(v, power, power_low);
    }
  }

  /// Sums of powers in this range have lost nothing to underflow or overflow, so need no scaling by the
  /// maximum.
  static constexpr float smallest_sum = 0x1p-20f, largest_sum = 0x1p+60f;

  template <class F>
  static MIXMATCH_INLINE void load_rows(typename F::V* rows, const float* in, int64_t classes,
                                        const typename F::I& mask) {
    unrolled<F::lanes>([&](int row) MIXMATCH_INLINE_LAMBDA {
      F::load(rows[row], in + row * classes);
      rows[row] = (typename F::V)((typename F::I)rows[row] & mask);
    });
  }

  /// F::lanes rows of at most F::lanes classes. Reads F::lanes floats from the start of each row; in place
  /// works.
  template <class F>
  static MIXMATCH_INLINE void block(float* out, const float* in, int64_t classes, const typename F::I& mask,
                                    float power, float power_low) {
    using V = typename F::V;
    constexpr int lanes = F::lanes;
    V rows[lanes], total = V{};
    load_rows<F>(rows, in, classes, mask);
    bool scaled = scale_first;
    if constexpr (!scale_first) {
      unrolled<lanes>([&](int row) MIXMATCH_INLINE_LAMBDA { raise<F>(rows[row], 0, 0); });
      reduce_rows<Add, lanes>(total, rows);
      // NaN remains so whichever way, and must not choose the way of the rows beside it.
      const typename F::I fine = ((total >= smallest_sum) & (total <= largest_sum)) | (total != total);
      int32_t bits[lanes], all = -1;
      __builtin_memcpy(bits, &fine, sizeof bits);
      for (int i = 0; i < lanes; ++i) {
        all &= bits[i];
      }
      scaled = all == 0;
      if (scaled) {
        load_rows<F>(rows, in, classes, mask);
      }
    }
    if (scaled) {
      alignas(64) float ratios[lanes * (lanes + 1)];
      alignas(64) float added[lanes], divisor[lanes];
      V largest;
      reduce_rows<Max, lanes>(largest, rows);
      // A row of zeros has no largest class: all of its classes tie.
      const V none = largest == 0.0f ? V{} + 1.0f : V{};
      F::store(added, none);
      F::store(divisor, largest + none);
      // Each row's surplus lanes are overwritten by the next row.
      unrolled<lanes>([&](int row) MIXMATCH_INLINE_LAMBDA {
        F::store(ratios + row * classes, (rows[row] + added[row]) / divisor[row]);
      });
      for (int64_t i = 0; i < classes; ++i) {
        V ratio;
        F::load(ratio, ratios + i * lanes);
        raise<F>(ratio, power, power_low);
        F::store(ratios + i * lanes, ratio);
      }
      load_rows<F>(rows, ratios, classes, mask);
      reduce_rows<Add, lanes>(total, rows);
    }
    alignas(64) float factor[lanes];
    F::store(factor, 1.0f / total);
    unrolled<lanes>([&](int row) MIXMATCH_INLINE_LAMBDA {
      const V result = rows[row] * factor[row];
      if (row * classes + lanes <= lanes * classes) {
        F::store(out + row * classes, result);
      } else {  // the surplus lanes would leave the block
        float copy[lanes];
        F::store(copy, result);
        std::copy(copy, copy + classes, out + row * classes);
      }
    });
  }

  template <class F>
  static MIXMATCH_INLINE void short_rows(float* out, const float* in, int64_t rows, int64_t classes,
                                         float power, float power_low) {
    constexpr int64_t lanes = F::lanes;
    typename F::I mask;
    F::first_lanes(mask, classes);
    int64_t row = 0;
    for (; (rows - row - lanes) * classes >= lanes; row += lanes) {
      block<F>(out + row * classes, in + row * classes, classes, mask, power, power_low);
    }
    // The last rows through a copy, so that nothing outside is read.
    alignas(64) float copy[lanes * (lanes + 1)];
    for (; row < rows; row += lanes) {
      const int64_t count = std::min(lanes, rows - row) * classes;
      std::fill(std::copy_n(in + row * classes, count, copy), std::end(copy), 1.0f);
      block<F>(copy, copy, classes, mask, power, power_low);
      std::copy_n(copy, count, out + row * classes);
    }
  }

  /// One row of more than F::lanes classes. The last vector overlaps the one before; it is read before that
  /// one is written, as the row may be sharpened in place.
  template <class F>
  static MIXMATCH_INLINE void long_row(float* out, const float* in, int64_t classes,
                                       const typename F::I& mask, float power, float power_low) {
    using V = typename F::V;
    using I = typename F::I;
    constexpr int lanes = F::lanes;
    const int64_t last = classes - lanes, whole = classes - classes % lanes;
    V tail;
    F::load(tail, in + last);
    if constexpr (!scale_first) {
      V sum[4] = {V{}, V{}, V{}, V{}};
      V v;
      int64_t i = 0;
      for (; i + 4 * lanes <= classes; i += 4 * lanes) {
        for (int j = 0; j < 4; ++j) {
          F::load(v, in + i + j * lanes);
          raise<F>(v, power, power_low);
          sum[j] += v;
        }
      }
      for (; i < whole; i += lanes) {
        F::load(v, in + i);
        raise<F>(v, power, power_low);
        sum[0] += v;
      }
      v = tail;
      raise<F>(v, power, power_low);
      sum[1] += (V)((I)v & mask);
      const float total = reduce_lanes<Add, lanes>((sum[0] + sum[1]) + (sum[2] + sum[3]));
      if (total >= smallest_sum && total <= largest_sum) {
        const float factor = 1.0f / total;
        for (i = 0; i < whole; i += lanes) {
          F::load(v, in + i);
          raise<F>(v, power, power_low);
          F::store(out + i, v * factor);
        }
        raise<F>(tail, power, power_low);
        F::store(out + last, tail * factor);
        return;
      }
    }
    V v, largest = tail;
    for (int64_t i = 0; i < whole; i += lanes) {
      F::load(v, in + i);
      Max::apply(largest, v, largest);
    }
    const float maximum = reduce_lanes<Max, lanes>(largest);
    const float added = maximum == 0 ? 1.0f : 0.0f, divisor = maximum + added;
    V sum = V{};
    for (int64_t i = 0; i < whole; i += lanes) {
      F::load(v, in + i);
      v = (v + added) / divisor;
      raise<F>(v, power, power_low);
      sum += v;
      F::store(out + i, v);
    }
    tail = (tail + added) / divisor;
    raise<F>(tail, power, power_low);
    sum += (V)((I)tail & mask);
    const float factor = 1.0f / reduce_lanes<Add, lanes>(sum);
    for (int64_t i = 0; i < whole; i += lanes) {
      F::load(v, out + i);
      F::store(out + i, v * factor);
    }
    F::store(out + last, tail * factor);
  }

  template <int Bytes>
  static MIXMATCH_INLINE void run(float* out, const float* in, int64_t rows, int64_t classes, float power,
                                  float power_low) {
    if constexpr (Bytes >= 32) {
      if (classes <= 8) {
        short_rows<FloatVectors<8>>(out, in, rows, classes, power, power_low);
        return;
      }
      using F = FloatVectors<Bytes / 4>;
      if (classes <= F::lanes) {
        short_rows<F>(out, in, rows, classes, power, power_low);
        return;
      }
      // The lanes of the last vector that no other holds.
      typename F::I mask;
      F::last_lanes(mask, classes % F::lanes);
      for (int64_t row = 0; row < rows; ++row) {
        long_row<F>(out + row * classes, in + row * classes, classes, mask, power, power_low);
      }
    }
  }
};

#endif

/// Rows side by side in memory; in place works.
template <class Scalar>
void sharpen_rows(Scalar* out, const Scalar* in, int64_t rows, int64_t classes, const SharpenPower& power) {
#if MIXMATCH_SIMD
  if constexpr (std::is_same_v<Scalar, float>) {
    // From 2^31 on, every ratio below 1 gives 0 in float32: that is T = 0, which the plain loop knows.
    if (simd_level() != SimdLevel::plain && power.exact >= 1 && power.exact < 0x1p+31) {
      using Kind = SharpenPower::Kind;
      switch (power.kind) {
        case Kind::one:
          return run_widest<SharpenRows<Kind::one>>(out, in, rows, classes, power.high, power.low);
        case Kind::two:
          return run_widest<SharpenRows<Kind::two>>(out, in, rows, classes, power.high, power.low);
        case Kind::other:
          return run_widest<SharpenRows<Kind::other>>(out, in, rows, classes, power.high, power.low);
      }
    }
  }
#endif
  sharpen_rows_plain(out, in, rows, classes, power);
}

/// Where the rows are: loops over all dimensions but that of the classes.
struct SharpenLayout {
  std::vector<MemoryLoop<2>> loops;
  int64_t classes, out_step, in_step, rows;

  SharpenLayout(const Tensor& out, const Tensor& in, int64_t dim)
      : classes(in.dim() == 0 ? 1 : in.size(dim)),
        out_step(in.dim() == 0 ? 1 : out.stride(dim)),
        in_step(in.dim() == 0 ? 1 : in.stride(dim)),
        rows(in.numel() / classes) {
    const int64_t skipped = dim < 0 ? dim + in.dim() : dim;
    for (int64_t d = 0; d < in.dim(); ++d) {
      if (d != skipped && in.size(d) != 1) {
        loops.push_back({in.size(d), {out.stride(d), in.stride(d)}});
      }
    }
    order_and_join(loops, /*by in=*/1);
    if (loops.empty()) {
      loops.push_back({1, {classes, classes}});
    }
  }

  bool classes_adjacent() const { return classes == 1 || (out_step == 1 && in_step == 1); }
  bool contiguous() const {
    return classes_adjacent() && loops.size() == 1 &&
           (rows == 1 || loops[0].steps == std::array<int64_t, 2>{classes, classes});
  }

  /// The offsets of row `row` in out and in.
  std::array<int64_t, 2> offsets(int64_t row) const { return offsets_at(loops, loops.size(), row); }
};

/// Rows [begin, end) of any layout and type through a buffer that stays in the cache, a few rows at a time.
template <class Scalar>
void sharpen_tiles(Scalar* out, const Scalar* in, const SharpenLayout& layout, int64_t begin, int64_t end,
                   const SharpenPower& power) {
  using C = Compute<Scalar>;
  const int64_t classes = layout.classes;
  const int64_t tile = std::min(end - begin, std::max<int64_t>(1, 4096 / classes));
  std::vector<C> buffer(static_cast<size_t>(tile * classes));
  std::vector<std::array<int64_t, 2>> offsets(static_cast<size_t>(tile));
  const bool contiguous = layout.contiguous();
  for (; begin < end; begin += tile) {
    const int64_t rows = std::min(tile, end - begin);
    C* values = buffer.data();
    if (contiguous) {
      run_widest<ConvertKernel>(values, in + begin * classes, rows * classes);
      sharpen_rows(values, values, rows, classes, power);
      run_widest<ConvertKernel>(out + begin * classes, static_cast<const C*>(values), rows * classes);
      continue;
    }
    for (int64_t r = 0; r < rows; ++r) {
      offsets[static_cast<size_t>(r)] = layout.offsets(begin + r);
    }
    // Along what lies together in memory.
    const auto each = [&](auto&& visit) {
      if (layout.classes_adjacent()) {
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < classes; ++c) {
            visit(r, c);
          }
        }
      } else {
        for (int64_t c = 0; c < classes; ++c) {
          for (int64_t r = 0; r < rows; ++r) {
            visit(r, c);
          }
        }
      }
    };
    each([&](int64_t r, int64_t c) {
      values[r * classes + c] = static_cast<C>(in[offsets[static_cast<size_t>(r)][1] + c * layout.in_step]);
    });
    sharpen_rows(values, values, rows, classes, power);
    each([&](int64_t r, int64_t c) {
      out[offsets[static_cast<size_t>(r)][0] + c * layout.out_step] =
          static_cast<Scalar>(values[r * classes + c]);
    });
  }
}

/// The formula in one pass over memory, for CPU tensors of any strides; false where it does not apply. `out`
/// may be `in`.
inline bool sharpen_fused(Tensor& out, const Tensor& in, double temperature, int64_t dim) {
  if (!has_plain_memory(in) || !has_plain_memory(out)) {
    return false;
  }
  if (in.numel() == 0) {
    return true;
  }
  const SharpenLayout layout(out, in, dim);
  const SharpenPower power(temperature);
  const int64_t work = power.kind == SharpenPower::Kind::other ? 8192 : 32768;
  const int64_t grain = std::max<int64_t>(1, work / layout.classes);
  return for_float_type(in.scalar_type(), [&](auto element) {
    using Scalar = decltype(element);
    auto* to = out.data_ptr<Scalar>();
    const auto* from = in.data_ptr<Scalar>();
    const bool direct = std::is_same_v<Scalar, Compute<Scalar>> && layout.contiguous();
    parallel_for(0, layout.rows, grain, [&](int64_t begin, int64_t end) {
      if constexpr (std::is_same_v<Scalar, Compute<Scalar>>) {
        if (direct) {
          const int64_t start = begin * layout.classes;
          sharpen_rows(to + start, from + start, end - begin, layout.classes, power);
          return;
        }
      }
      sharpen_tiles(to, from, layout, begin, end, power);
    });
  });
}

}  // namespace mixmatch::detail
