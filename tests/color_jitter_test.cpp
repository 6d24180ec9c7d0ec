#include <mixmatch/augment/color_jitter.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::augment::color_jitter;
using mixmatch::augment::color_jitter_draws;
using mixmatch::augment::color_jitter_with;
using mixmatch::augment::ColorJitter;
using mixmatch::augment::ColorJitterOptions;
using torch::Tensor;

namespace {

/// One image of some pixels, grey ones and full ones among them.
Tensor some_pixels() {
  Tensor pixels = at::randint(256, {1, 3, 10, 11}, seeded(2), at::TensorOptions(at::kByte));
  pixels.select(2, 0).fill_(77);
  pixels.select(2, 1).narrow(1, 0, 1).fill_(255);
  pixels.select(2, 2).narrow(1, 1, 1).fill_(0);
  return pixels;
}

/// Draws of one image: each property's place in the order, and its number.
Tensor draws_of(const std::array<float, 4>& order, const std::array<float, 4>& number) {
  std::vector<float> row(order.begin(), order.end());
  row.insert(row.end(), number.begin(), number.end());
  return at::tensor(row).view({1, 8});
}

Tensor jitter_draws(int64_t count, uint64_t seed) {
  return at::rand({count, color_jitter_draws()}, seeded(seed), at::TensorOptions(at::kFloat));
}

int64_t grey(const Tensor& pixel) {  // Pillow's convert("L")
  return (pixel[0].item<int64_t>() * 19595 + pixel[1].item<int64_t>() * 38470 +
          pixel[2].item<int64_t>() * 7471 + 32768) /
         65536;
}

/// base + factor (value - base), cut off, in [0, 255]: Pillow's Image.blend.
int64_t blended(int64_t base, int64_t value, float factor) {
  const float product = factor * static_cast<float>(value - base);
  const float sum = static_cast<float>(base) + product;
  return static_cast<int64_t>(std::clamp(sum, 0.0F, 255.0F));
}

/// The hue of a pixel turned by a share of the circle, in double precision.
std::array<double, 3> turned(const Tensor& pixel, double turn) {
  const double r = pixel[0].item<double>(), g = pixel[1].item<double>(), b = pixel[2].item<double>();
  const double most = std::max({r, g, b}), least = std::min({r, g, b}), chroma = most - least;
  if (chroma == 0) {
    return {r, g, b};
  }
  double hue = most == r ? (g - b) / chroma : most == g ? 2 + (b - r) / chroma : 4 + (r - g) / chroma;
  hue = std::fmod(hue + 6 * turn + 12, 6);
  const auto channel = [&](double shift) {  // the usual formula of HSV to RGB
    const double k = std::fmod(shift + hue, 6);
    return most - chroma * std::clamp(std::min(k, 4 - k), 0.0, 1.0);
  };
  return {channel(5), channel(3), channel(1)};
}

template <class Make>
void check_pixels(const Tensor& made, const Tensor& images, double tolerance, const Make& make) {
  for (int64_t y = 0; y < images.size(2); ++y) {
    for (int64_t x = 0; x < images.size(3); ++x) {
      const auto expected = make(images[0].select(1, y).select(1, x));
      for (size_t c = 0; c < 3; ++c) {
        INFO(y << ", " << x << ", " << c);
        REQUIRE(std::abs(made[0][static_cast<int64_t>(c)][y][x].item<double>() -
                         static_cast<double>(expected[c])) <= tolerance);
      }
    }
  }
}

}  // namespace

