#include <mixmatch/nn/batch_norm.hpp>
#include <mixmatch/nn/batch_norm_leaky_relu.hpp>

#include <ATen/Parallel.h>

#include <cmath>
#include <functional>
#include <vector>

#include "catch.hpp"
#include "simd_levels.hpp"
#include "test_util.hpp"

using mixmatch::models::BatchNormLeakyReLU;
using torch::Tensor;
using torch::nn::BatchNorm2dOptions;

namespace {

Tensor channels_last(const Tensor& x) { return x.contiguous(at::MemoryFormat::ChannelsLast); }

Tensor random_images(int64_t rows, int64_t channels, int64_t size, at::ScalarType type) {
  return channels_last(torch::randn({rows, channels, size, size}, at::kDouble).mul_(3).add_(1).to(type));
}

/// A layer with parameters unlike those it starts with.
BatchNormLeakyReLU make_layer(int64_t channels, double slope, at::ScalarType type = at::kFloat) {
  BatchNormLeakyReLU layer(BatchNorm2dOptions(channels).eps(1e-3).momentum(0.1), slope);
  layer->to(type);
  const torch::NoGradGuard no_grad;
  layer->weight.uniform_(-1.5, 1.5);
  layer->bias.normal_();
  return layer;
}

/// Its twin in LibTorch's own modules, in double precision.
torch::nn::BatchNorm2d twin_of(const BatchNormLeakyReLU& layer) {
  torch::nn::BatchNorm2d twin(layer->options);
  twin->to(at::kDouble);
  const torch::NoGradGuard no_grad;
  twin->weight.copy_(layer->weight);
  twin->bias.copy_(layer->bias);
  return twin;
}

double difference(const Tensor& a, const Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

double tolerance(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return 1e-11;
    case at::kFloat:
      return 2e-5;
    case at::kHalf:
      return 6e-3;
    default:
      return 5e-2;
  }
}

}  // namespace

TEST_CASE("BatchNormLeakyReLU: hand-worked example") {
  // One channel, four values 1 2 3 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5.
  BatchNormLeakyReLU layer(BatchNorm2dOptions(1).eps(0.5).momentum(0.25), 0.1);
  {
    const torch::NoGradGuard no_grad;
    layer->weight.fill_(4);
    layer->bias.fill_(1);
  }
  const Tensor x = torch::tensor({1., 2., 3., 6.}).view({4, 1, 1, 1}).to(at::kFloat);
  // deviation sqrt(3.5 + .5) = 2: 4 (x - 3) / 2 + 1 = -3, -1, 1, 7.
  const Tensor y = layer(x);
  CHECK(difference(y.view({4}), torch::tensor({-0.3, -0.1, 1.0, 7.0})) < 1e-6);
  CHECK(layer->running_mean.item<double>() == Approx(0.25 * 3));
  CHECK(layer->running_var.item<double>() == Approx(0.75 * 1 + 0.25 * 14.0 / 3));
  CHECK(layer->num_batches_tracked.item<int64_t>() == 1);
}

