#include <mixmatch/augment/random_resized_crop.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::augment::random_resized_crop;
using mixmatch::augment::random_resized_crop_draws;
using mixmatch::augment::random_resized_crop_with;
using mixmatch::augment::RandomResizedCrop;
using mixmatch::augment::RandomResizedCropOptions;
using mixmatch::detail::CropBoxes;
using torch::Tensor;

namespace {

struct Box {
  int64_t top, left, height, width, flip;
};

/// torchvision's RandomResizedCrop.get_params by such draws, in plain arithmetic.
Box expected_box(const float* u, int64_t height, int64_t width, const RandomResizedCropOptions& options) {
  const auto h = static_cast<double>(height), w = static_cast<double>(width);
  const int64_t flip = options.mirror() && u[22] < 0.5F ? 1 : 0;
  for (int i = 0; i < 10; ++i) {
    const double area =
        h * w * (options.min_scale() + (options.max_scale() - options.min_scale()) * double{u[2 * i]});
    const double low = std::log(options.min_ratio()), high = std::log(options.max_ratio());
    const double ratio = std::exp(low + (high - low) * double{u[2 * i + 1]});
    const auto cut_w = std::lrint(std::sqrt(area * ratio)), cut_h = std::lrint(std::sqrt(area / ratio));
    if (cut_w > 0 && cut_w <= width && cut_h > 0 && cut_h <= height) {
      return {static_cast<int64_t>(double{u[20]} * static_cast<double>(height - cut_h + 1)),
              static_cast<int64_t>(double{u[21]} * static_cast<double>(width - cut_w + 1)), cut_h, cut_w,
              flip};
    }
  }
  int64_t cut_h = height, cut_w = width;
  if (w / h < options.min_ratio()) {
    cut_h = std::lrint(w / options.min_ratio());
  } else if (w / h > options.max_ratio()) {
    cut_w = std::lrint(h * options.max_ratio());
  }
  return {(height - cut_h) / 2, (width - cut_w) / 2, cut_h, cut_w, flip};
}

Tensor index_of(int64_t value) { return at::tensor({value}, at::kLong); }

CropBoxes boxes_of(const Box& box) {
  return {index_of(box.top), index_of(box.left), index_of(box.height), index_of(box.width),
          index_of(box.flip)};
}

/// Bilinear enlargement of a box, in double precision.
Tensor expected_pixels(const Tensor& image, const Box& box) {
  const int64_t channels = image.size(0), height = image.size(1), width = image.size(2);
  Tensor out = at::empty({channels, height, width}, at::kDouble);
  const auto place = [](int64_t at, int64_t length, int64_t size) {
    const double x =
        (static_cast<double>(at) + 0.5) * static_cast<double>(length) / static_cast<double>(size) - 0.5;
    return std::clamp(x, 0.0, static_cast<double>(length - 1));
  };
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        const double row = place(y, box.height, height);
        const double column = place(box.flip != 0 ? width - 1 - x : x, box.width, width);
        const auto r = static_cast<int64_t>(row), k = static_cast<int64_t>(column);
        const auto at = [&](int64_t i, int64_t j) {
          return image[c][box.top + std::min(i, box.height - 1)][box.left + std::min(j, box.width - 1)]
              .item<double>();
        };
        const double fy = row - static_cast<double>(r), fx = column - static_cast<double>(k);
        out[c][y][x] = (at(r, k) * (1 - fx) + at(r, k + 1) * fx) * (1 - fy) +
                       (at(r + 1, k) * (1 - fx) + at(r + 1, k + 1) * fx) * fy;
      }
    }
  }
  return out;
}

Tensor pictures(at::IntArrayRef sizes) {
  return at::randint(256, sizes, seeded(3), at::TensorOptions(at::kByte));
}

Tensor crop_draws(int64_t count, uint64_t seed) {
  return at::rand({count, random_resized_crop_draws()}, seeded(seed), at::TensorOptions(at::kFloat));
}

}  // namespace

