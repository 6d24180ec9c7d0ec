#pragma once

#include <fmt/format.h>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/evaluation/linear_probe.hpp>
#include <mixmatch/evaluation/predict.hpp>
#include <mixmatch/io/safetensors.hpp>
#include <mixmatch/models/load_pretrained.hpp>
#include <mixmatch/models/network.hpp>
#include <mixmatch/nn/channels_last.hpp>
#include <mixmatch/nn/sync_batch_norm.hpp>
#include <mixmatch/program/library_options.hpp>
#include <mixmatch/program/run_tensors.hpp>
#include <mixmatch/program/trained_on.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/standard_streams.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

namespace mixmatch::training {

namespace detail {

/// What of the published weights was not taken, on the standard output.
inline void print_loaded(const std::string& file, const LoadSafetensorsResult& loaded) {
  const auto report = [&file](const std::vector<std::string>& names, const char* what) {
    if (!names.empty()) {
      print_message(stdout, "{}: {} {}{}\n", mixmatch::detail::printable(file), what, names.front(),
                    names.size() > 1 ? fmt::format(" and {} more", names.size() - 1) : std::string());
    }
  };
  report(loaded.kept_head, "no head of these classes; initial weights in");
  report(loaded.missing, "not in the file:");
}

/// Whether the weights are a classifier's of this library whose classes are others, or others in number.
inline bool has_other_classes(const std::string& weights, const std::vector<std::string>& class_names) {
  const auto metadata = read_safetensors_metadata(weights);
  const auto names_class = [&](size_t i, const std::string& name) {
    const auto found = metadata.find(fmt::format("class_{}", i));
    return found != metadata.end() && found->second == name;
  };
  if (metadata.find("class_0") == metadata.end()) {
    return false;
  }
  for (size_t i = 0; i < class_names.size(); ++i) {
    if (!names_class(i, class_names[i])) {
      return true;
    }
  }
  return false;  // fewer of them: load_pretrained() sees it
}

/// Frozen last, so that what was loaded is what stays.
inline void freeze_layers(models::Network& network, const TrainingOptions& o) {
  std::vector<std::string> names;
  std::istringstream list(o.freeze);
  for (std::string name; std::getline(list, name, ',');) {
    names.push_back(name);
  }
  if (o.train == "head") {
    names.push_back("backbone");
  }
  network->freeze(names);
  network->freeze_statistics(o.freeze_statistics);
}

}  // namespace detail

/// The file of --model torchscript:FILE: a run's own copy, where it has one; empty for other networks.
inline std::filesystem::path script_path(const TrainingOptions& o) {
  const auto script = models::script_file_of(o.model);
  return script.empty() || o.network_file.empty() ? script : o.network_file;
}

/// The programs' network, chosen here alone (o.model): what is around it takes any. With weights drawn from
/// the seed, and then, unless a checkpoint brings its own (o.resume), those of o.weights, of which `loaded`
/// tells what was not taken; o.freeze frozen; channels-last on the device.
inline models::Network make_network(const TrainingOptions& o, int64_t num_classes, torch::Device device,
                                    LoadSafetensorsResult* loaded = nullptr) {
  torch::manual_seed(o.seed);
  const auto script = script_path(o);
  auto network = !script.empty() ? models::script_network(script, num_classes, device)
                 : o.model == "wide_resnet"
                     ? models::wide_resnet_network(models::WideResNetOptions(num_classes)
                                                       .depth(o.depth)
                                                       .widen_factor(o.widen)
                                                       .filters(o.filters)
                                                       .scales(o.scales))
                     : models::named_network(o.model, num_classes);
  if (!o.weights.empty() && !o.resume) {
    const auto result = models::load_pretrained(o.weights, network);
    if (loaded != nullptr) {
      *loaded = result;
    }
  }
  detail::freeze_layers(network, o);
  network->to(device);
  to_channels_last(network);
  if (o.sync_batch_norm && o.processes != nullptr) {
    TORCH_CHECK(script.empty(), "--sync-batch-norm: the batch norms of --model ", o.model, " are not known");
    synchronize_batch_norm(network, o.processes);
  }
  return network;
}

/// Makes a linear probe on the labeled images, as they are and in evaluation mode, the network's last layer.
inline void use_probe(models::Network& network, const TrainingData& data, const EvaluateOptions& options,
                      RunTensors* shared = nullptr) {
  const auto probe =
      fit_linear_probe(labeled_features(network, data, options, shared),
                       data.pool.labels_of(data.split.labeled, torch::kCPU), data.pool.num_classes());
  const torch::NoGradGuard no_grad;
  network->head()->weight.copy_(probe.weight);
  network->head()->bias.copy_(probe.bias);
}

/// The network that a run starts from: make_network(), without the weights' head where that is of other
/// classes, and, where o.head says so and the weights have no head of these classes, the labeled images'
/// linear probe as its head. Says on the standard output what of the weights was not taken, unless `quiet`.
inline models::Network make_network(const TrainingOptions& o, const TrainingData& data, torch::Device device,
                                    bool quiet = false, RunTensors* shared = nullptr) {
  LoadSafetensorsResult loaded;
  auto network = make_network(o, data.pool.num_classes(), device, &loaded);
  if (o.resume) {
    return network;
  }
  if (!o.weights.empty() && loaded.kept_head.empty() &&
      detail::has_other_classes(o.weights, data.pool.class_names)) {
    TORCH_CHECK(!network->head_name.empty(), mixmatch::detail::printable(o.weights),
                " is of other classes, and which layer of a TorchScript network is their head is not known");
    network->head()->reset_parameters();
    loaded.kept_head = {network->head_name + ".weight", network->head_name + ".bias"};
  }
  if (!quiet) {
    detail::print_loaded(o.weights, loaded);
  }
  const bool new_head = o.weights.empty() || !loaded.kept_head.empty();
  if (o.head == "probe" && new_head) {
    use_probe(network, data, evaluate_options(o, device), shared);
    if (!quiet) {
      print_message(stdout, "the head starts as a linear probe on {} labeled images\n",
                    data.split.labeled.size(0));
    }
  }
  return network;
}

}  // namespace mixmatch::training
