#include <mixmatch/augment/normalize.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <cmath>

using mixmatch::augment::normalize;
using mixmatch::augment::NormalizeOptions;
using torch::Tensor;

namespace {

Tensor small_images(at::IntArrayRef sizes) {
  at::manual_seed(1);
  return at::randint(256, sizes, at::kByte);
}

}  // namespace

TEST_CASE("normalize maps 0 … 255 to [-1, 1]") {
  const auto levels = at::arange(256, at::kByte).view({1, 1, 16, 16});
  const auto out = normalize(levels);
  REQUIRE(out.scalar_type() == at::kFloat);
  const auto flat = out.reshape({-1});
  for (int64_t x = 0; x < 256; ++x) {
    // Correctly rounded: equal, not near.
    CHECK(flat[x].item<float>() == static_cast<float>(static_cast<double>(x) * 2 / 255 - 1));
  }
}

TEST_CASE("normalize takes any layout and returns channels-last") {
  const auto x = small_images({4, 3, 5, 7});
  const auto expected = x.to(at::kDouble) * 2 / 255 - 1;
  const auto wide = small_images({4, 3, 5, 14}).slice(3, 0, 14, 2);
  for (const auto& input :
       {x, x.contiguous(at::MemoryFormat::ChannelsLast),
        x.permute({0, 1, 3, 2}).contiguous().permute({0, 1, 3, 2}), wide.clone().copy_(x)}) {
    const auto out = normalize(input);
    CHECK(out.sizes() == x.sizes());
    CHECK(out.is_contiguous(at::MemoryFormat::ChannelsLast));
    CHECK(at::allclose(out.to(at::kDouble), expected, 0, 1e-7));
  }
  CHECK(at::allclose(normalize(wide).to(at::kDouble), wide.to(at::kDouble) * 2 / 255 - 1, 0, 1e-7));
  CHECK(normalize(x.expand({4, 3, 5, 7}).narrow(0, 0, 1).expand({6, 3, 5, 7})).size(0) == 6);
}

TEST_CASE("normalize by mean and standard deviation of each channel") {
  const auto x = small_images({3, 3, 8, 8});
  const std::vector<double> mean{0.4914, 0.4822, 0.4465};
  const std::vector<double> stddev{0.247, 0.2435, 0.2616};
  const auto out = normalize(x, NormalizeOptions().mean(mean).stddev(stddev));
  for (int64_t c = 0; c < 3; ++c) {
    const auto i = static_cast<size_t>(c);
    const auto expected = (x.select(1, c).to(at::kDouble) / 255 - mean[i]) / stddev[i];
    CHECK(at::allclose(out.select(1, c).to(at::kDouble), expected, 1e-6, 1e-6));
  }
}

TEST_CASE("normalize to other dtypes and channel counts") {
  for (const int64_t channels : {1, 2, 3, 4}) {
    const auto x = small_images({2, channels, 4, 4});
    const auto exact = x.to(at::kDouble) * 2 / 255 - 1;
    CHECK(at::allclose(normalize(x, NormalizeOptions().dtype(at::kDouble)), exact, 0, 1e-15));
    // The float32 result, rounded once more.
    for (const auto dtype : {at::kBFloat16, at::kHalf}) {
      const auto out = normalize(x, NormalizeOptions().dtype(dtype));
      CHECK(out.scalar_type() == dtype);
      CHECK(out.equal(normalize(x).to(dtype)));
    }
  }
}

TEST_CASE("normalize: the kernel and the composite agree to the bit") {
  const auto x = small_images({5, 3, 9, 6});
  for (const auto& mean : {std::vector<double>{0.5}, std::vector<double>{0.4914, 0.4822, 0.4465}}) {
    for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
      const auto scale = mixmatch::augment::detail::pixel_scale("test", NormalizeOptions().mean(mean), 3);
      const auto composite = mixmatch::detail::scale_pixels_composite(x, scale, dtype);
      CHECK(composite.is_contiguous(at::MemoryFormat::ChannelsLast));
      CHECK(composite.equal(normalize(x, NormalizeOptions().mean(mean).dtype(dtype))));
    }
  }
}

TEST_CASE("normalize: images of other types, by a scale of their own") {
  const auto numbers = at::randint(-3, 70000, {2, 3, 4, 5}, at::kLong);
  const auto options = NormalizeOptions().mean({0.1, 0.2, 0.3}).stddev({0.5, 1, 2}).dtype(at::kDouble);
  const auto expected = [&](const Tensor& x, double scale) {
    const auto mean = at::tensor({0.1, 0.2, 0.3}, at::kDouble).view({3, 1, 1});
    const auto stddev = at::tensor({0.5, 1.0, 2.0}, at::kDouble).view({3, 1, 1});
    return (x.to(at::kDouble) / scale - mean) / stddev;
  };
  for (const auto type : {at::kInt, at::kFloat, at::kDouble}) {
    const auto x = numbers.to(type);
    CHECK(at::allclose(normalize(x, options), expected(x, 1), 1e-12, 1e-9));
    const auto scaled = normalize(x, NormalizeOptions(options).scale(65535));
    CHECK(at::allclose(scaled, expected(x, 65535), 1e-12, 1e-12));
    CHECK(scaled.is_contiguous(at::MemoryFormat::ChannelsLast));
    CHECK(normalize(x, NormalizeOptions().scale(65535)).scalar_type() == at::kFloat);
  }
  const auto small = numbers.remainder(200);
  CHECK(at::allclose(normalize(small.to(at::kShort), NormalizeOptions(options).scale(255)),
                     normalize(small.to(at::kByte), options), 1e-12, 1e-12));
  // A number of one's own for uint8, too.
  CHECK(at::allclose(normalize(small.to(at::kByte), NormalizeOptions(options).scale(100)),
                     expected(small, 100), 1e-12, 1e-12));
}

TEST_CASE("normalize an empty batch") {
  const auto out = normalize(at::empty({0, 3, 4, 4}, at::kByte));
  CHECK(out.sizes() == at::IntArrayRef({0, 3, 4, 4}));
  CHECK(out.scalar_type() == at::kFloat);
}

TEST_CASE("normalize names a bad argument") {
  const auto x = small_images({2, 3, 4, 4});
  const auto message = [&](const Tensor& tensor, const NormalizeOptions& options = {}) {
    return error_of([&] { normalize(tensor, options); });
  };
  CHECK_THAT(message(x.to(at::kLong)), contains("normalize: images must be uint8, uint16, int16, int32 or "
                                                "floating-point [N, C, H, W], got Long"));
  CHECK_THAT(message(x, NormalizeOptions().scale(0)), contains("scale must be a finite number > 0, got 0"));
  CHECK_THAT(message(x[0]), contains("[3, 4, 4]"));
  CHECK_THAT(message(Tensor()), contains("undefined"));
  CHECK_THAT(message(x, NormalizeOptions().mean({0.5, 0.5})),
             contains("mean must have one number or one a channel, 3, got 2"));
  CHECK_THAT(message(x, NormalizeOptions().stddev({})),
             contains("stddev must have one number or one a channel, 3, got 0"));
  CHECK_THAT(message(x, NormalizeOptions().stddev({0})), contains("stddev must be > 0, got 0"));
  CHECK_THAT(message(x, NormalizeOptions().stddev({std::nan("")})), contains("stddev must be > 0"));
  CHECK_THAT(message(x, NormalizeOptions().dtype(at::kLong)),
             contains("dtype must be floating-point, got Long"));
}