TEST_CASE("BatchNormLeakyReLU: results, gradients and running statistics are those of LibTorch's modules") {
  torch::manual_seed(1);
  const auto type = GENERATE(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf);
  const auto channels = GENERATE(1, 3, 16, 20, 64, 67, 135);
  for (const auto level : simd_levels()) {
    const SimdLevelGuard guard(level);
    for (const double slope : {0.1, 0.0, 1.0}) {
      INFO(type << ", " << channels << " channels, slope " << slope << ", level " << static_cast<int>(level));
      auto layer = make_layer(channels, slope, type == at::kDouble ? at::kDouble : at::kFloat);
      auto twin = twin_of(layer);
      const Tensor x = random_images(5, channels, 9, type).requires_grad_();
      const Tensor addend = random_images(5, channels, 9, type).requires_grad_();
      const auto out = layer->forward_sum(x, addend);
      CHECK(out.activation.scalar_type() == type);
      CHECK(out.activation.is_contiguous(at::MemoryFormat::ChannelsLast));
      CHECK(torch::equal(out.sum, x + addend));
      CHECK(out.activation.grad_fn()->name() != "LeakyReluBackward0");  // the fused path was taken
      // From the sum as it was rounded, so that the comparison is of the layer alone.
      const Tensor sum = out.sum.detach().to(at::kDouble).requires_grad_();
      const Tensor expected = torch::leaky_relu(twin(sum), slope);
      CHECK(difference(out.activation, expected) < tolerance(type) * 8);
      CHECK(difference(layer->running_mean, twin->running_mean) < 1e-5);
      CHECK(difference(layer->running_var, twin->running_var) < 1e-4);
      CHECK(torch::equal(layer->num_batches_tracked, twin->num_batches_tracked));

      const Tensor grad = random_images(5, channels, 9, type), grad_sum = random_images(5, channels, 9, type);
      torch::autograd::backward({out.activation, out.sum}, {grad, grad_sum});
      expected.backward(grad.to(at::kDouble));
      const Tensor expected_grad = sum.grad() + grad_sum.to(at::kDouble);
      const double scale = expected_grad.abs().max().item<double>();
      CHECK(difference(x.grad(), expected_grad) < tolerance(type) * scale);
      CHECK(torch::equal(x.grad(), addend.grad()));
      // A pre-activation next to zero may have either sign after rounding; its gradient is small beside the
      // sum.
      const double rows = 5 * 9 * 9;
      CHECK(difference(layer->weight.grad(), twin->weight.grad()) < tolerance(type) * rows / 4);
      CHECK(difference(layer->bias.grad(), twin->bias.grad()) < tolerance(type) * rows / 4);
    }
  }
}

TEST_CASE("BatchNormLeakyReLU: gradients are difference quotients") {
  torch::manual_seed(2);
  auto layer = make_layer(3, 0.2, at::kDouble);
  layer->set_groups(2);
  const Tensor x = random_images(4, 3, 3, at::kDouble).requires_grad_();
  const Tensor addend = random_images(4, 3, 3, at::kDouble).requires_grad_();
  const Tensor weights = random_images(4, 3, 3, at::kDouble),
               sum_weights = random_images(4, 3, 3, at::kDouble);
  const auto loss = [&] {
    const auto out = layer->forward_sum(x, addend);
    return (out.activation * weights).sum() + (out.sum * sum_weights).sum();
  };
  loss().backward();
  for (const Tensor& parameter : {x, addend, layer->weight, layer->bias}) {
    const torch::NoGradGuard no_grad;
    // Through the storage: one element at a time, in any layout.
    auto* value = parameter.data_ptr<double>();
    const Tensor grad = parameter.dim() == 4 ? channels_last(parameter.grad()) : parameter.grad();
    for (int64_t i = 0; i < parameter.numel(); ++i) {
      const double before = value[i], step = 1e-6;
      value[i] = before + step;
      const double above = loss().item<double>();
      value[i] = before - step;
      const double below = loss().item<double>();
      value[i] = before;
      CHECK((above - below) / (2 * step) == Approx(grad.data_ptr<double>()[i]).epsilon(1e-5).margin(1e-6));
    }
  }
}

