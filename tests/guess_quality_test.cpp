#include <mixmatch/evaluation/guess_quality.hpp>

#include <cmath>

#include "catch.hpp"
#include "test_util.hpp"

using namespace mixmatch::training;

TEST_CASE("guess_quality: means over rows, accuracy over known labels") {
  const Tensor guessed =
      torch::tensor({0.5, 0.25, 0.25, 0.0, 1.0, 0.0, 0.1, 0.2, 0.7}, at::kDouble).view({3, 3});
  const auto quality = guess_quality(guessed, torch::tensor({0, -1, 1}, at::kLong));
  CHECK(quality.mean_max_probability.item<double>() == Approx((0.5 + 1 + 0.7) / 3));
  const double first = 1.5 * std::log(2.0);  // 1/2 ln 2 + 2 * 1/4 ln 4
  const double third = -(0.1 * std::log(0.1) + 0.2 * std::log(0.2) + 0.7 * std::log(0.7));
  CHECK(quality.mean_entropy.item<double>() == Approx((first + 0 + third) / 3));
  CHECK(quality.accuracy.item<double>() == 0.5);
}

TEST_CASE("guess_quality: limits, dtypes, no truth at all") {
  const int64_t classes = 10;
  const Tensor nothing = torch::full({4}, -1, at::kLong);
  const auto uniform = guess_quality(torch::full({4, classes}, 0.1, at::kDouble), nothing);
  CHECK(uniform.mean_max_probability.item<double>() == Approx(0.1));
  CHECK(uniform.mean_entropy.item<double>() == Approx(std::log(10.0)));
  CHECK(std::isnan(uniform.accuracy.item<double>()));
  const Tensor labels = torch::tensor({3, 1, 0, 9}, at::kLong);
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto certain = guess_quality(torch::one_hot(labels, classes).to(type), labels);
    CHECK(certain.mean_max_probability.item<double>() == 1);
    CHECK(certain.mean_entropy.item<double>() == 0);
    CHECK(certain.accuracy.item<double>() == 1);
  }
  CHECK(guess_quality(torch::one_hot(labels, classes).to(at::kFloat), (labels + 1).remainder(classes))
            .accuracy.item<double>() == 0);
}

TEST_CASE("guess_quality names what does not fit") {
  const Tensor labels = torch::zeros({3}, at::kLong);
  CHECK_THAT(error_of([&] {
               guess_quality(torch::zeros({0, 3}), labels);
             }),
             contains("non-empty floating-point [N, L]"));
  CHECK_THAT(error_of([&] { guess_quality(labels, labels); }), contains("got Long [3]"));
  CHECK_THAT(error_of([&] {
               guess_quality(torch::zeros({2, 3}), labels);
             }),
             contains("guessed has 2 rows, labels 3"));
  CHECK_THAT(error_of([&] {
               guess_quality(torch::zeros({3, 3}), torch::zeros({3}));
             }),
             contains("labels must be int64 [N], got Float [3]"));
}
