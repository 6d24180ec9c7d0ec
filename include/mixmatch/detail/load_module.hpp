#pragma once

#include <ATen/ATen.h>
#include <torch/nn/module.h>
#include <torch/serialize/archive.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::detail {

inline void check_same_kind(const std::string& name, const at::Tensor& saved, const at::Tensor& target) {
  TORCH_CHECK(saved.sizes() == target.sizes() && saved.scalar_type() == target.scalar_type(), name, " is ",
              target.scalar_type(), " ", target.sizes(), " here, but ", saved.scalar_type(), " ",
              saved.sizes(), " in the file");
}

/// Throws unless the archive holds every tensor of the module in its size and dtype.
inline void check_module(torch::nn::Module& module, torch::serialize::InputArchive& archive,
                         const std::string& prefix) {
  const auto check = [&](const std::string& key, const at::Tensor& target, bool is_buffer) {
    if (!target.defined()) {
      return;
    }
    at::Tensor saved;
    TORCH_CHECK(archive.try_read(key, saved, is_buffer), prefix, key, " is missing");
    check_same_kind(prefix + key, saved, target);
  };
  for (const auto& item : module.named_parameters(/*recurse=*/false)) {
    check(item.key(), item.value(), false);
  }
  for (const auto& item : module.named_buffers(/*recurse=*/false)) {
    check(item.key(), item.value(), true);
  }
  for (const auto& child : module.named_children()) {
    if (child.value()->is_serializable()) {
      torch::serialize::InputArchive nested;
      TORCH_CHECK(archive.try_read(child.key(), nested), prefix, child.key(), " is missing");
      check_module(*child.value(), nested, prefix + child.key() + ".");
    }
  }
}

/// torch::nn::Module::load makes each tensor another one: of the file's device and strides. Here every tensor
/// keeps its memory, so that channels-last stays and whoever holds its address (a captured graph, a fused
/// optimiser) sees the loaded values. After check_module(), as an archive that lacks a tensor leaves the
/// module half loaded.
inline void load_module(torch::nn::Module& module, torch::serialize::InputArchive& archive) {
  const at::NoGradGuard no_grad;
  std::vector<std::pair<at::Tensor, at::Tensor>> kept;  // the module's tensor, and its memory from before
  const auto keep = [&](const at::Tensor& tensor) {
    const bool known =
        std::any_of(kept.begin(), kept.end(), [&](const auto& item) { return item.first.is_same(tensor); });
    if (tensor.defined() && !known) {
      kept.emplace_back(tensor, tensor.detach());
    }
  };
  for (const auto& tensors : {module.parameters(), module.buffers()}) {
    std::for_each(tensors.begin(), tensors.end(), keep);
  }
  module.load(archive);
  for (auto& [tensor, memory] : kept) {
    memory.copy_(tensor);
    tensor.set_data(memory);
  }
}

}  // namespace mixmatch::detail
