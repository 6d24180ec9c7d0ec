#pragma once

// Folders of pictures, and examples/own_images on them.

#include <mixmatch/run/png.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "program_util.hpp"

/// `count` pictures of noise in a folder, after `first` ones that no other picture equals.
inline void write_noise(const std::filesystem::path& folder, int64_t first, int64_t count,
                        const std::string& suffix = "") {
  std::filesystem::create_directories(folder);
  for (int64_t i = first; i < first + count; ++i) {
    torch::manual_seed(static_cast<uint64_t>(i));
    write_file(folder / (std::to_string(i) + suffix + ".png"),
               mixmatch::training::encode_png(torch::randint(0, 256, {3, 16, 16}, torch::kByte)));
  }
}

/// Two classes of eight, names that need care among them, and ten pictures without a label.
inline void write_folder(const std::filesystem::path& dir) {
  write_noise(dir / "labeled" / "c a t", 0, 8, " \"x\"");
  write_noise(dir / "labeled" / "dög", 20, 7);
  write_noise(dir / "labeled" / "dög", 27, 1, "line\nbreak");
  write_noise(dir / "unlabeled", 40, 10);
}

inline Finished train_on(const std::filesystem::path& data, const std::filesystem::path& out,
                         const std::vector<std::string>& more = {}) {
  const std::vector<std::string> width = {"--widen", "1"};
  return ::run(with(
      with({MIXMATCH_OWN_IMAGES, "--data", data.string(), "--out", out.string(), "--steps", "2", "--batch",
            "4", "--size", "16", "--log-every", "1", "--threads", "1"},
           has_option(more, "--model") || has_option(more, "--from") ? std::vector<std::string>() : width),
      more));
}
