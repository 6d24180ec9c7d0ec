#pragma once

#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>
#include <mixmatch/detail/cuda/cuda_interleave.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/join_rows.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/nn/forward_each.hpp>

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

namespace mixmatch {

using torch::Tensor;

/// Swaps slices between K + 1 equal batches, so that each holds a fair mix of all of them. Its own inverse.
///
/// Each batch of B rows is cut into K + 1 groups of B / (K + 1) rows, the remainder going to the last groups;
/// group i of batch 0 changes places with group i of batch i. MixMatch runs K + 1 separate forward passes of
/// which only the first moves the batch-norm running statistics: interleaving lets that pass see labeled and
/// unlabeled rows alike, and interleaving the logits puts them back. Irrelevant to one concatenated pass.
/// Differentiable; without a gradient to record, the results are slices of one new tensor. Draws nothing;
/// throws unless all batches have one shape.
inline std::vector<Tensor> interleave(std::vector<Tensor> batches) {
  TORCH_CHECK(!batches.empty(), "interleave: batches must hold at least one batch, got none");
  for (const Tensor& batch : batches) {
    TORCH_CHECK(batch.dim() >= 1 && batch.sizes() == batches.front().sizes(),
                "interleave: all batches must have the shape of the first, ", batches.front().sizes(),
                ", got ", batch.sizes());
  }
  const auto count = static_cast<int64_t>(batches.size());
  const int64_t rows = batches.front().size(0);
  std::vector<int64_t> group_sizes(batches.size(), rows / count);
  for (int64_t i = 0; i < rows % count; ++i) {
    ++group_sizes[group_sizes.size() - 1 - static_cast<size_t>(i)];
  }
  std::vector<std::vector<Tensor>> groups;
  groups.reserve(batches.size());
  for (const Tensor& batch : batches) {
    groups.push_back(batch.split_with_sizes(group_sizes, 0));
  }
  for (size_t i = 1; i < groups.size(); ++i) {
    std::swap(groups[0][i], groups[i][i]);
  }
  if (detail::gradient_recorded(batches)) {
    for (size_t i = 0; i < groups.size(); ++i) {
      batches[i] = torch::cat(groups[i], 0);
    }
    return batches;
  }
  // In one tensor, of which one pass over all batches needs no copy.
  std::vector<Tensor> in_order;
  in_order.reserve(groups.size() * groups.size());
  for (const auto& batch : groups) {
    // An empty group looks contiguous, and would make the whole so.
    std::copy_if(batch.begin(), batch.end(), std::back_inserter(in_order),
                 [rows](const Tensor& group) { return group.size(0) > 0 || rows == 0; });
  }
  const Tensor all = at::cat(in_order);
  for (size_t i = 0; i < batches.size(); ++i) {
    batches[i] = detail::separate_rows(all, static_cast<int64_t>(i) * rows, rows);
  }
  return batches;
}

namespace detail {

/// interleave() of `count` batches that follow each other in one tensor, in one kernel: the first, and the
/// others joined.
class InterleaveFunction : public torch::autograd::Function<InterleaveFunction> {
 public:
  using Context = torch::autograd::AutogradContext;
  using List = torch::autograd::variable_list;

  static List forward(Context* ctx, const Tensor& batches, int64_t count) {
    ctx->saved_data["count"] = count;
    const auto from = parts_of(batches, count);
    const FirstAndOthers to{at::empty_like(from.first), at::empty_like(from.others)};
    interleave_on_cuda(to, from, count);
    return {to.first, to.others};
  }

  static List backward(Context* ctx, List gradients) {
    const int64_t count = ctx->saved_data["count"].toInt();
    const FirstAndOthers from{gradients[0].contiguous(), gradients[1].contiguous()};
    if (at::GradMode::is_enabled()) {  // a second derivative was asked for
      return {at::cat(interleave(at::cat({from.first, from.others}).chunk(count))), Tensor()};
    }
    auto sizes = from.first.sizes().vec();
    sizes[0] *= count;
    const Tensor gradient = at::empty(sizes, from.first.options());
    interleave_on_cuda(parts_of(gradient, count), from, count);
    return {gradient, Tensor()};
  }

 private:
  static FirstAndOthers parts_of(const Tensor& batches, int64_t count) {
    const int64_t rows = batches.size(0) / count;
    return {batches.narrow(0, 0, rows), batches.narrow(0, rows, (count - 1) * rows)};
  }
};

}  // namespace detail

struct InterleavedLogits {
  Tensor labeled, unlabeled;
};

/// The K + 1 forward passes of a MixMatch step: `labeled` [B, …] and `unlabeled` [K*B, …] to logits [B, L]
/// and [K*B, L], interleaved so that the first pass, the only one to move batch-norm running statistics, sees
/// labeled and unlabeled rows alike. Gradient to all; throws unless the unlabeled rows are a multiple of the
/// labeled ones, and like them.
template <class Model>
InterleavedLogits forward_interleaved(Model& model, const Tensor& labeled, const Tensor& unlabeled) {
  TORCH_CHECK(labeled.defined() && labeled.dim() >= 1, "forward_interleaved: labeled must be [B, ...], got ",
              detail::sizes_text(labeled));
  TORCH_CHECK(
      unlabeled.defined() && unlabeled.dim() >= 1 && unlabeled.sizes().slice(1) == labeled.sizes().slice(1),
      "forward_interleaved: unlabeled must have rows like those of labeled ", labeled.sizes(), ", got ",
      detail::sizes_text(unlabeled));
  TORCH_CHECK(unlabeled.device() == labeled.device(),
              "forward_interleaved: unlabeled must be on the device of labeled, ", labeled.device(), ", got ",
              unlabeled.device());
  const int64_t rows = labeled.size(0);
  TORCH_CHECK(rows > 0 && unlabeled.size(0) % rows == 0,
              "forward_interleaved: unlabeled must have a multiple of the labeled batch's ", rows,
              " rows, got ", unlabeled.sizes());
  std::vector<Tensor> batches{labeled};
  for (int64_t row = 0; row < unlabeled.size(0); row += rows) {
    batches.push_back(unlabeled.narrow(0, row, rows));
  }
  const auto count = static_cast<int64_t>(batches.size());
  const auto mixed = interleave(std::move(batches));
  const Tensor whole = detail::forward_as_one(model, mixed);
  if (whole.defined() && whole.size(0) == count * rows && detail::interleave_on_cuda_fits(whole)) {
    const auto back = detail::InterleaveFunction::apply(whole, count);
    return {back[0], back[1]};
  }
  auto logits = interleave(whole.defined() ? whole.chunk(count) : forward_each(model, mixed));
  const Tensor first = logits.front();
  logits.erase(logits.begin());
  return {first, logits.empty() ? first.narrow(0, 0, 0) : torch::cat(logits)};
}

}  // namespace mixmatch
