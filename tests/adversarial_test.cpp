#include <mixmatch/adversarial.hpp>
#include <mixmatch/models/wide_resnet.hpp>

#include <cmath>
#include <limits>

#include "catch.hpp"
#include "method_checks.hpp"
#include "model_zoo.hpp"

namespace mm = mixmatch;
using mm::VirtualAdversarialOptions;
using torch::Tensor;

namespace {

/// What the power method starts from, unit rows.
Matrix adversarial_start(at::IntArrayRef sizes, uint64_t seed) {
  Matrix rows = matrix_of(
      at::randn(sizes, mm::detail::to_aten(seeded(seed)), at::TensorOptions(at::kFloat)).to(at::kDouble));
  for (auto& row : rows) {
    const double norm = std::hypot(row[0], row[1]);
    row = {row[0] / norm, row[1] / norm};
  }
  return rows;
}

/// W^T (softmax(W (x + xi d)) - softmax(W x)), of length 1: a step of the power method by hand.
std::vector<double> adversarial_step(const Matrix& w, const std::vector<double>& x,
                                     const std::vector<double>& d, double xi) {
  const auto p = softmax_of_logits(w, x), q = softmax_of_logits(w, {x[0] + xi * d[0], x[1] + xi * d[1]});
  std::vector<double> gradient(2, 0.0);
  for (size_t c = 0; c < 3; ++c) {
    gradient[0] += w[c][0] * (q[c] - p[c]);
    gradient[1] += w[c][1] * (q[c] - p[c]);
  }
  const double norm = std::hypot(gradient[0], gradient[1]);
  return {gradient[0] / norm, gradient[1] / norm};
}

Tensor row_norms(const Tensor& rows) { return rows.to(at::kDouble).flatten(1).square().sum(1).sqrt(); }

}  // namespace

TEST_CASE("virtual_adversarial_direction: golden against the gradient by hand and the closed form") {
  MethodInput in;
  const Tensor u = in.batch.weak[0];
  const auto w = matrix_of(in.model->weight.detach()), x = matrix_of(u), start = adversarial_start({3, 2}, 5);
  const auto once = matrix_of(mm::virtual_adversarial_direction(in.model, u, {}, seeded(5)));
  const auto large = matrix_of(
      mm::virtual_adversarial_direction(in.model, u, VirtualAdversarialOptions().xi(0.5), seeded(5)));
  const auto thrice = matrix_of(mm::virtual_adversarial_direction(
      in.model, u, VirtualAdversarialOptions().power_iterations(3), seeded(5)));
  for (size_t i = 0; i < 3; ++i) {
    const auto by_hand = adversarial_step(w, x[i], start[i], 0.5);
    auto repeated = start[i];
    for (int k = 0; k < 3; ++k) {
      repeated = adversarial_step(w, x[i], repeated, 1e-6);
    }
    // At xi -> 0: W^T (diag p - p p^T) W d.
    const auto p = softmax_of_logits(w, x[i]);
    std::vector<double> closed(2, 0.0);
    double mean = 0;
    for (size_t c = 0; c < 3; ++c) {
      mean += p[c] * (w[c][0] * start[i][0] + w[c][1] * start[i][1]);
    }
    for (size_t c = 0; c < 3; ++c) {
      const double change = p[c] * (w[c][0] * start[i][0] + w[c][1] * start[i][1] - mean);
      closed[0] += w[c][0] * change;
      closed[1] += w[c][1] * change;
    }
    const double norm = std::hypot(closed[0], closed[1]);
    for (size_t d = 0; d < 2; ++d) {
      CHECK(large[i][d] == Approx(by_hand[d]).epsilon(1e-10));
      CHECK(once[i][d] == Approx(closed[d] / norm).epsilon(1e-5));
      CHECK(thrice[i][d] == Approx(repeated[d]).epsilon(1e-5));
    }
    CHECK(std::hypot(once[i][0], once[i][1]) == Approx(1).epsilon(1e-14));
  }
}

