#pragma once

#include <fmt/format.h>
#include <torch/types.h>
#include <mixmatch/detail/io/csv.hpp>
#include <mixmatch/evaluation/confidence_rule.hpp>
#include <mixmatch/io/atomic_file.hpp>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace mixmatch::training {

using torch::Tensor;

/// Pictures that were classified.
struct Predictions {
  std::vector<std::string> files;
  Tensor probabilities;                  ///< [N, L], any device, as the model gave them
  std::vector<std::string> class_names;  ///< L names
  ConfidenceRule rule = {};              ///< how their confidence is told
  /// Where each file is, for whoever opens it from the directory that the program runs in; without them
  /// there is no such column, and none for a person's labels.
  std::optional<std::vector<std::string>> paths = std::nullopt;
};

namespace detail {

inline void check_predictions(const Predictions& p) {
  TORCH_CHECK(p.probabilities.defined() && p.probabilities.dim() == 2 &&
                  p.probabilities.size(0) == static_cast<int64_t>(p.files.size()) &&
                  p.probabilities.size(1) == static_cast<int64_t>(p.class_names.size()) &&
                  !p.class_names.empty(),
              "predictions: probabilities must be [", p.files.size(), ", ", p.class_names.size(), "], got ",
              p.probabilities.defined() ? c10::str(p.probabilities.sizes()) : std::string("undefined"));
  TORCH_CHECK(!p.paths.has_value() || p.paths->size() == p.files.size(),
              "predictions: paths must be one a file or none, got ", p.paths->size(), " for ", p.files.size(),
              " files");
}

}  // namespace detail

/// A CSV (RFC 4180) with a header and a line a file, in the order of the rows:
///
///     file,class,confidence,second_class,margin,abstain[,path,label]
///
/// `class` is the largest entry's, `second_class` the next one's, empty where there is but one class.
/// `confidence` is the probability of the class at the rule's temperature (scale_temperature), `margin` what
/// it is above the second's. `abstain` is "no" where the confidence reaches the rule's threshold, "yes" where
/// it does not, and empty where there is no threshold. `path`, and `label`, which is empty for a person to
/// fill in (data::read_label_file), are there where p.paths is. Throws on other shapes.
inline std::string format_predictions(const Predictions& p) {
  detail::check_predictions(p);
  const Tensor scaled = scale_temperature(p.probabilities.cpu(), p.rule.temperature);
  const bool has_second = scaled.size(1) > 1;
  const auto [confidence, predicted] = scaled.sort(/*stable=*/true, /*dim=*/1, /*descending=*/true);
  std::string text = "file,class,confidence,second_class,margin,abstain";
  text += p.paths.has_value() ? ",path,label\n" : "\n";
  const auto name = [&](const Tensor& index) {
    return mixmatch::detail::csv_cell(p.class_names[static_cast<size_t>(index.item<int64_t>())]);
  };
  for (size_t i = 0; i < p.files.size(); ++i) {
    const Tensor sure = confidence[static_cast<int64_t>(i)], classes = predicted[static_cast<int64_t>(i)];
    const auto largest = sure[0].item<double>();
    text += fmt::format("{},{},{:.6g},", mixmatch::detail::csv_cell(p.files[i]), name(classes[0]), largest);
    text += !has_second ? std::string(",")
                        : fmt::format("{},{:.6g}", name(classes[1]), largest - sure[1].item<double>());
    text += !p.rule.threshold.has_value() ? "," : largest >= *p.rule.threshold ? ",no" : ",yes";
    if (p.paths.has_value()) {
      text += "," + mixmatch::detail::csv_cell((*p.paths)[i]) + ",";
    }
    text += "\n";
  }
  return text;
}

/// Writes format_predictions() with the rows in that order, int64 [N], each once. Throws also "cannot write
/// PATH: REASON".
inline void write_predictions(const std::filesystem::path& path, const Predictions& p, const Tensor& order) {
  detail::check_predictions(p);
  Predictions sorted{{}, p.probabilities.cpu().index_select(0, order), p.class_names, p.rule, p.paths};
  for (int64_t i = 0; i < order.numel(); ++i) {
    const auto row = static_cast<size_t>(order[i].item<int64_t>());
    sorted.files.push_back(p.files[row]);
    if (p.paths.has_value()) {
      (*sorted.paths)[static_cast<size_t>(i)] = (*p.paths)[row];
    }
  }
  write_file_atomically(path, format_predictions(sorted));
}

/// The same with the least confident first (a NaN before all); equals in the order given.
inline void write_predictions(const std::filesystem::path& path, const Predictions& p) {
  detail::check_predictions(p);
  const Tensor confidence = scale_temperature(p.probabilities.cpu(), p.rule.temperature).amax(1);
  write_predictions(path, p,
                    std::get<1>(confidence.masked_fill(confidence.isnan(), -1)
                                    .sort(/*stable=*/true, /*dim=*/0, /*descending=*/false)));
}

}  // namespace mixmatch::training
