#include <torch/nn/modules.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/nn/channels_last.hpp>
#include <mixmatch/nn/precision.hpp>
#include <mixmatch/optim/low_precision_weights.hpp>
#include <mixmatch/optim/muon.hpp>
#include <mixmatch/optim/optimizer.hpp>
#include <mixmatch/run/checkpoint.hpp>

#include <ATen/Parallel.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "catch.hpp"
#include "cuda_emulation.hpp"
#include "model_zoo.hpp"
#include "simd_levels.hpp"
#include "test_util.hpp"

namespace mm = mixmatch;
using mm::training::AdamRule;
using mm::training::Optimizer;
using mm::training::OptimizerOptions;
using mm::training::SgdRule;
using mm::training::UpdateRule;
using torch::Tensor;

namespace cuda_emulation {
#include "cuda_optimizer.inc"
}

namespace {

/// Kernels and vectors of odd sizes, where large one of them long enough for several pieces.
torch::nn::Sequential optimizer_model(uint64_t seed, bool large = false) {
  torch::manual_seed(seed);
  return torch::nn::Sequential(torch::nn::Conv2d(3, large ? 21 : 5, 3),
                               torch::nn::BatchNorm2d(large ? 21 : 5),
                               torch::nn::Linear(large ? 21 : 7, large ? 1931 : 11), torch::nn::Linear(7, 1));
}

/// Gradients for the step, the same for every model of that shape; the last layer has none.
void fill_optimizer_gradients(torch::nn::Sequential& model, int64_t step) {
  torch::manual_seed(static_cast<uint64_t>(100 + step));
  const auto parameters = model->parameters();
  for (size_t i = 0; i + 2 < parameters.size(); ++i) {
    if (parameters[i].requires_grad()) {
      parameters[i].mutable_grad() =
          at::empty_like(parameters[i].detach()).copy_(at::randn(parameters[i].sizes(), at::kDouble));
    }
  }
}

double largest_optimizer_difference(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = (a[i].to(at::kDouble) - b[i].to(at::kDouble)).abs().max().item<double>();
    largest = std::isnan(difference) ? difference : std::max(largest, difference);
    if (std::isnan(difference)) {
      break;
    }
  }
  return largest;
}

/// The parameters, then their averages: copies.
template <class Model>
std::vector<Tensor> optimizer_results(const Model& model, const mm::EmaModel<Model>& ema) {
  std::vector<Tensor> copies;
  for (const auto& parameter : model->parameters()) {
    copies.push_back(parameter.detach().clone());
  }
  for (const auto& [name, average] : ema.named_parameters()) {
    copies.push_back(average.clone());
  }
  return copies;
}

std::vector<Tensor> optimizer_copies(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> copies;
  for (const Tensor& tensor : tensors) {
    copies.push_back(tensor.detach().clone());
  }
  return copies;
}

const std::vector<UpdateRule> kAllRules{AdamRule{}, AdamRule{0.8, 0.95, 1e-3}, AdamRule{0, 0, 1e-2},
                                        SgdRule{},  SgdRule{0.8, false},       SgdRule{0, false}};
const std::vector<UpdateRule> kBothRules{AdamRule{}, SgdRule{}};

std::string name_of(const UpdateRule& rule) {
  if (const auto* adam = std::get_if<AdamRule>(&rule)) {
    return c10::str("adam ", adam->beta1, " ", adam->beta2, " ", adam->eps);
  }
  const auto& sgd = std::get<SgdRule>(rule);
  return c10::str("sgd ", sgd.momentum, sgd.nesterov ? " nesterov" : "");
}

/// Where a step runs: the CPU's own pass, or what a device does, by the CUDA kernels or by ATen's calls.
enum class OptimizerPath { cpu, kernels, aten };
const std::vector<OptimizerPath> kAllPaths{OptimizerPath::cpu, OptimizerPath::kernels, OptimizerPath::aten};

/// An optimiser that is made while a device is emulated goes a device's way from then on.
template <class... Arguments>
std::unique_ptr<Optimizer> make_optimizer(OptimizerPath path, Arguments&&... arguments) {
  struct Guard {
    explicit Guard(bool emulated) { mm::detail::cuda_is_emulated() = emulated; }
    ~Guard() { mm::detail::cuda_is_emulated() = false; }
  } const guard(path != OptimizerPath::cpu);
  return std::make_unique<Optimizer>(std::forward<Arguments>(arguments)...);
}

bool step_on(OptimizerPath path, Optimizer& optimizer) {
  if (path != OptimizerPath::kernels) {
    return optimizer.step().item<bool>();
  }
  namespace emulated = cuda_emulation;
  emulated::EmulatedDevice device;
  device.add("adam_step<float>", emulated::adam_step<float>);
  device.add("adam_step<double>", emulated::adam_step<double>);
  device.add("sgd_step<float>", emulated::sgd_step<float>);
  device.add("sgd_step<double>", emulated::sgd_step<double>);
  device.add("gather_gradients<float>", emulated::gather_gradients<float>);
  device.add("gather_gradients<double>", emulated::gather_gradients<double>);
  device.add("begin_step<double>", emulated::begin_step<double>);
  const bool finite = optimizer.step().item<bool>();
  CHECK(device.launches() == 3);
  return finite;
}

/// LibTorch's optimiser, in which a parameter without a gradient has one of 0 and kernels alone have the
/// penalty; then decay_weights() and EmaModel::update().
template <class Model>
class OptimizerReference {
 public:
  OptimizerReference(Model& model, const OptimizerOptions& options, const mm::EmaModelOptions& ema_options)
      : ema(model, ema_options), model_(model), options_(options) {
    std::vector<torch::optim::OptimizerParamGroup> groups;
    for (const bool kernels : {true, false}) {
      std::vector<Tensor> parameters;
      for (const auto& item : mm::detail::model_parameters(model)) {
        if (item.tensor.requires_grad() && (item.tensor.dim() >= 2) == kernels) {
          parameters.push_back(item.tensor);
          parameters_.push_back(item.tensor);
        }
      }
      groups.push_back(group(parameters, kernels ? options.l2() : 0));
    }
    if (std::holds_alternative<AdamRule>(options.rule())) {
      optimizer_ = std::make_unique<torch::optim::Adam>(groups, torch::optim::AdamOptions());
    } else {
      optimizer_ = std::make_unique<torch::optim::SGD>(groups, torch::optim::SGDOptions(1));
    }
  }

  void step() {
    for (const Tensor& parameter : parameters_) {
      if (!parameter.grad().defined()) {
        parameter.mutable_grad() = at::zeros_like(parameter);
      }
    }
    optimizer_->step();
    mm::decay_weights(model_, options_.learning_rate() * options_.weight_decay());
    ema.update();
    for (const Tensor& parameter : parameters_) {
      parameter.mutable_grad().reset();
    }
  }

  mm::EmaModel<Model> ema;

 private:
  torch::optim::OptimizerParamGroup group(const std::vector<Tensor>& parameters, double l2) const {
    const double rate = options_.learning_rate();
    std::unique_ptr<torch::optim::OptimizerOptions> options;
    if (const auto* adam = std::get_if<AdamRule>(&options_.rule())) {
      options = std::make_unique<torch::optim::AdamOptions>(
          torch::optim::AdamOptions(rate).betas({adam->beta1, adam->beta2}).eps(adam->eps).weight_decay(l2));
    } else {
      const auto& sgd = std::get<SgdRule>(options_.rule());
      options = std::make_unique<torch::optim::SGDOptions>(
          torch::optim::SGDOptions(rate).momentum(sgd.momentum).nesterov(sgd.nesterov).weight_decay(l2));
    }
    return {parameters, std::move(options)};
  }

  Model& model_;
  OptimizerOptions options_;
  std::vector<Tensor> parameters_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
};

/// A Wide ResNet, channels-last or not, and its gradients of a batch.
mm::models::WideResNet optimizer_network(bool channels_last = true) {
  torch::manual_seed(3);
  mm::models::WideResNet model(mm::models::WideResNetOptions(3).depth(10).widen_factor(1));
  if (channels_last) {
    mm::training::to_channels_last(model);
  }
  return model;
}

void backward_of_batch(mm::models::WideResNet& model, int64_t step) {
  torch::manual_seed(static_cast<uint64_t>(step));
  const Tensor images = at::randn({4, 3, 8, 8}).contiguous(at::MemoryFormat::ChannelsLast);
  model->forward(images).square().sum().backward();
}

std::string saved_optimizer(const Optimizer& optimizer) {
  std::ostringstream file;
  torch::serialize::OutputArchive archive;
  optimizer.save(archive);
  archive.save_to(file);
  return file.str();
}

void load_optimizer(Optimizer& optimizer, const std::string& bytes) {
  std::istringstream file(bytes);
  torch::serialize::InputArchive archive;
  archive.load_from(file);
  optimizer.load(archive);
}

/// orthogonalize() by singular values: what its iteration makes of each, between the same vectors.
Tensor orthogonalized_by_svd(const Tensor& matrix) {
  const auto [left, values, right] = at::linalg_svd(matrix.to(at::kDouble), /*full_matrices=*/false);
  Tensor x = values / values.square().sum().sqrt().clamp_min(1e-7);
  for (int i = 0; i < 5; ++i) {
    x = 3.4445 * x - 4.7750 * x.pow(3) + 2.0315 * x.pow(5);
  }
  return left.matmul(x.diag()).matmul(right);
}

}  // namespace

