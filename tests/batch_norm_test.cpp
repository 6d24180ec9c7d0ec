#include <mixmatch/nn/batch_norm.hpp>

#include <cmath>

#include "catch.hpp"
#include "model_zoo.hpp"
#include "test_util.hpp"

using namespace mixmatch;

TEST_CASE("BatchNormFreeze: statistics stay, outputs and gradients are those without it") {
  torch::manual_seed(1);
  HeldNet model;
  const Tensor x = torch::randn({8, 3});
  model(x);  // away from the initial statistics
  const Tensor mean = model->norm->running_mean.clone(), var = model->norm->running_var.clone();
  const int64_t count = model->norm->num_batches_tracked.item<int64_t>();
  const Tensor free = model(x * 2);
  CHECK_FALSE(torch::equal(model->norm->running_mean, mean));
  free.square().sum().backward();
  const Tensor gradient = model->dense->weight.grad().clone();
  model->dense->weight.mutable_grad() = Tensor();
  {
    torch::NoGradGuard no_grad;
    model->norm->running_mean.copy_(mean);
    model->norm->running_var.copy_(var);
    model->norm->num_batches_tracked.fill_(count);
  }
  Tensor frozen;
  {
    BatchNormFreeze freeze(model);
    frozen = model(x * 2);
    CHECK(model->is_training());
  }
  CHECK(torch::equal(frozen, free));
  CHECK(torch::equal(model->norm->running_mean, mean));
  CHECK(torch::equal(model->norm->running_var, var));
  CHECK(model->norm->num_batches_tracked.item<int64_t>() == count);
  // The backward pass may come after the scope.
  frozen.square().sum().backward();
  CHECK(torch::equal(gradient, model->dense->weight.grad()));
}

TEST_CASE("BatchNormFreeze: nests, and keeps what the buffers alias") {
  HeldNet model;
  const void* memory = model->norm->running_mean.data_ptr();
  {
    BatchNormFreeze outer(model);
    {
      BatchNormFreeze inner(model);
      model(torch::randn({4, 3}));
    }
    model(torch::randn({4, 3}));
  }
  CHECK(model->norm->running_mean.data_ptr() == memory);
  CHECK(torch::equal(model->norm->running_mean, torch::zeros({2})));
}

TEST_CASE("BatchNormFreeze: a TorchScript module that rebinds its counter") {
  torch::jit::Module model = script_net();
  {
    BatchNormFreeze freeze(model);
    model.forward({torch::randn({4, 3})});
  }
  const auto norm = model.attr("norm").toModule();
  CHECK(norm.attr("num_batches_tracked").toTensor().item<int64_t>() == 0);
  CHECK(torch::equal(norm.attr("running_mean").toTensor(), torch::zeros({2})));
  model.forward({torch::randn({4, 3})});
  CHECK(norm.attr("num_batches_tracked").toTensor().item<int64_t>() == 1);
}

TEST_CASE("batch_norm_momentum: a plain average first, exponential later") {
  CHECK(batch_norm_momentum(0, 0.001) == 1);
  CHECK(batch_norm_momentum(1, 0.001) == Approx(1. / 2));
  CHECK(batch_norm_momentum(9, 0.001) == Approx(1. / 10));
  CHECK(batch_norm_momentum(999, 0.001) == Approx(0.001));
  CHECK(batch_norm_momentum(100000, 0.001) == 0.001);
  CHECK_THAT(error_of([] { batch_norm_momentum(-1, 0.1); }), contains("step must be >= 0, got -1"));
}

TEST_CASE("set_batch_norm_momentum: statistics over n batches are their mean") {
  torch::manual_seed(2);
  HeldNet model;
  Tensor sum = torch::zeros({2});
  for (int64_t step = 0; step < 5; ++step) {
    set_batch_norm_momentum(model, batch_norm_momentum(step, 0.001));
    const Tensor x = torch::randn({16, 3});
    model(x);
    sum += model->dense(x).mean(0).detach();
  }
  CHECK(torch::allclose(model->norm->running_mean, sum / 5, 1e-5, 1e-6));
  CHECK_THAT(error_of([&] { set_batch_norm_momentum(model, 1.5); }), contains("must be in [0, 1], got 1.5"));
}
