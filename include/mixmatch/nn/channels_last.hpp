#pragma once

#include <mixmatch/model.hpp>

namespace mixmatch::training {

/// Stores convolution kernels channels-last, the layout in which the augmentations deliver images and in
/// which CPU and GPU convolutions are fastest. Values and names stay; do it before an optimiser or EmaModel
/// copies the layout.
template <ModuleModel Model>
void to_channels_last(Model& model) {
  torch::NoGradGuard no_grad;
  for (auto& item : mixmatch::detail::model_parameters(model)) {
    if (item.tensor.dim() == 4) {
      item.tensor.set_data(item.tensor.contiguous(at::MemoryFormat::ChannelsLast));
    }
  }
}

}  // namespace mixmatch::training
