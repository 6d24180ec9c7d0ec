#pragma once

#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>
#include <mixmatch/distributed/process_group.hpp>

#include <cstdint>

namespace mixmatch::training {

namespace detail {

inline Tensor rows_of_rank(const Tensor& rows, const ProcessGroup& group) {
  return rows.slice(0, group.rank(), rows.size(0), group.world_size())
      .contiguous(rows.suggest_memory_format());
}

inline Tensor rows_of_all(const Tensor& own, ProcessGroup& group) {
  return group.gather(own.contiguous()).transpose(0, 1).flatten(0, 1);
}

/// Tensors and numbers of autograd know no pointer to a group.
inline ProcessGroup& group_of(torch::autograd::AutogradContext* ctx) {
  return *reinterpret_cast<ProcessGroup*>(ctx->saved_data["group"].toInt());
}
inline void save_group(torch::autograd::AutogradContext* ctx, ProcessGroup* group) {
  ctx->saved_data["group"] = static_cast<int64_t>(reinterpret_cast<intptr_t>(group));
}

class OwnRowsFunction : public torch::autograd::Function<OwnRowsFunction> {
 public:
  using Context = torch::autograd::AutogradContext;
  using List = torch::autograd::variable_list;

  static Tensor forward(Context* ctx, const Tensor& rows, ProcessGroup* group) {
    save_group(ctx, group);
    return rows_of_rank(rows, *group);
  }
  static List backward(Context* ctx, const List& grads) {
    auto& group = group_of(ctx);
    return {rows_of_all(grads[0], group).div_(static_cast<double>(group.world_size())), Tensor()};
  }
};

class AllRowsFunction : public torch::autograd::Function<AllRowsFunction> {
 public:
  using Context = torch::autograd::AutogradContext;
  using List = torch::autograd::variable_list;

  static Tensor forward(Context* ctx, const Tensor& own, ProcessGroup* group) {
    save_group(ctx, group);
    return rows_of_all(own, *group);
  }
  static List backward(Context* ctx, const List& grads) {
    auto& group = group_of(ctx);
    return {rows_of_rank(grads[0], group).mul_(static_cast<double>(group.world_size())), Tensor()};
  }
};

}  // namespace detail

// A joint batch: every rank holds all of its rows and computes the same loss of all outputs, but each sends
// only its own rows through the network: row n is rank (n mod world_size)'s, so that every part of a batch
// (labeled rows, views, groups of a normalisation) is spread evenly over the ranks. The mean over ranks of
// the gradients of such a loss is its gradient: all_rows() sends world_size times the own rows' gradient
// back, and leaves what does not come from the network, such as a penalty on weights, as it is.

/// This rank's rows of `rows` [N, …], N a multiple of the ranks, with the memory format kept. Differentiable:
/// the gradient is that of all ranks' rows, which is a collective.
inline Tensor own_rows(const Tensor& rows, ProcessGroup& group) {
  TORCH_CHECK(rows.dim() >= 1 && rows.size(0) % group.world_size() == 0, "a batch of ", rows.size(0),
              " rows cannot be shared evenly by ", group.world_size(), " processes");
  return detail::OwnRowsFunction::apply(rows, &group);
}

/// The rows that own_rows() shared out, [N, …], of each rank's `own` [N / world_size, …]: the same on every
/// rank. Differentiable.
inline Tensor all_rows(const Tensor& own, ProcessGroup& group) {
  return detail::AllRowsFunction::apply(own, &group);
}

}  // namespace mixmatch::training
