#include <mixmatch/ema_model.hpp>
#include <mixmatch/nn/channels_last.hpp>
#include <mixmatch/optim/fused_adam.hpp>
#include <mixmatch/optim/optimizer_step.hpp>
#include <mixmatch/run/checkpoint.hpp>

#include <ATen/Parallel.h>
#include <torch/nn/modules.h>
#include <torch/optim/adam.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "catch.hpp"
#include "simd_levels.hpp"
#include "test_util.hpp"

using namespace mixmatch;
using training::FusedAdam;
using training::FusedAdamOptions;

namespace {

/// Kernels and vectors of odd sizes, one of them long enough for several pieces.
torch::nn::Sequential make_model(uint64_t seed) {
  torch::manual_seed(seed);
  return torch::nn::Sequential(torch::nn::Conv2d(3, 21, 3), torch::nn::BatchNorm2d(21),
                               torch::nn::Linear(21, 1931), torch::nn::Linear(7, 1));
}

/// Gradients for the step, the same for every model of that shape; the last layer has none.
void fill_gradients(torch::nn::Sequential& model, int step) {
  torch::manual_seed(static_cast<uint64_t>(100 + step));
  const auto parameters = model->parameters();
  for (size_t i = 0; i + 2 < parameters.size(); ++i) {
    parameters[i].mutable_grad() =
        torch::empty_like(parameters[i].detach()).copy_(torch::randn(parameters[i].sizes(), at::kDouble));
  }
}

double largest_difference(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, (a[i].to(at::kDouble) - b[i].to(at::kDouble)).abs().max().item<double>());
  }
  return largest;
}

template <class Model>
std::vector<Tensor> averages_of(const EmaModel<Model>& ema) {
  std::vector<Tensor> list;
  for (const auto& [name, tensor] : ema.named_parameters()) {
    list.push_back(tensor.clone());
  }
  return list;
}

std::vector<Tensor> copies_of(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> copies;
  for (const auto& tensor : tensors) {
    copies.push_back(tensor.detach().clone());
  }
  return copies;
}

}  // namespace

TEST_CASE("FusedAdam: one number, by hand in double precision") {
  torch::nn::Linear model(torch::nn::LinearOptions(1, 1).bias(false));
  {
    const torch::NoGradGuard no_grad;
    model->weight.fill_(0.5);
  }
  model->to(at::kDouble);
  EmaModel ema(model, EmaModelOptions().decay(0.9));
  FusedAdam optimizer(model, FusedAdamOptions(0.1));
  double w = 0.5, m = 0, v = 0, average = 0.5;
  for (int t = 1; t <= 4; ++t) {
    const double g = t % 2 == 0 ? -0.75 : 0.25 * t;
    model->weight.mutable_grad() = torch::full({1, 1}, g, at::kDouble);
    optimizer.step(ema, 0.02);
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    w -= 0.1 * (m / (1 - std::pow(0.9, t))) / (std::sqrt(v / (1 - std::pow(0.999, t))) + 1e-8);
    w *= 1 - 0.02 * 0.1;
    average = 0.9 * average + 0.1 * w;
    CHECK(model->weight.item<double>() == Approx(w).epsilon(1e-12));
    CHECK(ema.named_parameters()[0].second.item<double>() == Approx(average).epsilon(1e-12));
  }
  CHECK(optimizer.num_steps() == 4);
}

