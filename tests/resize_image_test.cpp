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

TEST_CASE("letterbox: the whole picture, and grey beside it") {
  const auto letterboxed = [](const at::Tensor& image, int64_t size, int orientation = 1) {
    const auto pixels = image.permute({1, 2, 0}).contiguous();
    auto out = at::empty({3, size, size}, at::kByte);
    mixmatch::detail::resize_whole(pixels.data_ptr<uint8_t>(), image.size(2), image.size(1),
                                   static_cast<double>(image.size(2)), static_cast<double>(image.size(1)),
                                   orientation, size, out.data_ptr<uint8_t>());
    return out;
  };
  const auto grey = [](const at::Tensor& part) { return part.eq(127).all().item<bool>(); };
  const auto wide = at::randint(128, 256, {3, 20, 60}, at::kByte);
  for (const int64_t size : {60, 30, 90}) {
    const int64_t rows = size / 3;
    const auto made = letterboxed(wide, size);
    CHECK(grey(made.narrow(1, 0, rows)));
    CHECK(grey(made.narrow(1, 2 * rows, rows)));
    CHECK(largest_difference(made.narrow(1, rows, rows), reference(wide, rows, size)) <= 1);
    const auto tall = letterboxed(wide.transpose(1, 2), size);
    CHECK(grey(tall.narrow(2, 0, rows)));
    CHECK(grey(tall.narrow(2, 2 * rows, rows)));
    CHECK(largest_difference(tall, made.transpose(1, 2)) <= 1);
    // Turned after it was resized: EXIF's 6 turns to the right, 8 to the left, 5 mirrors at the diagonal.
    CHECK(letterboxed(wide, size, 3).equal(made.flip({1, 2})));
    CHECK(letterboxed(wide, size, 6).equal(made.rot90(-1, {1, 2})));
    CHECK(letterboxed(wide, size, 8).equal(made.rot90(1, {1, 2})));
    CHECK(letterboxed(wide, size, 5).equal(made.transpose(1, 2)));
  }
  CHECK(letterboxed(wide, 60).narrow(1, 20, 20).equal(wide));
  const auto square = at::randint(256, {3, 25, 25}, at::kByte);
  CHECK(letterboxed(square, 13).equal(resized(square, 13)));
  // 61 x 20 to 61: 41 lines of grey, one more below than above. A line is left of the thinnest picture.
  const auto odd = letterboxed(at::full({3, 20, 61}, 200, at::kByte), 61);
  CHECK(odd[0].select(1, 0).eq(200).nonzero().view(-1).equal(at::arange(20, 40, at::kLong)));
  const auto thin = letterboxed(at::full({3, 1, 500}, 200, at::kByte), 7);
  CHECK(thin[1].select(1, 6).eq(200).nonzero().view(-1).equal(at::tensor({3}, at::kLong)));
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
