#pragma once

#include <c10/util/Exception.h>
#include <mixmatch/atomic_file.hpp>
#include <mixmatch/data/label_split.hpp>

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace mixmatch::data {

/// Writes a split as text that people can read, exchange and edit:
///
///     mixmatch split of 50000 images
///     labeled 12 105 …
///     validation 3
///     unlabeled all others
///
/// or the unlabeled rows themselves where they are not all others. Throws "cannot write PATH: REASON".
inline void save_split(const std::filesystem::path& path, const SslSplit& split, int64_t num_images) {
  const auto line = [](const std::string& name, const Tensor& rows) {
    std::string text = name;
    const Tensor on_cpu = rows.cpu().contiguous();
    for (int64_t i = 0; i < on_cpu.numel(); ++i) {
      text += " " + std::to_string(on_cpu.data_ptr<int64_t>()[i]);
    }
    return text + "\n";
  };
  const bool whole = split.labeled.numel() + split.validation.numel() + split.unlabeled.numel() == num_images;
  write_file_atomically(
      path, "mixmatch split of " + std::to_string(num_images) + " images\n" + line("labeled", split.labeled) +
                line("validation", split.validation) +
                (whole ? std::string("unlabeled all others\n") : line("unlabeled", split.unlabeled)));
}

/// Reads what save_split() wrote, for a data set of `num_images`. Throws one line that names the file: not
/// readable, no split, of another number of images, a row twice or out of range, no labeled row.
inline SslSplit load_split(const std::filesystem::path& path, int64_t num_images) {
  std::ifstream in(path);
  std::string header;
  TORCH_CHECK(in && std::getline(in, header), "cannot read the split file ", path.string());
  int64_t size = -1;
  {
    std::istringstream words(header);
    std::string mixmatch, split, of, images;
    words >> mixmatch >> split >> of >> size >> images;
    TORCH_CHECK(mixmatch == "mixmatch" && split == "split" && of == "of" && images == "images", path.string(),
                " is no split file: it does not begin with \"mixmatch split of N images\"");
  }
  TORCH_CHECK(size == num_images, path.string(), " splits ", size, " images, the data set has ", num_images);
  std::vector<bool> used(static_cast<size_t>(num_images), false);
  std::vector<int64_t> labeled, validation, unlabeled;
  bool all_others = false;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string name;
    if (!(words >> name)) {
      continue;
    }
    TORCH_CHECK(name == "labeled" || name == "validation" || name == "unlabeled", path.string(),
                ": expected labeled, validation or unlabeled, got \"", name, "\"");
    auto& rows = name == "labeled" ? labeled : name == "validation" ? validation : unlabeled;
    if (line.starts_with("unlabeled all others")) {
      all_others = true;
      continue;
    }
    for (std::string word; words >> word;) {
      int64_t row = -1;
      const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), row);
      TORCH_CHECK(error == std::errc() && end == word.data() + word.size() && row >= 0 && row < num_images,
                  path.string(), ": ", name, " has \"", word, "\", expected a row in [0, ", num_images, ")");
      TORCH_CHECK(!used[static_cast<size_t>(row)], path.string(), ": row ", row, " stands there twice");
      used[static_cast<size_t>(row)] = true;
      rows.push_back(row);
    }
  }
  TORCH_CHECK(!labeled.empty(), path.string(), " has no labeled rows");
  if (all_others) {
    TORCH_CHECK(unlabeled.empty(), path.string(), " has unlabeled rows beside \"unlabeled all others\"");
    for (int64_t row = 0; row < num_images; ++row) {
      if (!used[static_cast<size_t>(row)]) {
        unlabeled.push_back(row);
      }
    }
  }
  return {detail::ascending(std::move(labeled)), detail::ascending(std::move(unlabeled)),
          detail::ascending(std::move(validation))};
}

}  // namespace mixmatch::data
