// The losses beside MixMatch's own (ramped_loss_test.cpp): KL divergence, entropy, and masks.

#include <mixmatch/losses.hpp>

#include <cmath>
#include <string>
#include <utility>

#include "catch.hpp"
#include "cuda_emulation.hpp"
#include "test_util.hpp"

namespace cuda_emulation {
#include "cuda_losses.inc"
}

namespace mm = mixmatch;
using torch::Tensor;

namespace {

const double kLossLogits[3][3] = {{0.5, -1.0, 2.0}, {1.5, 0.25, -0.75}, {-2.0, 0.0, 0.5}};
const double kLossTargets[3][3] = {{0.2, 0.3, 0.5}, {1.0, 0.0, 0.0}, {0.25, 0.25, 0.5}};
const double kLossMask[3] = {1.0, 0.5, 0.0};

Tensor loss_tensor(const double (&values)[3][3], at::ScalarType type = at::kDouble) {
  return torch::from_blob(const_cast<double*>(&values[0][0]), {3, 3}, at::kDouble).clone().to(type);
}
Tensor loss_mask() { return torch::tensor({kLossMask[0], kLossMask[1], kLossMask[2]}, at::kDouble); }

/// Of one row, by plain loops: loss, and its gradient by the logits.
struct RowLosses {
  double p[3], kl = 0, squared = 0, entropy = 0;
  double kl_slope[3], squared_slope[3], entropy_slope[3];

  RowLosses(const double (&z)[3], const double (&t)[3]) {
    double sum = 0, inner = 0;
    for (int c = 0; c < 3; ++c) {
      sum += std::exp(z[c]);
    }
    for (int c = 0; c < 3; ++c) {
      p[c] = std::exp(z[c]) / sum;
      kl += t[c] > 0 ? t[c] * (std::log(t[c]) - std::log(p[c])) : 0;
      squared += (p[c] - t[c]) * (p[c] - t[c]) / 3;
      inner += 2 * (p[c] - t[c]) * p[c] / 3;
      entropy -= p[c] * std::log(p[c]);
    }
    for (int c = 0; c < 3; ++c) {
      kl_slope[c] = p[c] - t[c];
      squared_slope[c] = p[c] * (2 * (p[c] - t[c]) / 3 - inner);
      entropy_slope[c] = -p[c] * (std::log(p[c]) + entropy);
    }
  }
};

template <class Loss, class Value, class Slope>
void check_loss(Loss loss, Value value_of, Slope slope_of, bool masked) {
  Tensor logits = loss_tensor(kLossLogits).requires_grad_();
  const Tensor value = loss(logits);
  value.backward();
  double expected = 0;
  for (int n = 0; n < 3; ++n) {
    const RowLosses row(kLossLogits[n], kLossTargets[n]);
    const double weight = (masked ? kLossMask[n] : 1.0) / 3;
    expected += weight * value_of(row);
    for (int c = 0; c < 3; ++c) {
      CHECK(logits.grad()[n][c].item<double>() ==
            Approx(weight * slope_of(row)[c]).epsilon(1e-10).margin(1e-15));
    }
  }
  CHECK(value.item<double>() == Approx(expected).epsilon(1e-12));
}

}  // namespace

TEST_CASE("losses: KL divergence, entropy and masked losses against double loops, with their gradients") {
  const Tensor targets = loss_tensor(kLossTargets), mask = loss_mask();
  const auto kl = [](const RowLosses& row) { return row.kl; };
  const auto kl_slope = [](const RowLosses& row) { return row.kl_slope; };
  check_loss([&](const Tensor& z) { return mm::kl_divergence(z, targets); }, kl, kl_slope, false);
  check_loss([&](const Tensor& z) { return mm::masked_kl_divergence(z, targets, mask); }, kl, kl_slope, true);
  check_loss([&](const Tensor& z) { return mm::masked_softmax_mse(z, targets, mask); },
             [](const RowLosses& row) { return row.squared; },
             [](const RowLosses& row) { return row.squared_slope; }, true);
  check_loss([](const Tensor& z) { return mm::softmax_entropy(z); },
             [](const RowLosses& row) { return row.entropy; },
             [](const RowLosses& row) { return row.entropy_slope; }, false);
}

TEST_CASE("losses: the masked ones have no gradient to targets and mask, and 0 of no rows or an empty mask") {
  for (auto loss : {mm::masked_kl_divergence, mm::masked_softmax_mse}) {
    Tensor logits = loss_tensor(kLossLogits).requires_grad_();
    Tensor targets = loss_tensor(kLossTargets).requires_grad_(), mask = loss_mask().requires_grad_();
    loss(logits, targets, mask).backward();
    CHECK(logits.grad().abs().sum().item<double>() > 1e-3);
    CHECK_FALSE(targets.grad().defined());
    CHECK_FALSE(mask.grad().defined());
    CHECK(loss(logits, targets, torch::zeros({3}, at::kDouble)).item<double>() == 0);
    const Tensor none = torch::zeros({0, 3}, at::kDouble);
    CHECK(loss(none, none, torch::zeros({0}, at::kDouble)).item<double>() == 0);
    CHECK_THAT(error_of([&] { loss(logits, targets, mask.narrow(0, 0, 2)); }),
               contains("mask must be floating-point [3], got Double [2]"));
    CHECK_THAT(error_of([&] { loss(logits, targets, mask.detach().to(at::kBool)); }),
               contains("mask must be floating-point [3], got Bool [3]"));
    CHECK_THAT(error_of([&] { loss(logits, targets.narrow(1, 0, 2), mask); }),
               contains("targets must have the logits' shape [3, 3], got [3, 2]"));
  }
  const Tensor none = torch::zeros({0, 3}, at::kDouble);
  CHECK(mm::kl_divergence(none, none).item<double>() == 0);
  CHECK(mm::softmax_entropy(none).item<double>() == 0);
}

