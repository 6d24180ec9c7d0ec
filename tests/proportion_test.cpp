// Intervals of an error and of the difference of two errors: evaluation/proportion.hpp,
// paired_comparison.hpp, program/error_text.hpp.

#include <mixmatch/evaluation/guess_chance.hpp>
#include <mixmatch/evaluation/paired_comparison.hpp>
#include <mixmatch/evaluation/proportion.hpp>
#include <mixmatch/program/error_text.hpp>
#include <mixmatch/program/verdict.hpp>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using namespace mixmatch::training;

namespace {

bool close_to(double value, double expected, double tolerance = 1e-12) {
  INFO(value << " against " << expected);
  return std::abs(value - expected) <= tolerance;
}

/// P(X >= count) by adding up the binomial distribution, term by term.
double tail_by_sum(int64_t count, int64_t total, double p) {
  double sum = 0;
  for (int64_t k = count; k <= total; ++k) {
    double term = 1;
    for (int64_t j = 0; j < k; ++j) {
      term *= static_cast<double>(total - j) / static_cast<double>(k - j) * p;
    }
    sum += term * std::pow(1 - p, static_cast<double>(total - k));
  }
  return sum;
}

}  // namespace

TEST_CASE("wilson_interval: Newcombe's examples, and the formula in 30 digits") {
  struct {
    int64_t count, total;
    double low, high;
  } const golden[] = {{81, 263, 0.25528851987827423, 0.36620957698280007},
                      {15, 148, 0.06238639953073628, 0.16048724172330804},
                      {0, 20, 0, 0.16112515805281939},
                      {1, 29, 0.0061132142927626605, 0.17175521879320288},
                      {29, 29, 0.88303020150025923, 1},
                      {1234, 10000, 0.11709799034002367, 0.12999123723276994}};
  for (const auto& row : golden) {
    INFO(row.count << " of " << row.total);
    const auto interval = wilson_interval(row.count, row.total);
    CHECK(close_to(interval.low, row.low));
    CHECK(close_to(interval.high, row.high));
  }
  // As printed in Statistics in Medicine 17:857, table I, method 3.
  CHECK(close_to(wilson_interval(81, 263).low, .2553, 5e-5));
  CHECK(close_to(wilson_interval(1, 29).high, .1718, 5e-5));
  CHECK(wilson_interval(0, 0).low == 0);
  CHECK(wilson_interval(0, 0).high == 1);
  CHECK(wilson_interval(10, 20, 0.99).low < wilson_interval(10, 20, 0.9).low);
  CHECK_THAT(error_of([] { wilson_interval(3, 2); }), contains("count must be in [0, 2], got 3"));
  CHECK_THAT(error_of([] { wilson_interval(-1, 2); }), contains("count must be in [0, 2], got -1"));
  CHECK_THAT(error_of([] { wilson_interval(1, 2, 1); }), contains("level must be in (0, 1), got 1"));
}

TEST_CASE("clopper_pearson_lower: golden values, and the tail that defines it") {
  struct {
    int64_t count, total;
    double low;
  } const golden[] = {{59, 59, 0.95049239011177305},
                      {58, 58, 0.94966066166957988},
                      {1, 20, 0.0025613787765302804},
                      {10, 10, 0.74113444910694772},
                      {95, 100, 0.89774662235672549},
                      {190, 200, 0.91666484893362803},
                      {37, 41, 0.79049469729317589},
                      {0, 5, 0},
                      {0, 0, 0}};
  for (const auto& row : golden) {
    INFO(row.count << " of " << row.total);
    CHECK(close_to(clopper_pearson_lower(row.count, row.total), row.low, 1e-11));
  }
  for (const auto& [count, total] : std::vector<std::pair<int64_t, int64_t>>{{3, 9}, {40, 41}, {120, 300}}) {
    CHECK(close_to(tail_by_sum(count, total, clopper_pearson_lower(count, total, 0.9)), 0.1, 1e-10));
  }
  CHECK(close_to(mixmatch::training::detail::incomplete_beta(0.12, 1234, 8767), 0.15134707152860649, 1e-9));
  CHECK(close_to(mixmatch::training::detail::normal_quantile(0.975), 1.9599639845400542, 1e-14));
  CHECK(close_to(mixmatch::training::detail::normal_quantile(0.001), -3.0902323061678135, 1e-13));
  CHECK(std::abs(mixmatch::training::detail::normal_quantile(0.5)) < 1e-14);
}

