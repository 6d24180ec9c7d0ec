#include <mixmatch/detail/io/resize_image.hpp>

#include <ATen/ATen.h>

#include <algorithm>

#include "catch.hpp"

namespace {

/// Our resizing of a uint8 [3, H, W] picture's middle square.
at::Tensor resized(const at::Tensor& image, int64_t size) {
  const int64_t height = image.size(1), width = image.size(2), side = std::min(height, width);
  auto interleaved = image.permute({1, 2, 0}).contiguous();
  auto out = at::empty({3, size, size}, at::kByte);
  mixmatch::detail::crop_and_resize(
      interleaved.data_ptr<uint8_t>(), width, height, static_cast<double>((width - side) / 2),
      static_cast<double>((height - side) / 2), static_cast<double>(side), 1, size, out.data_ptr<uint8_t>());
  return out;
}

/// LibTorch's antialiased bilinear resizing to height x width, rounded.
at::Tensor reference(const at::Tensor& image, int64_t height, int64_t width) {
  return at::_upsample_bilinear2d_aa(image.to(at::kDouble).unsqueeze(0), {height, width}, false)
      .squeeze(0)
      .add(0.5)
      .clamp(0, 255)
      .to(at::kByte);
}

int64_t largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kLong) - b.to(at::kLong)).abs().max().item<int64_t>();
}

}  // namespace

TEST_CASE("a square picture is resized as LibTorch does it") {
  const auto image = at::randint(256, {3, 60, 60}, at::kByte);
  for (const int64_t size : {60, 30, 20, 17, 7, 1, 61, 96, 150}) {
    CAPTURE(size);
    CHECK(largest_difference(resized(image, size), reference(image, size, size)) <= 1);
  }
  CHECK(resized(image, 60).equal(image));
}

TEST_CASE("of the longer side the middle is cut out") {
  const auto wide = at::randint(256, {3, 32, 48}, at::kByte);
  CHECK(resized(wide, 16).equal(resized(wide.narrow(2, 8, 32).contiguous(), 16)));
  CHECK(resized(wide, 32).equal(wide.narrow(2, 8, 32)));
  const auto tall = wide.transpose(1, 2).contiguous();
  // Columns before rows and rows before columns may round a half either way.
  CHECK(largest_difference(resized(tall, 16), resized(wide, 16).transpose(1, 2)) <= 1);
  CHECK(resized(tall, 32).equal(tall.narrow(1, 8, 32)));
}

TEST_CASE("a square may begin between pixels, and is turned") {
  // A slope is the same slope wherever it is sampled: the pixel (i, j) has its centre at (j + 2.75, i + 2).
  const auto across = at::arange(12, at::kLong).mul(8), down = at::arange(12, at::kLong).mul(4);
  const auto image = (across.view({1, 12, 1}) + down.view({12, 1, 1})).expand({12, 12, 3});
  const auto pixels = image.to(at::kByte).contiguous();
  const auto window = [&](int orientation) {
    auto out = at::empty({3, 7, 7}, at::kByte);
    mixmatch::detail::crop_and_resize(pixels.data_ptr<uint8_t>(), 12, 12, 2.25, 1.5, 7, orientation, 7,
                                      out.data_ptr<uint8_t>());
    return out;
  };
  const auto expected = (24 + across.narrow(0, 0, 7).view({1, 7}) + down.narrow(0, 0, 7).view({7, 1}))
                            .to(at::kByte)
                            .expand({3, 7, 7});
  // At the ends a pixel counts as far as it is covered.
  CHECK(largest_difference(window(1), expected) <= 2);
  CHECK(window(1).narrow(1, 1, 5).narrow(2, 1, 5).equal(expected.narrow(1, 1, 5).narrow(2, 1, 5)));
  CHECK(window(3).equal(window(1).flip({1, 2})));
  CHECK(window(6).equal(window(1).rot90(-1, {1, 2})));
  CHECK(window(8).equal(window(1).rot90(1, {1, 2})));
  CHECK(window(5).equal(window(1).transpose(1, 2)));
}

TEST_CASE("fine stripes shrink to grey") {
  auto stripes = at::zeros({3, 256, 256}, at::kByte);
  stripes.slice(2, 0, 256, 2).fill_(255);
  const auto small = resized(stripes, 8).to(at::kLong);
  CHECK(small.min().item<int64_t>() >= 124);
  CHECK(small.max().item<int64_t>() <= 131);
}

TEST_CASE("pictures of one colour keep it, of any shape") {
  for (const auto& [height, width] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {1, 300}, {300, 1}, {2, 3}, {501, 97}}) {
    for (const int64_t size : {1, 2, 33}) {
      const auto image =
          at::tensor({255, 0, 77}, at::kByte).view({3, 1, 1}).expand({3, height, width}).contiguous();
      CHECK(resized(image, size).equal(image.narrow(1, 0, 1).narrow(2, 0, 1).expand({3, size, size})));
    }
  }
}
