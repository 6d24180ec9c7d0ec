#include <mixmatch/optim/flat_gradients.hpp>

#include "catch.hpp"
#include "cuda_emulation.hpp"
#include "test_util.hpp"

using mixmatch::training::detail::FlatGradients;
using mixmatch::training::detail::FlatLayout;
using torch::Tensor;

namespace {

struct TwoParameters {
  Tensor kernel = at::randn({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast).requires_grad_(),
         bias = at::randn({70}).requires_grad_();
  Tensor own = at::randn({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast);
  FlatLayout layout;

  TwoParameters() {
    layout.add("kernel", kernel, {}, /*is_kernel=*/true, /*rate_factor=*/1);
    layout.add("bias", bias, {}, false, 1);
  }
};

}  // namespace

TEST_CASE("FlatGradients: a parameter's own gradient is read where it lies, with its copy's added") {
  torch::manual_seed(1);
  TwoParameters of;
  FlatGradients gradients(of.layout);
  CHECK_FALSE(gradients.block().defined());
  CHECK_FALSE(gradients.of(0).defined());
  of.kernel.mutable_grad() = of.own;
  CHECK(gradients.of(0).data_ptr() == of.own.data_ptr());
  const Tensor of_copy = at::randn_like(of.own);
  gradients.kept()->of_copy[0] = of_copy;
  CHECK(gradients.of(0).equal(of.own + of_copy));
  of.kernel.mutable_grad().reset();
  CHECK(gradients.of(0).equal(of_copy));
  of.bias.mutable_grad() = at::ones({70});
  gradients.drop();
  CHECK_FALSE(gradients.of(0).defined());
  CHECK_FALSE(of.bias.grad().defined());
}

TEST_CASE("FlatGradients: one of other strides or another dtype comes in the parameter's") {
  torch::manual_seed(2);
  TwoParameters of;
  FlatGradients gradients(of.layout);
  of.kernel.mutable_grad() = of.own.contiguous();
  CHECK(gradients.of(0).strides() == of.kernel.strides());
  CHECK(gradients.of(0).equal(of.own));
  of.kernel.mutable_grad().reset();
  const Tensor half = of.own.to(at::kBFloat16);
  gradients.kept()->of_copy[0] = half;
  CHECK(gradients.of(0).equal(half.to(at::kFloat)));
}

TEST_CASE("FlatGradients: all into one block, zeros where there is none") {
  torch::manual_seed(3);
  const cuda_emulation::EmulatedDevice device;
  TwoParameters of;
  FlatGradients gradients(of.layout);
  REQUIRE(gradients.block().defined());
  gradients.block().fill_(7);  // of the step before
  of.kernel.mutable_grad() = of.own;
  gradients.gather();
  CHECK(of.layout.parameters()[0].view_in(gradients.block()).equal(of.own));
  CHECK(gradients.block().count_nonzero().item<int64_t>() == 120);
}
