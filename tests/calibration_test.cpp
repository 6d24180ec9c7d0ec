// How confidences are to be read: evaluation/calibration.hpp and confidence_rule.hpp.

#include <mixmatch/evaluation/calibration.hpp>
#include <mixmatch/evaluation/confidence_rule.hpp>

#include <cmath>
#include <limits>
#include <random>

#include "catch.hpp"
#include "test_util.hpp"

using namespace mixmatch::training;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

/// scale * sin(1.7 i + 2.3 k + k^2), for which the golden values were computed in 40 digits.
Tensor sine_logits(int64_t rows, int64_t classes, double scale) {
  const Tensor i = torch::arange(rows, torch::kDouble).unsqueeze(1),
               k = torch::arange(classes, torch::kDouble);
  return scale * torch::sin(1.7 * i + 2.3 * k + k * k);
}

/// The largest logit's class, but for every `every`-th row, which has its number's.
Tensor mostly_right(const Tensor& logits, int64_t every) {
  Tensor labels = logits.argmax(1);
  for (int64_t i = 0; i < labels.size(0); i += every) {
    labels[i] = (i / every) % logits.size(1);
  }
  return labels;
}

/// Rows of two classes with these confidences for class 1, and whether 1 is right.
Tensor two_classes(const std::vector<double>& confidence) {
  const Tensor p = torch::tensor(confidence, torch::kDouble);
  return torch::stack({1 - p, p}, 1);
}

}  // namespace

TEST_CASE("reliability_bins: (low, high] by confidence, means of each") {
  const Tensor p = torch::tensor({.5, .5, 0., .25, .75, 0., .125, .125, .75, 1., 0., 0., .0625, .0625, .875,
                                  .3125, .34375, .34375},
                                 torch::kDouble)
                       .view({6, 3});
  const auto bins = reliability_bins(p, torch::tensor({1, 1, 2, 0, -1, 0}, torch::kLong), 4);
  REQUIRE(bins.size() == 4);
  CHECK(bins[0].rows == 0);
  CHECK(std::isnan(bins[0].confidence));
  CHECK(std::isnan(bins[0].accuracy));
  CHECK(bins[1].low == .25);
  CHECK(bins[1].high == .5);
  CHECK(bins[1].rows == 2);  // .5 belongs to the bin below; its tie was the first class
  CHECK(bins[1].confidence == (.5 + .34375) / 2);
  CHECK(bins[1].accuracy == 0);
  CHECK(bins[2].rows == 2);
  CHECK(bins[2].confidence == .75);
  CHECK(bins[2].accuracy == 1);
  CHECK(bins[3].rows == 1);
  CHECK(bins[3].accuracy == 1);
  CHECK(std::abs(expected_calibration_error(bins) - (.84375 + 2 * .25 + 0) / 5) < 1e-15);
}

TEST_CASE("expected_calibration_error: golden values; rows without an answer are left out") {
  const Tensor logits = sine_logits(40, 3, 4), labels = mostly_right(logits, 3);
  const Tensor p = torch::softmax(logits, 1);
  CHECK(std::abs(expected_calibration_error(p, labels) - 0.1572741221538075) < 1e-12);
  CHECK(std::abs(expected_calibration_error(p, labels, 1) - 0.07797586895949156) < 1e-12);
  CHECK(std::abs(expected_calibration_error(p, labels, 7) - 0.1653061862331565) < 1e-12);
  CHECK(std::abs(expected_calibration_error(p, labels, 50) - 0.19651636765899) < 1e-12);
  const Tensor more = torch::cat({p, torch::full({2, 3}, not_a_number, torch::kDouble), p.narrow(0, 0, 3)});
  const Tensor unknown = torch::cat({labels, labels.narrow(0, 0, 2), torch::full({3}, -1, torch::kLong)});
  CHECK(expected_calibration_error(more, unknown) == expected_calibration_error(p, labels));
  CHECK(std::abs(expected_calibration_error(p.to(torch::kFloat), labels) - 0.1572741221538075) < 1e-6);
  CHECK(std::isnan(expected_calibration_error(p.narrow(0, 0, 0), labels.narrow(0, 0, 0))));
  CHECK(expected_calibration_error(torch::eye(3), torch::arange(3)) == 0);
}

