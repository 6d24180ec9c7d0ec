#include <torch/serialize.h>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/nn/precision.hpp>

#include <sstream>

#include "catch.hpp"
#include "model_zoo.hpp"
#include "test_util.hpp"

using namespace mixmatch;

TEST_CASE("EmaModel: the average follows the recurrence in double precision") {
  torch::manual_seed(1);
  HeldNet model;
  model->to(at::kDouble);
  EmaModel ema(model, EmaModelOptions().decay(0.9));
  Tensor expected = model->dense->weight.detach().clone();
  CHECK(torch::equal(ema.named_parameters()[0].second, expected));
  for (int step = 0; step < 5; ++step) {
    {
      torch::NoGradGuard no_grad;
      model->dense->weight.add_(torch::randn({2, 3}, at::kDouble));
    }
    ema.update();
    expected = 0.9 * expected + (1.0 - 0.9) * model->dense->weight.detach();
    CHECK(torch::allclose(ema.named_parameters()[0].second, expected, 1e-13, 1e-15));
  }
  CHECK(ema.num_updates() == 5);
}

TEST_CASE("EmaModel: decay 0 follows, decay 1 stays, warm-up, options out of range") {
  HeldNet model;
  const Tensor start = model->dense->weight.detach().clone();
  EmaModel follows(model, EmaModelOptions().decay(0)), stays(model, EmaModelOptions().decay(1)),
      warms(model, EmaModelOptions().decay(0.999).warmup(true));
  {
    torch::NoGradGuard no_grad;
    model->dense->weight.add_(1);
  }
  follows.update();
  stays.update();
  warms.update();
  CHECK(torch::equal(follows.named_parameters()[0].second, model->dense->weight));
  CHECK(torch::equal(stays.named_parameters()[0].second, start));
  CHECK(torch::allclose(warms.named_parameters()[0].second, start + 0.9));  // decay (1 + 0) / (10 + 0)
  CHECK_THAT(error_of([&] { EmaModel(model, EmaModelOptions().decay(1.5)); }),
             contains("decay must be in [0, 1], got 1.5"));
  CHECK_THAT(error_of([&] { EmaModel(model, EmaModelOptions().decay(-0.1)); }), contains("decay"));
}

TEST_CASE("EmaModel: a frozen parameter is not averaged, the model's own value stands") {
  HeldNet model;
  EmaModel ema(model, EmaModelOptions().decay(0.9));
  model->dense->weight.set_requires_grad(false).fill_(5);  // say, weights that were loaded late
  for (int i = 0; i < 3; ++i) {
    ema.update();
  }
  CHECK(torch::equal(ema.named_parameters()[0].second, torch::full({2, 3}, 5.f)));
  // Thawed, it is averaged from where it stands.
  model->dense->weight.fill_(6).set_requires_grad(true);
  ema.update();
  CHECK(torch::allclose(ema.named_parameters()[0].second, torch::full({2, 3}, 5.1f)));
}

TEST_CASE("EmaModel: buffers by policy") {
  HeldNet model;
  EmaModel copies(model, EmaModelOptions().decay(0.5)),
      averages(model, EmaModelOptions().decay(0.5).buffers(EmaBuffers::average)),
      keeps(model, EmaModelOptions().decay(0.5).buffers(EmaBuffers::keep));
  model->norm->running_mean.fill_(4);
  model->norm->num_batches_tracked.fill_(9);
  const auto running_mean = [&](auto& ema) {
    ema.update();
    auto scope = ema.average_parameters();
    return std::make_pair(model->norm->running_mean[0].item<float>(),
                          model->norm->num_batches_tracked.item<int64_t>());
  };
  CHECK(running_mean(copies) == std::make_pair(4.f, int64_t{9}));
  CHECK(running_mean(averages) == std::make_pair(2.f, int64_t{9}));
  CHECK(running_mean(keeps) == std::make_pair(0.f, int64_t{0}));
  CHECK(model->norm->running_mean[0].item<float>() == 4.f);
}

