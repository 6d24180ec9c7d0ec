#include <mixmatch/optim/optimizer_step.hpp>
#include <mixmatch/weight_decay.hpp>

#include <cmath>
#include <limits>

#include "catch.hpp"
#include "model_zoo.hpp"
#include "test_util.hpp"

using namespace mixmatch;

TEST_CASE("decay_weights: kernels shrink, biases and batch norm stay") {
  torch::manual_seed(1);
  torch::nn::Sequential model(torch::nn::Conv2d(3, 4, 3), torch::nn::BatchNorm2d(4), torch::nn::Linear(4, 2));
  std::vector<Tensor> before;
  for (const auto& parameter : model->parameters()) {
    before.push_back(parameter.detach().clone());
  }
  decay_weights(model, 0.25);
  const auto after = model->parameters();
  for (size_t i = 0; i < after.size(); ++i) {
    CHECK(torch::equal(after[i], before[i].dim() >= 2 ? before[i] * 0.75 : before[i]));
    CHECK_FALSE(after[i].grad().defined());
  }
  decay_weights(model, 0);
  CHECK(torch::equal(after[0], before[0] * 0.75));
}

TEST_CASE("decay_weights: every kind of module, a shared one once") {
  torch::jit::Module script = script_net();
  const Tensor weight = script.attr("weight").toTensor();
  const Tensor before = weight.detach().clone();
  decay_weights(script, 0.5);
  CHECK(torch::equal(weight, before * 0.5));

  struct Twice : torch::nn::Module {
    Twice() {
      first = register_module("first", torch::nn::Linear(2, 2));
      register_module("second", first);
    }
    Tensor forward(const Tensor& x) { return first(first(x)); }
    torch::nn::Linear first{nullptr};
  } twice;
  const Tensor shared = twice.first->weight.detach().clone();
  decay_weights(twice, 0.5);
  CHECK(torch::equal(twice.first->weight, shared * 0.5));
}

TEST_CASE("decay_weights: frozen kernels, embeddings and layer norms stay") {
  struct Text : torch::nn::Module {
    Text() {
      embedding = register_module("embedding", torch::nn::Embedding(5, 3));
      norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({2, 3})));
      frozen = register_module("frozen", torch::nn::Linear(3, 3));
      dense = register_module("dense", torch::nn::Linear(3, 2));
      frozen->weight.set_requires_grad(false);
    }
    Tensor forward(const Tensor& x) { return dense(frozen(norm(embedding(x)))); }
    torch::nn::Embedding embedding{nullptr};
    torch::nn::LayerNorm norm{nullptr};
    torch::nn::Linear frozen{nullptr}, dense{nullptr};
  };
  auto model = std::make_shared<Text>();
  std::vector<Tensor> before;
  for (const auto& parameter : model->parameters()) {
    before.push_back(parameter.detach().clone());
  }
  const Tensor dense = model->dense->weight.detach().clone();
  EmaModel ema(model, EmaModelOptions().decay(0.5));
  const auto check = [&](double factor) {
    size_t i = 0;
    for (const auto& item : model->named_parameters()) {
      INFO(item.key());
      CHECK(torch::allclose(item.value(), item.key() == "dense.weight" ? dense * factor : before[i]));
      ++i;
    }
  };
  decay_weights(model, 0.25);
  check(0.75);
  ema.decay_weights_and_update(0.25);
  check(0.75 * 0.75);
  // Thawed, a kernel is decayed like the others.
  model->frozen->weight.set_requires_grad(true);
  const Tensor thawed = model->frozen->weight.detach().clone();
  ema.decay_weights_and_update(0.5);
  CHECK(torch::allclose(model->frozen->weight, thawed * 0.5));
}

TEST_CASE("decay_weights: rate out of range") {
  torch::nn::Linear model(2, 2);
  for (const double rate : {-0.1, 1.1, std::nan("")}) {
    CHECK_THAT(error_of([&] { decay_weights(model, rate); }), contains("rate must be in [0, 1], got"));
  }
}

TEST_CASE("optimizer_step: Adam, decay and average in the papers' order, against double precision") {
  // One weight and one bias of float64; gradients g1, g2 by hand.
  torch::nn::Linear model(1, 1);
  model->to(at::kDouble);
  {
    torch::NoGradGuard no_grad;
    model->weight.fill_(2);
    model->bias.fill_(3);
  }
  EmaModel ema(model, EmaModelOptions().decay(0.9));
  const double rate = 0.1, decay = 0.5;
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(rate));
  double w = 2, b = 3, m[2] = {0, 0}, v[2] = {0, 0}, mean_w = 2, mean_b = 3;
  for (int step = 1; step <= 5; ++step) {
    const double x = step;
    const Tensor out = model(torch::full({1, 1}, x, at::kDouble));
    out.square().sum().backward();
    const double y = w * x + b;
    const double gradient[2] = {2 * y * x, 2 * y};
    double* parameter[2] = {&w, &b};
    for (int i = 0; i < 2; ++i) {
      m[i] = .9 * m[i] + .1 * gradient[i];
      v[i] = .999 * v[i] + .001 * gradient[i] * gradient[i];
      *parameter[i] -=
          rate * (m[i] / (1 - std::pow(.9, step))) / (std::sqrt(v[i] / (1 - std::pow(.999, step))) + 1e-8);
    }
    w *= 1 - decay * rate;
    mean_w = .9 * mean_w + .1 * w;
    mean_b = .9 * mean_b + .1 * b;
    training::optimizer_step(optimizer, ema, rate, decay);
    CHECK(model->weight.item<double>() == Approx(w).epsilon(1e-10));
    CHECK(model->bias.item<double>() == Approx(b).epsilon(1e-10));
    CHECK(ema.named_parameters()[0].second.item<double>() == Approx(mean_w).epsilon(1e-10));
    CHECK(ema.named_parameters()[1].second.item<double>() == Approx(mean_b).epsilon(1e-10));
    const Tensor gradient_after = model->weight.grad();
    CHECK((!gradient_after.defined() || gradient_after.eq(0).all().item<bool>()));
  }
  CHECK_THAT(error_of([&] { training::optimizer_step(optimizer, ema, rate, -1); }),
             contains("weight_decay must be >= 0, got -1"));
}

TEST_CASE("optimizer_step: a gradient that is not finite changes nothing and is told") {
  torch::manual_seed(4);
  for (const double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    torch::nn::Linear model(2, 2);
    EmaModel ema(model, 0.5);
    torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(0.1));
    const Tensor x = torch::ones({1, 2});
    model(x).sum().backward();
    CHECK(training::optimizer_step(optimizer, ema, 0.1, 0.1));
    const Tensor weight = model->weight.detach().clone(), average = ema.named_parameters()[0].second.clone();
    model(x).sum().backward();
    model->weight.mutable_grad()[0][1] = bad;
    CHECK_FALSE(training::optimizer_step(optimizer, ema, 0.1, 0.1));
    CHECK(torch::equal(model->weight, weight));
    CHECK(torch::equal(ema.named_parameters()[0].second, average));
    // And the next good step is as if the bad one had never been.
    model(x).sum().backward();
    CHECK(torch::equal(model->weight.grad(), torch::ones({2, 2})));
    CHECK(training::optimizer_step(optimizer, ema, 0.1, 0.1));
    CHECK(model->weight.isfinite().all().item<bool>());
    CHECK_FALSE(torch::equal(model->weight, weight));
  }
}
