#include <mixmatch/step/meter.hpp>

#include <cmath>
#include <limits>

#include "catch.hpp"
#include "cuda_emulation.hpp"
#include "test_util.hpp"

namespace cuda_emulation {
#include "cuda_meter.inc"
}

using mixmatch::Meter;
using mixmatch::StepLoss;
using mixmatch::StepMeans;
using torch::Tensor;

namespace {

Tensor meter_value(double value) { return at::full({}, value, at::TensorOptions(at::kDouble)); }
const Tensor kFinite = at::ones({}, at::TensorOptions(at::kBool)), kNotFinite = at::zeros_like(kFinite);

}  // namespace

TEST_CASE("Meter: means by name, each over the numbers that there were") {
  Meter meter(torch::kCPU);
  const double none = std::numeric_limits<double>::quiet_NaN();
  meter.add(
      {meter_value(1).to(at::kFloat), {{"mask_rate", meter_value(0.5)}, {"accuracy", meter_value(none)}}},
      kFinite);
  meter.add({meter_value(2), {{"mask_rate", meter_value(0.25)}, {"accuracy", meter_value(0.75)}}}, kFinite);
  meter.add(
      {meter_value(6), {{"mask_rate", meter_value(0).to(at::kBFloat16)}, {"accuracy", meter_value(none)}}},
      kFinite);
  const StepMeans means = meter.read();
  CHECK(means.names == std::vector<std::string>{"loss", "mask_rate", "accuracy"});
  CHECK(means.values == std::vector<double>{3, 0.25, 0.75});
  CHECK(means.counts == std::vector<double>{3, 3, 1});
  CHECK(means.finite);
  // Anew.
  meter.add({meter_value(4), {{"mask_rate", meter_value(1)}, {"accuracy", meter_value(none)}}}, kFinite);
  const StepMeans next = meter.read();
  CHECK(next.values[0] == 4);
  CHECK(next.counts == std::vector<double>{1, 1, 0});
  CHECK(std::isnan(next.values[2]));
}

TEST_CASE("Meter: a loss or a gradient that is not finite shows") {
  Meter meter(torch::kCPU);
  meter.add({meter_value(1).view({1, 1})}, kFinite);
  meter.add({meter_value(std::numeric_limits<double>::quiet_NaN())}, kFinite);
  const auto means = meter.read();
  CHECK(std::isnan(means.values[0]));
  CHECK(means.finite);
  meter.add({meter_value(1)}, kNotFinite);
  meter.add({meter_value(1)}, kFinite);
  CHECK_FALSE(meter.read().finite);
  meter.add({meter_value(1)}, kFinite);
  CHECK(meter.read().finite);
}

TEST_CASE("Meter: keeps no graph, and moves only its state") {
  Meter meter(torch::kCPU);
  const Tensor weight = meter_value(2).requires_grad_();
  meter.add({weight * 3, {{"part", weight * 2}}}, kFinite);
  for (const Tensor& tensor : meter.state()) {
    CHECK_FALSE(tensor.requires_grad());
  }
  std::vector<Tensor> before;
  for (const Tensor& tensor : meter.state()) {
    before.push_back(tensor.clone());
  }
  meter.add({meter_value(100), {{"part", meter_value(100)}}}, kNotFinite);
  for (size_t i = 0; i < before.size(); ++i) {
    meter.state()[i].copy_(before[i]);  // what a graph's rollback does
  }
  const auto means = meter.read();
  CHECK(means.values == std::vector<double>{6, 4});
  CHECK(means.finite);
}

TEST_CASE("Meter names what does not fit") {
  Meter meter(torch::kCPU, 2);
  CHECK_THAT(error_of([&] { meter.add({}, kFinite); }), contains("total must be a scalar, got undefined"));
  CHECK_THAT(error_of([&] { meter.add({at::ones({2})}, kFinite); }),
             contains("total must be a scalar, got [2]"));
  CHECK_THAT(error_of([&] {
               meter.add({meter_value(1), {{"a", meter_value(1)}, {"b", meter_value(1)}}}, kFinite);
             }),
             contains("2 values do not fit a capacity of 2, the loss included"));
  meter.add({meter_value(1), {{"a", meter_value(1)}}}, kFinite);
  CHECK_THAT(error_of([&] {
               meter.add({meter_value(1), {{"b", meter_value(1)}}}, kFinite);
             }),
             contains("a method must give the same values at each step"));
  CHECK_THAT(error_of([&] { meter.add({meter_value(1)}, kFinite); }),
             contains("the same values at each step"));
  CHECK_THAT(error_of([&] {
               meter.add({meter_value(1), {{"a", at::ones({3})}}}, kFinite);
             }),
             contains("a must be a scalar, got [3]"));
}

TEST_CASE("StepMeans::of_step: one step's numbers") {
  const auto means = StepMeans::of_step({{"loss", 1}, {"quality", std::nan("")}});
  CHECK(means.counts == std::vector<double>{1, 0});
  CHECK(means.finite);
}

TEST_CASE("Meter: the kernel adds up as ATen's calls do, numbers of every dtype") {
  const double none = std::numeric_limits<double>::quiet_NaN();
  const auto add_all = [&](Meter& meter) {
    for (int64_t step = 0; step < 3; ++step) {
      const auto number = static_cast<double>(step) + 0.5;
      meter.add({meter_value(step == 1 ? none : number).to(at::kFloat).view({1, 1}),
                 {{"double", meter_value(number)},
                  {"bfloat16", meter_value(number).to(at::kBFloat16)},
                  {"half", meter_value(step == 2 ? none : number).to(at::kHalf)},
                  {"long", meter_value(number).to(at::kLong)},
                  {"bool", meter_value(number).gt(1)},
                  {"never", meter_value(none)}}},
                step == 1 ? kNotFinite : kFinite);
    }
  };
  Meter plain(torch::kCPU), by_kernel(torch::kCPU);
  add_all(plain);
  {
    cuda_emulation::EmulatedDevice device;
    device.add("add_numbers<double>", cuda_emulation::add_numbers<double>);
    add_all(by_kernel);
    CHECK(device.launches() == 3);
  }
  const auto expected = plain.state(), found = by_kernel.state();
  for (size_t i = 0; i < expected.size(); ++i) {
    CHECK(at::allclose(found[i].to(at::kDouble), expected[i].to(at::kDouble), 0, 0, /*equal_nan=*/true));
  }
  CHECK(by_kernel.read().counts == std::vector<double>{3, 3, 3, 2, 3, 3, 0});
}
