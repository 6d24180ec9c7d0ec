#include <mixmatch/annealing.hpp>

#include <cmath>

#include "catch.hpp"
#include "test_util.hpp"

namespace mm = mixmatch;
using mm::Annealing;
using torch::Tensor;

namespace {

double threshold_at(int64_t step, int64_t classes, Annealing schedule) {
  return mm::annealing_threshold(at::full({}, step, at::TensorOptions(at::kLong)), 200, classes, schedule)
      .item<double>();
}

}  // namespace

TEST_CASE("annealing_threshold: the paper's schedules, clamped outside of the run") {
  for (const int64_t step : {0, 1, 50, 130, 200}) {
    const double t = static_cast<double>(step) / 200;
    CHECK(threshold_at(step, 10, Annealing::none) == 1);
    CHECK(threshold_at(step, 10, Annealing::linear) == Approx(t * (1 - 1.0 / 10) + 1.0 / 10).epsilon(1e-14));
    CHECK(threshold_at(step, 10, Annealing::exp) ==
          Approx(std::exp(5 * (t - 1)) * (1 - 1.0 / 10) + 1.0 / 10).epsilon(1e-14));
    CHECK(threshold_at(step, 10, Annealing::log) ==
          Approx((1 - std::exp(-5 * t)) * (1 - 1.0 / 10) + 1.0 / 10).epsilon(1e-14));
  }
  for (const auto schedule : {Annealing::linear, Annealing::exp}) {
    CHECK(threshold_at(200, 3, schedule) == 1);  // exactly: all rows are kept
    CHECK(threshold_at(1000, 3, schedule) == 1);
  }
  CHECK(threshold_at(-7, 4, Annealing::linear) == 0.25);
  CHECK(threshold_at(0, 4, Annealing::log) == 0.25);
  CHECK(threshold_at(0, 1, Annealing::linear) == 1);
  const Tensor threshold = mm::annealing_threshold(at::zeros({}, at::kLong), 10, 4, Annealing::exp);
  CHECK(threshold.scalar_type() == at::kDouble);
  CHECK(threshold.dim() == 0);
  CHECK_THAT(error_of([] { mm::annealing_threshold(at::zeros({}, at::kLong), 0, 4, Annealing::exp); }),
             contains("total_steps must be > 0, got 0"));
  CHECK_THAT(error_of([] { mm::annealing_threshold(at::zeros({}, at::kLong), 1, 0, Annealing::exp); }),
             contains("num_classes must be >= 1, got 0"));
}

TEST_CASE("parse_annealing: its four names and no other") {
  CHECK(mm::parse_annealing("none") == Annealing::none);
  CHECK(mm::parse_annealing("linear") == Annealing::linear);
  CHECK(mm::parse_annealing("exp") == Annealing::exp);
  CHECK(mm::parse_annealing("log") == Annealing::log);
  CHECK_THAT(error_of([] { mm::parse_annealing("cosine"); }),
             contains("expected none, linear, exp or log, got \"cosine\""));
}

TEST_CASE("annealed_cross_entropy: mean over the rows at most at the threshold, gradient to them alone") {
  // Of two classes p = 1 / (1 + exp(-z)) with z the label's lead: .5, .731, .881.
  Tensor logits = torch::tensor({0.0, 0.0, 0.0, 1.0, 2.0, 0.0}, at::kDouble).view({3, 2}).requires_grad_();
  const Tensor labels = torch::tensor({0, 1, 0}, at::kLong);
  const auto at_threshold = [&](double threshold) {
    return mm::annealed_cross_entropy(logits, labels, torch::tensor(threshold, at::kDouble));
  };
  const auto cross_entropy = [](double lead) { return std::log(1 + std::exp(-lead)); };
  const auto two = at_threshold(0.8);
  CHECK(two.loss.item<double>() == Approx((cross_entropy(0) + cross_entropy(1)) / 2).epsilon(1e-12));
  CHECK(two.kept.item<double>() == Approx(2.0 / 3));
  two.loss.backward();
  const double p = 1 / (1 + std::exp(-1.0));
  const Tensor expected =
      torch::tensor({-0.25, 0.25, (1 - p) / 2, -(1 - p) / 2, 0.0, 0.0}, at::kDouble).view({3, 2});
  CHECK(torch::allclose(logits.grad(), expected, 1e-12, 1e-15));
  CHECK(at_threshold(1).loss.item<double>() ==
        Approx((cross_entropy(0) + cross_entropy(1) + cross_entropy(2)) / 3).epsilon(1e-12));
  CHECK(at_threshold(0.5).loss.item<double>() == Approx(cross_entropy(0)).epsilon(1e-12));  // at most
  CHECK(at_threshold(0.4).loss.item<double>() == 0);
  CHECK(at_threshold(0.4).kept.item<double>() == 0);
  const auto none = mm::annealed_cross_entropy(logits.narrow(0, 0, 0), labels.narrow(0, 0, 0),
                                               torch::tensor(0.5, at::kDouble));
  CHECK(none.loss.item<double>() == 0);
  // A float64 threshold takes float32 and half-precision logits.
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const auto loss =
        mm::annealed_cross_entropy(logits.detach().to(type), labels, torch::tensor(0.8, at::kDouble));
    CHECK(loss.loss.scalar_type() == at::kFloat);
    CHECK(loss.loss.item<double>() == Approx(two.loss.item<double>()).epsilon(1e-6));
  }
  const Tensor sure = torch::tensor({200.0F, 0.0F}).view({1, 2});
  CHECK(mm::annealed_cross_entropy(sure, at::zeros({1}, at::kLong), at::ones({}, at::kDouble))
            .kept.item<double>() == 1);
  CHECK_THAT(error_of([&] { mm::annealed_cross_entropy(logits, labels.to(at::kInt), at::ones({})); }),
             contains("labels must be int64 [3], got Int [3]"));
  CHECK_THAT(error_of([&] { mm::annealed_cross_entropy(logits, labels, at::ones({3})); }),
             contains("threshold must be a floating-point scalar tensor, got Float [3]"));
}
