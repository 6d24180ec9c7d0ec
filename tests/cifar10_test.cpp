#include <mixmatch/data/cifar10.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <filesystem>
#include <string>

using mixmatch::data::ImageDataset;
using mixmatch::data::load_cifar10;
using mixmatch::data::Split;
namespace fs = std::filesystem;

namespace {

constexpr size_t kRecord = 3073;

/// `count` records: labels (first + i) % 10, pixel k of record i is (k + 7 * (first + i)) % 256.
std::string records(size_t first, size_t count) {
  std::string bytes;
  for (size_t i = first; i < first + count; ++i) {
    bytes.push_back(static_cast<char>(i % 10));
    for (size_t k = 0; k < kRecord - 1; ++k) {
      bytes.push_back(static_cast<char>((k + 7 * i) % 256));
    }
  }
  return bytes;
}

std::string batch_name(size_t number) { return "data_batch_" + std::to_string(number) + ".bin"; }

/// File number i holds i records; the test file three.
void write_set(const fs::path& dir) {
  fs::create_directories(dir);
  size_t first = 0;
  for (size_t number = 1; number <= 5; ++number) {
    write_file(dir / batch_name(number), records(first, number));
    first += number;
  }
  write_file(dir / "test_batch.bin", records(100, 3));
}

std::string train_error(const fs::path& dir) {
  return error_of([&] { load_cifar10(dir, Split::train); });
}

void check_load_message(const std::string& message) {
  CHECK(message.find("load_cifar10") == 0);
  CHECK(message.find('\n') == std::string::npos);
}

}  // namespace

TEST_CASE("load_cifar10 reads files of different length in order") {
  const auto dir = temp_dir();
  write_set(dir.path());
  const ImageDataset train = load_cifar10(dir.path(), Split::train);
  REQUIRE(train.size() == 15);
  CHECK(train.num_classes() == 10);
  CHECK(train.class_names.front() == "airplane");
  CHECK(train.class_names.back() == "truck");
  CHECK(train.images.scalar_type() == at::kByte);
  CHECK(train.images.sizes() == at::IntArrayRef({15, 3, 32, 32}));
  CHECK(train.labels.scalar_type() == at::kLong);
  CHECK(train.labels.equal(at::arange(15, at::kLong).remainder(10)));
  for (int64_t i = 0; i < 15; ++i) {
    const auto expected = (at::arange(3072, at::kLong) + 7 * i).remainder(256).view({3, 32, 32});
    CHECK(train.images[i].to(at::kLong).equal(expected));
  }
  const ImageDataset test = load_cifar10(dir.path(), Split::test);
  CHECK(test.size() == 3);
  CHECK(test.labels.equal(at::arange(3, at::kLong)));
}

