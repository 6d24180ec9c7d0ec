#include <mixmatch/augment/cutout.hpp>
#include <mixmatch/augment/rand_augment.hpp>

#include "catch.hpp"
#include "simd_levels.hpp"
#include "test_util.hpp"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

using mixmatch::augment::cutout;
using mixmatch::augment::CutoutOptions;
using mixmatch::augment::rand_augment;
using mixmatch::augment::rand_augment_draws;
using mixmatch::augment::rand_augment_with;
using mixmatch::augment::RandAugment;
using mixmatch::augment::RandAugmentOptions;
using torch::Tensor;
using Op = mixmatch::augment::RandAugmentOp;

namespace {

Tensor noise(at::IntArrayRef sizes, int64_t low = 0, int64_t high = 256) {
  at::manual_seed(1);
  return at::randint(low, high, sizes, at::kByte);
}

/// This operation at this magnitude, on every image, and nothing else. Factors of blends are 1/4 (1 + v): no
/// rounding in either precision.
RandAugmentOptions only(Op operation, int64_t magnitude) {
  return RandAugmentOptions()
      .operations({operation})
      .num_ops(1)
      .probability(1)
      .min_magnitude(magnitude)
      .max_magnitude(magnitude)
      .enhance_max(2.5)
      .enhance_bias(0.25)
      .cutout(0);
}

Tensor apply(const Tensor& images, const RandAugmentOptions& options, int sign = 1) {
  const Tensor uniform =
      at::full({images.size(0), rand_augment_draws(options)}, sign > 0 ? 0.75 : 0.25, at::kFloat);
  return rand_augment_with(images, uniform, options);
}

Tensor apply(const Tensor& images, Op operation, int64_t magnitude, int sign = 1) {
  return apply(images, only(operation, magnitude), sign);
}

/// make(image, c, y, x) for every pixel.
template <class Make>
Tensor pixel_by_pixel(const Tensor& images, const Make& make) {
  Tensor out = at::empty_like(images, at::MemoryFormat::Contiguous);
  auto to = out.accessor<uint8_t, 4>();
  const Tensor plain = images.contiguous();
  const auto from = plain.accessor<uint8_t, 4>();
  for (int64_t n = 0; n < images.size(0); ++n) {
    for (int64_t c = 0; c < 3; ++c) {
      for (int64_t y = 0; y < images.size(2); ++y) {
        for (int64_t x = 0; x < images.size(3); ++x) {
          to[n][c][y][x] = static_cast<uint8_t>(make(from[n], c, y, x));
        }
      }
    }
  }
  return out;
}

int blended(double base, double value, double factor) {
  return static_cast<int>(std::clamp(base + factor * (value - base), 0.0, 255.0));
}

/// ITU-R 601-2 in sixteenths of a thousandth, to the nearest.
template <class Image>
int grey_pixels(const Image& image, int64_t y, int64_t x) {
  return (image[0][y][x] * 19595 + image[1][y][x] * 38470 + image[2][y][x] * 7471 + 32768) / 65536;
}

/// Where a map of pixels' centres takes pixel (x, y) from; too near to a border between pixels to tell,
/// `tie`.
struct Source {
  int64_t x, y;
  bool tie;
};
template <class Map>
Source source_of(const Map& map, int64_t x, int64_t y) {
  const auto [u, v] = map(static_cast<double>(x) + 0.5, static_cast<double>(y) + 0.5);
  const auto near = [](double value) { return std::abs(value - std::round(value)) < 1e-3; };
  return {static_cast<int64_t>(std::floor(u)), static_cast<int64_t>(std::floor(v)), near(u) || near(v)};
}

/// The result of a geometric operation against a map in double; ties are left to the result.
template <class Map>
void check_moved(const Tensor& images, const Tensor& result, const Map& map) {
  const Tensor plain = result.contiguous();
  const auto found = plain.accessor<uint8_t, 4>();
  int64_t ties = 0;
  const Tensor expected = pixel_by_pixel(images, [&](const auto& image, int64_t c, int64_t y, int64_t x) {
    const Source from = source_of(map, x, y);
    ties += from.tie ? 1 : 0;
    const bool inside = from.x >= 0 && from.x < images.size(3) && from.y >= 0 && from.y < images.size(2);
    return from.tie ? found[0][c][y][x] : inside ? image[c][from.y][from.x] : 0;
  });
  CHECK(result.equal(expected));
  CHECK(ties * 10 < images.numel());
}

std::string bytes_of(const Tensor& image) {
  const Tensor plain = image.contiguous();
  return {static_cast<const char*>(plain.data_ptr()), static_cast<size_t>(plain.numel())};
}

}  // namespace

