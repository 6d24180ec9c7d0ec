#include <mixmatch/augment/random_crop_flip.hpp>

#include "catch.hpp"
#include "cuda_emulation.hpp"

using mixmatch::detail::CropFlip;
using torch::Tensor;

namespace cuda_emulation {
#include "cuda_augment.inc"
}

namespace {

namespace emulated = cuda_emulation;

Tensor channels_last_of(const Tensor& images, at::ScalarType type) {
  return at::full(images.sizes(), 7, at::TensorOptions().dtype(type))
      .contiguous(at::MemoryFormat::ChannelsLast);
}

emulated::Strides strides_of(const Tensor& images) {
  return {images.stride(0), images.stride(1), images.stride(2), images.stride(3)};
}

/// The kernel, without `scale` to bytes.
Tensor run(const Tensor& images, const CropFlip* crops, const mixmatch::detail::PixelScale* scale,
           at::ScalarType type) {
  const Tensor out = channels_last_of(images, type);
  emulated::PixelScale pixels{};
  std::fill(std::begin(pixels.scale), std::end(pixels.scale), 1.0);
  if (scale != nullptr) {
    std::copy(scale->shift.begin(), scale->shift.end(), pixels.shift);
    std::copy(scale->scale.begin(), scale->scale.end(), pixels.scale);
  }
  const auto offsets = [&](const Tensor& of) {
    return crops == nullptr ? nullptr : emulated::pointer<const long long>(of);
  };
  const CropFlip none;
  const CropFlip& used = crops == nullptr ? none : *crops;
  const auto launch = [&](auto scalar) {
    using Scalar = decltype(scalar);
    emulated::launch(3, 1, 8, emulated::crop_flip<Scalar>, emulated::pointer<Scalar>(out),
                     emulated::pointer<unsigned char>(images), offsets(used.flip), offsets(used.row),
                     offsets(used.column), used.padding, images.size(0), images.size(1), images.size(2),
                     images.size(3), strides_of(images), pixels);
  };
  if (scale == nullptr) {
    launch(static_cast<unsigned char>(0));
  } else {
    emulated::dispatch(type, launch);
  }
  return out;
}

}  // namespace

TEST_CASE("the augmentation kernel crops, mirrors and scales to the same bits as the composite") {
  torch::manual_seed(1);
  for (const int64_t channels : {3, 1}) {
    const Tensor planes = at::randint(256, {4, channels, 9, 7}, at::kByte);
    const auto scale = mixmatch::augment::detail::pixel_scale(
        "test", mixmatch::augment::NormalizeOptions().mean({0.4}).stddev({0.3}), channels);
    const CropFlip crops{3, at::tensor({0, 1, 1, 0}, at::kLong), at::tensor({0, 6, 2, 3}, at::kLong),
                         at::tensor({6, 0, 5, 3}, at::kLong)};
    for (const Tensor& images : {planes, planes.contiguous(at::MemoryFormat::ChannelsLast)}) {
      for (const auto type : emulated::all_types) {
        INFO(type << ", strides " << images.strides());
        const Tensor cropped = mixmatch::detail::crop_flip_composite(images, crops);
        CHECK(run(images, &crops, &scale, type)
                  .equal(mixmatch::detail::scale_pixels_composite(cropped, scale, type)));
        CHECK(run(images, nullptr, &scale, type)
                  .equal(mixmatch::detail::scale_pixels_composite(images, scale, type)));
      }
      const Tensor cropped = run(images, &crops, nullptr, at::kByte);
      CHECK(cropped.equal(mixmatch::detail::crop_flip_composite(images, crops)));
      CHECK(cropped.is_contiguous(at::MemoryFormat::ChannelsLast));
      CHECK(run(images, nullptr, nullptr, at::kByte).equal(images));
    }
  }
}

TEST_CASE("the library launches the augmentation kernel with what it expects") {
  torch::manual_seed(2);
  emulated::EmulatedDevice device;
  device.add("crop_flip<float>", emulated::crop_flip<float>);
  device.add("crop_flip<BFloat16>", emulated::crop_flip<emulated::BFloat16>);
  const Tensor images = at::randint(256, {2, 3, 5, 6}, at::kByte);
  const auto scale = mixmatch::augment::detail::pixel_scale(
      "test", mixmatch::augment::NormalizeOptions().mean({0.4, 0.5, 0.6}).stddev({0.3, 0.2, 0.1}), 3);
  const CropFlip crops{2, at::tensor({0, 1}, at::kLong), at::tensor({0, 4}, at::kLong),
                       at::tensor({3, 1}, at::kLong)};
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const Tensor cropped = mixmatch::detail::crop_flip_on_cuda(images, crops.flip, crops.row, crops.column,
                                                               crops.padding, scale.shift, scale.scale, type);
    CHECK(cropped.equal(mixmatch::detail::scale_pixels_composite(
        mixmatch::detail::crop_flip_composite(images, crops), scale, type)));
    CHECK(mixmatch::detail::crop_flip_on_cuda(images, {}, {}, {}, 0, scale.shift, scale.scale, type)
              .equal(mixmatch::detail::scale_pixels_composite(images, scale, type)));
  }
  CHECK_FALSE(mixmatch::detail::crop_flip_on_cuda(at::zeros({1, 9, 4, 4}, at::kByte), {}, {}, {}, 0,
                                                  std::vector<double>(9, 0), std::vector<double>(9, 1),
                                                  at::kFloat)
                  .defined());
}

TEST_CASE("the library launches the kernel for bytes with what it expects") {
  torch::manual_seed(3);
  emulated::EmulatedDevice device;
  device.add("crop_flip<u8>", emulated::crop_flip<unsigned char>);
  const auto crop = [](const Tensor& images, const CropFlip& crops) {
    return mixmatch::detail::crop_flip_on_cuda(images, crops.flip, crops.row, crops.column, crops.padding, {},
                                               {}, at::kByte);
  };
  const CropFlip crops{2, at::tensor({0, 1, 1}, at::kLong), at::tensor({0, 4, 2}, at::kLong),
                       at::tensor({3, 1, 0}, at::kLong)};
  for (const int64_t channels : {3, 1, 8}) {
    const Tensor images = at::randint(256, {3, channels, 5, 6}, at::kByte);
    const Tensor cropped = crop(images, crops);
    CHECK(cropped.equal(mixmatch::detail::crop_flip_composite(images, crops)));
    CHECK(cropped.is_contiguous(at::MemoryFormat::ChannelsLast));
    CHECK(crop(images, {}).equal(images));
  }
  CHECK(device.launches() == 6);
  CHECK(crop(at::empty({0, 3, 5, 6}, at::kByte), {}).size(0) == 0);
  CHECK(device.launches() == 6);
  // What is not for it is left to ATen's calls.
  CHECK_FALSE(crop(at::zeros({3, 9, 5, 6}, at::kByte), crops).defined());
  CHECK_FALSE(crop(at::zeros({3, 3, 5, 6}), crops).defined());
  auto other = crops;
  other.row = crops.row.to(at::kInt);
  CHECK_FALSE(crop(at::zeros({3, 3, 5, 6}, at::kByte), other).defined());
  CHECK(device.launches() == 6);
}