TEST_CASE("load_cifar10 finds the unpacked archive's folder and reads the class names beside the files") {
  const auto dir = temp_dir();
  write_set(dir / "cifar-10-batches-bin");
  write_file(dir / "cifar-10-batches-bin" / "batches.meta.txt", "a\nb\nc\nd\ne\nf\ng\nh\ni\r\nj j\n\n");
  const ImageDataset train = load_cifar10(dir.path(), Split::train);
  CHECK(train.size() == 15);
  CHECK(train.class_names == std::vector<std::string>{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j j"});
  write_file(dir / "cifar-10-batches-bin" / "batches.meta.txt", "a\nb\n");
  const auto message = train_error(dir.path());
  check_load_message(message);
  CHECK_THAT(message, contains("batches.meta.txt"));
  CHECK_THAT(message, contains("got 2"));
}

TEST_CASE("load_cifar10 touches only the files of the split") {
  const auto dir = temp_dir();
  write_file(dir / "test_batch.bin", records(0, 2));
  CHECK(load_cifar10(dir.path(), Split::test).size() == 2);
  write_set(dir.path());
  write_file(dir / "test_batch.bin", "cut");
  CHECK(load_cifar10(dir.path(), Split::train).size() == 15);
}

TEST_CASE("load_cifar10 says where it looked and how to get the files") {
  const auto dir = temp_dir();
  for (const auto& place : {dir.path(), dir / "nowhere"}) {
    const auto message = train_error(place);
    check_load_message(message);
    CHECK_THAT(message, contains("no data_batch_1.bin in " + place.string()));
    CHECK_THAT(message, contains((place / "cifar-10-batches-bin").string()));
    CHECK_THAT(message, contains("https://www.cs.toronto.edu/~kriz/cifar.html"));
    CHECK_THAT(message, contains("binary version"));
  }
  const auto message = error_of([&] { load_cifar10(dir.path(), Split::test); });
  CHECK_THAT(message, contains("no test_batch.bin"));
}

TEST_CASE("load_cifar10 names the file that is missing or bad") {
  const auto dir = temp_dir();
  write_set(dir.path());
  const auto name = batch_name(4);
  const auto path = dir / name;

  SECTION("missing") {
    fs::remove(path);
    const auto message = train_error(dir.path());
    check_load_message(message);
    CHECK_THAT(message, contains(path.string() + " is missing"));
  }
  SECTION("the first one missing") {
    fs::remove(dir / batch_name(1));
    CHECK_THAT(train_error(dir.path()), contains(batch_name(1) + " is missing"));
  }
  SECTION("empty") {
    write_file(path, "");
    const auto message = train_error(dir.path());
    check_load_message(message);
    CHECK_THAT(message, contains(path.string() + " is empty"));
  }
  SECTION("cut short") {
    write_file(path, records(0, 2).substr(0, 2 * kRecord - 1));
    const auto message = train_error(dir.path());
    check_load_message(message);
    CHECK_THAT(message, contains(path.string() + " has 6145 bytes"));
  }
  SECTION("a label above 9") {
    auto bytes = records(0, 3);
    bytes[2 * kRecord] = 10;
    write_file(path, bytes);
    const auto message = train_error(dir.path());
    check_load_message(message);
    CHECK_THAT(message, contains(path.string() + " record 2 has label 10"));
    bytes[2 * kRecord] = static_cast<char>(255);
    write_file(path, bytes);
    CHECK_THAT(train_error(dir.path()), contains("label 255"));
  }
  SECTION("a directory") {
    fs::remove(path);
    fs::create_directory(path);
    const auto message = train_error(dir.path());
    check_load_message(message);
    CHECK_THAT(message, contains(path.string() + " is not a regular file"));
  }
}

TEST_CASE("load_cifar10 knows two splits") {
  const auto dir = temp_dir();
  CHECK_THAT(error_of([&] { load_cifar10(dir.path(), Split::unlabeled); }),
             contains("Split::train or Split::test"));
}

TEST_CASE("take copies rows with their labels") {
  const ImageDataset all{at::arange(24, at::kByte).view({6, 1, 2, 2}), at::arange(6, at::kLong), {"a", "b"}};
  const ImageDataset some = mixmatch::data::take(all, at::tensor({4, 0, 4}, at::kLong));
  CHECK(some.size() == 3);
  CHECK(some.labels.equal(at::tensor({4, 0, 4}, at::kLong)));
  CHECK(some.images[0].equal(all.images[4]));
  CHECK(some.images[1].equal(all.images[0]));
  CHECK(some.class_names == all.class_names);
  CHECK(ImageDataset{}.size() == 0);
}

TEST_CASE("gather_images keeps dtype and layout") {
  const auto images = at::randint(256, {5, 3, 4, 6}, at::kByte);
  const auto rows = at::tensor({3, 3, 1}, at::kLong);
  const auto plain = mixmatch::data::gather_images(images, rows);
  CHECK(plain.is_contiguous());
  CHECK(plain.scalar_type() == at::kByte);
  CHECK(plain.equal(images.index({rows})));
  const auto last = mixmatch::data::gather_images(images.contiguous(at::MemoryFormat::ChannelsLast), rows);
  CHECK(last.is_contiguous(at::MemoryFormat::ChannelsLast));
  CHECK(last.equal(plain));
  CHECK_THAT(error_of([&] { mixmatch::data::gather_images(images, rows.to(at::kFloat)); }),
             contains("int64 [B]"));
  CHECK_THAT(error_of([&] { mixmatch::data::gather_images(images, at::tensor({5}, at::kLong)); }),
             contains("index"));
}
