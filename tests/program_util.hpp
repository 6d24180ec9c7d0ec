#pragma once

// What the tests of example programs share: small data sets on disk, and how a refusal looks.

#include <mixmatch/data/shapes.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "catch.hpp"
#include "subprocess.hpp"
#include "test_util.hpp"

/// Pictures of shapes in CIFAR-10's binary format.
inline void write_records(const std::filesystem::path& path, int64_t count, uint64_t seed) {
  const auto shapes = mixmatch::data::make_shapes(count, seed);
  std::string bytes;
  for (int64_t i = 0; i < count; ++i) {
    bytes += static_cast<char>(shapes.labels[i].item<int64_t>());
    bytes.append(reinterpret_cast<const char*>(shapes.images[i].data_ptr<uint8_t>()), 3072);
  }
  write_file(path, bytes);
}

/// A small data set in CIFAR-10's files, made once.
inline const std::filesystem::path& cifar10_dir() {
  static const TempDir dir;
  static const bool made = [] {
    for (int i = 1; i <= 5; ++i) {
      write_records(dir / ("data_batch_" + std::to_string(i) + ".bin"), 40, static_cast<uint64_t>(i));
    }
    write_records(dir / "test_batch.bin", 30, 6);
    return true;
  }();
  static_cast<void>(made);
  return dir.path();
}

inline std::vector<std::string> with(std::vector<std::string> arguments,
                                     const std::vector<std::string>& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

inline bool has_option(const std::vector<std::string>& arguments, const std::string& name) {
  return std::find(arguments.begin(), arguments.end(), name) != arguments.end();
}

/// A program with the options of a run of a few seconds, but for those that have no effect beside `more`.
inline std::vector<std::string> short_run(const std::string& program, const std::filesystem::path& data,
                                          const std::filesystem::path& out,
                                          const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments{program,
                                     "--data",
                                     data.string(),
                                     "--out",
                                     out.string(),
                                     "--batch",
                                     "6",
                                     "--steps",
                                     "12",
                                     "--eval-every",
                                     "4",
                                     "--log-every",
                                     "1",
                                     "--checkpoint-every",
                                     "3",
                                     "--threads",
                                     "1"};
  if (!has_option(more, "--split")) {
    arguments = with(arguments, {"--labels", "20"});
  }
  if (!has_option(more, "--model")) {
    arguments = with(arguments, {"--depth", "10", "--widen", "1"});
  }
  return with(arguments, more);
}
