#include <ATen/CPUGeneratorImpl.h>
#include <mixmatch/mixup.hpp>
#include <mixmatch/one_hot.hpp>

#include "catch.hpp"
#include "cuda_emulation.hpp"

#include <limits>

using torch::Tensor;

namespace cuda_emulation {
#include "cuda_mixup.inc"
}

namespace {

namespace emulated = cuda_emulation;

Tensor run(const Tensor& x, const Tensor& partners, const Tensor& permutation, const Tensor& lambda,
           bool wide) {
  Tensor out = at::empty_like(x);
  const int64_t row = x.numel() / x.size(0);
  emulated::dispatch(x.scalar_type(), [&](auto scalar) {
    using Scalar = decltype(scalar);
    using Compute = typename emulated::ComputeOf<Scalar>::type;
    const Tensor weights = lambda.to(c10::CppTypeToScalarType<Compute>::value);
    const auto launch = [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      using Pack = emulated::Pack<Scalar, kWidth>;
      emulated::launch(static_cast<unsigned>(x.size(0)), 2, 4, emulated::mix_rows<Scalar, kWidth>,
                       emulated::pointer<Pack>(out), emulated::pointer<Pack>(x),
                       emulated::pointer<Pack>(partners), emulated::pointer<const long long>(permutation),
                       emulated::pointer<Compute>(weights), int64_t{weights.dim() == 0 ? 0 : 1}, row / kWidth,
                       partners.size(0));
    };
    if (wide) {
      launch(std::integral_constant<int, 16 / sizeof(Scalar)>());
    } else {
      launch(std::integral_constant<int, 1>());
    }
  });
  return out;
}

}  // namespace

TEST_CASE("the mixup kernel mixes rows of every dtype, in packs and one by one") {
  torch::manual_seed(1);
  const Tensor permutation = at::tensor({3, 1, 0, 4, 2}, at::kLong);
  for (const auto type : emulated::all_types) {
    for (const Tensor& lambda : {at::rand({5}, at::kDouble), at::rand({}, at::kDouble)}) {
      for (const int64_t row : {48, 7}) {
        const Tensor x = at::randn({5, row}).to(type);
        const Tensor weight = lambda.dim() == 0 ? lambda : lambda.view({5, 1});
        const Tensor exact =
            x.to(at::kDouble) * weight + x.to(at::kDouble).index_select(0, permutation) * (1 - weight);
        INFO(type << ", rows of " << row);
        CHECK(emulated::close(run(x, x, permutation, lambda, false), exact));
        if (row == 48) {
          CHECK(emulated::close(run(x, x, permutation, lambda, true), exact));
        }
      }
    }
  }
}

TEST_CASE("a lambda of 1 leaves the mixup kernel's row as it is, whatever the partner holds") {
  Tensor x = at::randn({3, 8});
  x[1].fill_(std::numeric_limits<float>::infinity());
  const Tensor permutation = at::tensor({1, 0, 1}, at::kLong);
  const Tensor mixed = run(x, x, permutation, at::tensor({1.0, 0.25, 0.5}), true);
  CHECK(mixed[0].equal(x[0]));
  CHECK(mixed[1].isinf().all().item<bool>());
}

TEST_CASE("the mixup kernel takes partners from another tensor") {
  torch::manual_seed(2);
  const Tensor x = at::randn({4, 16}), partners = at::randn({2, 16});
  const Tensor permutation = at::tensor({1, 0, 1, 1}, at::kLong);
  const Tensor lambda = at::rand({4});
  const Tensor exact = mixmatch::detail::mix_rows_composite(x.to(at::kDouble), partners.to(at::kDouble),
                                                            permutation, lambda.to(at::kDouble));
  CHECK(emulated::close(run(x, partners, permutation, lambda, true), exact));
}

