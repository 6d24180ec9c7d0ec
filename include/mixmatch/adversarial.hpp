#pragma once

#include <torch/arg.h>
#include <torch/csrc/autograd/autograd.h>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/random.hpp>
#include <mixmatch/losses.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/nn/batch_norm.hpp>
#include <mixmatch/nn/precision.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

namespace mixmatch {

struct VirtualAdversarialOptions {
  /// Length of the step after which the divergence is differentiated, > 0. In float32 one below 1e-2 counts
  /// as 1e-2: what it changes would be lost in rounding.
  TORCH_ARG(double, xi) = 1e-6;
  /// Steps of the power method, >= 1.
  TORCH_ARG(int64_t, power_iterations) = 1;
};

namespace detail {

/// Each row divided by its L2 norm; a row of zeros stays one. Scaled by its largest entry first: the square
/// of a small gradient underflows.
inline Tensor unit_rows(const Tensor& rows) {
  std::vector<int64_t> dims(static_cast<size_t>(rows.dim() - 1));
  std::iota(dims.begin(), dims.end(), 1);
  const auto divided = [](const Tensor& value, const Tensor& by) {
    return value / by.masked_fill(by.eq(0), 1);
  };
  const Tensor scaled = divided(rows, rows.abs().amax(dims, /*keepdim=*/true));
  return divided(scaled, scaled.square().sum(dims, /*keepdim=*/true).sqrt());
}

inline void check_virtual_adversarial(const char* function, const VirtualAdversarialOptions& options) {
  TORCH_CHECK(options.xi() > 0 && std::isfinite(options.xi()), function, ": xi must be finite and > 0, got ",
              options.xi());
  TORCH_CHECK(options.power_iterations() >= 1, function, ": power_iterations must be >= 1, got ",
              options.power_iterations());
}

}  // namespace detail

/// The direction in which a small step changes each image's prediction most (virtual adversarial training,
/// arXiv 1704.03976), by the power method from a random one:
///
///     d ~ N(0, 1);   repeat: d <- gradient by r of KL(p(x) || p(x + r)) at r = xi d / |d|;   d / |d|
///
/// `input`: floating-point [N, …], which the model takes; the result is of its shape and dtype, of L2 norm 1
/// a row, 0 where the gradient is 0 (a saturated prediction), and without gradient. Both predictions are
/// computed in float32 or better, with autocast and TF32 off: half precision cannot tell x + r from x. Nor
/// can float32 at the papers' xi = 1e-6: in a Wide ResNet the cosine to float64's direction was .1, and over
/// .99 at 1e-2.
///
/// The model runs in the mode it is in, twice and once for each further iteration; no batch-norm statistics
/// move, and the parameters' gradients are not touched. Draws d, in float32, from `generator` (LibTorch's
/// default one of the input's device without). Nothing waits for the device. The step to take, radius times
/// this, is the caller's. Throws on other dtypes and shapes. Not to be confused with adversarial training,
/// which needs labels.
template <class Model>
Tensor virtual_adversarial_direction(Model& model, const Tensor& input,
                                     const VirtualAdversarialOptions& options = {},
                                     std::optional<at::Generator> generator = std::nullopt) {
  detail::check_virtual_adversarial("virtual_adversarial_direction", options);
  TORCH_CHECK(input.defined() && input.dim() >= 2 && at::isFloatingType(input.scalar_type()),
              "virtual_adversarial_direction: input must be floating-point [N, ...], got ",
              detail::type_and_sizes(input));
  const training::Autocast no_autocast(input.device(), at::kFloat);
  const training::NoTf32 no_tf32;
  const auto frozen = freeze_batch_norm(model);
  const Tensor x = detail::float_logits(input.detach());
  const double xi = x.scalar_type() == at::kDouble ? options.xi() : std::max(options.xi(), 1e-2);
  Tensor prediction;
  {
    const torch::NoGradGuard no_grad;
    prediction = torch::softmax(forward(model, x), 1);
  }
  Tensor d = at::randn(x.sizes(), detail::to_aten(generator),
                       x.options().dtype(at::kFloat).device(detail::draw_device(x.device(), generator)))
                 .to(x.device(), x.scalar_type())
                 .contiguous(x.suggest_memory_format());
  for (int64_t i = 0; i < options.power_iterations(); ++i) {
    const torch::AutoGradMode record(true);
    const Tensor r = (detail::unit_rows(d) * xi).requires_grad_();
    // The divergence but for the entropy of p(x), which r does not change.
    d = torch::autograd::grad({soft_cross_entropy(forward(model, x + r), prediction)}, {r})[0];
  }
  return detail::unit_rows(d).to(input.scalar_type());
}

}  // namespace mixmatch
