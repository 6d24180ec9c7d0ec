#pragma once

#include <mixmatch/detail/parallel.hpp>
#include <torch/types.h>

#include <algorithm>
#include <cstring>

namespace mixmatch::detail {

using torch::Tensor;

/// out = weight * x + (1 - weight) * partner over one row.
template <class Scalar, class Compute>
void mix_row(Scalar* __restrict__ out, const Scalar* __restrict__ x, const Scalar* __restrict__ partner, int64_t size,
             Compute weight) {
  const Compute rest = 1 - weight;
  for (int64_t i = 0; i < size; ++i) {
    out[i] = static_cast<Scalar>(weight * static_cast<Compute>(x[i]) + rest * static_cast<Compute>(partner[i]));
  }
}

/// The same strides in each row, and rows that fill their stride: a row is then one run of memory in any layout.
inline bool rows_are_dense(const Tensor& tensor, const Tensor& like) {
  if (!tensor.is_non_overlapping_and_dense() || tensor.strides().slice(1) != like.strides().slice(1)) {
    return false;
  }
  const int64_t row = tensor.size(0) == 0 ? 0 : tensor.numel() / tensor.size(0);
  return tensor.size(0) <= 1 || tensor.stride(0) == row;
}

/// Row i of out is lambda[i] x[i] + (1 - lambda[i]) partners[permutation[i]] in one pass over memory, for dense CPU
/// tensors of one layout; false where it does not apply.
inline bool mix_rows_fused(Tensor& out, const Tensor& x, const Tensor& partners, const Tensor& permutation,
                           const Tensor& lambda) {
  if (!x.device().is_cpu() || !partners.device().is_cpu() || !permutation.device().is_cpu() ||
      !lambda.device().is_cpu() || partners.scalar_type() != x.scalar_type() || !rows_are_dense(x, x) ||
      !rows_are_dense(partners, x) || !rows_are_dense(out, x)) {
    return false;
  }
  if (x.numel() == 0) {
    return true;
  }
  const int64_t row = x.numel() / x.size(0);
  const Tensor order = permutation.contiguous();
  const auto* partner_of = order.data_ptr<int64_t>();
  const auto run = [&](auto* target, const auto* source, const auto* other, auto compute) {
    using Scalar = std::remove_pointer_t<decltype(target)>;
    using Compute = decltype(compute);
    const Tensor weights = lambda.to(c10::CppTypeToScalarType<Compute>::value).contiguous();
    const auto* weight = weights.template data_ptr<Compute>();
    const int64_t step = weights.dim() == 0 ? 0 : 1;
    parallel_for(0, x.size(0), std::max<int64_t>(1, 16384 / row), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (weight[i * step] == 1) {
          std::memcpy(target + i * row, source + i * row, static_cast<size_t>(row) * sizeof(Scalar));
        } else {
          mix_row<Scalar, Compute>(target + i * row, source + i * row, other + partner_of[i] * row, row,
                                   weight[i * step]);
        }
      }
    });
    return true;
  };
  switch (x.scalar_type()) {
    case at::kFloat:
      return run(out.data_ptr<float>(), x.data_ptr<float>(), partners.data_ptr<float>(), float{});
    case at::kDouble:
      return run(out.data_ptr<double>(), x.data_ptr<double>(), partners.data_ptr<double>(), double{});
    case at::kBFloat16:
      return run(out.data_ptr<at::BFloat16>(), x.data_ptr<at::BFloat16>(), partners.data_ptr<at::BFloat16>(), float{});
    case at::kHalf:
      return run(out.data_ptr<at::Half>(), x.data_ptr<at::Half>(), partners.data_ptr<at::Half>(), float{});
    default:
      return false;
  }
}

}  // namespace mixmatch::detail