TEST_CASE("random_resized_crop: the boxes are torchvision's") {
  REQUIRE(random_resized_crop_draws() == 23);
  const auto narrow = RandomResizedCropOptions().min_scale(0.5).min_ratio(0.9).max_ratio(1.1);
  for (const auto& [height, width, options] :
       std::vector<std::tuple<int64_t, int64_t, RandomResizedCropOptions>>{
           {32, 32, {}},
           {224, 224, RandomResizedCropOptions().mirror(false)},
           {17, 40, RandomResizedCropOptions().min_scale(0.9)},  // mostly no try fits
           {40, 17, narrow},
           {1, 1, {}},
           {2, 90, {}}}) {
    const Tensor uniform = crop_draws(400, 5);
    const auto boxes = mixmatch::augment::detail::crop_boxes(uniform, height, width, options);
    int64_t fallen_back = 0;
    for (int64_t n = 0; n < 400; ++n) {
      const Box box = expected_box(uniform[n].data_ptr<float>(), height, width, options);
      INFO(height << " x " << width << ", row " << n);
      REQUIRE(boxes.top[n].item<int64_t>() == box.top);
      REQUIRE(boxes.left[n].item<int64_t>() == box.left);
      REQUIRE(boxes.height[n].item<int64_t>() == box.height);
      REQUIRE(boxes.width[n].item<int64_t>() == box.width);
      REQUIRE(boxes.flip[n].item<int64_t>() == box.flip);
      REQUIRE(box.top >= 0);
      REQUIRE(box.top + box.height <= height);
      REQUIRE(box.left + box.width <= width);
      fallen_back += box.height == height || box.width == width ? 1 : 0;
    }
    CHECK((height == 32 || fallen_back > 0 || height == 224));
  }
}

TEST_CASE("random_resized_crop: pixels are the box's, enlarged bilinearly") {
  const Tensor images = pictures({1, 3, 13, 18});
  for (const Box box : {Box{2, 3, 7, 9, 0}, Box{0, 0, 13, 18, 0}, Box{5, 4, 1, 1, 1}, Box{1, 0, 12, 18, 1},
                        Box{0, 17, 13, 1, 0}, Box{3, 2, 6, 5, 1}}) {
    const Tensor made = mixmatch::detail::resized_crop_on_cpu(images, boxes_of(box))[0];
    const Tensor expected = expected_pixels(images[0], box);
    CHECK((made.to(at::kDouble) - expected).abs().max().item<double>() < 0.63);
    // LibTorch's own, of the box alone.
    const Tensor cut = images.narrow(2, box.top, box.height).narrow(3, box.left, box.width).to(at::kFloat);
    Tensor resized = at::upsample_bilinear2d(cut, {13, 18}, /*align_corners=*/false)[0].round();
    resized = box.flip != 0 ? resized.flip(2) : resized;
    const Tensor difference = (made.to(at::kFloat) - resized).abs();
    CHECK(difference.max().item<float>() <= 1);
    CHECK(difference.mean().item<float>() < 0.05);
  }
  const Box whole{0, 0, 13, 18, 0}, mirrored{0, 0, 13, 18, 1};
  CHECK(mixmatch::detail::resized_crop_on_cpu(images, boxes_of(whole)).equal(images));
  CHECK(mixmatch::detail::resized_crop_on_cpu(images, boxes_of(mirrored)).equal(images.flip(3)));
}

