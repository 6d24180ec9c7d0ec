#include <mixmatch/data/svhn.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::data::ImageDataset;
using mixmatch::data::load_svhn;
using mixmatch::data::Split;
namespace fs = std::filesystem;

#ifdef MIXMATCH_HAS_MATIO
namespace {

constexpr size_t kSide = 32;

size_t pixel(size_t i, size_t c, size_t y, size_t x) { return (31 * i + 7 * c + 5 * y + 2 * x * x) % 256; }

/// X as MATLAB stores it: y fastest, then x, channel, image.
std::string x_bytes(size_t count) {
  std::string bytes;
  for (size_t i = 0; i < count; ++i) {
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
  for (size_t k = 0; k < 3 * kSide * kSide; ++k) {
    image.data_ptr<uint8_t>()[k] =
        static_cast<uint8_t>(pixel(i, k / (kSide * kSide), k / kSide % kSide, k % kSide));
  }
  return image;
}

/// One variable of a file.
struct Variable {
  std::string name;
  matio_classes type;
  matio_types stored;
  std::vector<size_t> shape;
  std::string bytes;
};

void write_mat(const fs::path& path, std::vector<Variable> variables, matio_compression compression) {
  auto* file = Mat_CreateVer(path.c_str(), nullptr, MAT_FT_MAT5);
  REQUIRE(file != nullptr);
  for (auto& v : variables) {
    auto* variable = Mat_VarCreate(v.name.c_str(), v.type, v.stored, static_cast<int>(v.shape.size()),
                                   v.shape.data(), v.bytes.data(), MAT_F_DONT_COPY_DATA);
    REQUIRE(variable != nullptr);
    CHECK(Mat_VarWrite(file, variable, compression) == 0);
    Mat_VarFree(variable);
  }
  Mat_Close(file);
}

Variable images(size_t count) { return {"X", MAT_C_UINT8, MAT_T_UINT8, {32, 32, 3, count}, x_bytes(count)}; }

Variable labels(const std::string& bytes) {
  return {"y", MAT_C_UINT8, MAT_T_UINT8, {bytes.size(), 1}, bytes};
}

/// A number as four bytes, least first.
std::string word(uint32_t value) {
  std::string bytes;
  for (int shift = 0; shift < 32; shift += 8) {
    bytes.push_back(static_cast<char>((value >> shift) & 0xFFU));
  }
  return bytes;
}

/// A data element of MATLAB's level 5 format: type, length, bytes, up to the next multiple of eight.
std::string element(uint32_t type, const std::string& bytes) {
  return word(type) + word(static_cast<uint32_t>(bytes.size())) + bytes +
         std::string((8 - bytes.size() % 8) % 8, '\0');
}

/// A uint8 matrix by the letter of "MAT-File Format", without matio.
std::string matrix(const std::string& name, const std::vector<uint32_t>& shape, const std::string& bytes) {
  std::string dimensions;
  for (const auto extent : shape) {
    dimensions += word(extent);
  }
  constexpr uint32_t uint8_class = 9;
  return element(14, element(6, word(uint8_class) + word(0)) + element(5, dimensions) + element(1, name) +
                         element(2, bytes));
}

/// The message, and nothing but it: matio must not print by itself.
std::string error_in(const fs::path& dir) {
  const auto printed = temp_dir();
  std::fflush(stderr);
  const int kept = ::dup(2);
  const int file = ::open((printed / "err").c_str(), O_WRONLY | O_CREAT, 0666);
  ::dup2(file, 2);
  const auto message = error_of([&] { load_svhn(dir, Split::train); });
  std::fflush(stderr);
  ::dup2(kept, 2);
  ::close(kept);
  ::close(file);
  CHECK(read_file(printed / "err").empty());
  CHECK(message.find("load_svhn: ") == 0);
  CHECK(message.find('\n') == std::string::npos);
  return message;
}

}  // namespace

TEST_CASE("load_svhn reads compressed and plain files") {
  const auto dir = temp_dir();
  for (const auto compression : {MAT_COMPRESSION_ZLIB, MAT_COMPRESSION_NONE}) {
    write_mat(dir / "train_32x32.mat", {images(3), labels("\x01\x0a\x09")}, compression);
    const ImageDataset train = load_svhn(dir.path(), Split::train);
    CHECK(train.images.sizes() == at::IntArrayRef({3, 3, 32, 32}));
    CHECK(train.images.scalar_type() == at::kByte);
    CHECK(train.images.is_contiguous());
    CHECK(train.labels.equal(at::tensor({1, 0, 9}, at::kLong)));
    CHECK(train.class_names == std::vector<std::string>{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"});
    for (size_t i = 0; i < 3; ++i) {
      CHECK(train.images[static_cast<int64_t>(i)].equal(upright(i)));
    }
  }
}

TEST_CASE("load_svhn reads the format as MATLAB's specification has it") {
  const auto dir = temp_dir();
  std::string file = "MATLAB 5.0 MAT-file";
  file.resize(124, ' ');
  file += std::string("\x00\x01", 2) + "IM";
  file += matrix("X", {32, 32, 3, 2}, x_bytes(2)) + matrix("y", {2, 1}, "\x0a\x04");
  fs::create_directory(dir / "svhn");
  write_file(dir / "svhn/test_32x32.mat", file);
  const ImageDataset test = load_svhn(dir.path(), Split::test);
  CHECK(test.labels.equal(at::tensor({0, 4}, at::kLong)));
  CHECK(test.images[1].equal(upright(1)));
}

TEST_CASE("load_svhn takes one image and labels of other types") {
  const auto dir = temp_dir();
  const auto path = dir / "extra_32x32.mat";
  auto x = images(1);
  x.shape = {32, 32, 3};  // as MATLAB writes it
  write_mat(path, {labels("\x02"), x}, MAT_COMPRESSION_ZLIB);
  CHECK(load_svhn(dir.path(), Split::extra).images[0].equal(upright(0)));

  const double numbers[] = {10, 3};
  const std::string bytes(reinterpret_cast<const char*>(numbers), sizeof numbers);
  write_mat(path, {images(2), {"y", MAT_C_DOUBLE, MAT_T_DOUBLE, {1, 2}, bytes}}, MAT_COMPRESSION_ZLIB);
  CHECK(load_svhn(dir.path(), Split::extra).labels.equal(at::tensor({0, 3}, at::kLong)));
  const int32_t integers[] = {1, 10};
  const std::string words(reinterpret_cast<const char*>(integers), sizeof integers);
  write_mat(path, {images(2), {"y", MAT_C_INT32, MAT_T_INT32, {2, 1}, words}}, MAT_COMPRESSION_ZLIB);
  CHECK(load_svhn(dir.path(), Split::extra).labels.equal(at::tensor({1, 0}, at::kLong)));
}

TEST_CASE("load_svhn refuses in one line that names the file") {
  const auto dir = temp_dir();
  const auto path = dir / "train_32x32.mat";
  const auto write = [&](const std::vector<Variable>& variables) {
    fs::remove(path);
    write_mat(path, variables, MAT_COMPRESSION_ZLIB);
  };
  SECTION("nothing there") {
    CHECK_THAT(error_in(dir.path()),
               contains("no train_32x32.mat in " + dir.path().string() + " or " + (dir / "svhn").string()));
    CHECK_THAT(error_in(dir.path()), contains("http://ufldl.stanford.edu/housenumbers/"));
  }
  SECTION("no MATLAB file") {
    write_file(path, "");
    CHECK_THAT(error_in(dir.path()), contains(path.string() + " is empty"));
    write_file(path, "this is text");
    CHECK_THAT(error_in(dir.path()), contains(path.string()));
    write_file(path, std::string(5000, 'x'));
    CHECK_THAT(error_in(dir.path()), contains(path.string()));
    fs::remove(path);
    fs::create_directory(path);
    CHECK_THAT(error_in(dir.path()), contains(path.string() + " is not a regular file"));
  }
  SECTION("cut short") {
    for (const auto compression : {MAT_COMPRESSION_ZLIB, MAT_COMPRESSION_NONE}) {
      for (const bool labels_first : {false, true}) {
        fs::remove(path);
        const auto y = labels(std::string(20, '\x01'));
        write_mat(path,
                  labels_first ? std::vector<Variable>{y, images(20)} : std::vector<Variable>{images(20), y},
                  compression);
        const auto whole = read_file(path);
        for (size_t size = 1; size < whole.size(); size = size * 3 / 2 + 1) {
          CAPTURE(labels_first, size);
          write_file(path, whole.substr(0, size));
          CHECK_THAT(error_in(dir.path()), contains(path.string()));
        }
        write_file(path, whole.substr(0, whole.size() - 3));
        CHECK_THAT(error_in(dir.path()), contains(path.string()));
      }
    }
  }
  SECTION("numbers of an unknown kind, or too few of them") {
    std::string header = "MATLAB 5.0 MAT-file";
    header.resize(124, ' ');
    header += std::string("\x00\x01", 2) + "IM";
    const auto whole = header + matrix("y", {1, 1}, "\x04") + matrix("X", {32, 32, 3, 1}, x_bytes(1));
    write_file(path, whole);
    CHECK(error_of([&] { load_svhn(dir.path(), Split::train); }).empty());
    std::string unknown = whole;
    const size_t data = whole.find(x_bytes(1)) - 8;  // where the pixels' type stands
    unknown.replace(data, 4, word(0x150E0758));
    write_file(path, unknown);
    CHECK_THAT(error_in(dir.path()),
               contains("cannot read X of " + path.string() + ": it is cut short or damaged"));
  }
  SECTION("a variable missing") {
    write({images(1)});
    CHECK_THAT(error_in(dir.path()), contains("has no variable y"));
    write({labels("\x01")});
    CHECK_THAT(error_in(dir.path()), contains("has no variable X"));
  }
  SECTION("X of another type or shape") {
    write({{"X", MAT_C_INT8, MAT_T_INT8, {32, 32, 3, 1}, x_bytes(1)}, labels("\x01")});
    CHECK_THAT(error_in(dir.path()),
               contains("must be uint8 32 x 32 x 3 x N, got another type, 32 x 32 x 3"));
    auto x = images(2);
    x.shape = {2, 32, 32, 3};
    write({x, labels("\x01\x01")});
    CHECK_THAT(error_in(dir.path()), contains("must be uint8 32 x 32 x 3 x N, got uint8 2 x 32 x 32 x 3"));
    x.shape = {32, 192};
    write({x, labels("\x01\x01")});
    CHECK_THAT(error_in(dir.path()), contains("got uint8 32 x 192"));
  }
  SECTION("y of another shape or with other labels") {
    auto y = labels("\x01\x01\x01\x01");
    y.shape = {2, 2};
    write({images(4), y});
    CHECK_THAT(error_in(dir.path()), contains("must be N x 1 numbers, got 2 x 2"));
    write({images(2), {"y", MAT_C_CHAR, MAT_T_UINT8, {2, 1}, "ab"}});
    CHECK_THAT(error_in(dir.path()), contains("must be N x 1 numbers"));
    write({images(2), labels(std::string("\x01\x00", 2))});
    CHECK_THAT(error_in(dir.path()), contains("has label 0 in row 1, expected 1 to 10"));
    write({images(2), labels("\x0b\x01")});
    CHECK_THAT(error_in(dir.path()), contains("has label 11 in row 0, expected 1 to 10"));
    const double half = 1.5;
    write({images(1),
           {"y", MAT_C_DOUBLE, MAT_T_DOUBLE, {1, 1}, std::string(reinterpret_cast<const char*>(&half), 8)}});
    CHECK_THAT(error_in(dir.path()), contains("has label 1.5 in row 0"));
  }
  SECTION("sizes that the file cannot hold") {
    std::string begin = "MATLAB 5.0 MAT-file";
    begin.resize(124, ' ');
    begin += std::string("\x00\x01", 2) + "IM";
    const auto y = matrix("y", {2, 1}, "\x0a\x04");
    // 4 GB of images, which an element of some 6 KB claims.
    write_file(path, begin + matrix("X", {32, 32, 3, 1398101}, x_bytes(2)) + y);
    const int64_t before = peak_memory();
    CHECK_THAT(error_in(dir.path()), contains("X of " + path.string() +
                                              " claims 32 x 32 x 3 x 1398101 numbers, which the file's "));
    write_file(path,
               begin + matrix("X", {32, 32, 3, 2}, x_bytes(2)) + matrix("y", {4000000000, 1}, "\x0a\x04"));
    CHECK_THAT(error_in(dir.path()), contains("y of " + path.string() + " claims 4000000000 x 1 numbers"));
    write({images(2), labels("\x01\x01")});
    CHECK(peak_memory() - before < 64);
    // What is claimed and could be, but is not there.
    write_file(path, begin + matrix("X", {32, 32, 3, 3}, x_bytes(2)) + y);
    CHECK_THAT(error_in(dir.path()), contains(path.string()));
  }
  SECTION("MATLAB files of other versions") {
    std::string file = "MATLAB 7.3 MAT-file";
    file.resize(124, ' ');
    write_file(path, file + std::string("\x00\x02", 2) + "IM" + std::string(384, '\0') + "\x89HDF\r\n\x1a\n");
    CHECK_THAT(error_in(dir.path()), contains("is a MATLAB 7.3 (HDF5) file; save it again"));
    write_file(path, std::string(200, '\0'));
    CHECK_THAT(error_in(dir.path()), contains("is no MATLAB file of version 5 to 7"));
    file = file.substr(0, 124) + std::string("\x00\x01", 2) + "IM";
    write_file(path, file + element(3, "12345678"));
    CHECK_THAT(error_in(dir.path()), contains("an element of it is no variable"));
  }
  SECTION("other counts") {
    write({images(2), labels("\x01\x02\x03")});
    CHECK_THAT(error_in(dir.path()), contains("has 2 images in X, but 3 labels in y"));
  }
  SECTION("no permission") {
    write({images(1), labels("\x01")});
    if (make_unreadable(path)) {
      CHECK_THAT(error_in(dir.path()), contains("cannot read " + path.string() + ": Permission denied"));
    }
  }
}
#else
TEST_CASE("load_svhn needs matio") {
  CHECK_THAT(error_of([] { load_svhn("svhn", Split::train); }), contains("libmatio-dev"));
}
#endif

TEST_CASE("load_svhn knows three splits") {
  CHECK_THAT(error_of([] { load_svhn("svhn", Split::unlabeled); }),
             contains("Split::train, Split::test or Split::extra"));
}
