#pragma once

#include <torch/types.h>
#include <mixmatch/detail/describe.hpp>

namespace mixmatch {

using torch::Tensor;

/// Row n is 1 at column labels[n] and 0 elsewhere: integer labels [N] to [N, num_classes] of `dtype`, on the
/// labels' device. Labels outside [0, num_classes) throw (on other devices than the CPU the device reports
/// them, without a synchronisation here). torch::one_hot gives int64 and guesses the number of classes from
/// the batch.
inline Tensor one_hot(const Tensor& labels, int64_t num_classes, at::ScalarType dtype = at::kFloat) {
  TORCH_CHECK(labels.defined() && labels.dim() == 1 &&
                  at::isIntegralType(labels.scalar_type(), /*includeBool=*/false),
              "one_hot: labels must be an integer [N] tensor, got ", detail::type_and_sizes(labels));
  TORCH_CHECK(num_classes >= 1, "one_hot: num_classes must be >= 1, got ", num_classes);
  const Tensor index = labels.to(at::kLong);
  if (labels.device().is_cpu() && labels.numel() > 0) {
    const auto lowest = index.min().item<int64_t>();
    const auto highest = index.max().item<int64_t>();
    TORCH_CHECK(lowest >= 0 && highest < num_classes, "one_hot: labels must be in [0, ", num_classes,
                "), got ", lowest < 0 ? lowest : highest);
  }
  return torch::zeros({labels.size(0), num_classes}, labels.options().dtype(dtype))
      .scatter_(1, index.unsqueeze(1), 1);
}

}  // namespace mixmatch
