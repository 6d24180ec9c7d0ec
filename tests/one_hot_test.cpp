#include <mixmatch/one_hot.hpp>

#include "catch.hpp"
#include "test_util.hpp"

using torch::Tensor;

TEST_CASE("one_hot: a 1 in each row, in the dtype asked for") {
  const Tensor labels = torch::tensor({2, 0, 1}, at::kLong);
  const Tensor want = torch::tensor({{0.f, 0.f, 1.f, 0.f}, {1.f, 0.f, 0.f, 0.f}, {0.f, 1.f, 0.f, 0.f}});
  CHECK(torch::equal(mixmatch::one_hot(labels, 4), want));
  CHECK(torch::equal(mixmatch::one_hot(labels.to(at::kByte), 4), want));
  CHECK(torch::equal(mixmatch::one_hot(labels, 4, at::kDouble), want.to(at::kDouble)));
  CHECK(torch::equal(mixmatch::one_hot(torch::zeros({2}, at::kLong), 1), torch::ones({2, 1})));
  CHECK(mixmatch::one_hot(torch::zeros({0}, at::kLong), 3).sizes() == at::IntArrayRef({0, 3}));
}

TEST_CASE("one_hot: refuses what is no class label") {
  CHECK_THAT(error_of([] { mixmatch::one_hot(torch::rand({3}), 4); }), contains("got Float [3]"));
  CHECK_THAT(error_of([] {
               mixmatch::one_hot(torch::zeros({3, 1}, at::kLong), 4);
             }),
             contains("got Long [3, 1]"));
  CHECK_THAT(error_of([] {
               mixmatch::one_hot(torch::tensor({0, 4}, at::kLong), 4);
             }),
             contains("labels must be in [0, 4), got 4"));
  CHECK_THAT(error_of([] { mixmatch::one_hot(torch::tensor({-1, 3}, at::kLong), 4); }), contains("got -1"));
  CHECK_THAT(error_of([] { mixmatch::one_hot(torch::tensor({0}, at::kLong), 0); }), contains("num_classes"));
}
