#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <type_traits>

namespace mixmatch::detail {

/// The type that arithmetic is done in.
template <class Scalar>
using Compute = std::conditional_t<std::is_same_v<Scalar, double>, double, float>;

/// f(an element) of the type `type`, one of the four that the CPU's kernels know; false, without a call, for
/// another.
template <class F>
[[nodiscard]] bool for_float_type(at::ScalarType type, const F& f) {
  switch (type) {
    case at::kFloat:
      f(float{});
      return true;
    case at::kDouble:
      f(double{});
      return true;
    case at::kBFloat16:
      f(at::BFloat16{});
      return true;
    case at::kHalf:
      f(at::Half{});
      return true;
    default:
      return false;
  }
}

}  // namespace mixmatch::detail
