#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cpu/memory_loops.hpp>
#include <mixmatch/detail/cpu/parallel.hpp>
#include <mixmatch/detail/cpu/simd.hpp>
#include <mixmatch/detail/float_types.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

namespace mixmatch::detail {

using torch::Tensor;

/// x = weight * x + rest * partner, for a number or a vector. In two statements: a compiler that fuses a
/// product and a sum then has one way to do it, and all layouts give the same bits.
template <class V, class W>
MIXMATCH_INLINE void mix_into(V& x, const V& partner, W weight, W rest) {
  const V other = partner * rest;
  x = x * weight + other;
}

/// out = weight * x + (1 - weight) * partner over a run of memory.
struct MixRun {
  template <int Bytes, class Scalar>
  static MIXMATCH_INLINE void run(Scalar* out, const Scalar* x, const Scalar* partner, int64_t size,
                                  Compute<Scalar> weight) {
    using L = Lanes<Scalar, Bytes>;
    const Compute<Scalar> rest = 1 - weight;
    int64_t i = 0;
    for (; i + L::lanes <= size; i += L::lanes) {
      typename L::V a, b;
      L::load(a, x + i);
      L::load(b, partner + i);
      mix_into(a, b, weight, rest);
      L::store(out + i, a);
    }
    if constexpr (L::lanes > 1) {
      run<Bytes / 2>(out + i, x + i, partner + i, size - i, weight);
    }
  }
};

/// MixRun for elements that lie apart, with the same instruction set.
struct MixStrided {
  template <int Bytes, class Scalar>
  static MIXMATCH_INLINE void run(Scalar* out, int64_t out_step, const Scalar* x, int64_t x_step,
                                  const Scalar* partner, int64_t partner_step, int64_t size,
                                  Compute<Scalar> weight) {
    for (int64_t i = 0; i < size; ++i) {
      auto mixed = static_cast<Compute<Scalar>>(x[i * x_step]);
      mix_into(mixed, static_cast<Compute<Scalar>>(partner[i * partner_step]), weight, 1 - weight);
      out[i * out_step] = static_cast<Scalar>(mixed);
    }
  }
};

/// MixRun over rows [begin, end), each `row` elements in one run.
struct MixRows {
  /// Asks for the start of a partner while the row before it is mixed: a short row ends before the processor
  /// has seen where its partner's memory goes on.
  template <class Scalar>
  static MIXMATCH_INLINE void fetch([[maybe_unused]] const Scalar* partner, [[maybe_unused]] int64_t row) {
#if MIXMATCH_SIMD
    constexpr int64_t line = 64, start = 1024, short_row = 8192;
    const auto bytes = row * static_cast<int64_t>(sizeof(Scalar));
    for (int64_t i = 0; bytes <= short_row && i < std::min(bytes, start); i += line) {
      __builtin_prefetch(reinterpret_cast<const char*>(partner) + i);
    }
#endif
  }

  template <int Bytes, class Scalar>
  static MIXMATCH_INLINE void run(Scalar* out, const Scalar* x, const Scalar* partners,
                                  const int64_t* permutation, const Compute<Scalar>* weights,
                                  int64_t weight_step, int64_t row, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (i + 1 < end) {
        fetch(partners + permutation[i + 1] * row, row);
      }
      const Compute<Scalar> weight = weights[i * weight_step];
      if (weight == 1) {  // exactly x, whatever the partner holds
        std::memcpy(out + i * row, x + i * row, static_cast<size_t>(row) * sizeof(Scalar));
      } else {
        MixRun::run<Bytes>(out + i * row, x + i * row, partners + permutation[i] * row, row, weight);
      }
    }
  }
};

/// How a row lies in memory in the result, in x and in the partners: a few nested loops around runs along the
/// last.
struct MixLayout {
  enum Tensors { result, own, partner };
  std::vector<MemoryLoop<3>> loops;
  bool dense;

