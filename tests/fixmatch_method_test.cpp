#include <mixmatch/methods/fixmatch.hpp>

#include <algorithm>

#include "catch.hpp"
#include "method_checks.hpp"

namespace mm = mixmatch;
using torch::Tensor;

TEST_CASE("fixmatch: golden loss and gradient; rows below the threshold count as 0 in the mean") {
  MethodInput in;
  mm::training::Learner learner(in.model);
  const auto w = matrix_of(in.model->weight.detach()), u = matrix_of(in.batch.weak[0]),
             v = matrix_of(in.batch.strong[0]);
  auto golden = supervised_golden(in);
  size_t selected = 0;
  for (size_t i = 0; i < 3; ++i) {
    const auto p = softmax_of_logits(w, u[i]);
    const auto label = static_cast<size_t>(std::max_element(p.begin(), p.end()) - p.begin());
    if (p[label] >= 0.9) {
      golden.cross_entropy(w, v[i], label, 0.5, golden.unlabeled, 3);
      ++selected;
    }
  }
  REQUIRE(selected == 2);
  const mm::methods::FixMatch method(mm::methods::FixMatchOptions().threshold(0.9).weight(0.5));
  const auto loss = method(learner, in.batch, method_step(5), kNoGenerator);
  CHECK(reported(loss, "loss_labeled") == Approx(golden.labeled).epsilon(1e-12));
  CHECK(reported(loss, "loss_unlabeled") == Approx(golden.unlabeled).epsilon(1e-12));
  CHECK(reported(loss, "mask_rate") == Approx(2.0 / 3));
  CHECK(reported(loss, "mask_accuracy") == 1);  // the third row's label is unknown
  check_golden(in, loss, golden, 0.5);
}

TEST_CASE("fixmatch: no confident row leaves the labeled loss; a batch without a strong view throws") {
  MethodInput in;
  mm::training::Learner learner(in.model);
  const auto golden = supervised_golden(in);
  const mm::methods::FixMatch method(mm::methods::FixMatchOptions().threshold(1));
  const auto loss = method(learner, in.batch, method_step(0), kNoGenerator);
  CHECK(reported(loss, "loss_unlabeled") == 0);
  CHECK(reported(loss, "mask_rate") == 0);
  CHECK(std::isnan(reported(loss, "mask_accuracy")));
  check_golden(in, loss, golden, 0);
  in.batch.strong.clear();
  CHECK_THROWS(method(learner, in.batch, method_step(0), kNoGenerator));
}
