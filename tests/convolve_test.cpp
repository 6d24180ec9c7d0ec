#include <ATen/record_function.h>
#include <torch/nn/modules.h>
#include <mixmatch/models/efficientnet_lite.hpp>
#include <mixmatch/models/resnet.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/nn/channels_last.hpp>
#include <mixmatch/nn/convolve.hpp>
#include <mixmatch/nn/precision.hpp>
#include <mixmatch/optim/low_precision_weights.hpp>
#include <mixmatch/optim/optimizer.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "catch.hpp"

namespace mm = mixmatch;
using mm::models::convolve;
using mm::training::Autocast;
using mm::training::LowPrecisionWeights;
using mm::training::Optimizer;
using mm::training::OptimizerOptions;
using mm::training::SgdRule;
using torch::Tensor;

namespace {

torch::nn::Conv2d some_convolution(torch::nn::Conv2dOptions options) {
  torch::manual_seed(2);
  return torch::nn::Conv2d(options);
}

/// Of four channels: three that convolve() takes, three that it leaves to the layer.
std::vector<torch::nn::Conv2dOptions> some_options() {
  using Options = torch::nn::Conv2dOptions;
  return {Options(4, 6, 3).padding(1).bias(false),
          Options(4, 6, {3, 2}).stride({2, 1}).bias(false),
          Options(4, 8, 3).groups(2).dilation({1, 2}).padding({0, 2}).bias(false),
          Options(4, 6, 3).padding(1),
          Options(4, 6, 3).padding(torch::kSame).bias(false),
          Options(4, 6, 3).padding(1).padding_mode(torch::kReflect).bias(false)};
}

Tensor some_images(int64_t channels, at::ScalarType type = at::kFloat) {
  torch::manual_seed(7);
  return at::randn({3, channels, 9, 8}, type);
}

enum class Kept { no, yes, beside };

/// Plain gradient descent: what a step changes is the gradient.
OptimizerOptions descent() { return OptimizerOptions(0.1).rule(SgdRule{0, false}); }

/// A convolution by its copy in bfloat16, as long as it lives.
struct ByCopy {
  explicit ByCopy(const torch::nn::Conv2dOptions& options) : conv(some_convolution(options)) {}

  Tensor weight() const { return model->parameters()[0].detach().clone(); }

  torch::nn::Conv2d conv;
  torch::nn::Sequential model{conv};
  Optimizer optimizer{model, descent()};
  LowPrecisionWeights weights{model, optimizer};
  Autocast autocast{torch::kCPU, at::kBFloat16};
  mm::detail::WeightCopies scope{weights.use(at::kBFloat16)};
};

/// One step by a loss of the convolution's copy in bfloat16; returns the weight and the input's gradient.
std::vector<Tensor> step_by(const torch::nn::Conv2dOptions& options, Kept kept, const Tensor& images,
                            const std::function<Tensor(torch::nn::Conv2d&, const Tensor&)>& loss_of) {
  ByCopy by_copy(options);
  const Tensor x = images.detach().clone().set_requires_grad(true);
  const Tensor loss = loss_of(by_copy.conv, x);
  if (kept == Kept::no) {
    loss.backward();
  } else {
    const auto gradients = by_copy.optimizer.keep_copies_gradients(kept == Kept::beside);
    loss.backward();
  }
  CHECK(by_copy.optimizer.step().item<bool>());
  return {by_copy.weight(), x.grad()};
}

int64_t& backward_calls() {
  static int64_t calls = 0;
  return calls;
}

/// Calls of convolution_backward, on any thread.
int64_t count_backward_calls(const std::function<void()>& work) {
  backward_calls() = 0;
  const auto handle = at::addGlobalCallback(
      at::RecordFunctionCallback([](const at::RecordFunction& f) -> std::unique_ptr<at::ObserverContext> {
        backward_calls() += std::string(f.name()) == "aten::convolution_backward" ? 1 : 0;
        return nullptr;
      }).scopes({at::RecordScope::FUNCTION}));
  work();
  at::removeCallback(handle);
  return backward_calls();
}

}  // namespace

