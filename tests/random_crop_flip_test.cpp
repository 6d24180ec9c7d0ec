#include <mixmatch/augment/random_crop_flip.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <ATen/Parallel.h>

#include <set>
#include <tuple>
#include <vector>

using mixmatch::augment::normalize;
using mixmatch::augment::NormalizeOptions;
using mixmatch::augment::random_crop_flip;
using mixmatch::augment::random_crop_flip_out;
using mixmatch::augment::RandomCropFlip;
using mixmatch::augment::RandomCropFlipOptions;
using torch::Tensor;

namespace {

Tensor images(at::IntArrayRef sizes) {
  at::manual_seed(1);
  return at::randint(256, sizes, at::kByte);
}

/// A position outside walks back from the edge, which is not repeated.
int64_t reflected(int64_t position, int64_t size) {
  if (position < 0) {
    return -position;
  }
  return position >= size ? 2 * size - 2 - position : position;
}

/// What the draws (flip, dy, dx) make of an image, pixel by pixel.
Tensor naive(const Tensor& image, int64_t padding, bool flip, int64_t dy, int64_t dx) {
  const int64_t height = image.size(1);
  const int64_t width = image.size(2);
  Tensor out = at::empty_like(image).contiguous();
  for (int64_t c = 0; c < image.size(0); ++c) {
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        const int64_t row = reflected(y + dy - padding, height);
        const int64_t column = reflected(x + dx - padding, width);
        out[c][y][x] = image[c][row][flip ? width - 1 - column : column];
      }
    }
  }
  return out;
}

/// The draws that random_crop_flip documents: mirror, row offset, column offset, N each.
struct Draws {
  Tensor flip, dy, dx;
};
Draws draws(at::Generator generator, int64_t count, int64_t padding) {
  const mixmatch::detail::OptionalGenerator optional = generator;
  Draws drawn;
  drawn.flip = at::randint(2, {count}, optional, at::kLong);
  drawn.dy = at::randint(2 * padding + 1, {count}, optional, at::kLong);
  drawn.dx = at::randint(2 * padding + 1, {count}, optional, at::kLong);
  return drawn;
}

void check_against_naive(const Tensor& x, int64_t padding) {
  const auto drawn = draws(seeded(3), x.size(0), padding);
  const auto out = random_crop_flip(x, RandomCropFlipOptions().padding(padding), seeded(3));
  REQUIRE(out.sizes() == x.sizes());
  CHECK(out.is_contiguous(at::MemoryFormat::ChannelsLast));
  for (int64_t i = 0; i < x.size(0); ++i) {
    const auto expected = naive(x[i], padding, drawn.flip[i].item<int64_t>() != 0,
                                drawn.dy[i].item<int64_t>(), drawn.dx[i].item<int64_t>());
    if (x.scalar_type() == at::kByte) {
      CHECK(out[i].equal(normalize(expected.unsqueeze(0))[0]));
    } else {
      CHECK(out[i].equal(expected));
    }
  }
}

}  // namespace

TEST_CASE("random_crop_flip cuts what a double loop cuts") {
  check_against_naive(images({8, 3, 9, 9}), 4);
  check_against_naive(images({6, 3, 7, 12}), 4);  // H != W
  check_against_naive(images({6, 3, 12, 7}), 2);
  check_against_naive(images({5, 1, 6, 5}), 0);
  check_against_naive(images({5, 4, 5, 6}), 4);  // the largest padding
  check_against_naive(images({2, 3, 32, 32}), 12);
}

TEST_CASE("random_crop_flip takes any strides") {
  const auto x = images({6, 3, 8, 10});
  check_against_naive(x.contiguous(at::MemoryFormat::ChannelsLast), 3);
  check_against_naive(images({6, 3, 8, 20}).slice(3, 0, 20, 2), 3);
  check_against_naive(x.transpose(2, 3), 3);
  check_against_naive(x.slice(0, 0, 6, 2), 3);
  check_against_naive(x.narrow(0, 0, 1).expand({4, 3, 8, 10}), 3);
}

TEST_CASE("random_crop_flip makes all 81 crops, straight and mirrored, equally often") {
  // Pixel (y, x) is 16 y + x, so the middle of a crop tells its offsets, and its right neighbour the
  // direction.
  const int64_t count = 162 * 100;
  const auto image = at::arange(256, at::kByte).view({1, 1, 16, 16}).expand({count, 1, 16, 16});
  const auto out = random_crop_flip(image, {}, seeded(1));
  const auto levels = ((out + 1) * 127.5).round().to(at::kLong);
  const auto middle = levels.select(2, 8).select(2, 8).reshape({-1});
  const auto right = levels.select(2, 8).select(2, 9).reshape({-1});
  const auto mirrored = right.lt(middle).to(at::kLong);
  const auto kinds = (middle + 256 * mirrored).bincount({}, 512);
  CHECK(kinds.gt(0).sum().item<int64_t>() == 162);
  // 100 expected of each, standard deviation 10.
  CHECK(kinds.max().item<int64_t>() < 150);
  CHECK(kinds.masked_select(kinds.gt(0)).min().item<int64_t>() > 50);
  CHECK(right.sub(middle).abs().eq(1).all().item<bool>());
}

