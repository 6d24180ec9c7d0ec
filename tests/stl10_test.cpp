#include <mixmatch/data/batch_stream.hpp>
#include <mixmatch/data/image_pool.hpp>
#include <mixmatch/data/stl10.hpp>
#include <mixmatch/evaluation/evaluate.hpp>

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::data::ImageDataset;
using mixmatch::data::load_stl10;
using mixmatch::data::load_stl10_folds;
using mixmatch::data::Split;
namespace fs = std::filesystem;

namespace {

constexpr size_t kSide = 96;
constexpr size_t kRecord = 3 * kSide * kSide;

/// What image i shows in channel c at (x, y).
size_t pixel(size_t i, size_t c, size_t y, size_t x) { return (31 * i + 7 * c + 5 * y + 2 * x * x) % 256; }

/// Images first, first + 1, … as the official files store them: planes column by column.
std::string images(size_t first, size_t count) {
  std::string bytes;
  for (size_t i = first; i < first + count; ++i) {
    for (size_t c = 0; c < 3; ++c) {
      for (size_t x = 0; x < kSide; ++x) {
        for (size_t y = 0; y < kSide; ++y) {
          bytes.push_back(static_cast<char>(pixel(i, c, y, x)));
        }
      }
    }
  }
  return bytes;
}

at::Tensor upright(size_t i) {
  auto image = at::empty({3, kSide, kSide}, at::kByte);
  auto* out = image.data_ptr<uint8_t>();
  for (size_t k = 0; k < kRecord; ++k) {
    out[k] = static_cast<uint8_t>(pixel(i, k / (kSide * kSide), k / kSide % kSide, k % kSide));
  }
  return image;
}

void write_set(const fs::path& dir) {
  fs::create_directories(dir);
  write_file(dir / "train_X.bin", images(0, 3));
  write_file(dir / "train_y.bin", "\x0a\x01\x05");
  write_file(dir / "test_X.bin", images(50, 2));
  write_file(dir / "test_y.bin", "\x02\x02");
  write_file(dir / "unlabeled_X.bin", images(100, 5));
}

std::string error_in(const fs::path& dir, Split split = Split::train) {
  const auto message = error_of([&] { load_stl10(dir, split); });
  CHECK(message.find("load_stl10: ") == 0);
  CHECK(message.find('\n') == std::string::npos);
  return message;
}

/// Resident memory of this process in bytes.
int64_t resident() {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("VmRSS:", 0) == 0) {
      return std::stoll(line.substr(6)) * 1024;
    }
  }
  return -1;
}

}  // namespace

TEST_CASE("load_stl10 shows the images upright") {
  const auto dir = temp_dir();
  write_set(dir.path());
  const ImageDataset train = load_stl10(dir.path(), Split::train);
  CHECK(train.images.sizes() == at::IntArrayRef({3, 3, 96, 96}));
  CHECK(train.images.scalar_type() == at::kByte);
  CHECK(train.labels.equal(at::tensor({9, 0, 4}, at::kLong)));
  CHECK(train.num_classes() == 10);
  CHECK(train.class_names[9] == "truck");
  for (size_t i = 0; i < 3; ++i) {
    CHECK(train.images[static_cast<int64_t>(i)].equal(upright(i)));
  }
  const ImageDataset test = load_stl10(dir.path(), Split::test);
  CHECK(test.labels.equal(at::tensor({1, 1}, at::kLong)));
  CHECK(test.images[1].equal(upright(51)));
  const ImageDataset unlabeled = load_stl10(dir.path(), Split::unlabeled);
  CHECK(unlabeled.size() == 5);
  CHECK(unlabeled.labels.equal(at::full({5}, -1, at::kLong)));
  CHECK(unlabeled.images[4].equal(upright(104)));
}

TEST_CASE("load_stl10 finds the unpacked archive's folder and reads the class names beside the files") {
  const auto dir = temp_dir();
  write_set(dir / "stl10_binary");
  CHECK(load_stl10(dir.path(), Split::train).size() == 3);
  write_file(dir / "stl10_binary/class_names.txt", "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n");
  CHECK(load_stl10(dir.path(), Split::unlabeled).class_names[9] == "j");
  write_file(dir / "stl10_binary/class_names.txt", "a\n");
  CHECK_THAT(error_in(dir.path()), contains("class_names.txt must hold 10 class names, one a line, got 1"));
}

