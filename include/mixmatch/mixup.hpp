#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/detail/cpu/mixup_kernel.hpp>
#include <mixmatch/detail/cuda/cuda_mixup.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/preallocated.hpp>
#include <mixmatch/detail/random.hpp>

#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace mixmatch {

using torch::Tensor;

struct MixUpOptions {
  /// lambda ~ Beta(alpha, alpha), alpha >= 0; 0 mixes nothing.
  TORCH_ARG(double, alpha) = 0.75;
  /// One lambda per row, or one for the batch.
  TORCH_ARG(bool, per_sample) = true;
  /// lambda' = max(lambda, 1 - lambda): the result stays nearer to its own row than to its partner (MixMatch,
  /// eq. 9).
  TORCH_ARG(bool, keep_dominant) = true;
  /// Which rows may be mixed into others, [N], 0 for those that may not: a row whose partner is one of them
  /// stays as it is (lambda' = 1). Undefined: all may.
  TORCH_ARG(Tensor, partners) = {};
};

/// The mixed rows, and what was drawn: lambda' [N], or a scalar if one was drawn for the batch, and the
/// partners [N].
struct MixUpResult {
  Tensor inputs, targets, lambda, permutation;
};

namespace detail {

inline void check_mix(const char* function, const Tensor& x, const Tensor& partners,
                      const Tensor& permutation, const Tensor& lambda) {
  TORCH_CHECK(x.defined() && x.dim() >= 1 && at::isFloatingType(x.scalar_type()), function,
              ": x must be a floating-point [N, ...] tensor, got ", detail::type_and_sizes(x));
  TORCH_CHECK(partners.dim() == x.dim() && partners.sizes().slice(1) == x.sizes().slice(1), function,
              ": partners must have rows like x's ", x.sizes(), ", got ", partners.sizes());
  TORCH_CHECK(permutation.defined() && permutation.scalar_type() == at::kLong && permutation.dim() == 1 &&
                  permutation.size(0) == x.size(0),
              function, ": permutation must be int64 [", x.size(0), "], got ",
              detail::type_and_sizes(permutation));
  TORCH_CHECK(lambda.defined() && at::isFloatingType(lambda.scalar_type()) &&
                  (lambda.dim() == 0 || (lambda.dim() == 1 && lambda.size(0) == x.size(0))),
              function, ": lambda must be floating-point [", x.size(0), "] or a scalar tensor, got ",
              detail::type_and_sizes(lambda));
  if (permutation.device().is_cpu() && permutation.numel() > 0) {
    // On other devices this would wait for the device.
    const int64_t rows = x.size(0), step = permutation.stride(0), most = partners.size(0);
    const int64_t* order = permutation.data_ptr<int64_t>();
    const auto outside = [&](int64_t i) {
      return static_cast<uint64_t>(order[i * step]) >= static_cast<uint64_t>(most);
    };
    bool any = false;  // without a branch a row: of short rows the checks are a part of the time
    for (int64_t i = 0; i < rows; ++i) {
      any |= outside(i);
    }
    for (int64_t i = 0; any && i < rows; ++i) {
      TORCH_CHECK(!outside(i), function, ": permutation must be in [0, ", most, "), got ", order[i * step]);
    }
  }
}

inline Tensor mix_rows_composite(const Tensor& x, const Tensor& partners, const Tensor& permutation,
                                 const Tensor& lambda) {
  const auto type = x.scalar_type();
  const auto compute = type == at::kHalf || type == at::kBFloat16 ? at::kFloat : type;
  Tensor weight = lambda.to(x.device(), compute);
  if (weight.dim() == 1) {
    std::vector<int64_t> shape(static_cast<size_t>(x.dim()), 1);
    shape[0] = x.size(0);
    weight = weight.view(shape);
  }
  const Tensor other = partners.index_select(0, permutation.to(x.device())).to(compute);
  return (x.to(compute) * weight + other * (1 - weight)).to(type);
}

inline bool mix_needs_gradient(const Tensor& x, const Tensor& partners, const Tensor& lambda) {
  return at::GradMode::is_enabled() &&
         (x.requires_grad() || partners.requires_grad() || lambda.requires_grad());
}

/// Row i is lambda[i] x[i] + (1 - lambda[i]) partners[permutation[i]].
inline Tensor mix_rows(const Tensor& x, const Tensor& partners, const Tensor& permutation,
                       const Tensor& lambda, const char* function = "mix_rows") {
  check_mix(function, x, partners, permutation, lambda);
  if (!mix_needs_gradient(x, partners, lambda)) {
    Tensor out = torch::empty_like(x);
    if (mix_rows_fused(out, x, partners, permutation, lambda) ||
        mix_rows_on_cuda(out, x, partners, permutation, lambda)) {
      return out;
    }
  }
  return mix_rows_composite(x, partners, permutation, lambda);
}

}  // namespace detail

