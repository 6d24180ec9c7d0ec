#include <mixmatch/ramped_loss.hpp>

#include <cmath>
#include <limits>

#include "catch.hpp"
#include "cuda_emulation.hpp"
#include "test_util.hpp"

using namespace mixmatch;

namespace cuda_emulation {
#include "cuda_losses.inc"
}

namespace {

// Plain double loops, row by row, independent of ATen.
double softmax_at(const double* row, int classes, int c) {
  double sum = 0;
  for (int j = 0; j < classes; ++j) {
    sum += std::exp(row[j]);
  }
  return std::exp(row[c]) / sum;
}

const double kLogits[2][3] = {{0.5, -1.0, 2.0}, {1.5, 0.25, -0.75}};
const double kTargets[2][3] = {{0.2, 0.3, 0.5}, {0.9, 0.05, 0.05}};

Tensor tensor_of(const double (&values)[2][3], at::ScalarType type = at::kDouble) {
  return torch::from_blob(const_cast<double*>(&values[0][0]), {2, 3}, at::kDouble).clone().to(type);
}

}  // namespace

TEST_CASE("losses: soft_cross_entropy and softmax_mse against double loops") {
  double cross_entropy = 0, mse = 0;
  for (int n = 0; n < 2; ++n) {
    for (int c = 0; c < 3; ++c) {
      const double p = softmax_at(kLogits[n], 3, c);
      cross_entropy -= kTargets[n][c] * std::log(p) / 2;
      mse += (p - kTargets[n][c]) * (p - kTargets[n][c]) / 6;
    }
  }
  CHECK(soft_cross_entropy(tensor_of(kLogits), tensor_of(kTargets)).item<double>() ==
        Approx(cross_entropy).epsilon(1e-12));
  CHECK(softmax_mse(tensor_of(kLogits), tensor_of(kTargets)).item<double>() == Approx(mse).epsilon(1e-12));
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const Tensor logits = tensor_of(kLogits, type);
    CHECK(soft_cross_entropy(logits, tensor_of(kTargets, at::kFloat)).item<double>() ==
          Approx(cross_entropy).epsilon(1e-2));
    CHECK(softmax_mse(logits, tensor_of(kTargets, at::kFloat)).item<double>() == Approx(mse).epsilon(2e-2));
    CHECK(softmax_mse(logits, tensor_of(kTargets, at::kFloat)).scalar_type() == at::kFloat);
  }
}

TEST_CASE("losses: gradient reaches the logits and not the targets") {
  for (auto loss : {soft_cross_entropy, softmax_mse}) {
    Tensor logits = tensor_of(kLogits).requires_grad_();
    Tensor targets = tensor_of(kTargets).requires_grad_();
    loss(logits, targets).backward();
    CHECK(logits.grad().abs().sum().item<double>() > 1e-3);
    CHECK_FALSE(targets.grad().defined());
  }
}

TEST_CASE("losses: zero rows give 0, bad targets are refused") {
  for (auto loss : {soft_cross_entropy, softmax_mse}) {
    Tensor logits = torch::zeros({0, 3}).requires_grad_();
    const Tensor value = loss(logits, torch::zeros({0, 3}));
    CHECK(value.item<double>() == 0.0);
    value.backward();
    CHECK_THAT(error_of([&] {
                 loss(torch::zeros({2, 3}), torch::zeros({2}, at::kLong));
               }),
               contains("one_hot"));
    CHECK_THAT(error_of([&] { loss(torch::zeros({2, 3}), torch::zeros({2, 4})); }), contains("[2, 4]"));
    CHECK_THAT(error_of([&] { loss(torch::zeros({2}), torch::zeros({2})); }), contains("[N, L]"));
  }
}

TEST_CASE("RampedLoss: weight and total") {
  RampedLoss criterion(RampedLossOptions().lambda_u(100).rampup_steps(16000));
  CHECK(criterion.weight(0) == 0.0);
  CHECK(criterion.weight(8000) == 50.0);
  CHECK(criterion.weight(16000) == 100.0);
  CHECK(criterion.weight(1000000) == 100.0);
  CHECK(RampedLoss(RampedLossOptions().rampup_steps(0)).weight(0) == 100.0);
  CHECK(RampedLoss().weight(16384) == 100.0);

  const Tensor logits = tensor_of(kLogits), targets = tensor_of(kTargets);
  const auto out = criterion(logits, targets, logits, targets.flip(0), 4000);
  CHECK(out.weight == 25.0);
  CHECK(out.labeled.item<double>() == soft_cross_entropy(logits, targets).item<double>());
  CHECK(out.unlabeled.item<double>() == softmax_mse(logits, targets.flip(0)).item<double>());
  CHECK(out.total.item<double>() ==
        Approx(out.labeled.item<double>() + 25 * out.unlabeled.item<double>()).epsilon(1e-14));
}

