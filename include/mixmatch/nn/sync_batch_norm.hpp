#pragma once

#include <torch/nn/modules/batchnorm.h>
#include <mixmatch/distributed/process_group.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/nn/batch_norm_leaky_relu.hpp>

namespace mixmatch::training {

/// Makes every batch norm of a model normalise by the moments of all ranks' rows, in training mode (null: by
/// its own again), for as long as the group lives. Of models::BatchNormLeakyReLU, which all networks of
/// models/ have; throws on a batch norm of LibTorch's own, whose statistics would stay a rank's, and of
/// TorchScript. Every rank must have as many rows.
template <ModuleModel M>
void synchronize_batch_norm(M& model, ProcessGroup* group) {
  static_assert(!mixmatch::detail::is_script_module<std::remove_const_t<M>>,
                "mixmatch: synchronize_batch_norm cannot reach into TorchScript");
  mixmatch::detail::nn_module(model).apply([group](const std::string& name, torch::nn::Module& module) {
    if (auto* fused = module.as<models::BatchNormLeakyReLU>()) {
      fused->set_process_group(group);
      return;
    }
    TORCH_CHECK(group == nullptr || (module.as<torch::nn::BatchNorm1d>() == nullptr &&
                                     module.as<torch::nn::BatchNorm2d>() == nullptr &&
                                     module.as<torch::nn::BatchNorm3d>() == nullptr),
                "synchronize_batch_norm: ", name,
                " is LibTorch's own batch norm, which knows one process only: "
                "take models::BatchNormLeakyReLU in its place (leaky_slope 1: no activation)");
  });
}

}  // namespace mixmatch::training
