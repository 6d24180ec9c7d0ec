#include <mixmatch/evaluation/predict.hpp>

#include <cmath>

#include "catch.hpp"
#include "test_util.hpp"

using namespace mixmatch;
using training::EvaluateOptions;
using training::predict_probabilities;

namespace {

/// Logits (-v, 0, v) of the first pixel's value v.
Tensor first_pixel_logits(const Tensor& images) {
  const Tensor v = images.select(1, 0).select(1, 0).select(1, 0);
  return torch::stack({-v, torch::zeros_like(v), v}, 1);
}

Tensor images_of(const std::vector<int64_t>& pixels) {
  Tensor images = torch::zeros({static_cast<int64_t>(pixels.size()), 3, 2, 2}, at::kByte);
  for (size_t i = 0; i < pixels.size(); ++i) {
    images[static_cast<int64_t>(i)].fill_(pixels[i]);
  }
  return images;
}

}  // namespace

TEST_CASE("predict_probabilities: softmax row by row, whatever the batches") {
  const std::vector<int64_t> pixels{0, 255, 51, 204, 128, 7, 99};
  const Tensor images = images_of(pixels);
  for (const int64_t batch : {1, 3, 7, 250}) {
    const Tensor p = predict_probabilities(first_pixel_logits, images, EvaluateOptions().batch_size(batch));
    REQUIRE(p.sizes() == at::IntArrayRef({7, 3}));
    CHECK(p.scalar_type() == at::kFloat);
    CHECK(p.device().is_cpu());
    for (size_t i = 0; i < pixels.size(); ++i) {
      const double v = static_cast<double>(pixels[i]) * 2 / 255 - 1;
      const double sum = std::exp(-v) + 1 + std::exp(v);
      const auto row = p[static_cast<int64_t>(i)];
      CHECK(row[0].item<double>() == Approx(std::exp(-v) / sum));
      CHECK(row[1].item<double>() == Approx(1 / sum));
      CHECK(row[2].item<double>() == Approx(std::exp(v) / sum));
    }
  }
}

TEST_CASE("predict_probabilities: half precision logits, no gradient, a batch size of its own at the end") {
  std::vector<int64_t> sizes;
  bool gradient = false;
  const auto predictor = [&](const Tensor& images) {
    sizes.push_back(images.size(0));
    gradient = gradient || at::GradMode::is_enabled();
    return first_pixel_logits(images).to(at::kBFloat16);
  };
  const Tensor p =
      predict_probabilities(predictor, images_of({0, 255, 30, 90, 1}), EvaluateOptions().batch_size(2));
  CHECK(sizes == std::vector<int64_t>{2, 2, 1});
  CHECK_FALSE(gradient);
  CHECK(p.scalar_type() == at::kFloat);
  // In float32, so that each row sums to 1 as bfloat16's do not.
  CHECK(torch::allclose(p.sum(1), torch::ones({5}), 0, 1e-6));
}

TEST_CASE("predict_probabilities: by a normalisation of one's own") {
  const Tensor images = images_of({10, 200}).to(at::kFloat) * 100;
  const auto normalization = augment::NormalizeOptions().mean({5000, 0, 0}).stddev({10000, 1, 1});
  Tensor seen;
  const auto predictor = [&](const Tensor& x) {
    seen = x;
    return first_pixel_logits(x);
  };
  predict_probabilities(predictor, images, EvaluateOptions().normalization(normalization));
  CHECK(torch::allclose(seen.select(1, 0), (images.select(1, 0) - 5000) / 10000));
  CHECK(torch::equal(seen.select(1, 1), images.select(1, 1)));
}

TEST_CASE("predict_probabilities names what does not fit") {
  const Tensor images = images_of({1, 2, 3});
  CHECK_THAT(error_of([&] { predict_probabilities(first_pixel_logits, Tensor()); }),
             contains("predict_probabilities: the data set holds no images"));
  CHECK_THAT(error_of([&] { predict_probabilities(first_pixel_logits, images.narrow(0, 0, 0)); }),
             contains("holds no images"));
  CHECK_THAT(
      error_of([&] { predict_probabilities(first_pixel_logits, images, EvaluateOptions().batch_size(-1)); }),
      contains("batch_size must be > 0, got -1"));
  CHECK_THAT(error_of([&] { predict_probabilities(first_pixel_logits, images.to(at::kLong)); }),
             contains("uint8"));
  CHECK_THAT(
      error_of([&] { predict_probabilities([](const Tensor&) { return torch::zeros({3}); }, images); }),
      contains("logits must be a floating-point [N, L] tensor, got Float [3]"));
  CHECK_THAT(error_of([&] {
               predict_probabilities([](const Tensor&) { return torch::zeros({2, 4}); }, images);
             }),
             contains("one row an image, got [2, 4] for 3 images"));
  int64_t classes = 4;
  CHECK_THAT(error_of([&] {
               predict_probabilities(
                   [&](const Tensor& x) {
                     return torch::zeros({x.size(0), classes++});
                   },
                   images, EvaluateOptions().batch_size(2));
             }),
             contains("returned 4 columns for the first batch and 5 for a later one"));
}