TEST_CASE("Optimizer: a weight and a bias, by hand in double precision") {
  for (const auto path : kAllPaths) {
    for (const UpdateRule& rule : kAllRules) {
      for (const bool warmup : {false, true}) {
        INFO(name_of(rule) << ", warm-up " << warmup << ", path " << static_cast<int>(path));
        torch::nn::Linear model(1, 1);
        model->to(at::kDouble);
        {
          const torch::NoGradGuard no_grad;
          model->weight.fill_(2);
          model->bias.fill_(3);
        }
        mm::EmaModel ema(model, mm::EmaModelOptions(0.3).warmup(warmup));
        const double rate = 0.01, decay = 5, l2 = 0.5;
        const auto optimizer =
            make_optimizer(path, model, ema, OptimizerOptions(rate).rule(rule).weight_decay(decay).l2(l2));
        double w[2] = {2, 3}, m[2] = {0, 0}, v[2] = {0, 0}, mean[2] = {2, 3};
        for (int step = 1; step <= 6; ++step) {
          const double x = 0.25 * step;
          model(at::full({1, 1}, x, at::kDouble)).square().sum().backward();
          const double y = w[0] * x + w[1];
          const double g[2] = {2 * y * x + l2 * w[0], 2 * y};
          for (int i = 0; i < 2; ++i) {
            if (const auto* adam = std::get_if<AdamRule>(&rule)) {
              m[i] = adam->beta1 * m[i] + (1 - adam->beta1) * g[i];
              v[i] = adam->beta2 * v[i] + (1 - adam->beta2) * g[i] * g[i];
              w[i] -= rate * (m[i] / (1 - std::pow(adam->beta1, step))) /
                      (std::sqrt(v[i] / (1 - std::pow(adam->beta2, step))) + adam->eps);
            } else {
              const auto& sgd = std::get<SgdRule>(rule);
              m[i] = sgd.momentum * m[i] + g[i];
              w[i] -= rate * (sgd.nesterov ? g[i] + sgd.momentum * m[i] : m[i]);
            }
          }
          w[0] *= 1 - rate * decay;
          // Updates before this one: step - 1. From the fourth on, (1 + n) / (10 + n) is more than 0.3.
          const double keep = warmup ? std::min(0.3, double(step) / (9 + step)) : 0.3;
          for (int i = 0; i < 2; ++i) {
            mean[i] = keep * mean[i] + (1 - keep) * w[i];
          }
          CHECK(step_on(path, *optimizer));
          CHECK(model->weight.item<double>() == Approx(w[0]).epsilon(1e-11));
          CHECK(model->bias.item<double>() == Approx(w[1]).epsilon(1e-11));
          CHECK(ema.named_parameters()[0].second.item<double>() == Approx(mean[0]).epsilon(1e-11));
          CHECK(ema.named_parameters()[1].second.item<double>() == Approx(mean[1]).epsilon(1e-11));
          CHECK_FALSE(model->weight.grad().defined());
          CHECK_FALSE(model->bias.grad().defined());
        }
        CHECK(optimizer->num_steps().item<int64_t>() == 6);
        CHECK(optimizer->synchronize() == 6);
        CHECK(ema.num_updates() == 6);
      }
    }
  }
}

TEST_CASE("Optimizer: equals LibTorch's, then decay of kernels, then the moving average") {
  const auto type = GENERATE(at::kFloat, at::kDouble);
  const bool last = GENERATE(false, true);
  for (const auto level : simd_levels()) {
    const SimdLevelGuard guard(level);
    for (size_t r = 0; r < kAllRules.size(); ++r) {
      INFO(name_of(kAllRules[r]) << ", " << type << ", channels-last " << last << ", level "
                                 << static_cast<int>(level));
      auto model = optimizer_model(1, true), plain = optimizer_model(1, true);
      model->to(type);
      plain->to(at::kDouble);
      if (last) {
        mm::training::to_channels_last(model);
      }
      model->parameters()[1].set_requires_grad(false);
      plain->parameters()[1].set_requires_grad(false);
      const auto start = optimizer_copies(model->parameters());
      const auto options =
          OptimizerOptions(0.01).rule(kAllRules[r]).weight_decay(0.3).l2(r % 2 == 0 ? 0.2 : 0);
      const auto averaging = mm::EmaModelOptions(0.95).warmup(r % 3 == 0);
      mm::EmaModel ema(model, averaging);
      Optimizer optimizer(model, ema, options);
      CHECK(largest_optimizer_difference(start, model->parameters()) == 0);
      CHECK(model->parameters()[0].is_contiguous(at::MemoryFormat::ChannelsLast) == last);
      OptimizerReference reference(plain, options, averaging);
      for (int64_t step = 0; step < 6; ++step) {
        fill_optimizer_gradients(model, step);
        fill_optimizer_gradients(plain, step);
        CHECK(optimizer.step().item<bool>());
        reference.step();
        CHECK_FALSE(model->parameters()[0].grad().defined());
        CHECK(ema.num_updates() == step + 1);
      }
      CHECK(largest_optimizer_difference(optimizer_results(model, ema),
                                         optimizer_results(plain, reference.ema)) <
            (type == at::kDouble ? 1e-12 : 5e-6));
      CHECK(model->parameters()[1].equal(start[1]));  // frozen
      if (options.l2() == 0) {                        // the last layer had no gradient, but its kernel decays
        CHECK(at::allclose(model->parameters()[6], start[6] * std::pow(1 - 0.003, 6)));
        CHECK(model->parameters()[7].equal(start[7]));
      }
    }
  }
}

TEST_CASE("Optimizer: a device's kernels and ATen's calls do the same") {
  for (const auto path : {OptimizerPath::kernels, OptimizerPath::aten}) {
    for (const auto type : {at::kFloat, at::kDouble}) {
      for (size_t r = 0; r < kAllRules.size(); ++r) {
        INFO(name_of(kAllRules[r]) << ", " << type << ", path " << static_cast<int>(path));
        auto model = optimizer_model(1), plain = optimizer_model(1);
        model->to(type);
        plain->to(at::kDouble);
        if (r % 2 == 0) {
          mm::training::to_channels_last(model);
        }
        model->parameters()[1].set_requires_grad(false);
        plain->parameters()[1].set_requires_grad(false);
        const auto options =
            OptimizerOptions(0.01).rule(kAllRules[r]).weight_decay(0.3).l2(r % 2 == 0 ? 0.2 : 0);
        const auto averaging = mm::EmaModelOptions(0.25).warmup(r % 3 == 0);
        mm::EmaModel ema(model, averaging);
        const auto optimizer = make_optimizer(path, model, ema, options);
        OptimizerReference reference(plain, options, averaging);
        for (int64_t step = 0; step < 6; ++step) {
          fill_optimizer_gradients(model, step);
          fill_optimizer_gradients(plain, step);
          CHECK(step_on(path, *optimizer));
          reference.step();
        }
        CHECK(largest_optimizer_difference(optimizer_results(model, ema),
                                           optimizer_results(plain, reference.ema)) <
              (type == at::kDouble ? 1e-12 : 5e-6));
      }
    }
  }
}

TEST_CASE("Optimizer: a factor on a parameter's learning rate is that learning rate") {
  const auto factor = [](const std::string& name) {
    return name.rfind("0.", 0) == 0 ? 0.1 : name == "2.weight" ? 3.0 : name == "2.bias" ? 0.0 : 1.0;
  };
  for (const auto path : kAllPaths) {
    for (const auto type : {at::kFloat, at::kDouble}) {
      for (const UpdateRule& rule : kBothRules) {
        INFO(name_of(rule) << ", " << type << ", path " << static_cast<int>(path));
        const auto options = OptimizerOptions(0.01).rule(rule).weight_decay(0.3).l2(0.2);
        const auto averaging = mm::EmaModelOptions(0.25);
        const auto train = [&](const OptimizerOptions& own) {
          auto model = optimizer_model(4);
          model->to(type);
          mm::EmaModel ema(model, averaging);
          const auto optimizer = make_optimizer(path, model, ema, own);
          for (int64_t step = 0; step < 4; ++step) {
            fill_optimizer_gradients(model, step);
            CHECK(step_on(path, *optimizer));
          }
          return optimizer_results(model, ema);
        };
        const auto mine = train(OptimizerOptions(options).rate_factor(factor));
        auto model = optimizer_model(4);
        const auto names = model->named_parameters().keys();
        REQUIRE(mine.size() == 2 * names.size());
        for (const double value : {0.1, 3.0, 0.0, 1.0}) {
          const auto theirs = train(OptimizerOptions(options).learning_rate(0.01 * value));
          for (size_t i = 0; i < mine.size(); ++i) {
            if (factor(names[i % names.size()]) == value) {
              CHECK(at::allclose(mine[i], theirs[i], 0, type == at::kDouble ? 1e-12 : 5e-6));
            }
          }
        }
      }
    }
  }
}

