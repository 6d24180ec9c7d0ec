#include <torch/types.h>
#include <mixmatch/run/image_grid.hpp>
#include <mixmatch/run/png.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <limits>

using mixmatch::training::encode_png;
using mixmatch::training::make_image_grid;
using torch::Tensor;

namespace {

uint32_t big_endian(const std::string& bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) {
    value = value << 8 | static_cast<unsigned char>(bytes.at(at + i));
  }
  return value;
}

/// Reads a PNG of stored blocks back, checking every checksum on the way.
Tensor decode_png(const std::string& png) {
  REQUIRE(png.substr(0, 8) == "\x89PNG\r\n\x1a\n");
  std::string header;
  std::string data;
  bool ended = false;
  for (size_t at = 8; at < png.size();) {
    const size_t length = big_endian(png, at);
    const std::string type = png.substr(at + 4, 4);
    const std::string body = png.substr(at + 8, length);
    REQUIRE(big_endian(png, at + 8 + length) == slow_crc(type + body, 0xEDB88320U));
    REQUIRE_FALSE(ended);
    if (type == "IHDR") {
      header = body;
    } else if (type == "IDAT") {
      data += body;
    } else {
      REQUIRE(type == "IEND");
      ended = true;
    }
    at += 12 + length;
  }
  REQUIRE(ended);
  REQUIRE(header.size() == 13);
  REQUIRE(header.substr(8, 1) == "\x08");
  const int64_t width = big_endian(header, 0);
  const int64_t height = big_endian(header, 4);
  const int64_t channels = header[9] == 2 ? 3 : 1;
  REQUIRE((static_cast<unsigned char>(data[0]) * 256 + static_cast<unsigned char>(data[1])) % 31 == 0);
  std::string raw;
  size_t at = 2;
  for (bool last = false; !last;) {
    last = data.at(at) == 1;
    const auto byte = [&](size_t i) {
      return static_cast<size_t>(static_cast<unsigned char>(data.at(at + i)));
    };
    const size_t length = byte(1) | byte(2) << 8;
    REQUIRE((length ^ (byte(3) | byte(4) << 8)) == 0xFFFF);
    raw += data.substr(at + 5, length);
    at += 5 + length;
  }
  uint64_t a = 1;
  uint64_t b = 0;
  for (const char c : raw) {
    a = (a + static_cast<unsigned char>(c)) % 65521;
    b = (b + a) % 65521;
  }
  REQUIRE(big_endian(data, at) == b * 65536 + a);
  REQUIRE(at + 4 == data.size());
  auto image = torch::empty({channels, height, width}, torch::kByte);
  size_t position = 0;
  for (int64_t y = 0; y < height; ++y) {
    REQUIRE(raw.at(position++) == 0);
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < channels; ++c) {
        image[c][y][x] = static_cast<unsigned char>(raw.at(position++));
      }
    }
  }
  REQUIRE(position == raw.size());
  return image;
}

}  // namespace

TEST_CASE("a PNG holds the pixels it was given", "[png]") {
  for (const int64_t channels : {1, 3}) {
    const auto image = torch::randint(0, 256, {channels, 5, 7}, torch::kByte);
    CHECK(torch::equal(decode_png(encode_png(image)), image));
  }
  const auto one = torch::full({3, 1, 1}, 200, torch::kByte);
  CHECK(torch::equal(decode_png(encode_png(one)), one));
  const auto strided = torch::randint(0, 256, {6, 4, 3}, torch::kByte).permute({2, 0, 1}).slice(1, 0, 6, 2);
  CHECK(torch::equal(decode_png(encode_png(strided)), strided));
  const auto large = torch::randint(0, 256, {3, 150, 160}, torch::kByte);  // more than one block of 65535
  CHECK(torch::equal(decode_png(encode_png(large)), large));
}