TEST_CASE("brightness, color and contrast blend as by hand") {
  Tensor x = at::zeros({1, 3, 1, 2}, at::kByte);
  x.select(3, 0).copy_(at::tensor({200, 100, 50}, at::kByte).view({1, 3, 1}));  // its grey value is 124
  x.select(3, 1).fill_(10);
  const auto first = [](const Tensor& result) {
    const Tensor values = result.select(3, 0).flatten().to(at::kLong);
    return std::vector<int64_t>(values.data_ptr<int64_t>(), values.data_ptr<int64_t>() + 3);
  };
  CHECK(first(apply(x, Op::brightness, 1)) == std::vector<int64_t>{100, 50, 25});
  CHECK(first(apply(x, Op::brightness, 0)) == std::vector<int64_t>{50, 25, 12});
  CHECK(first(apply(x, Op::brightness, 5)) == std::vector<int64_t>{255, 150, 75});
  CHECK(first(apply(x, Op::color, 1)) == std::vector<int64_t>{162, 112, 87});
  CHECK(first(apply(x, Op::color, 7)) == std::vector<int64_t>{255, 76, 0});
  CHECK(first(apply(x, Op::contrast, 1)) == std::vector<int64_t>{133, 83, 58});  // the mean is 67
  for (const auto operation : {Op::brightness, Op::color, Op::contrast, Op::sharpness}) {
    CHECK(apply(x, operation, 3).equal(x));
  }
}

TEST_CASE("each blend is what double arithmetic makes") {
  const Tensor x = noise({3, 3, 9, 12});
  for (int64_t v = 0; v <= 10; ++v) {
    const double factor = 0.25 * static_cast<double>(1 + v);
    CHECK(apply(x, Op::brightness, v)
              .equal(pixel_by_pixel(x, [&](const auto& image, int64_t c, int64_t i, int64_t j) {
                return blended(0, image[c][i][j], factor);
              })));
    CHECK(apply(x, Op::color, v)
              .equal(pixel_by_pixel(x, [&](const auto& image, int64_t c, int64_t i, int64_t j) {
                return blended(grey_pixels(image, i, j), image[c][i][j], factor);
              })));
    CHECK(apply(x, Op::contrast, v)
              .equal(pixel_by_pixel(x, [&](const auto& image, int64_t c, int64_t i, int64_t j) {
                double sum = 0;
                for (int64_t y = 0; y < 9; ++y) {
                  for (int64_t k = 0; k < 12; ++k) {
                    sum += grey_pixels(image, y, k);
                  }
                }
                return blended(std::floor(sum / 108 + 0.5), image[c][i][j], factor);
              })));
    CHECK(apply(x, Op::sharpness, v)
              .equal(pixel_by_pixel(x, [&](const auto& image, int64_t c, int64_t i, int64_t j) -> int {
                if (i == 0 || j == 0 || i == 8 || j == 11) {
                  return image[c][i][j];
                }
                double sum = 4.0 * image[c][i][j];
                for (int64_t y = i - 1; y <= i + 1; ++y) {
                  for (int64_t k = j - 1; k <= j + 1; ++k) {
                    sum += image[c][y][k];
                  }
                }
                return blended(std::floor(sum / 13 + 0.5), image[c][i][j], factor);
              })));
  }
}

