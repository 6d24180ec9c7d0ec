#include <mixmatch/data/data_checksum.hpp>

#include <fmt/format.h>

#include <string>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::data::data_checksum;
using mixmatch::data::ImageDataset;
using mixmatch::data::ImagePool;

namespace {

ImageDataset small_set(int64_t count) {
  const auto images =
      torch::arange(count * 12, torch::kLong).remainder(251).to(torch::kByte).view({count, 3, 2, 2});
  return {images, torch::arange(count, torch::kLong).remainder(3), {"a", "b", "c"}};
}

std::string checksum(const ImageDataset& set, int64_t most_images = 4096) {
  return data_checksum(ImagePool({set}), most_images);
}

}  // namespace

TEST_CASE("data_checksum: CRC-32C of sizes, class names, labels and images") {
  const ImageDataset one{torch::full({1, 1, 1, 1}, 7, torch::kByte), torch::zeros({1}, torch::kLong), {"x"}};
  const std::string bytes = std::string("1 1x") + std::string(9, '\0') + "\x07";
  CHECK(checksum(one) == fmt::format("{:08x}", slow_crc(bytes, 0x82F63B78U)));
}

TEST_CASE("data_checksum: the same for the same data, whatever the layout and the sets it comes from") {
  const auto set = small_set(300);
  auto other_layout = set;
  other_layout.images = set.images.contiguous(torch::MemoryFormat::ChannelsLast);
  CHECK(checksum(other_layout) == checksum(set));
  const auto part = [&](int64_t begin, int64_t end) {
    return ImageDataset{set.images.slice(0, begin, end), set.labels.slice(0, begin, end), set.class_names};
  };
  CHECK(data_checksum(ImagePool({part(0, 100), part(100, 300)})) == checksum(set));
}

TEST_CASE("data_checksum: any change shows") {
  const auto set = small_set(300);
  auto changed = set;
  changed.labels = set.labels.clone();
  changed.labels[299] = 1;
  CHECK(checksum(changed) != checksum(set));
  changed = set;
  changed.images = set.images.clone();
  changed.images[299][2][1][1] = 250;
  CHECK(checksum(changed) != checksum(set));
  changed = set;
  changed.class_names = {"ab", "", "c"};
  CHECK(checksum(changed) != checksum(set));
  CHECK(checksum(small_set(299)) != checksum(set));

  // Of many images a sample: the first is in it.
  changed = set;
  changed.images = set.images.clone();
  changed.images[0][0][0][0] = 250;
  CHECK(checksum(changed, 7) != checksum(set, 7));
  CHECK_THAT(error_of([&] { checksum(set, 0); }), contains("most_images must be >= 1, got 0"));
}
