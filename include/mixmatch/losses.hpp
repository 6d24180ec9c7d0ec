#pragma once

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>
#include <mixmatch/detail/cuda/cuda_losses.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/guess_labels.hpp>

namespace mixmatch {

namespace detail {

inline void check_loss_arguments(const char* function, const Tensor& logits, const Tensor& targets) {
  check_logits(function, logits);
  TORCH_CHECK(targets.defined() && at::isFloatingType(targets.scalar_type()), function,
              ": targets must be floating-point probabilities [N, L], got ", detail::type_and_sizes(targets),
              "; class labels go through mixmatch::one_hot(labels, num_classes)");
  TORCH_CHECK(targets.sizes() == logits.sizes(), function, ": targets must have the logits' shape ",
              logits.sizes(), ", got ", targets.sizes());
}

inline void check_loss_labels(const char* function, const Tensor& logits, const Tensor& labels) {
  TORCH_CHECK(labels.defined() && labels.dim() == 1 && labels.scalar_type() == at::kLong &&
                  labels.size(0) == logits.size(0),
              function, ": labels must be int64 [", logits.size(0), "], got ",
              detail::type_and_sizes(labels));
}

inline void check_loss_mask(const char* function, const Tensor& logits, const Tensor& mask) {
  TORCH_CHECK(mask.defined() && mask.dim() == 1 && mask.size(0) == logits.size(0) &&
                  at::isFloatingType(mask.scalar_type()),
              function, ": mask must be floating-point [", logits.size(0), "], got ",
              detail::type_and_sizes(mask));
}

/// The mean over all rows of `losses` [N], weighted by `mask` where there is one; zero rows give 0.
inline Tensor mean_over_rows(const Tensor& losses, const Tensor& mask = {}) {
  const auto rows = static_cast<double>(std::max<int64_t>(losses.size(0), 1));
  return (mask.defined() ? losses * mask.detach() : losses).sum() / rows;
}

/// sum_c targets[n, c] (log targets[n, c] - log softmax(logits)[n, c]), [N]; 0 log 0 = 0.
inline Tensor kl_of_rows(const Tensor& logits, const Tensor& targets) {
  const Tensor fixed = targets.detach();
  return (at::xlogy(fixed, fixed) - fixed * torch::log_softmax(float_logits(logits), -1)).sum(-1);
}

/// In ATen's calls.
inline Tensor class_loss_composite(const Tensor& logits, const Tensor& targets, const ClassLoss& loss) {
  if (loss.squared) {
    const Tensor difference = torch::softmax(float_logits(logits), -1) - targets.detach();
    return difference.square().sum() / loss.count;
  }
  return (torch::log_softmax(float_logits(logits), -1) * targets.detach()).sum() / -loss.count;
}

/// The same in one kernel, and one for its gradient.
class ClassLossFunction : public torch::autograd::Function<ClassLossFunction> {
 public:
  using Context = torch::autograd::AutogradContext;
  using List = torch::autograd::variable_list;

  static Tensor forward(Context* ctx, const Tensor& logits, const Tensor& targets, bool squared,
                        double count) {
    const Tensor rows = logits.contiguous(), wanted = targets.contiguous();
    ctx->save_for_backward({logits, wanted});
    ctx->saved_data["squared"] = squared;
    ctx->saved_data["count"] = count;
    return class_loss_on_cuda(rows, wanted, {squared, count});
  }