TEST_CASE("auto_contrast stretches each channel, and leaves one that has one value") {
  Tensor x = noise({2, 3, 6, 7}, 60, 120);
  x.select(1, 1).fill_(33);
  const Tensor out = apply(x, Op::auto_contrast, 5).to(at::kLong);
  CHECK(out.select(1, 1).eq(33).all().item<bool>());
  for (const int64_t c : {0, 2}) {
    const Tensor from = x.select(1, c).to(at::kDouble);
    const Tensor low = from.amin({1, 2}, true), high = from.amax({1, 2}, true);
    const Tensor exact = (from - low) * 255 / (high - low);
    CHECK(out.select(1, c).amin().item<int64_t>() == 0);
    CHECK(out.select(1, c).amax().item<int64_t>() == 255);
    // Rounded down; what is whole in exact arithmetic may come out one lower.
    CHECK(out.select(1, c).sub(exact).le(0).all().item<bool>());
    CHECK(out.select(1, c).sub(exact).gt(-1 - 1e-9).all().item<bool>());
  }
}

TEST_CASE("equalize spreads each channel's values by how many are below") {
  const Tensor x = noise({2, 3, 25, 30}, 40, 90);
  const Tensor expected = pixel_by_pixel(x, [&](const auto& image, int64_t c, int64_t i, int64_t j) {
    int64_t below = 0, highest = 0, at_highest = 0;
    for (int64_t y = 0; y < 25; ++y) {
      for (int64_t k = 0; k < 30; ++k) {
        below += image[c][y][k] < image[c][i][j] ? 1 : 0;
        at_highest = image[c][y][k] > highest ? 1 : at_highest + (image[c][y][k] == highest ? 1 : 0);
        highest = std::max<int64_t>(highest, image[c][y][k]);
      }
    }
    const int64_t share = (750 - at_highest) / 255;
    return std::min<int64_t>(255, (below + share / 2) / share);
  });
  CHECK(apply(x, Op::equalize, 5).equal(expected));
  // Too few pixels for 255 levels, or one value: nothing.
  const Tensor few = noise({1, 3, 10, 10});
  CHECK(apply(few, Op::equalize, 5).equal(few));
  const Tensor one = at::full({1, 3, 30, 30}, 9, at::kByte);
  CHECK(apply(one, Op::equalize, 5).equal(one));
}

TEST_CASE("posterize, solarize, invert and identity") {
  const Tensor x = noise({2, 3, 8, 8});
  CHECK(apply(x, Op::identity, 9).equal(x));
  CHECK(apply(x, Op::invert, 9).equal(255 - x));
  for (const auto& [v, bits, threshold] : std::vector<std::tuple<int64_t, int, int>>{
           {0, 4, 256}, {1, 4, 231}, {3, 5, 180}, {9, 7, 26}, {10, 8, 0}}) {
    const int64_t step = int64_t{1} << (8 - bits);
    CHECK(apply(x, Op::posterize, v).to(at::kLong).equal(x.to(at::kLong).div(step, "floor") * step));
    CHECK(apply(x, Op::solarize, v).equal(at::where(x.to(at::kLong).lt(threshold), x, 255 - x)));
  }
  auto fewer = only(Op::posterize, 9).posterize_range(-4);
  CHECK(apply(x, fewer).to(at::kLong).equal(x.to(at::kLong).div(128, "floor") * 128));
}

