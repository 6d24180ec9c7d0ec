#include <mixmatch/data/cifar100.hpp>

#include <filesystem>
#include <string>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::data::Cifar100Labels;
using mixmatch::data::ImageDataset;
using mixmatch::data::load_cifar100;
using mixmatch::data::Split;
namespace fs = std::filesystem;

namespace {

constexpr size_t kRecord = 3074;

/// `count` records: coarse label i % 20, fine label i % 100, pixel k of record i is (k + 7 * i) % 256.
std::string records(size_t first, size_t count) {
  std::string bytes;
  for (size_t i = first; i < first + count; ++i) {
    bytes.push_back(static_cast<char>(i % 20));
    bytes.push_back(static_cast<char>(i % 100));
    for (size_t k = 0; k < kRecord - 2; ++k) {
      bytes.push_back(static_cast<char>((k + 7 * i) % 256));
    }
  }
  return bytes;
}

std::string train_error(const fs::path& dir) {
  const auto message = error_of([&] { load_cifar100(dir, Split::train); });
  CHECK(message.find("load_cifar100: ") == 0);
  CHECK(message.find('\n') == std::string::npos);
  return message;
}

}  // namespace

TEST_CASE("load_cifar100 reads either label") {
  const auto dir = temp_dir();
  write_file(dir / "train.bin", records(0, 130));
  write_file(dir / "test.bin", records(97, 1));
  const ImageDataset fine = load_cifar100(dir.path(), Split::train);
  CHECK(fine.images.sizes() == at::IntArrayRef({130, 3, 32, 32}));
  CHECK(fine.images.scalar_type() == at::kByte);
  CHECK(fine.labels.equal(at::arange(130, at::kLong).remainder(100)));
  for (const int64_t i : {0, 1, 129}) {
    CHECK(fine.images[i].to(at::kLong).equal(
        (at::arange(3072, at::kLong) + 7 * i).remainder(256).view({3, 32, 32})));
  }
  const ImageDataset coarse = load_cifar100(dir.path(), Split::train, Cifar100Labels::coarse);
  CHECK(coarse.labels.equal(at::arange(130, at::kLong).remainder(20)));
  CHECK(coarse.images.equal(fine.images));
  const ImageDataset test = load_cifar100(dir.path(), Split::test);
  CHECK(test.size() == 1);
  CHECK(test.labels.item<int64_t>() == 97);
}

TEST_CASE("load_cifar100 reads more records than it holds at once") {
  const auto dir = temp_dir();
  write_file(dir / "train.bin", records(0, 4100));
  const ImageDataset train = load_cifar100(dir.path(), Split::train);
  CHECK(train.labels.equal(at::arange(4100, at::kLong).remainder(100)));
  CHECK(train.images.select(1, 0).select(1, 0).select(1, 0).to(at::kLong).equal(
      (7 * at::arange(4100, at::kLong)).remainder(256)));
}

TEST_CASE("load_cifar100 names the classes") {
  const auto dir = temp_dir();
  fs::create_directories(dir / "cifar-100-binary");
  write_file(dir / "cifar-100-binary/train.bin", records(0, 2));
  const ImageDataset fine = load_cifar100(dir.path(), Split::train);
  CHECK(fine.num_classes() == 100);
  CHECK(std::is_sorted(fine.class_names.begin(), fine.class_names.end()));
  CHECK(fine.class_names[0] == "apple");
  CHECK(fine.class_names[50] == "mouse");
  CHECK(fine.class_names[99] == "worm");
  const ImageDataset coarse = load_cifar100(dir.path(), Split::train, Cifar100Labels::coarse);
  CHECK(coarse.num_classes() == 20);
  CHECK(coarse.class_names[0] == "aquatic_mammals");
  CHECK(coarse.class_names[19] == "vehicles_2");

  std::string names;
  for (int i = 0; i < 20; ++i) {
    names += "group " + std::to_string(i) + "\r\n";
  }
  write_file(dir / "cifar-100-binary/coarse_label_names.txt", names + "\n");
  CHECK(load_cifar100(dir.path(), Split::train, Cifar100Labels::coarse).class_names[7] == "group 7");
  write_file(dir / "cifar-100-binary/fine_label_names.txt", names);
  CHECK_THAT(train_error(dir.path()),
             contains("fine_label_names.txt must hold 100 class names, one a line, got 20"));
}

TEST_CASE("load_cifar100 refuses in one line that names the file") {
  const auto dir = temp_dir();
  const auto path = dir / "train.bin";
  SECTION("nothing there") {
    CHECK_THAT(train_error(dir.path()), contains("no train.bin in " + dir.path().string() + " or " +
                                                 (dir / "cifar-100-binary").string()));
    CHECK_THAT(train_error(dir / "nowhere"), contains("CIFAR-100 binary version"));
  }
  SECTION("empty") {
    write_file(path, "");
    CHECK_THAT(train_error(dir.path()), contains(path.string() + " is empty"));
  }
  SECTION("cut short") {
    write_file(path, records(0, 2).substr(0, 2 * kRecord - 1));
    CHECK_THAT(train_error(dir.path()), contains(path.string() + " has 6147 bytes"));
  }
  SECTION("a CIFAR-10 file") {
    write_file(path, std::string(3073, '\0'));
    CHECK_THAT(train_error(dir.path()), contains("no multiple of a record's 3074"));
  }
  SECTION("a bad label, of those not asked for too") {
    auto bytes = records(0, 3);
    bytes[2 * kRecord] = 20;
    write_file(path, bytes);
    CHECK_THAT(train_error(dir.path()), contains("record 2 has coarse label 20, expected 0 to 19"));
    bytes = records(0, 3);
    bytes[kRecord + 1] = 100;
    write_file(path, bytes);
    CHECK_THAT(error_of([&] { load_cifar100(dir.path(), Split::train, Cifar100Labels::coarse); }),
               contains("record 1 has fine label 100, expected 0 to 99"));
  }
  SECTION("a directory") {
    fs::create_directory(path);
    CHECK_THAT(train_error(dir.path()), contains(path.string() + " is not a regular file"));
  }
  SECTION("no permission") {
    write_file(path, records(0, 1));
    if (make_unreadable(path)) {
      CHECK_THAT(train_error(dir.path()), contains("cannot read " + path.string() + ": Permission denied"));
    }
    fs::create_directory(dir / "closed");
    if (make_unreadable(dir / "closed")) {
      CHECK_THAT(train_error(dir / "closed"), contains("Permission denied"));
    }
  }
  SECTION("another split") {
    CHECK_THAT(error_of([&] { load_cifar100(dir.path(), Split::extra); }),
               contains("split must be Split::train or Split::test"));
  }
}
