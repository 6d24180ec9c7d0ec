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

/// Channels-last images in ordinary memory, and parameters in the arithmetic type.
inline bool can_fuse_norm(const Tensor& x, const Tensor& addend, const Tensor& weight, const Tensor& bias) {
  const auto type = x.scalar_type();
  const bool reduced = type == at::kBFloat16 || type == at::kHalf;
  if (x.dim() != 4 || x.numel() == 0 || !(reduced || type == at::kFloat || type == at::kDouble)) {
    return false;
  }
  const auto fits = [&](const Tensor& image) {
    return has_plain_memory(image) && image.scalar_type() == type && image.sizes() == x.sizes() &&
           image.is_contiguous(at::MemoryFormat::ChannelsLast);
  };
  const auto is_parameter = [&](const Tensor& tensor) {
    return tensor.defined() && has_plain_memory(tensor) && tensor.is_contiguous() &&
           tensor.scalar_type() == (reduced ? at::kFloat : type);
  };
  return fits(x) && (!addend.defined() || fits(addend)) && is_parameter(weight) && is_parameter(bias);
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
/// statistics by `share`, where they are defined.
inline SumAndActivation norm_activate_composite(const Tensor& x, const Tensor& addend, const Tensor& weight,
                                                const Tensor& bias, const NormSettings& settings,
                                                const Tensor& running_mean = {},
                                                const Tensor& running_var = {}, double share = 0.0) {
  const Tensor sum = addend.defined() ? x + addend : x;
  std::vector<Tensor> parts;
  for (const auto& part : sum.chunk(settings.groups)) {
    const bool moves = parts.empty();
    parts.push_back(leaky_or_same(
        at::batch_norm(part, weight, bias, moves ? running_mean : Tensor(), moves ? running_var : Tensor(),
                       /*training=*/true, share, settings.eps, at::globalContext().userEnabledCuDNN()),
        settings.slope));
  }
  return {sum, parts.size() == 1 ? parts[0] : at::cat(parts)};
}

/// The gradients of the activation by x, weight and bias, in a form that has derivatives itself; undefined
/// where none is asked for.
inline std::vector<Tensor> differentiable_norm_gradients(const Tensor& x, const Tensor& weight,
                                                         const Tensor& bias, const NormSettings& settings,
                                                         const Tensor& grad) {
  // By aliases: the way back ends here, and does not go on through what x was made of.
  const std::vector<Tensor> inputs{x.view_as(x), weight.view_as(weight), bias.view_as(bias)};
  std::vector<Tensor> wanted;
  for (const Tensor& input : inputs) {
    if (input.requires_grad()) {
      wanted.push_back(input);
    }
  }
  std::vector<Tensor> gradients(inputs.size());
  if (wanted.empty()) {
    return gradients;
  }
  const auto again = norm_activate_composite(inputs[0], Tensor(), inputs[1], inputs[2], settings);
  const auto found = torch::autograd::grad({again.activation}, wanted, {grad}, /*retain_graph=*/true,
                                           /*create_graph=*/true, /*allow_unused=*/true);
  for (size_t i = 0, k = 0; i < inputs.size(); ++i) {
    if (inputs[i].requires_grad()) {
      gradients[i] = found[k++];
    }
  }
  return gradients;
}

/// a + b, of which either may be undefined.
inline Tensor added(const Tensor& a, const Tensor& b) { return !a.defined() ? b : !b.defined() ? a : a + b; }

/// {activation, mean, variance}, and after them the sum where there is an addend.
class NormActivateFunction : public torch::autograd::Function<NormActivateFunction> {
 public:
  using Context = torch::autograd::AutogradContext;
  using List = torch::autograd::variable_list;

  static List compute(const Tensor& x, const Tensor& addend, const Tensor& weight, const Tensor& bias,
                      const NormSettings& settings) {
    Tensor activation = at::empty_like(x);
    Tensor sum = addend.defined() ? at::empty_like(x) : Tensor();
    Tensor mean = at::empty({settings.groups, x.size(1)}, weight.options().requires_grad(false));
    Tensor variance = at::empty_like(mean);
    const bool known = for_float_type(x.scalar_type(), [&](auto element) {
      using Scalar = decltype(element);
      // A group's second sweep finds in the cache what its first one read.
      for_each_group(settings.groups, [&](int64_t group, const auto& part) {
        norm_moments<Scalar>(mean[group], variance[group], part(x), part(addend), part(sum));
        norm_activate<Scalar>(part(activation), addend.defined() ? part(sum) : part(x),
                              {mean[group], variance[group], weight, bias, settings.eps}, settings.slope);
      });
    });
    TORCH_INTERNAL_ASSERT(known);  // can_fuse_norm() looked
    List outputs{activation, mean, variance};
    if (addend.defined()) {
      outputs.push_back(sum);
    }
    return outputs;
  }

  static List forward(Context* ctx, const Tensor& x, const OptionalTensor& other, const Tensor& weight,
                      const Tensor& bias, const NormSettings& settings) {
    const Tensor addend = other.has_value() ? *other : Tensor();
    List outputs = compute(x, addend, weight, bias, settings);
    // Without an addend the sum is x.
    ctx->save_for_backward({addend.defined() ? outputs[3] : x, weight, bias, outputs[1], outputs[2]});
    ctx->saved_data["eps"] = settings.eps;
    ctx->saved_data["slope"] = settings.slope;
    ctx->saved_data["groups"] = settings.groups;
    ctx->saved_data["adds"] = addend.defined();
    ctx->mark_non_differentiable({outputs[1], outputs[2]});
    ctx->set_materialize_grads(false);
    return outputs;
  }

  static List backward(Context* ctx, List grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2];
    const NormSettings settings{ctx->saved_data["eps"].toDouble(), ctx->saved_data["slope"].toDouble(),
                                ctx->saved_data["groups"].toInt()};
    const bool adds = ctx->saved_data["adds"].toBool();
    Tensor grad_sum = adds ? grads[3] : Tensor();
    if (!grads[0].defined()) {
      return {grad_sum, grad_sum, Tensor(), Tensor(), Tensor()};
    }
    if (at::GradMode::is_enabled()) {
      // A second derivative was asked for: the composite's formulas have one.
      const auto results = differentiable_norm_gradients(x, weight, bias, settings, grads[0]);
      const Tensor grad_input = added(results[0], grad_sum);
      return {grad_input, adds ? grad_input : Tensor(), results[1], results[2], Tensor()};
    }
    const auto like_x = [&x](const Tensor& grad) {
      return grad.to(x.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
    };
    if (grad_sum.defined()) {
      grad_sum = like_x(grad_sum);
    }
    const Tensor grad_output = like_x(grads[0]);
    Tensor grad_input = at::empty_like(x);
    Tensor grad_weight = at::empty_like(weight), grad_bias = at::empty_like(bias);
    const bool known = for_float_type(x.scalar_type(), [&](auto element) {
      using Scalar = decltype(element);
      using C = Compute<Scalar>;
      std::vector<double> weight_sum(static_cast<size_t>(x.size(1)), 0.0), bias_sum = weight_sum;
      for_each_group(settings.groups, [&](int64_t group, const auto& part) {
        norm_activate_backward<Scalar>(
            part(grad_input), weight_sum, bias_sum, part(grad_output), part(grad_sum), part(x),
            {saved[3][group], saved[4][group], weight, bias, settings.eps}, settings.slope);
      });
      std::transform(weight_sum.begin(), weight_sum.end(), grad_weight.data_ptr<C>(),
                     [](double value) { return static_cast<C>(value); });
      std::transform(bias_sum.begin(), bias_sum.end(), grad_bias.data_ptr<C>(),
                     [](double value) { return static_cast<C>(value); });
    });
    TORCH_INTERNAL_ASSERT(known);  // can_fuse_norm() looked
    return {grad_input, adds ? grad_input : Tensor(), grad_weight, grad_bias, Tensor()};
  }
};

/// can_fuse_norm() on CUDA.
inline bool can_fuse_norm_on_cuda(const Tensor& x, const Tensor& addend, const Tensor& weight,
                                  const Tensor& bias, const Tensor& running_mean) {
  if (!cuda_norm_supported(x)) {
    return false;
  }
  const auto compute = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto is_parameter = [&](const Tensor& tensor) {
    return tensor.defined() && has_cuda_memory(tensor) && tensor.is_contiguous() &&
           tensor.scalar_type() == compute && tensor.device() == x.device();
  };
  return is_parameter(weight) && is_parameter(bias) &&
         (!running_mean.defined() || is_parameter(running_mean)) &&
         (!addend.defined() || (has_cuda_memory(addend) && addend.device() == x.device() &&
                                addend.scalar_type() == x.scalar_type() && addend.sizes() == x.sizes() &&
                                addend.is_contiguous(at::MemoryFormat::ChannelsLast)));
}

/// What a training pass moves by its batch's `share`; undefined tensors where there is nothing to move.
struct RunningStatistics {
  Tensor mean, variance;
  double share;
};

/// {activation, sum}; without an addend, {activation}.
class CudaNormActivateFunction : public torch::autograd::Function<CudaNormActivateFunction> {
 public:
  using Context = torch::autograd::AutogradContext;
  using List = torch::autograd::variable_list;

  static List forward(Context* ctx, const Tensor& x, const OptionalTensor& to_add, const Tensor& weight,
                      const Tensor& bias, const NormSettings& settings, const RunningStatistics& running) {
    const Tensor addend = to_add.value_or(Tensor());
    const auto out = cuda_norm_forward(x, addend, weight, bias, settings.groups, settings.eps, settings.slope,
                                       running.mean, running.variance, running.share);
    // Without an addend the sum is x.
    ctx->save_for_backward({out.sum, weight, bias, out.mean, out.invstd});
    ctx->saved_data["eps"] = settings.eps;
    ctx->saved_data["slope"] = settings.slope;
    ctx->saved_data["groups"] = settings.groups;
    ctx->saved_data["adds"] = addend.defined();
    ctx->set_materialize_grads(false);
    return addend.defined() ? List{out.y, out.sum} : List{out.y};
  }

  static List backward(Context* ctx, List grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2];
    const NormSettings settings{ctx->saved_data["eps"].toDouble(), ctx->saved_data["slope"].toDouble(),
                                ctx->saved_data["groups"].toInt()};
    const bool adds = ctx->saved_data["adds"].toBool();
    Tensor grad_sum = adds ? grads[1] : Tensor();
    if (!grads[0].defined()) {
      return {grad_sum, grad_sum, Tensor(), Tensor(), Tensor(), Tensor()};
    }
    Tensor grad_x, grad_weight, grad_bias;
    if (at::GradMode::is_enabled()) {
      // A second derivative was asked for: the composite's formulas have one.
      const auto results = differentiable_norm_gradients(x, weight, bias, settings, grads[0]);
      grad_x = added(results[0], grad_sum);
      grad_weight = results[1];
      grad_bias = results[2];
    } else {
      const auto like_x = [&x](const Tensor& grad) {
        return grad.defined() ? grad.to(x.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast) : grad;
      };
      const auto out = cuda_norm_backward(like_x(grads[0]), like_x(grad_sum), x, weight, bias, saved[3],
                                          saved[4], settings.groups, settings.slope);
      grad_x = out.grad_x;
      grad_weight = out.grad_weight;
      grad_bias = out.grad_bias;
    }
    return {grad_x, adds ? grad_x : Tensor(), grad_weight, grad_bias, Tensor(), Tensor()};
  }
};

}  // namespace mixmatch::detail