TEST_CASE("rotate, shear and translate take the pixels that double arithmetic takes") {
  const double pi = 3.14159265358979323846;
  for (const auto& [height, width] : {std::pair<int64_t, int64_t>{16, 16}, {11, 18}}) {
    const Tensor x = noise({1, 3, height, width}, 1);
    const double h = static_cast<double>(height), w = static_cast<double>(width);
    for (int64_t v = 1; v <= 10; ++v) {
      for (const int sign : {1, -1}) {
        const double part = sign * static_cast<double>(v) / 10;
        INFO(height << "x" << width << ", magnitude " << v << ", sign " << sign);
        // Counter-clockwise: a result's pixel comes from where the clockwise turn takes it.
        check_moved(x, apply(x, Op::rotate, v, sign), [&](double px, double py) {
          const double a = part * 30 * pi / 180, dx = px - w / 2, dy = py - h / 2;
          return std::pair(std::cos(a) * dx - std::sin(a) * dy + w / 2,
                           std::sin(a) * dx + std::cos(a) * dy + h / 2);
        });
        check_moved(x, apply(x, Op::shear_x, v, sign),
                    [&](double px, double py) { return std::pair(px + part * 0.3 * py, py); });
        check_moved(x, apply(x, Op::shear_y, v, sign),
                    [&](double px, double py) { return std::pair(px, py + part * 0.3 * px); });
        const double dx = sign * std::floor(0.03 * static_cast<double>(v) * w + 1e-9);
        const double dy = sign * std::floor(0.03 * static_cast<double>(v) * h + 1e-9);
        check_moved(x, apply(x, Op::translate_x, v, sign),
                    [&](double px, double py) { return std::pair(px + dx, py); });
        check_moved(x, apply(x, Op::translate_y, v, sign),
                    [&](double px, double py) { return std::pair(px, py + dy); });
      }
    }
  }
}

TEST_CASE("what moves uncovers the fill, by channel") {
  const Tensor x = at::full({1, 3, 20, 20}, 200, at::kByte);
  const Tensor out = apply(x, only(Op::translate_x, 10).fill({1, 2, 3}));
  CHECK(out.slice(3, 0, 14).eq(200).all().item<bool>());
  CHECK(out.slice(3, 14).eq(at::tensor({1, 2, 3}, at::kByte).view({1, 3, 1, 1})).all().item<bool>());
}

TEST_CASE("the square is where the draws say, as much of it as is inside") {
  const Tensor x = at::zeros({1, 3, 32, 32}, at::kByte);
  const auto options = RandAugmentOptions().num_ops(0);
  CHECK(rand_augment_draws(options) == 2);
  for (const auto& [row, column] : {std::pair<int64_t, int64_t>{0, 0}, {16, 9}, {31, 31}, {3, 30}}) {
    const Tensor centre =
        at::tensor({static_cast<double>(row) / 32, static_cast<double>(column) / 32}, at::kFloat);
    const Tensor out = rand_augment_with(x, centre.view({1, 2}), options);
    Tensor expected = at::zeros({1, 3, 32, 32}, at::kByte);
    expected.slice(2, std::max<int64_t>(row - 8, 0), row + 8)
        .slice(3, std::max<int64_t>(column - 8, 0), column + 8)
        .fill_(127);
    CHECK(out.equal(expected));
  }
  // As an operation: 20 pixels of 32 at magnitude 10.
  const auto operation = only(Op::cutout, 10).cutout_fill({9});
  const Tensor uniform = at::full({1, rand_augment_draws(operation)}, 0.5, at::kFloat);
  CHECK(rand_augment_with(x, uniform, operation).eq(9).sum().item<int64_t>() == 3 * 20 * 20);
}

TEST_CASE("all centres of the square are equally likely") {
  const int64_t count = 20000;
  const Tensor x = at::zeros({1, 3, 32, 32}, at::kByte).expand({count, 3, 32, 32});
  const Tensor out = rand_augment(x, RandAugmentOptions().num_ops(0), seeded(2));
  const Tensor cut = out.select(1, 0).eq(127);
  CHECK(out.eq(0).logical_or(out.eq(127)).all().item<bool>());
  const Tensor rows = cut.any(2), columns = cut.any(1);
  const Tensor height = rows.sum(1), width = columns.sum(1);
  CHECK(cut.sum({1, 2}).equal(height * width));  // it is a rectangle
  CHECK(height.min().item<int64_t>() == 8);
  CHECK(height.max().item<int64_t>() == 16);
  // A side of 14 in the mean over the 32 centres, so an area of 196; standard deviation of the mean .35.
  CHECK(std::abs(cut.to(at::kDouble).sum().item<double>() / static_cast<double>(count) - 196) < 2);
  // Column c is covered by 16 centres in the middle, 8 at the left edge, 9 at the right one; 625 each.
  CHECK(std::abs(columns.select(1, 16).sum().item<int64_t>() - 16 * 625) < 400);
  CHECK(std::abs(columns.select(1, 0).sum().item<int64_t>() - 9 * 625) < 400);
  CHECK(std::abs(columns.select(1, 31).sum().item<int64_t>() - 8 * 625) < 400);
}

