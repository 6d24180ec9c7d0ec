#include <torch/nn/module.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>
#include <mixmatch/detail/cuda/cuda_optimizer.hpp>

#include "catch.hpp"
#include "cuda_emulation.hpp"
#include "test_util.hpp"

#include <limits>
#include <memory>
#include <variant>
#include <vector>

using mixmatch::detail::AdamRule;
using mixmatch::detail::flat_step_;
using mixmatch::detail::flat_step_composite_;
using mixmatch::detail::FlatConstants;
using mixmatch::detail::FlatParameters;
using mixmatch::detail::FlatScalars;
using mixmatch::detail::SgdRule;
using torch::Tensor;

namespace cuda_emulation {
#include "cuda_optimizer.inc"
}

namespace {

constexpr int64_t kFlatSize = 37, kFlatKernels = 20;
enum class FlatRule { adam, nesterov, momentum };
const std::vector<FlatRule> kFlatRules{FlatRule::adam, FlatRule::nesterov, FlatRule::momentum};

FlatConstants flat_constants(FlatRule rule, double l2 = 0.2) {
  const mixmatch::detail::UpdateRule adam = AdamRule{0.8, 0.95, 1e-6};
  return {rule == FlatRule::adam ? adam : SgdRule{0.7, rule == FlatRule::nesterov}, 0.3, l2};
}

Tensor flat_scalar(double value) { return at::full({}, value, at::kDouble); }

FlatParameters flat_parameters(FlatRule rule, at::ScalarType type, bool averages) {
  torch::manual_seed(1);
  FlatParameters result;
  result.parameters = at::randn({kFlatSize}).to(type);
  result.first_moment = at::zeros({kFlatSize}, type);
  if (rule == FlatRule::adam) {
    result.second_moment = at::zeros({kFlatSize}, type);
  }
  result.average = averages ? result.parameters.clone() : Tensor();
  result.is_kernel = at::arange(kFlatSize).lt(kFlatKernels);
  return result;
}

Tensor flat_gradient(int64_t step, at::ScalarType type) {
  return (at::arange(kFlatSize, at::kDouble) * (0.1 + static_cast<double>(step))).sin().to(type);
}

double flat_rate(int64_t step) { return 0.05 / static_cast<double>(step + 1); }

FlatScalars flat_scalars(int64_t step) {
  return {at::full({}, step, at::kLong), flat_scalar(flat_rate(step)), flat_scalar(0.9),
          at::ones({}, at::kBool)};
}

/// The kernel under emulation.
void emulated_flat_step(const FlatParameters& f, const FlatScalars& s, const FlatConstants& c) {
  namespace emulated = cuda_emulation;
  const auto run = [&](auto type) {
    using Scalar = decltype(type);
    if constexpr (sizeof(Scalar) >= 4) {
      const auto at = [](const Tensor& tensor) {
        return tensor.defined() ? emulated::pointer<Scalar>(tensor) : nullptr;
      };
      const auto* gradients = static_cast<const Scalar*>(at(f.gradients));
      const auto* is_kernel = emulated::pointer<const unsigned char>(f.is_kernel);
      const auto* rate = emulated::pointer<const double>(s.learning_rate);
      const auto* decay =
          s.average_decay.defined() ? emulated::pointer<const double>(s.average_decay) : nullptr;
      const auto* apply = s.apply.defined() ? emulated::pointer<const unsigned char>(s.apply) : nullptr;
      if (const auto* adam = std::get_if<AdamRule>(&c.rule)) {
        emulated::launch(2, 1, 4, emulated::adam_step<Scalar>, at(f.parameters), gradients,
                         at(f.first_moment), at(f.second_moment), at(f.average), is_kernel,
                         static_cast<const Scalar*>(nullptr),
                         emulated::pointer<const long long>(s.steps_done), rate, decay, apply, adam->beta1,
                         adam->beta2, adam->eps, c.weight_decay, c.l2, kFlatSize);
      } else {
        const auto& sgd = std::get<SgdRule>(c.rule);
        emulated::launch(2, 1, 4, emulated::sgd_step<Scalar>, at(f.parameters), gradients, at(f.first_moment),
                         at(f.average), is_kernel, static_cast<const Scalar*>(nullptr), rate, decay, apply,
                         sgd.momentum, static_cast<long long>(sgd.nesterov), c.weight_decay, c.l2, kFlatSize);
      }
    }
  };
  emulated::dispatch(f.parameters.scalar_type(), run);
}

/// LibTorch's optimiser of a double-precision copy: its kernels, with the penalty, and the rest.
struct FlatReference {
  FlatReference(const Tensor& start, const FlatConstants& c) {
    const Tensor whole = start.to(at::kDouble);
    parts = {whole.narrow(0, 0, kFlatKernels).clone().requires_grad_(),
             whole.narrow(0, kFlatKernels, kFlatSize - kFlatKernels).clone().requires_grad_()};
    average = whole.clone();
    for (size_t i = 0; i < 2; ++i) {
      const double l2 = i == 0 ? c.l2 : 0;
      if (const auto* adam = std::get_if<AdamRule>(&c.rule)) {
        optimizers.push_back(std::make_unique<torch::optim::Adam>(
            std::vector<Tensor>{parts[i]},
            torch::optim::AdamOptions().betas({adam->beta1, adam->beta2}).eps(adam->eps).weight_decay(l2)));
      } else {
        const auto& sgd = std::get<SgdRule>(c.rule);
        optimizers.push_back(std::make_unique<torch::optim::SGD>(
            std::vector<Tensor>{parts[i]},
            torch::optim::SGDOptions(1).momentum(sgd.momentum).nesterov(sgd.nesterov).weight_decay(l2)));
      }
    }
  }