TEST_CASE("error_text: an error in percent of so many images, with its interval") {
  CHECK(error_text(12.5, 40) == "12.50 % [5.46, 26.11]");
  CHECK(error_text(0, 20) == "0.00 % [0.00, 16.11]");
  CHECK(error_text(100 * 1234.0 / 10000, 10000) == "12.34 % [11.71, 13.00]");
  CHECK(std::isnan(error_interval(std::nan(""), 40).low));
}

TEST_CASE("mcnemar_exact: sums of binomial coefficients; order does not matter") {
  CHECK(close_to(mcnemar_exact(5, 0), 0.0625));
  CHECK(close_to(mcnemar_exact(1, 7), 0.0703125));  // (Fagerland et al. 2014, airway hyper-responsiveness)
  CHECK(close_to(mcnemar_exact(6, 16), 0.052478790283203125));
  CHECK(mcnemar_exact(16, 6) == mcnemar_exact(6, 16));
  CHECK(close_to(mcnemar_exact(150, 86), 3.7159361395714423e-5, 1e-16));
  CHECK(mcnemar_exact(3, 3) == 1);
  CHECK(mcnemar_exact(0, 0) == 1);
  CHECK_THAT(error_of([] { mcnemar_exact(-1, 2); }), contains("must be >= 0, got -1 and 2"));
}

TEST_CASE("newcombe_paired_interval: published intervals, and the formula in 30 digits") {
  struct {
    int64_t both, first, second, neither;
    double low, high;
  } const golden[] = {{36, 12, 2, 0, 0.0569295840032388, 0.340427602974941},
                      {14, 5, 0, 22, 0.0114832413830333, 0.226492684351211},
                      {1, 1, 7, 12, -0.506920226686141, -0.0255591241648598},
                      {20, 12, 2, 16, 0.0561564248417483, 0.329206995400141},
                      {18, 14, 0, 18, 0.144082616157357, 0.396325281733328},
                      {54, 0, 0, 0, -0.0664135880908964, 0.0664135880908964},
                      {0, 29, 1, 0, 0.666592180171817, 0.988182819236775},
                      {59, 6, 16, 80, -0.11862119563871, -0.00462511393305005}};
  for (const auto& row : golden) {
    INFO(row.both << " " << row.first << " " << row.second << " " << row.neither);
    const auto interval = newcombe_paired_interval(row.both, row.first, row.second, row.neither);
    CHECK(close_to(interval.low, row.low));
    CHECK(close_to(interval.high, row.high));
    const auto swapped = newcombe_paired_interval(row.both, row.second, row.first, row.neither);
    CHECK(close_to(swapped.low, -interval.high));
    CHECK(close_to(swapped.high, -interval.low));
  }
  // As printed: Newcombe 1998, table I; Fagerland et al. 2014, table VIII.
  CHECK(close_to(newcombe_paired_interval(36, 12, 2, 0).low, 0.0569, 5e-5));
  CHECK(close_to(newcombe_paired_interval(36, 12, 2, 0).high, 0.3404, 5e-5));
  CHECK(close_to(newcombe_paired_interval(1, 1, 7, 12).low, -0.507, 5e-4));
  CHECK(close_to(newcombe_paired_interval(1, 1, 7, 12).high, -0.026, 5e-4));
  CHECK(newcombe_paired_interval(0, 0, 0, 0).low == -1);
  CHECK(newcombe_paired_interval(0, 0, 0, 0).high == 1);
  CHECK_THAT(error_of([] { newcombe_paired_interval(1, 2, -3, 4); }), contains("must be >= 0, got 1, 2, -3"));
}

TEST_CASE("compare_predictions: counts the four kinds of images, unknown labels left out") {
  const auto of = [](at::IntArrayRef values) { return torch::tensor(values, at::kLong); };
  const Tensor labels = of({0, 1, 2, -1, 0, 1, 2, 2}), first = of({0, 1, 2, 0, 0, 0, 2, 0}),
               second = of({0, 1, 0, 1, 1, 1, 0, 1});
  const auto result = compare_predictions(labels, first, second);
  CHECK(result.both == 2);
  CHECK(result.first_only == 3);
  CHECK(result.second_only == 1);
  CHECK(result.neither == 1);
  CHECK(close_to(result.difference, 2.0 / 7));
  CHECK(close_to(result.p_value, 0.625));
  CHECK(result.interval.low == newcombe_paired_interval(2, 3, 1, 1).low);
  CHECK(compare_predictions(labels, first, first).p_value == 1);
  CHECK(std::isnan(compare_predictions(of({-1}), of({0}), of({0})).difference));
  CHECK_THAT(error_of([&] { compare_predictions(labels, first, of({1})); }),
             contains("labels has 8 rows, second 1"));
  CHECK_THAT(error_of([&] { compare_predictions(labels, torch::zeros({8}), second); }),
             contains("first must be int64 [N], got Float [8]"));
}

