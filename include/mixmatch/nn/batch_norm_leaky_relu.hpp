#pragma once

#include <ATen/Context.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>
#include <mixmatch/detail/cpu/norm_activate.hpp>
#include <mixmatch/detail/join_rows.hpp>
#include <mixmatch/distributed/sync_norm.hpp>

#include <cstdint>
#include <ostream>

namespace mixmatch::models {

using torch::Tensor;

/// The carried-out sum of a layer's inputs, and the layer's result.
using mixmatch::detail::SumAndActivation;

/// Batch norm and leaky ReLU as one layer, with the addition before it where there is one:
///
///     s = x + addend,   y = leaky(weight (s - mean) / sqrt(var + eps) + bias),   leaky(z) = max(z, slope z)
///
/// (for slopes in [0, 1]; 0 is ReLU, 1 no activation), mean and biased variance over all but the channels:
/// what torch::leaky_relu(bn(x + addend), slope) computes, equal to rounding. In training mode, on
/// channels-last images [N, C, H, W] on the CPU or a GPU (float32, float64, and bfloat16 or float16 with
/// float32 parameters) two sweeps over memory forwards and two backwards, with moments in float32 or better;
/// elsewhere, in evaluation mode and for second derivatives ATen's calls. Fused results do not depend on the
/// number of threads, and a GPU's are the same at each run.
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

  /// The layer of x + addend, and that sum for whoever needs it too (a residual block's shortcut). `addend`
  /// is of x's shape and dtype, or undefined; the fused paths also want its layout.
  SumAndActivation forward_sum(const Tensor& x, const Tensor& addend) {
    _check_input_dim(x);
    if (!is_training() && running_mean.defined()) {
      const Tensor sum = addend.defined() ? x + addend : x;
      return {sum,
              mixmatch::detail::leaky_or_same(at::batch_norm(sum, weight, bias, running_mean, running_var,
                                                             /*training=*/false, 0.0, options.eps(),
                                                             at::globalContext().userEnabledCuDNN()),
                                              leaky_slope_)};
    }
    TORCH_CHECK(x.size(0) % groups_ == 0, "BatchNormLeakyReLU: x must have a multiple of ", groups_,
                " rows, one part a group, got ", x.sizes());
    const mixmatch::detail::NormSettings settings{options.eps(), leaky_slope_, groups_};
    const mixmatch::detail::RunningStatistics running{running_mean, running_var,
                                                      running_mean.defined() ? count_batch() : 0.0};
    if (process_group_ != nullptr) {
      return forward_of_all_ranks(x, addend, running);
    }
    if (!fused_ || !mixmatch::detail::can_fuse_norm(x, addend, weight, bias, running_mean)) {
      return mixmatch::detail::norm_activate_composite(x, addend, weight, bias, settings, running);
    }
    if (!mixmatch::detail::gradient_recorded({x, addend, weight, bias})) {
      const auto out = mixmatch::detail::norm_forward(x, addend, weight, bias, settings, running);
      return {out.sum, out.activation};
    }
    const auto outputs = mixmatch::detail::NormActivateFunction::apply(
        x, mixmatch::detail::OptionalTensor(addend), weight, bias, settings, running);
    return {addend.defined() ? outputs[1] : x, outputs[0]};
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

  /// In training mode, moments of the rows of all the group's ranks; null: of this process's. See
  /// training::synchronize_batch_norm().
  void set_process_group(training::ProcessGroup* group) { process_group_ = group; }

  void pretty_print(std::ostream& stream) const override {
    stream << "mixmatch::models::BatchNormLeakyReLU(" << options.num_features() << ", eps=" << options.eps()
           << ", leaky_slope=" << leaky_slope_ << ", groups=" << groups_ << ")";
  }

 protected:
  void _check_input_dim(const Tensor& x) override {
    TORCH_CHECK(x.dim() == 4 && x.size(1) == options.num_features(), "BatchNormLeakyReLU: x must be [N, ",
                options.num_features(), ", H, W], got ", x.sizes());
    TORCH_CHECK(!is_training() || x.numel() == 0 || x.numel() > x.size(1) * groups_,
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

  SumAndActivation forward_of_all_ranks(const Tensor& x, const Tensor& addend,
                                        const mixmatch::detail::RunningStatistics& running) {
    const Tensor sum = addend.defined() ? x + addend : x;
    const auto outputs =
        training::detail::SyncNormFunction::apply(sum, weight, bias, options.eps(), groups_, process_group_);
    if (running.mean.defined()) {
      const torch::NoGradGuard no_grad;
      const auto count =
          static_cast<double>(x.numel() / (x.size(1) * groups_) * process_group_->world_size());
      running.mean.variable_data().mul_(1 - running.share).add_(outputs[1][0], running.share);
      running.variance.variable_data()
          .mul_(1 - running.share)
          .add_(outputs[2][0], running.share * count / (count - 1));
    }
    return {sum, mixmatch::detail::leaky_or_same(outputs[0], leaky_slope_)};
  }

  double leaky_slope_;
  int64_t groups_ = 1;
  bool fused_ = true;
  training::ProcessGroup* process_group_ = nullptr;
};
TORCH_MODULE(BatchNormLeakyReLU);

}  // namespace mixmatch::models
