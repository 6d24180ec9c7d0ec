#pragma once

#include <torch/types.h>
#include <mixmatch/detail/describe.hpp>

#include <limits>
#include <string>
#include <vector>

namespace mixmatch::training {

using torch::Tensor;

namespace detail {

inline void check_class_indices(const char* function, const char* name, const Tensor& indices) {
  TORCH_CHECK(indices.defined() && indices.dim() == 1 && indices.scalar_type() == at::kLong, function, ": ",
              name, " must be int64 [N], got ", mixmatch::detail::type_and_sizes(indices));
}

inline void check_confusion(const char* function, const Tensor& confusion) {
  TORCH_CHECK(confusion.defined() && confusion.dim() == 2 && confusion.size(0) == confusion.size(1) &&
                  confusion.scalar_type() == at::kLong,
              function, ": confusion must be int64 [L, L], got ",
              mixmatch::detail::type_and_sizes(confusion));
}

}  // namespace detail

/// Entry (i, j) counts the images of true class i that were put into class j: int64 [L, L] on the CPU.
///
/// `labels`, `predicted`: int64 [N], any device; a label of -1 is unknown and its row skipped. `predicted` is
/// usually probabilities.argmax(1). Throws on other dtypes or lengths and on a class outside [0,
/// num_classes).
inline Tensor confusion_matrix(const Tensor& labels, const Tensor& predicted, int64_t num_classes) {
  TORCH_CHECK(num_classes >= 1, "confusion_matrix: num_classes must be >= 1, got ", num_classes);
  detail::check_class_indices("confusion_matrix", "labels", labels);
  detail::check_class_indices("confusion_matrix", "predicted", predicted);
  TORCH_CHECK(labels.size(0) == predicted.size(0), "confusion_matrix: labels has ", labels.size(0),
              " rows, predicted ", predicted.size(0));
  const Tensor truth = labels.cpu(), guess = predicted.cpu();
  const Tensor known = truth.ne(-1);
  const Tensor rows = truth.masked_select(known), columns = guess.masked_select(known);
  for (const auto& [name, classes] :
       {std::pair<const char*, Tensor>{"labels", rows}, {"predicted", columns}}) {
    const Tensor outside = classes.masked_select(classes.lt(0).logical_or(classes.ge(num_classes)));
    TORCH_CHECK(outside.numel() == 0, "confusion_matrix: ", name, " must be in [0, ", num_classes, "), got ",
                outside[0].item<int64_t>());
  }
  return at::bincount(rows * num_classes + columns, {}, num_classes * num_classes)
      .view({num_classes, num_classes});
}

/// Share of each true class's images in percent that were put into another class, from a confusion matrix
/// int64 [L, L]; NaN for a class without images.
inline std::vector<double> per_class_error(const Tensor& confusion) {
  detail::check_confusion("per_class_error", confusion);
  const Tensor total = confusion.sum(1).cpu(), right = confusion.diagonal().cpu();
  std::vector<double> errors;
  for (int64_t i = 0; i < total.size(0); ++i) {
    const auto images = static_cast<double>(total[i].item<int64_t>());
    const auto wrong = images - static_cast<double>(right[i].item<int64_t>());
    errors.push_back(images > 0 ? 100.0 * wrong / images : std::numeric_limits<double>::quiet_NaN());
  }
  return errors;
}

}  // namespace mixmatch::training