TEST_CASE("operations, magnitudes and signs come up as often as they should") {
  // An image of which every operation at every magnitude makes another one, but for the few levels of
  // posterize and the operations without magnitude.
  const Tensor x = noise({1, 3, 40, 40}, 20, 250);
  struct Kind {
    int operation;
    int64_t magnitude;
    int sign;
  };
  std::map<std::string, Kind> kinds;
  const auto fixmatch = RandAugmentOptions::fixmatch();
  for (const Op operation : fixmatch.operations()) {
    for (int64_t v = 1; v <= 9; ++v) {
      for (const int sign : {1, -1}) {
        const auto options = RandAugmentOptions()
                                 .operations({operation})
                                 .num_ops(1)
                                 .probability(1)
                                 .min_magnitude(v)
                                 .max_magnitude(v)
                                 .cutout(0);
        const auto place =
            kinds.insert({bytes_of(apply(x, options, sign)), {static_cast<int>(operation), v, sign}});
        CHECK(place.first->second.operation == static_cast<int>(operation));
      }
    }
  }
  const int64_t batches = 10, count = 2000;
  std::map<int, int64_t> operations;
  std::map<int64_t, int64_t> magnitudes;
  int64_t negative = 0, moved = 0, graded = 0, unchanged_by_two = 0;
  auto generator = seeded(3);
  for (int64_t batch = 0; batch < batches; ++batch) {
    const Tensor out =
        rand_augment(x.expand({count, 3, 40, 40}), RandAugmentOptions().num_ops(1).cutout(0), generator);
    for (const Tensor& image : out.unbind()) {
      const auto kind = kinds.find(bytes_of(image));
      REQUIRE(kind != kinds.end());
      const auto operation = static_cast<Op>(kind->second.operation);
      ++operations[kind->second.operation];
      if (operation == Op::rotate || operation == Op::shear_x || operation == Op::shear_y ||
          operation == Op::translate_x || operation == Op::translate_y) {
        ++moved;
        negative += kind->second.sign < 0 ? 1 : 0;
      } else if (operation == Op::brightness || operation == Op::color || operation == Op::contrast ||
                 operation == Op::sharpness || operation == Op::solarize) {
        ++graded;
        ++magnitudes[kind->second.magnitude];
      }
    }
    unchanged_by_two += rand_augment(x.expand({count, 3, 40, 40}), RandAugmentOptions().cutout(0), generator)
                            .eq(x)
                            .flatten(1)
                            .all(1)
                            .sum()
                            .item<int64_t>();
  }
  // All bounds are about five standard deviations.
  const auto near = [](int64_t found, double expected, double bound) {
    INFO(found << " where " << expected << " are expected");
    CHECK(std::abs(static_cast<double>(found) - expected) < bound);
  };
  CHECK(operations.size() == 14);
  for (const auto& [operation, found] : operations) {
    INFO("operation " << operation);
    const bool identity = static_cast<Op>(operation) == Op::identity;
    near(found, identity ? 20000 * (0.5 + 0.5 / 14) : 20000 * 0.5 / 14, identity ? 350 : 130);
  }
  CHECK(magnitudes.size() == 9);
  for (const auto& [magnitude, found] : magnitudes) {
    INFO("magnitude " << magnitude);
    near(found, static_cast<double>(graded) / 9, 95);
  }
  near(negative, static_cast<double>(moved) / 2, 150);
  near(unchanged_by_two, 20000 * (0.5 + 0.5 / 14) * (0.5 + 0.5 / 14), 320);
}

