#include "../benchmarks/gpu/kernel_checks.hpp"
#include "../benchmarks/gpu/step_checks.hpp"
#include "catch.hpp"

TEST_CASE("the GPU's checks hold for the CPU's kernels, too") {
  for (const auto& check : kernel_checks::run_all(torch::kCPU)) {
    INFO(check.name);
    CHECK(check.error <= check.tolerance);
  }
}

TEST_CASE("the GPU's checks of whole steps can be made, and the CPU's are equal to themselves") {
  for (const auto& check : step_checks::run_all(torch::kCPU)) {
    INFO(check.name);
    CHECK(check.error <= check.tolerance);
  }
}

TEST_CASE("a part of the checks that throws is a check that failed, and the next one is made") {
  const auto checks = kernel_checks::run_parts(
      {{"first", [](auto&, auto) { throw std::runtime_error("no such kernel\nmore"); }},
       {"second",
        [](auto& made, auto) {
          made.push_back({"good", 0, 0});
        }}},
      torch::kCPU);
  REQUIRE(checks.size() == 2);
  CHECK(checks[0].name == "first: no such kernel");
  CHECK_FALSE(checks[0].passed());
  CHECK(checks[1].passed());
}

TEST_CASE("a check sees what differs") {
  const at::Tensor ones = at::ones({3});
  CHECK(kernel_checks::difference(ones + 0.5, ones) == Approx(0.25));
  CHECK(kernel_checks::difference(ones, ones) == 0);
  CHECK(std::isinf(kernel_checks::difference(ones * std::nan(""), ones)));
}
