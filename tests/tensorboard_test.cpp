#include <torch/types.h>
#include <mixmatch/detail/io/crc32c.hpp>
#include <mixmatch/run/tensorboard.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <cstring>
#include <map>

using mixmatch::training::encode_png;
using mixmatch::training::TensorBoardWriter;

namespace {

uint64_t little_endian(const std::string& bytes, size_t at, size_t count) {
  uint64_t value = 0;
  for (size_t i = count; i-- > 0;) {
    value = value << 8 | static_cast<unsigned char>(bytes.at(at + i));
  }
  return value;
}

/// A decoded message: varints and fixed numbers as numbers, everything else as bytes.
struct Message {
  explicit Message(const std::string& text) {
    for (size_t at = 0; at < text.size();) {
      const auto varint = [&] {
        uint64_t value = 0;
        for (unsigned shift = 0;; shift += 7) {
          const auto byte = static_cast<unsigned char>(text.at(at++));
          value |= uint64_t{byte & 0x7FU} << shift;
          if (byte < 0x80) {
            return value;
          }
        }
      };
      const auto key = varint();
      const auto field = static_cast<int>(key >> 3);
      switch (key & 7) {
        case 0:
          numbers[field] = varint();
          break;
        case 1:
          numbers[field] = little_endian(text, at, 8);
          at += 8;
          break;
        case 5:
          numbers[field] = little_endian(text, at, 4);
          at += 4;
          break;
        default: {
          REQUIRE((key & 7) == 2);
          const auto length = varint();
          REQUIRE(at + length <= text.size());
          bytes[field] = text.substr(at, length);
          at += length;
        }
      }
    }
  }
  Message at(int field) const { return Message(bytes.at(field)); }
  std::map<int, uint64_t> numbers;
  std::map<int, std::string> bytes;
};

std::vector<Message> read_events(const std::filesystem::path& path) {
  const std::string file = read_file(path);
  std::vector<Message> events;
  for (size_t at = 0; at < file.size();) {
    const auto masked = [](const std::string& bytes) {
      const uint32_t crc = slow_crc(bytes, 0x82F63B78U);
      return static_cast<uint32_t>((crc >> 15 | crc << 17) + 0xA282EAD8U);
    };
    const auto length = little_endian(file, at, 8);
    REQUIRE(little_endian(file, at + 8, 4) == masked(file.substr(at, 8)));
    const auto event = file.substr(at + 12, length);
    REQUIRE(little_endian(file, at + 12 + length, 4) == masked(event));
    events.emplace_back(event);
    at += 16 + length;
  }
  return events;
}

}  // namespace

TEST_CASE("CRC-32C and CRC-32 of known texts", "[tensorboard]") {
  using mixmatch::detail::crc32;
  using mixmatch::detail::crc32c;
  CHECK(crc32c("123456789") == 0xE3069283U);
  CHECK(crc32("123456789") == 0xCBF43926U);
  CHECK(crc32c("") == 0);
  CHECK(crc32c(std::string(32, '\0')) == 0x8A9136AAU);  // RFC 3720, B.4
  CHECK(crc32c(std::string(32, '\xff')) == 0x62A8AB43U);
  std::string text;
  for (size_t i = 0; i < 100; ++i) {
    CHECK(crc32c(text) == slow_crc(text, 0x82F63B78U));
    CHECK(crc32c(text.substr(i / 2), crc32c(text.substr(0, i / 2))) == crc32c(text));
    text += static_cast<char>(i * 37);
  }
}

TEST_CASE("an events file holds what was logged", "[tensorboard]") {
  const TempDir dir;
  const auto image = torch::randint(0, 256, {3, 4, 6}, torch::kByte);
  std::filesystem::path path;
  {
    TensorBoardWriter writer(dir / "run");
    path = writer.path();
    writer.scalar("loss/total", 0.3, 1048576);
    writer.image("batch", image, 0);
    writer.text("config", "# h\xc3\xa9", 7);
  }
  CHECK(path.parent_path() == dir / "run");
  CHECK(path.filename().string().rfind("events.out.tfevents.", 0) == 0);
  const auto events = read_events(path);
  REQUIRE(events.size() == 4);
  CHECK(events[0].bytes.at(3) == "brain.Event:2");
  const double time = std::bit_cast<double>(events[0].numbers.at(1));
  CHECK(std::abs(time - static_cast<double>(std::time(nullptr))) < 100);

  const auto scalar = events[1].at(5).at(1);
  CHECK(events[1].numbers.at(2) == 1048576);
  CHECK(scalar.bytes.at(1) == "loss/total");
  CHECK(std::bit_cast<float>(static_cast<uint32_t>(scalar.numbers.at(2))) == 0.3F);

  const auto picture = events[2].at(5).at(1);
  CHECK(picture.bytes.at(1) == "batch");
  CHECK(picture.at(4).numbers == std::map<int, uint64_t>{{1, 4}, {2, 6}, {3, 3}});
  CHECK(picture.at(4).bytes.at(4) == encode_png(image));

  const auto text = events[3].at(5).at(1);
  CHECK(events[3].numbers.at(2) == 7);
  CHECK(text.bytes.at(1) == "config");
  CHECK(text.at(8).bytes.at(8) == "# h\xc3\xa9");
  CHECK(text.at(8).numbers.at(1) == 7);              // DT_STRING
  CHECK(text.at(9).at(1).bytes.at(1) == "text");     // the plugin
  CHECK(text.at(8).at(2).at(2).numbers.at(1) == 1);  // one string
}

TEST_CASE("a resumed writer makes a later file that drops later steps", "[tensorboard]") {
  const TempDir dir;
  std::vector<std::filesystem::path> paths;
  for (const int64_t start : {0, 500, 600}) {
    TensorBoardWriter writer(dir.path(), start);
    paths.push_back(writer.path());
    writer.scalar("x", 1, start + 1);
  }
  CHECK(paths[0].filename().string() < paths[1].filename().string());
  CHECK(paths[1].filename().string() < paths[2].filename().string());
  CHECK(read_events(paths[0]).size() == 2);
  const auto events = read_events(paths[1]);
  REQUIRE(events.size() == 3);
  CHECK(events[1].numbers.at(2) == 501);      // what was logged from here on is void
  CHECK(events[1].at(7).numbers.at(1) == 1);  // SessionLog.START
}

TEST_CASE("what was logged is in the file after flush", "[tensorboard]") {
  const TempDir dir;
  TensorBoardWriter writer(dir.path());
  writer.scalar("x", 1, 1);
  writer.flush();
  CHECK(read_events(writer.path()).size() == 2);
}

TEST_CASE("TensorBoardWriter names what does not fit", "[tensorboard]") {
  const TempDir dir;
  CHECK_THAT(error_of([&] { TensorBoardWriter(dir.path(), -1); }),
             contains("start_step must be >= 0, got -1"));
  write_file(dir / "file", "x");
  CHECK_THAT(error_of([&] { TensorBoardWriter(dir / "file"); }),
             contains("cannot write") && contains("file"));
  CHECK_THAT(error_of([&] { TensorBoardWriter(dir / "file" / "sub"); }), contains("cannot write"));
  TensorBoardWriter writer(dir.path());
  CHECK_THAT(error_of([&] { writer.scalar("x", 1, -2); }), contains("step must be >= 0, got -2"));
  CHECK_THAT(error_of([&] { writer.image("x", torch::zeros({3, 2, 2}), 0); }), contains("uint8"));
}
