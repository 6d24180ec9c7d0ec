#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <torch/types.h>

#include <algorithm>
#include <cstdint>

namespace mixmatch::detail {

/// f(begin, end) over pieces of [begin, end) of at least `grain`, on LibTorch's own threads; f must not
/// throw.
///
/// at::parallel_for from a header is serial unless the user's build turns OpenMP on, and a second OpenMP
/// runtime beside LibTorch's makes both crawl. TensorIterator::for_each is compiled into LibTorch and threads
/// there: it runs over a tensor of piece numbers here.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (begin >= end) {
    return;
  }
  const int64_t size = end - begin;
  grain = std::max<int64_t>(grain, 1);
  const int64_t pieces =
      size <= grain ? 1 : std::min<int64_t>(at::get_num_threads(), (size + grain - 1) / grain);
  if (pieces <= 1 || at::in_parallel_region()) {
    f(begin, end);
    return;
  }
  // Kept from call to call, as making it takes longer than starting the threads.
  thread_local at::Tensor numbers;
  if (!numbers.defined() || numbers.numel() != pieces) {
    numbers = at::arange(pieces, at::kLong);
  }
  auto iterator = at::TensorIteratorConfig()
                      .set_check_mem_overlap(false)
                      .check_all_same_dtype(false)
                      .resize_outputs(false)
                      .add_output(numbers)
                      .build();
  iterator.for_each(
      [&](char** data, const int64_t* strides, int64_t count) {
        for (int64_t i = 0; i < count; ++i) {
          const int64_t piece = *reinterpret_cast<const int64_t*>(data[0] + i * strides[0]);
          f(begin + size * piece / pieces, begin + size * (piece + 1) / pieces);
        }
      },
      /*grain_size=*/1);
}

}  // namespace mixmatch::detail
