#pragma once

#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/types.h>

#include <cstdint>

namespace mixmatch::training {

using torch::Tensor;

/// Muon (github.com/KellerJordan/Muon): momentum whose matrix is made orthogonal, so that all its directions
/// move alike.
///
///     m <- momentum m + g,    w <- w - lr .2 sqrt(max(m, n)) orthogonalize(g + momentum m)
///
/// for a kernel as a matrix of m outputs by n inputs to each. The factor makes a step about as long as one of
/// Adam, whose rates and weight decay therefore serve (arXiv 2502.16982).
struct MuonOptions {
  MuonOptions() = default;
  /* implicit */ MuonOptions(double momentum) : momentum_(momentum) {}

  /// In [0, 1).
  TORCH_ARG(double, momentum) = 0.95;
  /// Newton-Schulz iterations, >= 1.
  TORCH_ARG(int64_t, iterations) = 5;
};

/// The nearest semi-orthogonal matrix, roughly: U V^T of M = U S V^T with singular values between .7 and 1.2
/// in the place of S, by Muon's iteration (github.com/KellerJordan/Muon), which takes matrix products alone:
///
///     X <- M / |M|_F;   `iterations` times:  X <- a X + (b A + c A^2) X,   A = X X^T,
///     (a, b, c) = (3.4445, -4.7750, 2.0315)
///
/// matrices: [..., m, n] floating point, any device; the result's shape and dtype are theirs. Singular values
/// less than a thousandth of |M|_F stay less than .7, and a matrix of zeros stays one. Carries no gradient,
/// draws nothing.
inline Tensor orthogonalize(const Tensor& matrices, int64_t iterations = MuonOptions().iterations()) {
  TORCH_CHECK(matrices.dim() >= 2 && matrices.is_floating_point(),
              "orthogonalize: matrices must be floating point [..., m, n], got ", matrices.scalar_type(), " ",
              matrices.sizes());
  TORCH_CHECK(iterations >= 1, "orthogonalize: iterations must be >= 1, got ", iterations);
  constexpr double a = 3.4445, b = -4.7750, c = 2.0315;
  const torch::NoGradGuard no_grad;
  const bool tall = matrices.size(-2) > matrices.size(-1);
  Tensor x = matrices.dim() == 2 ? matrices.unsqueeze(0) : matrices.flatten(0, -3);
  x = tall ? x.transpose(-2, -1) : x;
  x = x / x.square().sum({-2, -1}, /*keepdim=*/true).sqrt().clamp_min(1e-7);
  for (int64_t i = 0; i < iterations; ++i) {
    const Tensor gram = x.bmm(x.transpose(-2, -1));
    x = at::baddbmm(x, at::baddbmm(gram, gram, gram, b, c), x, a);  // a call each: small products cost calls
  }
  return (tall ? x.transpose(-2, -1) : x).reshape(matrices.sizes());
}

}  // namespace mixmatch::training