TEST_CASE("convolve: of the layer's own weight it is the layer's call, to the bit") {
  for (const auto& options : some_options()) {
    auto conv = some_convolution(options), plain = some_convolution(options);
    const Tensor x = some_images(4).set_requires_grad(true), y = some_images(4).set_requires_grad(true);
    const Tensor found = convolve(conv, x), expected = plain(y);
    CHECK(found.equal(expected));
    found.square().sum().backward();
    expected.square().sum().backward();
    CHECK(x.grad().equal(y.grad()));
    CHECK(conv->weight.grad().equal(plain->weight.grad()));
  }
}

TEST_CASE("convolve: by copies of weights, with gradients beside, a step is autocast's to the bit") {
  for (const auto& options : some_options()) {
    const auto by_layer = [](torch::nn::Conv2d& conv, const Tensor& x) {
      return conv(x).to(at::kFloat).square().sum();
    };
    const auto by_call = [](torch::nn::Conv2d& conv, const Tensor& x) {
      const Tensor y = convolve(conv, x);
      CHECK(y.scalar_type() == at::kBFloat16);
      return y.to(at::kFloat).square().sum();
    };
    for (const Tensor& images :
         {some_images(4), some_images(4, at::kBFloat16),
          some_images(4).contiguous(at::MemoryFormat::ChannelsLast), some_images(4).select(0, 1)}) {
      const auto expected = step_by(options, Kept::no, images, by_layer);
      for (const auto kept : {Kept::no, Kept::yes, Kept::beside}) {
        const auto found = step_by(options, kept, images, by_call);
        CHECK(found[0].equal(expected[0]));
        CHECK(found[1].equal(expected[1]));
        CHECK(found[1].scalar_type() == images.scalar_type());
      }
    }
  }
}

TEST_CASE("convolve: gradients of several uses, and of other uses of the copy, add up beside") {
  const auto options = torch::nn::Conv2dOptions(4, 4, 3).padding(1).bias(false);
  const auto loss = [](const auto& call) {
    return [call](torch::nn::Conv2d& conv, const Tensor& x) {
      const Tensor y = call(conv, torch::relu(call(conv, x)));
      return y.to(at::kFloat).square().sum() + 3 * conv->weight.to(at::kFloat).sum();
    };
  };
  const Tensor images = some_images(4);
  const auto layer = [](torch::nn::Conv2d& conv, const Tensor& x) { return conv(x); };
  const auto beside = [](torch::nn::Conv2d& conv, const Tensor& x) { return convolve(conv, x); };
  const auto expected = step_by(options, Kept::yes, images, loss(layer));
  const auto found = step_by(options, Kept::beside, images, loss(beside));
  // The order in which bfloat16 adds them up may differ.
  CHECK(at::allclose(found[0], expected[0], 1e-2, 1e-2 * (expected[0].abs().max().item<double>())));
  CHECK(found[1].equal(expected[1]));
  const Tensor start = some_convolution(options)->weight.detach();
  CHECK((found[0] - start).abs().max().item<double>() > 0.3);  // .1 of 3, and of the rest
}

TEST_CASE("convolve: gradients that are asked for one by one are not taken for the step's") {
  ByCopy by_copy(torch::nn::Conv2dOptions(4, 4, 3).bias(false));
  const Tensor before = by_copy.weight();
  const Tensor x = some_images(4).set_requires_grad(true);
  const Tensor loss = convolve(by_copy.conv, x).to(at::kFloat).square().sum();
  Tensor of_input, first;
  {
    const auto kept = by_copy.optimizer.keep_copies_gradients(/*overlap=*/true);
    // Of the input alone, as VAT asks for it.
    CHECK(count_backward_calls(
              [&] { of_input = torch::autograd::grad({loss}, {x}, {}, /*retain_graph=*/true)[0]; }) == 1);
    first = torch::autograd::grad({loss}, {x}, {}, /*retain_graph=*/true, /*create_graph=*/true)[0];
  }
  CHECK(of_input.abs().max().item<double>() > 0);
  CHECK(first.equal(of_input));
  const Tensor second = torch::autograd::grad({first.square().sum()}, {by_copy.model->parameters()[0]})[0];
  CHECK(second.scalar_type() == at::kFloat);
  CHECK(second.abs().max().item<double>() > 0);
  CHECK(by_copy.optimizer.step().item<bool>());
  CHECK(by_copy.weight().equal(before));
}

