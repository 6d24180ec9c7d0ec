#include <mixmatch/evaluation/linear_probe.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <limits>
#include <vector>

using mixmatch::training::fit_linear_probe;
using mixmatch::training::LinearProbeOptions;
using torch::Tensor;

namespace {

LinearProbeOptions fixed(double l2) { return LinearProbeOptions().l2({l2}).max_iterations(200); }

/// Rows around one centre a class, far from zero and of unequal scales.
Tensor clustered_features(const Tensor& labels, int64_t size, uint64_t seed) {
  torch::manual_seed(seed);
  const Tensor centres = at::randn({3, size}, at::kDouble) * 2;
  return (centres.index_select(0, labels) + at::randn({labels.size(0), size}, at::kDouble)) *
             at::linspace(0.1, 30, size, at::kDouble) +
         7;
}

}  // namespace

TEST_CASE("fit_linear_probe: the minimum that Newton's method finds in double precision") {
  const Tensor features = torch::tensor({{0.13, 0.74, -0.68},
                                         {0.8, -0.07, -0.82},
                                         {2.7, 2.89, -1.35},
                                         {-1.27, -0.25, -0.98},
                                         {-1.63, 0.56, -1.62},
                                         {0.67, -0.09, -1.16},
                                         {0.41, 3.09, -1.06},
                                         {2.07, -0.33, -0.82},
                                         {2.3, 1.19, -1.37}},
                                        at::kDouble);
  const Tensor labels = at::arange(9, at::kLong).remainder(3);
  const Tensor expected_weight =
      torch::tensor({{-0.5522557647482641, 0.4119734990431541, 0.5249072309362979},
                     {-0.043232448771531276, -0.5290181687855129, -0.13578005879674096},
                     {0.5954882135197955, 0.11704466974235844, -0.3891271721395569}});
  const Tensor expected_bias = torch::tensor({0.6151208248754295, 0.3778655341533814, -0.9929863590288109});
  for (const auto type : {at::kDouble, at::kFloat}) {
    const auto probe = fit_linear_probe(features.to(type), labels, 3, fixed(0.1));
    CHECK(probe.l2 == 0.1);
    CHECK(probe.weight.scalar_type() == at::kFloat);
    CHECK(at::allclose(probe.weight, expected_weight, 1e-4, 1e-4));
    CHECK(at::allclose(probe.bias - probe.bias.mean(), expected_bias, 1e-4, 1e-4));
    CHECK(torch::softmax(probe(features.to(at::kFloat)), 1)[2][2].item<float>() ==
          Approx(0.812453545907498).margin(1e-5));
    CHECK_FALSE(probe.weight.requires_grad());
  }
}

TEST_CASE("fit_linear_probe: with more features than rows, the gradient of the loss is zero there too") {
  const Tensor labels = torch::tensor({0, 0, 0, 1, 1, 2, 2, 2}, at::kLong);
  const Tensor features = clustered_features(labels, 40, 2);
  const auto probe = fit_linear_probe(features, labels, 3, fixed(0.03));
  const Tensor mean = features.mean(0), deviation = features.var(0, /*unbiased=*/false).mean().sqrt();
  Tensor weight = (probe.weight.to(at::kDouble) * deviation).requires_grad_();
  Tensor bias =
      (probe.bias.to(at::kDouble) + probe.weight.to(at::kDouble).matmul(mean)).detach().requires_grad_();
  const Tensor loss =
      at::cross_entropy_loss(at::linear((features - mean) / deviation, weight, bias), labels) +
      0.015 * weight.square().sum();
  const auto gradients = torch::autograd::grad({loss}, {weight, bias});
  CHECK(gradients[0].abs().max().item<double>() < 2e-6);
  CHECK(gradients[1].abs().max().item<double>() < 2e-6);
}

TEST_CASE("fit_linear_probe: the same answers for features in another unit, and from another zero") {
  const Tensor labels = at::arange(30, at::kLong).remainder(3);
  const Tensor features = clustered_features(labels, 5, 3);
  const auto probe = fit_linear_probe(features, labels, 3);
  const Tensor expected = torch::softmax(probe(features.to(at::kFloat)), 1);
  CHECK(expected.argmax(1).eq(labels).to(at::kFloat).mean().item<float>() > 0.8);
  const Tensor other = features * 1000 - 5;
  const auto same = fit_linear_probe(other, labels, 3);
  CHECK(same.l2 == probe.l2);
  CHECK(at::allclose(torch::softmax(same(other.to(at::kFloat)), 1), expected, 1e-3, 2e-3));
  const auto again = fit_linear_probe(features, labels, 3);
  CHECK(torch::equal(again.weight, probe.weight));
}

TEST_CASE("fit_linear_probe: cross-validation chooses the penalty, where every class has two rows") {
  const Tensor labels = at::arange(60, at::kLong).remainder(3);
  torch::manual_seed(4);
  const Tensor noise = at::randn({60, 50}, at::kDouble);  // nothing to learn: the stronger the better
  CHECK(fit_linear_probe(noise, labels, 3, LinearProbeOptions().l2({1e-3, 10})).l2 == 10);
  const Tensor clean = at::one_hot(labels, 3).to(at::kDouble);  // and here the weaker
  CHECK(fit_linear_probe(clean, labels, 3, LinearProbeOptions().l2({1e-3, 10})).l2 == 1e-3);
  const Tensor few = torch::tensor({0, 0, 1}, at::kLong);
  CHECK(fit_linear_probe(clean.narrow(0, 0, 3), few, 2, LinearProbeOptions().l2({1, 2, 3})).l2 == 2);
}

TEST_CASE("fit_linear_probe: bad input in one line") {
  const Tensor x = at::zeros({3, 2}), y = torch::tensor({0, 1, 1}, at::kLong);
  const auto refused = [](const auto&... arguments) {
    return error_of([&] { fit_linear_probe(arguments...); });
  };
  CHECK_THAT(refused(x.narrow(0, 0, 0), y, 2), contains("features must be floating-point [N, D] with N > 0"));
  CHECK_THAT(refused(x.to(at::kLong), y, 2), contains("features must be floating-point [N, D]"));
  CHECK_THAT(refused(x, y.narrow(0, 0, 2), 2), contains("labels must be int64 [3], got"));
  CHECK_THAT(refused(x, y, 1), contains("labels must be in [0, 1), got 0 to 1"));
  CHECK_THAT(refused(x / 0, y, 2), contains("features must be finite"));
  CHECK_THAT(refused(x, y, 2, LinearProbeOptions().l2({0.0})), contains("l2 must be one number > 0 or more"));
  CHECK_THAT(refused(x, y, 2, LinearProbeOptions().folds(1)), contains("folds must be >= 2, got 1"));
}