  static List backward(Context* ctx, List gradients) {
    const auto saved = ctx->get_saved_variables();
    const ClassLoss loss{ctx->saved_data["squared"].toBool(), ctx->saved_data["count"].toDouble()};
    const Tensor &logits = saved[0], &targets = saved[1];
    if (!at::GradMode::is_enabled()) {
      return {class_loss_gradient_on_cuda(logits.contiguous(), targets,
                                          gradients[0].to(targets.scalar_type()), loss),
              Tensor(), Tensor(), Tensor()};
    }
    // A second derivative was asked for: by an alias, as the way back ends here.
    const Tensor alias = logits.view_as(logits);
    const auto found = torch::autograd::grad({class_loss_composite(alias, targets, loss)}, {alias},
                                             {gradients[0]}, /*retain_graph=*/true, /*create_graph=*/true);
    return {found[0], Tensor(), Tensor(), Tensor()};
  }
};

inline Tensor class_loss(const Tensor& logits, const Tensor& targets, const ClassLoss& loss) {
  return class_loss_on_cuda_fits(logits, targets)
             ? ClassLossFunction::apply(logits, targets.detach(), loss.squared, loss.count)
             : class_loss_composite(logits, targets, loss);
}

}  // namespace detail

/// -1/N sum_n sum_c targets[n, c] log softmax(logits)[n, c]: mean over rows of the cross-entropy against soft
/// targets (MixMatch, eq. 3). Both [N, L]; half-precision logits are computed in float32. Gradient to the
/// logits only; zero rows give 0. torch::nn::CrossEntropyLoss with probabilities is the same sum, with
/// gradient to the targets.
inline Tensor soft_cross_entropy(const Tensor& logits, const Tensor& targets) {
  detail::check_loss_arguments("soft_cross_entropy", logits, targets);
  return detail::class_loss(logits, targets,
                            {false, static_cast<double>(std::max<int64_t>(logits.size(0), 1))});
}

/// 1/(N L) sum (softmax(logits) - targets)^2: mean over rows AND classes (MixMatch, eq. 4: the 1/L is part of
/// it, so that lambda_u = 100 weighs as in the paper). Both [N, L]; half-precision logits are computed in
/// float32. Gradient to the logits only; zero rows give 0.
inline Tensor softmax_mse(const Tensor& logits, const Tensor& targets) {
  detail::check_loss_arguments("softmax_mse", logits, targets);
  return detail::class_loss(logits, targets,
                            {true, static_cast<double>(std::max<int64_t>(logits.numel(), 1))});
}

/// -1/N sum_n mask[n] log softmax(logits)[n, labels[n]]: cross-entropy against hard labels, mean over ALL
/// rows: those that are masked out count as 0 (FixMatch, arXiv 2001.07685, eq. 4), so that few confident rows
/// weigh little.
///
/// `logits` [N, L], `labels` int64 [N] in [0, L), `mask` floating-point [N], of 0 and 1 or weights. Half
/// precision logits are computed in float32. Gradient to the logits only; no rows, or none selected, give 0.
inline Tensor masked_cross_entropy(const Tensor& logits, const Tensor& labels, const Tensor& mask) {
  detail::check_logits("masked_cross_entropy", logits);
  detail::check_loss_labels("masked_cross_entropy", logits, labels);
  detail::check_loss_mask("masked_cross_entropy", logits, mask);
  const Tensor log_probabilities = torch::log_softmax(detail::float_logits(logits), -1);
  const Tensor chosen = log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1);
  return -detail::mean_over_rows(chosen, mask);
}

/// 1/N sum_n KL(targets[n] || softmax(logits)[n]) = cross-entropy less the targets' own entropy: 0 where they
/// agree. Both [N, L], 0 log 0 = 0; half-precision logits are computed in float32. Gradient to the logits
/// only, the same as soft_cross_entropy()'s; zero rows give 0. torch::nn::KLDivLoss takes log-probabilities
/// and by default also divides by the number of classes.
inline Tensor kl_divergence(const Tensor& logits, const Tensor& targets) {
  detail::check_loss_arguments("kl_divergence", logits, targets);
  return detail::mean_over_rows(detail::kl_of_rows(logits, targets));
}

/// 1/N sum_n mask[n] KL(targets[n] || softmax(logits)[n]): kl_divergence() with the mean over ALL rows, those
/// that are masked out counting as 0 (UDA, arXiv 1904.12848). `mask` floating-point
/// [N], of 0 and 1 or weights, without gradient.
inline Tensor masked_kl_divergence(const Tensor& logits, const Tensor& targets, const Tensor& mask) {
  detail::check_loss_arguments("masked_kl_divergence", logits, targets);
  detail::check_loss_mask("masked_kl_divergence", logits, mask);
  return detail::mean_over_rows(detail::kl_of_rows(logits, targets), mask);
}

/// 1/(N L) sum_n mask[n] sum_c (softmax(logits) - targets)[n, c]^2: softmax_mse() with the mean over ALL rows
/// and classes, rows that are masked out counting as 0. `mask` as in masked_kl_divergence().
inline Tensor masked_softmax_mse(const Tensor& logits, const Tensor& targets, const Tensor& mask) {
  detail::check_loss_arguments("masked_softmax_mse", logits, targets);
  detail::check_loss_mask("masked_softmax_mse", logits, mask);
  const Tensor difference = torch::softmax(detail::float_logits(logits), -1) - targets.detach();
  return detail::mean_over_rows(difference.square().mean(-1), mask);
}

/// -1/N sum_n sum_c p log p of p = softmax(logits), in [0, ln L]: what entropy minimisation adds to a loss.
/// `logits` [N, L], half precision computed in float32; gradient to them; zero rows give 0.
inline Tensor softmax_entropy(const Tensor& logits) {
  detail::check_logits("softmax_entropy", logits);
  const Tensor log_probabilities = torch::log_softmax(detail::float_logits(logits), -1);
  return -detail::mean_over_rows((log_probabilities.exp() * log_probabilities).sum(-1));
}

}  // namespace mixmatch
