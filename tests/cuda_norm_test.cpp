#include <torch/autograd.h>
#include <mixmatch/detail/cuda/cuda_norm.hpp>
#include <mixmatch/nn/batch_norm_leaky_relu.hpp>

#include "../benchmarks/gpu/kernel_checks.hpp"
#include "catch.hpp"
#include "emulated_norm.hpp"
#include "test_util.hpp"

#include <algorithm>
#include <utility>
#include <vector>

using torch::Tensor;

namespace {

namespace emulated = cuda_emulation;
constexpr unsigned kThreads = 32;
constexpr double kEps = 1e-3, kSlope = 0.1;

struct Case {
  Tensor x, addend, weight, bias, grad_y, grad_sum;
  int64_t groups;
  int64_t processors = 6;  // that the grid is for: few, as blocks take their time here
};

struct Results {
  Tensor y, sum, mean, invstd, var_unbiased, running_mean, running_var, grad_x, grad_weight, grad_bias;
};

mixmatch::detail::NormGrid grid_of(const Case& c, int64_t width) {
  const int64_t channels = c.x.size(1);
  return {c.x.numel() / channels, channels, c.groups, width, kThreads, c.processors};
}

/// The launches of cuda_norm_forward() and cuda_norm_backward(), emulated.
template <class Scalar, int width>
Results run_packs(const Case& c) {
  using Compute = typename emulated::ComputeOf<Scalar>::type;
  using Words = emulated::Row<Scalar, width>;
  const int64_t channels = c.x.size(1);
  const auto grid = grid_of(c, width);
  const auto options = c.weight.options();
  const auto rows = [](const Tensor& tensor) {
    return tensor.defined() ? emulated::pointer<Words>(tensor) : nullptr;
  };
  const auto values = [](const Tensor& tensor) { return emulated::pointer<Compute>(tensor); };
  const auto launch = [&](auto kernel, auto... arguments) {
    emulated::launch(static_cast<unsigned>(grid.groups * grid.chunks), static_cast<unsigned>(grid.tiles()),
                     kThreads, kernel, arguments..., grid.rows, grid.packs, grid.span,
                     static_cast<int>(grid.chunks), static_cast<int>(grid.lane_bits));
  };
  constexpr auto share = static_cast<Compute>(0.25), eps = static_cast<Compute>(kEps),
                 slope = static_cast<Compute>(kSlope);
  Results r;
  r.y = at::empty_like(c.x);
  r.sum = c.addend.defined() ? at::empty_like(c.x) : c.x;
  r.mean = at::empty({c.groups, channels}, options);
  r.invstd = at::empty_like(r.mean);
  r.var_unbiased = at::empty_like(r.mean);
  r.running_mean = at::full({channels}, 2.0, options);
  r.running_var = at::full({channels}, 3.0, options);
  r.grad_x = at::empty_like(c.x);
  r.grad_weight = at::empty_like(c.weight);
  r.grad_bias = at::empty_like(c.bias);
  const Tensor chunks = at::empty({2, c.groups * grid.chunks, channels}, options);
  launch(c.addend.defined() ? emulated::norm_moments<Scalar, width, true>
                            : emulated::norm_moments<Scalar, width, false>,
         rows(c.x), rows(c.addend), rows(r.sum), values(chunks[0]), values(chunks[1]));
  launch(emulated::norm_activate<Scalar, width>, rows(r.y), rows(r.sum), values(chunks[0]), values(chunks[1]),
         values(c.weight), values(c.bias), values(r.mean), values(r.invstd), values(r.var_unbiased),
         values(r.running_mean), values(r.running_var), share, eps, slope);
  launch(emulated::norm_gradient_sums<Scalar, width>, rows(c.grad_y), rows(r.sum), values(r.mean),
         values(r.invstd), values(c.weight), values(c.bias), values(chunks[0]), values(chunks[1]), slope);
  launch(c.grad_sum.defined() ? emulated::norm_input_gradient<Scalar, width, true>
                              : emulated::norm_input_gradient<Scalar, width, false>,
         rows(r.grad_x), rows(c.grad_y), rows(c.grad_sum), rows(r.sum), values(r.mean), values(r.invstd),
         values(c.weight), values(c.bias), values(chunks[0]), values(chunks[1]), values(r.grad_bias),
         values(r.grad_weight), slope, static_cast<int>(c.groups));
  return r;
}

Results run(const Case& c, bool wide) {
  Results results;
  emulated::dispatch(c.x.scalar_type(), [&](auto scalar) {
    using Scalar = decltype(scalar);
    results = wide ? run_packs<Scalar, 16 / sizeof(Scalar)>(c) : run_packs<Scalar, 1>(c);
  });
  return results;
}

/// The same by autograd in float64, group by group.
Results exact(const Case& c, const Tensor& rounded_sum) {
  const auto leaf = [](const Tensor& tensor) { return tensor.to(at::kDouble).detach().requires_grad_(); };
  const Tensor x = leaf(rounded_sum), weight = leaf(c.weight), bias = leaf(c.bias);
  Results r;
  std::vector<Tensor> parts, means, invstds, variances;
  for (const Tensor& part : x.chunk(c.groups)) {
    parts.push_back(at::leaky_relu(
        at::batch_norm(part, weight, bias, {}, {}, /*training=*/true, 0.0, kEps, false), kSlope));
    means.push_back(part.detach().mean({0, 2, 3}));
    variances.push_back(part.detach().var({0, 2, 3}, /*unbiased=*/true));
    invstds.push_back((part.detach().var({0, 2, 3}, /*unbiased=*/false) + kEps).rsqrt());
  }
  r.y = at::cat(parts);
  r.mean = at::stack(means);
  r.invstd = at::stack(invstds);
  r.var_unbiased = at::stack(variances);
  const auto grads = torch::autograd::grad({r.y}, {x, weight, bias}, {c.grad_y.to(at::kDouble)});
  r.grad_x = c.grad_sum.defined() ? grads[0] + c.grad_sum.to(at::kDouble) : grads[0];
  r.grad_weight = grads[1];
  r.grad_bias = grads[2];
  r.y = r.y.detach();
  return r;
}

Case make_case(at::ScalarType type, int64_t rows, int64_t channels, int64_t groups, bool adds) {
  const auto images = [&](double scale, double shift) {
    return (at::randn({rows, channels, 3, 5}) * scale + shift)
        .to(type)
        .contiguous(at::MemoryFormat::ChannelsLast);
  };
  const auto compute = type == at::kDouble ? at::kDouble : at::kFloat;
  Case c;
  c.x = images(2, 1.5);
  c.addend = adds ? images(1, 0.5) : Tensor();
  c.weight = (at::rand({channels}) + 0.5).to(compute);
  c.bias = at::randn({channels}).to(compute);
  c.grad_y = images(1, 0);
  c.grad_sum = adds ? images(1, 0) : Tensor();
  c.groups = groups;
  return c;
}

/// All kernels that float32 and bfloat16 images ask for.
void add_kernels(emulated::EmulatedDevice& device) {
  emulated::add_norm_kernels<float, 4>(device, "float");
  emulated::add_norm_kernels<float, 1>(device, "float");
  emulated::add_norm_kernels<emulated::BFloat16, 8>(device, "BFloat16");
}

}  // namespace