TEST_CASE("Optimizer: a network's own gradients") {
  for (const auto path : {OptimizerPath::cpu, OptimizerPath::aten}) {
    for (const UpdateRule& rule : kBothRules) {
      auto model = optimizer_network(), expected = optimizer_network();
      const auto options = OptimizerOptions(0.01).rule(rule).weight_decay(0.5);
      const auto averaging = mm::EmaModelOptions(0.95).warmup(path == OptimizerPath::cpu);
      mm::EmaModel ema(model, averaging);
      const auto optimizer = make_optimizer(path, model, ema, options);
      OptimizerReference reference(expected, options, averaging);
      for (int64_t step = 0; step < 4; ++step) {
        backward_of_batch(expected, step);
        for (size_t i = 0; i < model->parameters().size(); ++i) {  // rounding must not grow with the steps
          model->parameters()[i].mutable_grad() = expected->parameters()[i].grad().clone();
        }
        reference.step();
        CHECK(step_on(path, *optimizer));
        for (const Tensor& parameter : model->parameters()) {
          CHECK_FALSE(parameter.grad().defined());
        }
      }
      CHECK(optimizer->synchronize() == 4);
      CHECK(ema.num_updates() == 4);
      const auto mine = optimizer_results(model, ema), theirs = optimizer_results(expected, reference.ema);
      for (size_t i = 0; i < mine.size(); ++i) {
        INFO(name_of(rule) << ", result " << i);
        CHECK(at::allclose(mine[i], theirs[i], 1e-4, 1e-6));
      }
      for (size_t i = 0; i < model->parameters().size(); ++i) {
        CHECK(model->parameters()[i].strides() == expected->parameters()[i].strides());
      }
    }
  }
}

TEST_CASE("Optimizer: a TorchScript module") {
  for (const UpdateRule& rule : kBothRules) {
    torch::manual_seed(4);
    auto model = script_net();
    torch::manual_seed(4);
    auto plain = script_net();
    const auto options = OptimizerOptions(0.01).rule(rule).weight_decay(0.5).l2(0.1);
    mm::EmaModel ema(model, 0.9);
    Optimizer optimizer(model, ema, options);
    OptimizerReference reference(plain, options, mm::EmaModelOptions(0.9));
    for (int64_t step = 0; step < 3; ++step) {
      const Tensor x = at::randn({5, 3}), factors = at::arange(10).view({5, 2});
      (model.forward({x}).toTensor() * factors).square().sum().backward();
      (plain.forward({x}).toTensor() * factors).square().sum().backward();
      CHECK(optimizer.step().item<bool>());
      reference.step();
    }
    for (const char* name : {"weight", "bias"}) {
      CHECK(at::allclose(model.attr(name).toTensor(), plain.attr(name).toTensor(), 1e-4, 1e-5));
    }
    for (size_t i = 0; i < 2; ++i) {
      CHECK(at::allclose(ema.named_parameters()[i].second, reference.ema.named_parameters()[i].second, 1e-4,
                         1e-5));
    }
  }
}

TEST_CASE("Optimizer: a layer that stands in the network twice moves once a step") {
  const auto tied = [] {
    torch::manual_seed(5);
    torch::nn::Linear layer(9, 9);
    return torch::nn::Sequential(layer, torch::nn::Tanh(), layer);
  };
  for (const auto path : kAllPaths) {
    for (const UpdateRule& rule : kBothRules) {
      auto model = tied(), plain = tied();
      const auto options = OptimizerOptions(0.01).rule(rule).weight_decay(0.3).l2(0.1);
      mm::EmaModel ema(model, 0.95);
      const auto optimizer = make_optimizer(path, model, ema, options);
      OptimizerReference reference(plain, options, mm::EmaModelOptions(0.95));
      for (int64_t step = 0; step < 4; ++step) {
        const Tensor x = at::randn({4, 9});
        model->forward(x).square().sum().backward();
        plain->forward(x).square().sum().backward();
        CHECK(step_on(path, *optimizer));
        reference.step();
      }
      CHECK(largest_optimizer_difference(optimizer_results(model, ema),
                                         optimizer_results(plain, reference.ema)) < 1e-5);
    }
  }
}

TEST_CASE("Optimizer: decay and penalty are of kernels, not of embeddings, norms or biases") {
  for (const auto path : kAllPaths) {
    for (const bool decoupled : {true, false}) {
      torch::nn::Sequential model(torch::nn::Embedding(5, 3),
                                  torch::nn::LayerNorm(torch::nn::LayerNormOptions({2, 3})),
                                  torch::nn::Linear(3, 2));
      const auto before = optimizer_copies(model->parameters());
      const auto optimizer = make_optimizer(path, model,
                                            OptimizerOptions(0.1)
                                                .rule(SgdRule{0, false})
                                                .weight_decay(decoupled ? 2 : 0)
                                                .l2(decoupled ? 0 : 3));
      CHECK(step_on(path, *optimizer));  // by gradients of 0
      const auto names = model->named_parameters().keys();
      for (size_t i = 0; i < before.size(); ++i) {
        INFO(names[i] << ", path " << static_cast<int>(path));
        const double factor = names[i] != "2.weight" ? 1 : decoupled ? 0.8 : 0.7;
        CHECK(at::allclose(model->parameters()[i], before[i] * factor));
      }
    }
  }
}

TEST_CASE("Optimizer: a missing gradient counts as one of 0, a frozen parameter stays") {
  for (const auto path : kAllPaths) {
    for (const UpdateRule& rule : kBothRules) {
      auto model = optimizer_model(10), given = optimizer_model(10);
      for (auto* one : {&model, &given}) {
        (*one)->parameters()[1].set_requires_grad(false);
      }
      mm::EmaModel ema(model, 0.9), given_ema(given, 0.9);
      const auto options = OptimizerOptions(0.01).rule(rule).weight_decay(0.3).l2(0.1);
      const auto optimizer = make_optimizer(path, model, ema, options),
                 given_optimizer = make_optimizer(path, given, given_ema, options);
      const Tensor frozen = model->parameters()[1].detach().clone();
      for (int64_t step = 0; step < 4; ++step) {
        const Tensor moving = model->parameters()[2].detach().clone();
        fill_optimizer_gradients(model, step);
        fill_optimizer_gradients(given, step);
        if (step > 0) {
          for (const size_t i : {size_t{0}, size_t{2}}) {
            model->parameters()[i].mutable_grad().reset();
            given->parameters()[i].mutable_grad().zero_();
          }
        }
        for (const size_t i : {size_t{6}, size_t{7}}) {
          given->parameters()[i].mutable_grad() = at::zeros_like(given->parameters()[i]);
        }
        CHECK(step_on(path, *optimizer));
        CHECK(step_on(path, *given_optimizer));
        CHECK_FALSE(model->parameters()[2].equal(moving));  // the moments of its one gradient move it still
      }
      CHECK(largest_optimizer_difference(optimizer_results(model, ema),
                                         optimizer_results(given, given_ema)) == 0);
      CHECK(model->parameters()[1].equal(frozen));
      CHECK(ema.named_parameters()[1].second.equal(frozen));
      // The frozen parameter's average is what the model has.
      model->parameters()[1].fill_(7);
      CHECK(step_on(path, *optimizer));
      optimizer->synchronize();
      CHECK(ema.named_parameters()[1].second.eq(7).all().item<bool>());
      // No gradient at all is a step by gradients of 0.
      CHECK(optimizer->num_steps().item<int64_t>() == 5);
    }
  }
}

TEST_CASE("Optimizer: gradients that are not finite change nothing and do not count") {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const auto path : kAllPaths) {
    const bool large = path == OptimizerPath::cpu;
    for (const auto type : {at::kFloat, at::kDouble}) {
      for (const UpdateRule& rule : kBothRules) {
        INFO(name_of(rule) << ", " << type << ", path " << static_cast<int>(path));
        auto model = optimizer_model(6, large), untroubled = optimizer_model(6, large);
        model->to(type);
        untroubled->to(type);
        mm::EmaModel ema(model), untroubled_ema(untroubled);
        const auto options = OptimizerOptions(0.01).rule(rule).weight_decay(0.02).l2(0.1);
        const auto optimizer = make_optimizer(path, model, ema, options),
                   other = make_optimizer(path, untroubled, untroubled_ema, options);
        const auto good_steps = [&](int64_t step) {
          fill_optimizer_gradients(model, step);
          fill_optimizer_gradients(untroubled, step);
          CHECK(step_on(path, *optimizer));
          CHECK(step_on(path, *other));
        };
        good_steps(0);
        const auto before = optimizer_copies(optimizer->state());
        const auto size = model->parameters()[4].numel();
        for (const double bad : {std::nan(""), infinity, -infinity}) {
          for (const int64_t place : {int64_t{0}, size / 2, size - 1}) {
            fill_optimizer_gradients(model, 1);
            model->parameters()[4].mutable_grad().view({-1})[place] = bad;
            model[1]->as<torch::nn::BatchNorm2d>()->running_mean.fill_(bad);
            CHECK_FALSE(step_on(path, *optimizer));
            CHECK_FALSE(model->parameters()[4].grad().defined());
          }
        }
        CHECK(largest_optimizer_difference(before, optimizer->state()) == 0);
        CHECK(optimizer->num_steps().item<int64_t>() == 1);
        if (path == OptimizerPath::cpu) {
          CHECK(ema.num_updates() == 1);
          auto scope = ema.average_parameters();  // buffers too are as they were
          CHECK(model[1]->as<torch::nn::BatchNorm2d>()->running_mean.isfinite().all().item<bool>());
        }
        // And the next good step is as if the bad ones had never been.
        good_steps(2);
        CHECK(largest_optimizer_difference(optimizer->state(), other->state()) == 0);
        CHECK(optimizer->synchronize() == 2);
        CHECK(ema.num_updates() == 2);
      }
    }
  }
}