TEST_CASE("convolve: several backward passes before a step add up, whatever they went through") {
  const auto weight_after = [](bool beside, const std::vector<bool>& by_call) {
    ByCopy by_copy(torch::nn::Conv2dOptions(4, 4, 3).bias(false));
    const auto kept = by_copy.optimizer.keep_copies_gradients(beside);
    for (const bool called : by_call) {
      const Tensor x = some_images(4);
      (called ? convolve(by_copy.conv, x) : by_copy.conv(x)).to(at::kFloat).square().sum().backward();
    }
    CHECK(by_copy.optimizer.step().item<bool>());
    return by_copy.weight();
  };
  const Tensor expected = weight_after(false, {false, false, false});
  CHECK_FALSE(expected.equal(weight_after(false, {false, false})));
  for (const std::vector<bool>& order :
       {std::vector<bool>{true, true, true}, {false, true, true}, {true, false, true}}) {
    CHECK(weight_after(true, order).equal(expected));
  }
}

TEST_CASE("convolve: gradients of a backward pass that threw are let go of") {
  struct Throws : torch::autograd::Function<Throws> {
    static Tensor forward(torch::autograd::AutogradContext*, const Tensor& x) { return x.clone(); }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                   const torch::autograd::variable_list&) {
      throw std::runtime_error("in the middle");
    }
  };
  ByCopy by_copy(torch::nn::Conv2dOptions(4, 4, 3).padding(1).bias(false));
  const Tensor before = by_copy.weight();
  {
    const auto kept = by_copy.optimizer.keep_copies_gradients(/*overlap=*/true);
    const Tensor thrown = Throws::apply(convolve(by_copy.conv, some_images(4)));
    const Tensor loss = convolve(by_copy.conv, thrown).to(at::kFloat).square().sum();
    CHECK_THROWS_WITH(loss.backward(), contains("in the middle"));
  }
  by_copy.optimizer.drop_gradients();
  CHECK(by_copy.optimizer.step().item<bool>());
  CHECK(by_copy.weight().equal(before));
}

TEST_CASE("The bundled networks' convolutions have their weights' gradients beside the rest") {
  const auto calls_of = [](auto model, const Tensor& images) {
    mm::training::to_channels_last(model);
    Optimizer optimizer(model, descent());
    const LowPrecisionWeights weights(model, optimizer);
    const auto calls = [&](bool overlap) {
      return count_backward_calls([&] {
        const Autocast autocast(torch::kCPU, at::kBFloat16);
        const auto scope = weights.use(at::kBFloat16);
        const Tensor loss = model->forward(images).to(at::kFloat).square().sum();
        const auto kept = optimizer.keep_copies_gradients(overlap);
        loss.backward();
        optimizer.drop_gradients();
      });
    };
    return std::vector<int64_t>{calls(false), calls(true)};
  };
  torch::manual_seed(1);
  const Tensor images = at::randn({2, 3, 32, 32}).contiguous(at::MemoryFormat::ChannelsLast);
  // The images' own has no second call. Three blocks of two, the first, two shortcuts.
  CHECK(calls_of(mm::models::WideResNet(mm::models::WideResNetOptions(4).depth(10).widen_factor(1)),
                 images) == std::vector<int64_t>{9, 17});
  // Eight blocks of two, the first, three shortcuts, which are a Sequential's.
  CHECK(calls_of(mm::models::ResNet(mm::models::ResNetOptions(4).depth(18)), images) ==
        std::vector<int64_t>{20, 36});
  // A block of two, fifteen of three, the first and the last.
  CHECK(calls_of(mm::models::EfficientNetLite(mm::models::EfficientNetLiteOptions(4)), images) ==
        std::vector<int64_t>{49, 97});
}