TEST_CASE("the norm kernels are batch norm by groups, leaky ReLU and their gradients in float64") {
  torch::manual_seed(1);
  for (const auto type : emulated::all_types) {
    for (const auto& [channels, wide] :
         {std::pair<int64_t, bool>{16, true}, {16, false}, {5, false}, {72, false}}) {
      for (const int64_t groups : {1, 3}) {
        const bool adds = groups == 3 || channels == 5;
        const Case c = make_case(type, 6, channels, groups, adds);
        const Results results = run(c, wide);
        const Results expected = exact(c, results.sum);
        INFO(type << ", " << channels << " channels, " << groups << " groups, packs " << wide);
        if (adds) {
          CHECK(results.sum.equal(c.x + c.addend));
        }
        const double precise = type == at::kDouble ? 1e-10 : 2e-5;
        const auto near = [](const Tensor& found, const Tensor& right, double tolerance) {
          return at::allclose(found.to(at::kDouble), right, tolerance, tolerance);
        };
        CHECK(near(results.mean, expected.mean, precise));
        CHECK(near(results.invstd, expected.invstd, precise));
        CHECK(near(results.var_unbiased, expected.var_unbiased, precise));
        CHECK(near(results.running_mean, 0.75 * 2.0 + 0.25 * expected.mean[0], precise));
        CHECK(near(results.running_var, 0.75 * 3.0 + 0.25 * expected.var_unbiased[0], precise));
        CHECK(near(results.grad_weight, expected.grad_weight, 10 * precise));
        CHECK(near(results.grad_bias, expected.grad_bias, 10 * precise));
        const double image =
            type == at::kDouble ? 1e-10 : (type == at::kFloat ? 5e-5 : emulated::rounding_of(type));
        CHECK(near(results.y, expected.y, image));
        CHECK(near(results.grad_x, expected.grad_x, image));
      }
    }
  }
}