TEST_CASE("fit_temperature: the minimum found by golden section in 40 digits") {
  const Tensor sure = sine_logits(40, 3, 4), modest = sine_logits(40, 4, .5);
  const auto hot = fit_temperature(sure, mostly_right(sure, 3));
  CHECK(hot.fitted);
  CHECK(hot.why_not.empty());
  CHECK(hot.rows == 40);
  CHECK(std::abs(hot.temperature - 2.730203542278395) < 1e-10);
  CHECK(std::abs(hot.loss_before - 1.111731670953271) < 1e-12);
  CHECK(std::abs(hot.loss_after - 0.7677069072999409) < 1e-12);
  const auto cold = fit_temperature(modest, mostly_right(modest, 8));
  CHECK(std::abs(cold.temperature - 0.232779806108616) < 1e-10);
  CHECK(std::abs(cold.loss_before - 1.129231637191964) < 1e-12);
  CHECK(std::abs(cold.loss_after - 0.8535965482506022) < 1e-12);
  // Logits and logarithms of probabilities are the same; float32 is as good as its digits.
  const Tensor p = torch::softmax(sure, 1);
  CHECK(std::abs(fit_temperature(p.log(), mostly_right(sure, 3)).temperature - hot.temperature) < 1e-10);
  CHECK(std::abs(fit_temperature(p.to(torch::kFloat).log(), mostly_right(sure, 3)).temperature -
                 hot.temperature) < 1e-5);
  // What scales the logits scales the temperature: of those at the fitted temperature it is 1.
  CHECK(std::abs(fit_temperature(sure / hot.temperature, mostly_right(sure, 3)).temperature - 1) < 1e-10);
  const Tensor scaled = scale_temperature(p, hot.temperature);
  CHECK(torch::allclose(scaled, torch::softmax(sure / hot.temperature, 1), 1e-12, 1e-14));
  CHECK(std::abs(expected_calibration_error(scaled, mostly_right(sure, 3)) - 0.1762889833560514) < 1e-12);
}

TEST_CASE("fit_temperature: what the rows cannot tell stays 1, and is said") {
  const Tensor logits = sine_logits(40, 3, 4), labels = mostly_right(logits, 3);
  const auto few = fit_temperature(logits.narrow(0, 0, 19), labels.narrow(0, 0, 19));
  CHECK_FALSE(few.fitted);
  CHECK(few.temperature == 1);
  CHECK(few.why_not == "19 held-out images, it takes 20");
  CHECK(few.loss_after == few.loss_before);
  CHECK(fit_temperature(logits.narrow(0, 0, 20), labels.narrow(0, 0, 20)).fitted);
  CHECK(fit_temperature(logits.narrow(0, 0, 1), labels.narrow(0, 0, 1)).why_not ==
        "1 held-out image, it takes 20");
  const auto one_class = fit_temperature(logits, torch::full({40}, 2, torch::kLong));
  CHECK(one_class.temperature == 1);
  CHECK(one_class.why_not == "the held-out images are all of one class");
  const auto all_right = fit_temperature(logits, logits.argmax(1));
  CHECK(all_right.temperature == 1);
  CHECK(all_right.why_not == "the held-out images are all classified right");
  const auto none = fit_temperature(logits, torch::full({40}, -1, torch::kLong));
  CHECK(none.temperature == 1);
  CHECK(none.rows == 0);
  CHECK(none.why_not == "there are no held-out images with a label");
  CHECK(std::isnan(none.loss_before));
}

