#pragma once

#include <mixmatch/model.hpp>

#include <array>
#include <string_view>
#include <utility>
#include <vector>

namespace mixmatch {

/// Keeps the batch-norm running statistics of a model where they are while it lives: forward passes in training mode
/// still normalise with their own batch's statistics but move only throw-away copies.
///
/// MixMatch wants this for the label-guessing passes and for all but the first of the K + 1 interleaved training passes.
/// Covers every buffer named running_mean, running_var or num_batches_tracked in any submodule, TorchScript included; a
/// plain callable has none that can be seen. Safe between a forward pass and its backward pass. Not to be confused
/// with evaluation mode, which normalises with the running statistics.
class BatchNormFreeze {
 public:
  template <ModuleModel M>
  explicit BatchNormFreeze(M& model) {
    if constexpr (detail::is_script_module<std::remove_const_t<M>>) {
      for (auto submodule : model.modules()) {
        for (const char* name : kNames) {
          if (submodule.hasattr(name) && submodule.attr(name).isTensor()) {
            // A script may rebind the attribute (num_batches_tracked = num_batches_tracked + 1): restore the handle too.
            script_.push_back({submodule, name, submodule.attr(name).toTensor()});
          }
        }
      }
      for (const auto& item : script_) {
        set_aside(item.tensor);
      }
    } else {
      for (const auto& item : detail::model_buffers(model)) {
        const auto dot = item.name.rfind('.');
        const auto leaf = std::string_view(item.name).substr(dot == std::string::npos ? 0 : dot + 1);
        for (const char* name : kNames) {
          if (leaf == name) {
            set_aside(item.tensor);
          }
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
  static constexpr std::array<const char*, 3> kNames{"running_mean", "running_var", "num_batches_tracked"};
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

}  // namespace mixmatch