TEST_CASE("FusedAdam: equals Adam, then decay of kernels, then the moving average") {
  const auto type = GENERATE(at::kFloat, at::kDouble);
  const bool last = GENERATE(false, true);
  for (const auto level : simd_levels()) {
    const SimdLevelGuard guard(level);
    INFO(type << ", channels-last " << last << ", level " << static_cast<int>(level));
    auto fused = make_model(1), plain = make_model(1);
    fused->to(type);
    plain->to(at::kDouble);
    if (last) {
      training::to_channels_last(fused);
    }
    fused->parameters()[1].set_requires_grad(false);
    plain->parameters()[1].set_requires_grad(false);
    const auto start = copies_of(fused->parameters());
    FusedAdam optimizer(fused, FusedAdamOptions(0.01));
    CHECK(largest_difference(start, fused->parameters()) == 0);
    CHECK(fused->parameters()[0].is_contiguous(at::MemoryFormat::ChannelsLast) == last);
    torch::optim::Adam reference(plain->parameters(), torch::optim::AdamOptions(0.01));
    EmaModel ema(fused, EmaModelOptions().decay(0.95)), plain_ema(plain, EmaModelOptions().decay(0.95));
    for (int step = 0; step < 12; ++step) {
      fill_gradients(fused, step);
      fill_gradients(plain, step);
      CHECK(training::optimizer_step(optimizer, ema, 0.3));
      CHECK(training::optimizer_step(reference, plain_ema, 0.01, 0.3));
      CHECK_FALSE(fused->parameters()[0].grad().defined());
    }
    const double tolerance = type == at::kDouble ? 1e-12 : 3e-6;
    CHECK(largest_difference(fused->parameters(), plain->parameters()) < tolerance);
    CHECK(largest_difference(averages_of(ema), averages_of(plain_ema)) < tolerance);
    // The last layer had no gradient, but its kernel decays.
    CHECK(torch::allclose(fused->parameters()[6], start[6] * std::pow(1 - 0.003, 12)));
  }
}

TEST_CASE("FusedAdam: a layer that stands in the network twice moves once a step") {
  const auto tied = [] {
    torch::manual_seed(5);
    torch::nn::Linear layer(9, 9);
    return torch::nn::Sequential(layer, torch::nn::Tanh(), layer);
  };
  auto fused = tied(), plain = tied();
  FusedAdam optimizer(fused, FusedAdamOptions(0.01));
  torch::optim::Adam reference({plain->parameters()[0], plain->parameters()[1]},
                               torch::optim::AdamOptions(0.01));
  EmaModel ema(fused, EmaModelOptions().decay(0.95)), plain_ema(plain, EmaModelOptions().decay(0.95));
  for (int step = 0; step < 5; ++step) {
    const Tensor x = torch::randn({4, 9});
    fused->forward(x).square().sum().backward();
    plain->forward(x).square().sum().backward();
    CHECK(training::optimizer_step(optimizer, ema, 0.3));
    CHECK(training::optimizer_step(reference, plain_ema, 0.01, 0.3));
  }
  CHECK(largest_difference(fused->parameters(), plain->parameters()) < 1e-5);
  CHECK(largest_difference(averages_of(ema), averages_of(plain_ema)) < 1e-5);
}

TEST_CASE("FusedAdam: parameters lie in one block; autograd sees every change") {
  auto model = make_model(2);
  FusedAdam optimizer(model);
  EmaModel ema(model);
  const auto parameters = model->parameters();
  for (const auto& parameter : parameters) {
    CHECK(parameter.is_alias_of(parameters[0]));
    CHECK(parameter.is_leaf());
    CHECK(parameter.requires_grad());
  }
  const Tensor x = torch::randn({2, 21}, torch::requires_grad());
  const Tensor y = model[2]->as<torch::nn::Linear>()->forward(x);
  fill_gradients(model, 0);
  optimizer.step(ema, 0.1);
  CHECK_THROWS_AS(y.sum().backward(), c10::Error);  // the weight that y was made with is gone
}

TEST_CASE("FusedAdam: the same bits with any number of threads") {
  const int before = at::get_num_threads();
  std::vector<std::vector<Tensor>> results;
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    auto model = make_model(3);
    EmaModel ema(model);
    FusedAdam optimizer(model);
    for (int step = 0; step < 3; ++step) {
      fill_gradients(model, step);
      optimizer.step(ema, 0.02);
    }
    results.push_back(copies_of(model->parameters()));
    for (const auto& average : averages_of(ema)) {
      results.back().push_back(average);
    }
  }
  at::set_num_threads(before);
  for (size_t i = 0; i < results[0].size(); ++i) {
    CHECK(torch::equal(results[0][i], results[1][i]));
    CHECK(torch::equal(results[0][i], results[2][i]));
  }
}