  MixLayout(const Tensor& out, const Tensor& x, const Tensor& partners) {
    for (int64_t d = 1; d < x.dim(); ++d) {
      if (x.size(d) != 1) {
        loops.push_back({x.size(d), {out.stride(d), x.stride(d), partners.stride(d)}});
      }
    }
    order_and_join(loops, result);
    if (loops.empty()) {
      loops.push_back({1, {1, 1, 1}});
    }
    dense = loops.back().steps == std::array<int64_t, 3>{1, 1, 1};
  }
};

/// Row i of out is lambda[i] x[i] + (1 - lambda[i]) partners[permutation[i]] in one pass over memory, for CPU
/// tensors of any strides; false where it does not apply. The permutation was checked.
inline bool mix_rows_fused(Tensor& out, const Tensor& x, const Tensor& partners, const Tensor& permutation,
                           const Tensor& lambda) {
  if (!has_plain_memory(x) || !has_plain_memory(partners) || !has_plain_memory(permutation) ||
      !has_plain_memory(lambda) || !has_plain_memory(out) || partners.scalar_type() != x.scalar_type()) {
    return false;
  }
  if (x.numel() == 0) {
    return true;
  }
  const MixLayout layout(out, x, partners);
  const int64_t inner_size = layout.loops.back().size;
  const auto& step = layout.loops.back().steps;
  const int64_t rows = x.size(0);
  const int64_t row = x.numel() / rows;
  const Tensor order = permutation.contiguous();
  const int64_t* partner_of = order.data_ptr<int64_t>();
  return for_float_type(x.scalar_type(), [&](auto element) {
    using Scalar = decltype(element);
    Scalar* to = out.data_ptr<Scalar>();
    const Scalar* from = x.data_ptr<Scalar>();
    const Scalar* others = partners.data_ptr<Scalar>();
    using Weight = Compute<Scalar>;
    constexpr auto weight_type = c10::CppTypeToScalarType<Weight>::value;
    const Tensor weights =
        (lambda.scalar_type() == weight_type ? lambda : lambda.to(weight_type)).contiguous();
    const Weight* weight = weights.template data_ptr<Weight>();
    const int64_t weight_step = weights.dim() == 0 ? 0 : 1;
    constexpr int64_t grain = 32768, chunk = 32768;
    if (layout.dense && inner_size == row && row <= chunk && out.stride(0) == row && x.stride(0) == row &&
        partners.stride(0) == row) {
      parallel_for(0, rows, std::max<int64_t>(1, grain / row), [&](int64_t begin, int64_t end) {
        run_widest<MixRows>(to, from, others, partner_of, weight, weight_step, row, begin, end);
      });
      return;
    }
    // Long runs are cut into chunks, at the same places for any number of threads.
    const int64_t chunks = (inner_size + chunk - 1) / chunk;
    const int64_t pieces_per_row = row / inner_size * chunks;
    const int64_t piece_size = std::min(inner_size, chunk);
    parallel_for(
        0, rows * pieces_per_row, std::max<int64_t>(1, grain / piece_size), [&](int64_t begin, int64_t end) {
          for (int64_t piece = begin; piece < end; ++piece) {
            const int64_t i = piece / pieces_per_row;
            const int64_t run = piece % pieces_per_row / chunks, start = piece % chunks * chunk;
            const int64_t size = std::min(chunk, inner_size - start);
            const auto offsets = offsets_at(layout.loops, layout.loops.size() - 1, run);
            Scalar* target =
                to + i * out.stride(0) + offsets[MixLayout::result] + start * step[MixLayout::result];
            const Scalar* source =
                from + i * x.stride(0) + offsets[MixLayout::own] + start * step[MixLayout::own];
            const Scalar* other = others + partner_of[i] * partners.stride(0) + offsets[MixLayout::partner] +
                                  start * step[MixLayout::partner];
            const Weight w = weight[i * weight_step];
            if (w == 1) {
              for (int64_t j = 0; j < size; ++j) {
                target[j * step[MixLayout::result]] = source[j * step[MixLayout::own]];
              }
            } else if (layout.dense) {
              run_widest<MixRun>(target, source, other, size, w);
            } else {
              run_widest<MixStrided>(target, step[MixLayout::result], source, step[MixLayout::own], other,
                                     step[MixLayout::partner], size, w);
            }
          }
        });
  });
}

}  // namespace mixmatch::detail