TEST_CASE("the norm kernels' variance survives a mean that is far from 0") {
  torch::manual_seed(2);
  Case c = make_case(at::kFloat, 8, 4, 2, false);
  c.x = (at::randn({8, 4, 3, 5}) * 0.1 + 300).contiguous(at::MemoryFormat::ChannelsLast);
  const Results results = run(c, true), expected = exact(c, c.x);
  CHECK(at::allclose(results.var_unbiased.to(at::kDouble), expected.var_unbiased, 1e-3));
  CHECK(at::allclose(results.y.to(at::kDouble), expected.y, 1e-2, 2e-2));
}

TEST_CASE("the norm kernels' results are the same in every order of blocks, in many chunks") {
  using emulated::BlockOrder;
  torch::manual_seed(3);
  for (const auto& [type, channels] : {std::pair<at::ScalarType, int64_t>{at::kFloat, 24},
                                       {at::kFloat, 5},
                                       {at::kDouble, 6},
                                       {at::kBFloat16, 40},
                                       {at::kHalf, 8}}) {
    const bool wide = channels % (16 / static_cast<int64_t>(c10::elementSize(type))) == 0;
    Case c = make_case(type, 63, channels, 3, channels % 3 == 0);
    c.processors = 18;
    const auto grid = grid_of(c, wide ? 16 / static_cast<int64_t>(c10::elementSize(type)) : 1);
    INFO(type << ", " << channels << " channels, " << grid.chunks << " chunks");
    CHECK(grid.chunks > 2);
    CHECK(grid.rows % grid.span != 0);
    std::vector<Results> results;
    for (const auto order :
         {BlockOrder::forward, BlockOrder::forward, BlockOrder::backward, BlockOrder::shuffled}) {
      emulated::block_order = order;
      results.push_back(run(c, wide));
    }
    emulated::block_order = BlockOrder::forward;
    const auto all = [](const Results& r) {
      return std::vector<Tensor>{
          r.y,           r.sum,    r.mean,        r.invstd,   r.var_unbiased, r.running_mean,
          r.running_var, r.grad_x, r.grad_weight, r.grad_bias};
    };
    const auto first = all(results[0]);
    for (const auto& other : results) {
      const auto same = all(other);
      for (size_t i = 0; i < first.size(); ++i) {
        INFO("result " << i);
        CHECK(first[i].equal(same[i]));
      }
    }
    const Results& found = results[0];
    const Results expected = exact(c, found.sum);
    const double precise = type == at::kDouble ? 1e-10 : 1e-5;
    const double image = std::max(emulated::rounding_of(type), 10 * precise);
    const auto near = [](const Tensor& one, const Tensor& right, double tolerance) {
      return at::allclose(one.to(at::kDouble), right, tolerance, tolerance);
    };
    CHECK(near(found.mean, expected.mean, precise));
    CHECK(near(found.invstd, expected.invstd, precise));
    CHECK(near(found.running_mean, 0.75 * 2.0 + 0.25 * expected.mean[0], precise));
    CHECK(near(found.running_var, 0.75 * 3.0 + 0.25 * expected.var_unbiased[0], precise));
    CHECK(near(found.y, expected.y, image));
    CHECK(near(found.grad_x, expected.grad_x, image));
    CHECK(near(found.grad_weight, expected.grad_weight, 100 * precise));
    CHECK(near(found.grad_bias, expected.grad_bias, 100 * precise));
  }
}

