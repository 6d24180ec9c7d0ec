#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cpu/parallel.hpp>
#include <mixmatch/detail/cpu/simd.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

// Batch norm and leaky ReLU over images that lie channels-last, as rows of channels: one sweep for the
// moments and one for the result, forwards and backwards, where ATen's calls make five and four.
namespace mixmatch::detail {

using torch::Tensor;

/// SingleLane, with channels' numbers beside the images'.
template <class Scalar>
struct SingleChannel : SingleLane<Scalar> {
  using V = Compute<Scalar>;
  static MIXMATCH_INLINE void load_channel(V& v, const V* from) { v = *from; }
  static MIXMATCH_INLINE void store_channel(V* to, const V& v) { *to = v; }
  /// v times `slope` where z is not positive.
  static MIXMATCH_INLINE void damp(V& v, const V& z, V slope) { v = z > 0 ? v : v * slope; }
};

#if MIXMATCH_SIMD

#ifdef __clang__
// It checks an assembler line against the template's own instruction set, before it is inlined.
inline constexpr bool native_bfloat16 = false;
#else
inline constexpr bool native_bfloat16 = true;
#endif

/// `native`: bfloat16 by the processor's own conversion, which sets subnormal numbers to zero.
template <class Scalar, int Bytes, bool native>
struct ChannelLanes : FloatVectors<Bytes / 4> {
  using F = FloatVectors<Bytes / 4>;
  using V = typename F::V;
  static MIXMATCH_INLINE void store(Scalar* to, const V& v) {
    if constexpr (native && Bytes >= 32 && std::is_same_v<Scalar, c10::BFloat16>) {
      typename F::Short bits;
#ifndef __clang__
      __asm__("vcvtneps2bf16 {%1, %0|%0, %1}" : "=v"(bits) : "v"(v));
#endif
      __builtin_memcpy(to, &bits, sizeof bits);
    } else {
      F::store(to, v);
    }
  }
  static MIXMATCH_INLINE void load_channel(V& v, const float* from) { F::load(v, from); }
  static MIXMATCH_INLINE void store_channel(float* to, const V& v) { F::store(to, v); }
  static MIXMATCH_INLINE void damp(V& v, const V& z, float slope) {
    using I = typename F::I;
    const I positive = (I)(z > 0);
    v = (V)((positive & (I)v) | (~positive & (I)(v * slope)));
  }
};

template <class Scalar, int Bytes, bool native>
using NormLanes =
    std::conditional_t<Bytes >= 8 && !std::is_same_v<Scalar, double>,
                       ChannelLanes<Scalar, Bytes >= 8 ? Bytes : 8, native>, SingleChannel<Scalar>>;

#else

template <class Scalar, int Bytes, bool native>
using NormLanes = SingleChannel<Scalar>;

#endif

/// A kernel's `block<Lanes, count>(pass, channel)` for all channels: four vectors at a time, whose sums do
/// not wait for each other, then one, then narrower ones.
template <class Kernel, int Bytes, bool native, class Pass>
MIXMATCH_INLINE void for_channels(const Pass& pass, int64_t channel) {
  using L = NormLanes<typename Pass::Scalar, Bytes, native>;
  for (; channel + 4 * L::lanes <= pass.channels; channel += 4 * L::lanes) {
    Kernel::template block<L, 4>(pass, channel);
  }
  for (; channel + L::lanes <= pass.channels; channel += L::lanes) {
    Kernel::template block<L, 1>(pass, channel);
  }
  if constexpr (L::lanes > 1) {
    for_channels<Kernel, Bytes / 2, native>(pass, channel);
  }
}

/// A piece of `rows` rows of `channels`; pointers are to its first row, and null where there is none.
template <class Element>
struct NormPass {
  using Scalar = Element;
  using C = Compute<Element>;
  int64_t rows, channels;
  C slope;
  const Element *input, *addend, *grad_output, *grad_sum;
  Element *sum, *output, *grad_input;
  // Of the statistics, [channels]:
  const C *mean, *scale, *shift, *grad_slope, *grad_offset;
  // Of this piece, [channels]:
  C *first, *total, *square;
};

/// `count` vectors of channels.
template <class L, int count, class C>
MIXMATCH_INLINE void load_channels(typename L::V (&v)[count], const C* from) {
  for (int k = 0; k < count; ++k) {
    L::load_channel(v[k], from + k * L::lanes);
  }
}
template <class L, int count, class C>
MIXMATCH_INLINE void store_channels(C* to, const typename L::V (&v)[count]) {
  for (int k = 0; k < count; ++k) {
    L::store_channel(to + k * L::lanes, v[k]);
  }
}

/// sum = input + addend, where there is an addend, and of what is then stored the moments about the first
/// row: total = sum_r (x_r - x_0), square = sum_r (x_r - x_0)^2.
struct NormMoments {
  template <class L, int count, class Scalar>
  static MIXMATCH_INLINE void block(NormPass<Scalar> pass, int64_t channel) {
    typename L::V first[count], total[count] = {}, square[count] = {};
    for (int k = 0; k < count; ++k) {
      load(first[k], pass, channel + k * L::lanes, L{});
    }
    for (int64_t row = 0; row < pass.rows; ++row) {
      for (int k = 0; k < count; ++k) {
        typename L::V x;
        load(x, pass, row * pass.channels + channel + k * L::lanes, L{});
        x -= first[k];
        total[k] += x;
        square[k] += x * x;
      }
    }
    store_channels<L>(pass.first + channel, first);
    store_channels<L>(pass.total + channel, total);
    store_channels<L>(pass.square + channel, square);
  }
  template <class V, class L, class Scalar>
  static MIXMATCH_INLINE void load(V& x, const NormPass<Scalar>& pass, int64_t at, L) {
    L::load(x, pass.input + at);
    if (pass.addend != nullptr) {
      V other;
      L::load(other, pass.addend + at);
      x += other;
      L::store(pass.sum + at, x);
      L::load(x, pass.sum + at);  // as rounded
    }
  }
};

/// output = leaky(scale * input + shift).
struct NormActivate {
  template <class L, int count, class Scalar>
  static MIXMATCH_INLINE void block(NormPass<Scalar> pass, int64_t channel) {
    typename L::V scale[count], shift[count];
    load_channels<L>(scale, pass.scale + channel);
    load_channels<L>(shift, pass.shift + channel);
    for (int64_t row = 0; row < pass.rows; ++row) {
      for (int k = 0; k < count; ++k) {
        const int64_t at = row * pass.channels + channel + k * L::lanes;
        typename L::V x;
        L::load(x, pass.input + at);
        x = x * scale[k] + shift[k];
        L::damp(x, x, pass.slope);
        L::store(pass.output + at, x);
      }
    }
  }
};

/// What both sweeps backwards begin with: x, and g, the gradient before the activation.
template <class L, class V, class Scalar>
MIXMATCH_INLINE void load_gradient(V& x, V& grad, const NormPass<Scalar>& pass, int64_t at, const V& scale,
                                   const V& shift) {
  L::load(x, pass.input + at);
  L::load(grad, pass.grad_output + at);
  const V z = x * scale + shift;
  L::damp(grad, z, pass.slope);
}

/// total = sum_r g_r, square = sum_r g_r (x_r - mean).
struct NormGradientSums {
  template <class L, int count, class Scalar>
  static MIXMATCH_INLINE void block(NormPass<Scalar> pass, int64_t channel) {
    typename L::V scale[count], shift[count], mean[count], total[count] = {}, square[count] = {};
    load_channels<L>(scale, pass.scale + channel);
    load_channels<L>(shift, pass.shift + channel);
    load_channels<L>(mean, pass.mean + channel);
    for (int64_t row = 0; row < pass.rows; ++row) {
      for (int k = 0; k < count; ++k) {
        typename L::V x, grad;
        load_gradient<L>(x, grad, pass, row * pass.channels + channel + k * L::lanes, scale[k], shift[k]);
        total[k] += grad;
        square[k] += grad * (x - mean[k]);
      }
    }
    store_channels<L>(pass.total + channel, total);
    store_channels<L>(pass.square + channel, square);
  }
};

/// grad_input = scale g + grad_slope (x - mean) + grad_offset, and grad_sum where there is one.
struct NormGradient {
  template <class L, int count, class Scalar>
  static MIXMATCH_INLINE void block(NormPass<Scalar> pass, int64_t channel) {
    typename L::V scale[count], shift[count], mean[count], slope[count], offset[count];
    load_channels<L>(scale, pass.scale + channel);
    load_channels<L>(shift, pass.shift + channel);
    load_channels<L>(mean, pass.mean + channel);
    load_channels<L>(slope, pass.grad_slope + channel);
    load_channels<L>(offset, pass.grad_offset + channel);
    for (int64_t row = 0; row < pass.rows; ++row) {
      for (int k = 0; k < count; ++k) {
        const int64_t at = row * pass.channels + channel + k * L::lanes;
        typename L::V x, grad;
        load_gradient<L>(x, grad, pass, at, scale[k], shift[k]);
        grad = grad * scale[k] + ((x - mean[k]) * slope[k] + offset[k]);
        if (pass.grad_sum != nullptr) {
          typename L::V other;
          L::load(other, pass.grad_sum + at);
          grad += other;
        }
        L::store(pass.grad_input + at, grad);
      }
    }
  }
};

/// Rows of channels, cut into pieces that do not depend on the number of threads: so the same input gives the
/// same bits with any.
struct NormRows {
  static constexpr int64_t piece = 256;
  int64_t rows, channels;

