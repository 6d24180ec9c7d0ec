#pragma once

#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/detail/io/data_files.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::data {

namespace detail {

/// One of the label bytes with which a record begins.
struct CifarLabel {
  const char* name;  ///< "" or with a blank at its end, for errors
  int64_t classes;
};

/// The records of the files one after the other: label bytes, then 1,024 bytes each of red, green and blue.
/// `wanted` is the label byte that becomes the data set's label; all are checked. Class names are the
/// caller's.
inline ImageDataset read_cifar_records(const char* loader, const std::vector<std::filesystem::path>& paths,
                                       const std::vector<CifarLabel>& label_bytes, size_t wanted) {
  constexpr int64_t pixels = 3 * 32 * 32;
  constexpr int64_t records_at_once = 4096;  // so that the file is never in memory twice
  const auto labels = static_cast<int64_t>(label_bytes.size());
  const int64_t record_bytes = labels + pixels;
  std::vector<int64_t> counts;
  int64_t total = 0;
  for (const auto& path : paths) {
    counts.push_back(mixmatch::detail::count_records(loader, path, record_bytes, "of the binary version"));
    total += counts.back();
  }
  ImageDataset dataset;
  dataset.images = at::empty({total, 3, 32, 32}, at::kByte);
  dataset.labels = at::empty({total}, at::kLong);
  const at::Tensor buffer = at::empty({std::min(total, records_at_once), record_bytes}, at::kByte);
  int64_t row = 0;
  for (size_t i = 0; i < paths.size(); ++i) {
    mixmatch::detail::InputFile file(loader, paths[i]);
    for (int64_t first = 0; first < counts[i]; first += records_at_once) {
      const int64_t count = std::min(records_at_once, counts[i] - first);
      const at::Tensor records = buffer.narrow(0, 0, count);
      const auto* bytes = records.data_ptr<uint8_t>();
      file.read(records.data_ptr<uint8_t>(), records.numel());
      for (int64_t record = 0; record < count; ++record) {
        for (int64_t k = 0; k < labels; ++k) {
          const auto& expected = label_bytes[static_cast<size_t>(k)];
          const int label = bytes[record * record_bytes + k];
          TORCH_CHECK(label < expected.classes, loader, ": ", mixmatch::detail::printable(paths[i]),
                      " record ", first + record, " has ", expected.name, "label ", label, ", expected 0 to ",
                      expected.classes - 1);
        }
      }
      dataset.labels.narrow(0, row, count).copy_(records.select(1, static_cast<int64_t>(wanted)));
      dataset.images.view({total, pixels}).narrow(0, row, count).copy_(records.narrow(1, labels, pixels));
      row += count;
    }
  }
  return dataset;
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
  constexpr const char* loader = "load_cifar10";
  TORCH_CHECK(split == Split::train || split == Split::test, loader,
              ": split must be Split::train or Split::test");
  const auto files = split == Split::test ? std::vector<std::string>{"test_batch.bin"}
                                          : std::vector<std::string>{"data_batch_1.bin", "data_batch_2.bin",
                                                                     "data_batch_3.bin", "data_batch_4.bin",
                                                                     "data_batch_5.bin"};
  const auto place =
      mixmatch::detail::find_data_files(loader, dir, "cifar-10-batches-bin", files,
                                        "download the \"CIFAR-10 binary version\" from "
                                        "https://www.cs.toronto.edu/~kriz/cifar.html and unpack it "
                                        "there (tar xzf cifar-10-binary.tar.gz)");
  std::vector<std::filesystem::path> paths;
  for (const auto& file : files) {
    paths.push_back(place / file);
  }
  auto names = mixmatch::detail::read_class_names(
      loader, place / "batches.meta.txt",
      {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"});
  auto dataset = detail::read_cifar_records(loader, paths, {{"", 10}}, 0);
  dataset.class_names = std::move(names);
  return dataset;
}

}  // namespace mixmatch::data