TEST_CASE("two operations are one after the other") {
  const Tensor x = noise({1, 3, 20, 20});
  const auto options = RandAugmentOptions().operations({Op::invert, Op::brightness}).probability(1).cutout(0);
  Tensor uniform = at::full({1, rand_augment_draws(options)}, 0.25, at::kFloat);
  uniform[0][5] = 0.75;
  const auto darker = RandAugmentOptions(options).operations({Op::brightness}).num_ops(1);
  const Tensor draws = at::full({1, rand_augment_draws(darker)}, 0.25, at::kFloat);
  CHECK(rand_augment_with(x, uniform, options).equal(rand_augment_with(255 - x, draws, darker)));
}

TEST_CASE("rand_augment takes any strides and delivers channels-last") {
  const Tensor x = noise({6, 3, 16, 20});
  for (const auto& options : {RandAugmentOptions::fixmatch(), RandAugmentOptions::uda()}) {
    const Tensor expected = rand_augment(x, options, seeded(1));
    CHECK(expected.scalar_type() == at::kByte);
    CHECK(expected.is_contiguous(at::MemoryFormat::ChannelsLast));
    CHECK(expected.equal(rand_augment(x.contiguous(at::MemoryFormat::ChannelsLast), options, seeded(1))));
    CHECK(expected.equal(rand_augment(x.repeat_interleave(2, 3).slice(3, 0, 40, 2), options, seeded(1))));
    CHECK(expected.equal(rand_augment(x.transpose(2, 3).contiguous().transpose(2, 3), options, seeded(1))));
    CHECK(expected.equal(rand_augment(x.flip({0}).flip({0}), options, seeded(1))));
  }
  CHECK(rand_augment(x.slice(0, 0, 0)).sizes() == at::IntArrayRef({0, 3, 16, 20}));
  CHECK(rand_augment(x.slice(3, 0, 0)).sizes() == at::IntArrayRef({6, 3, 16, 0}));
  const Tensor before = x.clone();
  rand_augment(x.contiguous(at::MemoryFormat::ChannelsLast));
  CHECK(x.equal(before));
}

TEST_CASE("rand_augment is reproducible, by generator and on any number of threads") {
  const Tensor x = noise({64, 3, 32, 32});
  const Tensor out = rand_augment(x, {}, seeded(5));
  CHECK(out.equal(rand_augment(x, {}, seeded(5))));
  CHECK_FALSE(out.equal(rand_augment(x, {}, seeded(6))));
  const int threads = at::get_num_threads();
  for (const int other : {1, 3}) {
    at::set_num_threads(other);
    CHECK(out.equal(rand_augment(x, {}, seeded(5))));
  }
  at::set_num_threads(threads);
  // The draws are one block of uniform numbers.
  const mixmatch::detail::OptionalGenerator generator = seeded(5);
  const Tensor uniform = at::rand({64, rand_augment_draws({})}, generator, at::TensorOptions());
  CHECK(out.equal(rand_augment_with(x, uniform)));
  // Without a generator: the global one.
  at::manual_seed(9);
  const Tensor first = rand_augment(x);
  CHECK_FALSE(first.equal(rand_augment(x)));
  at::manual_seed(9);
  CHECK(first.equal(rand_augment(x)));
  auto shared = seeded(5);
  const RandAugment augment({}, shared);
  CHECK(augment(x).equal(out));
  CHECK_FALSE(augment(x).equal(out));
  CHECK(augment.options().num_ops() == 2);
}

