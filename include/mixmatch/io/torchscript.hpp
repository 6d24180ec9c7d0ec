#pragma once

// Not in the umbrella: LibTorch's compiler takes seconds to include.

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/nn/module.h>
#include <torch/types.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>

namespace mixmatch {

using torch::Tensor;

namespace detail {

/// A script module without methods, with the parameters, buffers and submodules of `module` (the same
/// tensors) under the same names, as one that training left for good.
inline torch::jit::Module mirrored(const torch::nn::Module& module,
                                   const std::shared_ptr<torch::jit::CompilationUnit>& unit) {
  torch::jit::Module mirror(c10::QualifiedName("__torch__.mixmatch.Module"), unit, /*shouldMangle=*/true);
  mirror.register_attribute("training", c10::BoolType::get(), false);
  for (const auto& parameter : module.named_parameters(/*recurse=*/false)) {
    mirror.register_parameter(parameter.key(), parameter.value(), /*is_buffer=*/false);
  }
  for (const auto& buffer : module.named_buffers(/*recurse=*/false)) {
    mirror.register_parameter(buffer.key(), buffer.value(), /*is_buffer=*/true);
  }
  for (const auto& child : module.named_children()) {
    mirror.register_module(child.key(), mirrored(*child.value(), unit));
  }
  return mirror;
}

}  // namespace detail

/// The module as TorchScript, by LibTorch's tracer: what `forward` does with `example` in evaluation mode, as
/// a script module whose forward() takes such a tensor, with the parameters and buffers of `module`, shared
/// with it, under their own names. torch::jit::load and Python's torch.jit.load read what its save() writes.
///
/// `forward`: Tensor to Tensor, made of LibTorch's calls on `module` and on constants; choices that it makes
/// by looking at values or sizes are made once, for `example`. Sizes of other dimensions than those it looks
/// at may change from call to call. Puts the module into evaluation mode. No gradient. Throws what `forward`
/// throws.
inline torch::jit::Module trace_module(torch::nn::Module& module,
                                       const std::function<Tensor(const Tensor&)>& forward,
                                       const Tensor& example) {
  const torch::NoGradGuard no_grad;
  module.eval();
  auto script = detail::mirrored(module, std::make_shared<torch::jit::CompilationUnit>());
  const auto traced = torch::jit::tracer::trace(
      {example},
      [&forward](torch::jit::Stack inputs) { return torch::jit::Stack{forward(inputs.at(0).toTensor())}; },
      [](const Tensor&) { return std::string(); }, /*strict=*/true, /*force_outplace=*/false, &script);
  const auto& type = script.type();
  type->addMethod(type->compilation_unit()->create_function(c10::QualifiedName(*type->name(), "forward"),
                                                            traced.first->graph));
  return script;
}

}  // namespace mixmatch
