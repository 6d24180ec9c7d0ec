#pragma once

#include <mixmatch/detail/parallel.hpp>
#include <torch/types.h>

#include <algorithm>
#include <cmath>

namespace mixmatch::detail {

using torch::Tensor;

template <class Scalar, class Compute>
void sharpen_rows(Scalar* out, const Scalar* in, int64_t rows, int64_t classes, double exponent) {
  const bool limit = std::isinf(exponent);
  const auto power = static_cast<Compute>(exponent);
  for (int64_t row = 0; row < rows; ++row, in += classes, out += classes) {
    Compute largest = static_cast<Compute>(in[0]);
    bool nan = false;
    for (int64_t c = 0; c < classes; ++c) {
      const auto value = static_cast<Compute>(in[c]);
      nan |= value != value;
      largest = std::max(largest, value);
    }
    if (nan) {
      std::fill(out, out + classes, static_cast<Scalar>(std::numeric_limits<Compute>::quiet_NaN()));
      continue;
    }
    const auto raised = [&](Compute value) {
      if (largest == 0) {
        return Compute(1);
      }
      if (limit) {
        return value == largest ? Compute(1) : Compute(0);
      }
      const Compute ratio = value / largest;
      return power == 2 ? ratio * ratio : std::pow(ratio, power);
    };
    Compute sum = 0;
    for (int64_t c = 0; c < classes; ++c) {
      sum += raised(static_cast<Compute>(in[c]));
    }
    for (int64_t c = 0; c < classes; ++c) {
      out[c] = static_cast<Scalar>(raised(static_cast<Compute>(in[c])) / sum);
    }
  }
}

/// The formula in one pass over memory, for contiguous CPU rows; false where it does not apply.
inline bool sharpen_fused(Tensor& out, const Tensor& in, double temperature, int64_t dim) {
  if (!in.device().is_cpu() || in.dim() == 0 || !in.is_contiguous() || !out.is_contiguous() ||
      (dim != -1 && dim != in.dim() - 1)) {
    return false;
  }
  const int64_t classes = in.size(-1);
  if (in.numel() == 0) {
    return true;
  }
  const double exponent = 1.0 / temperature;
  const auto run = [&](auto* target, const auto* source, auto compute) {
    using Scalar = std::remove_pointer_t<decltype(target)>;
    parallel_for(0, in.numel() / classes, std::max<int64_t>(1, 8192 / classes), [&](int64_t begin, int64_t end) {
      sharpen_rows<Scalar, decltype(compute)>(target + begin * classes, source + begin * classes, end - begin, classes,
                                              exponent);
    });
    return true;
  };
  switch (in.scalar_type()) {
    case at::kFloat:
      return run(out.data_ptr<float>(), in.data_ptr<float>(), float{});
    case at::kDouble:
      return run(out.data_ptr<double>(), in.data_ptr<double>(), double{});
    case at::kBFloat16:
      return run(out.data_ptr<at::BFloat16>(), in.data_ptr<at::BFloat16>(), float{});
    case at::kHalf:
      return run(out.data_ptr<at::Half>(), in.data_ptr<at::Half>(), float{});
    default:
      return false;
  }
}

}  // namespace mixmatch::detail