TEST_CASE("FusedAdam: goes on from a checkpoint bit for bit, into another memory format too") {
  const TempDir dir;
  auto model = make_model(4);
  EmaModel ema(model);
  FusedAdam optimizer(model);
  training::Checkpoint checkpoint(dir / "checkpoint.pt");
  checkpoint.add("model", model).add("ema", ema).add("optimizer", optimizer);
  for (int step = 0; step < 3; ++step) {
    fill_gradients(model, step);
    optimizer.step(ema, 0.02);
  }
  checkpoint.save();
  // One block a kind, not one for each parameter that lies in it.
  const auto bytes = std::filesystem::file_size(dir / "checkpoint.pt");
  int64_t count = 0;
  for (const auto& parameter : model->parameters()) {
    count += parameter.numel();
  }
  CHECK(bytes < static_cast<uintmax_t>(count) * 4 * 4 + 60000);

  auto resumed = make_model(5);
  training::to_channels_last(resumed);
  EmaModel resumed_ema(resumed);
  FusedAdam resumed_optimizer(resumed);
  training::Checkpoint loading(dir / "checkpoint.pt");
  loading.add("model", resumed).add("ema", resumed_ema).add("optimizer", resumed_optimizer);
  loading.load();
  CHECK(resumed_optimizer.num_steps() == 3);
  for (int step = 3; step < 6; ++step) {
    fill_gradients(model, step);
    fill_gradients(resumed, step);
    optimizer.step(ema, 0.02);
    resumed_optimizer.step(resumed_ema, 0.02);
  }
  CHECK(largest_difference(model->parameters(), resumed->parameters()) < 1e-7);
  CHECK(largest_difference(averages_of(ema), averages_of(resumed_ema)) < 1e-7);

  torch::nn::Linear other(3, 2);
  FusedAdam other_optimizer(other);
  training::Checkpoint wrong(dir / "checkpoint.pt");
  wrong.add("optimizer", other_optimizer);
  CHECK_THAT(error_of([&] { wrong.load(); }), contains("2 parameters, the archive 8"));
}

TEST_CASE("FusedAdam: a gradient that is not finite changes nothing") {
  const auto type = GENERATE(at::kFloat, at::kDouble, at::kBFloat16);
  auto model = make_model(6);
  model->to(type);
  EmaModel ema(model);
  FusedAdam optimizer(model);
  fill_gradients(model, 0);
  CHECK(training::optimizer_step(optimizer, ema, 0.02));
  const auto weights = copies_of(model->parameters()), averages = averages_of(ema);
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                           -std::numeric_limits<double>::infinity()}) {
    for (const int64_t place : {int64_t{0}, int64_t{20000}, int64_t{40550}}) {
      fill_gradients(model, 1);
      model->parameters()[4].mutable_grad().view({-1})[place] = bad;
      CHECK_FALSE(training::optimizer_step(optimizer, ema, 0.02));
    }
  }
  CHECK(largest_difference(weights, model->parameters()) == 0);
  CHECK(largest_difference(averages, averages_of(ema)) == 0);
  CHECK(optimizer.num_steps() == 1);
  CHECK(ema.num_updates() == 1);
}

TEST_CASE("FusedAdam: half-precision parameters, averages elsewhere, gradients of other strides") {
  auto half = make_model(7), same = make_model(7);
  half->to(at::kBFloat16);
  same->to(at::kBFloat16);
  EmaModel half_ema(half), same_ema(same);
  FusedAdam optimizer(half, FusedAdamOptions(0.01));
  torch::optim::Adam reference(same->parameters(), torch::optim::AdamOptions(0.01));
  for (int step = 0; step < 3; ++step) {
    fill_gradients(half, step);
    fill_gradients(same, step);
    training::optimizer_step(optimizer, half_ema, 0.3);
    training::optimizer_step(reference, same_ema, 0.01, 0.3);
  }
  CHECK(largest_difference(half->parameters(), same->parameters()) < 0.02);
  CHECK(half_ema.named_parameters()[0].second.scalar_type() == at::kFloat);

  auto strided = make_model(8), dense = make_model(8);
  FusedAdam strided_optimizer(strided), dense_optimizer(dense);
  fill_gradients(strided, 0);
  fill_gradients(dense, 0);
  auto& grad = strided->parameters()[0].mutable_grad();
  grad = grad.contiguous(at::MemoryFormat::ChannelsLast);
  strided_optimizer.step();
  dense_optimizer.step();
  CHECK(largest_difference(strided->parameters(), dense->parameters()) == 0);
}

