#include <mixmatch/augment/random_crop_flip.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/step/learner.hpp>

#include <string>

#include "catch.hpp"
#include "model_zoo.hpp"
#include "test_util.hpp"

using namespace mixmatch;

namespace {

struct Rows {
  Tensor x = torch::randn({4, 3}), labels = torch::tensor({0, 1, 1, 0}), u = torch::randn({4, 3});
};

Tensor noisy(const Tensor& x, at::Generator generator) {
  return x + 0.1 * torch::randn(x.sizes(), generator, x.options());
}

/// The logits of three times four rows, interleaved, in three passes of which the first moves the statistics.
std::vector<Tensor> interleaved_by_hand(HeldNet& twin, const Tensor& inputs) {
  const auto batches = interleave({inputs.narrow(0, 0, 4), inputs.narrow(0, 4, 4), inputs.narrow(0, 8, 4)});
  std::vector<Tensor> logits{twin->forward(batches[0])};
  {
    BatchNormFreeze freeze(twin);
    logits.push_back(twin->forward(batches[1]));
    logits.push_back(twin->forward(batches[2]));
  }
  return interleave(logits);
}

}  // namespace

TEST_CASE("mixmatch_loss: equals the steps written out") {
  torch::manual_seed(1);
  HeldNet model;
  HeldNet twin(std::dynamic_pointer_cast<HeldNetImpl>(model->clone()));
  const Rows batch;
  const RampedLoss criterion(RampedLossOptions().lambda_u(10).rampup_steps(4));
  auto one = seeded(5), two = seeded(5);

  const auto loss = methods::mixmatch_loss(
      model, [&](const Tensor& x) { return noisy(x, one); }, batch.x, batch.labels, batch.u, 2, criterion,
      MixMatchOptions(), one);
  loss.total.backward();

  // Algorithm 1 and the interleaved passes by hand.
  const Tensor x = noisy(batch.x, two), u1 = noisy(batch.u, two), u2 = noisy(batch.u, two);
  Tensor q;
  {
    torch::NoGradGuard no_grad;
    BatchNormFreeze freeze(twin);
    const Tensor p = (torch::softmax(twin->forward(u1), 1) + torch::softmax(twin->forward(u2), 1)) / 2;
    q = sharpen(p, 0.5);
  }
  const auto mixed = mixup(torch::cat({x, u1, u2}), torch::cat({mixmatch::one_hot(batch.labels, 2), q, q}),
                           MixUpOptions(), two);
  const auto logits = interleaved_by_hand(twin, mixed.inputs);
  const Tensor labeled = -(mixed.targets.narrow(0, 0, 4) * torch::log_softmax(logits[0], 1)).sum(1).mean();
  const Tensor unlabeled =
      (torch::softmax(torch::cat({logits[1], logits[2]}), 1) - mixed.targets.narrow(0, 4, 8)).square().mean();
  const Tensor total = labeled + 5 * unlabeled;
  total.backward();

  CHECK(torch::allclose(loss.guesses, q));
  CHECK(loss.weight.item<double>() == 5);
  CHECK(torch::allclose(loss.labeled, labeled));
  CHECK(torch::allclose(loss.unlabeled, unlabeled));
  CHECK(torch::allclose(loss.total, total));
  CHECK(torch::allclose(model->dense->weight.grad(), twin->dense->weight.grad(), 1e-4, 1e-6));
  CHECK(torch::equal(model->norm->running_mean, twin->norm->running_mean));
  CHECK(torch::equal(one.get_state(), two.get_state()));
}

