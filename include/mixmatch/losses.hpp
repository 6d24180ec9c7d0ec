#pragma once

#include <torch/types.h>
#include <mixmatch/guess_labels.hpp>

namespace mixmatch {

namespace detail {

inline void check_loss_arguments(const char* function, const Tensor& logits, const Tensor& targets) {
  check_logits(function, logits);
  TORCH_CHECK(
      targets.defined() && at::isFloatingType(targets.scalar_type()), function,
      ": targets must be floating-point probabilities [N, L], got ",
      targets.defined() ? c10::str(targets.scalar_type(), " ", targets.sizes()) : std::string("undefined"),
      "; class labels go through mixmatch::one_hot(labels, num_classes)");
  TORCH_CHECK(targets.sizes() == logits.sizes(), function, ": targets must have the logits' shape ",
              logits.sizes(), ", got ", targets.sizes());
}

}  // namespace detail

/// -1/N sum_n sum_c targets[n, c] log softmax(logits)[n, c]: mean over rows of the cross-entropy against soft
/// targets (MixMatch, eq. 3). Both [N, L]; half-precision logits are computed in float32. Gradient to the
/// logits only; zero rows give 0. torch::nn::CrossEntropyLoss with probabilities is the same sum, with
/// gradient to the targets.
inline Tensor soft_cross_entropy(const Tensor& logits, const Tensor& targets) {
  detail::check_loss_arguments("soft_cross_entropy", logits, targets);
  const Tensor log_probabilities = torch::log_softmax(detail::float_logits(logits), -1);
  const auto rows = static_cast<double>(std::max<int64_t>(logits.size(0), 1));
  return (log_probabilities * targets.detach()).sum() / -rows;
}

/// 1/(N L) sum (softmax(logits) - targets)^2: mean over rows AND classes (MixMatch, eq. 4: the 1/L is part of
/// it, so that lambda_u = 100 weighs as in the paper). Both [N, L]; half-precision logits are computed in
/// float32. Gradient to the logits only; zero rows give 0.
inline Tensor softmax_mse(const Tensor& logits, const Tensor& targets) {
  detail::check_loss_arguments("softmax_mse", logits, targets);
  const Tensor difference = torch::softmax(detail::float_logits(logits), -1) - targets.detach();
  const auto count = static_cast<double>(std::max<int64_t>(logits.numel(), 1));
  return difference.square().sum() / count;
}

/// -1/N sum_n mask[n] log softmax(logits)[n, labels[n]]: cross-entropy against hard labels, mean over ALL
/// rows: those that are masked out count as 0 (FixMatch, arXiv 2001.07685, eq. 4), so that few confident rows
/// weigh little.
///
/// `logits` [N, L], `labels` int64 [N] in [0, L), `mask` floating-point [N], of 0 and 1 or weights. Half
/// precision logits are computed in float32. Gradient to the logits only; no rows, or none selected, give 0.
inline Tensor masked_cross_entropy(const Tensor& logits, const Tensor& labels, const Tensor& mask) {
  detail::check_logits("masked_cross_entropy", logits);
  TORCH_CHECK(
      labels.defined() && labels.dim() == 1 && labels.scalar_type() == at::kLong &&
          labels.size(0) == logits.size(0),
      "masked_cross_entropy: labels must be int64 [", logits.size(0), "], got ",
      labels.defined() ? c10::str(labels.scalar_type(), " ", labels.sizes()) : std::string("undefined"));
  TORCH_CHECK(mask.defined() && mask.sizes() == labels.sizes() && at::isFloatingType(mask.scalar_type()),
              "masked_cross_entropy: mask must be floating-point [", logits.size(0), "], got ",
              mask.defined() ? c10::str(mask.scalar_type(), " ", mask.sizes()) : std::string("undefined"));
  const Tensor log_probabilities = torch::log_softmax(detail::float_logits(logits), -1);
  const Tensor chosen = log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1);
  const auto rows = static_cast<double>(std::max<int64_t>(logits.size(0), 1));
  return (chosen * mask.detach()).sum() / -rows;
}

}  // namespace mixmatch
