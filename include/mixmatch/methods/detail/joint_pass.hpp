#pragma once

#include <mixmatch/detail/join_rows.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/step/batch.hpp>

namespace mixmatch::methods::detail {

/// Logits of a batch's labeled images and of the two views of its unlabeled ones; `weak`, which targets are
/// made of, has no gradient.
struct JointLogits {
  Tensor labeled, weak, strong;
};

/// All of them from one forward pass over the rows one after the other, which share its batch statistics: the
/// pass of FixMatch and UDA.
template <class Model>
JointLogits joint_pass(Model& model, const Batch& batch) {
  const Tensor &weak = batch.weak.at(0), &strong = batch.strong.at(0);
  const Tensor logits = forward(model, mixmatch::detail::join_rows({batch.labeled, weak, strong}));
  const int64_t labeled_rows = batch.labeled.size(0), rows = weak.size(0);
  return {logits.narrow(0, 0, labeled_rows), logits.narrow(0, labeled_rows, rows).detach(),
          logits.narrow(0, labeled_rows + rows, strong.size(0))};
}

}  // namespace mixmatch::methods::detail
