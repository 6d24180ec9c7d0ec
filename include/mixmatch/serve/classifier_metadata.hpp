#pragma once

#include <fmt/format.h>
#include <torch/types.h>
#include <mixmatch/data/picture_fit.hpp>
#include <mixmatch/detail/io/parse_number.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/evaluation/confidence_rule.hpp>

#include <charconv>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

// What a file says of the classifier in it, as text by name: a safetensors file's metadata, a TorchScript
// file's extra files, an ONNX model's metadata_props.

namespace mixmatch::training {

using ClassifierMetadata = std::map<std::string, std::string>;

/// Adds a rule to the metadata of a saved classifier: temperature, target_precision and abstain_below, which
/// is "inf" where every prediction abstains and missing where nothing was held out.
inline void add_confidence_rule(ClassifierMetadata& metadata, const ConfidenceRule& rule) {
  metadata["temperature"] = fmt::format("{}", rule.temperature);
  metadata["target_precision"] = fmt::format("{}", rule.target_precision);
  if (rule.threshold.has_value()) {
    metadata["abstain_below"] = fmt::format("{}", *rule.threshold);
  }
}

/// The rule of such metadata; what is missing is as in ConfidenceRule{}. Throws one line that begins with
/// `file` where one of the three is no number or out of range.
inline ConfidenceRule confidence_rule_of(const ClassifierMetadata& metadata, const std::string& file) {
  ConfidenceRule rule;
  const auto number = [&](const std::string& key, double least, double most) -> std::optional<double> {
    const auto found = metadata.find(key);
    if (found == metadata.end()) {
      return std::nullopt;
    }
    const auto value = mixmatch::detail::parse_number<double>(found->second);
    TORCH_CHECK(value.has_value() && *value >= least && *value <= most, file, ": its metadata's \"", key,
                "\" must be a number from ", least, " to ", most, ", got ",
                mixmatch::detail::quote_for_message(found->second));
    return value;
  };
  rule.temperature = number("temperature", 0.05, 20).value_or(rule.temperature);
  rule.target_precision = number("target_precision", 0, 1).value_or(rule.target_precision);
  rule.threshold = number("abstain_below", 0, std::numeric_limits<double>::infinity());
  return rule;
}

/// What whoever gives pictures to a classifier must know: image_size (of the square images, RGB, that it
/// takes), fit, class_0, class_1, …, and the rule for its confidences.
struct ClassifierTerms {
  std::vector<std::string> class_names;
  int64_t image_size = 0;
  ConfidenceRule confidence;
  data::PictureFit fit = data::PictureFit::crop;
};

inline ClassifierMetadata classifier_metadata(const ClassifierTerms& terms) {
  ClassifierMetadata metadata{{"image_size", std::to_string(terms.image_size)},
                              {"fit", data::picture_fit_name(terms.fit)}};
  add_confidence_rule(metadata, terms.confidence);
  for (size_t i = 0; i < terms.class_names.size(); ++i) {
    metadata.emplace("class_" + std::to_string(i), terms.class_names[i]);
  }
  return metadata;
}

namespace detail {

/// A text of such metadata; throws where there is none.
inline std::string metadata_text(const ClassifierMetadata& metadata, const std::string& key,
                                 const std::string& file) {
  const auto found = metadata.find(key);
  TORCH_CHECK(found != metadata.end(), file, " is no classifier of this library: its metadata has no \"", key,
              "\"");
  return found->second;
}

/// A whole number of such metadata; throws where there is none.
inline int64_t metadata_number(const ClassifierMetadata& metadata, const std::string& key,
                               const std::string& file, int64_t least, int64_t most) {
  const std::string digits = metadata_text(metadata, key, file);
  int64_t value = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  TORCH_CHECK(error == std::errc() && end == digits.data() + digits.size() && value >= least && value <= most,
              file, ": its metadata's \"", key, "\" must be a number from ", least, " to ", most, ", got ",
              mixmatch::detail::quote_for_message(digits));
  return value;
}

}  // namespace detail

/// The terms in metadata of a classifier of `classes` classes. Throws one line that begins with `file` where
/// one is missing or no number in range.
inline ClassifierTerms classifier_terms_of(const ClassifierMetadata& metadata, int64_t classes,
                                           const std::string& file) {
  ClassifierTerms terms;
  terms.image_size = detail::metadata_number(metadata, "image_size", file, 1, 16384);
  terms.confidence = confidence_rule_of(metadata, file);
  if (const auto fit = metadata.find("fit"); fit != metadata.end()) {  // older ones have none
    TORCH_CHECK(fit->second == "crop" || fit->second == "letterbox", file,
                ": its metadata's \"fit\" must be crop or letterbox, got ",
                mixmatch::detail::quote_for_message(fit->second));
    terms.fit = data::parse_picture_fit(fit->second);
  }
  for (int64_t i = 0; i < classes; ++i) {
    terms.class_names.push_back(detail::metadata_text(metadata, "class_" + std::to_string(i), file));
  }
  return terms;
}

}  // namespace mixmatch::training