TEST_CASE("Optimizer: finite gradients of any size are a step on the CPU") {
  auto model = optimizer_model(7, true);
  Optimizer optimizer(model, OptimizerOptions(0).rule(SgdRule{}));
  for (const Tensor& parameter : model->parameters()) {
    parameter.mutable_grad() = at::full_like(parameter, std::numeric_limits<float>::max());
  }
  CHECK(optimizer.step().item<bool>());  // their sum is not finite
}

TEST_CASE("Optimizer: the same bits with any number of threads") {
  const int before = at::get_num_threads();
  for (const UpdateRule& rule : kBothRules) {
    std::vector<std::vector<Tensor>> results;
    for (const int threads : {1, 2, 3}) {
      at::set_num_threads(threads);
      auto model = optimizer_model(3, true);
      mm::EmaModel ema(model);
      Optimizer optimizer(model, ema, OptimizerOptions(0.01).rule(rule).weight_decay(0.02).l2(0.1));
      for (int64_t step = 0; step < 3; ++step) {
        fill_optimizer_gradients(model, step);
        optimizer.step();
      }
      results.push_back(optimizer_results(model, ema));
    }
    CHECK(largest_optimizer_difference(results[0], results[1]) == 0);
    CHECK(largest_optimizer_difference(results[0], results[2]) == 0);
  }
  at::set_num_threads(before);
}

TEST_CASE("Optimizer: gradients of other strides") {
  for (const auto path : kAllPaths) {
    for (const bool last : {false, true}) {
      auto strided = optimizer_model(8), dense = optimizer_model(8);
      if (last) {
        mm::training::to_channels_last(strided);
        mm::training::to_channels_last(dense);
      }
      const auto strided_optimizer = make_optimizer(path, strided),
                 dense_optimizer = make_optimizer(path, dense);
      fill_optimizer_gradients(strided, 0);
      fill_optimizer_gradients(dense, 0);
      Tensor& kernel = strided->parameters()[0].mutable_grad();
      kernel = kernel.contiguous(last ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast);
      Tensor& matrix = strided->parameters()[4].mutable_grad();
      matrix = matrix.t().contiguous().t();
      strided->parameters()[5].mutable_grad() = at::full({1}, 0.5f).expand({11});
      dense->parameters()[5].mutable_grad() = at::full({11}, 0.5f);
      // A part of a longer tensor.
      strided->parameters()[2].mutable_grad() = at::arange(9).to(at::kFloat).narrow(0, 3, 5);
      dense->parameters()[2].mutable_grad() = at::arange(3, 8).to(at::kFloat);
      CHECK(step_on(path, *strided_optimizer));
      CHECK(step_on(path, *dense_optimizer));
      CHECK(largest_optimizer_difference(strided->parameters(), dense->parameters()) == 0);
    }
  }
}

TEST_CASE(
    "Optimizer: the gradient of a 1x1 kernel is read where it lies, whatever strides the sides of 1 have") {
  static int64_t copies = 0;  // a callback has no state of its own
  const auto count = [](const at::RecordFunction& function) -> std::unique_ptr<at::ObserverContext> {
    copies += std::string(function.name()) == "aten::copy_" ? 1 : 0;
    return nullptr;
  };
  for (const auto path : kAllPaths) {
    std::vector<Tensor> weights;
    std::vector<int64_t> counts;
    // As a weight has them, and as cuDNN's channels-last gradients do.
    for (const auto& strides : {std::vector<int64_t>{8, 1, 1, 1}, std::vector<int64_t>{8, 1, 8, 8}}) {
      torch::manual_seed(1);
      torch::nn::Conv2d conv(torch::nn::Conv2dOptions(8, 4, 1).bias(false));
      const auto optimizer = make_optimizer(path, conv);
      conv->weight.mutable_grad() =
          at::empty_strided({4, 8, 1, 1}, strides).copy_(at::arange(32).to(at::kFloat).view({4, 8, 1, 1}));
      copies = 0;
      const auto handle = at::addThreadLocalCallback(at::RecordFunctionCallback(+count));
      CHECK(step_on(path, *optimizer));
      at::removeCallback(handle);
      counts.push_back(copies);
      weights.push_back(conv->weight.detach().clone());
    }
    CHECK(counts[1] == counts[0]);
    CHECK(weights[1].equal(weights[0]));
  }
}

TEST_CASE("Optimizer: parameters keep name, value, strides and graph, in one block at aligned addresses") {
  for (const auto path : {OptimizerPath::cpu, OptimizerPath::aten}) {
    auto model = optimizer_model(2);
    mm::training::to_channels_last(model);
    {
      const torch::NoGradGuard no_grad;  // of two rows' distance: not dense
      model->parameters()[4].set_data(at::randn({11, 14}).slice(1, 0, 14, 2));
    }
    mm::EmaModel ema(model);
    const auto before = optimizer_results(model, ema);
    const auto optimizer = make_optimizer(path, model, ema);
    CHECK(largest_optimizer_difference(before, optimizer_results(model, ema)) == 0);
    const auto parameters = model->parameters();
    CHECK(parameters[0].is_contiguous(at::MemoryFormat::ChannelsLast));
    for (size_t i = 0; i < parameters.size(); ++i) {
      CHECK(parameters[i].is_alias_of(parameters[0]));
      CHECK(parameters[i].is_leaf());
      CHECK(parameters[i].requires_grad());
      CHECK(parameters[i].is_non_overlapping_and_dense());
      const auto* address = static_cast<const char*>(parameters[i].data_ptr());
      CHECK((address - static_cast<const char*>(parameters[0].data_ptr())) % 256 == 0);
      const Tensor average = ema.named_parameters()[i].second;
      CHECK(average.strides() == parameters[i].strides());
      CHECK(average.is_alias_of(ema.named_parameters()[0].second));
    }
  }
}

TEST_CASE("Optimizer: autograd sees every change") {
  auto model = optimizer_model(2);
  mm::EmaModel ema(model);
  Optimizer optimizer(model, ema);
  const Tensor x = at::randn({2, 7}).requires_grad_();
  const Tensor y = model[2]->as<torch::nn::Linear>()->forward(x);
  const Tensor z = (at::ones({11, 7}).requires_grad_() * ema.named_parameters()[4].second).sum();
  const auto backward = [](const Tensor& root) { root.sum().backward({}, /*retain_graph=*/true); };
  backward(y);
  backward(z);
  fill_optimizer_gradients(model, 0);
  model->parameters()[0].mutable_grad()[0][0][0][0] = std::nan("");
  CHECK_FALSE(optimizer.step().item<bool>());
  backward(y);  // nothing has changed yet
  fill_optimizer_gradients(model, 0);
  CHECK(optimizer.step().item<bool>());
  CHECK_THROWS_AS(backward(y), c10::Error);  // the weight that y was made with is gone
  CHECK_THROWS_AS(backward(z), c10::Error);  // and z's average
}

TEST_CASE("Optimizer: the learning rate is a tensor") {
  for (const auto path : kAllPaths) {
    for (const UpdateRule& rule : kBothRules) {
      auto model = optimizer_model(2), other = optimizer_model(2);
      const auto options = OptimizerOptions().rule(rule).weight_decay(0.5).l2(0.1);
      const auto optimizer = make_optimizer(path, model, OptimizerOptions(options).learning_rate(0.002));
      const auto fixed = make_optimizer(path, other, OptimizerOptions(options).learning_rate(0.1));
      CHECK(optimizer->learning_rate().scalar_type() == at::kDouble);
      CHECK(optimizer->learning_rate().item<double>() == 0.002);
      CHECK(optimizer->options().learning_rate() == 0.002);
      const auto before = optimizer_copies(model->parameters());
      optimizer->learning_rate().fill_(0);
      fixed->learning_rate().fill_(0);
      for (int64_t step = 0; step < 2; ++step) {  // decay goes with it
        fill_optimizer_gradients(model, step);
        fill_optimizer_gradients(other, step);
        CHECK(step_on(path, *optimizer));
        CHECK(step_on(path, *fixed));
      }
      CHECK(largest_optimizer_difference(before, model->parameters()) == 0);
      optimizer->learning_rate().copy_(at::full({}, 0.1, at::kDouble));
      fixed->learning_rate().fill_(0.1);
      fill_optimizer_gradients(model, 2);
      fill_optimizer_gradients(other, 2);
      CHECK(step_on(path, *optimizer));
      CHECK(step_on(path, *fixed));
      CHECK(largest_optimizer_difference(before, model->parameters()) > 0.05);
      CHECK(largest_optimizer_difference(other->parameters(), model->parameters()) == 0);
    }
  }
}

TEST_CASE("Optimizer: an average's decay of 0 copies and of 1 keeps, whatever it holds") {
  for (const auto path : kAllPaths) {
    const bool large = path == OptimizerPath::cpu;
    for (const UpdateRule& rule : kBothRules) {
      for (const double decay : {0.0, 1.0}) {
        INFO(name_of(rule) << ", decay " << decay << ", path " << static_cast<int>(path));
        auto model = optimizer_model(11, large);
        mm::EmaModel ema(model, mm::EmaModelOptions(decay));
        const auto optimizer =
            make_optimizer(path, model, ema, OptimizerOptions().rule(rule).weight_decay(0.02));
        for (const auto& [name, average] : ema.named_parameters()) {
          average.fill_(std::numeric_limits<double>::infinity());
        }
        fill_optimizer_gradients(model, 0);
        CHECK(step_on(path, *optimizer));
        for (size_t i = 0; i < model->parameters().size(); ++i) {
          const Tensor average = ema.named_parameters()[i].second;
          CHECK((decay == 0 ? average.equal(model->parameters()[i]) : average.isinf().all().item<bool>()));
        }
      }
    }
  }
}