TEST_CASE("MixMatch: with a filter and adjusted logits it equals the steps written out") {
  torch::manual_seed(1);
  HeldNet model;
  HeldNet twin(std::dynamic_pointer_cast<HeldNetImpl>(model->clone()));
  const Rows rows;
  Batch batch{rows.x,
              rows.labels,
              {rows.u + 0.1 * torch::randn_like(rows.u), rows.u + 0.1 * torch::randn_like(rows.u)},
              at::full({4}, -1, at::TensorOptions(at::kLong))};
  batch.logit_adjustment = torch::tensor({-.5, -2.});
  auto one = seeded(5), two = seeded(5);
  const auto prior = torch::tensor({.7, .3});
  methods::MixMatch method(MixMatchOptions(), RampedLossOptions().lambda_u(10).rampup_steps(4),
                           GuessFilter(GuessFilterOptions().prior(prior).open_set(true)));
  training::Learner learner(model);
  const auto loss = method(learner, batch, at::full({}, 2, at::TensorOptions(at::kLong)), one);
  loss.total.backward();

  Tensor q, kept;
  {
    torch::NoGradGuard no_grad;
    BatchNormFreeze freeze(twin);
    const Tensor logits1 = twin->forward(batch.weak[0]), logits2 = twin->forward(batch.weak[1]);
    const Tensor scaled = (torch::softmax(logits1, 1) + torch::softmax(logits2, 1)) / 2 * prior / 0.5;
    q = sharpen(scaled / scaled.sum(1, true), 0.5);
    const Tensor energy = (torch::logsumexp(logits1, 1) + torch::logsumexp(logits2, 1)) / 2;
    kept = energy.gt(energy.mean() - energy.std(/*unbiased=*/false)).to(at::kFloat);
  }
  REQUIRE(kept.sum().item<double>() > 0);
  REQUIRE(kept.sum().item<double>() < 4);
  const Tensor x = torch::cat({batch.labeled, batch.weak[0], batch.weak[1]}),
               targets = torch::cat({mixmatch::one_hot(batch.labels, 2), q, q});
  const auto drawn = mixup(x, targets, MixUpOptions(), two);
  // What is left out is mixed into nothing.
  const Tensor usable = torch::cat({torch::ones({4}), kept, kept}).index_select(0, drawn.permutation);
  const Tensor share = (usable * drawn.lambda + (1 - usable)).unsqueeze(1);
  REQUIRE(usable.narrow(0, 0, 4).sum().item<double>() < 4);
  const auto pairs = [&](const Tensor& of) {
    return share * of + (1 - share) * of.index_select(0, drawn.permutation);
  };
  struct {
    Tensor inputs, targets;
  } mixed{pairs(x), pairs(targets)};
  const auto logits = interleaved_by_hand(twin, mixed.inputs);
  const Tensor log_p = torch::log_softmax(logits[0] + batch.logit_adjustment, 1);
  const Tensor labeled = -(mixed.targets.narrow(0, 0, 4) * log_p).sum(1).mean();
  const Tensor squares =
      (torch::softmax(torch::cat({logits[1], logits[2]}), 1) - mixed.targets.narrow(0, 4, 8)).square();
  const Tensor unlabeled = (squares.mean(1) * torch::cat({kept, kept})).mean();
  (labeled + 5 * unlabeled).backward();

  const auto value = [&loss](const std::string& name) {
    for (const auto& [key, number] : loss.values) {
      if (key == name) {
        return number.item<double>();
      }
    }
    FAIL("no value " << name);
    return 0.0;
  };
  CHECK(value("loss_labeled") == Approx(labeled.item<double>()).epsilon(1e-5));
  CHECK(value("loss_unlabeled") == Approx(unlabeled.item<double>()).epsilon(1e-4));
  CHECK(value("open_set_rate") == Approx(1 - kept.mean().item<double>()));
  CHECK(torch::allclose(model->dense->weight.grad(), twin->dense->weight.grad(), 1e-4, 1e-6));
  CHECK(torch::equal(one.get_state(), two.get_state()));
}

TEST_CASE("mixmatch_loss: unlabeled rows alone send a gradient to the student") {
  torch::manual_seed(2);
  HeldNet model;
  const Rows batch;
  const auto loss = methods::mixmatch_loss(
      model, [](const Tensor& x) { return x + 0.1 * torch::randn_like(x); }, batch.x, batch.labels, batch.u,
      1, RampedLoss(RampedLossOptions().lambda_u(1).rampup_steps(0)));
  loss.unlabeled.backward();
  CHECK(model->dense->weight.grad().abs().sum().item<double>() > 0);
  CHECK_FALSE(loss.guesses.requires_grad());
  CHECK(loss.guesses.sizes() == torch::IntArrayRef({4, 2}));
}