TEST_CASE("losses: limits of the KL divergence and the entropy") {
  const Tensor logits = loss_tensor(kLossLogits);
  CHECK(mm::kl_divergence(logits, torch::softmax(logits, 1)).item<double>() == Approx(0).margin(1e-15));
  CHECK(mm::softmax_entropy(torch::zeros({4, 8})).item<double>() == Approx(std::log(8.0)));
  const Tensor sure = torch::tensor({1e4F, 0.0F, -1e4F}).view({1, 3}).requires_grad_();
  const Tensor value =
      mm::softmax_entropy(sure) + mm::kl_divergence(sure, torch::tensor({{1.0F, 0.0F, 0.0F}}));
  value.backward();
  CHECK(value.item<double>() == 0);
  CHECK(sure.grad().abs().sum().item<double>() == 0);
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const Tensor low = loss_tensor(kLossLogits, type), targets = loss_tensor(kLossTargets, at::kFloat);
    CHECK(mm::kl_divergence(low, targets).scalar_type() == at::kFloat);
    CHECK(mm::kl_divergence(low, targets).item<double>() ==
          Approx(mm::kl_divergence(logits, loss_tensor(kLossTargets)).item<double>()).epsilon(1e-2));
    CHECK(mm::softmax_entropy(low).item<double>() ==
          Approx(mm::softmax_entropy(logits).item<double>()).epsilon(1e-2));
  }
}

TEST_CASE("losses: the kernels are ATen's calls, values, gradients and second derivatives, in every dtype") {
  namespace emulated = cuda_emulation;
  torch::manual_seed(4);
  for (const auto type : emulated::all_types) {
    const auto compute = type == at::kDouble ? at::kDouble : at::kFloat;
    for (const auto& [rows, classes] : {std::pair<int64_t, int64_t>{1, 1}, {3, 10}, {300, 7}, {2, 128}}) {
      const Tensor logits = (at::randn({rows, classes}, at::kDouble) * 4).to(type);
      const Tensor targets = torch::softmax(at::randn({rows, classes}, at::kDouble), 1).to(compute) * 1.5;
      for (const bool squared : {true, false}) {
        INFO(type << ", " << rows << " rows, " << classes << " classes, squared " << squared);
        const auto loss_of = [&](const Tensor& z, const Tensor& t) {
          return squared ? mm::softmax_mse(z, t) : mm::soft_cross_entropy(z, t);
        };
        const Tensor exact_logits = logits.to(at::kDouble).requires_grad_();
        const Tensor exact = loss_of(exact_logits, targets.to(at::kDouble));
        const Tensor exact_gradient =
            torch::autograd::grad({exact * 3}, {exact_logits}, {}, true, /*create_graph=*/true)[0];
        emulated::EmulatedDevice device;
        emulated::dispatch(type, [&](auto scalar) {
          using Scalar = decltype(scalar);
          const std::string name = mm::detail::cuda_type_name(type);
          device.add("class_loss<" + name + ", true>", emulated::class_loss<Scalar, true>);
          device.add("class_loss<" + name + ", false>", emulated::class_loss<Scalar, false>);
          device.add("class_loss_gradient<" + name + ", true>", emulated::class_loss_gradient<Scalar, true>);
          device.add("class_loss_gradient<" + name + ", false>",
                     emulated::class_loss_gradient<Scalar, false>);
        });
        const Tensor leaf = logits.clone().requires_grad_();
        const Tensor found = loss_of(leaf, targets);
        CHECK(found.scalar_type() == compute);
        CHECK(found.dim() == 0);
        CHECK(emulated::close(found.detach(), exact.detach()));
        const Tensor gradient = torch::autograd::grad({found * 3}, {leaf}, {}, /*retain_graph=*/true)[0];
        CHECK(device.launches() == 2);
        CHECK(gradient.scalar_type() == type);
        CHECK(emulated::close(gradient, exact_gradient.detach()));
        if (type == at::kDouble && classes > 1) {
          const Tensor again = torch::autograd::grad({found * 3}, {leaf}, {}, true, /*create_graph=*/true)[0];
          const Tensor second = torch::autograd::grad({again.square().sum()}, {leaf})[0];
          const Tensor exact_second =
              torch::autograd::grad({exact_gradient.square().sum()}, {exact_logits}, {}, true)[0];
          CHECK(emulated::close(second, exact_second));
        }
      }
    }
  }
}