TEST_CASE("RampedLoss: both terms reach the student") {
  RampedLoss criterion(RampedLossOptions().lambda_u(1).rampup_steps(0));
  Tensor x = tensor_of(kLogits).requires_grad_(), u = tensor_of(kLogits).requires_grad_();
  criterion(x, tensor_of(kTargets), u, tensor_of(kTargets), 7).total.backward();
  CHECK(x.grad().abs().sum().item<double>() > 1e-3);
  CHECK(u.grad().abs().sum().item<double>() > 1e-3);
}

TEST_CASE("RampedLoss: options out of range") {
  CHECK_THAT(error_of([] { RampedLoss(RampedLossOptions().lambda_u(-1)); }),
             contains("lambda_u must be finite and >= 0, got -1"));
  CHECK_THAT(error_of([] { RampedLoss(RampedLossOptions().lambda_u(std::nan(""))); }), contains("lambda_u"));
  CHECK_THAT(error_of([] { RampedLoss(RampedLossOptions().rampup_steps(-3)); }),
             contains("rampup_steps must be >= 0, got -3"));
}

TEST_CASE("RampedLoss: a step counter that is a tensor gives the same bits as a number") {
  for (const int64_t rampup : {0, 10}) {
    const RampedLoss criterion(RampedLossOptions().lambda_u(75).rampup_steps(rampup));
    for (const int64_t step : {0, 3, 10, 100}) {
      const Tensor counter = torch::full({}, step, at::kLong);
      Tensor logits = tensor_of(kLogits, at::kFloat).requires_grad_();
      const Tensor targets = tensor_of(kTargets, at::kFloat);
      const auto expected = criterion(logits, targets, logits, targets, step);
      const auto output = criterion(logits, targets, logits, targets, counter);
      CHECK(output.weight.item<double>() == criterion.weight(step));
      CHECK(output.total.equal(expected.total));
      CHECK(output.labeled.equal(expected.labeled));
      CHECK(output.unlabeled.equal(expected.unlabeled));
      CHECK(torch::autograd::grad({output.total}, {logits})[0].equal(
          torch::autograd::grad({expected.total}, {logits})[0]));
    }
  }
}

TEST_CASE("RampedLoss: the kernel of the sum is the sum in ATen's calls") {
  namespace emulated = cuda_emulation;
  // Of wide rows, whose two losses are ATen's.
  const Tensor x = at::randn({3, 200}), u = at::randn({4, 200});
  const Tensor targets_x = at::rand({3, 200}), targets_u = at::rand({4, 200});
  for (const auto type : {at::kFloat, at::kDouble}) {
    for (const int64_t rampup : {0, 10}) {
      for (const int64_t step : {0, 3, 10, 100}) {
        INFO(type << ", step " << step << " of " << rampup);
        const RampedLoss criterion(RampedLossOptions().lambda_u(75).rampup_steps(rampup));
        const auto run = [&] {
          const Tensor logits_x = x.to(type).clone().requires_grad_();
          const Tensor logits_u = u.to(type).clone().requires_grad_();
          const auto output = criterion(logits_x, targets_x.to(type), logits_u, targets_u.to(type),
                                        torch::full({}, step, at::kLong));
          CHECK_FALSE(output.weight.requires_grad());
          CHECK(output.weight.scalar_type() == at::kDouble);
          output.total.backward();
          return std::vector<Tensor>{output.weight, output.total.detach(), logits_x.grad(), logits_u.grad()};
        };
        const auto expected = run();
        emulated::EmulatedDevice device;
        device.add("ramped_total<float>", emulated::ramped_total<float>);
        device.add("ramped_total<double>", emulated::ramped_total<double>);
        const auto found = run();
        CHECK(device.launches() == 1);
        for (size_t i = 0; i < found.size(); ++i) {
          CHECK(found[i].scalar_type() == expected[i].scalar_type());
          CHECK(emulated::close(found[i], expected[i]));
        }
      }
    }
  }
}
