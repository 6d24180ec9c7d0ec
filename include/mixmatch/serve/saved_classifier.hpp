#pragma once

#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/io/safetensors.hpp>
#include <mixmatch/models/network.hpp>
#include <mixmatch/serve/classifier_metadata.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

namespace mixmatch::models {

/// A trained network with what is needed to use it.
struct SavedClassifier {
  Network model{nullptr};
  std::vector<std::string> class_names;
  int64_t image_size;  ///< of the square images, normalised to [-1, 1], that it was trained on
  training::ConfidenceRule confidence;            ///< how its probabilities are to be read
  data::PictureFit fit = data::PictureFit::crop;  ///< how pictures become square for it
};

/// The TorchScript network of a run that was trained with one, beside its model.safetensors.
inline constexpr const char* script_file_name = "network.pt";

namespace detail {

/// How many numbers the parameters and buffers of such a network hold. The options' limits in
/// load_classifier() keep it in range.
inline int64_t wide_resnet_numbers(const WideResNetOptions& options) {
  const int64_t first = options.filters() > 0 ? options.filters() : 16 * options.widen_factor();
  const auto norm = [](int64_t channels) { return 4 * channels + 1; };
  int64_t channels = 16;
  int64_t numbers = options.in_channels() * channels * 9;
  for (int64_t scale = 0; scale < options.scales(); ++scale) {
    const int64_t filters = first << scale;
    for (int64_t block = 0; block < (options.depth() - 4) / 6; ++block) {
      numbers += norm(channels) + norm(filters) + 9 * channels * filters + 9 * filters * filters +
                 (channels == filters ? 0 : channels * filters);
      channels = filters;
    }
  }
  return numbers + norm(channels) + (channels + 1) * options.num_classes();
}

}  // namespace detail

/// Reads what save_classifier() wrote; the model is in evaluation mode, on the CPU. A network from
/// TorchScript is read from network.pt beside the file.
///
/// Throws one line that names the file where it cannot be read, holds no such classifier, holds more or less
/// numbers than the network that it describes (which is not built before), does not fit its checksum, if it
/// has one, or has a weight that is not finite; and where network.pt is missing or another one.
inline SavedClassifier load_classifier(const std::filesystem::path& path) {
  using mixmatch::detail::quote_for_message;
  using training::detail::metadata_number;
  const std::string shown = mixmatch::detail::printable(path);
  mixmatch::detail::SafetensorsReader reader("load_classifier", path);
  const auto& metadata = reader.header().metadata;
  const auto number = [&](const std::string& key, int64_t least, int64_t most) {
    return metadata_number(metadata, key, shown, least, most);
  };
  const std::string architecture = training::detail::metadata_text(metadata, "architecture", shown);
  const bool wide = architecture == "WideResNet", script = architecture == "torchscript";
  const auto& names = network_names();
  TORCH_CHECK(wide || script || std::find(names.begin(), names.end(), architecture) != names.end(), shown,
              " holds a ", mixmatch::detail::printable(architecture.substr(0, 60)),
              ", expected a WideResNet or one of ", detail::list_of_networks());
  const int64_t classes = number("num_classes", 1, 100000);
  auto terms = training::classifier_terms_of(metadata, classes, shown);
  SavedClassifier classifier;
  classifier.class_names = std::move(terms.class_names);
  classifier.image_size = terms.image_size;
  classifier.confidence = terms.confidence;
  classifier.fit = terms.fit;
  int64_t numbers = 0;
  for (const auto& entry : reader.header().entries) {
    reader.check_readable(entry);
    numbers += static_cast<int64_t>((entry.end - entry.begin) / c10::elementSize(entry.type));
  }
  const auto check_numbers = [&](int64_t expected, const std::string& described) {
    TORCH_CHECK(numbers == expected, shown, " holds ", numbers,
                " numbers, but the network that its metadata describes has ", expected, " (", described, ")");
  };
  if (wide) {
    const auto options = WideResNetOptions(classes)
                             .depth(number("depth", 10, 1000))
                             .widen_factor(number("widen_factor", 1, 100))
                             .filters(number("filters", 0, 4096))
                             .scales(number("scales", 1, 10))
                             .in_channels(number("in_channels", 1, 1000));
    check_numbers(detail::wide_resnet_numbers(options),
                  c10::str("depth ", options.depth(), ", widen_factor ", options.widen_factor(), ", filters ",
                           options.filters(), ", scales ", options.scales()));
    classifier.model = wide_resnet_network(options);
  } else if (script) {
    const auto file = path.parent_path() / script_file_name;
    std::error_code ignored;
    TORCH_CHECK(std::filesystem::exists(file, ignored), shown,
                " is of a TorchScript network and needs it as ", script_file_name,
                " beside it, which is missing");
    classifier.model = script_network(file, classes);
    const std::string stored = training::detail::metadata_text(metadata, "network_checksum", shown);
    const auto found = classifier.model->description().at("network_checksum");
    TORCH_CHECK(found == stored, shown, " was trained with another ", script_file_name,
                " than the one beside it: expected ", quote_for_message(stored), ", got ", found);
  } else {
    check_numbers(network_numbers(architecture, classes), architecture);
    classifier.model = named_network(architecture, classes);
  }
  const auto state = mixmatch::detail::model_state(classifier.model);
  mixmatch::detail::load_state(reader, state, {});  // and the checksum
  for (const auto& item : state) {
    TORCH_CHECK(!item.tensor.is_floating_point() || item.tensor.isfinite().all().item<bool>(), shown,
                ": tensor ", quote_for_message(item.name),
                " holds a value that is not finite: the file is damaged, or its training diverged");
  }
  classifier.model->eval();
  return classifier;
}

}  // namespace mixmatch::models

namespace mixmatch::training {

/// The classifier that a program's option `--model` names: a file, or the one of a run's directory. Throws if
/// the run is not finished.
inline std::filesystem::path weights_file(const std::filesystem::path& model) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (!fs::is_directory(model, ignored)) {
    return model;
  }
  auto weights = model / "model.safetensors";
  if (!fs::exists(weights, ignored)) {
    const std::string shown = mixmatch::detail::printable(model);
    TORCH_CHECK(fs::exists(model / "config.json", ignored) || fs::exists(model / "checkpoint.pt", ignored),
                shown, " holds no run: it has no model.safetensors, config.json or checkpoint.pt");
    TORCH_CHECK(false, shown,
                " is not finished: it has no model.safetensors yet; continue the run with --resume");
  }
  return weights;
}

}  // namespace mixmatch::training
