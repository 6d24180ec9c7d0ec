#pragma once

#include <torch/types.h>
#include <mixmatch/evaluation/confusion_matrix.hpp>

#include <algorithm>
#include <cstdint>
#include <tuple>

namespace mixmatch::training {

/// Rows whose label a model doubts.
struct LabelErrors {
  Tensor rows;     ///< int64 [K] on the CPU, the most doubtful first
  Tensor classes;  ///< int64 [K]: what the model says instead
};

/// Suspected label errors by confident learning (Northcutt, Jiang and Chuang, "Confident Learning: Estimating
/// Uncertainty in Dataset Labels", JAIR 2021): a class's threshold t_j is the mean probability of j over the
/// rows that are labeled j; a row belongs, for all that the model knows, to the class with the largest p_j
/// among those with p_j >= t_j; the rows where that is not their label are the off-diagonal ones of the
/// paper's confident joint, if that p_j is also >= `least_confidence` (0: as in the paper; a model that has
/// learnt little has low thresholds, and suspects much). The order is by p_label - p_class, ascending; equal
/// ones as they came.
///
/// `probabilities`: floating-point [N, L], any device; `labels`: int64 [N], -1 = unknown, never an error. A
/// row with a NaN is left out, and a class without rows is never said instead. No gradient.
///
/// The paper's probabilities are of a model that has not seen the rows. Those of a model that was trained on
/// them follow the labels, wrong ones too, and fewer errors are found the more it has learnt by heart:
/// cross_validated_probe() does without its last layer.
///
/// Throws on other shapes. Not to be confused with most_confident_errors(), the model's own errors.
inline LabelErrors find_label_errors(const Tensor& probabilities, const Tensor& labels,
                                     double least_confidence = 0) {
  TORCH_CHECK(probabilities.defined() && probabilities.dim() == 2 && probabilities.size(1) > 0 &&
                  at::isFloatingType(probabilities.scalar_type()),
              "find_label_errors: probabilities must be floating-point [N, L], got ",
              mixmatch::detail::type_and_sizes(probabilities));
  detail::check_class_indices("find_label_errors", "labels", labels);
  TORCH_CHECK(labels.size(0) == probabilities.size(0), "find_label_errors: probabilities has ",
              probabilities.size(0), " rows, labels ", labels.size(0));
  const int64_t classes = probabilities.size(1);
  const Tensor all_labels = labels.cpu();
  const Tensor all = probabilities.detach().to(at::kCPU, at::kDouble);
  const Tensor rows = all_labels.ge(0).logical_and(all.isnan().any(1).logical_not()).nonzero().view(-1);
  const Tensor p = all.index_select(0, rows), label = all_labels.index_select(0, rows).view({-1, 1});
  TORCH_CHECK(rows.size(0) == 0 || label.max().item<int64_t>() < classes,
              "find_label_errors: labels must be < ", classes, ", the columns of probabilities, got ",
              rows.size(0) == 0 ? 0 : label.max().item<int64_t>());
  const Tensor given = p.gather(1, label);
  // 0 / 0 for a class without rows: no probability reaches a NaN.
  const Tensor threshold = at::zeros({classes}, p.options()).index_add(0, label.view(-1), given.view(-1)) /
                           at::bincount(label.view(-1), {}, classes);
  const auto [largest, found] = p.masked_fill(p.ge(threshold).logical_not(), -1).max(1);
  const Tensor doubted =
      largest.ge(std::max(0.0, least_confidence)).logical_and(found.ne(label.view(-1))).nonzero().view(-1);
  const Tensor margin = (given.view(-1) - largest).index_select(0, doubted);
  const Tensor order =
      doubted.index_select(0, std::get<1>(margin.sort(/*stable=*/true, /*dim=*/0, /*descending=*/false)));
  return {rows.index_select(0, order), found.index_select(0, order)};
}

}  // namespace mixmatch::training
