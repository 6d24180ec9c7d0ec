#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>
#include <mixmatch/detail/cuda/cuda.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/model_access.hpp>
#include <mixmatch/detail/version.hpp>
#include <mixmatch/io/script_file.hpp>
#include <mixmatch/nn/batch_norm.hpp>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::models {

using torch::Tensor;

namespace detail {

/// A module of a TorchScript network as LibTorch's own: the same parameters, buffers (the very tensors) and
/// submodules under the same names.
class ScriptPart : public torch::nn::Module {
 public:
  explicit ScriptPart(torch::jit::Module script) : script_(std::move(script)) {
    for (const auto& parameter : script_.named_parameters(/*recurse=*/false)) {
      register_parameter(parameter.name, parameter.value, parameter.value.requires_grad());
    }
    for (const auto& buffer : script_.named_buffers(/*recurse=*/false)) {
      register_buffer(buffer.name, buffer.value);
    }
    for (const auto& child : script_.named_children()) {
      register_module(child.name, std::make_shared<ScriptPart>(child.value));
    }
  }

  void train(bool on = true) override {
    Module::train(on);
    if (script_.hasattr("training")) {  // a frozen module has no mode
      script_.setattr("training", on);
    }
  }

 protected:
  torch::jit::Module script_;
};

}  // namespace detail

/// A TorchScript network (a file of torch.jit.script or torch.jit.trace) as one of the library's: parameters,
/// buffers, submodules and names are the script's, so that whatever works on a torch::nn::Module (optimiser,
/// EmaModel, checkpoint, safetensors, BatchNormFreeze) works on it.
///
/// Images as augment::normalize() gives them, to logits [N, num_classes]. Runs as it is written, without
/// TorchScript's optimiser, whose first passes differ in their roundings from later ones: equal runs are
/// equal to the bit (of a module that has not run yet). Its batch norms move their running statistics by a
/// momentum of their own. A step with it can be captured in a CUDA graph, unless the script's forward() looks
/// at the device's numbers (an `if` on a tensor, item(), a batch norm without momentum), makes tensors from
/// the host's, draws on the host, or counts in attributes that are no tensors: the capture then throws.
/// Throws one line that names the file where forward() fails or returns something else.
class ScriptNetworkImpl : public detail::ScriptPart {
 public:
  static constexpr const char* head_name = "";

  /// `name`: of the file, for errors.
  ScriptNetworkImpl(torch::jit::Module script, int64_t num_classes, const std::string& name)
      : ScriptPart(std::move(script)), num_classes_(num_classes), name_(mixmatch::detail::printable(name)) {
    for (auto submodule : script_.modules()) {
      for (const auto& buffer : submodule.named_buffers(/*recurse=*/false)) {
        buffers_of_script_.push_back({submodule, buffer.name, buffer.value});
      }
    }
    train();
  }

  Tensor forward(const Tensor& images) {
    if (groups_ == 1 || !is_training()) {
      return forward_once(images);
    }
    // As many passes, of which the first alone moves the statistics.
    TORCH_CHECK(images.size(0) % groups_ == 0, name_, ": images must have a multiple of ", groups_,
                " rows, one part a group, got ", images.sizes());
    const auto parts = images.chunk(groups_);
    std::vector<Tensor> logits{forward_once(parts.front())};
    const BatchNormFreeze frozen(*this);
    for (size_t i = 1; i < parts.size(); ++i) {
      logits.push_back(forward_once(parts[i]));
    }
    return at::cat(logits);
  }

  /// Tries what training needs: logits from forward() on images like those to come, and a parameter that
  /// takes a gradient (not that one reaches it). In evaluation mode and without gradient: statistics,
  /// gradients and the mode stay as they are. Throws what forward() throws, or one line that names the file
  /// where no parameter takes a gradient.
  void check_trainable(const Tensor& images) {
    {
      const torch::NoGradGuard no_grad;
      const mixmatch::detail::EvaluationModeGuard evaluation(*this);
      forward(images);
    }
    const auto all = parameters();
    TORCH_CHECK(!all.empty(), name_, " has no parameters: was it frozen before it was exported?");
    TORCH_CHECK(std::any_of(all.begin(), all.end(),
                            [](const Tensor& parameter) { return parameter.requires_grad(); }),
                name_, " has no parameter that takes a gradient among its ", all.size(),
                ": were they frozen before it was exported?");
  }