  explicit NormRows(const Tensor& x) : rows(x.numel() / x.size(1)), channels(x.size(1)) {}

  int64_t pieces() const { return (rows + piece - 1) / piece; }
  int64_t rows_of(int64_t i) const { return std::min(piece, rows - i * piece); }
};

/// A kernel for run_widest().
template <class Kernel, bool native>
struct NormKernel {
  template <int Bytes, class Scalar>
  static MIXMATCH_INLINE void run(const NormPass<Scalar>* pass) {
    for_channels<Kernel, Bytes, native>(*pass, 0);
  }
};

template <class Kernel, class Scalar>
void run_norm_piece(const NormPass<Scalar>& pass) {
#if MIXMATCH_SIMD
  if constexpr (native_bfloat16 && std::is_same_v<Scalar, c10::BFloat16>) {
    if (simd_level() == SimdLevel::avx512_bf16) {
      return run_avx512_bf16<NormKernel<Kernel, true>>(&pass);
    }
  }
#endif
  run_widest<NormKernel<Kernel, false>>(&pass);
}

/// A kernel over all pieces, on LibTorch's threads; `fill(pass, piece, first element)` sets its pointers.
template <class Kernel, class Scalar, class Fill>
void run_norm_kernel(const NormRows& layout, const Fill& fill) {
  const int64_t grain = std::max<int64_t>(1, 32768 / (NormRows::piece * layout.channels));
  parallel_for(0, layout.pieces(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      NormPass<Scalar> pass{};
      pass.rows = layout.rows_of(i);
      pass.channels = layout.channels;
      fill(pass, i, i * NormRows::piece * layout.channels);
      run_norm_piece<Kernel, Scalar>(pass);
    }
  });
}