TEST_CASE("Optimizer: the averaged model's buffers by policy") {
  for (const auto buffers : {mm::EmaBuffers::copy, mm::EmaBuffers::average, mm::EmaBuffers::keep}) {
    for (const bool warmup : {false, true}) {
      auto model = optimizer_model(14), plain = optimizer_model(14);
      const auto averaging = mm::EmaModelOptions(0.15).buffers(buffers).warmup(warmup);
      const auto options = OptimizerOptions(0.01);
      mm::EmaModel ema(model, averaging);
      Optimizer optimizer(model, ema, options);
      OptimizerReference reference(plain, options, averaging);
      const auto norm = [](torch::nn::Sequential& one) { return one[1]->as<torch::nn::BatchNorm2d>(); };
      for (int64_t step = 0; step < 3; ++step) {
        for (auto* one : {&model, &plain}) {
          norm(*one)->running_mean.fill_(step + 2);
          norm(*one)->num_batches_tracked.fill_(step + 5);
          fill_optimizer_gradients(*one, step);
        }
        CHECK(optimizer.step().item<bool>());
        reference.step();
        auto scope = ema.average_parameters(), plain_scope = reference.ema.average_parameters();
        CHECK(norm(model)->running_mean.equal(norm(plain)->running_mean));
        CHECK(norm(model)->num_batches_tracked.equal(norm(plain)->num_batches_tracked));
        CHECK((norm(model)->running_mean[0].item<double>() == 0) == (buffers == mm::EmaBuffers::keep));
      }
    }
  }
}

TEST_CASE("Optimizer: on a device synchronize() brings the averaged model up to date") {
  auto model = optimizer_model(15);
  mm::EmaModel ema(model);
  const auto optimizer = make_optimizer(OptimizerPath::aten, model, ema);
  auto* norm = model[1]->as<torch::nn::BatchNorm2d>();
  norm->running_mean.fill_(4);
  const auto averaged_mean = [&] {
    auto scope = ema.average_parameters();
    return norm->running_mean[0].item<double>();
  };
  for (int64_t step = 0; step < 3; ++step) {
    fill_optimizer_gradients(model, step);
    CHECK(optimizer->step().item<bool>());
  }
  CHECK(ema.num_updates() == 0);
  CHECK(averaged_mean() == 0);
  CHECK(optimizer->synchronize() == 3);
  CHECK(ema.num_updates() == 3);
  CHECK(averaged_mean() == 4);
}

TEST_CASE("Optimizer: on the CPU a step brings the averaged model up to date, and nothing does it twice") {
  auto model = optimizer_model(15);
  mm::EmaModel ema(model);
  Optimizer optimizer(model, ema, OptimizerOptions(0.01));
  auto* norm = model[1]->as<torch::nn::BatchNorm2d>();
  const auto averaged_mean = [&] {
    auto scope = ema.average_parameters();
    return norm->running_mean[0].item<double>();
  };
  for (const int64_t step : {1, 2}) {
    norm->running_mean.fill_(10 * step);
    fill_optimizer_gradients(model, step);
    CHECK(optimizer.step().item<bool>());
    CHECK(averaged_mean() == static_cast<double>(10 * step));
    norm->running_mean.fill_(10 * step + 5);  // for the next step
    CHECK(optimizer.synchronize() == step);
    CHECK(averaged_mean() == static_cast<double>(10 * step));
    CHECK(ema.num_updates() == step);
  }
}

TEST_CASE("Optimizer: goes on from an averaged model's own count") {
  for (const auto path : kAllPaths) {
    auto model = optimizer_model(16);
    mm::EmaModel ema(model, mm::EmaModelOptions(0.9).warmup(true));
    for (int i = 0; i < 5; ++i) {
      ema.update();
    }
    const auto optimizer = make_optimizer(path, model, ema);
    const Tensor before = ema.named_parameters()[0].second.clone();
    fill_optimizer_gradients(model, 0);
    CHECK(step_on(path, *optimizer));
    const double decay = 6.0 / 15;
    CHECK(at::allclose(ema.named_parameters()[0].second,
                       before * decay + model->parameters()[0].detach() * (1 - decay), 1e-5, 1e-7));
    CHECK(optimizer->synchronize() == 1);  // the optimiser's own
    CHECK(ema.num_updates() == 6);
  }
}

TEST_CASE("Optimizer: without a moving average") {
  for (const auto path : kAllPaths) {
    for (const UpdateRule& rule : kBothRules) {
      auto model = optimizer_model(17), averaged = optimizer_model(17);
      mm::EmaModel ema(averaged);
      const auto options = OptimizerOptions(0.01).rule(rule).weight_decay(0.3).l2(0.1);
      const auto optimizer = make_optimizer(path, model, options),
                 other = make_optimizer(path, averaged, ema, options);
      for (int64_t step = 0; step < 3; ++step) {
        fill_optimizer_gradients(model, step);
        fill_optimizer_gradients(averaged, step);
        CHECK(step_on(path, *optimizer));
        CHECK(step_on(path, *other));
      }
      CHECK(largest_optimizer_difference(model->parameters(), averaged->parameters()) == 0);
      CHECK(optimizer->synchronize() == 3);
      CHECK(optimizer->state().size() + 2 == other->state().size());
      load_optimizer(*optimizer, saved_optimizer(*other));  // which needs no average
      CHECK(optimizer->num_steps().item<int64_t>() == 3);
    }
  }
}

TEST_CASE("Optimizer: its state is all that a step changes") {
  for (const auto path : kAllPaths) {
    for (const UpdateRule& rule : kBothRules) {
      auto model = optimizer_model(18);
      mm::EmaModel ema(model, mm::EmaModelOptions(0.9).warmup(true));
      const auto optimizer = make_optimizer(path, model, ema, OptimizerOptions().rule(rule));
      fill_optimizer_gradients(model, 0);
      CHECK(step_on(path, *optimizer));
      const auto before = optimizer_copies(optimizer->state());
      fill_optimizer_gradients(model, 1);
      CHECK(step_on(path, *optimizer));
      const auto after = optimizer_copies(optimizer->state());
      CHECK(largest_optimizer_difference(before, after) > 0);
      for (size_t i = 0; i < before.size(); ++i) {
        optimizer->state()[i].copy_(before[i]);
      }
      fill_optimizer_gradients(model, 1);
      CHECK(step_on(path, *optimizer));
      CHECK(largest_optimizer_difference(optimizer->state(), after) == 0);
    }
  }
}

TEST_CASE("Optimizer: goes on from a checkpoint bit for bit, into another memory format too") {
  for (const UpdateRule& rule : kBothRules) {
    for (const bool other_format : {false, true}) {
      INFO(name_of(rule) << ", another memory format " << other_format);
      const TempDir dir;
      const auto averaging = mm::EmaModelOptions(0.95).warmup(true);
      const auto options = OptimizerOptions(0.01).rule(rule).weight_decay(0.02).l2(0.1);
      auto model = optimizer_model(4, true);
      mm::EmaModel ema(model, averaging);
      Optimizer optimizer(model, ema, options);
      for (int64_t step = 0; step < 3; ++step) {
        fill_optimizer_gradients(model, step);
        optimizer.step();
      }
      mm::training::Checkpoint(dir / "checkpoint.pt")
          .add("model", model)
          .add("ema", ema)
          .add("optimizer", optimizer)
          .save();
      // One block a kind, not one for each parameter that lies in it.
      int64_t count = 0;
      for (const auto& parameter : model->parameters()) {
        count += parameter.numel();
      }
      const int64_t kinds = std::holds_alternative<AdamRule>(rule) ? 4 : 3;
      CHECK(std::filesystem::file_size(dir / "checkpoint.pt") <
            static_cast<uintmax_t>(count * 4 * kinds + 60000));

      auto resumed = optimizer_model(5, true);
      if (other_format) {
        mm::training::to_channels_last(resumed);
      }
      mm::EmaModel resumed_ema(resumed, averaging);
      Optimizer resumed_optimizer(resumed, resumed_ema, options);
      mm::training::Checkpoint(dir / "checkpoint.pt")
          .add("model", resumed)
          .add("ema", resumed_ema)
          .add("optimizer", resumed_optimizer)
          .load();
      CHECK(resumed_optimizer.num_steps().item<int64_t>() == 3);
      CHECK(resumed_ema.num_updates() == 3);
      CHECK(resumed->parameters()[0].is_contiguous(at::MemoryFormat::ChannelsLast) == other_format);
      CHECK(largest_optimizer_difference(optimizer_results(model, ema),
                                         optimizer_results(resumed, resumed_ema)) == 0);
      for (int64_t step = 3; step < 6; ++step) {
        fill_optimizer_gradients(model, step);
        fill_optimizer_gradients(resumed, step);
        optimizer.step();
        resumed_optimizer.step();
      }
      CHECK(resumed_ema.num_updates() == 6);
      // In another format an element may stand where the vectors end, and is rounded otherwise.
      CHECK(largest_optimizer_difference(optimizer_results(model, ema),
                                         optimizer_results(resumed, resumed_ema)) <=
            (other_format ? 1e-6 : 0));
    }
  }
}

