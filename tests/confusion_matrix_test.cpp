#include <mixmatch/evaluation/confusion_matrix.hpp>

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

TEST_CASE("confusion_matrix and per_class_error name what does not fit") {
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
             contains("confusion must be int64 [L, L], got Long [2, 3]"));
  CHECK_THAT(error_of([&] { per_class_error(torch::zeros({2, 2})); }), contains("got Float [2, 2]"));
}
