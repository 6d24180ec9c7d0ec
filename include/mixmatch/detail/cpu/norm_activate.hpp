#pragma once

// Batch norm, leaky ReLU and the addition before them: which path a tensor takes, and its gradient.

#include <ATen/Context.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>
#include <mixmatch/detail/cpu/norm_kernel.hpp>
#include <mixmatch/detail/cuda/cuda_norm.hpp>
#include <mixmatch/detail/float_types.hpp>
#include <mixmatch/detail/version.hpp>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

namespace mixmatch::detail {

/// The carried-out sum of a layer's inputs, and the layer's result.
struct SumAndActivation {
  Tensor sum, activation;
};

/// What a fused normalisation needs beside its tensors.
struct NormSettings {
  double eps, slope;
  int64_t groups;
};

/// What a training pass moves by its batch's `share`; undefined tensors where there is nothing to move.
struct RunningStatistics {
  Tensor mean, variance;
  double share = 0;
};

/// Whether the kernels take these: channels-last images in memory that they can read, the CPU's or CUDA's,
/// and parameters in the arithmetic type.
inline bool can_fuse_norm(const Tensor& x, const Tensor& addend, const Tensor& weight, const Tensor& bias,
                          const Tensor& running_mean) {
  const auto type = x.scalar_type();
  const bool reduced = type == at::kBFloat16 || type == at::kHalf;
  if (x.dim() != 4 || x.numel() == 0 || !(reduced || type == at::kFloat || type == at::kDouble)) {
    return false;
  }
  const bool on_cuda = cuda_norm_supported(x);
  const auto readable = [&](const Tensor& tensor) {
    return tensor.device() == x.device() && (on_cuda ? has_cuda_memory(tensor) : has_plain_memory(tensor));
  };
  const auto fits = [&](const Tensor& image) {
    return readable(image) && image.scalar_type() == type && image.sizes() == x.sizes() &&
           image.is_contiguous(at::MemoryFormat::ChannelsLast);
  };
  const auto is_parameter = [&](const Tensor& tensor) {
    return tensor.defined() && readable(tensor) && tensor.is_contiguous() &&
           tensor.scalar_type() == (reduced ? at::kFloat : type);
  };
  return fits(x) && (!addend.defined() || fits(addend)) && is_parameter(weight) && is_parameter(bias) &&
         (!running_mean.defined() || is_parameter(running_mean));
}

/// f(group, part) for each group, where part(tensor) is the group's share of the rows.
template <class F>
void for_each_group(int64_t groups, const F& f) {
  for (int64_t group = 0; group < groups; ++group) {
    f(group, [&](const Tensor& rows) {
      const int64_t count = rows.defined() ? rows.size(0) / groups : 0;
      return groups == 1 || !rows.defined() ? rows : rows.narrow(0, group * count, count);
    });
  }
}

/// Leaky ReLU, which of slope 1 is no activation.
inline Tensor leaky_or_same(const Tensor& x, double slope) {
  return slope == 1.0 ? x : at::leaky_relu(x, slope);
}

/// The same in ATen calls: for any device, layout and derivative. The first group moves the running
/// statistics.
inline SumAndActivation norm_activate_composite(const Tensor& x, const Tensor& addend, const Tensor& weight,
                                                const Tensor& bias, const NormSettings& settings,
                                                const RunningStatistics& running = {}) {
  const Tensor sum = addend.defined() ? x + addend : x;
  std::vector<Tensor> parts;
  for (const auto& part : sum.chunk(settings.groups)) {
    const bool moves = parts.empty();
    parts.push_back(
        leaky_or_same(at::batch_norm(part, weight, bias, moves ? running.mean : Tensor(),
                                     moves ? running.variance : Tensor(), /*training=*/true, running.share,
                                     settings.eps, at::globalContext().userEnabledCuDNN()),
                      settings.slope));
  }
  return {sum, parts.size() == 1 ? parts[0] : at::cat(parts)};
}

/// What a pass of the kernels gives, and what its gradient needs: mean and, on the CPU, variance, on CUDA
/// 1 / sqrt(variance + eps), each [groups, C]. Without an addend the sum is x.
struct FusedNorm {
  Tensor activation, sum, mean, spread;
};

inline FusedNorm norm_forward(const Tensor& x, const Tensor& addend, const Tensor& weight, const Tensor& bias,
                              const NormSettings& settings, const RunningStatistics& running) {
  if (cuda_norm_supported(x)) {
    const auto out = cuda_norm_forward(x, addend, weight, bias, settings.groups, settings.eps, settings.slope,
                                       running.mean, running.variance, running.share);
    return {out.y, out.sum, out.mean, out.invstd};
  }
  const Tensor mean = at::empty({settings.groups, x.size(1)}, weight.options().requires_grad(false));
  const FusedNorm out{at::empty_like(x), addend.defined() ? at::empty_like(x) : x, mean,
                      at::empty_like(mean)};
  const bool known = for_float_type(x.scalar_type(), [&](auto element) {
    using Scalar = decltype(element);
    // A group's second sweep finds in the cache what its first one read.
    for_each_group(settings.groups, [&](int64_t group, const auto& part) {
      norm_moments<Scalar>(mean[group], out.spread[group], part(x), part(addend), part(out.sum));
      norm_activate<Scalar>(part(out.activation), part(out.sum),
                            {mean[group], out.spread[group], weight, bias, settings.eps}, settings.slope);
    });
  });
  TORCH_INTERNAL_ASSERT(known);  // can_fuse_norm() looked
  if (running.mean.defined()) {
    const torch::NoGradGuard no_grad;
    const auto count = static_cast<double>(x.numel() / (x.size(1) * settings.groups));
    const double share = running.share;
    // As ATen's own, unseen by autograd, which may have saved them in another pass.
    running.mean.variable_data().mul_(1 - share).add_(mean[0], share);
    running.variance.variable_data().mul_(1 - share).add_(out.spread[0], share * count / (count - 1));
  }
  return out;
}

/// Of what norm_forward() returned; `grad_sum`, the gradient that arrives at the sum itself, may be
/// undefined.
inline NormGradients norm_backward(const Tensor& grad, const Tensor& grad_sum, const Tensor& x,
                                   const Tensor& weight, const Tensor& bias, const Tensor& mean,
                                   const Tensor& spread, const NormSettings& settings) {
  const auto like_x = [&x](const Tensor& gradient) {
    return gradient.defined() ? gradient.to(x.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast)
                              : gradient;
  };
  const Tensor grad_y = like_x(grad), grad_of_sum = like_x(grad_sum);
  if (cuda_norm_supported(x)) {
    return cuda_norm_backward(grad_y, grad_of_sum, x, weight, bias, mean, spread, settings.groups,
                              settings.slope);
  }
  const NormGradients out{at::empty_like(x), at::empty_like(weight), at::empty_like(bias)};
  const bool known = for_float_type(x.scalar_type(), [&](auto element) {
    using Scalar = decltype(element);
    std::vector<double> weight_sum(static_cast<size_t>(x.size(1)), 0.0), bias_sum = weight_sum;
    for_each_group(settings.groups, [&](int64_t group, const auto& part) {
      norm_activate_backward<Scalar>(part(out.grad_x), weight_sum, bias_sum, part(grad_y), part(grad_of_sum),
                                     part(x), {mean[group], spread[group], weight, bias, settings.eps},
                                     settings.slope);
    });
    out.grad_weight.copy_(at::tensor(weight_sum, at::kDouble));
    out.grad_bias.copy_(at::tensor(bias_sum, at::kDouble));
  });
  TORCH_INTERNAL_ASSERT(known);  // can_fuse_norm() looked
  return out;
}

/// norm_backward() in a form that has derivatives itself; undefined where no gradient is asked for.
inline NormGradients differentiable_norm_backward(const Tensor& grad, const Tensor& grad_sum, const Tensor& x,
                                                  const Tensor& weight, const Tensor& bias,
                                                  const NormSettings& settings) {
  // By aliases: the way back ends here, and does not go on through what x was made of.
  const std::vector<Tensor> inputs{x.view_as(x), weight.view_as(weight), bias.view_as(bias)};
  std::vector<Tensor> wanted;
  std::copy_if(inputs.begin(), inputs.end(), std::back_inserter(wanted),
               [](const Tensor& input) { return input.requires_grad(); });
  std::vector<Tensor> gradients(inputs.size());
  if (!wanted.empty()) {
    const auto again = norm_activate_composite(inputs[0], Tensor(), inputs[1], inputs[2], settings);
    const auto found = torch::autograd::grad({again.activation}, wanted, {grad}, /*retain_graph=*/true,
                                             /*create_graph=*/true, /*allow_unused=*/true);
    for (size_t i = 0, k = 0; i < inputs.size(); ++i) {
      gradients[i] = inputs[i].requires_grad() ? found[k++] : Tensor();
    }
  }
  const Tensor& grad_x = gradients[0];
  return {!grad_x.defined()     ? grad_sum
          : !grad_sum.defined() ? grad_x
                                : grad_x + grad_sum,
          gradients[1], gradients[2]};
}

/// {activation, sum}; without an addend, {activation}.
class NormActivateFunction : public torch::autograd::Function<NormActivateFunction> {
 public:
  using Context = torch::autograd::AutogradContext;
  using List = torch::autograd::variable_list;

