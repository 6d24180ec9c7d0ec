// On a machine with a GPU: whole steps as one CUDA graph.

#include <mixmatch/step/graphed_step.hpp>
#include <mixmatch/step/train_state.hpp>

#include "../benchmarks/gpu/step_checks.hpp"
#include "catch.hpp"
#include "cuda_device.hpp"
#include "test_util.hpp"

#ifdef MIXMATCH_HAS_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#endif

namespace mm = mixmatch;
using mm::training::GraphedStep;
using mm::training::GraphedStepOptions;
using torch::Tensor;

TEST_CASE("a whole step on the GPU is the CPU's, and sixty replays are sixty eager steps") {
  if (skip_without_cuda()) {
    return;
  }
  for (const auto& check : step_checks::run_all(torch::Device(torch::kCUDA, 0))) {
    INFO(check.name);
    CHECK(check.error <= check.tolerance);
  }
}

TEST_CASE("a step that waits for the device cannot be captured, and leaves the state as it was") {
  if (skip_without_cuda()) {
    return;
  }
  Tensor counter = at::zeros({}, torch::kCUDA);
  auto generator = mm::training::detail::seeded_generator(torch::Device(torch::kCUDA, 0), 3);
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

TEST_CASE("a step that draws or counts on the host cannot be captured") {
  if (skip_without_cuda()) {
    return;
  }
  const auto fails = [](const auto& step, const std::string& why) {
    CHECK_THAT(error_of([&] { GraphedStep(step, torch::kCUDA); }), contains(why));
  };
  fails([] { return at::ones({}, torch::kCUDA).mul_(at::rand({}).item<double>()); },
        "it drew from a generator of the host");
  torch::jit::Module script("Net");
  script.register_attribute("calls", c10::IntType::get(), int64_t{0});
  script.define("def forward(self, x):\n  self.calls = self.calls + 1\n  return x * self.calls\n");
  mm::models::ScriptNetwork network(script, 3, "net.pt");
  const Tensor images = at::ones({2, 3}, torch::kCUDA);
  fails([&] { return network->forward(images); }, "net.pt: forward of images [2, 3] fails: it changes an");
}

#if defined(MIXMATCH_HAS_CUDA) && \
    MIXMATCH_TORCH_AT_LEAST(2, 1)  // earlier allocators stay in the failed capture
TEST_CASE("a capture that failed takes no memory along, and the next one succeeds") {
  if (skip_without_cuda()) {
    return;
  }
  const torch::Device device(torch::kCUDA, 0);
  const auto other = c10::cuda::getStreamFromPool(/*isHighPriority=*/false, 0);
  cudaEvent_t event = nullptr;
  REQUIRE(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
  Tensor counter = at::zeros({}, device);
  const auto options = GraphedStepOptions().state({counter});
  const auto waits = [&] {
    const Tensor large = at::ones({32 << 20}, counter.options());  // 128 MB
    counter.item<float>();
    return large.sum();
  };
  const auto leaves_a_stream_behind = [&] {
    const Tensor large = at::ones({32 << 20}, counter.options());
    cudaEventRecord(event, c10::cuda::getCurrentCUDAStream().stream());
    cudaStreamWaitEvent(other.stream(), event, 0);
    const c10::cuda::CUDAStreamGuard guard(other);
    return large.sum();
  };
  const auto free_memory = [] {
    c10::cuda::CUDACachingAllocator::emptyCache();
    size_t free = 0, total = 0;
    REQUIRE(cudaMemGetInfo(&free, &total) == cudaSuccess);
    return static_cast<double>(free);
  };
  const auto fails = [&](const auto& step) {
    CHECK_THAT(error_of([&] { GraphedStep(step, device, options); }),
               contains("GraphedStep: capturing it in a CUDA graph on cuda:0 failed: "));
  };
  fails(waits);  // libraries and kernels have their memory from here on
  fails(leaves_a_stream_behind);
  const double before = free_memory();
  for (int attempt = 1; attempt <= 3; ++attempt) {
    fails(waits);
    fails(leaves_a_stream_behind);
    GraphedStep good([&] { return counter.add_(at::ones({1000}, counter.options()).sum()).clone(); }, device,
                     options);
    REQUIRE(good.is_graphed());
    good();
    CHECK(good().item<float>() == static_cast<float>(2000 * attempt));
  }
  CHECK(free_memory() > before - (64 << 20));
  cudaEventDestroy(event);
}
#endif