TEST_CASE("fit_temperature: bounds, underflow, any threads") {
  // Always sure and worse than chance: the flatter the better.
  const Tensor logits = sine_logits(60, 3, 30);
  CHECK(std::abs(fit_temperature(logits, logits.argmin(1)).temperature - 20) < 1e-12);
  // Logits of a thousandth with one error: sharper than the bound would be best.
  const Tensor faint = sine_logits(60, 3, 1e-3);
  CHECK(std::abs(fit_temperature(faint, mostly_right(faint, 60 - 1)).temperature - .05) < 1e-12);
  // Probabilities of float32 that underflowed, of the true class too: large, and finite.
  const Tensor p = torch::eye(3).repeat({10, 1});
  Tensor labels = torch::arange(30).remainder(3);
  labels[0] = 1;
  const auto fit = fit_temperature(p.log(), labels);
  CHECK(fit.fitted);
  CHECK(std::isfinite(fit.loss_before));
  CHECK(std::abs(fit.loss_before - 104.0 / 30) < 1e-9);
  // One of 30 wrong: best is exp(-104 / T) = 1 / 58, at T = 25.6, beyond the bound.
  CHECK(std::abs(fit.temperature - 20) < 1e-12);
  const Tensor scaled = scale_temperature(p, fit.temperature);
  CHECK(std::abs(scaled[0][1].item<double>() - 1 / (std::exp(5.2) + 2)) < 1e-12);
  CHECK(torch::allclose(scaled.sum(1), torch::ones({30}, torch::kDouble)));
  const int threads = at::get_num_threads();
  const Tensor many = sine_logits(5000, 10, 3), of_many = mostly_right(many, 4);
  const double once = fit_temperature(many, of_many).temperature;
  at::set_num_threads(3);
  CHECK(fit_temperature(many, of_many).temperature == once);
  at::set_num_threads(threads);
}

TEST_CASE("scale_temperature: 1 changes nothing, rows sum to 1, the order stays") {
  const Tensor p = torch::softmax(torch::randn({50, 5}, seeded(1)), 1);
  CHECK(torch::equal(scale_temperature(p, 1), p.to(torch::kDouble)));
  for (const double temperature : {.05, .5, 3., 20.}) {
    const Tensor scaled = scale_temperature(p, temperature);
    CHECK(torch::allclose(scaled.sum(1), torch::ones({50}, torch::kDouble)));
    CHECK(torch::equal(scaled.argsort(int64_t{1}), p.argsort(int64_t{1})));
  }
  CHECK(scale_temperature(torch::empty({0, 3}), 2).sizes() == at::IntArrayRef({0, 3}));
  CHECK(scale_temperature(torch::full({1, 2}, not_a_number), 2).isnan().all().item<bool>());
}

TEST_CASE("acceptance_threshold: the most that the bound allows, equals together") {
  // Confidence falls from .999; the first 80 rows are right, then every other one.
  std::vector<double> confidence;
  std::vector<int64_t> right;
  for (int i = 0; i < 120; ++i) {
    confidence.push_back(.999 - .003 * i);
    right.push_back(i < 80 || i % 2 == 0 ? 1 : 0);
  }
  // In another order: it must not matter.
  std::mt19937 engine(5);
  for (size_t i = confidence.size() - 1; i > 0; --i) {
    const size_t j = engine() % (i + 1);
    std::swap(confidence[i], confidence[j]);
    std::swap(right[i], right[j]);
  }
  const Tensor p = two_classes(confidence), labels = torch::tensor(right, torch::kLong);
  // By brute force over all numbers of accepted rows, with the bound of the other header.
  for (const double target : {.6, .9, .95, .96}) {
    int64_t best = 0;
    for (int64_t n = 1; n <= 120; ++n) {
      const int64_t hits = n <= 80 ? n : 80 + (n - 80 + 1) / 2;
      if (clopper_pearson_lower(hits, n) >= target) {
        best = n;
      }
    }
    const auto found = acceptance_threshold(p, labels, target);
    INFO(target);
    REQUIRE(found.has_value());
    CHECK(found->accepted == best);
    CHECK(found->rows == 120);
    CHECK(std::abs(found->confidence - (.999 - .003 * static_cast<double>(best - 1))) < 1e-12);
    CHECK(found->precision_bound >= target);
    CHECK(found->precision_bound == clopper_pearson_lower(found->right, found->accepted));
  }
  CHECK_FALSE(acceptance_threshold(p, labels, .97).has_value());
  CHECK_FALSE(acceptance_threshold(p, labels, 1).has_value());
  CHECK(acceptance_threshold(p, labels, 0)->accepted == 120);

  // .95 takes 59 rows without an error.
  const Tensor ones = torch::ones({59}, torch::kLong);
  CHECK_FALSE(
      acceptance_threshold(two_classes(std::vector<double>(58, .9)), ones.narrow(0, 0, 58), .95).has_value());
  CHECK(acceptance_threshold(two_classes(std::vector<double>(59, .9)), ones, .95)->accepted == 59);
  // Rows of one confidence are accepted together or not at all.
  Tensor one_wrong = torch::ones({60}, torch::kLong);
  one_wrong[59] = 0;
  CHECK_FALSE(acceptance_threshold(two_classes(std::vector<double>(60, .9)), one_wrong, .95).has_value());
  CHECK_FALSE(acceptance_threshold(torch::empty({0, 2}), torch::empty({0}, torch::kLong), .95).has_value());
}

