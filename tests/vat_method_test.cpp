#include <mixmatch/methods/vat.hpp>

#include "catch.hpp"
#include "method_checks.hpp"

namespace mm = mixmatch;
using torch::Tensor;

TEST_CASE("vat: golden loss and gradient at the perturbed images") {
  MethodInput in;
  mm::training::Learner learner(in.model);
  const auto w = matrix_of(in.model->weight.detach()), u = matrix_of(in.batch.weak[0]);
  const auto moved = matrix_of(
      in.batch.weak[0] + 0.5 * mm::virtual_adversarial_direction(learner, in.batch.weak[0], {}, seeded(3)));
  auto golden = supervised_golden(in);
  double entropy = 0;
  for (size_t i = 0; i < 3; ++i) {
    const auto p = softmax_of_logits(w, u[i]);
    golden.unlabeled += (golden.soft_cross_entropy(w, moved[i], p, 0.25, 3) - entropy_of(p)) / 3;
    entropy += entropy_of(p) / 3;
    std::vector<double> slope;  // of the entropy by the logits: -p_c (ln p_c + H)
    for (const double value : p) {
      slope.push_back(-value * (std::log(value) + entropy_of(p)));
    }
    golden.add(slope, u[i], 0.06 / 3);
  }
  CHECK(golden.unlabeled > 0.01);
  const mm::methods::Vat method(mm::methods::VatOptions().radius(0.5),
                                mm::RampedLossOptions().lambda_u(1).rampup_steps(8));
  const auto loss = method(learner, in.batch, method_step(2), seeded(3));
  CHECK(reported(loss, "lambda_u") == 0.25);
  CHECK(reported(loss, "loss_unlabeled") == Approx(golden.unlabeled).epsilon(1e-10));
  CHECK(reported(loss, "guess_entropy") == Approx(entropy).epsilon(1e-12));
  CHECK(reported(loss, "guess_accuracy") == 0.5);
  golden.labeled += 0.06 * entropy;
  check_golden(in, loss, golden, 0.25);
}

TEST_CASE("vat: saturated predictions stay finite") {
  MethodInput in;
  {
    const torch::NoGradGuard no_grad;
    in.model->weight.mul_(1e4);
  }
  mm::training::Learner learner(in.model);
  const auto loss = mm::methods::Vat()(learner, in.batch, method_step(0), seeded(1));
  loss.total.backward();
  CHECK(std::isfinite(loss.total.item<double>()));
  CHECK(in.model->weight.grad().isfinite().all().item<bool>());
}
