#include <mixmatch/methods/uda.hpp>

#include <algorithm>

#include "catch.hpp"
#include "method_checks.hpp"

namespace mm = mixmatch;
using torch::Tensor;

TEST_CASE("uda: golden loss and gradient, none to the weak view nor to rows that are masked out") {
  MethodInput in;
  in.batch.labels = torch::tensor({0, 0}, at::kLong);
  mm::training::Learner learner(in.model);
  const auto w = matrix_of(in.model->weight.detach()), x = matrix_of(in.batch.labeled),
             u = matrix_of(in.batch.weak[0]), v = matrix_of(in.batch.strong[0]);
  Golden golden;
  const double limit = 0.5 * (1 - 1.0 / 3) + 1.0 / 3;
  REQUIRE(softmax_of_logits(w, x[0])[0] > limit);  // learnt already
  REQUIRE(softmax_of_logits(w, x[1])[0] < limit);
  golden.cross_entropy(w, x[1], 0, 1, golden.labeled, 1);
  size_t selected = 0;
  for (size_t i = 0; i < 3; ++i) {
    auto p = softmax_of_logits(w, u[i]);
    if (*std::max_element(p.begin(), p.end()) > 0.8) {
      ++selected;
      double sum = 0;
      for (double& value : p) {
        value = std::pow(value, 1 / 0.4);
        sum += value;
      }
      for (double& value : p) {
        value /= sum;
      }
      golden.unlabeled += (golden.soft_cross_entropy(w, v[i], p, 2, 3) - entropy_of(p)) / 3;
    }
  }
  REQUIRE(selected == 2);
  mm::methods::Uda method(
      mm::methods::UdaOptions().weight(2).annealing(mm::Annealing::linear).total_steps(10));
  const auto loss = method(learner, in.batch, method_step(5), kNoGenerator);
  CHECK(reported(loss, "loss_labeled") == Approx(golden.labeled).epsilon(1e-12));
  CHECK(reported(loss, "loss_unlabeled") == Approx(golden.unlabeled).epsilon(1e-12));
  CHECK(reported(loss, "annealing_threshold") == Approx(limit).epsilon(1e-14));
  CHECK(reported(loss, "annealing_rate") == 0.5);
  CHECK(reported(loss, "mask_rate") == Approx(2.0 / 3));
  CHECK(reported(loss, "mask_accuracy") == 1);  // the third row's label is unknown
  check_golden(in, loss, golden, 2);
}

TEST_CASE("uda: a filter aligns what is compared with the threshold and then sharpened") {
  MethodInput in;
  mm::training::Learner learner(in.model);
  const auto w = matrix_of(in.model->weight.detach()), u = matrix_of(in.batch.weak[0]),
             v = matrix_of(in.batch.strong[0]);
  Golden golden;
  const double prior[] = {.2, .3, .5};
  const auto normalized = [](std::vector<double> p) {
    double sum = 0;
    for (const double value : p) {
      sum += value;
    }
    for (double& value : p) {
      value /= sum;
    }
    return p;
  };
  size_t selected = 0;
  for (size_t i = 0; i < 3; ++i) {
    auto p = softmax_of_logits(w, u[i]);
    for (size_t c = 0; c < 3; ++c) {
      p[c] *= (prior[c] + 1e-6) / (1.0 / 3 + 1e-6);
    }
    p = normalized(p);
    if (*std::max_element(p.begin(), p.end()) > 0.6) {
      ++selected;
      for (double& value : p) {
        value = std::pow(value, 1 / 0.4);
      }
      p = normalized(p);
      golden.unlabeled += (golden.soft_cross_entropy(w, v[i], p, 1, 3) - entropy_of(p)) / 3;
    }
  }
  REQUIRE(selected > 0);
  mm::methods::Uda method(mm::methods::UdaOptions().threshold(0.6),
                          mm::GuessFilter(mm::GuessFilterOptions().prior(torch::tensor({.2, .3, .5}))));
  const auto loss = method(learner, in.batch, method_step(0), kNoGenerator);
  CHECK(reported(loss, "loss_unlabeled") == Approx(golden.unlabeled).epsilon(1e-6));
  CHECK(reported(loss, "mask_rate") == Approx(static_cast<double>(selected) / 3));
}

TEST_CASE("uda: no row left on either side gives 0 and a gradient of 0") {
  MethodInput in;
  in.batch.labels = torch::tensor({0, 2}, at::kLong);  // likelier than 1/3, the threshold at the start
  mm::training::Learner learner(in.model);
  mm::methods::Uda method(mm::methods::UdaOptions().threshold(1));
  const auto loss = method(learner, in.batch, method_step(0), kNoGenerator);
  CHECK(loss.total.item<double>() == 0);
  CHECK(reported(loss, "annealing_rate") == 0);
  CHECK(reported(loss, "mask_rate") == 0);
  CHECK(std::isnan(reported(loss, "mask_accuracy")));
  loss.total.backward();
  CHECK(in.model->weight.grad().abs().sum().item<double>() == 0);
}

TEST_CASE("uda: the threshold is to be exceeded, by the prediction before it is sharpened") {
  MethodInput in;
  {
    const torch::NoGradGuard no_grad;
    in.model->weight.copy_(torch::tensor({1.0, 0.0, 1.0, 0.0, -1e9, 0.0}, at::kDouble).view({3, 2}));
  }
  in.batch.weak[0].copy_(torch::tensor({1.0, 0.0, 1.0, 0.0, 1.0, 0.0}, at::kDouble).view({3, 2}));
  mm::training::Learner learner(in.model);  // each weak row has the probabilities .5, .5, 0
  const auto rate = [&](double threshold) {
    mm::methods::Uda method(mm::methods::UdaOptions().threshold(threshold));
    return reported(method(learner, in.batch, method_step(0), kNoGenerator), "mask_rate");
  };
  CHECK(rate(0.5) == 0);
  CHECK(rate(0.499) == 1);
}
