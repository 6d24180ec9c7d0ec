#pragma once

#include <fmt/format.h>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/models/load_pretrained.hpp>
#include <mixmatch/models/network.hpp>
#include <mixmatch/nn/channels_last.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/standard_streams.hpp>

#include <string>
#include <vector>

namespace mixmatch::training {

/// The programs' network, chosen here alone (o.model): what is around it takes any. With weights drawn from
/// the seed, and then those of o.weights, which says on the standard output what of them was not taken;
/// channels-last on the device.
inline models::Network make_network(const TrainingOptions& o, int64_t num_classes, torch::Device device) {
  torch::manual_seed(o.seed);
  auto network = o.model == "wide_resnet" ? models::wide_resnet_network(models::WideResNetOptions(num_classes)
                                                                            .depth(o.depth)
                                                                            .widen_factor(o.widen)
                                                                            .filters(o.filters)
                                                                            .scales(o.scales))
                                          : models::named_network(o.model, num_classes);
  if (!o.weights.empty()) {
    const auto loaded = models::load_pretrained(o.weights, network);
    const auto report = [&o](const std::vector<std::string>& names, const char* what) {
      if (!names.empty()) {
        print_message(stdout, "{}: {} {}{}\n", mixmatch::detail::printable(o.weights), what, names.front(),
                      names.size() > 1 ? fmt::format(" and {} more", names.size() - 1) : std::string());
      }
    };
    report(loaded.kept_head, "no head of these classes; initial weights in");
    report(loaded.missing, "not in the file:");
  }
  network->to(device);
  to_channels_last(network);
  return network;
}

}  // namespace mixmatch::training
