#include <mixmatch/evaluation/class_scores.hpp>

#include <cmath>

#include "catch.hpp"
#include "test_util.hpp"

using namespace mixmatch::training;

TEST_CASE("confusion_matrix: rows are true, columns predicted, unknown labels are skipped") {
  const Tensor labels = torch::tensor({0, 0, 1, 2, 2, 2, -1, 0}, at::kLong);
  const Tensor predicted = torch::tensor({0, 2, 1, 2, 0, 2, 1, 2}, at::kLong);
  const Tensor expected =
      torch::tensor({1, 0, 2, 0, 0, 1, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0}, at::kLong).view({4, 4});
  const Tensor confusion = confusion_matrix(labels, predicted, 4);
  CHECK(torch::equal(confusion, expected));
  CHECK(confusion.scalar_type() == at::kLong);
  CHECK(confusion.sum().item<int64_t>() == 7);
  CHECK(torch::equal(confusion_matrix(labels.narrow(0, 6, 1), predicted.narrow(0, 6, 1), 2),
                     torch::zeros({2, 2}, at::kLong)));
  CHECK(torch::equal(confusion_matrix(labels.narrow(0, 0, 0), predicted.narrow(0, 0, 0), 1),
                     torch::zeros({1, 1}, at::kLong)));
  // Strided rows.
  CHECK(torch::equal(confusion_matrix(torch::stack({labels, predicted}, 1).select(1, 0), predicted, 4),
                     expected));
}

TEST_CASE("per_class_error: percent of each row beside the diagonal, NaN for an empty row") {
  const Tensor confusion = torch::tensor({1, 0, 3, 0, 7, 0, 0, 0, 0}, at::kLong).view({3, 3});
  const auto errors = per_class_error(confusion);
  REQUIRE(errors.size() == 3);
  CHECK(errors[0] == 75);
  CHECK(errors[1] == 0);
  CHECK(std::isnan(errors[2]));
}

TEST_CASE("class_scores: precision, recall and F1 by hand; a quotient of nothing is NaN and no number") {
  // Class 0: 5 images, 4 right, 6 predicted; 1: 3, 1, 1; 2: never predicted; 3: no images, 3 predicted; 4:
  // neither.
  const Tensor confusion = torch::tensor({4, 0, 0, 1, 0,  //
                                          2, 1, 0, 0, 0,  //
                                          0, 0, 0, 2, 0,  //
                                          0, 0, 0, 0, 0,  //
                                          0, 0, 0, 0, 0},
                                         at::kLong)
                               .view({5, 5});
  for (const Tensor& matrix : {confusion, confusion.t().contiguous().t()}) {
    const auto scores = class_scores(matrix);
    REQUIRE(scores.size() == 5);
    CHECK(scores[0].images == 5);
    CHECK(scores[0].predicted == 6);
    CHECK(scores[0].precision == 4.0 / 6);
    CHECK(scores[0].recall == 4.0 / 5);
    CHECK(scores[0].f1 == 8.0 / 11);
    CHECK(scores[1].precision == 1);
    CHECK(scores[1].recall == 1.0 / 3);
    CHECK(scores[1].f1 == 0.5);
    CHECK(std::isnan(scores[2].precision));
    CHECK(scores[2].recall == 0);
    CHECK(scores[2].f1 == 0);
    CHECK(scores[3].precision == 0);
    CHECK(std::isnan(scores[3].recall));
    CHECK(scores[3].f1 == 0);
    CHECK(std::isnan(scores[4].precision));
    CHECK(std::isnan(scores[4].recall));
    CHECK(std::isnan(scores[4].f1));
    // Of the three classes that have images.
    CHECK(std::abs(balanced_accuracy(matrix) - (4.0 / 5 + 1.0 / 3 + 0) / 3) < 1e-15);
  }
  CHECK(std::isnan(balanced_accuracy(torch::zeros({3, 3}, at::kLong))));
  // Always the frequent class: right 90 times of 100, and still no better than chance.
  CHECK(balanced_accuracy(torch::tensor({90, 0, 10, 0}, at::kLong).view({2, 2})) == 0.5);
}

TEST_CASE("confusion_matrix and what is computed from it name what does not fit") {
  const auto of = [](at::IntArrayRef values) { return torch::tensor(values, at::kLong); };
  CHECK_THAT(error_of([&] {
               confusion_matrix(of({0, 3}), of({0, 0}), 3);
             }),
             contains("labels must be in [0, 3), got 3"));
  CHECK_THAT(error_of([&] {
               confusion_matrix(of({0, -2}), of({0, 0}), 3);
             }),
             contains("labels must be in [0, 3), got -2"));
  CHECK_THAT(error_of([&] {
               confusion_matrix(of({0, 1}), of({0, -1}), 3);
             }),
             contains("predicted must be in [0, 3), got -1"));
  CHECK_THAT(error_of([&] {
               confusion_matrix(of({0, 1}), of({0}), 3);
             }),
             contains("labels has 2 rows, predicted 1"));
  CHECK_THAT(error_of([&] { confusion_matrix(of({0}), of({0}), 0); }),
             contains("num_classes must be >= 1, got 0"));
  CHECK_THAT(error_of([&] {
               confusion_matrix(torch::zeros({2}), of({0, 0}), 3);
             }),
             contains("labels must be int64 [N], got Float [2]"));
  CHECK_THAT(error_of([&] { confusion_matrix(of({0}), Tensor(), 3); }),
             contains("predicted must be int64 [N], got undefined"));
  CHECK_THAT(error_of([&] {
               per_class_error(torch::zeros({2, 3}, at::kLong));
             }),
             contains("per_class_error: confusion must be int64 [L, L], got Long [2, 3]"));
  CHECK_THAT(error_of([&] { balanced_accuracy(Tensor()); }),
             contains("class_scores: confusion must be int64 [L, L], got undefined"));
  CHECK_THAT(error_of([&] { per_class_error(torch::zeros({2, 2})); }), contains("got Float [2, 2]"));
}