  /// Throws: what a script's last layer sees is not known.
  Tensor features(const Tensor& /*images*/) {
    TORCH_CHECK(false, name_, ": a TorchScript network has no last layer that is known");
  }

  /// The module itself, of the same tensors: for save().
  const torch::jit::Module& script() const { return script_; }

  /// As WideResNetImpl's.
  void set_batch_norm_groups(int64_t groups) { groups_ = groups; }

  std::shared_ptr<torch::nn::Module> clone(
      const mixmatch::detail::AtenOptional<torch::Device>& device = {}) const override {
    auto script = script_.deepcopy();
    if (device.has_value()) {
      script.to(*device);
    }
    auto copy = std::make_shared<ScriptNetworkImpl>(std::move(script), num_classes_, name_);
    copy->train(is_training());
    return copy;
  }

 private:
  void clone_(torch::nn::Module& other,
              const mixmatch::detail::AtenOptional<torch::Device>& device) override {
    const auto copy = std::dynamic_pointer_cast<ScriptNetworkImpl>(other.clone(device));
    TORCH_CHECK(copy != nullptr, "ScriptNetwork: a module of another type was to be cloned into it");
    *this = *copy;
  }

  struct Buffer {
    torch::jit::Module owner;
    std::string name;
    Tensor tensor;
  };

  Tensor forward_once(const Tensor& images) {
    const torch::jit::GraphOptimizerEnabledGuard as_written(false);
    const bool capturing = mixmatch::detail::is_capturing(images.device());
    const auto numbers = capturing ? numbers_of_script() : std::vector<c10::IValue>();
    c10::IValue result;
    try {
      result = script_.forward({images});
      TORCH_CHECK(!capturing || numbers_of_script() == numbers,
                  "it changes an attribute that is no tensor, which a CUDA graph does not repeat");
    } catch (const std::exception& error) {
      keep_buffers(/*with_values=*/false);
      TORCH_CHECK(false, name_, ": forward of images ", images.sizes(),
                  " fails: ", mixmatch::detail::script_error(error));
    }
    TORCH_CHECK(result.isTensor(), name_, ": forward must return logits, got a ", result.tagKind());
    Tensor logits = result.toTensor();
    TORCH_CHECK(logits.dim() == 2 && logits.size(0) == images.size(0) && logits.size(1) == num_classes_,
                name_, ": forward of images ", images.sizes(), " must return logits [", images.size(0), ", ",
                num_classes_, "] for ", num_classes_, " classes, got ", logits.sizes());
    if (is_training()) {
      keep_buffers();
    }
    return logits;
  }

  /// A script may put another tensor in a buffer's place (num_batches_tracked = num_batches_tracked + 1): its
  /// value goes into the one that everybody knows, but of a pass that threw.
  void keep_buffers(bool with_values = true) {
    const torch::NoGradGuard no_grad;
    for (auto& [owner, name, tensor] : buffers_of_script_) {
      const Tensor now = owner.attr(name).toTensor();
      if (!now.is_same(tensor)) {
        if (with_values) {
          tensor.copy_(now);
        }
        owner.setattr(name, tensor);
      }
    }
  }

  /// What a script may count in beside buffers.
  std::vector<c10::IValue> numbers_of_script() const {
    std::vector<c10::IValue> numbers;
    for (const auto& module : script_.modules()) {
      for (const auto& attribute : module.named_attributes(/*recurse=*/false)) {
        if (attribute.value.isInt() || attribute.value.isDouble() || attribute.value.isBool()) {
          numbers.push_back(attribute.value);
        }
      }
    }
    return numbers;
  }

  int64_t num_classes_, groups_ = 1;
  std::string name_;
  std::vector<Buffer> buffers_of_script_;
};
TORCH_MODULE(ScriptNetwork);

}  // namespace mixmatch::models
