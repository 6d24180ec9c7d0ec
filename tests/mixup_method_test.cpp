#include <mixmatch/methods/mixup.hpp>

#include "catch.hpp"
#include "method_checks.hpp"

namespace mm = mixmatch;
using torch::Tensor;

TEST_CASE("mixup method: golden loss and gradient of two mixed batches, none to the guessed labels") {
  for (const double scale : {1.0, 0.5}) {
    MethodInput in;
    mm::training::Learner learner(in.model);
    const auto w = matrix_of(in.model->weight.detach()), x = matrix_of(in.batch.labeled),
               u = matrix_of(in.batch.weak[0]);
    Matrix guesses;
    for (const auto& row : u) {
      guesses.push_back(softmax_of_logits(w, row));
    }
    auto generator = seeded(3);  // what is drawn alone comes from the library
    const auto drawn_x = mm::mixup(in.batch.labeled, torch::zeros({2, 3}, at::kDouble), {}, generator);
    const auto drawn_u = mm::mixup(in.batch.weak[0], torch::zeros({3, 3}, at::kDouble), {}, generator);
    REQUIRE(drawn_u.lambda.min().item<double>() < 0.95);

    Golden golden;
    const auto mixed_x = mixed_rows(x, drawn_x.lambda, drawn_x.permutation),
               labels = mixed_rows({{0, 0, 1}, {1, 0, 0}}, drawn_x.lambda, drawn_x.permutation);
    for (size_t i = 0; i < 2; ++i) {
      golden.labeled += golden.soft_cross_entropy(w, mixed_x[i], labels[i], 1, 2) / 2;
    }
    const auto mixed_u = mixed_rows(u, drawn_u.lambda, drawn_u.permutation),
               targets = mixed_rows(guesses, drawn_u.lambda, drawn_u.permutation);
    for (size_t i = 0; i < 3; ++i) {
      golden.unlabeled += golden.soft_cross_entropy(w, mixed_u[i], targets[i], scale, 3) / 3;
    }
    const auto loss = mm::methods::MixUp({}, scale)(learner, in.batch, method_step(0), seeded(3));
    CHECK(reported(loss, "loss_labeled") == Approx(golden.labeled).epsilon(1e-12));
    CHECK(reported(loss, "loss_unlabeled") == Approx(golden.unlabeled).epsilon(1e-12));
    CHECK(reported(loss, "lambda_u") == scale);
    CHECK(reported(loss, "guess_accuracy") == 0.5);
    check_golden(in, loss, golden, scale);
  }
}
