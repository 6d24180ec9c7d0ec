#include <mixmatch/methods/ict.hpp>

#include "catch.hpp"
#include "method_checks.hpp"

namespace mm = mixmatch;
using torch::Tensor;

TEST_CASE("ict: golden loss and gradient against the averaged weights' mixed predictions") {
  MethodInput in;
  mm::EmaModel ema(in.model, mm::EmaModelOptions(0.5));
  const auto teacher = matrix_of(in.model->weight.detach());
  {
    const torch::NoGradGuard no_grad;
    in.model->weight.add_(torch::tensor({0.5, 0.25, 0.0, -0.5, 1.0, 0.0}, at::kDouble).view({3, 2}));
  }
  mm::training::Learner learner(in.model, ema);
  const auto w = matrix_of(in.model->weight.detach()), u = matrix_of(in.batch.weak[0]);
  Matrix predictions;
  for (const auto& row : u) {
    predictions.push_back(softmax_of_logits(teacher, row));
  }
  const auto mixing = mm::MixUpOptions().alpha(0.5).keep_dominant(false);
  const auto drawn = mm::mixup(in.batch.weak[0], torch::zeros({3, 3}, at::kDouble), mixing, seeded(3));
  const auto inputs = mixed_rows(u, drawn.lambda, drawn.permutation),
             targets = mixed_rows(predictions, drawn.lambda, drawn.permutation);
  auto golden = supervised_golden(in);
  for (size_t i = 0; i < 3; ++i) {
    golden.squared(w, inputs[i], targets[i], 25, 3);
  }
  CHECK(golden.unlabeled > 0.01);  // student and teacher differ
  const mm::methods::Ict method(mixing, mm::RampedLossOptions().lambda_u(100).rampup_steps(8));
  const auto loss = method(learner, in.batch, method_step(2), seeded(3));
  CHECK(reported(loss, "lambda_u") == 25);
  CHECK(reported(loss, "loss_unlabeled") == Approx(golden.unlabeled).epsilon(1e-12));
  check_golden(in, loss, golden, 25);
  CHECK_FALSE(ema.named_parameters()[0].second.grad().defined());
  CHECK(matrix_of(ema.named_parameters()[0].second) == teacher);
}

TEST_CASE("ict: without mixing, a student that is its teacher has no unlabeled loss; one that is not has") {
  MethodInput in;
  mm::EmaModel ema(in.model, mm::EmaModelOptions(0.5));
  mm::training::Learner learner(in.model, ema);
  const mm::methods::Ict alone(mm::MixUpOptions().alpha(0)), mixed;
  CHECK(reported(alone(learner, in.batch, method_step(0), seeded(1)), "loss_unlabeled") == 0);
  CHECK(reported(mixed(learner, in.batch, method_step(0), seeded(1)), "loss_unlabeled") > 1e-4);
  {
    const torch::NoGradGuard no_grad;
    in.model->weight.mul_(1.5);
  }
  const auto loss = alone(learner, in.batch, method_step(0), seeded(1));
  CHECK(reported(loss, "loss_unlabeled") > 1e-4);
  CHECK(reported(loss, "lambda_u") == 100);
}

TEST_CASE("ict: without a moving average there is no teacher") {
  MethodInput in;
  mm::training::Learner learner(in.model);
  CHECK_THAT(error_of([&] { mm::methods::Ict()(learner, in.batch, method_step(0), seeded(1)); }),
             contains("Learner(model, ema)"));
}
