// Batched mirror + crop + normalisation against the same done image by image in ATen calls, as a per-sample
// loader does; and the strong augmentation, whose peer is peer/pillow_rand_augment.py.

#include <fmt/format.h>
#include <torch/torch.h>
#include <mixmatch/augment/rand_augment.hpp>
#include <mixmatch/augment/random_crop_flip.hpp>

#include <string>
#include <vector>

#include "catch.hpp"

using torch::Tensor;

namespace {

/// One image at a time: mirror, reflection pad, crop, to [-1, 1]; then stack the batch.
Tensor augment_one_by_one(const Tensor& images, int64_t padding) {
  const int64_t height = images.size(2);
  const int64_t width = images.size(3);
  std::vector<Tensor> results;
  results.reserve(static_cast<size_t>(images.size(0)));
  for (const Tensor& image : images.unbind()) {
    const auto draw = [](int64_t choices) { return at::randint(choices, {1}, at::kLong).item<int64_t>(); };
    Tensor one = image.to(at::kFloat).div_(127.5).sub_(1);
    if (draw(2) == 1) {
      one = one.flip({2});
    }
    one = at::reflection_pad2d(one, {padding, padding, padding, padding});
    results.push_back(one.narrow(1, draw(2 * padding + 1), height).narrow(2, draw(2 * padding + 1), width));
  }
  return at::stack(results).contiguous(at::MemoryFormat::ChannelsLast);
}

}  // namespace

TEST_CASE("random_crop_flip, uint8 to float32") {
  struct Size {
    int64_t count, side;
  };
  for (const auto [count, side] : {Size{64, 32}, Size{1024, 32}, Size{64, 96}}) {
    const Tensor images = at::randint(256, {count, 3, side, side}, at::kByte);
    const auto name = fmt::format("{}x3x{}x{} | ", count, side, side);
    BENCHMARK(name + "random_crop_flip") { return mixmatch::augment::random_crop_flip(images); };
    BENCHMARK(name + "ATen, image by image") { return augment_one_by_one(images, 4); };
  }
}

TEST_CASE("RandAugment, uint8") {
  // FixMatch's and UDA's unlabeled batch: 7 x 64.
  const Tensor planes = at::randint(256, {448, 3, 32, 32}, at::kByte);
  const Tensor channels_last = planes.contiguous(at::MemoryFormat::ChannelsLast);
  const auto uda = mixmatch::augment::RandAugmentOptions::uda();
  const std::string size = "448x3x32x32", column = " | rand_augment";
  BENCHMARK(size + column) { return mixmatch::augment::rand_augment(planes); };
  BENCHMARK(size + " channels-last" + column) { return mixmatch::augment::rand_augment(channels_last); };
  BENCHMARK(size + ", UDA's policy" + column) { return mixmatch::augment::rand_augment(planes, uda); };
}