TEST_CASE("gather and take of mapped images give contiguous copies in any order") {
  const auto dir = temp_dir();
  write_set(dir.path());
  ImageDataset set = load_stl10(dir.path(), Split::unlabeled);
  REQUIRE(set.mapping != nullptr);
  const auto rows = at::tensor({4, 0, 4, 2}, at::kLong);
  const auto expected = at::stack({upright(104), upright(100), upright(104), upright(102)});
  const auto gathered = set.gather(rows);
  CHECK(gathered.is_contiguous());
  CHECK(gathered.equal(expected));
  CHECK(mixmatch::data::gather_images(set.images, rows).is_contiguous());
  CHECK(mixmatch::data::gather_images(set.images, rows).equal(expected));
  CHECK(set.gather(at::empty({0}, at::kLong)).sizes() == at::IntArrayRef({0, 3, 96, 96}));
  CHECK(set.gather(at::arange(300, at::kLong).remainder(5))
            .equal(set.images.index_select(0, at::arange(300, at::kLong).remainder(5))));

  // Of several mapped sets each row is read to its place.
  const ImageDataset other{set.images.flip(0), set.labels, set.class_names};
  const mixmatch::data::ImagePool pool({set, other, load_stl10(dir.path(), Split::unlabeled)});
  const auto scattered = pool.gather(at::tensor({12, 3, 7, 0, 12, 14, 5}, at::kLong));
  CHECK(scattered.equal(at::stack(
      {upright(102), upright(103), upright(102), upright(100), upright(102), upright(104), upright(104)})));

  const ImageDataset taken = mixmatch::data::take(set, rows);
  CHECK(taken.mapping == nullptr);
  CHECK(taken.images.equal(expected));
  CHECK(taken.labels.equal(at::full({4}, -1, at::kLong)));

  for (const int64_t bad : {-1, 5}) {
    CHECK_THAT(error_of([&] { set.gather(at::tensor({bad}, at::kLong)); }),
               contains("index " + std::to_string(bad) + " is out of range for 5 images"));
  }
  CHECK_THAT(error_of([&] { set.gather(rows.to(at::kInt)); }), contains("int64 [B]"));
  CHECK_THAT(error_of([&] { set.gather(rows.view({2, 2})); }), contains("int64 [B]"));

  // Some of the rows, and other images in the place of the mapped ones.
  set.images = set.images.narrow(0, 2, 3);
  CHECK(set.gather(at::tensor({2, 0}, at::kLong)).equal(at::stack({upright(104), upright(102)})));
  CHECK_THAT(error_of([&] { set.gather(at::tensor({3}, at::kLong)); }),
             contains("out of range for 3 images"));
  set.images = at::arange(4, at::kByte).view({4, 1, 1, 1});
  CHECK(set.gather(at::tensor({3}, at::kLong)).item<int64_t>() == 3);
}

TEST_CASE("the mapped images outlive their data set") {
  const auto dir = temp_dir();
  write_set(dir.path());
  at::Tensor images = load_stl10(dir.path(), Split::train).images;
  fs::remove(dir / "train_X.bin");
  CHECK(images[2].equal(upright(2)));
}

TEST_CASE("evaluation reads mapped images") {
  const auto dir = temp_dir();
  write_set(dir.path());
  const auto all_ones = [](const at::Tensor& batch) {
    return at::eye(10).narrow(0, 1, 1).expand({batch.size(0), 10});
  };
  CHECK(mixmatch::training::error_percent(all_ones, load_stl10(dir.path(), Split::test)) == 0);
  CHECK(mixmatch::training::error_percent(all_ones, load_stl10(dir.path(), Split::train)) == 100);
}

TEST_CASE("a mapped set larger than memory stays out of memory") {
  const auto dir = temp_dir();
  constexpr int64_t count = 100000;
  const auto path = dir / "unlabeled_X.bin";
  write_file(path, "");
  REQUIRE(::truncate(path.c_str(), count * static_cast<int64_t>(kRecord)) ==
          0);  // takes no place on the disk
  const ImageDataset set = load_stl10(dir.path(), Split::unlabeled);
  REQUIRE(set.size() == count);
  const mixmatch::data::BatchStream stream(at::arange(count), 64, 1);
  set.gather(stream.rows(0));
  const int64_t before = resident();
  REQUIRE(before > 0);
  int64_t most = before;
  int64_t sum = 0;
  for (int64_t rows = 0; rows < 20000; rows += 64) {  // 550 MB
    sum += set.gather(stream.rows(1 + rows / 64)).select(1, 0).sum().item<int64_t>();
    most = std::max(most, resident());
  }
  CHECK(sum == 0);
#if defined(__SANITIZE_ADDRESS__)
  constexpr int64_t bound = 400;  // it keeps freed memory for a while
#else
  constexpr int64_t bound = 64;
#endif
  CHECK(most - before < bound << 20);
}

