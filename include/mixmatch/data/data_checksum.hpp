#pragma once

#include <mixmatch/data/image_pool.hpp>
#include <mixmatch/detail/io/crc32c.hpp>
#include <mixmatch/detail/io/hex.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

namespace mixmatch::data {

/// CRC-32C, as eight hexadecimal digits, of what a data set is: number and size of images, classes, labels,
/// and the images themselves, of a large set `most_images` evenly spaced ones. Equal on every device and
/// machine, and however the images lie in memory. For a run to notice that it would go on with other data.
///
/// Images that have a source are not looked at, but the source is asked: of pictures in files it sees names,
/// lengths, and of evenly spaced ones how they begin and end (PictureCache::checksum), whether they are in
/// memory or decoded on demand.
inline std::string data_checksum(const ImagePool& pool, int64_t most_images = 4096) {
  TORCH_CHECK(most_images >= 1, "data_checksum: most_images must be >= 1, got ", most_images);
  uint32_t crc = 0;
  const auto add = [&crc](std::string_view bytes) { crc = mixmatch::detail::crc32c(bytes, crc); };
  const auto add_tensor = [&add](const Tensor& tensor) {
    const Tensor plain = tensor.cpu().contiguous();
    add({static_cast<const char*>(plain.data_ptr()), plain.nbytes()});
  };
  add(std::to_string(pool.size()) + " " + std::to_string(pool.image_size()));
  for (const auto& name : pool.class_names) {
    add(name);
    add({"", 1});
  }
  add_tensor(pool.labels);
  constexpr int64_t batch = 256;  // of mapped images only a batch is in memory
  const int64_t images = std::min(pool.size(), most_images);
  Tensor has_source = at::zeros({pool.size()}, at::kBool);
  int64_t first = 0;
  for (const auto& set : pool.sets()) {
    if (set.source != nullptr) {
      add(mixmatch::detail::hex(set.source->checksum(
          set.source_rows.defined() ? set.source_rows : at::arange(set.source->size(), at::kLong))));
      has_source.narrow(0, first, set.size()).fill_(true);
    }
    first += set.size();
  }
  for (int64_t begin = 0; begin < images; begin += batch) {
    const Tensor numbers = at::arange(begin, std::min(begin + batch, images), at::kLong);
    const Tensor rows = numbers.mul(pool.size()).div(images, "floor");
    add_tensor(pool.gather(rows.masked_select(has_source.index_select(0, rows).logical_not())));
  }
  return mixmatch::detail::hex(crc);
}

}  // namespace mixmatch::data
