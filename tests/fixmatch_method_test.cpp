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
  mm::methods::FixMatch method(mm::methods::FixMatchOptions().threshold(0.9).weight(0.5));
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
  mm::methods::FixMatch method(mm::methods::FixMatchOptions().threshold(1));
  const auto loss = method(learner, in.batch, method_step(0), kNoGenerator);
  CHECK(reported(loss, "loss_unlabeled") == 0);
  CHECK(reported(loss, "mask_rate") == 0);
  CHECK(std::isnan(reported(loss, "mask_accuracy")));
  check_golden(in, loss, golden, 0);
  in.batch.strong.clear();
  CHECK_THROWS(method(learner, in.batch, method_step(0), kNoGenerator));
}

TEST_CASE("fixmatch: a filter aligns before rows are selected, and those that it leaves out are not") {
  MethodInput in;
  in.batch.weak[0] = torch::tensor({1.5, 0.25, -0.05, 0.05, 0.0, -4.0}, at::kDouble).view({3, 2});
  mm::training::Learner learner(in.model);
  const auto w = matrix_of(in.model->weight.detach()), u = matrix_of(in.batch.weak[0]),
             v = matrix_of(in.batch.strong[0]);
  auto golden = supervised_golden(in);
  const std::vector<double> prior{.1, .2, .7};
  // By hand: the first threshold is the energies' mean less their deviation, and the model's distribution is
  // uniform to begin with.
  double energies[3], mean = 0, variance = 0;
  for (size_t i = 0; i < 3; ++i) {
    double sum = 0;
    for (size_t c = 0; c < 3; ++c) {
      sum += std::exp(w[c][0] * u[i][0] + w[c][1] * u[i][1]);
    }
    energies[i] = std::log(sum);
    mean += energies[i] / 3;
  }
  for (const double energy : energies) {
    variance += (energy - mean) * (energy - mean) / 3;
  }
  size_t selected = 0, kept = 0;
  for (size_t i = 0; i < 3; ++i) {
    auto p = softmax_of_logits(w, u[i]);
    double sum = 0;
    for (size_t c = 0; c < 3; ++c) {
      p[c] *= (prior[c] + 1e-6) / (1.0 / 3 + 1e-6);
      sum += p[c];
    }
    const auto label = std::max_element(p.begin(), p.end()) - p.begin();
    if (energies[i] > mean - std::sqrt(variance)) {
      ++kept;
      if (p[static_cast<size_t>(label)] / sum >= 0.5) {
        golden.cross_entropy(w, v[i], static_cast<size_t>(label), 0.5, golden.unlabeled, 3);
        ++selected;
      }
    }
  }
  REQUIRE(kept > 0);
  REQUIRE(kept < 3);
  REQUIRE(selected > 0);
  mm::methods::FixMatch method(
      mm::methods::FixMatchOptions().threshold(0.5).weight(0.5),
      mm::GuessFilter(mm::GuessFilterOptions().prior(torch::tensor(prior)).open_set(true)));
  const auto loss = method(learner, in.batch, method_step(5), kNoGenerator);
  CHECK(reported(loss, "loss_unlabeled") == Approx(golden.unlabeled).epsilon(1e-6));
  CHECK(reported(loss, "open_set_rate") == Approx(1 - static_cast<double>(kept) / 3));
  CHECK(reported(loss, "mask_rate") == Approx(static_cast<double>(selected) / 3));
  CHECK(method.state().size() == 4);
  check_golden(in, loss, golden, 0.5);
}
