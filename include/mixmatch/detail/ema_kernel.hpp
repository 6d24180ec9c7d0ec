#pragma once

#include <torch/types.h>

#include <vector>

namespace mixmatch::detail {

using torch::Tensor;

/// live[i] *= shrink[i], then average[i] = decay * average[i] + (1 - decay) * live[i]; live and average may differ in dtype.
inline void decay_and_average_(const std::vector<Tensor>& live, const std::vector<Tensor>& average,
                               const std::vector<double>& shrink, double decay) {
  torch::NoGradGuard no_grad;
  for (size_t i = 0; i < live.size(); ++i) {
    Tensor current = live[i];
    if (shrink[i] != 1.0) {
      current.mul_(shrink[i]);
    }
    Tensor mean = average[i];
    if (decay == 0.0 || !at::isFloatingType(mean.scalar_type())) {
      mean.copy_(current);
    } else if (decay != 1.0) {
      mean.mul_(decay).add_(current.to(mean.scalar_type()), 1.0 - decay);
    }
  }
}

}  // namespace mixmatch::detail