TEST_CASE("color_jitter: brightness, contrast and saturation are Pillow's") {
  REQUIRE(color_jitter_draws() == 8);
  const Tensor images = some_pixels();
  int64_t sum = 0;
  for (int64_t i = 0; i < 110; ++i) {
    sum += grey(images[0].flatten(1).select(1, i));
  }
  const auto mean = static_cast<int64_t>(static_cast<double>(sum) / 110 + 0.5);
  // Factors uniform in [.25, 1.75], and from 0 on where the strength is more than 1.
  for (const auto& [strength, draw, factor] :
       std::vector<std::tuple<double, float, float>>{{0.75, 0.0F, 0.25F},
                                                     {0.75, 0.5F, 1.0F},
                                                     {0.75, 0.75F, 1.375F},
                                                     {2, 0.0F, 0.0F},
                                                     {2, 0.75F, 2.25F}}) {
    const Tensor drawn = draws_of({0, 0, 0, 0}, {draw, draw, draw, draw});
    const float f = factor;
    check_pixels(color_jitter_with(images, drawn, ColorJitterOptions().brightness(strength)), images, 0,
                 [&](const Tensor& p) {
                   return std::array<int64_t, 3>{blended(0, p[0].item<int64_t>(), f),
                                                 blended(0, p[1].item<int64_t>(), f),
                                                 blended(0, p[2].item<int64_t>(), f)};
                 });
    check_pixels(color_jitter_with(images, drawn, ColorJitterOptions().contrast(strength)), images, 0,
                 [&](const Tensor& p) {
                   return std::array<int64_t, 3>{blended(mean, p[0].item<int64_t>(), f),
                                                 blended(mean, p[1].item<int64_t>(), f),
                                                 blended(mean, p[2].item<int64_t>(), f)};
                 });
    check_pixels(color_jitter_with(images, drawn, ColorJitterOptions().saturation(strength)), images, 0,
                 [&](const Tensor& p) {
                   const int64_t level = grey(p);
                   return std::array<int64_t, 3>{blended(level, p[0].item<int64_t>(), f),
                                                 blended(level, p[1].item<int64_t>(), f),
                                                 blended(level, p[2].item<int64_t>(), f)};
                 });
  }
}

TEST_CASE("color_jitter: the hue is turned, and nothing else") {
  const Tensor images = some_pixels();
  const auto options = ColorJitterOptions().hue(0.5);
  for (const float draw : {0.0F, 0.1F, 0.25F, 0.4F, 0.5F, 0.6F, 0.9F, 0.99F}) {
    check_pixels(color_jitter_with(images, draws_of({0, 0, 0, 0}, {0, 0, 0, draw}), options), images, 0.65,
                 [&](const Tensor& p) { return turned(p, double{draw} - 0.5); });
  }
  CHECK(color_jitter_with(images, draws_of({0, 0, 0, 0}, {0, 0, 0, 0.5F}), options).equal(images));
  // A third of the circle and back: channels change places.
  const auto third = ColorJitterOptions().hue(1.0 / 3);
  const Tensor forth = color_jitter_with(images, draws_of({0, 0, 0, 0}, {0, 0, 0, 2}), third);
  CHECK((forth.to(at::kInt) - images.roll(1, 1).to(at::kInt)).abs().max().item<int>() <= 1);
  const Tensor back = color_jitter_with(images, draws_of({0, 0, 0, 0}, {0, 0, 0, 0}), third);
  CHECK(back.equal(images.roll(-1, 1)));
}

TEST_CASE("color_jitter: one after the other, the least drawn first") {
  const Tensor images = some_pixels();
  const std::array<ColorJitterOptions, 4> alone{
      ColorJitterOptions().brightness(0.8), ColorJitterOptions().contrast(0.8),
      ColorJitterOptions().saturation(0.8), ColorJitterOptions().hue(0.2)};
  const auto all = ColorJitterOptions().brightness(0.8).contrast(0.8).saturation(0.8).hue(0.2);
  std::array<size_t, 4> order{0, 1, 2, 3};
  std::vector<Tensor> results;
  do {
    std::array<float, 4> places{};
    Tensor expected = images;
    const Tensor numbers = draws_of({0, 0, 0, 0}, {0.9F, 0.2F, 0.85F, 0.9F});
    for (size_t k = 0; k < 4; ++k) {
      places[order[k]] = 0.1F + 0.2F * static_cast<float>(k);
      expected = color_jitter_with(expected, numbers, alone[order[k]]);
    }
    const Tensor made = color_jitter_with(images, draws_of(places, {0.9F, 0.2F, 0.85F, 0.9F}), all);
    CHECK(made.equal(expected));
    results.push_back(made);
  } while (std::next_permutation(order.begin(), order.end()));
  CHECK(results.size() == 24);
  CHECK_FALSE(results.front().equal(results.back()));
}

