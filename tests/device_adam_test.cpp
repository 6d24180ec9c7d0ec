#include <torch/optim/adam.h>
#include <torch/serialize.h>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/nn/channels_last.hpp>
#include <mixmatch/optim/device_adam.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <sstream>
#include <string>

namespace mm = mixmatch;
using mm::training::DeviceAdam;
using mm::training::DeviceAdamOptions;
using torch::Tensor;

namespace {

mm::models::WideResNet make_model(bool channels_last = true) {
  torch::manual_seed(3);
  mm::models::WideResNet model(mm::models::WideResNetOptions(3).depth(10).widen_factor(1));
  if (channels_last) {
    mm::training::to_channels_last(model);
  }
  return model;
}

void backward(mm::models::WideResNet& model, int64_t step) {
  torch::manual_seed(static_cast<uint64_t>(step));
  const Tensor images = at::randn({4, 3, 8, 8}).contiguous(at::MemoryFormat::ChannelsLast);
  model->forward(images).square().sum().backward();
}

}  // namespace

TEST_CASE("DeviceAdam is torch::optim::Adam, decay_weights() and EmaModel::update()") {
  for (const bool warmup : {true, false}) {
    auto model = make_model(), expected = make_model();
    mm::EmaModel<mm::models::WideResNet> ema(model, mm::EmaModelOptions(0.95).warmup(warmup));
    mm::EmaModel<mm::models::WideResNet> expected_ema(expected, mm::EmaModelOptions(0.95).warmup(warmup));
    DeviceAdam adam(model, ema, DeviceAdamOptions().learning_rate(0.01).weight_decay(0.5));
    torch::optim::Adam expected_adam(expected->parameters(), torch::optim::AdamOptions(0.01));
    for (int64_t step = 0; step < 5; ++step) {
      backward(expected, step);
      for (size_t i = 0; i < model->parameters().size(); ++i) {  // rounding must not grow from step to step
        model->parameters()[i].mutable_grad() = expected->parameters()[i].grad().clone();
      }
      expected_adam.step();
      expected_ema.decay_weights_and_update(0.01 * 0.5);
      expected_adam.zero_grad();
      CHECK(adam.step().item<bool>());
      CHECK_FALSE(model->parameters()[0].grad().defined());
    }
    CHECK(adam.synchronize(ema) == 5);
    CHECK(ema.num_updates() == 5);
    const auto mine = ema.named_parameters(), theirs = expected_ema.named_parameters();
    for (size_t i = 0; i < mine.size(); ++i) {
      INFO(mine[i].first);
      CHECK(at::allclose(model->parameters()[i], expected->parameters()[i], 1e-4, 1e-6));
      CHECK(at::allclose(mine[i].second, theirs[i].second, 1e-4, 1e-6));
      CHECK(model->parameters()[i].strides() == expected->parameters()[i].strides());
    }
  }
}

TEST_CASE("DeviceAdam's learning rate is a tensor, and every parameter begins at an aligned address") {
  auto model = make_model();
  mm::EmaModel<mm::models::WideResNet> ema(model);
  DeviceAdam adam(model, ema);
  const Tensor before = model->fc->weight.detach().clone();
  adam.learning_rate().fill_(0.0);
  backward(model, 0);
  adam.step();
  CHECK(model->fc->weight.equal(before));
  adam.learning_rate().fill_(0.1);
  backward(model, 0);
  adam.step();
  CHECK(at::allclose(model->fc->weight, before, 0, 0.11));
  CHECK((model->fc->weight - before).abs().max().item<double>() > 0.05);
  const auto* first = static_cast<const char*>(model->conv1->weight.data_ptr());
  for (const Tensor& parameter : model->parameters()) {
    CHECK((static_cast<const char*>(parameter.data_ptr()) - first) % 256 == 0);
  }
}

TEST_CASE("a DeviceAdam step with a gradient that is not finite is not taken") {
  auto model = make_model();
  mm::EmaModel<mm::models::WideResNet> ema(model);
  DeviceAdam adam(model, ema);
  backward(model, 0);
  adam.step();
  const Tensor weight = model->conv1->weight.detach().clone();
  const Tensor average = ema.named_parameters().front().second.clone();
  backward(model, 1);
  {
    const torch::NoGradGuard no_grad;
    model->fc->bias.mutable_grad()[0] = std::numeric_limits<float>::quiet_NaN();
  }
  CHECK_FALSE(adam.step().item<bool>());
  CHECK(model->conv1->weight.equal(weight));
  CHECK(ema.named_parameters().front().second.equal(average));
  CHECK(adam.num_steps().item<int64_t>() == 1);
}