TEST_CASE("BatchNormLeakyReLU: groups are so many separate passes, of which the first moves the statistics") {
  torch::manual_seed(3);
  for (const bool fused : {true, false}) {
    for (const auto format : {at::MemoryFormat::ChannelsLast, at::MemoryFormat::Contiguous}) {
      auto grouped = make_layer(16, 0.1);
      grouped->set_fused(fused);
      auto single = std::dynamic_pointer_cast<mixmatch::models::BatchNormLeakyReLUImpl>(grouped->clone());
      grouped->set_groups(3);
      const Tensor x = random_images(6, 16, 20, at::kFloat).contiguous(format);
      const Tensor mixed = x.clone().requires_grad_(), apart = x.clone().requires_grad_();
      const Tensor y = grouped->forward(mixed);
      std::vector<Tensor> parts;
      for (const Tensor& part : apart.chunk(3)) {
        if (parts.empty()) {
          parts.push_back(single->forward(part));
        } else {
          const mixmatch::BatchNormFreeze freeze(*single);
          parts.push_back(single->forward(part));
        }
      }
      CHECK(difference(y, torch::cat(parts)) == 0);
      CHECK(torch::equal(grouped->running_mean, single->running_mean));
      CHECK(torch::equal(grouped->running_var, single->running_var));
      CHECK(grouped->num_batches_tracked.item<int64_t>() == 1);
      const Tensor grad = torch::randn_like(y);
      y.backward(grad);
      torch::cat(parts).backward(grad);
      CHECK(difference(mixed.grad(), apart.grad()) < 1e-6);
      CHECK(torch::allclose(grouped->weight.grad(), single->weight.grad(), 1e-4, 1e-3));
      CHECK(torch::allclose(grouped->bias.grad(), single->bias.grad(), 1e-4, 1e-3));
    }
  }
}

TEST_CASE("BatchNormLeakyReLU: the same bits with any number of threads") {
  torch::manual_seed(4);
  const int before = at::get_num_threads();
  const Tensor x = random_images(16, 32, 32, at::kBFloat16);
  std::vector<Tensor> results;
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    torch::manual_seed(5);
    auto layer = make_layer(32, 0.1);
    const Tensor input = x.clone().requires_grad_();
    const Tensor y = layer(input);
    y.backward(torch::ones_like(y));
    results.push_back(
        torch::cat({y.detach().to(at::kFloat).flatten(), input.grad().to(at::kFloat).flatten(),
                    layer->weight.grad(), layer->bias.grad(), layer->running_mean, layer->running_var}));
  }
  at::set_num_threads(before);
  CHECK(torch::equal(results[0], results[1]));
  CHECK(torch::equal(results[0], results[2]));
}

TEST_CASE("BatchNormLeakyReLU: a small variance about a large mean") {
  torch::manual_seed(6);
  auto layer = make_layer(8, 0.1);
  auto twin = twin_of(layer);
  const Tensor x = channels_last((torch::randn({8, 8, 16, 16}, at::kDouble) * 0.05 + 1000).to(at::kFloat));
  CHECK(difference(layer(x), torch::leaky_relu(twin(x.to(at::kDouble)), 0.1)) < 2e-3);
  CHECK(torch::allclose(layer->running_var.to(at::kDouble), twin->running_var, 1e-5));
}

TEST_CASE("BatchNormLeakyReLU: second derivatives, gradient of the sum alone, gradient that lies otherwise") {
  torch::manual_seed(7);
  auto layer = make_layer(4, 0.3, at::kDouble);
  auto twin = twin_of(layer);
  const auto penalty = [](const Tensor& y, const Tensor& x) {
    const auto grad = torch::autograd::grad({y.pow(3).sum()}, {x}, {}, true, /*create_graph=*/true);
    return grad[0].square().sum();
  };
  const Tensor x = random_images(2, 4, 3, at::kDouble).requires_grad_();
  const Tensor other = x.detach().clone().requires_grad_();
  penalty(layer(x), x).backward();
  penalty(torch::leaky_relu(twin(other), 0.3), other).backward();
  CHECK(torch::allclose(x.grad(), other.grad(), 1e-8, 1e-8));
  CHECK(torch::allclose(layer->weight.grad(), twin->weight.grad(), 1e-8, 1e-8));

  const Tensor a = random_images(2, 4, 3, at::kDouble).requires_grad_();
  const Tensor b = random_images(2, 4, 3, at::kDouble).requires_grad_();
  layer->zero_grad();
  layer->forward_sum(a, b).sum.sum().backward();
  CHECK(torch::equal(a.grad(), torch::ones_like(a)));
  CHECK(torch::equal(b.grad(), torch::ones_like(b)));

  // mean's gradient is an expanded number.
  const Tensor c = a.detach().clone().requires_grad_(), d = a.detach().clone().requires_grad_();
  layer(c).mean({2, 3}).select(1, 0).sum().backward();
  torch::leaky_relu(twin(d), 0.3).mean({2, 3}).select(1, 0).sum().backward();
  CHECK(torch::allclose(c.grad(), d.grad(), 1e-8, 1e-10));
}

