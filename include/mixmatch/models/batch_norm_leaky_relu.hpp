#pragma once

#include <ATen/Context.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>
#include <mixmatch/detail/cuda_norm.hpp>
#include <mixmatch/detail/norm_kernel.hpp>
#include <mixmatch/detail/version.hpp>

#include <algorithm>
#include <cstdint>
#include <ostream>
#include <vector>

namespace mixmatch::models {

using torch::Tensor;

/// The carried-out sum of a layer's inputs, and the layer's result.
struct SumAndActivation {
  Tensor sum, activation;
};

namespace detail {

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
    return mixmatch::detail::has_plain_memory(image) && image.scalar_type() == type &&
           image.sizes() == x.sizes() && image.is_contiguous(at::MemoryFormat::ChannelsLast);
  };
  const auto is_parameter = [&](const Tensor& tensor) {
    return tensor.defined() && mixmatch::detail::has_plain_memory(tensor) && tensor.is_contiguous() &&
           tensor.scalar_type() == (reduced ? at::kFloat : type);
  };
  return fits(x) && (!addend.defined() || fits(addend)) && is_parameter(weight) && is_parameter(bias);
}

/// `f` with an element of x's type.
template <class F>
void for_norm_type(const Tensor& x, const F& f) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return f(float{});
    case at::kDouble:
      return f(double{});
    case at::kBFloat16:
      return f(at::BFloat16{});
    default:
      return f(at::Half{});
  }
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
    parts.push_back(at::leaky_relu(
        at::batch_norm(part, weight, bias, moves ? running_mean : Tensor(), moves ? running_var : Tensor(),
                       /*training=*/true, share, settings.eps, at::globalContext().userEnabledCuDNN()),
        settings.slope));
  }
  return {sum, parts.size() == 1 ? parts[0] : at::cat(parts)};
}

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
    for_norm_type(x, [&](auto element) {
      using Scalar = decltype(element);
      // A group's second sweep finds in the cache what its first one read.
      for_each_group(settings.groups, [&](int64_t group, const auto& part) {
        mixmatch::detail::norm_moments<Scalar>(mean[group], variance[group], part(x), part(addend),
                                               part(sum));
        mixmatch::detail::norm_activate<Scalar>(part(activation), addend.defined() ? part(sum) : part(x),
                                                {mean[group], variance[group], weight, bias, settings.eps},
                                                settings.slope);
      });
    });
    List outputs{activation, mean, variance};
    if (addend.defined()) {
      outputs.push_back(sum);
    }
    return outputs;
  }

  static List forward(Context* ctx, const Tensor& x, const mixmatch::detail::OptionalTensor& other,
                      const Tensor& weight, const Tensor& bias, const NormSettings& settings) {
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
      const auto again = norm_activate_composite(x, Tensor(), weight, bias, settings);
      auto results = torch::autograd::grad({again.activation}, {x, weight, bias}, {grads[0]},
                                           /*retain_graph=*/true, /*create_graph=*/true);
      const Tensor grad_input = grad_sum.defined() ? results[0] + grad_sum : results[0];
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
    for_norm_type(x, [&](auto element) {
      using Scalar = decltype(element);
      using C = mixmatch::detail::Compute<Scalar>;
      std::vector<double> weight_sum(static_cast<size_t>(x.size(1)), 0.0), bias_sum = weight_sum;
      for_each_group(settings.groups, [&](int64_t group, const auto& part) {
        mixmatch::detail::norm_activate_backward<Scalar>(
            part(grad_input), weight_sum, bias_sum, part(grad_output), part(grad_sum), part(x),
            {saved[3][group], saved[4][group], weight, bias, settings.eps}, settings.slope);
      });
      std::transform(weight_sum.begin(), weight_sum.end(), grad_weight.data_ptr<C>(),
                     [](double value) { return static_cast<C>(value); });
      std::transform(bias_sum.begin(), bias_sum.end(), grad_bias.data_ptr<C>(),
                     [](double value) { return static_cast<C>(value); });
    });
    return {grad_input, adds ? grad_input : Tensor(), grad_weight, grad_bias, Tensor()};
  }
};

