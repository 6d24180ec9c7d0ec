#include <mixmatch/step/graphed_step.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <vector>

namespace mm = mixmatch;
using mm::training::GraphedStep;
using mm::training::GraphedStepOptions;
using torch::Tensor;

namespace {

struct Losses {
  Tensor first, second;
};

/// The allocators' ways to end a capture's allocations: of one stream, of all that joined it, and none.
struct OfOneStream {
  virtual ~OfOneStream() = default;
  virtual void endAllocateStreamToPool(int, void*) = 0;
};
struct OfAllStreams {
  virtual ~OfAllStreams() = default;
  virtual void endAllocateToPool(int, int) = 0;
};
struct OfEarlyLibTorch {};

}  // namespace

TEST_CASE("a graphed step on the CPU, or switched off, runs the step at each call and nothing before") {
  int calls = 0;
  Tensor counter = at::zeros({});
  const auto step = [&] {
    ++calls;
    counter.add_(1);
    return Losses{counter.clone(), counter * 2};
  };
  for (const auto& options : {GraphedStepOptions(), GraphedStepOptions().enabled(false).state({counter})}) {
    calls = 0;
    counter.zero_();
    GraphedStep graphed(step, torch::kCPU, options);
    CHECK(calls == 0);
    CHECK_FALSE(graphed.is_graphed());
    CHECK(graphed().first.item<float>() == 1);
    CHECK(graphed().second.item<float>() == 4);
    CHECK(calls == 2);
  }
}

TEST_CASE("a step may return a tensor or several") {
  GraphedStep one([] { return at::ones({}); }, torch::kCPU);
  CHECK(one().item<float>() == 1);
  GraphedStep many([] { return std::vector<Tensor>{at::ones({}), at::zeros({})}; }, torch::kCPU);
  CHECK(many().size() == 2);
}

TEST_CASE("an error of an eager step is the step's own") {
  GraphedStep graphed([]() -> Tensor { TORCH_CHECK(false, "out of luck"); }, torch::kCPU);
  CHECK_THAT(error_of([&] { graphed(); }), contains("out of luck"));
}

TEST_CASE("a snapshot of a step's state puts back tensors, generators and gradients") {
  Tensor weight = at::ones({3}).requires_grad_(), counter = at::zeros({}, at::kLong);
  auto generator = seeded(7);
  const auto draw = [&] { return at::rand({4}, mm::detail::to_aten(generator), at::TensorOptions()); };
  mm::training::detail::StepSnapshot snapshot(
      GraphedStepOptions().state({weight, counter}).parameters({weight}).generators({generator}));
  const Tensor first = draw();
  weight.square().sum().backward();
  {
    const torch::NoGradGuard no_grad;
    weight.add_(1);
  }
  counter.add_(5);
  CHECK(snapshot.drew_on_host());
  snapshot.restore();
  CHECK_FALSE(snapshot.drew_on_host());
  CHECK(weight.detach().equal(at::ones({3})));
  CHECK(counter.item<int64_t>() == 0);
  CHECK_FALSE(weight.grad().defined());
  CHECK(draw().equal(first));
}

TEST_CASE("a snapshot sees draws from LibTorch's own generator of the host, and puts it back") {
  mm::training::detail::StepSnapshot snapshot{GraphedStepOptions()};
  CHECK_FALSE(snapshot.drew_on_host());
  const Tensor first = at::rand({4});
  CHECK(snapshot.drew_on_host());
  snapshot.restore();
  CHECK_FALSE(snapshot.drew_on_host());
  CHECK(at::rand({4}).equal(first));
}

TEST_CASE("a capture uses second streams only where their memory is the graph's") {
  CHECK_FALSE(mm::detail::captures_second_streams<OfOneStream>());
  CHECK(mm::detail::captures_second_streams<OfAllStreams>());
  CHECK(mm::detail::captures_second_streams<OfEarlyLibTorch>());
}

TEST_CASE("a graphed step names a bad option") {
  const auto step = [] { return at::ones({}); };
  CHECK_THAT(error_of([&] { GraphedStep(step, torch::kCPU, GraphedStepOptions().warmup_steps(0)); }),
             contains("warmup_steps must be >= 1, got 0"));
  CHECK_THAT(error_of([&] { GraphedStep(step, torch::kCPU, GraphedStepOptions().state({Tensor()})); }),
             contains("state must hold defined tensors"));
  if (!mm::detail::has_cuda) {
    CHECK_THAT(error_of([&] { GraphedStep(step, torch::kCUDA); }), contains("this build has no CUDA"));
  }
}
