#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cpu/sharpen_kernel.hpp>
#include <mixmatch/detail/cuda/cuda_sharpen.hpp>
#include <mixmatch/detail/preallocated.hpp>

#include <cmath>

namespace mixmatch {

using torch::Tensor;

namespace detail {

inline void check_sharpen(const char* function, const Tensor& probabilities, double temperature,
                          int64_t dim) {
  TORCH_CHECK(probabilities.defined() && at::isFloatingType(probabilities.scalar_type()), function,
              ": probabilities must be a floating-point tensor, got ",
              probabilities.defined() ? c10::str(probabilities.scalar_type()) : std::string("undefined"));
  TORCH_CHECK(temperature >= 0, function, ": temperature must be >= 0, got ", temperature);
  const int64_t dims = std::max<int64_t>(probabilities.dim(), 1);
  TORCH_CHECK(dim >= -dims && dim < dims, function, ": dim must be in [", -dims, ", ", dims - 1, "], got ",
              dim);
}

/// The formula in plain ATen calls: differentiable, any device.
inline Tensor sharpen_composite(const Tensor& probabilities, double temperature, int64_t dim) {
  if (probabilities.numel() == 0) {
    return probabilities.clone();
  }
  const auto type = probabilities.scalar_type();
  const Tensor p = type == at::kHalf || type == at::kBFloat16 ? probabilities.to(at::kFloat) : probabilities;
  const Tensor largest = p.detach().amax(dim, /*keepdim=*/true);
  const double exponent = 1.0 / temperature;
  Tensor power;
  if (std::isinf(exponent)) {
    // The limit is constant almost everywhere: gradient 0, and part of the graph all the same.
    power = p.eq(largest).to(p.scalar_type()).masked_fill(largest.isnan(), std::nan("")) +
            p.masked_fill(torch::ones_like(p, at::kBool), 0);
  } else {
    // A row of zeros has no largest class: all of its classes tie.
    power = torch::where(largest.eq(0), torch::ones_like(p), p / largest.masked_fill(largest.eq(0), 1))
                .pow(exponent);
  }
  return (power / power.sum(dim, /*keepdim=*/true)).to(type);
}

inline bool needs_gradient(const Tensor& tensor) {
  return at::GradMode::is_enabled() && tensor.requires_grad();
}

}  // namespace detail

/// Temperature sharpening q_i = p_i^(1/T) / sum_j p_j^(1/T) along `dim` (MixMatch, eq. 7), into `out`.
///
/// See sharpen(). `out` is resized if it is empty, else it has the shape, dtype and device of
/// `probabilities`; it may be `probabilities` itself. Records no gradient: refused where one would be needed.
inline Tensor& sharpen_out(Tensor& out, const Tensor& probabilities, double temperature = 0.5,
                           int64_t dim = -1) {
  detail::check_sharpen("sharpen_out", probabilities, temperature, dim);
  detail::check_type_and_device("sharpen_out", out, probabilities.scalar_type(), probabilities.device());
  TORCH_CHECK(!detail::needs_gradient(out) && !detail::needs_gradient(probabilities),
              "sharpen_out: no gradient is recorded into out; use sharpen() or torch::NoGradGuard");
  if (out.numel() == 0 && probabilities.numel() != 0) {
    out.resize_(probabilities.sizes());
  }
  TORCH_CHECK(out.sizes() == probabilities.sizes(), "sharpen_out: out must have shape ",
              probabilities.sizes(), ", got ", out.sizes());
  detail::check_same_or_separate("sharpen_out", out, probabilities, "probabilities");
  if (!detail::sharpen_fused(out, probabilities, temperature, dim) &&
      !detail::sharpen_on_cuda(out, probabilities, temperature, dim)) {
    torch::NoGradGuard no_grad;
    out.copy_(detail::sharpen_composite(probabilities, temperature, dim));
  }
  return out;
}

/// Temperature sharpening q_i = p_i^(1/T) / sum_j p_j^(1/T) along `dim` (MixMatch, eq. 7).
///
/// `probabilities`: any shape with the classes along `dim`, non-negative, float32, float64, bfloat16 or
/// float16 (the latter two computed in float32), any device and strides; the result keeps shape and dtype. T
/// < 1 lowers the entropy, T = 1 only normalises, T = 0 is the limit: one-hot at the arg-max, ties share
/// equally. Rows are scaled by their maximum first, so no T >= 0 underflows to 0/0; a row of zeros counts as
/// all tied. Differentiable; draws nothing; T < 0 or NaN throws. Not to be confused with dividing logits by
/// T: softmax(log(p) / T) is the same, softmax(p / T) is not.
inline Tensor sharpen(const Tensor& probabilities, double temperature = 0.5, int64_t dim = -1) {
  detail::check_sharpen("sharpen", probabilities, temperature, dim);
  if (detail::needs_gradient(probabilities)) {
    return detail::sharpen_composite(probabilities, temperature, dim);
  }
  Tensor out = torch::empty_like(probabilities);
  if (detail::sharpen_fused(out, probabilities, temperature, dim) ||
      detail::sharpen_on_cuda(out, probabilities, temperature, dim)) {
    return out;
  }
  return detail::sharpen_composite(probabilities, temperature, dim);
}

/// sharpen() in place. Differentiable where in-place operations are: not on a leaf that requires a gradient.
inline Tensor& sharpen_(Tensor& probabilities, double temperature = 0.5, int64_t dim = -1) {
  detail::check_sharpen("sharpen_", probabilities, temperature, dim);
  if (detail::needs_gradient(probabilities)) {
    probabilities.copy_(detail::sharpen_composite(probabilities, temperature, dim));
    return probabilities;
  }
  return sharpen_out(probabilities, probabilities, temperature, dim);
}

}  // namespace mixmatch