TEST_CASE("the norm kernels take an image of ones, a group of one chunk and batches of many rows a thread") {
  torch::manual_seed(7);
  Case c = make_case(at::kFloat, 300, 4, 1, true);  // one lane: 32 slices, 141 rows each at least
  c.x.fill_(1);
  c.addend.fill_(2);
  const Results results = run(c, true);
  CHECK(results.sum.eq(3).all().item<bool>());
  CHECK(results.mean.eq(3).all().item<bool>());
  CHECK(results.var_unbiased.eq(0).all().item<bool>());
  CHECK(at::allclose(results.y, at::leaky_relu(c.bias, kSlope).view({1, 4, 1, 1}).expand_as(c.x)));
  CHECK(at::allclose(results.grad_weight, at::zeros({4}), 0, 1e-3));
}

TEST_CASE("the norm kernels' grid is a block a processor for every norm of WRN-28-2") {
  for (const int64_t groups : {2, 3}) {
    for (const auto& [channels, size] : {std::pair<int64_t, int64_t>{16, 32}, {32, 32}, {64, 16}, {128, 8}}) {
      const mixmatch::detail::NormGrid grid(groups * 64 * size * size, channels, groups, 8);
      INFO(groups << " groups, " << channels << " channels");
      const int64_t blocks = grid.groups * grid.chunks * grid.tiles();
      CHECK(blocks <= 132);
      CHECK(blocks >= 120);
      // What a block reads of the chunks' numbers, two float32 a channel, against its own share of the
      // images.
      const int64_t merged = grid.chunks * grid.lanes() * 8 * 8, own = grid.span * grid.lanes() * 16;
      CHECK(4 * merged <= own);
      CHECK(grid.chunks * grid.span >= grid.rows);
      CHECK((grid.chunks - 1) * grid.span < grid.rows);
    }
  }
}

TEST_CASE("the norm kernels are not for tensors of the CPU") {
  CHECK_FALSE(mixmatch::detail::cuda_norm_supported(at::randn({2, 8, 4, 4})));
}

TEST_CASE("the library launches the norm kernels with what they expect") {
  torch::manual_seed(4);
  emulated::EmulatedDevice device;
  add_kernels(device);
  for (const auto& [type, channels] :
       {std::pair<at::ScalarType, int64_t>{at::kFloat, 8}, {at::kFloat, 5}, {at::kBFloat16, 16}}) {
    for (const bool adds : {false, true}) {
      const Case c = make_case(type, 4, channels, 2, adds);
      REQUIRE(mixmatch::detail::cuda_norm_supported(c.x));
      const Tensor running_mean = at::zeros({channels}), running_var = at::ones({channels});
      const auto out = mixmatch::detail::cuda_norm_forward(c.x, c.addend, c.weight, c.bias, 2, kEps, kSlope,
                                                           running_mean, running_var, 0.5);
      const auto grads = mixmatch::detail::cuda_norm_backward(c.grad_y, c.grad_sum, out.sum, c.weight, c.bias,
                                                              out.mean, out.invstd, 2, kSlope);
      const Results expected = exact(c, out.sum);
      INFO(type << ", " << channels << " channels, adds " << adds);
      const auto near = [](const Tensor& found, const Tensor& right, double tolerance) {
        return at::allclose(found.to(at::kDouble), right, tolerance, tolerance);
      };
      const double image = type == at::kFloat ? 5e-5 : emulated::rounding_of(type);
      CHECK(near(out.y, expected.y, image));
      CHECK(near(out.mean, expected.mean, 2e-5));
      CHECK(near(out.var_unbiased, expected.var_unbiased, 2e-5));
      CHECK(near(running_mean, 0.5 * expected.mean[0], 2e-5));
      CHECK(near(running_var, 0.5 + 0.5 * expected.var_unbiased[0], 2e-5));
      CHECK(near(grads.grad_x, expected.grad_x, image));
      CHECK(near(grads.grad_weight, expected.grad_weight, 2e-4));
      CHECK(near(grads.grad_bias, expected.grad_bias, 2e-4));
    }
  }
}

