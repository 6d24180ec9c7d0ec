#pragma once

#include <fmt/format.h>
#include <mixmatch/detail/io/parse_number.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/evaluation/confidence_rule.hpp>
#include <mixmatch/io/safetensors.hpp>

#include <limits>
#include <string>

namespace mixmatch::training {

/// Adds a rule to the metadata of a saved classifier: temperature, target_precision and abstain_below, which
/// is "inf" where every prediction abstains and missing where nothing was held out.
inline void add_confidence_rule(SafetensorsMetadata& metadata, const ConfidenceRule& rule) {
  metadata["temperature"] = fmt::format("{}", rule.temperature);
  metadata["target_precision"] = fmt::format("{}", rule.target_precision);
  if (rule.threshold.has_value()) {
    metadata["abstain_below"] = fmt::format("{}", *rule.threshold);
  }
}

/// The rule of such metadata; what is missing is as in ConfidenceRule{}. Throws one line that begins with
/// `file` where one of the three is no number or out of range.
inline ConfidenceRule confidence_rule_of(const SafetensorsMetadata& metadata, const std::string& file) {
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

}  // namespace mixmatch::training
