#pragma once

#include <mixmatch/detail/join_rows.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/nn/batch_norm.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mixmatch {

namespace detail {

template <class M>
concept HasBatchNormGroups = requires(M& model) {
  model.set_batch_norm_groups(int64_t{});
};

}  // namespace detail

/// A Model that takes several equal batches as one whose parts are normalised each by itself:
/// `set_batch_norm_groups(groups)`, as models::WideResNet has. It must reach every layer whose result for a
/// row depends on other rows; the library sets it back to 1.
template <class M>
concept GroupedModel = detail::HasBatchNormGroups<M> || requires(M& model) {
  model->set_batch_norm_groups(int64_t{});
};

namespace detail {

template <class M>
void set_batch_norm_groups(M& model, int64_t groups) {
  if constexpr (HasBatchNormGroups<M>) {
    model.set_batch_norm_groups(groups);
  } else {
    model->set_batch_norm_groups(groups);
  }
}

/// Sets the groups of a GroupedModel for the length of a scope.
template <class M>
class BatchNormGroups {
 public:
  BatchNormGroups(M& model, int64_t groups) : model_(&model) { set_batch_norm_groups(model, groups); }
  BatchNormGroups(const BatchNormGroups&) = delete;
  BatchNormGroups& operator=(const BatchNormGroups&) = delete;
  ~BatchNormGroups() { set_batch_norm_groups(*model_, 1); }

 private:
  M* model_;
};

/// The model's output of one pass over several equal batches, one after the other, each normalised by its own
/// statistics; undefined where model or batches are not of that kind.
template <class Model>
Tensor forward_as_one(Model& model, const std::vector<Tensor>& batches) {
  if constexpr (GroupedModel<Model>) {
    const bool alike = std::all_of(batches.begin(), batches.end(), [&](const Tensor& batch) {
      const Tensor& first = batches.front();
      return batch.sizes() == first.sizes() && batch.scalar_type() == first.scalar_type() &&
             batch.device() == first.device();
    });
    if (alike && batches.size() > 1 && batches.front().size(0) > 0) {
      const BatchNormGroups<Model> groups(model, static_cast<int64_t>(batches.size()));
      return forward(model, join_rows(batches));
    }
  }
  return {};
}

}  // namespace detail

/// The model's output for each batch, as from one pass after the other of which only the first moves the
/// batch-norm running statistics: MixMatch's K + 1 training passes, and the K passes that guess labels.
///
/// Batches of one shape go through a GroupedModel in a single pass, each normalised by its own statistics:
/// the same mathematics, equal to rounding, with fewer and larger operations. `batches`: tensors that the
/// model takes, any number of rows; other batches, and other models, take one pass each. Gradient to all; the
/// model's mode is left alone; draws nothing itself. Throws what the model throws. Not to be confused with
/// forward_interleaved(), which also swaps rows between the batches.
template <class Model>
std::vector<Tensor> forward_each(Model& model, const std::vector<Tensor>& batches) {
  if (const Tensor whole = detail::forward_as_one(model, batches); whole.defined()) {
    return whole.chunk(static_cast<int64_t>(batches.size()));
  }
  std::vector<Tensor> outputs;
  if (!batches.empty()) {
    outputs.push_back(forward(model, batches.front()));
  }
  if (batches.size() > 1) {
    const auto frozen = freeze_batch_norm(model);
    for (size_t i = 1; i < batches.size(); ++i) {
      outputs.push_back(forward(model, batches[i]));
    }
  }
  return outputs;
}

}  // namespace mixmatch
