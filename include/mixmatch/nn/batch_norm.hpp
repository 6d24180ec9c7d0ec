#pragma once

#include <mixmatch/model.hpp>
#include <mixmatch/nn/batch_norm_leaky_relu.hpp>

#include <torch/nn/modules/batchnorm.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>
#include <vector>

namespace mixmatch {

namespace detail {

inline constexpr std::array<const char*, 3> batch_norm_statistics{"running_mean", "running_var",
                                                                  "num_batches_tracked"};

/// Whether a buffer of that name ("block1.bn.running_mean") holds batch-norm statistics.
inline bool is_batch_norm_statistic(std::string_view name) {
  const auto dot = name.rfind('.');
  const auto leaf = name.substr(dot == std::string_view::npos ? 0 : dot + 1);
  return std::any_of(batch_norm_statistics.begin(), batch_norm_statistics.end(),
                     [leaf](const char* known) { return leaf == known; });
}

}  // namespace detail

/// Keeps the batch-norm running statistics of a model where they are while it lives: forward passes in
/// training mode still normalise with their own batch's statistics but move only throw-away copies.
///
/// MixMatch wants this for the label-guessing passes and for all but the first of the K + 1 interleaved
/// training passes. Covers every buffer named running_mean, running_var or num_batches_tracked in any
/// submodule, TorchScript included; a plain callable has none that can be seen. Safe between a forward pass
/// and its backward pass. Not to be confused with evaluation mode, which normalises with the running
/// statistics.
class BatchNormFreeze {
 public:
  template <ModuleModel M>
  explicit BatchNormFreeze(M& model) {
    if constexpr (detail::is_script_module<std::remove_const_t<M>>) {
      for (auto submodule : model.modules()) {
        for (const char* name : detail::batch_norm_statistics) {
          if (submodule.hasattr(name) && submodule.attr(name).isTensor()) {
            // A script may rebind the attribute (num_batches_tracked = num_batches_tracked + 1): restore the
            // handle too.
            script_.push_back({submodule, name, submodule.attr(name).toTensor()});
          }
        }
      }
      for (const auto& item : script_) {
        set_aside(item.tensor);
      }
    } else {
      for (const auto& item : detail::model_buffers(model)) {
        if (detail::is_batch_norm_statistic(item.name)) {
          set_aside(item.tensor);
        }
      }
    }
  }
  BatchNormFreeze(const BatchNormFreeze&) = delete;
  BatchNormFreeze& operator=(const BatchNormFreeze&) = delete;
  ~BatchNormFreeze() {
    for (auto& item : script_) {
      item.module.setattr(item.name, item.tensor);
    }
    for (auto& [buffer, original] : saved_) {
      buffer.set_data(original);
    }
  }

 private:
  struct ScriptBuffer {
    torch::jit::Module module;
    std::string name;
    Tensor tensor;
  };

  // Swapping the storage, not writing it back, leaves autograd's version counters alone.
  void set_aside(Tensor buffer) {
    if (!buffer.defined()) {
      return;
    }
    for (const auto& known : saved_) {
      if (known.first.is_same(buffer)) {
        return;
      }
    }
    Tensor original = buffer.tensor_data();
    buffer.set_data(original.clone());
    saved_.emplace_back(std::move(buffer), std::move(original));
  }

  std::vector<ScriptBuffer> script_;
  std::vector<std::pair<Tensor, Tensor>> saved_;
};

namespace detail {

struct NothingToFreeze {
  NothingToFreeze() {}  // not trivial, so that no one takes the scope for unused
  ~NothingToFreeze() {}
};

}  // namespace detail

/// A model that keeps its running statistics in place by itself: `freeze_batch_norm()` returns a scope, as
/// training::Learner has.
template <class M>
concept FreezesBatchNorm = requires(M& model) {
  model.freeze_batch_norm();
};

/// A scope in which forward passes of any Model leave its batch-norm running statistics where they are: the
/// model's own where it has one (FreezesBatchNorm), a BatchNormFreeze for other modules, nothing for a plain
/// callable.
template <class M>
[[nodiscard]] auto freeze_batch_norm(M& model) {
  if constexpr (FreezesBatchNorm<M>) {
    return model.freeze_batch_norm();
  } else if constexpr (ModuleModel<M>) {
    return BatchNormFreeze(model);
  } else {
    return detail::NothingToFreeze();
  }
}

/// The share of the new batch that makes running statistics a plain average of the first 1 / momentum batches
/// and an exponential one from then on: max(momentum, 1 / (step + 1)) at optimiser step `step`, counted from
/// 0.
///
/// With the papers' .001 the statistics of the first thousand steps are mostly their initial values, so that
/// a short run evaluates badly whatever it has learned; this changes nothing in a long one.
inline double batch_norm_momentum(int64_t step, double momentum) {
  TORCH_CHECK(step >= 0, "batch_norm_momentum: step must be >= 0, got ", step);
  return std::max(momentum, 1.0 / static_cast<double>(step + 1));
}

/// The same of a step counter on a device, int64 []: float64 [] there.
inline Tensor batch_norm_momentum(const Tensor& step, double momentum) {
  return (step.to(at::kDouble) + 1).reciprocal_().clamp_min_(momentum);
}

namespace detail {

/// f(norm) for each torch::nn::BatchNorm1d, 2d and 3d, and BatchNormLeakyReLU, in a module.
template <class M, class F>
void for_each_batch_norm(M& model, F&& f) {
  nn_module(model).apply([&f](torch::nn::Module& module) {
    if (auto* fused = module.as<models::BatchNormLeakyReLU>()) {
      f(*fused);
    } else if (auto* norm1 = module.as<torch::nn::BatchNorm1d>()) {
      f(*norm1);
    } else if (auto* norm2 = module.as<torch::nn::BatchNorm2d>()) {
      f(*norm2);
    } else if (auto* norm3 = module.as<torch::nn::BatchNorm3d>()) {
      f(*norm3);
    }
  });
}

}  // namespace detail

/// Sets the momentum (LibTorch's sense: the share of the new batch, in [0, 1]) of every batch norm in a
/// module.
template <ModuleModel M>
void set_batch_norm_momentum(M& model, double momentum) {
  static_assert(
      !detail::is_script_module<std::remove_const_t<M>>,
      "mixmatch: set_batch_norm_momentum cannot reach into TorchScript, where the momentum is a constant");
  TORCH_CHECK(momentum >= 0 && momentum <= 1, "set_batch_norm_momentum: momentum must be in [0, 1], got ",
              momentum);
  detail::for_each_batch_norm(model, [momentum](auto& norm) { norm.options.momentum(momentum); });
}

}  // namespace mixmatch
