#pragma once

#include <mixmatch/data/picture_fit.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/io/safetensors.hpp>
#include <mixmatch/models/network.hpp>
#include <mixmatch/program/confidence_metadata.hpp>
#include <mixmatch/run/run_directory.hpp>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace mixmatch::models {

/// A trained network with what is needed to use it.
struct Classifier {
  Network model{nullptr};
  std::vector<std::string> class_names;
  int64_t image_size;  ///< of the square images, normalised to [-1, 1], that it was trained on
  training::ConfidenceRule confidence;            ///< how its probabilities are to be read
  data::PictureFit fit = data::PictureFit::crop;  ///< how pictures become square for it
};

/// Writes the averaged weights of a model, with class names, image size, fit and the rule for its confidences
/// as metadata, and of a Network or a WideResNet which one it is, so that load_classifier() needs nothing
/// else. A safetensors file with a checksum: the tensors load into any PyTorch module of the same parameter
/// names. Throws as save_safetensors().
template <class Model>
void save_classifier(const std::filesystem::path& path, Model& model, EmaModel<Model>& ema,
                     const std::vector<std::string>& class_names, int64_t image_size,
                     const training::ConfidenceRule& confidence = {},
                     data::PictureFit fit = data::PictureFit::crop) {
  SafetensorsMetadata metadata{
      {"format", "pt"}, {"image_size", std::to_string(image_size)}, {"fit", data::picture_fit_name(fit)}};
  training::add_confidence_rule(metadata, confidence);
  if constexpr (std::is_same_v<Model, WideResNet>) {
    metadata.merge(describe(model->options()));
  } else if constexpr (std::is_same_v<Model, Network>) {
    metadata.merge(NetworkDescription(model->description()));
  }
  for (size_t i = 0; i < class_names.size(); ++i) {
    metadata.emplace("class_" + std::to_string(i), class_names[i]);
  }
  auto averages = ema.average_parameters();
  save_safetensors(path, model, metadata, WriteSafetensorsOptions().checksum(true));
}

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

/// Reads what save_classifier() wrote; the model is in evaluation mode, on the CPU.
///
/// Throws one line that names the file where it cannot be read, holds no such classifier, holds more or less
/// numbers than the network that it describes (a WideResNet is not built before), does not fit its checksum,
/// if it has one, or has a weight that is not finite.
inline Classifier load_classifier(const std::filesystem::path& path) {
  using mixmatch::detail::quote_for_message;
  const std::string shown = mixmatch::detail::printable(path);
  mixmatch::detail::SafetensorsReader reader("load_classifier", path);
  const auto& metadata = reader.header().metadata;
  const auto text = [&](const std::string& key) -> const std::string& {
    const auto found = metadata.find(key);
    TORCH_CHECK(found != metadata.end(), shown, " is no classifier of this library: its metadata has no \"",
                key, "\"");
    return found->second;
  };
  const auto number = [&](const std::string& key, int64_t least, int64_t most) {
    const std::string& digits = text(key);
    int64_t value = -1;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    TORCH_CHECK(
        error == std::errc() && end == digits.data() + digits.size() && value >= least && value <= most,
        shown, ": its metadata's \"", key, "\" must be a number from ", least, " to ", most, ", got ",
        quote_for_message(digits));
    return value;
  };
  const std::string architecture = text("architecture");
  const bool wide = architecture == "WideResNet";
  const auto& names = network_names();
  TORCH_CHECK(wide || std::find(names.begin(), names.end(), architecture) != names.end(), shown, " holds a ",
              mixmatch::detail::printable(architecture.substr(0, 60)), ", expected a WideResNet or one of ",
              detail::list_of_networks());
  Classifier classifier;
  classifier.image_size = number("image_size", 1, 16384);
  classifier.confidence = training::confidence_rule_of(metadata, shown);
  if (const auto fit = metadata.find("fit"); fit != metadata.end()) {  // those before had none
    TORCH_CHECK(fit->second == "crop" || fit->second == "letterbox", shown,
                ": its metadata's \"fit\" must be crop or letterbox, got ", quote_for_message(fit->second));
    classifier.fit = data::parse_picture_fit(fit->second);
  }
  const int64_t classes = number("num_classes", 1, 100000);
  for (int64_t i = 0; i < classes; ++i) {
    classifier.class_names.push_back(text("class_" + std::to_string(i)));
  }
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
  } else {
    // Of a size that its name bounds, and its classes, which the file names one by one.
    classifier.model = named_network(architecture, classes);
    int64_t expected = 0;
    for (const auto& item : mixmatch::detail::model_state(classifier.model)) {
      expected += item.tensor.numel();
    }
    check_numbers(expected, architecture);
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
  if (!std::filesystem::is_directory(model)) {
    return model;
  }
  auto weights = RunDirectory::open(model).weights();
  TORCH_CHECK(std::filesystem::exists(weights), mixmatch::detail::printable(model),
              " is not finished: it has no model.safetensors yet; continue the run with --resume");
  return weights;
}

}  // namespace mixmatch::training