TEST_CASE("random_resized_crop: the same in ATen's calls, in any layout, with any number of threads") {
  for (const auto& sizes : std::vector<std::vector<int64_t>>{{6, 3, 12, 12}, {5, 1, 9, 20}, {4, 5, 20, 7}}) {
    const Tensor images = pictures(sizes);
    const Tensor uniform = crop_draws(sizes[0], 7);
    const Tensor made = random_resized_crop_with(images, uniform);
    CHECK(made.is_contiguous(at::MemoryFormat::ChannelsLast));
    CHECK(made.scalar_type() == at::kByte);
    CHECK(made.sizes() == images.sizes());
    const auto boxes = mixmatch::augment::detail::crop_boxes(uniform, sizes[2], sizes[3], {});
    CHECK(mixmatch::detail::resized_crop_composite(images, boxes).equal(made));
    const auto other_layouts = std::vector<Tensor>{images.contiguous(at::MemoryFormat::ChannelsLast),
                                                   images.transpose(2, 3).contiguous().transpose(2, 3),
                                                   at::cat({images, images}, 3).narrow(3, 0, sizes[3]),
                                                   at::stack({images, images}, 4).select(4, 1)};
    for (const auto& other : other_layouts) {
      REQUIRE(other.equal(images));
      CHECK(random_resized_crop_with(other, uniform).equal(made));
      CHECK(mixmatch::detail::resized_crop_composite(other, boxes).equal(made));
    }
    for (int64_t n = 0; n < sizes[0]; ++n) {  // each by its own draws
      CHECK(random_resized_crop_with(images.narrow(0, n, 1), uniform.narrow(0, n, 1))
                .equal(made.narrow(0, n, 1)));
    }
  }
  const Tensor images = pictures({40, 3, 32, 32}), uniform = crop_draws(40, 8);
  at::set_num_threads(1);
  const Tensor one = random_resized_crop_with(images, uniform);
  at::set_num_threads(3);
  CHECK(random_resized_crop_with(images, uniform).equal(one));
  at::set_num_threads(2);
  CHECK(random_resized_crop(pictures({0, 3, 8, 8})).size(0) == 0);
}

TEST_CASE("random_resized_crop: draws from the generator, and from nothing else") {
  const Tensor images = pictures({8, 3, 16, 16});
  auto generator = seeded(4);
  const Tensor first = random_resized_crop(images, {}, generator);
  CHECK(first.equal(random_resized_crop_with(images, crop_draws(8, 4))));
  const RandomResizedCrop augment(
      RandomResizedCropOptions().min_scale(1).min_ratio(1).max_ratio(1).mirror(false), generator);
  CHECK(augment(images).equal(images));
  CHECK_FALSE(random_resized_crop(images, {}, generator).equal(first));
  // Whatever is drawn, a box is inside.
  for (const float value : {-1.0F, 0.0F, 1.0F, 2.0F, std::numeric_limits<float>::infinity()}) {
    const auto boxes = mixmatch::augment::detail::crop_boxes(at::full({1, 23}, value, at::kFloat), 9, 12, {});
    CHECK(boxes.top.item<int64_t>() + boxes.height.item<int64_t>() <= 9);
    CHECK(boxes.left.item<int64_t>() + boxes.width.item<int64_t>() <= 12);
    CHECK(boxes.top.item<int64_t>() >= 0);
    CHECK(boxes.height.item<int64_t>() >= 1);
  }
}

TEST_CASE("random_resized_crop: refuses what does not fit") {
  const Tensor images = pictures({2, 3, 8, 8});
  const auto refuses = [&](const Tensor& of, const RandomResizedCropOptions& options, const char* reason) {
    CHECK_THAT(error_of([&] { random_resized_crop(of, options); }),
               contains("random_resized_crop: ") && contains(reason));
  };
  refuses(images.to(at::kFloat), {}, "images must be uint8 [N, C, H, W], got Float");
  refuses(images[0], {}, "images must be uint8 [N, C, H, W]");
  refuses({}, {}, "images must be uint8 [N, C, H, W]");
  refuses(images, RandomResizedCropOptions().min_scale(0),
          "scale must be 0 < min_scale <= max_scale <= 1, got 0");
  refuses(images, RandomResizedCropOptions().max_scale(1.5), "scale must be");
  refuses(images, RandomResizedCropOptions().min_scale(std::nan("")), "scale must be");
  refuses(images, RandomResizedCropOptions().min_ratio(2), "ratio must be 0 < min_ratio <= max_ratio, got 2");
  refuses(images, RandomResizedCropOptions().max_ratio(INFINITY), "ratio must be");
  CHECK_THAT(error_of([&] { RandomResizedCrop(RandomResizedCropOptions().min_scale(2)); }),
             contains("RandomResizedCrop: scale must be"));
  CHECK_THAT(error_of([&] {
               random_resized_crop_with(images, at::rand({2, 3}));
             }),
             contains("uniform must be float32 [2, 23] on cpu, got Float [2, 3] on cpu"));
}
