#pragma once

#include <mixmatch/detail/model_access.hpp>

namespace mixmatch {

using torch::Tensor;

/// What every block that runs a network takes as `Model`: one of
///  - a torch::nn::Module subclass with `forward(Tensor) -> Tensor`,
///  - its ModuleHolder, a std::shared_ptr to it, torch::nn::Sequential or torch::nn::AnyModule,
///  - torch::jit::Module whose `forward` maps one tensor to one tensor,
///  - any callable `Tensor(Tensor)`; such a model has no mode or buffers that the library could see.
template <class T>
concept Model = detail::ModuleWithParameters<std::remove_cvref_t<T>> || detail::CallableModel<T>;

/// A Model that has parameters: every kind above but the plain callable.
template <class T>
concept ModuleModel = detail::ModuleWithParameters<std::remove_cvref_t<T>>;

/// model(input), whichever kind of model it is.
template <class M>
Tensor forward(M& model, const Tensor& input) {
  if constexpr (Model<M>) {
    return detail::call_model(model, input);
  } else {
    static_assert(
        Model<M>,
        "mixmatch: a Model is a torch::nn::Module with forward(Tensor) -> Tensor, a ModuleHolder, a "
        "std::shared_ptr to one, Sequential, AnyModule, torch::jit::Module or a callable Tensor(Tensor)");
    return input;
  }
}

}  // namespace mixmatch
