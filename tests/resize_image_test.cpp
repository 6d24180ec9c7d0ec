#include <mixmatch/detail/io/resize_image.hpp>

#include <ATen/ATen.h>

#include "catch.hpp"

namespace {

/// Our resizing of a uint8 [3, H, W] picture.
at::Tensor resized(const at::Tensor& image, int64_t size) {
  auto interleaved = image.permute({1, 2, 0}).contiguous();
  auto out = at::empty({3, size, size}, at::kByte);
  mixmatch::detail::resize_and_crop(interleaved.data_ptr<uint8_t>(), image.size(2), image.size(1), size,
                                    out.data_ptr<uint8_t>());
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
