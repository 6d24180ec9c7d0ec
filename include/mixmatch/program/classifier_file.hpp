#pragma once

#include <mixmatch/data/picture_fit.hpp>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/io/safetensors.hpp>
#include <mixmatch/models/network.hpp>
#include <mixmatch/serve/classifier_metadata.hpp>
#include <mixmatch/serve/saved_classifier.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <type_traits>
#include <vector>

namespace mixmatch::models {

/// Writes the averaged weights of a model, with class names, image size, fit and the rule for its confidences
/// as metadata, and of a Network or a WideResNet which one it is, so that load_classifier() needs nothing
/// else (of a ScriptNetwork its TorchScript file, as network.pt beside this one). A safetensors file with a
/// checksum: the tensors load into any PyTorch module of the same parameter names. Throws as
/// save_safetensors().
template <class Model>
void save_classifier(const std::filesystem::path& path, Model& model, EmaModel<Model>& ema,
                     const std::vector<std::string>& class_names, int64_t image_size,
                     const training::ConfidenceRule& confidence = {},
                     data::PictureFit fit = data::PictureFit::crop) {
  SafetensorsMetadata metadata{{"format", "pt"}};
  metadata.merge(training::classifier_metadata({class_names, image_size, confidence, fit}));
  if constexpr (std::is_same_v<Model, WideResNet>) {
    metadata.merge(describe(model->options()));
  } else if constexpr (std::is_same_v<Model, Network>) {
    metadata.merge(NetworkDescription(model->description()));
  }
  auto averages = ema.average_parameters();
  save_safetensors(path, model, metadata, WriteSafetensorsOptions().checksum(true));
}

}  // namespace mixmatch::models
