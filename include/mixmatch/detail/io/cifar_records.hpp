#pragma once

#include <torch/types.h>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/detail/io/data_files.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <vector>

namespace mixmatch::detail {

/// One of the label bytes with which a record begins.
struct CifarLabel {
  const char* name;  ///< "" or with a blank at its end, for errors
  int64_t classes;
};

/// The records of the files one after the other: label bytes, then 1,024 bytes each of red, green and blue.
/// `wanted` is the label byte that becomes the data set's label; all are checked. Class names are the
/// caller's.
inline data::ImageDataset read_cifar_records(const char* loader,
                                             const std::vector<std::filesystem::path>& paths,
                                             const std::vector<CifarLabel>& label_bytes, size_t wanted) {
  constexpr int64_t pixels = 3 * 32 * 32;
  constexpr int64_t records_at_once = 4096;  // so that the file is never in memory twice
  const auto labels = static_cast<int64_t>(label_bytes.size());
  const int64_t record_bytes = labels + pixels;
  std::vector<int64_t> counts;
  int64_t total = 0;
  for (const auto& path : paths) {
    counts.push_back(count_records(loader, path, record_bytes, "of the binary version"));
    total += counts.back();
  }
  data::ImageDataset dataset;
  dataset.images = at::empty({total, 3, 32, 32}, at::kByte);
  dataset.labels = at::empty({total}, at::kLong);
  const at::Tensor buffer = at::empty({std::min(total, records_at_once), record_bytes}, at::kByte);
  int64_t row = 0;
  for (size_t i = 0; i < paths.size(); ++i) {
    InputFile file(loader, paths[i]);
    for (int64_t first = 0; first < counts[i]; first += records_at_once) {
      const int64_t count = std::min(records_at_once, counts[i] - first);
      const at::Tensor records = buffer.narrow(0, 0, count);
      const auto* bytes = records.data_ptr<uint8_t>();
      file.read(records.data_ptr<uint8_t>(), records.numel());
      for (int64_t record = 0; record < count; ++record) {
        for (int64_t k = 0; k < labels; ++k) {
          const auto& expected = label_bytes[static_cast<size_t>(k)];
          const int label = bytes[record * record_bytes + k];
          TORCH_CHECK(label < expected.classes, loader, ": ", printable(paths[i]), " record ", first + record,
                      " has ", expected.name, "label ", label, ", expected 0 to ", expected.classes - 1);
        }
      }
      dataset.labels.narrow(0, row, count).copy_(records.select(1, static_cast<int64_t>(wanted)));
      dataset.images.view({total, pixels}).narrow(0, row, count).copy_(records.narrow(1, labels, pixels));
      row += count;
    }
  }
  return dataset;
}

}  // namespace mixmatch::detail