TEST_CASE("random_crop_flip without mirror, and without crop") {
  const auto x = at::arange(256, at::kByte).view({1, 1, 16, 16}).expand({300, 1, 16, 16});
  const auto straight = random_crop_flip(x, RandomCropFlipOptions().mirror(false), seeded(1));
  CHECK(straight.select(3, 9).select(2, 8).gt(straight.select(3, 8).select(2, 8)).all().item<bool>());
  const auto still = random_crop_flip(x, RandomCropFlipOptions().padding(0), seeded(1));
  const auto plain = normalize(x);
  const auto same = still.eq(plain).flatten(1).all(1);
  const auto mirror = still.eq(plain.flip({3})).flatten(1).all(1);
  CHECK(same.logical_or(mirror).all().item<bool>());
  CHECK(same.any().item<bool>());
  CHECK(mirror.any().item<bool>());
  const auto none = RandomCropFlipOptions().padding(0).mirror(false);
  CHECK(random_crop_flip(x, none).equal(plain));
}

TEST_CASE("random_crop_flip is reproducible, by generator and on any number of threads") {
  const auto x = images({64, 3, 32, 32});
  const auto out = random_crop_flip(x, {}, seeded(5));
  CHECK(out.scalar_type() == at::kFloat);
  CHECK(out.equal(random_crop_flip(x, {}, seeded(5))));
  CHECK_FALSE(out.equal(random_crop_flip(x, {}, seeded(6))));
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto serial = random_crop_flip(x, {}, seeded(5));
  at::set_num_threads(threads);
  CHECK(out.equal(serial));
  // Without a generator: the global one.
  at::manual_seed(9);
  const auto first = random_crop_flip(x);
  const auto second = random_crop_flip(x);
  CHECK_FALSE(first.equal(second));
  at::manual_seed(9);
  CHECK(first.equal(random_crop_flip(x)));
}

TEST_CASE("random_crop_flip normalises as normalize does") {
  const auto x = images({6, 3, 8, 8});
  const auto numbers = NormalizeOptions().mean({0.4, 0.5, 0.6}).stddev({0.2, 0.25, 0.3});
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    auto options = RandomCropFlipOptions().padding(0).mirror(false);
    options.normalization(NormalizeOptions(numbers).dtype(dtype));
    const auto out = random_crop_flip(x, options);
    CHECK(out.scalar_type() == dtype);
    CHECK(out.equal(normalize(x, options.normalization())));
  }
}

TEST_CASE("random_crop_flip only moves the pixels of floating-point images") {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    at::manual_seed(2);
    const auto x = at::randn({5, 3, 6, 7}).to(dtype);
    CHECK(random_crop_flip(x).scalar_type() == dtype);
    check_against_naive(x, 4);
  }
}

TEST_CASE("random_crop_flip: the kernel and the composite agree to the bit") {
  const auto bytes = images({20, 3, 9, 11});
  const auto floats = at::randn({20, 3, 9, 11});
  const auto drawn = draws(seeded(8), 20, 4);
  const mixmatch::detail::CropFlip crops{4, drawn.flip, drawn.dy, drawn.dx};
  for (const auto& x : {bytes, bytes.contiguous(at::MemoryFormat::ChannelsLast)}) {
    for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
      const auto options =
          RandomCropFlipOptions().normalization(NormalizeOptions().mean({0.1, 0.2, 0.3}).dtype(dtype));
      const auto scale = mixmatch::augment::detail::pixel_scale("test", options.normalization(), 3);
      const auto composite = mixmatch::detail::scale_pixels_composite(
          mixmatch::detail::crop_flip_composite(x, crops), scale, dtype);
      CHECK(composite.is_contiguous(at::MemoryFormat::ChannelsLast));
      CHECK(composite.equal(random_crop_flip(x, options, seeded(8))));
    }
  }
  CHECK(mixmatch::detail::crop_flip_composite(floats, crops).equal(random_crop_flip(floats, {}, seeded(8))));
}

TEST_CASE("random_crop_flip passes gradients to floating-point images") {
  auto x = at::randn({4, 3, 6, 6}).requires_grad_();
  const auto out = random_crop_flip(x, {}, seeded(1));
  CHECK(out.equal(random_crop_flip(x.detach(), {}, seeded(1))));
  out.sum().backward();
  // Each result pixel is a copy of one source pixel.
  CHECK(x.grad().sum().item<float>() == Approx(4 * 3 * 36));
  CHECK(x.grad().equal(x.grad().round()));
  const torch::NoGradGuard no_grad;
  CHECK_FALSE(random_crop_flip(x).requires_grad());
}

