// On a machine with a GPU: whole steps as one CUDA graph.

#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/training/device_step.hpp>
#include <mixmatch/training/graphed_step.hpp>

#include "catch.hpp"
#include "cuda_device.hpp"
#include "test_util.hpp"

#include <memory>
#include <vector>

#ifdef MIXMATCH_HAS_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#endif

namespace mm = mixmatch;
using mm::training::GraphedStep;
using mm::training::GraphedStepOptions;
using torch::Tensor;

namespace {

struct Trainer {
  Trainer(torch::Device device, at::ScalarType precision) : model(make(device)), ema(model) {
    torch::manual_seed(5);
    const Tensor labels = at::arange(60, at::kLong).remainder(10);
    const Tensor images = at::randint(256, {60, 3, 16, 16}, at::kByte);
    const auto options = mm::training::DeviceStepOptions().batch_size(8).precision(precision);
    step = std::make_unique<mm::training::DeviceStep<mm::models::WideResNet>>(
        model, ema, images.to(device), labels, at::arange(20, at::kLong), at::arange(20, 60, at::kLong),
        options);
  }

  static mm::models::WideResNet make(torch::Device device) {
    torch::manual_seed(3);
    mm::models::WideResNet network(mm::models::WideResNetOptions(10).depth(10).widen_factor(1));
    network->to(device);
    mm::training::to_channels_last(network);
    return network;
  }

  mm::models::WideResNet model;
  mm::EmaModel<mm::models::WideResNet> ema;
  std::unique_ptr<mm::training::DeviceStep<mm::models::WideResNet>> step;
};

}  // namespace

TEST_CASE("a hundred replays of a whole step are a hundred eager steps, and construction changes nothing") {
  if (skip_without_cuda()) {
    return;
  }
  const torch::Device device(torch::kCUDA, 0);
  // Two runs are compared: cuDNN's sums must have one order.
  const bool deterministic = at::globalContext().deterministicCuDNN();
  at::globalContext().setDeterministicCuDNN(true);
  for (const auto precision : {at::kFloat, at::kBFloat16}) {
    std::vector<double> expected, found;
    Tensor expected_weight, found_weight;
    {
      Trainer eager(device, precision);
      for (int i = 0; i < 100; ++i) {
        expected.push_back((*eager.step)().total.item<double>());
      }
      expected_weight = eager.model->conv1->weight.detach().cpu();
    }
    {
      Trainer trainer(device, precision);
      const Tensor before = trainer.model->conv1->weight.detach().clone();
      GraphedStep graphed([&] { return (*trainer.step)(); }, device, trainer.step->graph_options());
      REQUIRE(graphed.is_graphed());
      CHECK(trainer.model->conv1->weight.equal(before));
      CHECK(trainer.step->optimizer().num_steps().item<int64_t>() == 0);
      for (int i = 0; i < 100; ++i) {
        found.push_back(graphed().total.item<double>());
      }
      found_weight = trainer.model->conv1->weight.detach().cpu();
      CHECK(trainer.step->synchronize(trainer.ema) == 100);
    }
    for (size_t i = 0; i < 100; ++i) {
      INFO("step " << i);
      CHECK(found[i] == Approx(expected[i]).epsilon(precision == at::kFloat ? 1e-2 : 1e-1));
    }
    CHECK(found[0] == Approx(expected[0]).epsilon(1e-4));
    CHECK(at::allclose(found_weight, expected_weight, 0.05, 0.02));
  }
  at::globalContext().setDeterministicCuDNN(deterministic);
}

TEST_CASE("a step that waits for the device cannot be captured, and leaves the state as it was") {
  if (skip_without_cuda()) {
    return;
  }
  Tensor counter = at::zeros({}, torch::kCUDA);
  auto generator = mm::training::detail::device_generator(torch::Device(torch::kCUDA, 0), 3);
  const Tensor expected = at::rand({4}, mm::detail::to_aten(generator), counter.options());
  generator.set_current_seed(3);
  const auto step = [&] {
    counter.add_(at::rand({}, mm::detail::to_aten(generator), counter.options()));
    counter.item<float>();
    return counter.clone();
  };
  const auto options = GraphedStepOptions().state({counter}).generators({generator});
  const auto error = error_of([&] { GraphedStep(step, torch::kCUDA, options); });
  CHECK_THAT(error, contains("GraphedStep: capturing it in a CUDA graph on cuda:0 failed: "));
  CHECK(error.find('\n') == std::string::npos);
  CHECK(counter.item<float>() == 0);
  CHECK(at::rand({4}, mm::detail::to_aten(generator), counter.options()).equal(expected));
  generator.set_current_seed(3);
  GraphedStep eager(step, torch::kCUDA, GraphedStepOptions(options).enabled(false));
  CHECK(eager().item<float>() > 0);
}

#if defined(MIXMATCH_HAS_CUDA) && MIXMATCH_TORCH_AT_LEAST(2, 1)  // earlier ones' allocators stay in the failed capture
TEST_CASE("after a capture that failed another one succeeds, and the allocator gives memory back") {
  if (skip_without_cuda()) {
    return;
  }
  const torch::Device device(torch::kCUDA, 0);
  Tensor counter = at::zeros({}, device);
  const auto options = GraphedStepOptions().state({counter});
  for (int attempt = 0; attempt < 2; ++attempt) {
    const auto error = error_of([&] {
      GraphedStep([&] { return at::full({}, counter.item<float>()); }, device, options);
    });
    CHECK_THAT(error, contains("GraphedStep: capturing it in a CUDA graph on cuda:0 failed: "));
    c10::cuda::CUDACachingAllocator::emptyCache();
    GraphedStep good([&] { return counter.add_(at::ones({1000}, counter.options()).sum()).clone(); }, device,
                     options);
    REQUIRE(good.is_graphed());
    good();
    CHECK(good().item<float>() == static_cast<float>(2000 * (attempt + 1)));
  }
}
#endif
