#pragma once

#include <torch/types.h>
#include <mixmatch/data/image_dataset.hpp>

#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace mixmatch::data {

namespace detail {

inline constexpr int64_t cifar10_classes = 10;
inline constexpr int64_t cifar10_pixels = 3 * 32 * 32;
inline constexpr int64_t cifar10_record = 1 + cifar10_pixels;

inline std::vector<std::string> cifar10_files(Split split) {
  TORCH_CHECK(split == Split::train || split == Split::test,
              "load_cifar10: split must be Split::train or Split::test");
  if (split == Split::test) {
    return {"test_batch.bin"};
  }
  return {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"};
}

/// `dir` or `dir`/cifar-10-batches-bin, whichever holds one of the files.
inline std::filesystem::path find_cifar10(const std::filesystem::path& dir,
                                          const std::vector<std::string>& files) {
  const std::vector<std::filesystem::path> places{dir, dir / "cifar-10-batches-bin"};
  for (const auto& place : places) {
    for (const auto& file : files) {
      std::error_code ignored;
      if (std::filesystem::exists(place / file, ignored)) {
        return place;
      }
    }
  }
  TORCH_CHECK(false, "load_cifar10: no ", files.front(), " in ", places[0].string(), " or ",
              places[1].string(),
              "; download the \"CIFAR-10 binary version\" from https://www.cs.toronto.edu/~kriz/cifar.html "
              "and unpack it "
              "there (tar xzf cifar-10-binary.tar.gz)");
}

/// The number of whole records in the file.
inline int64_t count_cifar10_records(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  TORCH_CHECK(std::filesystem::exists(status), "load_cifar10: ", path.string(),
              " is missing, though other files of the set are there; unpack the archive again");
  TORCH_CHECK(std::filesystem::is_regular_file(status), "load_cifar10: ", path.string(),
              " is not a regular file");
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path, error));
  TORCH_CHECK(!error, "load_cifar10: cannot read ", path.string(), ": ", error.message());
  TORCH_CHECK(size > 0, "load_cifar10: ", path.string(), " is empty");
  TORCH_CHECK(size % cifar10_record == 0, "load_cifar10: ", path.string(), " has ", size,
              " bytes, which is no multiple of a record's ", cifar10_record,
              ": it is cut short, or not of the binary version");
  return size / cifar10_record;
}

/// The file's records into rows of `images` and `labels` from `first` on.
inline void read_cifar10_file(const std::filesystem::path& path, int64_t first, int64_t count, Tensor& images,
                              Tensor& labels) {
  Tensor records = at::empty({count, cifar10_record}, at::kByte);
  std::ifstream in(path, std::ios::binary);
  in.read(reinterpret_cast<char*>(records.data_ptr<uint8_t>()),
          static_cast<std::streamsize>(records.numel()));
  TORCH_CHECK(in.good(), "load_cifar10: cannot read ", path.string());
  const auto* bytes = records.data_ptr<uint8_t>();
  for (int64_t record = 0; record < count; ++record) {
    const int label = bytes[record * cifar10_record];
    TORCH_CHECK(label < cifar10_classes, "load_cifar10: ", path.string(), " record ", record, " has label ",
                label, ", expected 0 to ", cifar10_classes - 1);
  }
  labels.narrow(0, first, count).copy_(records.select(1, 0));
  images.view({-1, cifar10_pixels}).narrow(0, first, count).copy_(records.narrow(1, 1, cifar10_pixels));
}

/// The lines of batches.meta.txt, or the standard names where there is no such file.
inline std::vector<std::string> read_cifar10_names(const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    return {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"};
  }
  std::ifstream in(path);
  std::vector<std::string> names;
  for (std::string line; std::getline(in, line);) {
    line.erase(line.find_last_not_of(" \t\r") + 1);
    if (!line.empty()) {
      names.push_back(line);
    }
  }
  TORCH_CHECK(static_cast<int64_t>(names.size()) == cifar10_classes, "load_cifar10: ", path.string(),
              " must hold ", cifar10_classes, " class names, one a line, got ", names.size());
  return names;
}

}  // namespace detail

/// CIFAR-10 (Krizhevsky 2009) from its binary version: 3 x 32 x 32 images in the files' order, ten classes.
///
/// Reads data_batch_1.bin … data_batch_5.bin (Split::train) or test_batch.bin (Split::test), and no file of
/// the other split, from `dir` or `dir`/cifar-10-batches-bin; class names from batches.meta.txt beside them,
/// if it is there. A file may hold any positive number of whole records (one label byte, then 1,024 bytes
/// each of red, green and blue). Throws c10::Error with one line that names the file: nothing found, one
/// missing, not readable, empty, cut short, a label above 9.
inline ImageDataset load_cifar10(const std::filesystem::path& dir, Split split) {
  const auto files = detail::cifar10_files(split);
  const auto place = detail::find_cifar10(dir, files);
  std::vector<int64_t> counts;
  int64_t total = 0;
  for (const auto& file : files) {
    counts.push_back(detail::count_cifar10_records(place / file));
    total += counts.back();
  }
  ImageDataset dataset;
  dataset.class_names = detail::read_cifar10_names(place / "batches.meta.txt");
  dataset.images = at::empty({total, 3, 32, 32}, at::kByte);
  dataset.labels = at::empty({total}, at::kLong);
  int64_t first = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    detail::read_cifar10_file(place / files[i], first, counts[i], dataset.images, dataset.labels);
    first += counts[i];
  }
  return dataset;
}

}  // namespace mixmatch::data
