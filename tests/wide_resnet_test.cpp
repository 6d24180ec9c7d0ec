#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/nn/batch_norm_leaky_relu.hpp>
#include <mixmatch/nn/channels_last.hpp>
#include <mixmatch/nn/precision.hpp>

#include <torch/csrc/autograd/function.h>
#include <torch/nn/modules/container/functional.h>
#include <torch/nn/modules/linear.h>

#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::models::WideResNet;
using mixmatch::models::WideResNetOptions;
using torch::Tensor;

namespace {

int64_t count_parameters(const WideResNet& model) {
  int64_t count = 0;
  for (const auto& parameter : model->parameters()) {
    count += parameter.numel();
  }
  return count;
}

/// How many operations of each name the graph of `result` holds.
std::map<std::string, int> operations(const Tensor& result) {
  std::map<std::string, int> counts;
  std::set<torch::autograd::Node*> seen;
  std::vector<torch::autograd::Node*> open{result.grad_fn().get()};
  while (!open.empty()) {
    auto* node = open.back();
    open.pop_back();
    if (node != nullptr && seen.insert(node).second) {
      ++counts[node->name()];
      for (const auto& edge : node->next_edges()) {
        open.push_back(edge.function.get());
      }
    }
  }
  return counts;
}

}  // namespace

TEST_CASE("WideResNet: parameter counts") {
  CHECK(count_parameters(WideResNet(WideResNetOptions(10).depth(28).widen_factor(2))) == 1467610);
  CHECK(count_parameters(WideResNet(WideResNetOptions(10))) == 1467610);
  // 432 + block1 (16->16: 2*32 + 2*2304) + block2 (16->32: 32+64 + 4608+9216 + 512)
  //     + block3 (32->64: 64+128 + 18432+36864 + 2048) + 128 + 650
  CHECK(count_parameters(WideResNet(WideResNetOptions(10).depth(10).widen_factor(1))) ==
        432 + (64 + 4608) + (96 + 13824 + 512) + (192 + 55296 + 2048) + 128 + 650);
  const int64_t stl10 = count_parameters(WideResNet(WideResNetOptions(10).scales(4)));
  CHECK(stl10 > 5800000);
  CHECK(stl10 < 6000000);
  // The papers' large network: 135 filters, no multiple of 16, "26M parameters".
  const int64_t large = count_parameters(WideResNet(WideResNetOptions(10).filters(135)));
  CHECK(large > 25500000);
  CHECK(large < 26500000);
  CHECK(count_parameters(WideResNet(WideResNetOptions(10).filters(32))) == 1467610);
}

TEST_CASE("WideResNet: shapes, names, memory format, gradient to every parameter") {
  torch::manual_seed(1);
  WideResNet model(WideResNetOptions(7).depth(10).widen_factor(2));
  CHECK(model->named_parameters().contains("conv1.weight"));
  CHECK(model->named_parameters().contains("block1.layer.0.bn1.weight"));
  CHECK(model->named_parameters().contains("block2.layer.0.convShortcut.weight"));
  CHECK(model->named_parameters().contains("fc.bias"));
  const Tensor images = torch::randn({4, 3, 32, 32});
  const Tensor logits = model->forward(images);
  CHECK(logits.sizes() == torch::IntArrayRef({4, 7}));
  CHECK(
      torch::allclose(model->forward(images.contiguous(at::MemoryFormat::ChannelsLast)), logits, 1e-3, 1e-4));
  logits.square().sum().backward();
  for (const auto& parameter : model->named_parameters()) {
    INFO(parameter.key());
    REQUIRE(parameter.value().grad().defined());
    CHECK(parameter.value().grad().abs().sum().item<double>() > 0);
  }
  CHECK(
      WideResNet(WideResNetOptions(10).scales(4).depth(10))->forward(torch::zeros({1, 3, 96, 96})).size(1) ==
      10);
}

TEST_CASE("WideResNet: fused or in ATen's calls, the same outputs, gradients and statistics") {
  const auto run = [](bool fused, at::ScalarType type) {
    torch::manual_seed(2);
    WideResNet model(WideResNetOptions(10).depth(16).widen_factor(2).fused(fused));
    model->to(type);
    const Tensor x = torch::randn({6, 3, 32, 32}).to(type).contiguous(at::MemoryFormat::ChannelsLast);
    std::vector<Tensor> results{model->forward(x)};
    results[0].square().sum().backward();
    for (const auto& parameter : model->parameters()) {
      results.push_back(parameter.grad());
    }
    for (const auto& buffer : model->buffers()) {
      results.push_back(buffer.to(type));
    }
    model->eval();
    results.push_back(model->forward(x));
    return results;
  };
  const auto fused = run(true, at::kDouble), plain = run(false, at::kDouble);
  REQUIRE(fused.size() == plain.size());
  for (size_t i = 0; i < fused.size(); ++i) {
    CHECK(torch::allclose(fused[i], plain[i], 1e-8, 1e-10));
  }
  CHECK(torch::allclose(run(true, at::kFloat)[0], run(false, at::kFloat)[0], 1e-4, 1e-4));
}

