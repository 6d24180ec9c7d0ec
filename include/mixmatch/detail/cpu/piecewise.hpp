#pragma once

#include <mixmatch/detail/cpu/parallel.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mixmatch::detail {

/// f(i, begin, end) over pieces of runs of memory of the given sizes, on LibTorch's threads and in one
/// parallel region for all of them. Pieces are cut at the same places for any number of threads.
template <class F>
void for_each_piece(const std::vector<int64_t>& sizes, const F& f) {
  constexpr int64_t piece = 16384;
  std::vector<int64_t> first_piece{0};
  for (const int64_t size : sizes) {
    first_piece.push_back(first_piece.back() + (size + piece - 1) / piece);
  }
  parallel_for(0, first_piece.back(), 4, [&](int64_t begin, int64_t end) {
    auto run = std::upper_bound(first_piece.begin(), first_piece.end(), begin) - first_piece.begin() - 1;
    for (int64_t i = begin; i < end; ++i) {
      while (i >= first_piece[static_cast<size_t>(run) + 1]) {
        ++run;
      }
      const auto index = static_cast<size_t>(run);
      const int64_t start = (i - first_piece[index]) * piece;
      f(index, start, std::min(sizes[index], start + piece));
    }
  });
}

}  // namespace mixmatch::detail
