#pragma once

#include <torch/arg.h>
#include <mixmatch/io/safetensors.hpp>
#include <mixmatch/model.hpp>

#include <filesystem>
#include <string>

namespace mixmatch::models {

struct LoadPretrainedOptions {
  /// The last layer's name in the model; empty: what the model calls its `head_name`, as the library's
  /// networks do. A model without one gets every layer from the file.
  TORCH_ARG(std::string, head) = "";
  /// As LoadSafetensorsOptions::strict.
  TORCH_ARG(bool, strict) = true;
};

namespace detail {

template <class Model>
std::string head_name_of(const Model& model) {
  if constexpr (requires { model.head_name; }) {
    return model.head_name;
  } else if constexpr (requires { model->head_name; }) {
    return model->head_name;
  } else {
    return "";
  }
}

}  // namespace detail

/// Fills a model with published weights from a safetensors file (examples/python/convert_weights.py makes one
/// of a .pth or .bin):
///
///     ResNet model(ResNetOptions(5).depth(18));
///     const auto loaded = load_pretrained("resnet18.safetensors", model);
///     // loaded.kept_head: {"fc.weight", "fc.bias"}, as the file is for 1,000 classes
///
/// load_safetensors() in the way that such files need: a head of another number of classes, or none, leaves
/// the model's as it was initialised; floating-point dtypes are converted; num_batches_tracked may be
/// missing. Whatever was not loaded is named in the result. Throws one line that names the file and the
/// tensors where any other is missing or unexpected (unless strict(false)) or has another shape: the weights
/// are then of another network, and the model stays as it was. Not to be confused with load_classifier(),
/// which reads what this library's programs have trained.
template <class Model>
LoadSafetensorsResult load_pretrained(const std::filesystem::path& path, Model& model,
                                      const LoadPretrainedOptions& options = {}) {
  static_assert(ModuleModel<Model>,
                "mixmatch: load_pretrained needs a module with parameters, not a plain callable");
  mixmatch::detail::SafetensorsReader reader("load_pretrained", path);
  return mixmatch::detail::load_state(
      reader, mixmatch::detail::model_state(model),
      LoadSafetensorsOptions()
          .strict(options.strict())
          .allow_cast(true)
          .head(options.head().empty() ? detail::head_name_of(model) : options.head())
          .batch_counts(false));
}

}  // namespace mixmatch::models
