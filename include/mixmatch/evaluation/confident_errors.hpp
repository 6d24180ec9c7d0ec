#pragma once

#include <torch/types.h>
#include <mixmatch/evaluation/confusion_matrix.hpp>

#include <algorithm>

namespace mixmatch::training {

/// The rows that are wrong with the greatest confidence, at most `count`, most confident first: int64 [K] on
/// the CPU; rows of equal confidence keep their order.
///
/// `probabilities`: floating-point [N, L], any device; confidence is a row's maximum, the prediction where it
/// is. `labels`: int64 [N], -1 = unknown, never wrong. A row with a NaN has no prediction and is left out.
/// Throws on other shapes, and on count < 0.
inline Tensor most_confident_errors(const Tensor& probabilities, const Tensor& labels, int64_t count) {
  TORCH_CHECK(probabilities.defined() && probabilities.dim() == 2 && probabilities.size(1) > 0 &&
                  at::isFloatingType(probabilities.scalar_type()),
              "most_confident_errors: probabilities must be floating-point [N, L], got ",
              mixmatch::detail::type_and_sizes(probabilities));
  detail::check_class_indices("most_confident_errors", "labels", labels);
  TORCH_CHECK(labels.size(0) == probabilities.size(0), "most_confident_errors: probabilities has ",
              probabilities.size(0), " rows, labels ", labels.size(0));
  TORCH_CHECK(count >= 0, "most_confident_errors: count must be >= 0, got ", count);
  const auto [confidence, predicted] = probabilities.detach().cpu().max(1);
  const Tensor truth = labels.cpu();
  const Tensor wrong =
      truth.ne(-1).logical_and(truth.ne(predicted)).logical_and(confidence.eq(confidence)).nonzero().view(-1);
  const Tensor order =
      std::get<1>(confidence.index_select(0, wrong).sort(/*stable=*/true, /*dim=*/0, /*descending=*/true));
  return wrong.index_select(0, order.narrow(0, 0, std::min(count, order.size(0))));
}

}  // namespace mixmatch::training