TEST_CASE("newcombe_paired_interval covers the true difference about as often as it says") {
  // 80 images; first right with .8, second with .7, dependent: both right .62.
  std::mt19937 engine(3);
  int covered = 0, rejected_by_test = 0;
  constexpr int sets = 2000;
  for (int i = 0; i < sets; ++i) {
    int64_t counts[4] = {};
    for (int k = 0; k < 80; ++k) {
      const double u = (static_cast<double>(engine()) + .5) / 4294967296.0;
      ++counts[u < .62 ? 0 : u < .8 ? 1 : u < .88 ? 2 : 3];
    }
    const auto interval = newcombe_paired_interval(counts[0], counts[1], counts[2], counts[3]);
    covered += interval.low <= .1 && .1 <= interval.high ? 1 : 0;
    rejected_by_test += mcnemar_exact(counts[1], counts[2]) < .05 && interval.low < 0 && interval.high > 0;
  }
  CHECK(covered > sets * .93);
  CHECK(covered < sets * .98);
  CHECK(rejected_by_test < sets / 50);  // test and interval hardly ever disagree
}

TEST_CASE("verdict: which is better, by how much, or that it cannot be told") {
  using mixmatch::training::verdict_text;
  const auto compared = [](int64_t both, int64_t first, int64_t second, int64_t neither) {
    std::vector<int64_t> labels, a, b;
    const auto add = [&](int64_t count, int64_t first_class, int64_t second_class) {
      labels.insert(labels.end(), static_cast<size_t>(count), 0);
      a.insert(a.end(), static_cast<size_t>(count), first_class);
      b.insert(b.end(), static_cast<size_t>(count), second_class);
    };
    add(both, 0, 0);
    add(first, 0, 1);
    add(second, 1, 0);
    add(neither, 1, 1);
    return mixmatch::training::compare_predictions(torch::tensor(labels), torch::tensor(a), torch::tensor(b));
  };
  // 2 (1 + 14 + 91) / 2^14
  CHECK(verdict_text("mixmatch", compared(70, 12, 2, 16))
            .find("verdict: mixmatch is better than supervised training: error 18.0 % against 28.0 % on 100 "
                  "held-out images, -10.0 points [") == 0);
  CHECK(verdict_text("mixmatch", compared(70, 12, 2, 16)).find("p = 0.013") != std::string::npos);
  CHECK(verdict_text("uda", compared(70, 2, 12, 16))
            .find("verdict: uda is worse than supervised training, so train with --method supervised: error "
                  "28.0 % "
                  "against 18.0 % on 100 held-out images, +10.0 points [") == 0);
  CHECK(verdict_text("uda", compared(8, 3, 1, 2)).find("verdict: no difference between uda and supervised") ==
        0);
  CHECK(verdict_text("fine-tuning", compared(70, 2, 12, 16), {"a linear probe", "freeze more"})
            .find("verdict: fine-tuning is worse than a linear probe, so freeze more: error ") == 0);
  CHECK(verdict_text("uda", {}).find("verdict: whether the unlabeled images helped cannot be told") == 0);
}

TEST_CASE("guesses_at_chance: as many as chance, and enough to tell") {
  using mixmatch::training::guesses_at_chance;
  // The most right guesses that raise an alarm, -1 for none: by sums of binomial coefficients in Python.
  struct Case {
    int64_t classes, total, most;
  };
  for (const auto& c : std::vector<Case>{{10, 40, 7},
                                         {10, 10, 0},
                                         {10, 7, -1},
                                         {10, 250, 33},
                                         {4, 4, -1},
                                         {4, 36, 10},
                                         {4, 12, 1},
                                         {3, 30, 10},
                                         {2, 8, 2},
                                         {2, 16, 6},
                                         {2, 50, 25},
                                         {100, 400, 8},
                                         {4, 1000, 273}}) {
    INFO(c.classes << " classes, " << c.total << " guesses");
    for (int64_t right = 0; right <= c.total; ++right) {
      CHECK(guesses_at_chance(right, c.total, c.classes) == (right <= c.most));
    }
  }
  CHECK_FALSE(guesses_at_chance(0, 0, 10));
  CHECK_THAT(error_of([] { guesses_at_chance(3, 2, 10); }), contains("count must be in [0, 2], got 3"));
  CHECK_THAT(error_of([] { guesses_at_chance(0, 2, 1); }), contains("num_classes must be >= 2, got 1"));
}
