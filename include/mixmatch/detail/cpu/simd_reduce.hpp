#pragma once

#include <mixmatch/detail/cpu/simd.hpp>

// Sums and maxima over the lanes of vectors, of many vectors at once where there are many.

namespace mixmatch::detail {

#if MIXMATCH_SIMD

struct Add {
  template <class V>
  static MIXMATCH_INLINE void apply(V& out, const V& a, const V& b) {
    out = a + b;
  }
};

struct Max {
  template <class V>
  static MIXMATCH_INLINE void apply(V& out, const V& a, const V& b) {
    out = a > b ? a : b;
  }
};

/// The halves of two vectors, brought together so that `Op` of `low` and `high` reduces both at once by a
/// factor of two. Four (three) steps turn 16 (8) vectors into one, whose lane 4 l + j is vector l + 4 j (l +
/// 2 j) reduced: each step is two cheap shuffles.
template <int Lanes>
struct Pairs;

template <>
struct Pairs<16> {
  static constexpr int steps = 4;
  static constexpr int row(int vector) { return 4 * (vector % 4) + vector / 4; }
  template <int Step, class V>
  static MIXMATCH_INLINE void pair(V& low, V& high, const V& a, const V& b) {
    if constexpr (Step == 0) {
      low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
      high = __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    } else if constexpr (Step == 1) {
      low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
      high = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    } else if constexpr (Step == 2) {
      low = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      high = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    } else {
      low = __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30);
      high = __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
    }
  }
};

template <>
struct Pairs<8> {
  static constexpr int steps = 3;
  static constexpr int row(int vector) { return 4 * (vector % 2) + vector / 2; }
  template <int Step, class V>
  static MIXMATCH_INLINE void pair(V& low, V& high, const V& a, const V& b) {
    if constexpr (Step == 0) {
      low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
      high = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    } else if constexpr (Step == 1) {
      low = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
      high = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    } else {
      low = __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14);
      high = __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
    }
  }
};

/// Lane i of `out` is the `Op` over the lanes of rows[i].
template <class Op, int Lanes, int Step = Pairs<Lanes>::steps, int First = 0, class V>
MIXMATCH_INLINE void reduce_rows(V& out, const V* rows) {
  if constexpr (Step == 0) {
    out = rows[Pairs<Lanes>::row(First)];
  } else {
    V a, b, low, high;
    reduce_rows<Op, Lanes, Step - 1, First>(a, rows);
    reduce_rows<Op, Lanes, Step - 1, First + (1 << (Step - 1))>(b, rows);
    Pairs<Lanes>::template pair<Step - 1>(low, high, a, b);
    Op::apply(out, low, high);
  }
}

/// The `Op` over the lanes of one vector.
template <class Op, int Lanes, int Step = 0, class V>
MIXMATCH_INLINE float reduce_lanes(const V& v) {
  if constexpr (Step == Pairs<Lanes>::steps) {
    return v[0];
  } else {
    V low, high, folded;
    Pairs<Lanes>::template pair<Step>(low, high, v, v);
    Op::apply(folded, low, high);
    return reduce_lanes<Op, Lanes, Step + 1>(folded);
  }
}

#endif

}  // namespace mixmatch::detail
