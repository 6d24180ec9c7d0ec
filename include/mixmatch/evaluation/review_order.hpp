#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/detail/describe.hpp>

#include <algorithm>
#include <cstdint>
#include <tuple>

namespace mixmatch::training {

using torch::Tensor;

struct ReviewOrderOptions {
  /// How many rows at the front are chosen to stand for the others: what a person looks at in one sitting.
  TORCH_ARG(int64_t, diverse) = 100;
  /// From, and for, how many of the least certain rows these are chosen.
  TORCH_ARG(int64_t, candidates) = 2000;
};

/// The order in which rows without a label are best looked at by a person: int64 [N] on the CPU.
///
/// Of the options.candidates() least certain rows, with doubts u_i = 1 - confidence_i, each of the first
/// options.diverse() is the row j that adds most to what the rows S before it cover,
///
///     u_j sum_i u_i max(0, s_ij - max_{k in S} s_ik),    s_ij = exp(-|f_i - f_j|^2 / median |f - f|^2),
///
/// where f are the features at length 1: greedy facility location (Wei, Iyer and Bilmes, "Submodularity in
/// Data Subset Selection and Active Learning", ICML 2015), weighted by uncertainty. So near-duplicates do not
/// come one after the other, nor rows that are certain, nor those that are unlike all others. The rest
/// follows by its confidence, ascending. Equal ones come as they came; nothing is drawn.
///
/// `confidence`: floating-point [N] in [0, 1], NaN counting as 0. `embed(rows)`, rows int64 [M] with M <=
/// options.candidates(), returns features [M, D]: it is called once, for the candidates alone. So the cost is
/// that of sorting N numbers, M features, M^2 D + diverse M^2 operations (seconds) and 3 M^2 numbers (48 MB).
/// Throws on other shapes and numbers below 0.
template <class Embed>
Tensor review_order(const Tensor& confidence, Embed&& embed, const ReviewOrderOptions& options = {}) {
  TORCH_CHECK(confidence.defined() && confidence.dim() == 1 && at::isFloatingType(confidence.scalar_type()),
              "review_order: confidence must be floating-point [N], got ",
              mixmatch::detail::type_and_sizes(confidence));
  TORCH_CHECK(options.diverse() >= 0 && options.candidates() >= 0,
              "review_order: diverse and candidates must be >= 0, got ", options.diverse(), " and ",
              options.candidates());
  const Tensor sure = confidence.detach().to(at::kCPU, at::kFloat).nan_to_num(0);
  const Tensor by_confidence = std::get<1>(sure.sort(/*stable=*/true, /*dim=*/0, /*descending=*/false));
  const int64_t candidates = std::min(options.candidates(), sure.size(0));
  const int64_t diverse = std::min(options.diverse(), candidates);
  if (diverse == 0) {
    return by_confidence;
  }
  const Tensor rows = by_confidence.narrow(0, 0, candidates);
  const Tensor given = embed(rows);
  TORCH_CHECK(given.defined() && given.dim() == 2 && given.size(0) == candidates &&
                  at::isFloatingType(given.scalar_type()),
              "review_order: embed must return floating-point [", candidates, ", D], got ",
              mixmatch::detail::type_and_sizes(given));
  Tensor features = given.detach().to(at::kCPU, at::kFloat).nan_to_num(0, 0, 0);
  features = features / features.norm(2, 1, /*keepdim=*/true).clamp_min(1e-12);
  Tensor similarity = (2 - 2 * features.mm(features.t())).clamp_min_(0);  // squared distances
  const auto scale = std::max(similarity.median().item<double>(), 1e-12);
  similarity.div_(-scale).exp_();
  const Tensor doubt = 1 - sure.index_select(0, rows);
  Tensor covered = at::zeros({candidates}), chosen = at::zeros({candidates}, at::kBool);
  Tensor front = at::empty({diverse}, at::kLong);
  for (int64_t i = 0; i < diverse; ++i) {
    const Tensor gain = doubt * doubt.matmul((similarity - covered.unsqueeze(1)).clamp_min_(0));
    const Tensor next = gain.masked_fill(chosen, -1).argmax();
    front[i] = next;
    chosen.index_fill_(0, next.view(1), true);
    covered = at::maximum(covered, similarity.index_select(1, next.view(1)).view(-1));
  }
  return at::cat({rows.index_select(0, front), rows.masked_select(chosen.logical_not()),
                  by_confidence.narrow(0, candidates, sure.size(0) - candidates)});
}

}  // namespace mixmatch::training