TEST_CASE("every instruction set makes the same bytes") {
  for (const auto& x : {noise({40, 3, 32, 32}), noise({40, 3, 9, 70}), noise({40, 3, 2, 100})}) {
    for (const auto& options : {RandAugmentOptions::fixmatch(), RandAugmentOptions::uda().probability(1)}) {
      std::vector<Tensor> results;
      for (const auto level : simd_levels()) {
        const SimdLevelGuard guard(level);
        results.push_back(rand_augment(x, options, seeded(8)));
        CHECK(results.back().equal(results.front()));
      }
    }
  }
}

TEST_CASE("the policies of the papers") {
  const auto fixmatch = RandAugmentOptions::fixmatch(), uda = RandAugmentOptions::uda();
  CHECK(fixmatch.operations().size() == 14);
  CHECK(uda.operations().size() == 15);
  const auto has = [](const RandAugmentOptions& options, Op operation) {
    return std::count(options.operations().begin(), options.operations().end(), operation);
  };
  for (int32_t code = 0; code <= static_cast<int32_t>(Op::cutout); ++code) {
    const auto operation = static_cast<Op>(code);
    CHECK(has(fixmatch, operation) == (operation == Op::invert || operation == Op::cutout ? 0 : 1));
    CHECK(has(uda, operation) == (operation == Op::identity ? 0 : 1));
  }
  for (const auto& options : {fixmatch, uda}) {
    CHECK(options.num_ops() == 2);
    CHECK(options.probability() == 0.5);
    CHECK(options.min_magnitude() == 1);
    CHECK(options.max_magnitude() == 9);
    const auto plan = mixmatch::augment::detail::rand_augment_plan(options, 32, 32);
    CHECK(plan.cutout == 16);
    CHECK(plan.solarize_threshold[5] == 128);
  }
  const auto stronger = mixmatch::augment::detail::rand_augment_plan(uda, 32, 32);
  for (int v = 1; v <= 9; ++v) {
    CHECK(stronger.translate_x[v] == v);
    CHECK(stronger.cutout_side[v] == 2 * v);
  }
  CHECK(stronger.enhance[9] == Approx(1.72));
  CHECK(stronger.posterize_mask[9] == 0x80);
}

TEST_CASE("cutout is the square of rand_augment, for any dtype and number of channels") {
  const Tensor x = noise({50, 3, 24, 32});
  CHECK(cutout(x, {}, seeded(3)).equal(rand_augment(x, RandAugmentOptions().num_ops(0), seeded(3))));
  const Tensor grey_images = at::randn({50, 1, 24, 32}).requires_grad_();
  const Tensor out = cutout(grey_images, CutoutOptions().fill(0).side(0.25), seeded(3));
  const Tensor cut = out.eq(0);
  const Tensor area = cut.sum({1, 2, 3});
  CHECK(area.max().item<int64_t>() == 36);
  CHECK(area.min().item<int64_t>() >= 9);
  CHECK(at::where(cut, grey_images, out).equal(grey_images));
  out.sum().backward();
  CHECK(grey_images.grad().equal(cut.logical_not().to(at::kFloat)));
  CHECK(cutout(x, CutoutOptions().side(0)).equal(x));
  CHECK_FALSE(cutout(x).equal(cutout(x)));
}

TEST_CASE("cutout names a bad argument") {
  const Tensor x = noise({2, 3, 6, 8});
  const auto message = [](const Tensor& images, const CutoutOptions& options = {}) {
    return error_of([&] { cutout(images, options); });
  };
  CHECK_THAT(message(x[0]),
             contains("cutout: images must be uint8 or floating-point [N, C, H, W], got Byte [3, 6, 8]"));
  CHECK_THAT(message(x.to(at::kLong)), contains("got Long"));
  CHECK_THAT(message(Tensor()), contains("undefined"));
  CHECK_THAT(message(x, CutoutOptions().side(-0.5)), contains("side must be in [0, 2], got -0.5"));
  CHECK_THAT(message(x, CutoutOptions().fill(256)),
             contains("fill must be in [0, 255] for uint8 images, got 256"));
}