TEST_CASE("parameters without a gradient, or frozen, stay where they are") {
  auto model = make_model();
  model->fc->bias.set_requires_grad(false);
  mm::EmaModel<mm::models::WideResNet> ema(model);
  DeviceAdam adam(model, ema);
  const Tensor frozen = model->fc->bias.detach().clone(), idle = model->bn1->bias.detach().clone();
  backward(model, 0);
  model->bn1->bias.mutable_grad().reset();
  adam.step();
  CHECK(model->fc->bias.equal(frozen));
  CHECK(model->bn1->bias.equal(idle));
}

TEST_CASE("DeviceAdam's file fits a model of another memory format, and refuses another model's") {
  auto model = make_model();
  mm::EmaModel<mm::models::WideResNet> ema(model);
  DeviceAdam adam(model, ema);
  for (int64_t step = 0; step < 3; ++step) {
    backward(model, step);
    adam.step();
  }
  std::stringstream file, ema_file, model_file;
  torch::serialize::OutputArchive archive;
  adam.save(archive);
  archive.save_to(file);
  torch::save(model, model_file);
  torch::save(ema, ema_file);

  auto other = make_model(false);
  torch::load(other, model_file);
  const torch::NoGradGuard no_grad;
  for (const Tensor& parameter : other->parameters()) {
    Tensor handle = parameter;
    handle.set_data(handle.contiguous());
  }
  mm::EmaModel<mm::models::WideResNet> other_ema(other);
  DeviceAdam resumed(other, other_ema);
  torch::load(other_ema, ema_file);
  torch::serialize::InputArchive input;
  input.load_from(file);
  resumed.load(input);
  CHECK(resumed.num_steps().item<int64_t>() == 3);
  for (size_t i = 0; i < model->parameters().size(); ++i) {
    const Tensor gradient = at::randn(model->parameters()[i].sizes());
    model->parameters()[i].mutable_grad() = gradient.clone();
    other->parameters()[i].mutable_grad() = gradient.clone();
  }
  adam.step();
  resumed.step();
  for (size_t i = 0; i < model->parameters().size(); ++i) {
    CHECK(model->parameters()[i].equal(other->parameters()[i]));
    CHECK(ema.named_parameters()[i].second.equal(other_ema.named_parameters()[i].second));
  }

  torch::nn::Linear linear(3, 3);
  mm::EmaModel<torch::nn::Linear> linear_ema(linear);
  DeviceAdam wrong(linear, linear_ema);
  std::stringstream again(file.str());
  torch::serialize::InputArchive second;
  second.load_from(again);
  CHECK_THAT(error_of([&] { wrong.load(second); }), contains("the model has 2 parameters, the archive"));
}

TEST_CASE("DeviceAdam names what does not fit") {
  auto model = make_model();
  mm::EmaModel<mm::models::WideResNet> ema(model);
  CHECK_THAT(error_of([&] { DeviceAdam(model, ema, DeviceAdamOptions().beta1(1)); }),
             contains("beta1 must be in [0, 1), got 1"));
  CHECK_THAT(error_of([&] { DeviceAdam(model, ema, DeviceAdamOptions().learning_rate(-1)); }),
             contains("learning_rate must be finite and >= 0, got -1"));
  mm::EmaModel<mm::models::WideResNet> averaging(model,
                                                 mm::EmaModelOptions().buffers(mm::EmaBuffers::average));
  CHECK_THAT(error_of([&] { DeviceAdam(model, averaging); }), contains("ema must copy or keep buffers"));
  torch::nn::Linear half(3, 3);
  half->to(at::kBFloat16);
  mm::EmaModel<torch::nn::Linear> half_ema(half);
  CHECK_THAT(error_of([&] { DeviceAdam(half, half_ema); }), contains("must be float32, got BFloat16"));
  DeviceAdam adam(model, ema);
  model->to(at::kDouble);
  CHECK_THAT(error_of([&] { adam.step(); }), contains("no longer lies in the optimiser's memory"));
}
