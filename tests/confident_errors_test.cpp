#include <mixmatch/evaluation/confident_errors.hpp>

#include <limits>

#include "catch.hpp"
#include "test_util.hpp"

using namespace mixmatch::training;

TEST_CASE("most_confident_errors: wrong rows alone, most confident first, equal ones in their order") {
  const Tensor probabilities =
      torch::tensor({0.1, 0.9, 0.6, 0.4, 0.3, 0.7, 0.8, 0.2, 0.05, 0.95, 0.3, 0.7}).view({6, 2});
  const Tensor labels = torch::tensor({1, 1, 0, 1, -1, 0}, at::kLong);
  const Tensor rows = most_confident_errors(probabilities, labels, 10);
  CHECK(torch::equal(rows, torch::tensor({3, 2, 5, 1}, at::kLong)));
  CHECK(torch::equal(most_confident_errors(probabilities, labels, 2), torch::tensor({3, 2}, at::kLong)));
  CHECK(most_confident_errors(probabilities, labels, 0).numel() == 0);
  CHECK(most_confident_errors(probabilities, torch::full({6}, -1, at::kLong), 5).numel() == 0);
  CHECK(most_confident_errors(probabilities.to(at::kBFloat16), labels, 1)[0].item<int64_t>() == 3);
  Tensor broken = probabilities.clone();
  broken[3][0] = std::numeric_limits<float>::quiet_NaN();
  CHECK(torch::equal(most_confident_errors(broken, labels, 10), torch::tensor({2, 5, 1}, at::kLong)));
}

TEST_CASE("most_confident_errors names what does not fit") {
  const Tensor labels = torch::zeros({3}, at::kLong);
  CHECK_THAT(error_of([&] { most_confident_errors(torch::zeros({3}), labels, 1); }),
             contains("probabilities must be floating-point [N, L], got Float [3]"));
  CHECK_THAT(error_of([&] {
               most_confident_errors(torch::zeros({3, 2}, at::kLong), labels, 1);
             }),
             contains("got Long [3, 2]"));
  CHECK_THAT(error_of([&] {
               most_confident_errors(torch::zeros({4, 2}), labels, 1);
             }),
             contains("probabilities has 4 rows, labels 3"));
  CHECK_THAT(error_of([&] {
               most_confident_errors(torch::zeros({3, 2}), torch::zeros({3}), 1);
             }),
             contains("labels must be int64 [N], got Float [3]"));
  CHECK_THAT(error_of([&] {
               most_confident_errors(torch::zeros({3, 2}), labels, -1);
             }),
             contains("count must be >= 0, got -1"));
}