TEST_CASE("rand_augment names a bad argument, and then draws nothing") {
  const Tensor x = noise({2, 3, 6, 8});
  auto generator = seeded(4);
  const Tensor before = generator.get_state();
  const auto message = [&](const Tensor& images, const RandAugmentOptions& options = {}) {
    return error_of([&] { rand_augment(images, options, generator); });
  };
  CHECK_THAT(message(x[0]), contains("rand_augment: images must be uint8 [N, 3, H, W], got Byte [3, 6, 8]"));
  CHECK_THAT(message(x.to(at::kFloat)), contains("got Float"));
  CHECK_THAT(message(x.slice(1, 0, 1)), contains("got Byte [2, 1, 6, 8]"));
  CHECK_THAT(message(Tensor()), contains("undefined"));
  CHECK_THAT(message(x.slice(3, 0, 1).expand({2, 3, 6, 5000})), contains("4096 rows and columns at most"));
  CHECK_THAT(message(x, RandAugmentOptions().operations({})), contains("operations must be 1 to 32, got 0"));
  CHECK_THAT(message(x, RandAugmentOptions().operations({static_cast<Op>(16)})), contains("unknown one, 16"));
  CHECK_THAT(message(x, RandAugmentOptions().num_ops(-1)), contains("num_ops must be in [0, 64], got -1"));
  CHECK_THAT(message(x, RandAugmentOptions().probability(1.5)),
             contains("probability must be in [0, 1], got 1.5"));
  CHECK_THAT(message(x, RandAugmentOptions().probability(std::nan(""))), contains("probability must be in"));
  CHECK_THAT(message(x, RandAugmentOptions().min_magnitude(-1)),
             contains("min_magnitude must be in [0, 10]"));
  CHECK_THAT(message(x, RandAugmentOptions().min_magnitude(5).max_magnitude(4)),
             contains("max_magnitude must be in [5, 10], got 4"));
  CHECK_THAT(message(x, RandAugmentOptions().max_magnitude(11)), contains("max_magnitude must be in"));
  CHECK_THAT(message(x, RandAugmentOptions().enhance_max(INFINITY)), contains("enhance_max must be in"));
  CHECK_THAT(message(x, RandAugmentOptions().enhance_bias(-101)), contains("enhance_bias must be in"));
  CHECK_THAT(message(x, RandAugmentOptions().posterize_bits(9)),
             contains("posterize_bits must be in [0, 8]"));
  CHECK_THAT(message(x, RandAugmentOptions().posterize_range(5)),
             contains("posterize_range must be in [0, 8], got 9"));
  CHECK_THAT(message(x, RandAugmentOptions().rotate_max(181)), contains("rotate_max must be in"));
  CHECK_THAT(message(x, RandAugmentOptions().shear_max(5)), contains("shear_max must be in"));
  CHECK_THAT(message(x, RandAugmentOptions().translate_max(1.5)), contains("translate_max must be in"));
  CHECK_THAT(message(x, RandAugmentOptions().cutout_max(-1)), contains("cutout_max must be in"));
  CHECK_THAT(message(x, RandAugmentOptions().cutout(3)), contains("cutout must be in [0, 2], got 3"));
  CHECK_THAT(message(x, RandAugmentOptions().fill({1, 2})), contains("fill must be one or three values"));
  CHECK_THAT(message(x, RandAugmentOptions().cutout_fill({256})),
             contains("cutout_fill must be one or three"));
  CHECK_THAT(error_of([] { RandAugment(RandAugmentOptions().num_ops(65)); }),
             contains("RandAugment: num_ops"));
  CHECK(generator.get_state().equal(before));
  const auto with = [&](const Tensor& uniform) {
    return error_of([&] { rand_augment_with(x, uniform, {}); });
  };
  CHECK_THAT(with(at::rand({2, 11})), contains("uniform must be float32 [2, 12] on cpu, got Float [2, 11]"));
  CHECK_THAT(with(at::rand({2, 12}, at::kDouble)), contains("got Double"));
  CHECK_THAT(with(Tensor()), contains("undefined"));
}