  void step(const Tensor& gradients, double rate, double weight_decay) {
    parts[0].mutable_grad() = gradients.to(at::kDouble).narrow(0, 0, kFlatKernels).clone();
    parts[1].mutable_grad() =
        gradients.to(at::kDouble).narrow(0, kFlatKernels, kFlatSize - kFlatKernels).clone();
    for (auto& optimizer : optimizers) {
      auto& options = optimizer->param_groups()[0].options();
      if (auto* adam = dynamic_cast<torch::optim::AdamOptions*>(&options)) {
        adam->lr(rate);
      } else {
        static_cast<torch::optim::SGDOptions&>(options).lr(rate);
      }
      optimizer->step();
    }
    const torch::NoGradGuard no_grad;
    parts[0].mul_(1 - rate * weight_decay);
    average.mul_(0.9).add_(parameters(), 0.1);
  }

  Tensor parameters() const { return at::cat(parts).detach(); }

  std::vector<Tensor> parts;
  Tensor average;
  std::vector<std::unique_ptr<torch::optim::Optimizer>> optimizers;
};

}  // namespace

TEST_CASE("a flat step is LibTorch's optimiser, then decay of kernels, then the moving average") {
  for (const auto rule : kFlatRules) {
    for (const auto type : {at::kDouble, at::kFloat}) {
      for (const bool averages : {true, false}) {
        for (const double l2 : {0.0, 0.2}) {
          const auto constants = flat_constants(rule, l2);
          auto composite = flat_parameters(rule, type, averages),
               kernel = flat_parameters(rule, type, averages);
          FlatReference expected(composite.parameters, constants);
          for (int64_t step = 0; step < 6; ++step) {
            composite.gradients = kernel.gradients = flat_gradient(step, type);
            expected.step(composite.gradients, flat_rate(step), constants.weight_decay);
            auto scalars = flat_scalars(step);
            if (!averages) {
              scalars.average_decay = Tensor();
            }
            flat_step_(composite, scalars, constants);  // on the CPU: by ATen's calls
            emulated_flat_step(kernel, scalars, constants);
            INFO("rule " << static_cast<int>(rule) << ", " << type << ", l2 " << l2 << ", step " << step);
            for (const auto* result : {&composite, &kernel}) {
              const double tolerance = type == at::kDouble ? 1e-12 : 1e-5;
              CHECK(at::allclose(result->parameters.to(at::kDouble), expected.parameters(), tolerance,
                                 tolerance));
              if (averages) {
                CHECK(at::allclose(result->average.to(at::kDouble), expected.average, tolerance, tolerance));
              }
            }
          }
        }
      }
    }
  }
}

TEST_CASE("a flat step that does not apply changes nothing") {
  for (const auto rule : kFlatRules) {
    for (const bool use_kernel : {false, true}) {
      const auto constants = flat_constants(rule);
      auto f = flat_parameters(rule, at::kFloat, true);
      f.gradients = at::full({kFlatSize}, std::numeric_limits<float>::quiet_NaN());
      const auto before = flat_parameters(rule, at::kFloat, true);
      auto s = flat_scalars(3);
      s.apply = at::zeros({}, at::kBool);
      const auto step = [&] {
        use_kernel ? emulated_flat_step(f, s, constants) : flat_step_(f, s, constants);
      };
      step();
      CHECK(f.parameters.equal(before.parameters));
      CHECK(f.average.equal(before.average));
      CHECK(f.first_moment.equal(before.first_moment));
      CHECK((rule != FlatRule::adam || f.second_moment.equal(before.second_moment)));
      CHECK(s.steps_done.item<int64_t>() == 3);
      s.apply = Tensor();
      step();
      CHECK(f.parameters.isnan().all().item<bool>());
      CHECK(s.steps_done.item<int64_t>() == 3);
    }
  }
}

