#pragma once

// How the library reaches into the kinds of model it accepts: calling it, its tensors, its training flags.

#include <torch/csrc/jit/api/module.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>
#include <mixmatch/detail/version.hpp>

#include <concepts>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace mixmatch::detail {

using torch::Tensor;

template <class T>
struct IsSharedPtr : std::false_type {};
template <class T>
struct IsSharedPtr<std::shared_ptr<T>> : std::true_type {};

template <class T>
inline constexpr bool is_script_module = std::is_base_of_v<torch::jit::Module, T>;
/// Whether a pass can be captured in a CUDA graph. A bare TorchScript module may put another tensor in a
/// buffer's place at each pass, which a graph does not see; models::ScriptNetwork keeps the first one.
template <class M>
inline constexpr bool is_capturable_model = !is_script_module<std::remove_const_t<M>>;
template <class T>
inline constexpr bool is_any_module = std::is_same_v<T, torch::nn::AnyModule>;
template <class T>
inline constexpr bool is_nn_module = std::is_base_of_v<torch::nn::Module, T>;
/// ModuleHolder or std::shared_ptr: reached through `->`.
template <class T>
inline constexpr bool is_module_pointer = torch::detail::is_module_holder<T>::value || IsSharedPtr<T>::value;

template <class T>
concept HasForward = requires(T& model, const Tensor& input) {
  { model.forward(input) } -> std::convertible_to<Tensor>;
};
template <class T>
concept PointsToForward = is_module_pointer<T> && requires(T& model, const Tensor& input) {
  { model->forward(input) } -> std::convertible_to<Tensor>;
};
template <class T>
concept CallableModel = requires(T& model, const Tensor& input) {
  { std::invoke(model, input) } -> std::convertible_to<Tensor>;
};

template <class T>
concept ModuleWithParameters =
    is_script_module<T> || is_any_module<T> ||(is_nn_module<T>&& HasForward<T>) || PointsToForward<T>;

template <class M>
Tensor call_model(M& model, const Tensor& input) {
  using T = std::remove_const_t<M>;
  if constexpr (is_script_module<T>) {
    return const_cast<T&>(model).forward({input}).toTensor();
  } else if constexpr (is_any_module<T>) {
    return const_cast<T&>(model).forward(input);
  } else if constexpr (is_nn_module<T> && HasForward<M>) {
    return model.forward(input);
  } else if constexpr (PointsToForward<T>) {
    return model->forward(input);
  } else {
    return std::invoke(model, input);
  }
}

/// The torch::nn::Module behind a module model (not for TorchScript).
template <class M>
torch::nn::Module& nn_module(M& model) {
  using T = std::remove_const_t<M>;
  if constexpr (is_any_module<T>) {
    return *model.ptr();
  } else if constexpr (is_nn_module<T>) {
    return const_cast<T&>(model);
  } else {
    return const_cast<T&>(model).operator*();
  }
}

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

/// Keeps the first of several names of one tensor (a module or parameter registered twice).
inline void push_unique(std::vector<NamedTensor>& list, std::string name, const Tensor& tensor) {
  if (!tensor.defined()) {
    return;
  }
  for (const auto& known : list) {
    if (known.tensor.is_same(tensor)) {
      return;
    }
  }
  list.push_back({std::move(name), tensor});
}

/// `visit(name, tensor)` for each of a module's named parameters or buffers.
template <class Items, class Visit>
void visit_items(const Items& items, const Visit& visit) {
  for (const auto& item : items) {
    if constexpr (requires { item.key(); }) {
      visit(item.key(), item.value());
    } else {  // TorchScript's
      visit(item.name, item.value);
    }
  }
}

/// `visit(name, tensor)` for each parameter under each of its names.
template <class M, class Visit>
void visit_parameters(M& model, const Visit& visit) {
  if constexpr (is_script_module<std::remove_const_t<M>>) {
    visit_items(model.named_parameters(), visit);
  } else {
    visit_items(nn_module(model).named_parameters(), visit);
  }
}

/// As visit_parameters.
template <class M, class Visit>
void visit_buffers(M& model, const Visit& visit) {
  if constexpr (is_script_module<std::remove_const_t<M>>) {
    visit_items(model.named_buffers(), visit);
  } else {
    visit_items(nn_module(model).named_buffers(), visit);
  }
}

template <class M>
std::vector<NamedTensor> model_parameters(M& model) {
  std::vector<NamedTensor> list;
  visit_parameters(model,
                   [&](const std::string& name, const Tensor& tensor) { push_unique(list, name, tensor); });
  return list;
}

template <class M>
std::vector<NamedTensor> model_buffers(M& model) {
  std::vector<NamedTensor> list;
  visit_buffers(model,
                [&](const std::string& name, const Tensor& tensor) { push_unique(list, name, tensor); });
  return list;
}

/// Parameters, then buffers, under every name that they have: a tensor that is registered twice comes twice,
/// as in PyTorch's state_dict().
template <class M>
std::vector<NamedTensor> model_state(M& model) {
  std::vector<NamedTensor> list;
  const auto push = [&list](const std::string& name, const Tensor& tensor) {
    if (tensor.defined()) {
      list.push_back({name, tensor});
    }
  };
  visit_parameters(model, push);
  visit_buffers(model, push);
  return list;
}

/// Puts a model into evaluation mode and every submodule back into its own mode at scope exit.
template <class M>
class EvaluationModeGuard {
 public:
  explicit EvaluationModeGuard(M& model) {
    if constexpr (is_script_module<std::remove_const_t<M>>) {
      for (auto submodule : model.modules()) {
        // A scripted submodule without the flag (frozen, or a plain container) has no mode to restore.
        if (submodule.hasattr("training")) {
          script_.emplace_back(submodule, submodule.attr("training").toBool());
          submodule.setattr("training", false);
        }
      }
    } else {
      auto remember = [this](torch::nn::Module& module) {
        modules_.emplace_back(&module, module.is_training());
      };
      nn_module(model).apply(remember);
      nn_module(model).eval();
    }
  }
  EvaluationModeGuard(const EvaluationModeGuard&) = delete;
  EvaluationModeGuard& operator=(const EvaluationModeGuard&) = delete;
  ~EvaluationModeGuard() {
    for (auto& [module, training] : script_) {
      module.setattr("training", training);
    }
    // Parents first: train() recurses, and each child then gets its own mode back.
    for (auto& [module, training] : modules_) {
      module->train(training);
    }
  }

 private:
  std::vector<std::pair<torch::jit::Module, bool>> script_;
  std::vector<std::pair<torch::nn::Module*, bool>> modules_;
};

/// Autocast caches the low-precision copies of weights. A copy made without gradient, or of swapped weights,
/// must not reach the training pass of the same autocast scope: its gradient would never arrive at the
/// parameter.
inline void forget_autocast_copies() { at::autocast::clear_cache(); }

}  // namespace mixmatch::detail