TEST_CASE("BatchNormLeakyReLU: evaluation mode, other layouts, modes of BatchNorm2d") {
  torch::manual_seed(8);
  auto layer = make_layer(5, 0.1, at::kDouble);
  auto twin = twin_of(layer);
  const Tensor x = random_images(3, 5, 4, at::kDouble);
  // Without momentum the running statistics are plain means.
  layer->options.momentum(c10::nullopt);
  twin->options.momentum(c10::nullopt);
  for (int pass = 0; pass < 3; ++pass) {
    layer(x * pass);
    twin(x * pass);
  }
  CHECK(torch::allclose(layer->running_mean, twin->running_mean));
  CHECK(torch::allclose(layer->running_var, twin->running_var));
  layer->eval();
  twin->eval();
  const Tensor y = layer(x);
  CHECK(torch::allclose(y, torch::leaky_relu(twin(x), 0.1)));
  CHECK(layer->num_batches_tracked.item<int64_t>() == 3);
  layer->train();
  twin->train();
  CHECK(torch::allclose(layer(x.contiguous()), torch::leaky_relu(twin(x), 0.1)));
  {
    const mixmatch::BatchNormFreeze freeze(*layer);
    const Tensor before = layer->num_batches_tracked.clone();
    layer(x);
    CHECK(layer->num_batches_tracked.item<int64_t>() == before.item<int64_t>() + 1);
  }
  CHECK(layer->num_batches_tracked.item<int64_t>() == 4);
  BatchNormLeakyReLU untracked(BatchNorm2dOptions(5).track_running_stats(false), 0.1);
  const Tensor images = x.to(at::kFloat);
  const Tensor in_training = untracked(images);
  untracked->eval();
  CHECK(torch::equal(untracked(images), in_training));
  BatchNormLeakyReLU plain(BatchNorm2dOptions(5).affine(false), 0.1);
  CHECK(torch::allclose(
      plain(images), torch::leaky_relu(at::batch_norm(images, {}, {}, {}, {}, true, 0.1, 1e-5, true), 0.1)));
}

TEST_CASE("BatchNormLeakyReLU: clones are of its kind and their own; what does not fit is refused") {
  torch::manual_seed(9);
  torch::nn::Sequential model(BatchNormLeakyReLU(BatchNorm2dOptions(4), 0.25));
  model->children()[0]->as<BatchNormLeakyReLU>()->weight.set_requires_grad(true);
  model->forward(random_images(2, 4, 3, at::kFloat));
  auto clone =
      std::dynamic_pointer_cast<mixmatch::models::BatchNormLeakyReLUImpl>(model->children()[0]->clone());
  REQUIRE(clone);
  auto* layer = model->children()[0]->as<BatchNormLeakyReLU>();
  CHECK(clone->leaky_slope() == 0.25);
  CHECK(torch::equal(clone->running_mean, layer->running_mean));
  CHECK_FALSE(clone->running_mean.is_alias_of(layer->running_mean));
  const Tensor x = random_images(3, 4, 3, at::kFloat);
  CHECK(torch::equal(clone->forward(x), layer->forward(x)));
  CHECK_THAT(error_of([&] { clone->set_groups(0); }), contains("groups must be >= 1, got 0"));
  clone->set_groups(2);
  CHECK_THAT(error_of([&] { clone->forward(x); }), contains("multiple of 2 rows"));
  CHECK_THAT(error_of([&] {
               clone->forward(torch::zeros({2, 4}));
             }),
             contains("x must be [N, 4, H, W], got [2, 4]"));
}