TEST_CASE("the GPU's check of the norm kernels can be made, and holds") {
  emulated::EmulatedDevice device;
  add_kernels(device);
  std::vector<kernel_checks::Check> checks;
  kernel_checks::check_norm(checks, torch::kCPU, {at::kFloat}, {8, 5}, 3);
  kernel_checks::check_norm(checks, torch::kCPU, {at::kBFloat16}, {16}, 3);
  CHECK(checks.size() == 6 * 11);
  for (const auto& check : checks) {
    INFO(check.name);
    CHECK(check.error <= check.tolerance);
  }
}

TEST_CASE("BatchNormLeakyReLU on the norm kernels is the layer in ATen's calls") {
  emulated::EmulatedDevice device;
  add_kernels(device);
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const bool adds : {false, true}) {
      torch::manual_seed(5);
      const Case c = make_case(type, 4, 8, 2, adds);
      const auto run_layer = [&](bool fused) {
        mixmatch::models::BatchNormLeakyReLU layer(torch::nn::BatchNorm2dOptions(8).momentum(0.3), kSlope);
        layer->set_fused(fused);
        layer->set_groups(2);
        {
          const torch::NoGradGuard no_grad;
          layer->weight.copy_(c.weight);
          layer->bias.copy_(c.bias);
        }
        const Tensor x = c.x.clone().requires_grad_();
        const Tensor addend = adds ? c.addend.clone().requires_grad_() : Tensor();
        const auto [sum, activation] = layer->forward_sum(x, addend);
        Tensor loss = (activation * c.grad_y).sum();
        if (adds) {
          loss = loss + (sum * c.grad_sum).sum();
        }
        loss.backward();
        std::vector<Tensor> results{activation.detach(),  x.grad(),
                                    layer->weight.grad(), layer->bias.grad(),
                                    layer->running_mean,  layer->running_var};
        if (adds) {
          results.push_back(sum.detach());
          results.push_back(addend.grad());
        }
        return results;
      };
      const int before = device.launches();
      const auto found = run_layer(true);
      CHECK(device.launches() == before + 4);
      const auto expected = run_layer(false);
      CHECK(device.launches() == before + 4);
      INFO(type << ", adds " << adds);
      for (size_t i = 0; i < found.size(); ++i) {
        const double tolerance = type == at::kFloat ? 1e-4 : 3e-2;
        INFO("result " << i);
        CHECK(at::allclose(found[i].to(at::kDouble), expected[i].to(at::kDouble), tolerance, tolerance));
      }
    }
  }
}

TEST_CASE("BatchNormLeakyReLU on the norm kernels has a second derivative") {
  emulated::EmulatedDevice device;
  emulated::add_norm_kernels<double, 2>(device, "double");
  torch::manual_seed(6);
  const auto second = [](bool fused) {
    mixmatch::models::BatchNormLeakyReLU layer(torch::nn::BatchNorm2dOptions(2), kSlope);
    layer->to(at::kDouble);
    layer->set_fused(fused);
    torch::manual_seed(7);
    const Tensor x =
        at::randn({3, 2, 2, 2}, at::kDouble).contiguous(at::MemoryFormat::ChannelsLast).requires_grad_();
    const auto first =
        torch::autograd::grad({layer->forward(x).pow(3).sum()}, {x}, {}, true, /*create_graph=*/true);
    return torch::autograd::grad({first[0].square().sum()}, {x})[0];
  };
  CHECK(at::allclose(second(true), second(false), 1e-8, 1e-8));
}