TEST_CASE("WideResNet: every norm is fused with its activation, in float32 and under autocast to bfloat16") {
  WideResNet model(WideResNetOptions(10).depth(10).widen_factor(2));
  mixmatch::training::to_channels_last(model);
  int norms = 0;
  for (const auto& module : model->modules()) {
    norms += module->as<mixmatch::models::BatchNormLeakyReLUImpl>() != nullptr ? 1 : 0;
  }
  REQUIRE(norms == 7);
  const Tensor x = torch::randn({4, 3, 32, 32}).contiguous(at::MemoryFormat::ChannelsLast);
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    CAPTURE(type);
    std::map<std::string, int> counts;
    {
      const mixmatch::training::Autocast autocast(torch::kCPU, type);
      const Tensor logits = model->forward(x);
      CHECK(logits.scalar_type() == type);
      counts = operations(logits);
    }
    int fused = 0;
    for (const auto& [name, count] : counts) {
      CAPTURE(name, count);
      fused += name.find("NormActivateFunction") != std::string::npos ? count : 0;
      CHECK(name.find("BatchNorm") == std::string::npos);
      CHECK(name.find("Relu") == std::string::npos);
    }
    CHECK(fused == norms);
  }
}

TEST_CASE("WideResNet: initial weights") {
  torch::manual_seed(3);
  WideResNet model(WideResNetOptions(10));
  const Tensor conv = model->groups[2]->named_parameters()["layer.1.conv1.weight"];
  CHECK(conv.std().item<double>() == Approx(std::sqrt(2.0 / (9 * 128))).epsilon(0.02));
  CHECK(std::abs(conv.mean().item<double>()) < 1e-3);
  CHECK(model->fc->weight.std().item<double>() == Approx(std::sqrt(2.0 / 138)).epsilon(0.1));
  CHECK(model->fc->bias.abs().sum().item<double>() == 0);
}

TEST_CASE("WideResNet: only the very first block takes its shortcut after the activation") {
  torch::manual_seed(5);
  WideResNet model(WideResNetOptions(10).depth(16).widen_factor(1));
  model->eval();
  // With the last convolution of a block at zero the block is its shortcut alone.
  torch::NoGradGuard no_grad;
  const Tensor x = torch::randn({2, 16, 8, 8});
  auto zero_residual = [](torch::nn::Module& block) { block.named_parameters()["conv2.weight"].zero_(); };
  auto block = [&](size_t group, const std::string& name) {
    return std::dynamic_pointer_cast<mixmatch::models::WideResNetBlockImpl>(
        model->groups[group]->named_modules()["layer." + name]);
  };
  auto first = block(0, "0"), second = block(0, "1");
  REQUIRE(first);
  REQUIRE(second);
  zero_residual(*first);
  zero_residual(*second);
  CHECK(torch::equal(first->forward(x), first->bn1(x)));
  CHECK(torch::equal(second->forward(x), x));
}

TEST_CASE("WideResNet: a module that a user adds to a group is applied to the blocks' sum") {
  torch::manual_seed(6);
  WideResNet model(WideResNetOptions(4).depth(10).widen_factor(1));
  model->eval();
  const Tensor x = torch::randn({2, 3, 8, 8});
  const Tensor before = model->forward(x);
  model->groups[0]->layer->push_back(torch::nn::Identity());
  CHECK(torch::allclose(model->forward(x), before, 1e-5, 1e-6));
  model->groups[1]->layer->push_back(torch::nn::Functional([](const Tensor& sum) { return sum * 0; }));
  CHECK_FALSE(torch::allclose(model->forward(x), before, 1e-5, 1e-6));
}

TEST_CASE("WideResNet: clones, and refuses bad options") {
  WideResNet model(WideResNetOptions(10).depth(10).widen_factor(1));
  auto copy = std::dynamic_pointer_cast<mixmatch::models::WideResNetImpl>(model->clone());
  REQUIRE(copy);
  model->eval();
  copy->eval();
  const Tensor images = torch::randn({2, 3, 32, 32});
  CHECK(torch::equal(copy->forward(images), model->forward(images)));
  CHECK_THAT(error_of([] { WideResNet(WideResNetOptions(10).depth(27)); }),
             contains("depth must be 6 n + 4"));
  CHECK_THAT(error_of([] { WideResNet(WideResNetOptions(10).widen_factor(0)); }), contains("widen_factor"));
  CHECK_THAT(error_of([&] {
               model->forward(torch::zeros({2, 1, 32, 32}));
             }),
             contains("[N, 3, H, W], got [2, 1, 32, 32]"));
}