TEST_CASE("the library launches the mixup kernel with what it expects") {
  torch::manual_seed(3);
  emulated::EmulatedDevice device;
  device.add("mix_rows<float, 4>", emulated::mix_rows<float, 4>);
  device.add("mix_rows<float, 1>", emulated::mix_rows<float, 1>);
  device.add("mix_rows<BFloat16, 8>", emulated::mix_rows<emulated::BFloat16, 8>);
  const Tensor permutation = at::tensor({2, 0, 1}, at::kLong);
  for (const auto& x :
       {at::randn({3, 3, 4, 4}), at::randn({3, 3, 4, 4}).contiguous(at::MemoryFormat::ChannelsLast),
        at::randn({3, 7}), at::randn({3, 16}).to(at::kBFloat16)}) {
    for (const Tensor& lambda : {at::rand({3}), at::rand({})}) {
      INFO(x.sizes() << " " << x.strides());
      Tensor out = at::empty_like(x);
      REQUIRE(mixmatch::detail::mix_rows_on_cuda(out, x, x, permutation, lambda));
      CHECK(emulated::close(out, mixmatch::detail::mix_rows_composite(x.to(at::kDouble), x.to(at::kDouble),
                                                                      permutation, lambda)));
    }
  }
  CHECK(device.launches() == 8);
  // Rows that do not lie alike, or not one after the other, are left to the composite.
  Tensor x = at::randn({3, 3, 4, 4}), other = x.contiguous(at::MemoryFormat::ChannelsLast);
  CHECK_FALSE(mixmatch::detail::mix_rows_on_cuda(other, x, x, permutation, at::rand({3})));
  Tensor apart = at::randn({6, 4}).slice(0, 0, 6, 2);
  CHECK_FALSE(mixmatch::detail::mix_rows_on_cuda(apart, apart, apart, permutation, at::rand({3})));
}

TEST_CASE("the kernel of Beta's draws is the composite of the same draws") {
  for (const double alpha : {0.01, 0.75, 20.0}) {
    for (const auto type : {at::kFloat, at::kDouble}) {
      for (const bool dominant : {false, true}) {
        const auto draw = [&] {
          auto generator = at::detail::createCPUGenerator(3);
          return mixmatch::detail::sample_symmetric_beta(70, alpha, torch::kCPU, type, generator, dominant);
        };
        const Tensor expected = draw();
        emulated::EmulatedDevice device;
        device.add("beta_of_draws<float>", emulated::beta_of_draws<float>);
        device.add("beta_of_draws<double>", emulated::beta_of_draws<double>);
        const Tensor found = draw();
        CHECK(device.launches() == 1);
        CHECK(found.scalar_type() == type);
        CHECK(emulated::close(found, expected.to(at::kDouble)));
        CHECK(found.min().item<double>() >= (dominant ? 0.5 : 0));
        CHECK(found.max().item<double>() <= 1);
      }
    }
  }
}

TEST_CASE("the kernel of targets joins labels and guesses, the same ones") {
  torch::manual_seed(5);
  const Tensor labels = at::tensor({2, 0, 3, 3}, at::kLong);
  emulated::EmulatedDevice device;
  device.add("join_targets<float>", emulated::join_targets<float>);
  device.add("join_targets<double>", emulated::join_targets<double>);
  device.add("join_targets<BFloat16>", emulated::join_targets<emulated::BFloat16>);
  device.add("join_targets<Half>", emulated::join_targets<emulated::Half>);
  for (const auto type : emulated::all_types) {
    for (const int64_t views : {1, 3}) {
      const Tensor guessed = at::rand({5, 4}).to(type);
      const Tensor found = mixmatch::detail::join_targets_on_cuda(labels, guessed, views);
      CHECK(found.equal(at::cat({mixmatch::one_hot(labels, 4, type), guessed.repeat({views, 1})})));
    }
  }
  CHECK(device.launches() == 8);
  // Several blocks.
  const Tensor many = at::arange(70, at::kLong).remainder(9), guesses = at::rand({50, 9});
  CHECK(mixmatch::detail::join_targets_on_cuda(many, guesses, 2)
            .equal(at::cat({mixmatch::one_hot(many, 9, at::kFloat), guesses, guesses})));
  // Probabilities in place of labels, and labels of another type, are left to ATen's calls.
  CHECK_FALSE(mixmatch::detail::join_targets_on_cuda(at::rand({2, 4}), at::rand({5, 4}), 1).defined());
  CHECK_FALSE(mixmatch::detail::join_targets_on_cuda(labels.to(at::kInt), at::rand({5, 4}), 1).defined());
}
