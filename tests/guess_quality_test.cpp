#include <mixmatch/evaluation/guess_collapse.hpp>
#include <mixmatch/evaluation/guess_quality.hpp>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "cuda_emulation.hpp"
#include "test_util.hpp"

namespace cuda_emulation {
#include "cuda_guess_quality.inc"
}

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

TEST_CASE("guessed_class_entropy: of the histogram of arg-maxima") {
  const auto entropy = [](at::IntArrayRef classes, int64_t num_classes) {
    return guessed_class_entropy(torch::tensor(classes, at::kLong), num_classes).item<double>();
  };
  CHECK(entropy({3, 3, 3}, 5) == 0);
  CHECK(entropy({0, 1, 2, 3, 3, 2, 1, 0}, 4) == Approx(std::log(4.0)));
  CHECK(entropy({0, 1, 0, 0}, 7) == Approx(-.75 * std::log(.75) - .25 * std::log(.25)));
  const Tensor guessed = torch::tensor({.5, .3, .2, .4, .35, .25, .1, .1, .8}).view({3, 3});
  CHECK(guess_quality(guessed, torch::full({3}, -1, at::kLong)).class_entropy.item<double>() ==
        Approx(std::log(3.0) - 2.0 / 3 * std::log(2.0)));
  CHECK_THAT(error_of([] { guessed_class_entropy(torch::zeros({2}), 3); }),
             contains("must be int64 [N], got"));
  CHECK_THAT(error_of([&] { entropy({}, 3); }), contains("there must be rows and classes, got 0 and 3"));
}

TEST_CASE("GuessCollapse: the classes' entropy falls by half while confidence rises, said once") {
  const auto first_warning = [](const std::vector<std::pair<double, double>>& rows) {
    GuessCollapse watch;
    int at = -1, warnings = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      if (watch.add(rows[i].first, rows[i].second)) {
        at = static_cast<int>(i);
        ++warnings;
      }
    }
    CHECK(warnings <= 1);
    return at;
  };
  std::vector<std::pair<double, double>> rows{{.1, .3}, {.9, .4}, {1.2, .5}, {1.2, .5}, {1.2, .5}};
  CHECK(first_warning(rows) == -1);
  for (int i = 0; i < 5; ++i) {
    rows.emplace_back(.2, .9);
  }
  CHECK(first_warning(rows) == 6);  // (1.2 + .2 + .2) / 3 is less than half of 1.2
  // Unequal classes are learnt: 14 : 3 : 2 : 1 has .66 of the entropy of four equal ones.
  CHECK(first_warning({{1.38, .4}, {1.38, .4}, {1.38, .4}, {.91, .8}, {.91, .9}, {.91, .9}, {.91, .9}}) ==
        -1);
  // One bad row among good ones, a fall without confidence, random weights at the start, no values.
  CHECK(first_warning({{1.2, .4}, {1.2, .4}, {1.2, .4}, {0, .9}, {1.2, .9}, {1.2, .9}, {1.2, .9}}) == -1);
  CHECK(first_warning({{1.2, .4}, {1.2, .4}, {1.2, .4}, {.1, .3}, {.1, .3}, {.1, .3}, {.1, .3}}) == -1);
  CHECK(first_warning({{0, .2}, {0, .2}, {0, .2}, {.5, .4}, {.9, .6}, {1.3, .9}, {1.3, .9}}) == -1);
  CHECK(first_warning(std::vector<std::pair<double, double>>(9, {std::nan(""), .5})) == -1);
  GuessCollapse watch(1);
  CHECK_FALSE(watch.add(2, .25));
  CHECK(watch.add(.5, .75));
  CHECK(watch.highest().class_entropy == 2);
  CHECK(watch.highest().confidence == .25);
  CHECK(watch.now().class_entropy == .5);
  CHECK(watch.now().confidence == .75);
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

TEST_CASE("guess_quality: the kernel is ATen's calls, in every dtype") {
  torch::manual_seed(3);
  namespace emulated = cuda_emulation;
  for (const auto type : emulated::all_types) {
    for (const auto& [rows, classes] : {std::pair<int64_t, int64_t>{1, 1}, {3, 10}, {300, 7}, {5, 1024}}) {
      Tensor guessed = torch::softmax(at::randn({rows, classes}, at::kDouble) * 3, 1).to(type);
      guessed[0].zero_();  // an entropy of 0 log 0
      const Tensor labels = at::randint(-1, classes, {rows}, at::kLong);
      for (const bool known : {true, false}) {
        const Tensor truth = known ? labels : at::full_like(labels, -1);
        const auto expected = guess_quality(guessed, truth);
        emulated::EmulatedDevice device;
        emulated::dispatch(type, [&](auto scalar) {
          using Scalar = decltype(scalar);
          device.add(std::string("guess_quality<") + mixmatch::detail::cuda_type_name(type) + ">",
                     emulated::guess_quality<Scalar>);
        });
        const auto found = guess_quality(guessed, truth);
        CHECK(device.launches() == 1);
        const auto numbers = [](const GuessQuality& q) {
          return at::stack({q.class_entropy, q.mean_max_probability, q.mean_entropy, q.accuracy});
        };
        CHECK(at::allclose(numbers(found), numbers(expected), 1e-12, 1e-12, /*equal_nan=*/true));
      }
    }
  }
  emulated::EmulatedDevice device;
  device.add("guess_quality<float>", emulated::guess_quality<float>);
  Tensor bad = at::full({2, 3}, 0.2);
  bad[1][1] = std::nan("");
  CHECK(std::isnan(guess_quality(bad, at::zeros({2}, at::kLong)).mean_max_probability.item<double>()));
  CHECK(std::isnan(guess_quality(bad, at::zeros({2}, at::kLong)).mean_entropy.item<double>()));
}