/// Row i is lambda[i] x[i] + (1 - lambda[i]) x[permutation[i]]: MixUp's kernel (MixMatch, eq. 10, for drawn
/// lambda).
///
/// `x`: floating-point [N, …], any dense strides (channels-last is kept), half precision computed in float32;
/// `permutation`: int64 [N]; `lambda`: floating-point [N] or a scalar tensor. Any device; differentiable in x
/// and lambda; draws nothing; throws on other shapes and dtypes, and on a CPU permutation out of range.
inline Tensor mixup_pairs(const Tensor& x, const Tensor& permutation, const Tensor& lambda) {
  return detail::mix_rows(x, x, permutation, lambda, "mixup_pairs");
}

/// mixup_pairs() into a preallocated `out` of x's shape, dtype and device that shares no memory with x. No
/// gradient.
inline Tensor& mixup_pairs_out(Tensor& out, const Tensor& x, const Tensor& permutation,
                               const Tensor& lambda) {
  detail::check_mix("mixup_pairs_out", x, x, permutation, lambda);
  detail::check_type_and_device("mixup_pairs_out", out, x.scalar_type(), x.device());
  TORCH_CHECK(!detail::mix_needs_gradient(x, out, lambda),
              "mixup_pairs_out: no gradient is recorded into out; use mixup_pairs() or torch::NoGradGuard");
  if (out.numel() == 0 && x.numel() != 0) {
    out.resize_(x.sizes());
  }
  TORCH_CHECK(out.sizes() == x.sizes(), "mixup_pairs_out: out must have shape ", x.sizes(), ", got ",
              out.sizes());
  detail::check_separate("mixup_pairs_out", out, x, "x");
  if (!detail::mix_rows_fused(out, x, x, permutation, lambda) &&
      !detail::mix_rows_on_cuda(out, x, x, permutation, lambda)) {
    torch::NoGradGuard no_grad;
    out.copy_(detail::mix_rows_composite(x, x, permutation, lambda));
  }
  return out;
}

/// MixUp of a batch with a random order of itself (MixMatch, eqs. 8-11):
///
///     lambda ~ Beta(alpha, alpha), lambda' = max(lambda, 1 - lambda), x' = lambda' x1 + (1 - lambda') x2,
///     targets likewise
///
/// `inputs`: floating-point [N, …]; `targets`: floating-point [N, L]; the same lambda' and partner serve a
/// row's input and target. Draws lambda, then the permutation, from `generator` (LibTorch's default one of
/// the inputs' device without). Differentiable. Throws on integer class labels: one-hot them first.
inline MixUpResult mixup(const Tensor& inputs, const Tensor& targets, const MixUpOptions& options = {},
                         std::optional<at::Generator> generator = std::nullopt) {
  TORCH_CHECK(inputs.defined() && inputs.dim() >= 1 && at::isFloatingType(inputs.scalar_type()),
              "mixup: inputs must be a floating-point [N, ...] tensor, got ", detail::type_and_sizes(inputs));
  TORCH_CHECK(targets.defined() && at::isFloatingType(targets.scalar_type()),
              "mixup: targets must be floating-point probabilities [N, L], got ",
              detail::type_and_sizes(targets),
              "; one-hot class labels with mixmatch::one_hot(labels, num_classes)");
  TORCH_CHECK(targets.dim() == 2 && targets.size(0) == inputs.size(0), "mixup: targets must be [",
              inputs.size(0), ", L] as inputs has ", inputs.size(0), " rows, got ", targets.sizes());
  TORCH_CHECK(options.alpha() >= 0 && std::isfinite(options.alpha()),
              "mixup: alpha must be finite and >= 0, got ", options.alpha());
  const int64_t rows = inputs.size(0);
  const auto lambda_type = inputs.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  if (options.alpha() == 0) {
    const auto lambda_options = inputs.options().dtype(lambda_type).requires_grad(false);
    return {inputs.clone(), targets.clone(),
            options.per_sample() ? torch::ones({rows}, lambda_options) : torch::ones({}, lambda_options),
            torch::arange(rows, lambda_options.dtype(at::kLong))};
  }
  MixUpResult result;
  result.lambda =
      detail::sample_symmetric_beta(options.per_sample() ? rows : 1, options.alpha(), inputs.device(),
                                    lambda_type, generator, options.keep_dominant());
  if (!options.per_sample()) {
    result.lambda = result.lambda.squeeze(0);
  }
  result.permutation = detail::random_permutation(rows, inputs.device(), generator);
  if (options.partners().defined()) {
    TORCH_CHECK(options.partners().dim() == 1 && options.partners().size(0) == rows,
                "mixup: partners must be [", rows, "] as inputs has rows, got ", options.partners().sizes());
    const Tensor usable = options.partners().index_select(0, result.permutation).ne(0);
    result.lambda = at::where(usable, result.lambda, at::ones_like(result.lambda));
  }
  result.inputs = detail::mix_rows(inputs, inputs, result.permutation, result.lambda, "mixup");
  result.targets = detail::mix_rows(targets, targets, result.permutation, result.lambda, "mixup");
  return result;
}

}  // namespace mixmatch
