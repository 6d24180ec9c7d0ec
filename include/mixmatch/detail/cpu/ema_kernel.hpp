#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cpu/piecewise.hpp>
#include <mixmatch/detail/cpu/simd.hpp>
#include <mixmatch/detail/float_types.hpp>

#include <cstdint>
#include <vector>

namespace mixmatch::detail {

using torch::Tensor;

/// live *= shrink, then average = decay * average + (1 - decay) * live, over a run of memory.
struct DecayAndAverage {
  template <int Bytes, class Live, class Average>
  static MIXMATCH_INLINE void run(Live* live, Average* average, int64_t size, double shrink, double decay) {
    using C = Compute<Average>;
    const auto factor = static_cast<C>(shrink), keep = static_cast<C>(decay),
               take = static_cast<C>(1 - decay);
    using L = Lanes<Average, Bytes>;
    int64_t i = 0;
    for (; i + L::lanes <= size; i += L::lanes) {
      typename L::V now, mean;
      L::load(now, live + i);
      if (shrink != 1) {
        now *= factor;
        L::store(live + i, now);
        L::load(now, live + i);  // as rounded
      }
      if (decay == 0) {
        L::store(average + i, now);
      } else if (decay != 1) {
        L::load(mean, average + i);
        mean = mean * keep + now * take;
        L::store(average + i, mean);
      }
    }
    if constexpr (L::lanes > 1) {
      run<Bytes / 2>(live + i, average + i, size - i, shrink, decay);
    }
  }
};

/// One tensor's part of the work; `run` knows its types.
struct AverageTask {
  void* live;
  void* average;
  int64_t size;
  double shrink;
  void (*run)(const AverageTask& task, int64_t begin, int64_t end, double decay);
};

/// The average of a narrow type is kept in the type that arithmetic is done in.
template <class Live>
void run_average_task(const AverageTask& task, int64_t begin, int64_t end, double decay) {
  run_widest<DecayAndAverage>(static_cast<Live*>(task.live) + begin,
                              static_cast<Compute<Live>*>(task.average) + begin, end - begin, task.shrink,
                              decay);
}

/// The task for a pair of CPU tensors that lie alike in memory; `run` is null where there is none.
inline AverageTask average_task(const Tensor& live, const Tensor& average, double shrink) {
  AverageTask task{nullptr, nullptr, live.numel(), shrink, nullptr};
  if (!has_plain_memory(live) || !has_plain_memory(average) || !live.is_non_overlapping_and_dense() ||
      live.sizes() != average.sizes() || live.strides() != average.strides()) {
    return task;
  }
  const bool known = for_float_type(live.scalar_type(), [&](auto element) {
    using Live = decltype(element);
    if (average.scalar_type() == c10::CppTypeToScalarType<Compute<Live>>::value) {
      task.run = run_average_task<Live>;
    }
  });
  if (!known || task.run == nullptr) {
    return task;
  }
  task.live = live.data_ptr();
  task.average = average.data_ptr();
  return task;
}

/// The same in ATen calls, for any device, dtype and layout.
inline void decay_and_average_composite_(const Tensor& live, const Tensor& average, double shrink,
                                         double decay) {
  const torch::NoGradGuard no_grad;
  Tensor current = live, mean = average;
  if (shrink != 1) {
    current.mul_(shrink);
  }
  if (decay == 1) {
    return;
  }
  if (decay == 0 || !at::isFloatingType(mean.scalar_type())) {
    mean.copy_(current);
  } else {
    mean.mul_(decay).add_(current.to(mean.device(), mean.scalar_type()), 1 - decay);
  }
}

/// live[i] *= shrink[i], then average[i] = decay * average[i] + (1 - decay) * live[i]. A shrink of 1 leaves
/// live alone, a decay of 1 the average, and a decay of 0 copies, whatever infinities the other side holds.
/// On the CPU in one pass over memory and one parallel region for all tensors.
inline void decay_and_average_(const std::vector<Tensor>& live, const std::vector<Tensor>& average,
                               const std::vector<double>& shrink, double decay) {
  TORCH_CHECK(live.size() == average.size() && live.size() == shrink.size(),
              "decay_and_average_: expected as many averages and factors as live tensors (", live.size(),
              "), got ", average.size(), " and ", shrink.size());
  std::vector<AverageTask> tasks;
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < live.size(); ++i) {
    const AverageTask task = average_task(live[i], average[i], shrink[i]);
    if (task.run == nullptr) {
      decay_and_average_composite_(live[i], average[i], shrink[i], decay);
      continue;
    }
    // Autograd must see the change as it would see an ATen call's.
    if (shrink[i] != 1) {
      live[i].unsafeGetTensorImpl()->bump_version();
    }
    if (decay != 1) {
      average[i].unsafeGetTensorImpl()->bump_version();
    }
    if (shrink[i] != 1 || decay != 1) {
      tasks.push_back(task);
      sizes.push_back(task.size);
    }
  }
  for_each_piece(sizes,
                 [&](size_t i, int64_t begin, int64_t end) { tasks[i].run(tasks[i], begin, end, decay); });
}

}  // namespace mixmatch::detail