/// can_fuse_norm() on CUDA.
inline bool can_fuse_norm_on_cuda(const Tensor& x, const Tensor& addend, const Tensor& weight,
                                  const Tensor& bias, const Tensor& running_mean) {
  if (!mixmatch::detail::cuda_norm_supported(x)) {
    return false;
  }
  const auto compute = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto is_parameter = [&](const Tensor& tensor) {
    return tensor.defined() && mixmatch::detail::has_cuda_memory(tensor) && tensor.is_contiguous() &&
           tensor.scalar_type() == compute && tensor.device() == x.device();
  };
  return is_parameter(weight) && is_parameter(bias) &&
         (!running_mean.defined() || is_parameter(running_mean)) &&
         (!addend.defined() || (mixmatch::detail::has_cuda_memory(addend) && addend.device() == x.device() &&
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

  static List forward(Context* ctx, const Tensor& x, const mixmatch::detail::OptionalTensor& to_add,
                      const Tensor& weight, const Tensor& bias, const NormSettings& settings,
                      const RunningStatistics& running) {
    const Tensor addend = to_add.value_or(Tensor());
    const auto out =
        mixmatch::detail::cuda_norm_forward(x, addend, weight, bias, settings.groups, settings.eps,
                                            settings.slope, running.mean, running.variance, running.share);
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
      const auto again = norm_activate_composite(x, Tensor(), weight, bias, settings);
      auto results = torch::autograd::grad({again.activation}, {x, weight, bias}, {grads[0]},
                                           /*retain_graph=*/true, /*create_graph=*/true);
      grad_x = grad_sum.defined() ? results[0] + grad_sum : results[0];
      grad_weight = results[1];
      grad_bias = results[2];
    } else {
      const auto like_x = [&x](const Tensor& grad) {
        return grad.defined() ? grad.to(x.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast) : grad;
      };
      const auto out =
          mixmatch::detail::cuda_norm_backward(like_x(grads[0]), like_x(grad_sum), x, weight, bias, saved[3],
                                               saved[4], settings.groups, settings.slope);
      grad_x = out.grad_x;
      grad_weight = out.grad_weight;
      grad_bias = out.grad_bias;
    }
    return {grad_x, adds ? grad_x : Tensor(), grad_weight, grad_bias, Tensor(), Tensor()};
  }
};

}  // namespace detail