TEST_CASE("acceptance_threshold: how often the target is missed, drawn anew") {
  // Confidence uniform in (.5, 1), calibrated: right with that probability. Of the rows above t the precision
  // is (1 + t) / 2, so the target .9 holds from t = .8 on.
  std::mt19937 engine(11);
  const auto uniform = [&engine] { return (static_cast<double>(engine()) + .5) / 4294967296.0; };
  int missed = 0, found = 0;
  constexpr int sets = 400;
  for (int s = 0; s < sets; ++s) {
    std::vector<double> confidence(300);
    std::vector<int64_t> right(300);
    for (size_t i = 0; i < confidence.size(); ++i) {
      confidence[i] = .5 + uniform() / 2;
      right[i] = uniform() < confidence[i] ? 1 : 0;
    }
    const auto threshold =
        acceptance_threshold(two_classes(confidence), torch::tensor(right, torch::kLong), .9);
    found += threshold.has_value() ? 1 : 0;
    missed += threshold.has_value() && threshold->confidence < .8 ? 1 : 0;
  }
  INFO(missed << " of " << found << " thresholds miss the target");
  CHECK(missed < found / 10);
  CHECK(found > sets / 2);
}

TEST_CASE("fit_confidence_rule: temperature first, then the threshold at it") {
  const Tensor logits = sine_logits(400, 3, 12), labels = mostly_right(logits, 11);
  const Tensor p = torch::softmax(logits, 1).to(torch::kFloat);
  const auto fit = fit_confidence_rule(p, labels, .9);
  CHECK(fit.temperature.fitted);
  CHECK(fit.rule.temperature == fit.temperature.temperature);
  CHECK(fit.rule.target_precision == .9);
  REQUIRE(fit.acceptance.has_value());
  CHECK(fit.rule.threshold == fit.acceptance->confidence);
  CHECK(fit.acceptance->accepted ==
        scale_temperature(p, fit.rule.temperature).amax(1).ge(*fit.rule.threshold).sum().item<int64_t>());
  CHECK(fit.acceptance->accepted ==
        acceptance_threshold(scale_temperature(p, fit.rule.temperature), labels, .9)->accepted);
  const auto unreachable = fit_confidence_rule(p, labels, .999);
  CHECK_FALSE(unreachable.acceptance.has_value());
  CHECK(unreachable.rule.threshold == std::numeric_limits<double>::infinity());
  const auto nothing = fit_confidence_rule(torch::empty({0, 3}), torch::empty({0}, torch::kLong), .9);
  CHECK_FALSE(nothing.rule.threshold.has_value());
  CHECK(nothing.rule.temperature == 1);
}

TEST_CASE("calibration names what does not fit") {
  const Tensor p = torch::full({2, 2}, .5), labels = torch::zeros({2}, torch::kLong);
  CHECK_THAT(error_of([&] { reliability_bins(p, labels, 0); }), contains("bins must be >= 1, got 0"));
  CHECK_THAT(error_of([&] { reliability_bins(p[0], labels); }),
             contains("probabilities must be floating-point [N, L], got Float [2]"));
  CHECK_THAT(error_of([&] { fit_temperature(p, labels.narrow(0, 0, 1)); }),
             contains("fit_temperature: logits has 2 rows, labels 1"));
  CHECK_THAT(error_of([&] { fit_temperature(p, labels + 2); }), contains("labels must be in [0, 2), got 2"));
  CHECK_THAT(error_of([&] { fit_temperature(labels.view({1, 2}), labels); }), contains("got Long [1, 2]"));
  CHECK_THAT(error_of([&] { scale_temperature(p, 0); }), contains("temperature must be a finite number > 0"));
  CHECK_THAT(error_of([&] { scale_temperature(p, not_a_number); }), contains("got nan"));
  CHECK_THAT(error_of([&] { acceptance_threshold(p, labels, 1.5); }),
             contains("target_precision must be in [0, 1], got 1.5"));
  CHECK_THAT(error_of([&] { acceptance_threshold(p, Tensor(), .5); }),
             contains("labels must be int64 [N], got undefined"));
}