namespace {

template <class M>
void check_forward_and_scope(M model) {
  const Tensor x = torch::randn({6, 3});
  EmaModel ema(model, EmaModelOptions().decay(0.5));
  Tensor at_start;
  {
    mixmatch::detail::EvaluationModeGuard evaluation(model);
    at_start = forward(model, x).detach();
  }
  {
    torch::NoGradGuard no_grad;
    for (const auto& item : mixmatch::detail::model_parameters(model)) {
      Tensor parameter = item.tensor;
      parameter.add_(1);
    }
  }
  const Tensor live = mixmatch::detail::model_parameters(model)[0].tensor.detach().clone();
  const void* storage = mixmatch::detail::model_parameters(model)[0].tensor.data_ptr();
  CHECK(torch::allclose(ema.forward(x), at_start));
  CHECK_FALSE(ema.forward(x).requires_grad());
  {
    auto scope = ema.average_parameters();
    auto nested = ema.average_parameters();
    CHECK(torch::allclose(mixmatch::detail::model_parameters(model)[0].tensor, live - 1, 1e-5, 1e-6));
  }
  CHECK(torch::equal(mixmatch::detail::model_parameters(model)[0].tensor, live));
  CHECK(mixmatch::detail::model_parameters(model)[0].tensor.data_ptr() == storage);
  ema.update();
  CHECK(torch::allclose(ema.named_parameters()[0].second, live - 0.5, 1e-5, 1e-6));
}

}  // namespace

TEST_CASE("EmaModel: every kind of module, clonable or not") {
  torch::manual_seed(3);
  SECTION("shared_ptr to a module that cannot be cloned") {
    check_forward_and_scope(std::make_shared<PlainNet>());
  }
  SECTION("ModuleHolder") { check_forward_and_scope(HeldNet()); }
  SECTION("Sequential") { check_forward_and_scope(sequential_net()); }
  SECTION("AnyModule") { check_forward_and_scope(torch::nn::AnyModule(HeldNet())); }
  SECTION("TorchScript") { check_forward_and_scope(script_net()); }
  SECTION("a module by reference") {
    PlainNet net;
    EmaModel ema(net, 0.9);
    ema.update();
    CHECK(ema.forward(torch::zeros({2, 3})).sizes() == torch::IntArrayRef({2, 2}));
    CHECK(net.is_training());
  }
}

namespace {

struct SharedNet : torch::nn::Module {
  SharedNet() {
    first = register_module("first", torch::nn::Linear(3, 3));
    again = register_module("again", first);
  }
  Tensor forward(const Tensor& x) { return again(first(x)); }
  torch::nn::Linear first{nullptr}, again{nullptr};
};

}  // namespace

TEST_CASE("EmaModel: a module registered twice is averaged once") {
  auto model = std::make_shared<SharedNet>();
  EmaModel ema(model, EmaModelOptions().decay(0.5));
  CHECK(ema.named_parameters().size() == 2);
  const Tensor start = model->first->weight.detach().clone();
  {
    torch::NoGradGuard no_grad;
    model->first->weight.add_(1);
  }
  ema.update();
  CHECK(torch::allclose(ema.named_parameters()[0].second, start + 0.5));
}

TEST_CASE("EmaModel: decay of kernels and average in one pass equal the two calls") {
  torch::manual_seed(7);
  HeldNet one;
  HeldNet two(std::dynamic_pointer_cast<HeldNetImpl>(one->clone()));
  EmaModel fused(one, 0.9), apart(two, 0.9);
  for (int i = 0; i < 3; ++i) {
    fused.decay_weights_and_update(0.01);
    decay_weights(two, 0.01);
    apart.update();
  }
  CHECK(torch::allclose(one->dense->weight, two->dense->weight, 1e-6, 1e-7));
  CHECK(torch::equal(one->dense->bias, two->dense->bias));
  CHECK(torch::equal(one->norm->weight, torch::ones({2})));
  for (size_t i = 0; i < 4; ++i) {
    CHECK(
        torch::allclose(fused.named_parameters()[i].second, apart.named_parameters()[i].second, 1e-6, 1e-7));
  }
  CHECK(fused.named_parameters()[0].second.abs().sum().item<double>() < apart.options().decay() * 100);
  CHECK_THAT(error_of([&] { decay_weights(one, 2); }), contains("rate must be in [0, 1], got 2"));
}

