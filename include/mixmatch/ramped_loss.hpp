#pragma once

#include <torch/arg.h>
#include <torch/csrc/autograd/custom_function.h>
#include <mixmatch/losses.hpp>
#include <mixmatch/schedules.hpp>

#include <cmath>

namespace mixmatch {

struct RampedLossOptions {
  /// Weight of the unlabeled loss after the ramp, >= 0. The paper's general default; CIFAR-10 runs use 75
  /// (presets.hpp).
  TORCH_ARG(double, lambda_u) = 100;
  /// Optimiser steps until then; 0 means full weight at once. 1024 kimg at batch 64, which the paper rounds
  /// to 16,000.
  TORCH_ARG(int64_t, rampup_steps) = 16384;
};

/// `total` carries the gradient; `labeled` and `unlabeled` are its two terms before weighting; all are
/// scalars.
struct RampedLossOutput {
  Tensor total, labeled, unlabeled;
  double weight;
};

/// The same of a step that is a tensor: `weight` is float64 [], on the step's device.
struct RampedLossTensors {
  Tensor total, labeled, unlabeled, weight;
};

namespace detail {

/// labeled + lambda_u linear_rampup(step, rampup_steps) unlabeled in one kernel, and that weight, float64.
class RampedTotalFunction : public torch::autograd::Function<RampedTotalFunction> {
 public:
  using Context = torch::autograd::AutogradContext;
  using List = torch::autograd::variable_list;

  static List forward(Context* ctx, const Tensor& labeled, const Tensor& unlabeled, const Tensor& step,
                      int64_t rampup_steps, double lambda_u) {
    const auto result = ramped_total_on_cuda(labeled, unlabeled, step, rampup_steps, lambda_u);
    ctx->saved_data["factor"] = result.factor;
    ctx->set_materialize_grads(false);
    ctx->mark_non_differentiable({result.weight});
    return {result.total, result.weight};
  }

  static List backward(Context* ctx, List gradients) {
    if (!gradients[0].defined()) {
      return List(5);
    }
    return {gradients[0], gradients[0] * ctx->saved_data["factor"].toTensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace detail

/// L = L_X + lambda_u(step) L_U with lambda_u(step) = lambda_u clamp(step / rampup_steps, 0, 1) (MixMatch,
/// eqs. 3-5).
///
/// L_X: mean over rows of cross-entropy against soft targets; L_U: mean over rows and classes of the squared
/// difference between softmax(logits_u) and targets_u. Logits and targets are [N, L], the two batches of any
/// sizes; no gradient goes through the targets. Stateless: the step is an argument, counted from 0, so the
/// first step's weight is 0.
class RampedLoss {
 public:
  explicit RampedLoss(const RampedLossOptions& options = {}) : options_(options) {
    TORCH_CHECK(options.lambda_u() >= 0 && std::isfinite(options.lambda_u()),
                "RampedLoss: lambda_u must be finite and >= 0, got ", options.lambda_u());
    TORCH_CHECK(options.rampup_steps() >= 0, "RampedLoss: rampup_steps must be >= 0, got ",
                options.rampup_steps());
  }

  double weight(int64_t step) const {
    return options_.lambda_u() * linear_rampup(step, options_.rampup_steps());
  }

  RampedLossOutput operator()(const Tensor& logits_x, const Tensor& targets_x, const Tensor& logits_u,
                              const Tensor& targets_u, int64_t step) const {
    const auto out =
        (*this)(logits_x, targets_x, logits_u, targets_u, at::full({}, step, at::TensorOptions(at::kLong)));
    return {out.total, out.labeled, out.unlabeled, weight(step)};
  }

  /// lambda_u(step) of a step counter, int64 []: float64 [] on its device.
  Tensor weight(const Tensor& step) const {
    return linear_rampup(step, options_.rampup_steps()) * options_.lambda_u();
  }

  /// The loss at a step that is a tensor, int64 [] on the device of the logits or the CPU: nothing waits for
  /// a device, so that a step that is captured in a graph ramps at each replay. `mask`, if defined: weights
  /// of the unlabeled rows, as masked_softmax_mse() takes them.
  RampedLossTensors operator()(const Tensor& logits_x, const Tensor& targets_x, const Tensor& logits_u,
                               const Tensor& targets_u, const Tensor& step, const Tensor& mask = {}) const {
    RampedLossTensors out;
    out.labeled = soft_cross_entropy(logits_x, targets_x);
    out.unlabeled =
        mask.defined() ? masked_softmax_mse(logits_u, targets_u, mask) : softmax_mse(logits_u, targets_u);
    if (detail::ramped_total_on_cuda_fits(out.labeled, out.unlabeled, step)) {
      const auto made = detail::RampedTotalFunction::apply(out.labeled, out.unlabeled, step,
                                                           options_.rampup_steps(), options_.lambda_u());
      out.total = made[0];
      out.weight = made[1];
      return out;
    }
    out.weight = weight(step);
    out.total = out.labeled + out.weight.to(out.unlabeled.scalar_type()) * out.unlabeled;
    return out;
  }

  const RampedLossOptions& options() const { return options_; }

 private:
  RampedLossOptions options_;
};

}  // namespace mixmatch