TEST_CASE("color_jitter: the same in ATen's calls, in any layout, with any number of threads") {
  const Tensor images = at::randint(256, {30, 3, 14, 9}, seeded(5), at::TensorOptions(at::kByte));
  images.select(0, 3).copy_(images.select(0, 3).narrow(0, 0, 1).expand({3, 14, 9}));  // a grey one
  const Tensor uniform = jitter_draws(30, 6);
  for (const auto& options : {ColorJitterOptions::of_strength(1), ColorJitterOptions::of_strength(0.4),
                              ColorJitterOptions().hue(0.5), ColorJitterOptions().contrast(2).saturation(3),
                              ColorJitterOptions()}) {
    const Tensor made = color_jitter_with(images, uniform, options);
    CHECK(made.is_contiguous(at::MemoryFormat::ChannelsLast));
    const auto plan = mixmatch::augment::detail::color_jitter_plan(uniform, options);
    CHECK(mixmatch::detail::color_jitter_composite(images, plan).equal(made));
    CHECK(color_jitter_with(images.contiguous(at::MemoryFormat::ChannelsLast), uniform, options).equal(made));
    CHECK(
        color_jitter_with(images.transpose(2, 3).contiguous().transpose(2, 3), uniform, options).equal(made));
    CHECK(color_jitter_with(images.narrow(0, 7, 2), uniform.narrow(0, 7, 2), options)
              .equal(made.narrow(0, 7, 2)));
    CHECK(made.equal(images) == !options.any());
    at::set_num_threads(1);
    CHECK(color_jitter_with(images, uniform, options).equal(made));
    at::set_num_threads(3);
    CHECK(color_jitter_with(images, uniform, options).equal(made));
    at::set_num_threads(2);
  }
  CHECK(color_jitter(images.narrow(0, 0, 0)).size(0) == 0);
}

TEST_CASE("color_jitter: draws from the generator, and refuses what does not fit") {
  const Tensor images = some_pixels();
  auto generator = seeded(9);
  const auto options = ColorJitterOptions::of_strength(0.4);
  CHECK(options.hue() == 0.1);
  CHECK(options.contrast() == 0.4);
  const ColorJitter augment(options, generator);
  const Tensor first = augment(images);
  CHECK(first.equal(color_jitter_with(images, jitter_draws(1, 9), options)));
  CHECK_FALSE(augment(images).equal(first));

  const auto refuses = [&](const Tensor& of, const ColorJitterOptions& with, const char* reason) {
    CHECK_THAT(error_of([&] { color_jitter(of, with); }), contains("color_jitter: ") && contains(reason));
  };
  refuses(images.to(at::kFloat), {}, "images must be uint8 [N, 3, H, W], got Float");
  refuses(images.narrow(1, 0, 1), {}, "images must be uint8 [N, 3, H, W], got Byte [1, 1, 10, 11]");
  refuses({}, {}, "images must be uint8 [N, 3, H, W]");
  refuses(images, ColorJitterOptions().hue(0.6), "hue must be in [0, 0.5], got 0.6");
  refuses(images, ColorJitterOptions().brightness(-1), "brightness must be in [0, 100], got -1");
  refuses(images, ColorJitterOptions().saturation(std::nan("")), "saturation must be in");
  CHECK_THAT(error_of([] { ColorJitter(ColorJitterOptions().contrast(-1)); }),
             contains("ColorJitter: contrast"));
  CHECK_THAT(error_of([&] {
               color_jitter_with(images, at::rand({1, 7}));
             }),
             contains("uniform must be float32 [1, 8] on cpu, got Float [1, 7] on cpu"));
}
