#include <mixmatch/ema_model.hpp>
#include <mixmatch/weight_decay.hpp>

#include <cmath>
#include <memory>
#include <vector>

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