TEST_CASE("Optimizer: a file from the CPU goes on on a device, and back") {
  for (const UpdateRule& rule : kBothRules) {
    for (const bool to_device : {true, false}) {
      const auto from = to_device ? OptimizerPath::cpu : OptimizerPath::aten,
                 to = to_device ? OptimizerPath::kernels : OptimizerPath::cpu;
      const auto averaging = mm::EmaModelOptions(0.95).warmup(true);
      const auto options = OptimizerOptions(0.01).rule(rule).weight_decay(0.02).l2(0.1);
      auto model = optimizer_network(false), resumed = optimizer_network(true);
      mm::EmaModel ema(model, averaging), resumed_ema(resumed, averaging);
      const auto optimizer = make_optimizer(from, model, ema, options),
                 resumed_optimizer = make_optimizer(to, resumed, resumed_ema, options);
      for (int64_t step = 0; step < 3; ++step) {
        backward_of_batch(model, step);
        step_on(from, *optimizer);
      }
      optimizer->synchronize();
      std::stringstream ema_file;
      torch::save(ema, ema_file);
      torch::load(resumed_ema, ema_file);
      {
        const torch::NoGradGuard no_grad;
        for (size_t i = 0; i < model->parameters().size(); ++i) {
          resumed->parameters()[i].copy_(model->parameters()[i]);
        }
      }
      load_optimizer(*resumed_optimizer, saved_optimizer(*optimizer));
      CHECK(resumed_optimizer->num_steps().item<int64_t>() == 3);
      for (size_t i = 0; i < model->parameters().size(); ++i) {
        const Tensor gradient = at::randn(model->parameters()[i].sizes());
        model->parameters()[i].mutable_grad() = gradient.clone();
        resumed->parameters()[i].mutable_grad() = gradient.clone();
      }
      step_on(from, *optimizer);
      step_on(to, *resumed_optimizer);
      CHECK(largest_optimizer_difference(optimizer_results(model, ema),
                                         optimizer_results(resumed, resumed_ema)) < 1e-5);
      CHECK(resumed_optimizer->synchronize() == 4);
      CHECK(resumed_ema.num_updates() == 4);
    }
  }
}

TEST_CASE("Optimizer: files that do not fit are refused, and change nothing") {
  auto model = optimizer_model(12);
  mm::EmaModel ema(model);
  Optimizer adam(model, ema);
  fill_optimizer_gradients(model, 0);
  adam.step();

  auto sgd_model = optimizer_model(13);
  mm::EmaModel sgd_ema(sgd_model);
  Optimizer sgd(sgd_model, sgd_ema, OptimizerOptions().rule(SgdRule{}));
  fill_optimizer_gradients(sgd_model, 0);
  sgd.step();
  const auto adam_before = optimizer_copies(adam.state()), sgd_before = optimizer_copies(sgd.state());
  CHECK_THAT(error_of([&] { load_optimizer(adam, saved_optimizer(sgd)); }),
             contains("of the rule sgd, the optimiser's is adam"));
  CHECK_THAT(error_of([&] { load_optimizer(sgd, saved_optimizer(adam)); }),
             contains("of the rule adam, the optimiser's is sgd"));

  torch::nn::Linear linear(3, 3);
  mm::EmaModel linear_ema(linear);
  Optimizer small(linear, linear_ema);
  CHECK_THAT(error_of([&] { load_optimizer(small, saved_optimizer(adam)); }),
             contains("the model has 2 parameters, the archive 8"));
  torch::nn::Linear wide(3, 4);
  mm::EmaModel wide_ema(wide);
  Optimizer other_shape(wide, wide_ema);
  CHECK_THAT(error_of([&] { load_optimizer(other_shape, saved_optimizer(small)); }),
             contains("weight has shape [4, 3], in the archive [3, 3]"));
  Optimizer without_average(linear);
  CHECK_THAT(error_of([&] { load_optimizer(other_shape, saved_optimizer(without_average)); }),
             contains("of an optimiser without a moving average"));
  const auto empty = [&] {
    std::ostringstream file;
    torch::serialize::OutputArchive archive;
    archive.write("num_steps", c10::IValue(int64_t{1}));
    archive.save_to(file);
    return file.str();
  };
  CHECK_THAT(error_of([&] { load_optimizer(adam, empty()); }), contains("not of this optimiser"));
  CHECK(largest_optimizer_difference(adam_before, adam.state()) == 0);
  CHECK(largest_optimizer_difference(sgd_before, sgd.state()) == 0);
}

TEST_CASE("Optimizer: names what does not fit") {
  auto model = optimizer_model(9);
  mm::EmaModel ema(model);
  const auto refused = [&](const OptimizerOptions& options) {
    return error_of([&] { Optimizer(model, ema, options); });
  };
  CHECK_THAT(refused(-1.0), contains("learning_rate must be finite and >= 0, got -1"));
  CHECK_THAT(refused(std::nan("")), contains("learning_rate must be finite and >= 0, got nan"));
  CHECK_THAT(refused(OptimizerOptions().weight_decay(-1)),
             contains("weight_decay must be >= 0 and at most 1 / learning_rate, got -1"));
  CHECK_THAT(refused(OptimizerOptions(0.5).weight_decay(3)), contains("weight_decay"));
  CHECK_THAT(refused(OptimizerOptions().l2(-0.5)), contains("l2 must be finite and >= 0, got -0.5"));
  CHECK_THAT(
      refused(OptimizerOptions().rate_factor([](const std::string&) { return -1.0; })),
      contains("rate_factor must be finite, >= 0 and at most 1 / (learning_rate weight_decay), got -1 for "
               "0.weight"));
  CHECK_THAT(refused(OptimizerOptions().rule(AdamRule{1})), contains("beta1 must be in [0, 1), got 1"));
  CHECK_THAT(refused(OptimizerOptions().rule(AdamRule{0.9, -0.1})),
             contains("beta2 must be in [0, 1), got -0.1"));
  CHECK_THAT(refused(OptimizerOptions().rule(AdamRule{0.9, 0.9, -1})), contains("eps must be >= 0, got -1"));
  CHECK_THAT(refused(OptimizerOptions().rule(SgdRule{1})), contains("momentum must be in [0, 1), got 1"));
  CHECK_THAT(refused(OptimizerOptions().rule(SgdRule{std::nan("")})), contains("momentum"));

  auto half = optimizer_model(9);
  half->to(at::kBFloat16);
  mm::EmaModel half_ema(half);
  CHECK_THAT(error_of([&] { Optimizer(half, half_ema); }),
             contains("must be all float32 or all float64, got BFloat16 0.weight"));
  auto mixed = optimizer_model(9);
  mixed[2]->to(at::kDouble);
  CHECK_THAT(error_of([&] { Optimizer{mixed}; }),
             contains("must be all float32 or all float64, got Double 2.weight"));
  mm::EmaModel elsewhere(model, mm::EmaModelOptions().device(torch::Device(at::kMeta)));
  CHECK_THAT(error_of([&] { Optimizer(model, elsewhere); }),
             contains("parameter 0.weight and its average must be on cpu as the first is, got meta"));
  auto twin = optimizer_model(9);
  mm::EmaModel twin_ema(twin);
  CHECK_THAT(error_of([&] { Optimizer(model, twin_ema); }),
             contains("ema must be of the same model, it does not average its parameter 0.weight"));
  for (const Tensor& parameter : twin->parameters()) {
    parameter.set_requires_grad(false);
  }
  CHECK_THAT(error_of([&] { Optimizer{twin}; }), contains("the model has no trainable parameter"));
  mm::EmaModel averaging(model, mm::EmaModelOptions().buffers(mm::EmaBuffers::average));
  CHECK_THAT(error_of([&] { make_optimizer(OptimizerPath::aten, model, averaging); }),
             contains("ema must copy or keep buffers; averaging them is not done on the device"));
}

TEST_CASE("Optimizer: a model that moved is named, and nothing changes") {
  for (const auto path : kAllPaths) {
    auto model = optimizer_model(9);
    mm::EmaModel ema(model);
    const auto optimizer = make_optimizer(path, model, ema);
    const auto before = optimizer_copies(optimizer->state());
    const auto refused = [&] {
      CHECK_THAT(error_of([&] { optimizer->step(); }),
                 contains("0.weight no longer lies in the optimiser's memory"));
      CHECK(largest_optimizer_difference(before, optimizer->state()) == 0);
    };
    {
      const auto scope = ema.average_parameters();
      refused();
    }
    model->to(at::kDouble);
    fill_optimizer_gradients(model, 0);
    refused();
    CHECK(model->parameters()[0].grad().defined());
  }
}

namespace {

/// Two passes over a network that share its weights, the first without gradient, as in a training step; the
/// gradient of the second.
struct PassResult {
  Tensor guess, logits;
  std::vector<Tensor> gradients;
};

enum class WeightCopying { by_autocast, at_once, at_once_kept };

template <class Model>
PassResult pass_in_bfloat16(Model& model, Optimizer& optimizer, WeightCopying copying, const Tensor& images) {
  using mm::training::Autocast;
  const mm::training::LowPrecisionWeights weights(model, optimizer);
  PassResult result;
  const Autocast autocast(torch::kCPU, at::kBFloat16);
  {
    const auto scope = weights.use(copying == WeightCopying::by_autocast ? at::kFloat : at::kBFloat16);
    {
      const torch::NoGradGuard no_grad;
      result.guess = model->forward(images);
      mm::detail::forget_autocast_copies();
    }
    result.logits = model->forward(images);
  }
  if (copying == WeightCopying::at_once_kept) {
    const auto kept = optimizer.keep_copies_gradients();
    result.logits.to(at::kFloat).square().sum().backward();
  } else {
    result.logits.to(at::kFloat).square().sum().backward();
  }
  for (const Tensor& parameter : model->parameters()) {
    result.gradients.push_back(parameter.grad().defined() ? parameter.grad().clone() : Tensor());
  }
  return result;
}

}  // namespace