/// Mean and biased variance of x's channels, [C] each; with an addend those of sum = x + addend, which is
/// written.
template <class Scalar>
void norm_moments(const Tensor& mean, const Tensor& variance, const Tensor& x, const Tensor& addend,
                  const Tensor& sum) {
  using C = Compute<Scalar>;
  const NormRows layout(x);
  const auto channels = static_cast<size_t>(layout.channels);
  std::vector<C> moments(static_cast<size_t>(layout.pieces()) * 3 * channels);
  run_norm_kernel<NormMoments, Scalar>(layout, [&](NormPass<Scalar>& pass, int64_t piece, int64_t at) {
    pass.input = x.data_ptr<Scalar>() + at;
    if (addend.defined()) {
      pass.addend = addend.data_ptr<Scalar>() + at;
      pass.sum = sum.data_ptr<Scalar>() + at;
    }
    pass.first = moments.data() + static_cast<size_t>(piece) * 3 * channels;
    pass.total = pass.first + channels;
    pass.square = pass.total + channels;
  });
  // The parallel algorithm of Chan, Golub and LeVeque, in double precision.
  std::vector<double> means(channels, 0.0), squares(channels, 0.0);
  double seen = 0;
  for (int64_t i = 0; i < layout.pieces(); ++i) {
    const auto count = static_cast<double>(layout.rows_of(i));
    const C* first = moments.data() + static_cast<size_t>(i) * 3 * channels;
    const C *total = first + channels, *square = total + channels;
    const double share = count / (seen + count);
    for (size_t c = 0; c < channels; ++c) {
      const double offset = static_cast<double>(total[c]) / count;
      const double distance = static_cast<double>(first[c]) + offset - means[c];
      means[c] += distance * share;
      squares[c] +=
          static_cast<double>(square[c]) - offset * offset * count + distance * distance * seen * share;
    }
    seen += count;
  }
  C *mean_out = mean.data_ptr<C>(), *variance_out = variance.data_ptr<C>();
  for (size_t c = 0; c < channels; ++c) {
    mean_out[c] = static_cast<C>(means[c]);
    variance_out[c] = static_cast<C>(std::max(0.0, squares[c] / seen));
  }
}