  static List forward(Context* ctx, const Tensor& x, const OptionalTensor& to_add, const Tensor& weight,
                      const Tensor& bias, const NormSettings& settings, const RunningStatistics& running) {
    const Tensor addend = to_add.value_or(Tensor());
    const auto out = norm_forward(x, addend, weight, bias, settings, running);
    ctx->save_for_backward({out.sum, weight, bias, out.mean, out.spread});
    ctx->saved_data["eps"] = settings.eps;
    ctx->saved_data["slope"] = settings.slope;
    ctx->saved_data["groups"] = settings.groups;
    ctx->set_materialize_grads(false);
    return addend.defined() ? List{out.activation, out.sum} : List{out.activation};
  }

  static List backward(Context* ctx, List grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2];
    const NormSettings settings{ctx->saved_data["eps"].toDouble(), ctx->saved_data["slope"].toDouble(),
                                ctx->saved_data["groups"].toInt()};
    const bool adds = grads.size() == 2;
    const Tensor grad_sum = adds ? grads[1] : Tensor();
    NormGradients out{grad_sum, {}, {}};
    if (grads[0].defined()) {
      // With gradients on, a second derivative was asked for: the composite's formulas have one.
      out = at::GradMode::is_enabled()
                ? differentiable_norm_backward(grads[0], grad_sum, x, weight, bias, settings)
                : norm_backward(grads[0], grad_sum, x, weight, bias, saved[3], saved[4], settings);
    }
    return {out.grad_x, adds ? out.grad_x : Tensor(), out.grad_weight, out.grad_bias, Tensor(), Tensor()};
  }
};

}  // namespace mixmatch::detail
