#pragma once

#include <torch/arg.h>
#include <torch/nn/functional/loss.h>
#include <torch/optim/lbfgs.h>
#include <torch/types.h>
#include <mixmatch/detail/describe.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace mixmatch::training {

using torch::Tensor;

struct LinearProbeOptions {
  /// Strengths of the penalty to choose from by cross-validation, all > 0; the middle one where there is too
  /// little to cross-validate.
  TORCH_ARG(std::vector<double>, l2) = {1e-2, 1e-1, 1.0, 10.0};
  /// Parts of that cross-validation.
  TORCH_ARG(int64_t, folds) = 4;
  TORCH_ARG(int64_t, max_iterations) = 60;
};

/// logits = features weight^T + bias
struct LinearProbe {
  Tensor weight;  ///< float32 [L, D]
  Tensor bias;    ///< float32 [L]
  double l2;      ///< the penalty that was chosen

  Tensor operator()(const Tensor& features) const { return at::linear(features, weight, bias); }
};

namespace detail {

/// argmin of mean CE(X W^T + b, y) + l2 / 2 |W|^2 in float64, as [L, R + 1] with b last.
inline Tensor fit_softmax_regression(const Tensor& x, const Tensor& labels, int64_t num_classes, double l2,
                                     int64_t max_iterations) {
  const Tensor input = at::cat({x, at::ones({x.size(0), 1}, x.options())}, 1);
  Tensor w = at::zeros({num_classes, input.size(1)}, x.options()).requires_grad_();
  torch::optim::LBFGS optimizer({w}, torch::optim::LBFGSOptions(1)
                                         .max_iter(max_iterations)
                                         .tolerance_grad(1e-7)
                                         .tolerance_change(1e-10)
                                         .line_search_fn("strong_wolfe"));
  optimizer.step([&] {
    const torch::AutoGradMode with_gradient(true);
    optimizer.zero_grad();
    const Tensor loss = at::cross_entropy_loss(input.matmul(w.t()), labels) +
                        w.narrow(1, 0, x.size(1)).square().sum() * (l2 / 2);
    loss.backward();
    return loss;
  });
  return w.detach();
}

/// The part of each row: within each class, one part after the other.
inline Tensor fold_of(const Tensor& labels, int64_t num_classes, int64_t folds) {
  std::vector<int64_t> seen(static_cast<size_t>(num_classes));
  Tensor fold = at::empty_like(labels);
  for (int64_t i = 0; i < labels.numel(); ++i) {
    fold.data_ptr<int64_t>()[i] = seen[static_cast<size_t>(labels.data_ptr<int64_t>()[i])]++ % folds;
  }
  return fold;
}

}  // namespace detail

/// A linear probe (arXiv 1610.01644): multinomial logistic regression on a network's features, the first
/// baseline of a pretrained network, and a head for its fine-tuning to start from (arXiv 2202.10054).
///
///     argmin_{W, b}  1/N sum_n CE(z_n W^T + b, y_n) + l2 / 2 |W|^2
///
/// z are the features less their mean, by the root of their mean variance, one number for all: dividing each
/// by its own costs accuracy (docs/RESULTS.md). The probe that is returned takes the features as they are.
/// The penalty is the one with the smallest cross-entropy in options.folds()-fold cross-validation, where
/// each class has 2 rows at least.
///
/// `features`: floating-point [N, D], on any device; `labels`: int64 [N] in [0, num_classes). Computed in
/// float64 on the CPU by L-BFGS; no gradient, nothing is drawn. Throws on other shapes and dtypes, on labels
/// out of range and on features that are not finite.
inline LinearProbe fit_linear_probe(const Tensor& features, const Tensor& labels, int64_t num_classes,
                                    const LinearProbeOptions& options = {}) {
  TORCH_CHECK(features.defined() && features.dim() == 2 && at::isFloatingType(features.scalar_type()) &&
                  features.size(0) > 0,
              "fit_linear_probe: features must be floating-point [N, D] with N > 0, got ",
              mixmatch::detail::type_and_sizes(features));
  TORCH_CHECK(labels.defined() && labels.scalar_type() == at::kLong && labels.dim() == 1 &&
                  labels.size(0) == features.size(0),
              "fit_linear_probe: labels must be int64 [", features.size(0), "], got ",
              mixmatch::detail::type_and_sizes(labels));
  TORCH_CHECK(!options.l2().empty() && std::all_of(options.l2().begin(), options.l2().end(),
                                                   [](double l2) { return l2 > 0 && std::isfinite(l2); }),
              "fit_linear_probe: l2 must be one number > 0 or more");
  TORCH_CHECK(options.folds() >= 2, "fit_linear_probe: folds must be >= 2, got ", options.folds());
  const torch::NoGradGuard no_grad;
  const Tensor x = features.detach().to(at::kCPU, at::kDouble), y = labels.cpu().contiguous();
  TORCH_CHECK(x.isfinite().all().item<bool>(), "fit_linear_probe: features must be finite");
  const auto [least, most] = at::aminmax(y);
  TORCH_CHECK(least.item<int64_t>() >= 0 && most.item<int64_t>() < num_classes,
              "fit_linear_probe: labels must be in [0, ", num_classes, "), got ", least.item<int64_t>(),
              " to ", most.item<int64_t>());
  const Tensor mean = x.mean(0), deviation = x.var(0, /*unbiased=*/false).mean().sqrt_().clamp_min_(1e-12);
  Tensor z = (x - mean) / deviation;
  // With fewer rows than features only their span matters.
  Tensor basis;
  if (z.size(0) < z.size(1)) {
    basis = std::get<0>(at::linalg_qr(z.t()));  // [D, N]
    z = z.matmul(basis);
  }

  double l2 = options.l2()[options.l2().size() / 2];
  const Tensor counts = at::bincount(y, {}, num_classes);
  if (options.l2().size() > 1 && counts.min().item<int64_t>() >= 2) {
    const Tensor fold = detail::fold_of(y, num_classes, options.folds());
    double best = 0;
    for (size_t i = 0; i < options.l2().size(); ++i) {
      double loss = 0;
      for (int64_t f = 0; f < options.folds(); ++f) {
        const Tensor out = fold.eq(f).nonzero().view(-1), in = fold.ne(f).nonzero().view(-1);
        if (out.numel() == 0) {
          continue;
        }
        const Tensor w =
            detail::fit_softmax_regression(z.index_select(0, in), y.index_select(0, in), num_classes,
                                           options.l2()[i], options.max_iterations());
        const Tensor logits =
            z.index_select(0, out).matmul(w.narrow(1, 0, z.size(1)).t()) + w.select(1, z.size(1));
        loss += at::cross_entropy_loss(logits, y.index_select(0, out), {}, at::Reduction::Sum).item<double>();
      }
      if (i == 0 || loss < best) {
        best = loss;
        l2 = options.l2()[i];
      }
    }
  }
  const Tensor w = detail::fit_softmax_regression(z, y, num_classes, l2, options.max_iterations());
  Tensor weight = w.narrow(1, 0, z.size(1));
  if (basis.defined()) {
    weight = weight.matmul(basis.t());
  }
  weight = weight / deviation;
  const Tensor bias = w.select(1, w.size(1) - 1) - weight.matmul(mean);
  return {weight.to(at::kFloat), bias.to(at::kFloat), l2};
}

}  // namespace mixmatch::training