TEST_CASE("EmaModel: an optimiser that moves the averages finds them, and tells of its updates") {
  HeldNet model, other;
  EmaModel copies(model, EmaModelOptions().decay(0.5)),
      averages(model, EmaModelOptions().decay(0.5).buffers(EmaBuffers::average)),
      keeps(model, EmaModelOptions().decay(0.5).buffers(EmaBuffers::keep));
  CHECK(copies.average_of(model->dense->weight).is_same(copies.named_parameters()[0].second));
  CHECK_FALSE(copies.average_of(other->dense->weight).defined());
  const Tensor start = model->dense->weight.detach().clone();
  {
    torch::NoGradGuard no_grad;
    model->dense->weight.add_(1);
  }
  model->dense->bias.set_requires_grad(false).fill_(3);
  const auto running_mean = [&](auto& ema) {
    auto scope = ema.average_parameters();
    return model->norm->running_mean[0].template item<float>();
  };
  model->norm->running_mean.fill_(4);
  for (auto* ema : {&copies, &averages, &keeps}) {
    ema->set_num_updates(7);
    CHECK(ema->num_updates() == 7);
    CHECK(torch::equal(ema->average_of(model->dense->weight), start));                // its own business
    CHECK(torch::equal(ema->average_of(model->dense->bias), torch::full({2}, 3.f)));  // frozen
  }
  CHECK(running_mean(copies) == 4);
  CHECK(running_mean(averages) == 2);
  CHECK(running_mean(keeps) == 0);
  // No update since: copies are of now all the same.
  model->norm->running_mean.fill_(6);
  for (auto* ema : {&copies, &averages, &keeps}) {
    ema->set_num_updates(7);
  }
  CHECK(running_mean(copies) == 6);
  CHECK(running_mean(averages) == 2);
  CHECK_THAT(error_of([&] { copies.set_num_updates(-1); }), contains("num_updates must be >= 0, got -1"));
  auto scope = copies.average_parameters();
  CHECK_THAT(error_of([&] { copies.set_num_updates(8); }), contains("average_parameters() is in effect"));
}

TEST_CASE("EmaModel: half-precision parameters are averaged in float32") {
  HeldNet model;
  model->to(at::kBFloat16);
  {
    torch::NoGradGuard no_grad;
    model->dense->weight.fill_(1);
  }
  EmaModel ema(model, EmaModelOptions().decay(0.999));
  {
    torch::NoGradGuard no_grad;
    model->dense->weight.fill_(2);
  }
  for (int i = 0; i < 100; ++i) {
    ema.update();
  }
  CHECK(ema.named_parameters()[0].second[0][0].item<double>() ==
        Approx(2 - std::pow(0.999, 100)).epsilon(1e-4));
}

TEST_CASE(
    "EmaModel: a forward between the student's forward and backward pass, autocast too, changes no "
    "gradient") {
  torch::manual_seed(9);
  HeldNet model;
  EmaModel ema(model, 0.5);
  {
    torch::NoGradGuard no_grad;
    model->dense->weight.add_(1);
  }
  const Tensor x = torch::randn({8, 3});
  const auto gradient = [&](bool teacher, at::ScalarType precision) {
    model->zero_grad();
    training::Autocast autocast(torch::kCPU, precision);
    if (teacher) {
      ema.forward(x);
    }
    const Tensor loss = model->forward(x).to(at::kFloat).mul(torch::arange(16.f).view({8, 2})).square().sum();
    if (teacher) {
      ema.forward(x);
    }
    loss.backward();
    return model->dense->weight.grad().clone();
  };
  for (const auto precision : {at::kFloat, at::kBFloat16}) {
    CHECK(torch::equal(gradient(true, precision), gradient(false, precision)));
  }
  auto scope = ema.average_parameters();
  CHECK_THAT(error_of([&] { ema.update(); }), contains("average_parameters() is in effect"));
}

TEST_CASE("EmaModel: averages that cannot be copied into the model leave it as it was, each time") {
  torch::nn::Linear model(2, 2);
  const Tensor before = model->weight.detach().clone();
  EmaModel ema(model, EmaModelOptions().device(torch::kMeta));  // which has no values
  for (int turn = 0; turn < 2; ++turn) {
    CHECK_THROWS(ema.forward(torch::ones({1, 2})));
    CHECK(torch::equal(model->weight, before));
  }
}

TEST_CASE("EmaModel: save and load, by archive and by torch::save") {
  torch::manual_seed(11);
  HeldNet model;
  EmaModel ema(model, 0.5);
  {
    torch::NoGradGuard no_grad;
    model->dense->weight.add_(1);
  }
  ema.update();
  std::stringstream stream;
  torch::save(ema, stream);
  HeldNet other;
  EmaModel restored(other, 0.5);
  torch::load(restored, stream);
  CHECK(restored.num_updates() == 1);
  for (size_t i = 0; i < 4; ++i) {
    CHECK(torch::equal(restored.named_parameters()[i].second, ema.named_parameters()[i].second));
  }
  auto plain = std::make_shared<PlainNet>();
  EmaModel foreign(plain, 0.5);
  std::stringstream again;
  torch::save(ema, again);
  const Tensor before = foreign.named_parameters()[0].second.clone();
  CHECK_THAT(error_of([&] { torch::load(foreign, again); }), contains("EmaModel::load"));
  CHECK(torch::equal(foreign.named_parameters()[0].second, before));
}
