#pragma once

#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/nn/channels_last.hpp>
#include <mixmatch/program/training_options.hpp>

namespace mixmatch::training {

/// The programs' network, chosen here alone: what is around it takes any. With weights drawn from the seed,
/// channels-last on the device.
inline models::WideResNet make_network(const TrainingOptions& o, int64_t num_classes, torch::Device device) {
  torch::manual_seed(o.seed);
  models::WideResNet network(models::WideResNetOptions(num_classes)
                                 .depth(o.depth)
                                 .widen_factor(o.widen)
                                 .filters(o.filters)
                                 .scales(o.scales));
  network->to(device);
  to_channels_last(network);
  return network;
}

}  // namespace mixmatch::training