TEST_CASE("load_stl10 refuses in one line that names the file") {
  const auto dir = temp_dir();
  write_set(dir.path());
  const auto x = dir / "train_X.bin";
  const auto y = dir / "train_y.bin";
  SECTION("nothing there") {
    CHECK_THAT(error_in(dir / "nowhere"), contains("no train_X.bin in " + (dir / "nowhere").string()));
    CHECK_THAT(error_in(dir / "nowhere", Split::unlabeled), contains("no unlabeled_X.bin in "));
    CHECK_THAT(error_in(dir / "nowhere"), contains("https://cs.stanford.edu/~acoates/stl10/"));
  }
  SECTION("one missing") {
    fs::remove(y);
    CHECK_THAT(error_in(dir.path()), contains(y.string() + " is missing"));
  }
  SECTION("empty") {
    write_file(x, "");
    CHECK_THAT(error_in(dir.path()), contains(x.string() + " is empty"));
    write_set(dir.path());
    write_file(y, "");
    CHECK_THAT(error_in(dir.path()), contains(y.string() + " is empty"));
  }
  SECTION("cut short") {
    write_file(x, images(0, 3).substr(1));
    CHECK_THAT(error_in(dir.path()), contains(x.string() + " has 82943 bytes"));
  }
  SECTION("other counts") {
    write_file(y, "\x01\x01");
    CHECK_THAT(error_in(dir.path()), contains(x.string() + " has 3 images, but " + y.string() + " 2 labels"));
  }
  SECTION("bad labels") {
    write_file(y, std::string("\x01\x00\x01", 3));
    CHECK_THAT(error_in(dir.path()), contains("record 1 has label 0, expected 1 to 10"));
    write_file(y, "\x01\x01\x0b");
    CHECK_THAT(error_in(dir.path()), contains("record 2 has label 11, expected 1 to 10"));
  }
  SECTION("a directory") {
    fs::remove(x);
    fs::create_directory(x);
    CHECK_THAT(error_in(dir.path()), contains(x.string() + " is not a regular file"));
  }
  SECTION("no permission") {
    if (make_unreadable(x)) {
      CHECK_THAT(error_in(dir.path()), contains("cannot read " + x.string() + ": Permission denied"));
    }
  }
  SECTION("another split") {
    CHECK_THAT(error_in(dir.path(), Split::extra), contains("Split::train, Split::test or Split::unlabeled"));
  }
  SECTION("cut while it is read") {
    const ImageDataset set = load_stl10(dir.path(), Split::train);
    fs::resize_file(x, kRecord);
    CHECK_THAT(error_of([&] { set.gather(at::tensor({2}, at::kLong)); }),
               contains("cannot read " + x.string()));
  }
}

TEST_CASE("load_stl10_folds reads ten lines of indices") {
  const auto dir = temp_dir();
  const auto path = dir / "fold_indices.txt";
  const auto fold_error = [&] {
    const auto message = error_of([&] { load_stl10_folds(dir.path()); });
    CHECK(message.find("load_stl10_folds: ") == 0);
    CHECK(message.find('\n') == std::string::npos);
    return message;
  };
  std::string lines;
  for (int fold = 0; fold < 9; ++fold) {
    lines += std::to_string(fold) + " 4999  17 \n";
  }
  CHECK_THAT(fold_error(), contains("no fold_indices.txt in "));
  write_file(path, lines + "5 6 7 8\r\n\n");
  const auto folds = load_stl10_folds(dir.path());
  REQUIRE(folds.size() == 10);
  CHECK(folds[3].equal(at::tensor({3, 4999, 17}, at::kLong)));
  CHECK(folds[9].equal(at::tensor({5, 6, 7, 8}, at::kLong)));
  fs::create_directory(dir / "stl10_binary");
  fs::rename(path, dir / "stl10_binary/fold_indices.txt");
  CHECK(load_stl10_folds(dir.path()).size() == 10);

  write_file(path, lines);
  CHECK_THAT(fold_error(), contains("must hold ten lines, one a fold, got 9"));
  write_file(path, "");
  CHECK_THAT(fold_error(), contains("got 0"));
  write_file(path, "\n" + lines);
  CHECK_THAT(fold_error(), contains("line 1 is empty"));
  for (const std::string bad : {"-1", "1.5", "x", "3,4", "99999999999999999999"}) {
    write_file(path, lines + "1 " + bad + "\n");
    CHECK_THAT(fold_error(), contains("line 10 has \"" + bad + "\", expected indices >= 0"));
  }
  fs::remove(path);
  fs::create_directory(path);
  CHECK_THAT(fold_error(), contains("is not a regular file"));
}
