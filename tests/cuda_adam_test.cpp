#include <torch/nn/module.h>
#include <torch/optim/adam.h>
#include <mixmatch/detail/cuda/cuda_adam.hpp>

#include "catch.hpp"
#include "cuda_emulation.hpp"
#include "test_util.hpp"

using mixmatch::detail::AdamConstants;
using mixmatch::detail::AdamScalars;
using mixmatch::detail::FlatParameters;
using torch::Tensor;

namespace cuda_emulation {
#include "cuda_adam.inc"
}

namespace {

constexpr int64_t kSize = 37;
const AdamConstants kConstants{0.8, 0.95, 1e-6, 0.3};

Tensor scalar(double value) { return at::full({}, value, at::kDouble); }

FlatParameters flat(at::ScalarType type, bool averages) {
  torch::manual_seed(1);
  FlatParameters result;
  result.parameters = at::randn({kSize}).to(type);
  result.first_moment = at::zeros({kSize}, type);
  result.second_moment = at::zeros({kSize}, type);
  result.average = averages ? result.parameters.clone() : Tensor();
  result.is_kernel = at::arange(kSize).lt(20);
  return result;
}

Tensor gradient(int64_t step, at::ScalarType type) {
  return (at::arange(kSize, at::kDouble) * (0.1 + static_cast<double>(step))).sin().to(type);
}

AdamScalars scalars(int64_t step) {
  return {at::full({}, step, at::kLong), scalar(0.05 / static_cast<double>(step + 1)), scalar(0.9),
          at::ones({}, at::kBool)};
}

/// The kernel under emulation.
void emulated_step(const FlatParameters& f, const AdamScalars& s) {
  const auto run = [&](auto type) {
    using Scalar = decltype(type);
    if constexpr (sizeof(Scalar) >= 4) {
      const auto at = [](const Tensor& tensor) {
        return tensor.defined() ? cuda_emulation::pointer<Scalar>(tensor) : nullptr;
      };
      const auto* apply = s.apply.defined() ? cuda_emulation::pointer<const unsigned char>(s.apply) : nullptr;
      cuda_emulation::launch(2, 1, 4, cuda_emulation::adam_step<Scalar>, at(f.parameters),
                             static_cast<const Scalar*>(at(f.gradients)), at(f.first_moment),
                             at(f.second_moment), at(f.average),
                             cuda_emulation::pointer<const unsigned char>(f.is_kernel),
                             cuda_emulation::pointer<const long long>(s.steps_done),
                             cuda_emulation::pointer<const double>(s.learning_rate),
                             cuda_emulation::pointer<const double>(s.average_decay), apply, kConstants.beta1,
                             kConstants.beta2, kConstants.eps, kConstants.weight_decay, kSize);
    }
  };
  cuda_emulation::dispatch(f.parameters.scalar_type(), run);
}

}  // namespace

TEST_CASE("a flat Adam step is torch::optim::Adam, then decay of kernels, then the moving average") {
  for (const auto type : {at::kDouble, at::kFloat}) {
    for (const bool averages : {true, false}) {
      auto composite = flat(type, averages), kernel = flat(type, averages);
      Tensor expected = flat(at::kDouble, false).parameters.to(type).to(at::kDouble).requires_grad_();
      Tensor average = expected.detach().clone();
      torch::optim::Adam adam(
          {expected},
          torch::optim::AdamOptions().betas({kConstants.beta1, kConstants.beta2}).eps(kConstants.eps));
      for (int64_t step = 0; step < 6; ++step) {
        composite.gradients = kernel.gradients = gradient(step, type);
        const double rate = 0.05 / static_cast<double>(step + 1);
        static_cast<torch::optim::AdamOptions&>(adam.param_groups()[0].options()).lr(rate);
        expected.mutable_grad() = composite.gradients.to(at::kDouble);
        adam.step();
        {
          const torch::NoGradGuard no_grad;
          expected.narrow(0, 0, 20).mul_(1 - rate * kConstants.weight_decay);
          average.mul_(0.9).add_(expected, 0.1);
        }
        mixmatch::detail::flat_adam_step_(composite, scalars(step), kConstants);
        emulated_step(kernel, scalars(step));
        INFO(type << ", step " << step);
        for (const auto* result : {&composite, &kernel}) {
          const double tolerance = type == at::kDouble ? 1e-12 : 1e-5;
          CHECK(at::allclose(result->parameters.to(at::kDouble), expected.detach(), tolerance, tolerance));
          if (averages) {
            CHECK(at::allclose(result->average.to(at::kDouble), average, tolerance, tolerance));
          }
        }
      }
    }
  }
}

TEST_CASE("a flat Adam step that does not apply changes nothing") {
  for (const bool use_kernel : {false, true}) {
    auto f = flat(at::kFloat, true);
    f.gradients = at::full({kSize}, std::numeric_limits<float>::quiet_NaN());
    const auto before = flat(at::kFloat, true);
    auto s = scalars(3);
    s.apply = at::zeros({}, at::kBool);
    use_kernel ? emulated_step(f, s) : mixmatch::detail::flat_adam_step_(f, s, kConstants);
    CHECK(f.parameters.equal(before.parameters));
    CHECK(f.average.equal(before.average));
    CHECK(f.first_moment.equal(before.first_moment));
    CHECK(f.second_moment.equal(before.second_moment));
    s.apply = Tensor();
    use_kernel ? emulated_step(f, s) : mixmatch::detail::flat_adam_step_(f, s, kConstants);
    CHECK(f.parameters.isnan().all().item<bool>());
  }
}

TEST_CASE("a flat Adam step names a tensor that does not fit") {
  auto f = flat(at::kFloat, true);
  f.gradients = at::zeros({kSize + 1});
  CHECK_THAT(error_of([&] { mixmatch::detail::flat_adam_step_(f, scalars(0), kConstants); }),
             contains("must be contiguous Float [37] on cpu, got Float [38]"));
}

TEST_CASE("the library launches the Adam kernel with what it expects") {
  cuda_emulation::EmulatedDevice device;
  device.add("adam_step<float>", cuda_emulation::adam_step<float>);
  for (const bool averages : {true, false}) {
    auto launched = flat(at::kFloat, averages), composite = flat(at::kFloat, averages);
    launched.gradients = composite.gradients = gradient(2, at::kFloat);
    mixmatch::detail::flat_adam_step_(launched, scalars(4), kConstants);
    mixmatch::detail::flat_adam_composite_(composite, scalars(4), kConstants);
    CHECK(at::allclose(launched.parameters, composite.parameters, 1e-5, 1e-6));
    CHECK(at::allclose(launched.second_moment, composite.second_moment, 1e-5, 1e-6));
    if (averages) {
      CHECK(at::allclose(launched.average, composite.average, 1e-5, 1e-6));
    }
  }
  CHECK(device.launches() == 2);
}
