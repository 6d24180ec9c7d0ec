#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/evaluation/linear_probe.hpp>

#include <cstdint>

namespace mixmatch::training {

struct CrossValidatedProbeOptions {
  TORCH_ARG(int64_t, folds) = 5;
  TORCH_ARG(double, l2) = 1;  ///< as LinearProbeOptions'
  /// Rows that a probe is fitted to at most, evenly spaced ones of a larger set: what bounds the time.
  TORCH_ARG(int64_t, most_rows) = 4000;
};

/// The probability of each class for rows whose labels were not used for it: float32 [N, L]. A linear probe
/// on the features of the other folds' rows says it, each class being dealt out over the folds in turn; a
/// class whose rows are all in one fold (it has but one) has next to none there.
///
/// `features`: floating-point [N, D], any device; `labels`: int64 [N] in [0, num_classes). The features may
/// be of a network that was trained on these labels: its last layer is what fits them most closely, and that
/// is what a probe does without. Nothing is drawn. Throws as fit_linear_probe(), and on folds < 2.
inline Tensor cross_validated_probe(const Tensor& features, const Tensor& labels, int64_t num_classes,
                                    const CrossValidatedProbeOptions& options = {}) {
  TORCH_CHECK(features.defined() && features.dim() == 2 && labels.defined() && labels.dim() == 1 &&
                  labels.scalar_type() == at::kLong && labels.size(0) == features.size(0),
              "cross_validated_probe: features and labels must be [N, D] and int64 [N], got ",
              mixmatch::detail::type_and_sizes(features), " and ", mixmatch::detail::type_and_sizes(labels));
  TORCH_CHECK(options.folds() >= 2, "cross_validated_probe: folds must be >= 2, got ", options.folds());
  const torch::NoGradGuard no_grad;
  const Tensor x = features.detach().to(at::kCPU), y = labels.cpu().contiguous();
  const Tensor fold = detail::fold_of(y, num_classes, options.folds());
  Tensor probabilities = at::full({x.size(0), num_classes}, 1.0 / static_cast<double>(num_classes));
  for (int64_t k = 0; k < options.folds(); ++k) {
    const Tensor out = fold.eq(k).nonzero().view(-1);
    Tensor in = fold.ne(k).nonzero().view(-1);
    if (out.numel() == 0 || in.numel() == 0) {
      continue;
    }
    if (in.numel() > options.most_rows()) {
      in = in.index_select(
          0, at::arange(options.most_rows(), at::kLong).mul(in.numel()).div(options.most_rows(), "floor"));
    }
    const auto probe = fit_linear_probe(x.index_select(0, in), y.index_select(0, in), num_classes,
                                        LinearProbeOptions().l2({options.l2()}));
    probabilities.index_copy_(0, out, torch::softmax(probe(x.index_select(0, out).to(at::kFloat)), 1));
  }
  return probabilities;
}

}  // namespace mixmatch::training
