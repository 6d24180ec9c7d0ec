#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/detail/describe.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <tuple>

namespace mixmatch::training {

using torch::Tensor;

struct ReviewOrderOptions {
  /// How many rows at the front are chosen to differ from each other: what a person looks at in one sitting.
  TORCH_ARG(int64_t, diverse) = 100;
  /// From how many of the least certain rows these are chosen.
  TORCH_ARG(int64_t, candidates) = 2000;
};

/// The order in which rows without a label are best looked at by a person: int64 [N] on the CPU.
///
/// The first is the least certain row. Each of the next options.diverse() - 1 is, of the options.candidates()
/// least certain rows, the one with the largest (1 - confidence) d, where d is its Euclidean distance to the
/// nearest row that was chosen before: farthest-first traversal (the greedy k-centre of Sener and Savarese,
/// "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018), weighted by
/// uncertainty, so that near-duplicates do not come one after the other and outliers that are certain do not
/// come at all. The others follow by their confidence, ascending. Equal ones come as they came; nothing is
/// drawn.
///
/// `confidence`: floating-point [N] in [0, 1], NaN counting as 0. `embed(rows)`, rows int64 [M], returns what
/// distances are taken of, [M, D] with M <= options.candidates(): it is called once, for the candidates
/// alone, so that the cost is that of sorting N numbers, M features, and diverse * M * D operations.
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
  if (diverse <= 1) {
    return by_confidence;
  }
  const Tensor rows = by_confidence.narrow(0, 0, candidates);
  const Tensor given = embed(rows);
  TORCH_CHECK(given.defined() && given.dim() == 2 && given.size(0) == candidates &&
                  at::isFloatingType(given.scalar_type()),
              "review_order: embed must return floating-point [", candidates, ", D], got ",
              mixmatch::detail::type_and_sizes(given));
  const Tensor features = given.detach().to(at::kCPU, at::kFloat).nan_to_num(0, 0, 0);
  const Tensor doubt = 1 - sure.index_select(0, rows);
  Tensor distance = at::full({candidates}, std::numeric_limits<float>::infinity());
  Tensor chosen = at::zeros({candidates}, at::kBool);
  Tensor front = at::empty({diverse}, at::kLong);
  int64_t next = 0;
  for (int64_t i = 0; i < diverse; ++i) {
    front[i] = next;
    chosen[next] = true;
    distance = at::minimum(distance, (features - features[next]).norm(2, 1));
    next = (doubt * distance).masked_fill(chosen, -1).argmax().template item<int64_t>();
  }
  return at::cat({rows.index_select(0, front), rows.masked_select(chosen.logical_not()),
                  by_confidence.narrow(0, candidates, sure.size(0) - candidates)});
}

}  // namespace mixmatch::training