TEST_CASE("FusedAdam: a parameter's own steps count, as in torch::optim::Adam") {
  auto fused = make_model(10), plain = make_model(10);
  FusedAdam optimizer(fused, FusedAdamOptions(0.01));
  torch::optim::Adam reference(plain->parameters(), torch::optim::AdamOptions(0.01));
  for (int step = 0; step < 8; ++step) {
    fill_gradients(fused, step);
    fill_gradients(plain, step);
    if (step < 5) {
      fused->parameters()[0].mutable_grad().reset();
      plain->parameters()[0].mutable_grad().reset();
    }
    optimizer.step();
    reference.step();
  }
  CHECK(largest_difference(fused->parameters(), plain->parameters()) < 1e-6);
}

TEST_CASE("FusedAdam: a decay of 0 copies and of 1 keeps the average, whatever it holds") {
  for (const double decay : {0.0, 1.0}) {
    auto model = make_model(11);
    EmaModel ema(model, EmaModelOptions().decay(decay));
    FusedAdam optimizer(model);
    const torch::NoGradGuard no_grad;
    for (auto& [name, average] : ema.named_parameters()) {
      average.fill_(std::numeric_limits<double>::infinity());
    }
    fill_gradients(model, 0);
    optimizer.step(ema, 0.02);
    const auto averages = averages_of(ema);
    for (size_t i = 0; i < averages.size(); ++i) {
      CHECK((decay == 0 ? torch::equal(averages[i], model->parameters()[i])
                        : averages[i].isinf().all().item<bool>()));
    }
  }
}

TEST_CASE("FusedAdam: the same memory format goes on bit for bit; another model's average is refused") {
  auto model = make_model(12), resumed = make_model(13);
  EmaModel ema(model), resumed_ema(resumed);
  FusedAdam optimizer(model), resumed_optimizer(resumed);
  fill_gradients(model, 0);
  optimizer.step(ema, 0.02);
  const TempDir dir;
  training::Checkpoint(dir / "c.pt").add("model", model).add("ema", ema).add("optimizer", optimizer).save();
  training::Checkpoint(dir / "c.pt")
      .add("model", resumed)
      .add("ema", resumed_ema)
      .add("optimizer", resumed_optimizer)
      .load();
  fill_gradients(model, 1);
  fill_gradients(resumed, 1);
  optimizer.step(ema, 0.02);
  resumed_optimizer.step(resumed_ema, 0.02);
  CHECK(largest_difference(model->parameters(), resumed->parameters()) == 0);
  CHECK(largest_difference(averages_of(ema), averages_of(resumed_ema)) == 0);
  const auto before = copies_of(model->parameters());
  CHECK_THAT(error_of([&] { optimizer.step(resumed_ema, 0.02); }), contains("own model"));
  CHECK(largest_difference(before, model->parameters()) == 0);
}

TEST_CASE("FusedAdam: bad options, and a model that moved") {
  auto model = make_model(9);
  CHECK_THAT(error_of([&] { FusedAdam(model, FusedAdamOptions(-1)); }), contains("learning_rate"));
  CHECK_THAT(error_of([&] { FusedAdam(model, FusedAdamOptions().beta1(1)); }),
             contains("beta1 must be in [0, 1), got 1"));
  CHECK_THAT(error_of([&] { FusedAdam(model, FusedAdamOptions().beta2(-0.1)); }), contains("beta2"));
  CHECK_THAT(error_of([&] { FusedAdam(model, FusedAdamOptions().eps(-1)); }), contains("eps"));
  FusedAdam optimizer(model);
  EmaModel ema(model);
  CHECK_THAT(error_of([&] { optimizer.step(ema, -1); }), contains("weight_decay must be >= 0, got -1"));
  CHECK_THAT(error_of([&] { optimizer.set_learning_rate(std::nan("")); }), contains("learning_rate"));
  model->to(at::kDouble);
  fill_gradients(model, 0);
  CHECK_THAT(error_of([&] { optimizer.step(); }),
             contains("0.weight no longer lies in the optimiser's memory"));
}