TEST_CASE("LowPrecisionWeights: outputs, gradients and steps are autocast's, to the bit") {
  const Tensor images = [] {
    torch::manual_seed(4);
    return at::randn({4, 3, 8, 8}).contiguous(at::MemoryFormat::ChannelsLast);
  }();
  for (const bool channels_last : {true, false}) {
    auto plain = optimizer_network(channels_last), model = optimizer_network(channels_last),
         kept = optimizer_network(channels_last), device = optimizer_network(channels_last);
    const auto options = OptimizerOptions(0.01).rule(SgdRule{});
    Optimizer of_plain(plain, options), of_model(model, options), of_kept(kept, options);
    const auto of_device = make_optimizer(OptimizerPath::kernels, device, options);
    for (int64_t step = 0; step < 3; ++step) {
      const auto expected = pass_in_bfloat16(plain, of_plain, WeightCopying::by_autocast, images);
      const auto found = pass_in_bfloat16(model, of_model, WeightCopying::at_once, images);
      const auto later = pass_in_bfloat16(kept, of_kept, WeightCopying::at_once_kept, images);
      pass_in_bfloat16(device, *of_device, WeightCopying::at_once_kept, images);
      for (const auto* result : {&found, &later}) {
        CHECK(result->guess.equal(expected.guess));
        CHECK(result->logits.equal(expected.logits));
        CHECK(result->logits.scalar_type() == at::kBFloat16);
      }
      for (size_t i = 0; i < expected.gradients.size(); ++i) {
        INFO("parameter " << i);
        CHECK(found.gradients[i].scalar_type() == at::kFloat);
        CHECK(found.gradients[i].equal(expected.gradients[i]));
        // What a norm's own parameter has is not kept.
        CHECK(later.gradients[i].defined() ==
              (plain->parameters()[i].dim() == 1 && i + 1 < expected.gradients.size()));
      }
      CHECK(of_plain.step().item<bool>());
      CHECK(of_model.step().item<bool>());
      CHECK(of_kept.step().item<bool>());
      CHECK(step_on(OptimizerPath::kernels, *of_device));
      for (size_t i = 0; i < plain->parameters().size(); ++i) {
        CHECK(model->parameters()[i].equal(plain->parameters()[i]));
        CHECK(kept->parameters()[i].equal(plain->parameters()[i]));
        if (step == 0) {  // later ones differ by what bfloat16 makes of the last bit
          CHECK(at::allclose(device->parameters()[i], plain->parameters()[i], 1e-5, 1e-6));
        }
        CHECK_FALSE(device->parameters()[i].grad().defined());
      }
    }
  }
}

TEST_CASE("LowPrecisionWeights: scopes inside see the layers' own weights, averages and gradients") {
  auto model = optimizer_network();
  mm::EmaModel ema(model, mm::EmaModelOptions(0.5));
  Optimizer optimizer(model, ema, OptimizerOptions(0.01));
  const mm::training::LowPrecisionWeights weights(model, optimizer);
  CHECK(weights.size() == 11);  // nine convolutions, the last layer's weight and bias
  backward_of_batch(model, 1);
  optimizer.step();
  const Tensor images = at::randn({2, 3, 8, 8}).contiguous(at::MemoryFormat::ChannelsLast);
  const auto registered = model->named_parameters()["conv1.weight"];
  const auto average = ema.average_of(registered);
  REQUIRE_FALSE(average.equal(registered));
  const mm::training::Autocast autocast(torch::kCPU, at::kBFloat16);
  const auto bits = [](const Tensor& tensor) { return tensor.detach().to(at::kBFloat16); };
  {
    const auto scope = weights.use(at::kBFloat16);
    CHECK(model->conv1->weight.scalar_type() == at::kBFloat16);
    CHECK(model->conv1->weight.equal(bits(registered)));
    CHECK(model->conv1->weight.strides() == registered.strides());
    CHECK(model->named_parameters()["conv1.weight"].is_same(registered));
    {
      const mm::training::Autocast none(torch::kCPU, at::kFloat);
      CHECK(model->conv1->weight.is_same(registered));
      CHECK(model->forward(images).scalar_type() == at::kFloat);
      {
        const auto averages = ema.average_parameters();
        CHECK(model->conv1->weight.equal(average));
      }
      CHECK(model->conv1->weight.is_same(registered));
    }
    {
      const mm::training::Autocast same(torch::kCPU, at::kBFloat16);
      CHECK(model->conv1->weight.scalar_type() == at::kBFloat16);
    }
    {
      const auto averages = ema.average_parameters();
      CHECK(model->conv1->weight.is_same(registered));
      CHECK(model->conv1->weight.equal(average));
    }
    {
      // Without gradient, as of a teacher: copies of the averages.
      const torch::NoGradGuard no_grad;
      {
        const auto averages = ema.average_parameters();
        CHECK(model->conv1->weight.scalar_type() == at::kBFloat16);
        CHECK(model->conv1->weight.equal(bits(average)));
        CHECK(model->conv1->weight.strides() == registered.strides());
        CHECK(model->named_parameters()["conv1.weight"].equal(average));
        {
          const mm::training::Autocast none(torch::kCPU, at::kFloat);
          CHECK(model->conv1->weight.scalar_type() == at::kFloat);
          CHECK(model->conv1->weight.equal(average));
        }
        CHECK(model->conv1->weight.equal(bits(average)));
      }
      CHECK(model->conv1->weight.equal(bits(registered)));
      {
        const mm::training::Autocast none(torch::kCPU, at::kFloat);
        const auto averages = ema.average_parameters();
        CHECK(model->conv1->weight.scalar_type() == at::kFloat);
        CHECK(model->conv1->weight.equal(average));
      }
      mm::EmaModel other(model);  // which the optimiser does not move
      const auto averages = other.average_parameters();
      CHECK(model->conv1->weight.is_same(registered));
    }
    CHECK(model->conv1->weight.equal(bits(registered)));
    // A gradient that a method asks for itself is the parameter's, also while the step's own are kept.
    const Tensor loss = model->forward(images).to(at::kFloat).square().sum();
    const Tensor asked = torch::autograd::grad({loss}, {registered}, {}, /*retain_graph=*/true)[0];
    CHECK(asked.scalar_type() == at::kFloat);
    CHECK(asked.abs().max().item<double>() > 0);
    // Of a part in full precision beside: both count.
    Tensor other;
    {
      const mm::training::Autocast none(torch::kCPU, at::kFloat);
      other = model->conv1->weight.sum();
    }
    const auto kept = optimizer.keep_copies_gradients();
    (loss + 3 * other).backward();
    CHECK(registered.grad().equal(at::full_like(registered, 3)));
    auto twin = optimizer_network();
    torch::NoGradGuard no_grad;
    const Tensor before = registered.clone();
    optimizer.step();
    CHECK_FALSE(registered.equal(before));
  }
  CHECK(model->conv1->weight.is_same(registered));
}

TEST_CASE("LowPrecisionWeights: frozen parameters and classes of one's own are left alone") {
  struct OwnLinearImpl : torch::nn::LinearImpl {
    using LinearImpl::LinearImpl;
  };
  torch::manual_seed(1);
  torch::nn::Sequential model(torch::nn::Linear(4, 4), std::make_shared<OwnLinearImpl>(4, 4),
                              torch::nn::Conv1d(2, 2, 1));
  model[0]->as<torch::nn::Linear>()->weight.set_requires_grad(false);
  Optimizer optimizer(model);
  const mm::training::LowPrecisionWeights weights(model, optimizer);
  CHECK(weights.size() == 3);  // the first layer's bias, the convolution's two
  const auto scope = weights.use(at::kHalf);
  CHECK(model[0]->as<torch::nn::Linear>()->weight.scalar_type() == at::kFloat);
  CHECK(model[0]->as<torch::nn::Linear>()->bias.scalar_type() == at::kHalf);
  CHECK(model[1]->as<torch::nn::LinearImpl>()->weight.scalar_type() == at::kFloat);
  CHECK(model[2]->as<torch::nn::Conv1d>()->weight.scalar_type() == at::kHalf);
}

TEST_CASE("Optimizer: the gradients' kernel takes every precision, many parameters and holes") {
  namespace emulated = cuda_emulation;
  emulated::EmulatedDevice device;
  device.add("gather_gradients<float>", emulated::gather_gradients<float>);
  device.add("gather_gradients<double>", emulated::gather_gradients<double>);
  torch::manual_seed(8);
  for (const auto type : {at::kFloat, at::kDouble}) {
    std::vector<mm::detail::GradientPiece> pieces;
    std::vector<Tensor> expected;
    int64_t offset = 0;
    for (int64_t i = 0; i < 133; ++i) {  // more than one launch takes
      const int64_t size = (i * 37) % 201, room = (size + 63) / 64 * 64 + (i % 5 == 0 ? 64 : 0);
      const auto of = i % 3 == 0 ? type : i % 3 == 1 ? at::kBFloat16 : at::kHalf;
      const Tensor gradient = i % 7 == 6 ? Tensor() : at::randn({size}, at::kDouble).to(of);
      pieces.push_back({gradient, offset, room});
      expected.push_back(gradient.defined() ? gradient.to(type) : at::zeros({size}, type));
      expected.push_back(at::zeros({room - size}, type));
      offset += room;
    }
    Tensor block = at::full({offset}, 7, type);
    const Tensor finite = mm::detail::gather_gradients_on_cuda(block, pieces);
    CHECK(block.equal(at::cat(expected)));
    CHECK(finite.sum().item<int64_t>() == 0);
    pieces[100].gradient[pieces[100].gradient.numel() - 1] = -std::numeric_limits<double>::infinity();
    const Tensor not_finite = mm::detail::gather_gradients_on_cuda(block, pieces);
    CHECK(not_finite.sum().item<int64_t>() == 1);
  }
}

