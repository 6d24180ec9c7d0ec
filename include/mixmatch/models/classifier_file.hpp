#pragma once

#include <mixmatch/ema_model.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/safetensors.hpp>

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace mixmatch::models {

/// A trained Wide ResNet with what is needed to use it.
struct Classifier {
  WideResNet model{nullptr};
  std::vector<std::string> class_names;
  int64_t image_size;  ///< of the square images, normalised to [-1, 1], that it was trained on
};

/// Writes the averaged weights of a model, with the network's options, class names and image size as
/// metadata, so that load_classifier() needs nothing else. A safetensors file: the tensors load into any
/// PyTorch module of the same parameter names. Throws as save_safetensors().
inline void save_classifier(const std::filesystem::path& path, WideResNet& model, EmaModel<WideResNet>& ema,
                            const std::vector<std::string>& class_names, int64_t image_size) {
  const auto& options = model->options();
  SafetensorsMetadata metadata{{"format", "pt"},
                               {"architecture", "WideResNet"},
                               {"num_classes", std::to_string(options.num_classes())},
                               {"depth", std::to_string(options.depth())},
                               {"widen_factor", std::to_string(options.widen_factor())},
                               {"filters", std::to_string(options.filters())},
                               {"scales", std::to_string(options.scales())},
                               {"in_channels", std::to_string(options.in_channels())},
                               {"image_size", std::to_string(image_size)}};
  for (size_t i = 0; i < class_names.size(); ++i) {
    metadata.emplace("class_" + std::to_string(i), class_names[i]);
  }
  auto averages = ema.average_parameters();
  save_safetensors(path, model, metadata);
}

/// Reads what save_classifier() wrote; the model is in evaluation mode, on the CPU. Throws one line that
/// names the file where it cannot be read or holds no such classifier.
inline Classifier load_classifier(const std::filesystem::path& path) {
  const auto metadata = read_safetensors_metadata(path);
  const auto text = [&](const std::string& key) -> const std::string& {
    const auto found = metadata.find(key);
    TORCH_CHECK(found != metadata.end(), path.string(),
                " is no classifier of this library: its metadata has no \"", key, "\"");
    return found->second;
  };
  const auto number = [&](const std::string& key, int64_t most) {
    const std::string& digits = text(key);
    int64_t value = -1;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    TORCH_CHECK(error == std::errc() && end == digits.data() + digits.size() && value >= 0 && value <= most,
                path.string(), ": its metadata's \"", key, "\" must be a number up to ", most, ", got \"",
                digits, "\"");
    return value;
  };
  TORCH_CHECK(text("architecture") == "WideResNet", path.string(), " holds a ", text("architecture"),
              ", expected a WideResNet");
  Classifier classifier;
  classifier.image_size = number("image_size", 16384);
  TORCH_CHECK(classifier.image_size >= 1, path.string(), ": its image_size must be >= 1");
  const int64_t classes = number("num_classes", 100000);
  for (int64_t i = 0; i < classes; ++i) {
    classifier.class_names.push_back(text("class_" + std::to_string(i)));
  }
  classifier.model = WideResNet(WideResNetOptions(classes)
                                    .depth(number("depth", 1000))
                                    .widen_factor(number("widen_factor", 100))
                                    .filters(number("filters", 4096))
                                    .scales(number("scales", 10))
                                    .in_channels(number("in_channels", 1000)));
  load_safetensors(path, classifier.model);
  classifier.model->eval();
  return classifier;
}

}  // namespace mixmatch::models
