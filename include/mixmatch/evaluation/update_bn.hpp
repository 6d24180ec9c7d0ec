#pragma once

#include <torch/arg.h>
#include <mixmatch/augment/normalize.hpp>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/nn/batch_norm.hpp>
#include <mixmatch/nn/precision.hpp>

#include <algorithm>
#include <concepts>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

namespace mixmatch::training {

struct UpdateBnOptions {
  /// At most so many images are run through the model.
  TORCH_ARG(int64_t, num_images) = 16384;
  TORCH_ARG(int64_t, batch_size) = 64;
  TORCH_ARG(at::ScalarType, precision) = at::kFloat;
  TORCH_ARG(torch::Device, device) = torch::kCPU;
};

namespace detail {

/// Undoes what recalibration does to the batch norms' options.
class BatchNormMomentumGuard {
 public:
  template <class M>
  explicit BatchNormMomentumGuard(M& model) {
    mixmatch::detail::for_each_batch_norm(model, [this](auto& norm) {
      undo_.push_back([&norm, before = norm.options.momentum()] { norm.options.momentum(before); });
    });
  }
  BatchNormMomentumGuard(const BatchNormMomentumGuard&) = delete;
  BatchNormMomentumGuard& operator=(const BatchNormMomentumGuard&) = delete;
  ~BatchNormMomentumGuard() {
    for (const auto& undo : undo_) {
      undo();
    }
  }

 private:
  std::vector<std::function<void()>> undo_;
};

}  // namespace detail

/// Replaces the running statistics of every batch norm (torch::nn's and BatchNormLeakyReLU) by the plain
/// average over forward passes of the model as it now is:
///
///     running_mean = 1/B sum_b mean_b,   running_var = 1/B sum_b var_b (unbiased),   num_batches_tracked = B
///
/// In training these statistics trail behind the weights, and averaged weights (EmaModel) never had any of
/// their own; the MixMatch authors evaluate after such a pass too, over 16,384 images.
///
/// `gather` is a callable `Tensor(const Tensor& indices)` that returns what the model takes for the images at
/// `indices` (int64 [B] on the CPU, in [0, size)), augmented or not. min(size, num_images) different images
/// are asked for, in batches of at most batch_size that differ by one image at most, each spread evenly over
/// the whole range, so that a data set in order of classes is averaged well too. The passes record no
/// gradient; batch norms run in training mode, everything else (dropout) in evaluation mode, as the
/// statistics will be used, and draws nothing. Modes and momentum are restored. A model without such layers
/// is left alone. Not for TorchScript. Throws c10::Error on size < 1 or options < 1; if anything throws, the
/// model's statistics are those from before.
template <ModuleModel M, class Gather>
requires std::is_invocable_r_v<Tensor, Gather&, const Tensor&>
void update_bn(M& model, int64_t size, Gather&& gather, const UpdateBnOptions& options = {}) {
  if constexpr (mixmatch::detail::is_script_module<std::remove_const_t<M>>) {
    static_assert(!mixmatch::detail::is_script_module<std::remove_const_t<M>>,
                  "mixmatch: update_bn cannot reach into TorchScript, where the momentum is a "
                  "constant");
  } else {
    TORCH_CHECK(size >= 1, "update_bn: the data set holds no images");
    TORCH_CHECK(options.num_images() >= 1, "update_bn: num_images must be >= 1, got ", options.num_images());
    TORCH_CHECK(options.batch_size() >= 1, "update_bn: batch_size must be >= 1, got ", options.batch_size());
    torch::NoGradGuard no_grad;
    const int64_t count = std::min(size, options.num_images());
    const int64_t batches = (count + options.batch_size() - 1) / options.batch_size();
    std::vector<std::pair<Tensor, Tensor>> results;  // a buffer and its new values
    {
      BatchNormFreeze before(model);
      detail::BatchNormMomentumGuard momentum(model);
      mixmatch::detail::EvaluationModeGuard modes(model);
      mixmatch::detail::for_each_batch_norm(model, [&](auto& norm) {
        if (norm.running_mean.defined()) {
          norm.reset_running_stats();
          norm.options.momentum(std::remove_cvref_t<decltype(norm.options.momentum())>());  // plain average
          norm.train();
          for (const Tensor& buffer : {norm.running_mean, norm.running_var, norm.num_batches_tracked}) {
            results.emplace_back(buffer, buffer.tensor_data());
          }
        }
      });
      for (int64_t batch = 0; batch < batches && !results.empty(); ++batch) {
        // Image i of `count` is the one at i * size / count; this batch has every `batches`-th of them.
        const Tensor indices = at::arange(batch, count, batches, at::kLong).mul_(size).floor_divide_(count);
        const Tensor inputs = gather(indices).to(options.device());
        Autocast autocast(options.device(), options.precision());
        forward(model, inputs);
      }
      mixmatch::detail::forget_autocast_copies();
    }
    for (auto& [buffer, values] : results) {
      buffer.copy_(values);
    }
  }
}

/// The same over `images`, uint8 [N, C, H, W]: augment(images at the batch's indices) is what the model gets,
/// moved to options.device() first. `augment` is any callable `Tensor(const Tensor&)`, as mixmatch_batch
/// takes it.
template <ModuleModel M, class Augment>
requires std::is_invocable_r_v<Tensor, Augment&, const Tensor&>
void update_bn(M& model, const Tensor& images, Augment&& augment, const UpdateBnOptions& options = {}) {
  update_bn(
      model, images.defined() && images.dim() > 0 ? images.size(0) : 0,
      [&](const Tensor& indices) -> Tensor {
        return augment(data::gather_images(images, indices).to(options.device()));
      },
      options);
}

/// The same over images that are normalised to [-1, 1] and not augmented.
template <ModuleModel M>
void update_bn(M& model, const Tensor& images, const UpdateBnOptions& options = {}) {
  update_bn(
      model, images, [](const Tensor& batch) { return augment::normalize(batch); }, options);
}

/// Recalibrated running statistics while it lives; the model's former ones, bit for bit, afterwards. Takes
/// what update_bn takes. With averaged weights:
///
///     auto average = ema.average_parameters();
///     training::UpdatedBatchNorm recalibration(model, train.images);
///     const double error = training::evaluate_model(model, test);
class [[nodiscard]] UpdatedBatchNorm {
 public:
  template <ModuleModel M, class... Arguments>
  explicit UpdatedBatchNorm(M& model, Arguments&&... arguments) : former_(model) {
    update_bn(model, std::forward<Arguments>(arguments)...);
  }
  UpdatedBatchNorm(const UpdatedBatchNorm&) = delete;
  UpdatedBatchNorm& operator=(const UpdatedBatchNorm&) = delete;

 private:
  BatchNormFreeze former_;
};

}  // namespace mixmatch::training
