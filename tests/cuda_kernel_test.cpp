#include <mixmatch/detail/cuda/cuda_kernel.hpp>

#include "catch.hpp"
#include "cuda_emulation.hpp"
#include "test_util.hpp"

#include <cstdint>
#include <string>

namespace {

constexpr mixmatch::detail::CudaSource kSource{"scale.cu", ""};

void scale(double* out, int64_t factor, double shift) { *out = *out * static_cast<double>(factor) + shift; }

/// What a launch on an emulated device has against the arguments.
template <class... Arguments>
std::string launch_error(Arguments... arguments) {
  return error_of(
      [&] { mixmatch::detail::launch_cuda_kernel(kSource, "scale", torch::kCPU, {}, arguments...); });
}

}  // namespace

TEST_CASE("an emulated launch takes the kernel's parameters alone, as a GPU's would not tell") {
  cuda_emulation::EmulatedDevice device;
  device.add("scale", scale);
  double number = 2;
  void* out = &number;
  CHECK(launch_error(out, int64_t{3}, 0.5) == "");
  CHECK(number == 6.5);
  const auto refused = contains("the arguments of scale are not its parameters");
  CHECK_THAT(launch_error(out, int64_t{3}), refused);
  CHECK_THAT(launch_error(out, int64_t{3}, 0.5, 0.5), refused);
  CHECK_THAT(launch_error(out, int32_t{3}, 0.5), refused);
  CHECK_THAT(launch_error(out, int64_t{3}, 0.5F), refused);
  CHECK_THAT(launch_error(out, 3.0, 0.5), refused);
  CHECK_THAT(launch_error(int64_t{3}, int64_t{3}, 0.5), refused);
  CHECK(number == 6.5);
}
