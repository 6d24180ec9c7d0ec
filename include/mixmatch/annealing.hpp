#pragma once

#include <mixmatch/detail/describe.hpp>
#include <mixmatch/losses.hpp>

#include <string_view>

namespace mixmatch {

/// How the threshold of training-signal annealing rises from 1 / L to 1 over a run, t from 0 to 1: it is 1
/// throughout, follows t, rises late (exp(5 (t - 1)), for labels that are soon overfitted), or early (1 -
/// exp(-5 t)).
enum class Annealing { none, linear, exp, log };

/// "none", "linear", "exp" or "log"; another name throws.
inline Annealing parse_annealing(std::string_view name) {
  constexpr std::string_view names[] = {"none", "linear", "exp", "log"};
  for (int i = 0; i < 4; ++i) {
    if (name == names[i]) {
      return static_cast<Annealing>(i);
    }
  }
  TORCH_CHECK(false, "annealing: expected none, linear, exp or log, got \"", name, "\"");
}

/// a (1 - 1/L) + 1/L with t = clamp(step / total_steps, 0, 1) and a = 1 (none), t (linear), exp(5 (t - 1))
/// (exp) or 1 - exp(-5 t) (log): the threshold of training-signal annealing (UDA, arXiv
/// 1904.12848; exp starts a little above 1 / L, and log ends a little below 1).
///
/// `step`: int64 [], counted from 0; L = `num_classes` >= 1; total_steps > 0. Gives float64 [] on the step's
/// device, without waiting for it. Draws nothing.
inline Tensor annealing_threshold(const Tensor& step, int64_t total_steps, int64_t num_classes,
                                  Annealing schedule) {
  TORCH_CHECK(total_steps > 0, "annealing_threshold: total_steps must be > 0, got ", total_steps);
  TORCH_CHECK(num_classes >= 1, "annealing_threshold: num_classes must be >= 1, got ", num_classes);
  const Tensor t = (step.to(at::kDouble) / static_cast<double>(total_steps)).clamp_(0, 1);
  const Tensor a = schedule == Annealing::none     ? at::ones_like(t)
                   : schedule == Annealing::linear ? t
                   : schedule == Annealing::exp    ? (5 * (t - 1)).exp()
                                                   : 1 - (-5 * t).exp();
  return 1 - (1 - a) * (1 - 1 / static_cast<double>(num_classes));  // exactly 1 for a = 1
}

/// `loss` carries the gradient; `kept`, a scalar without, is the share of rows that it is the mean of.
struct AnnealedLoss {
  Tensor loss, kept;
};

/// Cross-entropy against hard labels of the rows whose label has at most the probability `threshold`, divided
/// by their number, at least 1: labeled images that are learnt already have no gradient (UDA).
///
/// `logits` [N, L], `labels` int64 [N] in [0, L), `threshold` floating-point [] such as
/// annealing_threshold()'s; on one device. Half-precision logits are computed in float32. Gradient to the
/// logits only. Not to be confused with masked_cross_entropy(), the mean over all rows.
inline AnnealedLoss annealed_cross_entropy(const Tensor& logits, const Tensor& labels,
                                           const Tensor& threshold) {
  detail::check_logits("annealed_cross_entropy", logits);
  detail::check_loss_labels("annealed_cross_entropy", logits, labels);
  TORCH_CHECK(threshold.defined() && threshold.dim() == 0 && at::isFloatingType(threshold.scalar_type()),
              "annealed_cross_entropy: threshold must be a floating-point scalar tensor, got ",
              detail::type_and_sizes(threshold));
  const Tensor log_probabilities = torch::log_softmax(detail::float_logits(logits), -1);
  const Tensor chosen = log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1);
  const Tensor keep = chosen.detach().exp().le(threshold).to(chosen.scalar_type());
  const Tensor count = keep.sum();
  return {(chosen * keep).sum() / -count.clamp_min(1), detail::mean_over_rows(keep)};
}

}  // namespace mixmatch