TEST_CASE("a flat step names a tensor that does not fit") {
  const auto constants = flat_constants(FlatRule::adam);
  const auto refused = [&](const FlatParameters& f) {
    return error_of([&] { flat_step_(f, flat_scalars(0), constants); });
  };
  auto f = flat_parameters(FlatRule::adam, at::kFloat, true);
  CHECK_THAT(error_of([&] {
               auto half = f;
               half.parameters = f.parameters.to(at::kHalf);
               flat_step_(half, flat_scalars(0), constants);
             }),
             contains("parameters must be float32 or float64, got Half"));
  f.gradients = at::zeros({kFlatSize + 1});
  CHECK_THAT(refused(f), contains("must be contiguous Float [37] on cpu, got Float [38]"));
  f.gradients = at::zeros({kFlatSize}, at::kDouble);
  CHECK_THAT(refused(f), contains("must be contiguous Float [37] on cpu, got Double [37]"));
  f.gradients = at::zeros({2 * kFlatSize}).slice(0, 0, 2 * kFlatSize, 2);
  CHECK_THAT(refused(f), contains("must be contiguous"));
  f.gradients = at::zeros({kFlatSize});
  f.second_moment = at::zeros({3});
  CHECK_THAT(refused(f), contains("got Float [3]"));
}

TEST_CASE("the library launches the optimiser's kernels with what they expect") {
  namespace emulated = cuda_emulation;
  emulated::EmulatedDevice device;
  device.add("adam_step<float>", emulated::adam_step<float>);
  device.add("adam_step<double>", emulated::adam_step<double>);
  device.add("sgd_step<float>", emulated::sgd_step<float>);
  device.add("sgd_step<double>", emulated::sgd_step<double>);
  for (const auto rule : kFlatRules) {
    for (const auto type : {at::kFloat, at::kDouble}) {
      for (const bool averages : {true, false}) {
        const auto constants = flat_constants(rule);
        auto launched = flat_parameters(rule, type, averages),
             composite = flat_parameters(rule, type, averages);
        launched.gradients = composite.gradients = flat_gradient(2, type);
        const int before = device.launches();
        for (int64_t step = 4; step < 6; ++step) {
          flat_step_(launched, flat_scalars(step), constants);
          flat_step_composite_(composite, flat_scalars(step), constants);
        }
        CHECK(device.launches() == before + 2);
        CHECK(at::allclose(launched.parameters, composite.parameters, 1e-5, 1e-6));
        CHECK(at::allclose(launched.first_moment, composite.first_moment, 1e-5, 1e-6));
        if (rule == FlatRule::adam) {
          CHECK(at::allclose(launched.second_moment, composite.second_moment, 1e-5, 1e-6));
        }
        if (averages) {
          CHECK(at::allclose(launched.average, composite.average, 1e-5, 1e-6));
        }
      }
    }
  }
}

TEST_CASE("a step counts if none of many blocks met a gradient that is not finite") {
  cuda_emulation::EmulatedDevice device;
  device.add("begin_step<double>", cuda_emulation::begin_step<double>);
  for (const int64_t bad : {-1, 0, 255, 256, 699}) {
    const Tensor flags = at::zeros({700}, at::kByte);
    if (bad >= 0) {
      flags[bad] = 1;
    }
    const mixmatch::detail::StepCounters counters{at::zeros({}, at::kBool), at::full({}, 4, at::kLong),
                                                  at::zeros({}, at::kLong), at::full({}, 6, at::kLong),
                                                  flat_scalar(0)};
    mixmatch::detail::begin_step_on_cuda(flags, counters, 0.9, /*warms_up=*/true);
    const bool counts = bad < 0;
    CHECK(counters.apply.item<bool>() == counts);
    CHECK(counters.steps_before.item<int64_t>() == 4);
    CHECK(counters.steps.item<int64_t>() == (counts ? 5 : 4));
    CHECK(counters.updates.item<int64_t>() == (counts ? 7 : 6));
    CHECK(counters.average_decay.item<double>() == Approx(7.0 / 16));
  }
}