TEST_CASE("encode_png names what does not fit", "[png]") {
  CHECK_THAT(error_of([] {
               encode_png(torch::zeros({3, 2, 2}));
             }),
             contains("encode_png") && contains("Float"));
  CHECK_THAT(error_of([] { encode_png(torch::zeros({2, 2, 2}, torch::kByte)); }), contains("[2, 2, 2]"));
  CHECK_THAT(error_of([] { encode_png(torch::zeros({2, 2}, torch::kByte)); }), contains("[2, 2]"));
  CHECK_THAT(error_of([] { encode_png(torch::zeros({3, 0, 2}, torch::kByte)); }), contains("[3, 0, 2]"));
  CHECK_THAT(error_of([] { encode_png(Tensor()); }), contains("undefined"));
}

TEST_CASE("a grid places images row by row", "[image_grid]") {
  auto images = torch::zeros({5, 3, 2, 3}, torch::kByte);
  for (int64_t i = 0; i < 5; ++i) {
    images[i].fill_(10 * (i + 1));
  }
  const auto grid = make_image_grid(images, 3, 1);
  REQUIRE(grid.sizes() == at::IntArrayRef({3, 5, 11}));
  CHECK(grid.scalar_type() == torch::kByte);
  auto expected = torch::full({3, 5, 11}, 255, torch::kByte);
  for (int64_t i = 0; i < 5; ++i) {
    const int64_t y = i < 3 ? 0 : 3;
    const int64_t x = (i % 3) * 4;
    expected.slice(1, y, y + 2).slice(2, x, x + 3).fill_(10 * (i + 1));
  }
  CHECK(torch::equal(grid, expected));
  CHECK(make_image_grid(images).sizes() == at::IntArrayRef({3, 2, 5 * 5 - 2}));  // fewer images than columns
  CHECK(make_image_grid(images, 1, 0).sizes() == at::IntArrayRef({3, 10, 3}));
}

TEST_CASE("a grid maps [-1, 1] onto bytes", "[image_grid]") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const auto values =
      torch::tensor({-1.0F, 1.0F, 0.5F, -7.0F, 7.0F, nan, infinity, -infinity}).reshape({1, 1, 1, 8});
  const auto expected = torch::tensor({0, 255, 191, 0, 255, 0, 255, 0}, torch::kByte).expand({3, 1, 8});
  CHECK(torch::equal(make_image_grid(values), expected));
  CHECK(torch::equal(make_image_grid(values.to(torch::kDouble)), expected));
  CHECK(torch::equal(make_image_grid(values.to(torch::kBFloat16)), expected));
  // uint8 -> [-1, 1] -> uint8 is the identity
  const auto bytes = torch::arange(256).to(torch::kByte).reshape({1, 1, 16, 16});
  CHECK(torch::equal(make_image_grid(bytes.to(torch::kFloat) / 127.5 - 1), make_image_grid(bytes)));
}

TEST_CASE("a grid takes any strides and leaves gradients alone", "[image_grid]") {
  const auto images = torch::rand({4, 3, 3, 3}) * 2 - 1;
  const auto channels_last = images.contiguous(at::MemoryFormat::ChannelsLast);
  CHECK(torch::equal(make_image_grid(images), make_image_grid(channels_last)));
  const auto grid = make_image_grid(images.detach().clone().requires_grad_(true));
  CHECK(torch::equal(grid, make_image_grid(images)));
  CHECK_FALSE(grid.requires_grad());
}

TEST_CASE("make_image_grid names what does not fit", "[image_grid]") {
  const auto images = torch::zeros({2, 3, 4, 4});
  CHECK_THAT(error_of([&] { make_image_grid(images, 0); }), contains("columns must be >= 1, got 0"));
  CHECK_THAT(error_of([&] { make_image_grid(images, 1, -1); }), contains("gap must be >= 0, got -1"));
  CHECK_THAT(error_of([&] { make_image_grid(images[0]); }), contains("[3, 4, 4]"));
  CHECK_THAT(error_of([&] { make_image_grid(torch::zeros({2, 2, 4, 4})); }), contains("[2, 2, 4, 4]"));
  CHECK_THAT(error_of([&] { make_image_grid(torch::zeros({0, 3, 4, 4})); }), contains("[0, 3, 4, 4]"));
  CHECK_THAT(error_of([&] { make_image_grid(torch::zeros({2, 3, 4, 4}, torch::kInt)); }), contains("Int"));
  CHECK_THAT(error_of([&] { make_image_grid(Tensor()); }), contains("make_image_grid"));
}