TEST_CASE(
    "BatchNormLeakyReLU: bfloat16 results are the exact ones rounded, to a unit or two in the last place") {
  torch::manual_seed(11);
  for (const auto level : simd_levels()) {
    const SimdLevelGuard guard(level);
    auto layer = make_layer(67, 0.1);
    auto twin = twin_of(layer);
    const Tensor x = random_images(4, 67, 8, at::kBFloat16);
    const Tensor expected = torch::leaky_relu(twin(x.to(at::kDouble)), 0.1);
    const Tensor error = (layer(x).to(at::kDouble) - expected).abs() - expected.abs() * 0x1p-8;
    CHECK(error.max().item<double>() < 1e-4);  // half a unit is 2^-9 to 2^-8 of the value
  }
}

TEST_CASE(
    "BatchNormLeakyReLU: frozen parameters, input without gradient, second derivatives of a layer used "
    "twice") {
  torch::manual_seed(12);
  auto layer = make_layer(4, 0.3, at::kDouble);
  auto twin = twin_of(layer);
  const auto penalty = [](const Tensor& y, const Tensor& x) {
    return torch::autograd::grad({y.pow(3).sum()}, {x}, {}, true, /*create_graph=*/true)[0].square().sum();
  };
  const auto apply_twin = [&](const Tensor& x) { return torch::leaky_relu(twin(x), 0.3); };
  {
    const Tensor x = random_images(2, 4, 3, at::kDouble).requires_grad_();
    const Tensor other = x.detach().clone().requires_grad_();
    penalty(layer->forward_sum(layer(x), x).activation, x).backward();
    penalty(apply_twin(apply_twin(other) + other), other).backward();
    CHECK(torch::allclose(x.grad(), other.grad(), 1e-7, 1e-7));
    CHECK(torch::allclose(layer->weight.grad(), twin->weight.grad(), 1e-7, 1e-7));
    CHECK(torch::allclose(layer->bias.grad(), twin->bias.grad(), 1e-7, 1e-7));
  }
  layer->weight.set_requires_grad(false);
  layer->bias.set_requires_grad(false);
  twin->weight.set_requires_grad(false);
  twin->bias.set_requires_grad(false);
  const Tensor x = random_images(2, 4, 3, at::kDouble).requires_grad_();
  const Tensor other = x.detach().clone().requires_grad_();
  penalty(layer(x), x).backward();
  penalty(apply_twin(other), other).backward();
  CHECK(torch::allclose(x.grad(), other.grad(), 1e-7, 1e-7));
  layer->weight.set_requires_grad(true);
  layer(x.detach()).sum().backward();
  CHECK(layer->weight.grad().defined());
  CHECK_FALSE(layer(x.detach()).square().sum().isnan().item<bool>());
}

TEST_CASE("BatchNormLeakyReLU: an empty batch, and numbers that are none") {
  auto layer = make_layer(4, 0.1);
  CHECK(layer(torch::empty({0, 4, 3, 3})).size(0) == 0);
  Tensor x = random_images(2, 4, 3, at::kFloat);
  x.select(1, 2).fill_(std::nan(""));
  const Tensor y = layer(x);
  CHECK(y.select(1, 2).isnan().all().item<bool>());
  CHECK_FALSE(y.select(1, 1).isnan().any().item<bool>());
}

TEST_CASE("BatchNormLeakyReLU: a pass in between does not spoil a pending gradient") {
  auto layer = make_layer(4, 0.1);
  const Tensor x = random_images(2, 4, 3, at::kFloat).requires_grad_();
  const Tensor first = layer(x.contiguous());  // ATen's calls, which save the running statistics
  layer(x);
  first.sum().backward();
  CHECK(x.grad().defined());
}