TEST_CASE("random_crop_flip of nothing") {
  const auto out = random_crop_flip(at::empty({0, 3, 8, 8}, at::kByte));
  CHECK(out.sizes() == at::IntArrayRef({0, 3, 8, 8}));
}

TEST_CASE("random_crop_flip_out writes what random_crop_flip returns, and nothing beside it") {
  const auto bytes = images({5, 3, 9, 11});
  for (const auto& x : {bytes, bytes.to(at::kDouble)}) {
    const auto expected = random_crop_flip(x, {}, seeded(7));
    const auto batch = at::empty({9, 3, 9, 11}, expected.options(), at::MemoryFormat::ChannelsLast).fill_(5);
    Tensor out = batch.narrow(0, 3, 5);
    CHECK(&random_crop_flip_out(out, x, {}, seeded(7)) == &out);
    CHECK(batch.narrow(0, 3, 5).equal(expected));
    CHECK(batch.narrow(0, 0, 3).eq(5).all().item<bool>());
    CHECK(batch.narrow(0, 8, 1).eq(5).all().item<bool>());
  }
}

TEST_CASE("random_crop_flip_out resizes an empty result, and autograd sees that one was overwritten") {
  const auto x = images({2, 3, 6, 8});
  Tensor out = at::empty({0});
  random_crop_flip_out(out, x, {}, seeded(7));
  CHECK(out.equal(random_crop_flip(x, {}, seeded(7))));
  const auto weight = at::ones({}).requires_grad_();
  const auto loss = (out * weight).sum();
  random_crop_flip_out(out, x);
  CHECK_THAT(error_of([&] { loss.backward(); }), contains("inplace operation"));
}

TEST_CASE("random_crop_flip_out names a bad result, and then draws nothing") {
  const auto x = images({2, 3, 6, 8});
  auto generator = seeded(4);
  const auto before = generator.get_state();
  const auto message = [&](Tensor out, const Tensor& source) {
    return error_of([&] { random_crop_flip_out(out, source, {}, generator); });
  };
  const auto floats = at::zeros({2, 3, 6, 8}).contiguous(at::MemoryFormat::ChannelsLast);
  CHECK_THAT(message({}, x), contains("random_crop_flip_out: out must be Float on cpu, got undefined"));
  CHECK_THAT(message(x.clone(), x), contains("out must be Float on cpu, got Byte on cpu"));
  CHECK_THAT(message(floats.contiguous(), x), contains("out must be channels-last [2, 3, 6, 8]"));
  CHECK_THAT(message(floats.narrow(0, 0, 1), x), contains("got [1, 3, 6, 8]"));
  CHECK_THAT(message(floats, floats), contains("out must not share memory with images"));
  CHECK_THAT(message(floats, floats.clone().requires_grad_()), contains("no gradient is recorded into out"));
  CHECK_THAT(message(floats.clone().requires_grad_(), x), contains("no gradient is recorded into out"));
  CHECK_THAT(message(floats, x[0]), contains("random_crop_flip_out: images must be"));
  CHECK(floats.eq(0).all().item<bool>());
  CHECK(generator.get_state().equal(before));
}

TEST_CASE("RandomCropFlip shares its generator") {
  const auto x = images({8, 3, 8, 8});
  auto generator = seeded(4);
  RandomCropFlip augment(RandomCropFlipOptions().padding(2), generator);
  const auto state = generator.get_state();
  const auto first = augment(x);
  const auto second = augment(x);
  CHECK_FALSE(first.equal(second));
  generator.set_state(state);
  CHECK(first.equal(augment(x)));
  CHECK(first.equal(random_crop_flip(x, RandomCropFlipOptions().padding(2), seeded(4))));
  CHECK(augment.options().padding() == 2);
}

TEST_CASE("random_crop_flip names a bad argument") {
  const auto x = images({2, 3, 6, 8});
  const auto message = [](const Tensor& tensor, const RandomCropFlipOptions& options = {}) {
    return error_of([&] { random_crop_flip(tensor, options); });
  };
  CHECK_THAT(message(x[0]),
             contains("images must be uint8 or floating-point [N, C, H, W], got Byte [3, 6, 8]"));
  CHECK_THAT(message(x.to(at::kLong)), contains("got Long"));
  CHECK_THAT(message(Tensor()), contains("undefined"));
  CHECK_THAT(message(x, RandomCropFlipOptions().padding(6)), contains("got 6 for [2, 3, 6, 8]"));
  CHECK_THAT(message(x.transpose(2, 3), RandomCropFlipOptions().padding(6)),
             contains("got 6 for [2, 3, 8, 6]"));
  CHECK_THAT(message(x, RandomCropFlipOptions().padding(-1)), contains("padding must be >= 0, got -1"));
  CHECK_THAT(message(x, RandomCropFlipOptions().normalization(NormalizeOptions().stddev({0}))),
             contains("random_crop_flip: stddev must be > 0, got 0"));
}
