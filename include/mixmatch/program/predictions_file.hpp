#pragma once

#include <fmt/format.h>
#include <torch/types.h>
#include <mixmatch/detail/io/csv.hpp>
#include <mixmatch/io/atomic_file.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace mixmatch::training {

using torch::Tensor;

namespace detail {

inline void check_predictions(const std::vector<std::string>& files, const Tensor& probabilities,
                              const std::vector<std::string>& class_names) {
  TORCH_CHECK(probabilities.defined() && probabilities.dim() == 2 &&
                  probabilities.size(0) == static_cast<int64_t>(files.size()) &&
                  probabilities.size(1) == static_cast<int64_t>(class_names.size()) && !class_names.empty(),
              "predictions: probabilities must be [", files.size(), ", ", class_names.size(), "], got ",
              probabilities.defined() ? c10::str(probabilities.sizes()) : std::string("undefined"));
}

}  // namespace detail

/// A CSV (RFC 4180) of lines `file,class,confidence` below a header, in the order of the rows.
///
/// `probabilities`: [N, L], any device; the class is the largest entry's. `files`: N names. Throws on other
/// shapes.
inline std::string format_predictions(const std::vector<std::string>& files, const Tensor& probabilities,
                                      const std::vector<std::string>& class_names) {
  detail::check_predictions(files, probabilities, class_names);
  const auto [confidence, predicted] = probabilities.cpu().to(at::kDouble).max(1);
  std::string text = "file,class,confidence\n";
  for (size_t i = 0; i < files.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    text += fmt::format(
        "{},{},{:.6g}\n", mixmatch::detail::csv_cell(files[i]),
        mixmatch::detail::csv_cell(class_names[static_cast<size_t>(predicted[row].item<int64_t>())]),
        confidence[row].item<double>());
  }
  return text;
}

/// Writes format_predictions() with the least confident first (a NaN before all), the order in which a person
/// would review them; equals in the order given. Throws also "cannot write PATH: REASON".
inline void write_predictions(const std::filesystem::path& path, const std::vector<std::string>& files,
                              const Tensor& probabilities, const std::vector<std::string>& class_names) {
  detail::check_predictions(files, probabilities, class_names);
  const Tensor all = probabilities.cpu();
  const Tensor confidence = std::get<0>(all.max(1));
  const Tensor order = std::get<1>(
      confidence.masked_fill(confidence.isnan(), -1).sort(/*stable=*/true, /*dim=*/0, /*descending=*/false));
  std::vector<std::string> names;
  for (int64_t i = 0; i < order.numel(); ++i) {
    names.push_back(files[static_cast<size_t>(order[i].item<int64_t>())]);
  }
  write_file_atomically(path, format_predictions(names, all.index_select(0, order), class_names));
}

}  // namespace mixmatch::training
