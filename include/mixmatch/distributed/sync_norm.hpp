#pragma once

#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>
#include <mixmatch/distributed/joint_rows.hpp>
#include <mixmatch/distributed/process_group.hpp>

#include <cstdint>
#include <utility>

namespace mixmatch::training::detail {

/// Mean and biased variance of each channel, [groups, C], over all ranks' rows.
struct JointMoments {
  Tensor mean, variance;
};

inline JointMoments joint_moments(const Tensor& x, ProcessGroup& group) {  // [groups, rows, C, values]
  const Tensor mean = x.mean({1, 3});
  const Tensor squares = (x - mean.unsqueeze(1).unsqueeze(3)).square_().mean({1, 3});
  const Tensor all = group.gather(at::stack({mean, squares}));  // [ranks, 2, groups, C], of equal counts
  const Tensor means = all.select(1, 0), joint = means.mean(0);
  return {joint, all.select(1, 1).mean(0) + (means - joint).square().mean(0)};
}

/// Batch norm whose moments are of all ranks' rows, in `groups` equal parts of the rows each:
///
///     y = weight (x - mean) / sqrt(variance + eps) + bias
///
/// x [N, C, H, W] with as many rows on every rank. Returns y, mean and variance; the latter two have no
/// gradient. The gradient of x is that of the sum over ranks of what the outputs go into; those of weight and
/// bias are this rank's part. Has no second derivative.
class SyncNormFunction : public torch::autograd::Function<SyncNormFunction> {
 public:
  using Context = torch::autograd::AutogradContext;
  using List = torch::autograd::variable_list;

  static List forward(Context* ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, double eps,
                      int64_t groups, ProcessGroup* group) {
    const Tensor rows = by_group(x, groups).to(weight.scalar_type());
    const auto [mean, variance] = joint_moments(rows, *group);
    const Tensor scale = (variance + eps).rsqrt_();
    const Tensor normalized = (rows - of_channels(mean)) * of_channels(scale);
    save_group(ctx, group);
    ctx->saved_data["groups"] = groups;
    ctx->save_for_backward({normalized, scale, weight});
    const Tensor y = normalized * weight.view({1, 1, -1, 1}) + bias.view({1, 1, -1, 1});
    ctx->mark_non_differentiable({mean, variance});
    return {like(y, x), mean, variance};
  }

  static List backward(Context* ctx, const List& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &normalized = saved[0], &scale = saved[1], &weight = saved[2];
    auto& group = group_of(ctx);
    const Tensor grad = by_group(grads[0], ctx->saved_data["groups"].toInt()).to(weight.scalar_type());
    // Of this rank's rows; the means that the gradient of x wants are of all.
    const Tensor own = at::stack({grad.sum({1, 3}), (grad * normalized).sum({1, 3})});
    Tensor means = own.clone();
    group.mean_(means);
    means.div_(static_cast<double>(normalized.size(1) * normalized.size(3)));
    const Tensor grad_x = (grad - of_channels(means[0]) - normalized * of_channels(means[1])) *
                          of_channels(scale) * weight.view({1, 1, -1, 1});
    return {like(grad_x, grads[0]), own[1].sum(0), own[0].sum(0), Tensor(), Tensor(), Tensor()};
  }

 private:
  static Tensor by_group(const Tensor& x, int64_t groups) {
    return x.reshape({groups, x.size(0) / groups, x.size(1), -1});
  }
  static Tensor of_channels(const Tensor& moments) { return moments.unsqueeze(1).unsqueeze(3); }
  static Tensor like(const Tensor& values, const Tensor& x) {
    return values.reshape(x.sizes()).to(x.scalar_type()).contiguous(x.suggest_memory_format());
  }
};

}  // namespace mixmatch::training::detail
