// Which pictures a person should look at: unlabeled ones to label, and labels that are doubted.

#include <mixmatch/evaluation/cross_validated_probe.hpp>
#include <mixmatch/evaluation/label_errors.hpp>
#include <mixmatch/evaluation/review_order.hpp>

#include <cstdint>
#include <limits>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using namespace mixmatch::training;

namespace {

Tensor row_numbers(const std::vector<int64_t>& values) { return torch::tensor(values, at::kLong); }

}  // namespace

TEST_CASE("find_label_errors: the off-diagonal rows of the confident joint, by margin") {
  // Thresholds: class 0 the mean of .9, .8, .2, .4 = .575; class 1 of .9, .7, .35 = .65; class 2 has no row.
  const Tensor p = torch::tensor({
                                     .9, .1,  0.,  //
                                     .8, .2,  0.,  //
                                     .2, .8,  0.,  // labeled 0, surely 1: margin -.6
                                     .4, .6,  0.,  // labeled 0, but .6 < .65: no class is sure
                                     .1, .9,  0.,  //
                                     .3, .7,  0.,  //
                                     .6, .35, .05  // labeled 1, surely 0: margin -.25
                                 })
                       .view({7, 3});
  const Tensor labels = row_numbers({0, 0, 0, 0, 1, 1, 1});
  const auto errors = find_label_errors(p, labels);
  CHECK(errors.rows.equal(row_numbers({2, 6})));
  CHECK(errors.classes.equal(row_numbers({1, 0})));
  // With a probability of at least that.
  CHECK(find_label_errors(p, labels, .7).rows.equal(row_numbers({2})));
  CHECK(find_label_errors(p, labels, .81).rows.numel() == 0);
  // Rows without a label count for nothing, and one with a NaN neither.
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor more = torch::cat({torch::tensor({{0., 0., 1.}, {nan, 1., 0.}}), p});
  const auto shifted = find_label_errors(more, torch::cat({row_numbers({-1, 0}), labels}));
  CHECK(shifted.rows.equal(row_numbers({4, 8})));
  CHECK(shifted.classes.equal(row_numbers({1, 0})));
  CHECK(find_label_errors(p.to(at::kBFloat16), labels).rows.equal(row_numbers({2, 6})));
  CHECK(find_label_errors(p, torch::full({7}, -1, at::kLong)).rows.numel() == 0);
  CHECK(find_label_errors(torch::empty({0, 3}), row_numbers({})).rows.numel() == 0);
}

TEST_CASE("find_label_errors: wrong labels among noisy predictions are found") {
  // 300 rows of three classes, 15 with the label of the next class; the model is right with noise.
  torch::manual_seed(3);
  const Tensor truth = torch::arange(300, at::kLong).remainder(3);
  Tensor labels = truth.clone();
  for (int64_t i = 0; i < 15; ++i) {
    labels[20 * i] = (labels[20 * i] + 1).remainder(3);
  }
  const Tensor p = torch::softmax(4 * torch::one_hot(truth, 3).to(at::kFloat) + torch::randn({300, 3}), 1);
  const auto errors = find_label_errors(p, labels);
  const int64_t right = truth.ne(labels).index_select(0, errors.rows).sum().item<int64_t>();
  CHECK(right >= 12);
  CHECK(errors.rows.numel() <= right + 5);
  CHECK(errors.classes.eq(truth.index_select(0, errors.rows)).sum().item<int64_t>() >= right);
}