/// The normalisation as an affine map of each channel: inverse = 1 / sqrt(variance + eps), scale = weight *
/// inverse, shift = bias - mean * scale.
template <class C>
struct NormAffine {
  std::vector<C> mean, scale, shift;
  std::vector<double> inverse;

  NormAffine(const Tensor& mean_of_rows, const Tensor& variance, const Tensor& weight, const Tensor& bias,
             double eps) {
    const C *m = mean_of_rows.data_ptr<C>(), *v = variance.data_ptr<C>(), *w = weight.data_ptr<C>(),
            *b = bias.data_ptr<C>();
    for (int64_t c = 0; c < weight.numel(); ++c) {
      inverse.push_back(1 / std::sqrt(static_cast<double>(v[c]) + eps));
      const double factor = static_cast<double>(w[c]) * inverse.back();
      mean.push_back(m[c]);
      scale.push_back(static_cast<C>(factor));
      shift.push_back(static_cast<C>(static_cast<double>(b[c]) - static_cast<double>(m[c]) * factor));
    }
  }

  template <class Scalar>
  void fill(NormPass<Scalar>& pass) const {
    pass.mean = mean.data();
    pass.scale = scale.data();
    pass.shift = shift.data();
  }
};

/// output = leaky(weight (x - mean) / sqrt(variance + eps) + bias).
template <class Scalar>
void norm_activate(const Tensor& output, const Tensor& x, const NormAffine<Compute<Scalar>>& affine,
                   double slope) {
  run_norm_kernel<NormActivate, Scalar>(NormRows(x), [&](NormPass<Scalar>& pass, int64_t, int64_t at) {
    affine.fill(pass);
    pass.slope = static_cast<Compute<Scalar>>(slope);
    pass.input = x.data_ptr<Scalar>() + at;
    pass.output = output.data_ptr<Scalar>() + at;
  });
}

/// The gradient of norm_activate and of the statistics in it: writes grad_input, to which grad_sum is added
/// where it is defined, and adds those of weight and bias to the sums given.
template <class Scalar>
void norm_activate_backward(const Tensor& grad_input, std::vector<double>& grad_weight,
                            std::vector<double>& grad_bias, const Tensor& grad_output, const Tensor& grad_sum,
                            const Tensor& x, const NormAffine<Compute<Scalar>>& affine, double slope) {
  using C = Compute<Scalar>;
  const NormRows layout(x);
  const auto channels = static_cast<size_t>(layout.channels);
  const auto fill = [&](NormPass<Scalar>& pass, int64_t at) {
    affine.fill(pass);
    pass.slope = static_cast<C>(slope);
    pass.input = x.data_ptr<Scalar>() + at;
    pass.grad_output = grad_output.data_ptr<Scalar>() + at;
  };
  std::vector<C> partial(static_cast<size_t>(layout.pieces()) * 2 * channels);
  run_norm_kernel<NormGradientSums, Scalar>(layout, [&](NormPass<Scalar>& pass, int64_t piece, int64_t at) {
    fill(pass, at);
    pass.total = partial.data() + static_cast<size_t>(piece) * 2 * channels;
    pass.square = pass.total + channels;
  });
  std::vector<double> sums(2 * channels, 0.0);  // of g, and after them of g (x - mean)
  for (size_t i = 0; i < partial.size(); i += 2 * channels) {
    for (size_t c = 0; c < 2 * channels; ++c) {
      sums[c] += static_cast<double>(partial[i + c]);
    }
  }
  // d loss / d x = scale (g - mean(g) - x^ mean(g x^)), x^ = (x - mean) * inverse.
  std::vector<C> grad_slope, grad_offset;
  for (size_t c = 0; c < channels; ++c) {
    const double part = static_cast<double>(affine.scale[c]) / static_cast<double>(layout.rows);
    grad_slope.push_back(static_cast<C>(-part * affine.inverse[c] * affine.inverse[c] * sums[channels + c]));
    grad_offset.push_back(static_cast<C>(-part * sums[c]));
    grad_weight[c] += sums[channels + c] * affine.inverse[c];
    grad_bias[c] += sums[c];
  }
  run_norm_kernel<NormGradient, Scalar>(layout, [&](NormPass<Scalar>& pass, int64_t, int64_t at) {
    fill(pass, at);
    pass.grad_sum = grad_sum.defined() ? grad_sum.data_ptr<Scalar>() + at : nullptr;
    pass.grad_slope = grad_slope.data();
    pass.grad_offset = grad_offset.data();
    pass.grad_input = grad_input.data_ptr<Scalar>() + at;
  });
}

}  // namespace mixmatch::detail