/// Batch norm and leaky ReLU as one layer, with the addition before it where there is one:
///
///     s = x + addend,   y = leaky(weight (s - mean) / sqrt(var + eps) + bias),   leaky(z) = max(z, slope z)
///
/// (for slopes in [0, 1]; 0 is ReLU), mean and biased variance over all but the channels: what
/// torch::leaky_relu(bn(x + addend), slope) computes, equal to rounding. In training mode, on channels-last
/// images [N, C, H, W] on the CPU or a GPU (float32, float64, and bfloat16 or float16 with float32
/// parameters) two sweeps over memory forwards and two backwards, with moments in float32 or better;
/// elsewhere, in evaluation mode and for second derivatives ATen's calls. Results do not depend on the number
/// of threads, and a GPU's are the same at each run.
///
/// Has the options, parameters, running statistics and names of a torch::nn::BatchNorm2d, so that files of
/// one fit the other, and all that the library does with batch norms it does with this one. Differentiable in
/// x, addend, weight and bias. Draws nothing. Throws unless x is [N, num_features, H, W], and if N is no
/// multiple of the groups. Not to be confused with BatchNorm2d, whose forward() does not activate.
class BatchNormLeakyReLUImpl
    : public torch::nn::NormImplBase<2, BatchNormLeakyReLUImpl, torch::nn::BatchNormOptions> {
 public:
  explicit BatchNormLeakyReLUImpl(const torch::nn::BatchNormOptions& norm_options, double leaky_slope = 0.01)
      : NormImplBase(norm_options), leaky_slope_(leaky_slope) {}

  Tensor forward(const Tensor& x) { return forward_sum(x, Tensor()).activation; }

  /// The layer of x + addend, and that sum for whoever needs it too (a residual block's shortcut); `addend`
  /// may be undefined.
  SumAndActivation forward_sum(const Tensor& x, const Tensor& addend) {
    _check_input_dim(x);
    const bool tracks = is_training() && running_mean.defined();
    if (!is_training() && running_mean.defined()) {
      const Tensor sum = addend.defined() ? x + addend : x;
      return {sum, at::leaky_relu(at::batch_norm(sum, weight, bias, running_mean, running_var,
                                                 /*training=*/false, 0.0, options.eps(), true),
                                  leaky_slope_)};
    }
    TORCH_CHECK(x.size(0) % groups_ == 0, "BatchNormLeakyReLU: x must have a multiple of ", groups_,
                " rows, one part a group, got ", x.sizes());
    const detail::NormSettings settings{options.eps(), leaky_slope_, groups_};
    const double share = tracks ? count_batch() : 0.0;
    if (fused_ && detail::can_fuse_norm_on_cuda(x, addend, weight, bias, running_mean)) {
      const detail::RunningStatistics running{tracks ? running_mean : Tensor(),
                                              tracks ? running_var : Tensor(), share};
      const auto outputs = detail::CudaNormActivateFunction::apply(
          x, mixmatch::detail::OptionalTensor(addend), weight, bias, settings, running);
      return {addend.defined() ? outputs[1] : x, outputs[0]};
    }
    if (!fused_ || !detail::can_fuse_norm(x, addend, weight, bias)) {
      return detail::norm_activate_composite(x, addend, weight, bias, settings, running_mean, running_var,
                                             share);
    }
    const bool records =
        at::GradMode::is_enabled() && (x.requires_grad() || (addend.defined() && addend.requires_grad()) ||
                                       weight.requires_grad() || bias.requires_grad());
    const auto outputs = records ? detail::NormActivateFunction::apply(
                                       x, mixmatch::detail::OptionalTensor(addend), weight, bias, settings)
                                 : detail::NormActivateFunction::compute(x, addend, weight, bias, settings);
    if (tracks) {
      const torch::NoGradGuard no_grad;
      const auto count = static_cast<double>(x.numel() / (x.size(1) * groups_));
      // As ATen's own, unseen by autograd, which may have saved them in another pass.
      running_mean.variable_data().mul_(1 - share).add_(outputs[1][0], share);
      running_var.variable_data().mul_(1 - share).add_(outputs[2][0], share * count / (count - 1));
    }
    return {addend.defined() ? outputs[3] : x, outputs[0]};
  }

  /// Cuts a batch into this many equal parts along its rows, each normalised by its own moments, as so many
  /// separate passes would be; only the first part's moments move the running statistics. MixMatch's K + 1
  /// passes are one pass in K + 1 groups. In evaluation mode of no effect.
  void set_groups(int64_t groups) {
    TORCH_CHECK(groups >= 1, "BatchNormLeakyReLU: groups must be >= 1, got ", groups);
    groups_ = groups;
  }
  int64_t groups() const { return groups_; }
  double leaky_slope() const { return leaky_slope_; }
  /// False: ATen's calls everywhere, to compare with.
  void set_fused(bool fused) { fused_ = fused; }

  void pretty_print(std::ostream& stream) const override {
    stream << "mixmatch::models::BatchNormLeakyReLU(" << options.num_features() << ", eps=" << options.eps()
           << ", leaky_slope=" << leaky_slope_ << ", groups=" << groups_ << ")";
  }

 protected:
  void _check_input_dim(const Tensor& x) override {
    TORCH_CHECK(x.dim() == 4 && x.size(1) == options.num_features(), "BatchNormLeakyReLU: x must be [N, ",
                options.num_features(), ", H, W], got ", x.sizes());
    TORCH_CHECK(!is_training() || x.numel() > x.size(1) * groups_,
                "BatchNormLeakyReLU: x must have more than one value a channel to train on, got ", x.sizes());
  }

 private:
  /// The new batch's share of the running statistics.
  double count_batch() {
    const torch::NoGradGuard no_grad;
    if (num_batches_tracked.defined()) {  // BatchNormStatistics counts for all layers at once
      num_batches_tracked.add_(1);
    }
    return options.momentum().has_value() ? *options.momentum() : 1.0 / num_batches_tracked.item<double>();
  }

  double leaky_slope_;
  int64_t groups_ = 1;
  bool fused_ = true;
};
TORCH_MODULE(BatchNormLeakyReLU);

}  // namespace mixmatch::models