TEST_CASE("cross_validated_probe: wrong labels among separate clusters do not vouch for themselves") {
  torch::manual_seed(5);
  const Tensor truth = torch::arange(60, at::kLong).remainder(3);
  const Tensor features = 6 * torch::one_hot(truth, 5).to(at::kFloat) + torch::randn({60, 5});
  Tensor labels = truth.clone();
  for (const int64_t i : {7, 20, 44}) {
    labels[i] = (labels[i] + 1).remainder(3);
  }
  const Tensor p = cross_validated_probe(features, labels, 3);
  CHECK(p.sizes() == at::IntArrayRef({60, 3}));
  CHECK(p.scalar_type() == at::kFloat);
  CHECK(p.sum(1).allclose(torch::ones({60})));
  CHECK(p.argmax(1).equal(truth));
  const auto errors = find_label_errors(p, labels);
  CHECK(std::get<0>(errors.rows.sort()).equal(row_numbers({7, 20, 44})));
  CHECK(errors.classes.equal(truth.index_select(0, errors.rows)));
  // The same again, on rows of another type, and where a fold's probe sees but a part of the rows.
  CHECK(cross_validated_probe(features, labels, 3).equal(p));
  CHECK(cross_validated_probe(features.to(at::kDouble), labels, 3).argmax(1).equal(truth));
  const auto few = CrossValidatedProbeOptions().most_rows(24).folds(2);
  CHECK(cross_validated_probe(features, labels, 3, few).argmax(1).eq(truth).sum().item<int64_t>() >= 57);
  // A class with one row, and no row at all.
  CHECK(cross_validated_probe(features, labels.index_fill(0, row_numbers({0}), 3), 4)[0][3].item<float>() <
        .1);
  CHECK(cross_validated_probe(torch::empty({0, 5}), row_numbers({}), 3).sizes() == at::IntArrayRef({0, 3}));
  CHECK_THAT(error_of([&] { cross_validated_probe(features, labels.narrow(0, 0, 5), 3); }),
             contains("features and labels must be [N, D] and int64 [N], got Float [60, 5] and Long [5]"));
  CHECK_THAT(
      error_of([&] { cross_validated_probe(features, labels, 3, CrossValidatedProbeOptions().folds(1)); }),
      contains("folds must be >= 2, got 1"));
}

TEST_CASE("find_label_errors names what does not fit") {
  CHECK_THAT(error_of([] {
               find_label_errors(torch::zeros({3}), row_numbers({0, 0, 0}));
             }),
             contains("probabilities must be floating-point [N, L], got Float [3]"));
  CHECK_THAT(error_of([] {
               find_label_errors(torch::zeros({3, 2}), row_numbers({0, 0}));
             }),
             contains("probabilities has 3 rows, labels 2"));
  CHECK_THAT(error_of([] {
               find_label_errors(torch::zeros({3, 2}), row_numbers({0, 2, 0}));
             }),
             contains("labels must be < 2, the columns of probabilities, got 2"));
}

TEST_CASE("review_order: uncertain rows that stand for others come first, the rest by their confidence") {
  // Directions in degrees: near-duplicates at 0 and at 90, two that are alone, one of them certain.
  const Tensor confidence = torch::tensor({.40, .41, .42, .50, .51, .60, .999, .30});
  const Tensor angle = torch::tensor({0., 2., 4., 90., 93., 180., 270., 1.}) * (3.14159265358979 / 180);
  const Tensor features = 5 * torch::stack({angle.cos(), angle.sin()}, 1);
  std::vector<int64_t> asked;
  const auto embed = [&](const Tensor& wanted) {
    asked.push_back(wanted.numel());
    return features.index_select(0, wanted);
  };
  // By the formula in double precision: gains 2.01, .363 (.360 of row 4), .102, and .0005 of row 2.
  CHECK(review_order(confidence, embed, ReviewOrderOptions().diverse(4))
            .equal(row_numbers({7, 3, 5, 2, 0, 1, 4, 6})));
  CHECK(asked == std::vector<int64_t>{8});
  CHECK(review_order(confidence, embed, ReviewOrderOptions().diverse(0))
            .equal(row_numbers({7, 0, 1, 2, 3, 4, 5, 6})));
  CHECK(asked.size() == 1);
  // Of the four least certain alone: gains .796, and .228 of row 2.
  const auto few = review_order(confidence, embed, ReviewOrderOptions().diverse(2).candidates(4));
  CHECK(asked.back() == 4);
  CHECK(few.equal(row_numbers({7, 2, 0, 1, 3, 4, 5, 6})));
  // Every row once, whatever the features are.
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const Tensor& odd : {torch::zeros({8, 1}), torch::full({8, 2}, nan), features * 1e30}) {
    const auto any = review_order(torch::tensor({.5, nan, 1., 1., .5, .2, 1., 0.}),
                                  [&](const Tensor& wanted) { return odd.index_select(0, wanted); });
    CHECK(std::get<0>(any.sort()).equal(torch::arange(8, at::kLong)));
  }
  CHECK(review_order(torch::empty({0}), embed).numel() == 0);
  CHECK_THAT(error_of([&] {
               review_order(torch::zeros({2, 2}), embed);
             }),
             contains("confidence must be floating-point [N], got Float [2, 2]"));
  CHECK_THAT(error_of([&] {
               review_order(torch::zeros({3}), [](const Tensor&) { return torch::zeros({2, 2}); });
             }),
             contains("embed must return floating-point [3, D], got Float [2, 2]"));
}