TEST_CASE(
    "virtual_adversarial_direction: leaves gradients, statistics, mode and the caller's grad mode alone") {
  PlainNet model;
  const Tensor x = torch::randn({6, 3});
  model.forward(x).sum().backward();
  std::vector<Tensor> gradients, buffers;
  for (const auto& parameter : model.parameters()) {
    gradients.push_back(parameter.grad().clone());
  }
  for (const auto& buffer : model.buffers()) {
    buffers.push_back(buffer.clone());
  }
  Tensor recorded, plain;
  recorded = mm::virtual_adversarial_direction(model, x.clone().requires_grad_(), {}, seeded(2));
  {
    const torch::NoGradGuard no_grad;
    plain = mm::virtual_adversarial_direction(model, x, {}, seeded(2));
    CHECK_FALSE(at::GradMode::is_enabled());
  }
  CHECK(plain.equal(recorded));
  CHECK_FALSE(plain.equal(mm::virtual_adversarial_direction(model, x, {}, seeded(3))));
  CHECK_FALSE(recorded.requires_grad());
  CHECK(torch::allclose(row_norms(plain), torch::ones({6}, at::kDouble), 1e-5));
  for (size_t i = 0; i < gradients.size(); ++i) {
    CHECK(model.parameters()[i].grad().equal(gradients[i]));
  }
  for (size_t i = 0; i < buffers.size(); ++i) {
    CHECK(model.buffers()[i].equal(buffers[i]));
  }
  CHECK(model.is_training());
}

TEST_CASE(
    "virtual_adversarial_direction: float32 finds float64's, and bfloat16 autocast the same as float32") {
  torch::manual_seed(3);
  mm::models::WideResNet model(mm::models::WideResNetOptions(3).depth(10).widen_factor(1));
  const Tensor x = torch::randn({8, 3, 8, 8}).clamp(-1, 1);
  const Tensor single = mm::virtual_adversarial_direction(model, x, {}, seeded(4));
  {
    const mm::training::Autocast autocast(torch::kCPU, at::kBFloat16);
    CHECK(mm::virtual_adversarial_direction(model, x, {}, seeded(4)).equal(single));
    CHECK(mm::detail::autocast_state(at::kCPU).enabled);
    const Tensor low = mm::virtual_adversarial_direction(model, x.to(at::kBFloat16), {}, seeded(4));
    CHECK(low.scalar_type() == at::kBFloat16);
    CHECK(torch::allclose(row_norms(low), torch::ones({8}, at::kDouble), 1e-2));
  }
  const Tensor last = x.contiguous(at::MemoryFormat::ChannelsLast);
  CHECK(torch::allclose(mm::virtual_adversarial_direction(model, last, {}, seeded(4)), single, 1e-2, 1e-3));
  model->to(at::kDouble);
  const Tensor exact = mm::virtual_adversarial_direction(model, x.to(at::kDouble), {}, seeded(4));
  CHECK((exact * single).flatten(1).sum(1).min().item<double>() > 0.97);
}

TEST_CASE("virtual_adversarial_direction: rows without a gradient are 0, tiny gradients are not") {
  const auto flat = [](const Tensor& input) { return input.flatten(1).narrow(1, 0, 2) * 0; };
  CHECK(mm::virtual_adversarial_direction(flat, torch::ones({3, 4}), {}, seeded(1))
            .abs()
            .sum()
            .item<double>() == 0);
  MethodInput in;
  Tensor x = in.batch.weak[0].clone();
  x[1].fill_(1e5);  // saturated
  const Tensor direction = mm::virtual_adversarial_direction(in.model, x, {}, seeded(1));
  CHECK(direction.isfinite().all().item<bool>());
  CHECK(direction[1].abs().sum().item<double>() == 0);
  CHECK(row_norms(direction)[0].item<double>() == Approx(1));
  const Tensor tiny = torch::tensor({3e-30F, 4e-30F, 0.0F, 0.0F}).view({2, 2});
  CHECK(torch::allclose(mm::detail::unit_rows(tiny), torch::tensor({0.6F, 0.8F, 0.0F, 0.0F}).view({2, 2})));
}

TEST_CASE("virtual_adversarial_direction: what does not fit is refused") {
  MethodInput in;
  const auto direction = [&](const Tensor& input, const VirtualAdversarialOptions& options = {}) {
    return error_of([&] { mm::virtual_adversarial_direction(in.model, input, options, seeded(1)); });
  };
  CHECK_THAT(direction(torch::ones({3, 2}, at::kLong)),
             contains("input must be floating-point [N, ...], got Long [3, 2]"));
  CHECK_THAT(direction(torch::ones({3})), contains("got Float [3]"));
  CHECK_THAT(direction(in.batch.weak[0], VirtualAdversarialOptions().xi(0)),
             contains("xi must be finite and > 0, got 0"));
  CHECK_THAT(
      direction(in.batch.weak[0], VirtualAdversarialOptions().xi(std::numeric_limits<double>::infinity())),
      contains("xi must be finite and > 0, got inf"));
  CHECK_THAT(direction(in.batch.weak[0], VirtualAdversarialOptions().power_iterations(0)),
             contains("power_iterations must be >= 1, got 0"));
}