TEST_CASE("orthogonalize: the singular vectors stay, the singular values come near 1") {
  torch::manual_seed(1);
  for (const auto& sizes : std::vector<std::vector<int64_t>>{{5, 5}, {4, 9}, {9, 4}, {3, 4, 9}, {1, 7}}) {
    INFO(at::IntArrayRef(sizes));
    const Tensor matrices = at::randn(sizes, at::kDouble);
    const Tensor result = mm::training::orthogonalize(matrices);
    CHECK(result.sizes() == matrices.sizes());
    if (matrices.dim() == 2) {
      CHECK(result.allclose(orthogonalized_by_svd(matrices), 1e-9, 1e-9));
    } else {
      for (int64_t i = 0; i < sizes[0]; ++i) {
        CHECK(result[i].allclose(orthogonalized_by_svd(matrices[i]), 1e-9, 1e-9));
      }
    }
  }
  // 3 and 4 of a norm of 5 become p(p(p(p(p(.6))))) and so on, p(x) = 3.4445 x - 4.775 x^3 + 2.0315 x^5.
  const Tensor diagonal =
      mm::training::orthogonalize(at::tensor({3.0, 0.0, 0.0, 4.0}, at::kDouble).view({2, 2}));
  double by_hand[2] = {.6, .8};
  for (double& x : by_hand) {
    for (int i = 0; i < 5; ++i) {
      x = 3.4445 * x - 4.7750 * std::pow(x, 3) + 2.0315 * std::pow(x, 5);
    }
    CHECK(x > 0.65);
    CHECK(x < 1.25);
  }
  CHECK(diagonal[0][0].item<double>() == Approx(by_hand[0]));
  CHECK(diagonal[1][1].item<double>() == Approx(by_hand[1]));
  CHECK(std::abs(diagonal[0][1].item<double>()) < 1e-12);
  CHECK(mm::training::orthogonalize(at::zeros({2, 3})).equal(at::zeros({2, 3})));
  CHECK(mm::training::orthogonalize(at::randn({6, 4}).to(at::kBFloat16)).scalar_type() == at::kBFloat16);
  CHECK_THAT(error_of([] { mm::training::orthogonalize(at::zeros({3})); }),
             contains("matrices must be floating point [..., m, n], got Float [3]"));
  CHECK_THAT(error_of([] {
               mm::training::orthogonalize(at::zeros({3, 3}, at::kLong));
             }),
             contains("matrices must be floating point [..., m, n], got Long"));
  CHECK_THAT(error_of([] {
               mm::training::orthogonalize(at::zeros({3, 3}), 0);
             }),
             contains("iterations must be >= 1, got 0"));
}

TEST_CASE("Optimizer: Muon moves the kernels, and the rule all else") {
  const auto factor = [](const std::string& name) { return name.rfind("2.", 0) == 0 ? 0.5 : 1.0; };
  for (const auto path : kAllPaths) {
    for (const auto type : {at::kFloat, at::kDouble}) {
      for (const UpdateRule& rule : kBothRules) {
        const bool last = type == at::kFloat;
        const double l2 = type == at::kFloat ? 0.2 : 0, rate = 0.01, decay = 0.3, keep = 0.25;
        INFO(name_of(rule) << ", " << type << ", path " << static_cast<int>(path));
        const auto options = OptimizerOptions(rate).rule(rule).weight_decay(decay).l2(l2).rate_factor(factor);
        auto model = optimizer_model(1), plain = optimizer_model(1);
        model->to(type);
        plain->to(type);
        if (last) {
          mm::training::to_channels_last(model);
        }
        mm::EmaModel ema(model, mm::EmaModelOptions(keep)), plain_ema(plain, mm::EmaModelOptions(keep));
        const auto optimizer =
            make_optimizer(path, model, ema, OptimizerOptions(options).muon(mm::training::MuonOptions(0.9)));
        const auto without = make_optimizer(path, plain, plain_ema, options);
        const auto names = model->named_parameters().keys();
        std::vector<Tensor> weights, averages, momenta;
        for (const auto& parameter : model->parameters()) {
          weights.push_back(parameter.detach().to(at::kDouble).contiguous().clone());
          averages.push_back(weights.back().clone());
          momenta.push_back(at::zeros_like(weights.back()));
        }
        for (int64_t step = 0; step < 5; ++step) {
          fill_optimizer_gradients(model, step);
          fill_optimizer_gradients(plain, step);
          for (size_t i = 0; i < weights.size(); ++i) {
            if (weights[i].dim() < 2) {
              continue;
            }
            const Tensor& gradient = model->parameters()[i].grad();
            const Tensor g = (gradient.defined() ? gradient.to(at::kDouble) : at::zeros_like(weights[i])) +
                             l2 * weights[i];
            momenta[i] = 0.9 * momenta[i] + g;
            const int64_t rows = weights[i].size(0), columns = weights[i].numel() / rows;
            const Tensor direction = orthogonalized_by_svd((g + 0.9 * momenta[i]).reshape({rows, columns}))
                                         .view(weights[i].sizes());
            const double own = rate * factor(names[i]);
            weights[i] -= own * 0.2 * std::sqrt(static_cast<double>(std::max(rows, columns))) * direction;
            weights[i] *= 1 - own * decay;
            averages[i] = keep * averages[i] + (1 - keep) * weights[i];
          }
          CHECK(step_on(path, *optimizer));
          CHECK(step_on(path, *without));
        }
        const double tolerance = type == at::kDouble ? 1e-9 : 2e-5;
        const auto mine = optimizer_results(model, ema), others = optimizer_results(plain, plain_ema);
        for (size_t i = 0; i < weights.size(); ++i) {
          INFO(names[i]);
          if (weights[i].dim() < 2) {
            CHECK(mine[i].equal(others[i]));
            CHECK(mine[weights.size() + i].equal(others[weights.size() + i]));
          } else {
            CHECK(mine[i].to(at::kDouble).allclose(weights[i], 0, tolerance));
            CHECK(mine[weights.size() + i].to(at::kDouble).allclose(averages[i], 0, tolerance));
          }
        }
      }
    }
  }
}

TEST_CASE("Optimizer: Muon's state is saved, loaded, and left alone by gradients that are not finite") {
  const auto options = OptimizerOptions(0.01).weight_decay(0.3).muon(mm::training::MuonOptions());
  for (const auto path : kAllPaths) {
    INFO("path " << static_cast<int>(path));
    auto model = optimizer_model(2), resumed = optimizer_model(3);
    mm::EmaModel ema(model, mm::EmaModelOptions(0.25)), resumed_ema(resumed, mm::EmaModelOptions(0.25));
    const auto first = make_optimizer(path, model, ema, options);
    const auto second = make_optimizer(path, resumed, resumed_ema, options);
    for (int64_t step = 0; step < 3; ++step) {
      fill_optimizer_gradients(model, step);
      CHECK(step_on(path, *first));
    }
    const std::string saved = saved_optimizer(*first);
    const auto state = optimizer_copies(first->state());
    fill_optimizer_gradients(model, 3);
    model->parameters()[1].mutable_grad()[0] = std::numeric_limits<float>::infinity();
    CHECK_FALSE(step_on(path, *first));
    CHECK(largest_optimizer_difference(state, first->state()) == 0);

    load_optimizer(*second, saved);
    {
      const torch::NoGradGuard no_grad;
      for (size_t i = 0; i < model->parameters().size(); ++i) {
        resumed->parameters()[i].copy_(model->parameters()[i]);
        resumed_ema.named_parameters()[i].second.copy_(ema.named_parameters()[i].second);
      }
    }
    for (int64_t step = 3; step < 5; ++step) {
      fill_optimizer_gradients(model, step);
      fill_optimizer_gradients(resumed, step);
      CHECK(step_on(path, *first));
      CHECK(step_on(path, *second));
    }
    CHECK(largest_optimizer_difference(optimizer_results(model, ema),
                                       optimizer_results(resumed, resumed_ema)) == 0);
    auto other = optimizer_model(2);
    Optimizer adam(other, OptimizerOptions(0.01));
    CHECK_THAT(error_of([&] { load_optimizer(adam, saved); }),
               contains("the archive is of the rule muon and adam, the optimiser's is adam"));
  }
  auto model = optimizer_model(2);
  using mm::training::MuonOptions;
  CHECK_THAT(error_of([&] { Optimizer(model, OptimizerOptions().muon(MuonOptions(1.0))); }),
             contains("muon's momentum must be in [0, 1), got 1"));
  CHECK_THAT(error_of([&] { Optimizer(model, OptimizerOptions().muon(MuonOptions().iterations(0))); }),
             contains("muon's iterations must be >= 1, got 0"));
}
