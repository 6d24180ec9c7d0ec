#include <mixmatch/augment/rand_augment.hpp>

#include "catch.hpp"
#include "cuda_emulation.hpp"

#include <string>
#include <utility>
#include <vector>

using mixmatch::augment::rand_augment_draws;
using mixmatch::augment::rand_augment_with;
using mixmatch::augment::RandAugmentOp;
using mixmatch::augment::RandAugmentOptions;
using torch::Tensor;

namespace cuda_emulation {
#include "cuda_rand_augment.inc"
}

namespace {

namespace emulated = cuda_emulation;

/// The kernel by itself: `blocks` for all images, threads that are no divisor of anything.
Tensor run(const Tensor& images, const Tensor& uniform, const RandAugmentOptions& options,
           unsigned blocks = 3, unsigned threads = 7) {
  const auto plan = mixmatch::augment::detail::rand_augment_plan(options, images.size(2), images.size(3));
  emulated::RandAugmentPlan parameter{};
  static_assert(sizeof parameter == sizeof plan);
  std::memcpy(&parameter, &plan, sizeof plan);
  Tensor out = at::full(images.sizes(), 99, images.options()).contiguous(at::MemoryFormat::ChannelsLast);
  Tensor scratch = at::full({out.numel()}, 98, images.options());
  const emulated::Strides strides{images.stride(0), images.stride(1), images.stride(2), images.stride(3)};
  emulated::launch(blocks, 1, threads, emulated::rand_augment<emulated::u8>,
                   emulated::pointer<emulated::u8>(out), emulated::pointer<emulated::u8>(scratch),
                   emulated::pointer<const emulated::u8>(images), emulated::pointer<const float>(uniform),
                   images.size(0), uniform.size(1), strides, parameter);
  return out;
}

/// Noise, few values, one value: what histograms make a difference of.
Tensor some_images(int64_t height, int64_t width) {
  return at::cat({at::randint(256, {2, 3, height, width}, at::kByte),
                  at::randint(90, 120, {1, 3, height, width}, at::kByte),
                  at::full({1, 3, height, width}, 5, at::kByte)});
}

const auto last = static_cast<int32_t>(RandAugmentOp::cutout);

}  // namespace

TEST_CASE("the RandAugment kernel makes the same bytes as the CPU's, by each operation") {
  torch::manual_seed(1);
  const Tensor images = some_images(19, 24);
  for (int32_t operation = 0; operation <= last; ++operation) {
    for (const int64_t magnitude : {0, 1, 4, 9, 10}) {
      for (const auto& preset : {RandAugmentOptions::fixmatch(), RandAugmentOptions::uda()}) {
        const auto options = RandAugmentOptions(preset)
                                 .operations({static_cast<RandAugmentOp>(operation)})
                                 .num_ops(1)
                                 .probability(1)
                                 .min_magnitude(magnitude)
                                 .max_magnitude(magnitude);
        const Tensor uniform = at::rand({images.size(0), rand_augment_draws(options)});
        INFO("operation " << operation << ", magnitude " << magnitude);
        CHECK(run(images, uniform, options).equal(rand_augment_with(images, uniform, options)));
      }
    }
  }
}

TEST_CASE("so it does by whole policies, of any strides and sizes") {
  torch::manual_seed(2);
  const Tensor planes = at::randint(256, {12, 3, 16, 11}, at::kByte);
  const auto policies = std::vector<RandAugmentOptions>{
      RandAugmentOptions::fixmatch(), RandAugmentOptions::uda(),
      RandAugmentOptions::uda().num_ops(5).probability(1), RandAugmentOptions().num_ops(3).cutout(0),
      RandAugmentOptions().num_ops(0)};
  for (const auto& options : policies) {
    const Tensor uniform = at::rand({12, rand_augment_draws(options)});
    for (const Tensor& images : {planes, planes.contiguous(at::MemoryFormat::ChannelsLast),
                                 planes.transpose(2, 3), planes.slice(3, 0, 11, 2)}) {
      CHECK(run(images, uniform, options).equal(rand_augment_with(images, uniform, options)));
    }
  }
  for (const auto& [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {2, 5}, {3, 1}}) {
    const Tensor images = at::randint(256, {9, 3, height, width}, at::kByte);
    const auto options = RandAugmentOptions::uda().num_ops(4).probability(1);
    const Tensor uniform = at::rand({9, rand_augment_draws(options)});
    CHECK(run(images, uniform, options).equal(rand_augment_with(images, uniform, options)));
  }
}

TEST_CASE("the kernel's draws may be anything") {
  torch::manual_seed(3);
  const Tensor images = at::randint(256, {4, 3, 8, 8}, at::kByte);
  const auto options = RandAugmentOptions::uda().probability(1);
  const Tensor uniform = at::full({4, rand_augment_draws(options)}, 1.0, at::kFloat);
  uniform[1].fill_(-1);
  uniform[2].fill_(INFINITY);
  uniform[3].fill_(0.99999994F);
  CHECK(run(images, uniform, options).equal(rand_augment_with(images, uniform, options)));
}

TEST_CASE("the library launches the RandAugment kernel with what it expects") {
  torch::manual_seed(4);
  emulated::EmulatedDevice device;
  device.add("rand_augment<u8>", emulated::rand_augment<emulated::u8>);
  const Tensor images = some_images(12, 12);
  const auto options = RandAugmentOptions().num_ops(3).probability(0.8);
  const auto plan = mixmatch::augment::detail::rand_augment_plan(options, 12, 12);
  const Tensor uniform = at::rand({images.size(0), rand_augment_draws(options)});
  const Tensor out = mixmatch::detail::rand_augment_on_cuda(images, uniform, plan);
  CHECK(out.is_contiguous(at::MemoryFormat::ChannelsLast));
  CHECK(out.equal(rand_augment_with(images, uniform, options)));
  CHECK(device.launches() == 1);
  CHECK(mixmatch::detail::rand_augment_on_cuda(images.slice(0, 0, 0), uniform.slice(0, 0, 0), plan).size(0) ==
        0);
  CHECK(device.launches() == 1);
  CHECK_FALSE(mixmatch::detail::rand_augment_on_cuda(images, uniform.to(at::kDouble), plan).defined());
  CHECK_FALSE(mixmatch::detail::rand_augment_on_cuda(images, uniform.t().contiguous().t(), plan).defined());
}
