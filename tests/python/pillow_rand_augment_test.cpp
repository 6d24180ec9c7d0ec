// Every operation of RandAugment at every magnitude beside Pillow's.

#include <mixmatch/augment/rand_augment.hpp>
#include <mixmatch/data/cifar10.hpp>
#include <mixmatch/data/shapes.hpp>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "subprocess.hpp"
#include "test_util.hpp"

using mixmatch::augment::RandAugmentOp;
using mixmatch::augment::RandAugmentOptions;
using torch::Tensor;

namespace {

void write_bytes(const std::filesystem::path& path, const Tensor& images) {
  const Tensor bytes = images.permute({0, 2, 3, 1}).contiguous();
  write_file(path,
             std::string(static_cast<const char*>(bytes.data_ptr()), static_cast<size_t>(bytes.numel())));
}

void write_operation(const TempDir& dir, const Tensor& images, const std::string& name,
                     RandAugmentOp operation, const RandAugmentOptions& ranges) {
  for (int64_t magnitude = 0; magnitude <= 9; ++magnitude) {
    const auto options = RandAugmentOptions(ranges)
                             .operations({operation})
                             .num_ops(1)
                             .probability(1)
                             .min_magnitude(magnitude)
                             .max_magnitude(magnitude)
                             .fill({0})
                             .cutout(0);
    for (const int sign : {1, -1}) {
      const Tensor uniform =
          at::full({images.size(0), rand_augment_draws(options)}, sign > 0 ? 0.75 : 0.25, at::kFloat);
      write_bytes(dir / c10::str(name, '_', magnitude, '_', sign),
                  rand_augment_with(images, uniform, options));
    }
  }
}

void compare(const Tensor& images) {
  const TempDir dir;
  write_bytes(dir / "images", images);
  const auto fixmatch = RandAugmentOptions::fixmatch(), uda = RandAugmentOptions::uda();
  for (const auto& [name, operation] :
       std::vector<std::pair<std::string, RandAugmentOp>>{{"auto_contrast", RandAugmentOp::auto_contrast},
                                                          {"brightness", RandAugmentOp::brightness},
                                                          {"color", RandAugmentOp::color},
                                                          {"contrast", RandAugmentOp::contrast},
                                                          {"equalize", RandAugmentOp::equalize},
                                                          {"identity", RandAugmentOp::identity},
                                                          {"posterize", RandAugmentOp::posterize},
                                                          {"rotate", RandAugmentOp::rotate},
                                                          {"sharpness", RandAugmentOp::sharpness},
                                                          {"shear_x", RandAugmentOp::shear_x},
                                                          {"shear_y", RandAugmentOp::shear_y},
                                                          {"solarize", RandAugmentOp::solarize},
                                                          {"translate_x", RandAugmentOp::translate_x},
                                                          {"translate_y", RandAugmentOp::translate_y},
                                                          {"invert", RandAugmentOp::invert}}) {
    write_operation(dir, images, name, operation, fixmatch);
    if (name == "brightness" || name == "color" || name == "contrast" || name == "sharpness" ||
        name == "posterize") {
      write_operation(dir, images, "uda_" + name, operation, uda);
    }
  }
  const auto finished =
      run({MIXMATCH_PYTHON, "-B", "-W", "ignore", MIXMATCH_PILLOW_RAND_AUGMENT, (dir / "").string(),
           std::to_string(images.size(2)), std::to_string(images.size(3))});
  if (finished.status == 77) {
    std::fputs(finished.err.c_str(), stdout);
    return;
  }
  INFO(finished.out << finished.err);
  CHECK(finished.status == 0);
  CHECK_THAT(finished.out, contains("translate_y: mean"));
}

}  // namespace

TEST_CASE("every operation at every magnitude is Pillow's") {
  const Tensor shapes = mixmatch::data::make_shapes(6, 1).images;
  // Narrow, bright, dark and few-valued ones, for what looks at histograms.
  const Tensor ramp = at::arange(32, at::kLong).mul(5).add(60).view({1, 1, 1, 32}).expand({1, 3, 32, 32});
  torch::manual_seed(1);
  compare(at::cat({shapes, ramp.to(at::kByte), at::randint(256, {2, 3, 32, 32}, at::kByte),
                   at::randint(97, 103, {1, 3, 32, 32}, at::kByte), at::full({1, 3, 32, 32}, 77, at::kByte),
                   at::rand({2, 3, 32, 32}).pow(3).mul(255).to(at::kByte)}));
}

TEST_CASE("so it is of images that are not square, of odd sides") {
  torch::manual_seed(2);
  const Tensor smooth = at::upsample_bilinear2d(at::rand({4, 3, 5, 4}) * 255, {23, 37}, true);
  compare(at::cat({smooth.to(at::kByte), at::randint(256, {1, 3, 23, 37}, at::kByte)}));
}

TEST_CASE("so it is of photographs, where MIXMATCH_TEST_CIFAR10 names a folder of CIFAR-10's binary files") {
  const char* folder = std::getenv("MIXMATCH_TEST_CIFAR10");
  if (folder == nullptr) {
    return;
  }
  std::string records = read_file(std::filesystem::path(folder) / "data_batch_1.bin").substr(0, 100 * 3073);
  const Tensor pixels =
      at::from_blob(records.data(), {100, 3073}, at::kByte).slice(1, 1).reshape({100, 3, 32, 32});
  compare(pixels);
}
