#include <mixmatch/mixup.hpp>

#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <vector>

#include "catch.hpp"
#include "simd_levels.hpp"
#include "test_util.hpp"

using mixmatch::mixup;
using mixmatch::mixup_pairs;
using mixmatch::mixup_pairs_out;
using mixmatch::MixUpOptions;
using torch::Tensor;

namespace {

/// lambda[i] x[i] + (1 - lambda[i]) x[permutation[i]], element by element in double precision.
Tensor reference(const Tensor& x, const Tensor& permutation, const Tensor& lambda) {
  const Tensor rows = x.to(at::kDouble).contiguous().view({x.size(0), -1});
  Tensor out = at::zeros_like(rows);
  const Tensor weights = lambda.to(at::kDouble).expand({x.size(0)}).contiguous();
  const int64_t row = rows.size(1);
  for (int64_t i = 0; i < x.size(0); ++i) {
    const double weight = weights.data_ptr<double>()[i];
    const int64_t partner = permutation.data_ptr<int64_t>()[i];
    for (int64_t j = 0; j < row; ++j) {
      const double* from = rows.data_ptr<double>();
      out.data_ptr<double>()[i * row + j] =
          weight * from[i * row + j] + (1 - weight) * from[partner * row + j];
    }
  }
  return out.view(x.sizes());
}

bool close(const Tensor& a, const Tensor& b, double tolerance) {
  return torch::allclose(a.to(at::kDouble), b.to(at::kDouble), tolerance, tolerance);
}

double mixup_tolerance(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return 1e-14;
    case at::kFloat:
      return 1e-6;
    case at::kHalf:
      return 2e-3;
    default:
      return 2e-2;
  }
}

/// The regularised incomplete beta function I_x(a, a) by Simpson's rule in t = x^a, which takes the pole at 0
/// away.
double beta_cdf(double x, double a) {
  const auto integral = [a](double to) {
    const double end = std::pow(to, a);
    constexpr int steps = 20000;
    double sum = 0;
    for (int i = 0; i <= steps; ++i) {
      const double t = end * i / steps;
      const double value = std::pow(1 - std::pow(t, 1 / a), a - 1) / a;
      sum += value * (i == 0 || i == steps ? 1 : i % 2 == 1 ? 4 : 2);
    }
    return sum * end / steps / 3;
  };
  const double half = integral(0.5);
  return x <= 0.5 ? integral(x) / (2 * half) : 1 - integral(1 - x) / (2 * half);
}

}  // namespace

TEST_CASE("mixup_pairs: worked by hand") {
  const Tensor x = torch::tensor({{1.f, 2.f}, {3.f, 4.f}, {-1.f, 0.f}});
  const Tensor order = torch::tensor({2, 0, 1}, at::kLong);
  CHECK(torch::allclose(mixup_pairs(x, order, torch::tensor({.5f, .75f, 1.f})),
                        torch::tensor({{0.f, 1.f}, {2.5f, 3.5f}, {-1.f, 0.f}})));
  CHECK(torch::allclose(mixup_pairs(x, order, torch::tensor(.75f)),
                        torch::tensor({{.5f, 1.5f}, {2.5f, 3.5f}, {0.f, 1.f}})));
  CHECK(torch::equal(mixup_pairs(x, order, torch::tensor(0.f)), x.index_select(0, order)));
}

TEST_CASE("mixup_pairs: every dtype, layout and instruction set against double precision") {
  torch::manual_seed(1);
  for (const auto level : simd_levels()) {
    SimdLevelGuard guard(level);
    for (const auto type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
      for (const auto& sizes : {std::vector<int64_t>{5, 3, 8, 8},
                                {4, 1, 7, 5},
                                {3, 10},
                                {6, 1},
                                {2, 70000},
                                {7},
                                {1, 2, 3},
                                {2, 3, 1, 1, 2}}) {
        const Tensor x = torch::randn(sizes).to(type);
        const Tensor order = torch::randperm(sizes[0], at::kLong);
        for (const Tensor& lambda :
             {torch::rand({sizes[0]}), torch::rand({}), torch::rand({sizes[0]}, at::kDouble)}) {
          const Tensor want = reference(x, order, lambda);
          INFO("level " << static_cast<int>(level) << ", " << type << " " << x.sizes());
          const Tensor mixed = mixup_pairs(x, order, lambda);
          REQUIRE(mixed.scalar_type() == type);
          REQUIRE(mixed.is_contiguous());
          REQUIRE(close(mixed, want, mixup_tolerance(type)));
          // Every second element, and rows and columns exchanged.
          std::vector<int64_t> doubled = sizes;
          doubled.back() *= 2;
          Tensor strided = at::empty(doubled, x.options()).slice(-1, 0, doubled.back(), 2);
          strided.copy_(x);
          REQUIRE(close(mixup_pairs(strided, order, lambda), want, mixup_tolerance(type)));
          if (x.dim() > 1) {
            const Tensor turned = x.transpose(0, -1).contiguous().transpose(0, -1);
            REQUIRE(close(mixup_pairs(turned, order, lambda), want, mixup_tolerance(type)));
          }
        }
      }
    }
  }
}

TEST_CASE("mixup_pairs: channels-last stays channels-last") {
  torch::manual_seed(2);
  const Tensor x = torch::randn({6, 3, 8, 8});
  const Tensor last = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor order = torch::randperm(6, at::kLong), lambda = torch::rand({6});
  const Tensor mixed = mixup_pairs(last, order, lambda);
  CHECK(mixed.is_contiguous(at::MemoryFormat::ChannelsLast));
  CHECK(torch::equal(mixed, mixup_pairs(x, order, lambda)));
  // Results of one layout from sources of the other.
  Tensor out = at::empty_like(x);
  CHECK(torch::equal(mixup_pairs_out(out, last, order, lambda), mixed));
  CHECK(out.is_contiguous());
}

TEST_CASE("mixup_pairs: a row whose lambda is 1 is its own, whatever its partner holds") {
  Tensor x = torch::rand({3, 40});
  x[1].fill_(std::numeric_limits<float>::infinity());
  x[2].fill_(std::nanf(""));
  const Tensor mixed = mixup_pairs(x, torch::tensor({1, 0, 0}, at::kLong), torch::tensor({1.f, .5f, .5f}));
  CHECK(torch::equal(mixed[0], x[0]));
  CHECK(mixed[1].isinf().all().item<bool>());
  CHECK(mixed[2].isnan().all().item<bool>());
}

TEST_CASE("mixup_pairs: the kernel and the composite agree, on any number of threads to the bit") {
  torch::manual_seed(3);
  for (const auto& sizes : {std::vector<int64_t>{192, 3, 32, 32}, {64, 10}, {5, 3, 96, 96}}) {
    const Tensor x = torch::randn(sizes);
    const Tensor order = torch::randperm(sizes[0], at::kLong), lambda = torch::rand({sizes[0]});
    const Tensor mixed = mixup_pairs(x, order, lambda);
    CHECK(torch::allclose(mixed, mixmatch::detail::mix_rows_composite(x, x, order, lambda), 1e-6, 1e-6));
    const int threads = at::get_num_threads();
    at::set_num_threads(1);
    CHECK(torch::equal(mixed, mixup_pairs(x, order, lambda)));
    at::set_num_threads(threads);
  }
}

TEST_CASE("mixup_pairs: gradient to the rows, their partners and lambda") {
  const Tensor x = torch::tensor({{1., 2.}, {3., 5.}}, at::kDouble).requires_grad_();
  const Tensor lambda = torch::tensor({.75, .6}, at::kDouble).requires_grad_();
  const Tensor weights = torch::tensor({{1., 10.}, {100., 1000.}}, at::kDouble);
  (mixup_pairs(x, torch::tensor({1, 0}, at::kLong), lambda) * weights).sum().backward();
  // Row 0 has .75 of output 0 and .4 of output 1.
  CHECK(close(x.grad(), torch::tensor({{.75 + 40, 7.5 + 400}, {.25 + 60, 2.5 + 600}}, at::kDouble), 1e-12));
  // d/dlambda = weights . (x - partner)
  CHECK(close(lambda.grad(), torch::tensor({1. * -2 + 10. * -3, 100. * 2 + 1000. * 3}, at::kDouble), 1e-12));
}

TEST_CASE("mixup_pairs_out: fills what it is given, and checks it") {
  const Tensor x = torch::rand({4, 6});
  const Tensor order = torch::tensor({1, 0, 3, 2}, at::kLong), lambda = torch::rand({4});
  Tensor out = at::empty({4, 6});
  const void* memory = out.data_ptr();
  CHECK(&mixup_pairs_out(out, x, order, lambda) == &out);
  CHECK(out.data_ptr() == memory);
  CHECK(torch::equal(out, mixup_pairs(x, order, lambda)));
  Tensor none = at::empty({0});
  CHECK(mixup_pairs_out(none, x, order, lambda).sizes() == x.sizes());
  // Two slices of one buffer are separate.
  Tensor buffer = torch::rand({8, 6});
  Tensor upper = buffer.narrow(0, 4, 4);
  CHECK(torch::equal(mixup_pairs_out(upper, buffer.narrow(0, 0, 4), order, lambda),
                     mixup_pairs(buffer.narrow(0, 0, 4), order, lambda)));

  Tensor same = x;
  CHECK_THAT(error_of([&] { mixup_pairs_out(same, x, order, lambda); }),
             contains("must not share memory with x"));
  Tensor shifted = buffer.narrow(0, 2, 4);
  CHECK_THAT(error_of([&] { mixup_pairs_out(shifted, buffer.narrow(0, 0, 4), order, lambda); }),
             contains("must not share memory with x"));
  Tensor small = at::empty({4, 5});
  CHECK_THAT(error_of([&] { mixup_pairs_out(small, x, order, lambda); }),
             contains("shape [4, 6], got [4, 5]"));
  Tensor wide = at::empty({4, 6}, at::kDouble);
  CHECK_THAT(error_of([&] { mixup_pairs_out(wide, x, order, lambda); }), contains("out must be Float"));
  Tensor leaf = torch::rand({4, 6}, torch::requires_grad());
  CHECK_THAT(error_of([&] { mixup_pairs_out(out, leaf, order, lambda); }),
             contains("no gradient is recorded"));
}

TEST_CASE("mixup_pairs: refuses what does not fit") {
  const Tensor x = torch::rand({3, 2}), lambda = torch::rand({3});
  const Tensor order = torch::tensor({0, 1, 2}, at::kLong);
  CHECK_THAT(error_of([&] { mixup_pairs(x.to(at::kLong), order, lambda); }), contains("got Long [3, 2]"));
  CHECK_THAT(error_of([&] { mixup_pairs(Tensor(), order, lambda); }), contains("got undefined"));
  CHECK_THAT(error_of([&] { mixup_pairs(x, order.to(at::kInt), lambda); }),
             contains("permutation must be int64 [3], got Int [3]"));
  CHECK_THAT(error_of([&] { mixup_pairs(x, order.narrow(0, 0, 2), lambda); }), contains("got Long [2]"));
  CHECK_THAT(error_of([&] {
               mixup_pairs(x, torch::tensor({0, 1, 3}, at::kLong), lambda);
             }),
             contains("permutation must be in [0, 3), got 3"));
  CHECK_THAT(error_of([&] {
               mixup_pairs(x, torch::tensor({0, -1, 2}, at::kLong), lambda);
             }),
             contains("got -1"));
  const Tensor wide = torch::tensor({0, 9, 2, 9, 4, 9}, at::kLong);  // every second one counts
  CHECK_THAT(error_of([&] { mixup_pairs(x, wide.slice(0, 0, 6, 2), lambda); }), contains("got 4"));
  CHECK_THAT(error_of([&] { mixup_pairs(x, order, torch::rand({2})); }),
             contains("lambda must be floating-point [3]"));
  CHECK_THAT(error_of([&] { mixup_pairs(x, order, torch::rand({3, 1})); }), contains("got Float [3, 1]"));
  CHECK_THAT(error_of([&] { mixup_pairs(x, order, order); }), contains("got Long [3]"));
}

TEST_CASE("mixup: inputs and targets of a row share lambda and partner") {
  torch::manual_seed(4);
  const Tensor inputs = torch::randn({8, 3, 4, 4}), targets = torch::softmax(torch::randn({8, 5}), 1);
  for (const bool per_sample : {true, false}) {
    const auto mixed = mixup(inputs, targets, MixUpOptions().per_sample(per_sample), seeded(1));
    CHECK(mixed.lambda.dim() == (per_sample ? 1 : 0));
    CHECK(mixed.lambda.ge(.5).all().item<bool>());
    CHECK(mixed.lambda.le(1).all().item<bool>());
    CHECK(torch::equal(std::get<0>(mixed.permutation.sort()), torch::arange(8)));
    CHECK(close(mixed.inputs, reference(inputs, mixed.permutation, mixed.lambda), 1e-6));
    CHECK(close(mixed.targets, reference(targets, mixed.permutation, mixed.lambda), 1e-6));
    CHECK(torch::allclose(mixed.targets.sum(1), torch::ones({8})));
  }
  const auto undominated =
      mixup(torch::rand({1000, 1}), torch::ones({1000, 1}), MixUpOptions().keep_dominant(false));
  CHECK(undominated.lambda.lt(.5).any().item<bool>());
}

TEST_CASE("mixup: rows that are no partners are mixed into none, and the draws are the same") {
  const Tensor x = torch::randn({12, 3}), targets = torch::softmax(torch::randn({12, 2}), 1);
  const Tensor usable = at::arange(12, at::kLong).remainder(3).ne(0).to(at::kFloat);
  for (const bool per_sample : {true, false}) {
    const auto options = MixUpOptions().per_sample(per_sample);
    auto one = seeded(4), two = seeded(4);
    const auto all = mixup(x, targets, options, one);
    const auto some = mixup(x, targets, MixUpOptions(options).partners(usable), two);
    CHECK(some.permutation.equal(all.permutation));
    CHECK(torch::equal(one.get_state(), two.get_state()));
    for (int64_t i = 0; i < 12; ++i) {
      const bool mixed = usable[some.permutation[i].item<int64_t>()].item<float>() != 0;
      CHECK(some.inputs[i].equal(mixed ? all.inputs[i] : x[i]));
      CHECK(some.targets[i].equal(mixed ? all.targets[i] : targets[i]));
      CHECK((some.lambda[i].item<float>() == 1) == !mixed);
    }
  }
  CHECK_THAT(error_of([&] { mixup(x, targets, MixUpOptions().partners(torch::ones({3}))); }),
             contains("mixup: partners must be [12] as inputs has rows, got [3]"));
}

TEST_CASE("mixup: half-precision images with float32 targets") {
  for (const auto type : {at::kHalf, at::kBFloat16, at::kDouble}) {
    const Tensor inputs = torch::randn({6, 3, 4, 4}).to(type).contiguous(at::MemoryFormat::ChannelsLast);
    const auto mixed = mixup(inputs, torch::softmax(torch::randn({6, 5}), 1), {}, seeded(2));
    CHECK(mixed.inputs.scalar_type() == type);
    CHECK(mixed.inputs.is_contiguous(at::MemoryFormat::ChannelsLast));
    CHECK(mixed.targets.scalar_type() == at::kFloat);
    CHECK(close(mixed.inputs, reference(inputs, mixed.permutation, mixed.lambda), mixup_tolerance(type)));
  }
}

TEST_CASE("mixup: alpha = 0, one row and no rows") {
  const Tensor inputs = torch::rand({3, 2}), targets = torch::rand({3, 4});
  const auto kept = mixup(inputs, targets, MixUpOptions().alpha(0));
  CHECK(torch::equal(kept.inputs, inputs));
  CHECK(torch::equal(kept.targets, targets));
  CHECK(torch::equal(kept.lambda, torch::ones({3})));
  CHECK(torch::equal(kept.permutation, torch::arange(3)));
  CHECK(mixup(inputs, targets, MixUpOptions().alpha(0).per_sample(false)).lambda.dim() == 0);
  CHECK(
      torch::allclose(mixup(inputs.narrow(0, 0, 1), targets.narrow(0, 0, 1)).inputs, inputs.narrow(0, 0, 1)));
  const auto none = mixup(torch::zeros({0, 3, 8, 8}), torch::zeros({0, 10}));
  CHECK(none.inputs.sizes() == at::IntArrayRef({0, 3, 8, 8}));
  CHECK(none.lambda.sizes() == at::IntArrayRef({0}));
}

TEST_CASE("mixup: one class of targets stays 1") {
  const auto mixed = mixup(torch::rand({4, 2}), torch::ones({4, 1}));
  CHECK(torch::allclose(mixed.targets, torch::ones({4, 1})));
}

TEST_CASE("mixup: the same seed gives the same bits, the default generator too") {
  const Tensor inputs = torch::rand({16, 5}), targets = torch::rand({16, 4});
  const auto first = mixup(inputs, targets, {}, seeded(7)), second = mixup(inputs, targets, {}, seeded(7));
  CHECK(torch::equal(first.inputs, second.inputs));
  CHECK(torch::equal(first.lambda, second.lambda));
  CHECK(torch::equal(first.permutation, second.permutation));
  CHECK_FALSE(torch::equal(first.lambda, mixup(inputs, targets, {}, seeded(8)).lambda));
  auto generator = seeded(7);
  CHECK(torch::equal(mixup(inputs, targets, {}, generator).lambda, first.lambda));
  CHECK_FALSE(torch::equal(mixup(inputs, targets, {}, generator).lambda, first.lambda));
  torch::manual_seed(9);
  const auto third = mixup(inputs, targets);
  torch::manual_seed(9);
  CHECK(torch::equal(third.inputs, mixup(inputs, targets).inputs));
}

TEST_CASE("mixup: lambda has the Beta distribution") {
  // In double, since a lambda within 6e-8 of 1 is 1 in float32, and for alpha = .2 that is one in sixty.
  constexpr int64_t n = 40000;
  const Tensor nothing = torch::zeros({n, 1}, at::kDouble);
  for (const double alpha : {0.75, 0.2, 2.0}) {
    const auto mixed = mixup(nothing, nothing, MixUpOptions().alpha(alpha).keep_dominant(false), seeded(3));
    const Tensor lambda = std::get<0>(mixed.lambda.sort()).contiguous();
    // Kolmogorov and Smirnov's distance; 1.95 / sqrt(n) is passed by chance once in a thousand seeds.
    double distance = 0;
    for (int64_t i = 0; i < n; i += 40) {
      const double cdf = beta_cdf(lambda.data_ptr<double>()[i], alpha);
      distance = std::max(distance, std::abs(cdf - static_cast<double>(i) / n));
    }
    INFO("alpha = " << alpha);
    CHECK(distance < 1.95 / std::sqrt(n));
    CHECK(lambda.mean().item<double>() == Approx(.5).margin(.01));
    CHECK(lambda.var().item<double>() == Approx(1 / (4 * (2 * alpha + 1))).epsilon(.03));
  }
  // A small alpha is all or nothing, and never NaN.
  const Tensor tiny =
      mixup(nothing, nothing, MixUpOptions().alpha(1e-4).keep_dominant(false), seeded(4)).lambda;
  CHECK(tiny.isfinite().all().item<bool>());
  CHECK(tiny.mean().item<double>() == Approx(.5).margin(.01));
  CHECK(torch::logical_and(tiny > .001, tiny < .999).to(at::kDouble).mean().item<double>() < .01);
}

TEST_CASE("mixup: gradient flows to inputs and targets") {
  const Tensor inputs = torch::rand({4, 3}, torch::requires_grad());
  const Tensor targets = torch::rand({4, 2}, torch::requires_grad());
  const auto mixed = mixup(inputs, targets, {}, seeded(5));
  mixed.inputs.sum().backward();
  mixed.targets.sum().backward();
  // Each row gives lambda of itself and 1 - lambda of those that it is the partner of.
  Tensor share = mixed.lambda.clone();
  share.index_add_(0, mixed.permutation, 1 - mixed.lambda);
  CHECK(torch::allclose(inputs.grad(), share.unsqueeze(1).expand({4, 3})));
  CHECK(torch::allclose(targets.grad(), share.unsqueeze(1).expand({4, 2})));
}

TEST_CASE("mixup: refuses what does not fit") {
  const Tensor inputs = torch::rand({3, 2}), targets = torch::rand({3, 4});
  CHECK_THAT(error_of([&] {
               mixup(inputs, torch::tensor({0, 1, 2}, at::kLong));
             }),
             contains("one-hot class labels with mixmatch::one_hot(labels, num_classes)"));
  CHECK_THAT(error_of([&] { mixup(inputs.to(at::kByte), targets); }),
             contains("mixup: inputs must be a floating-point"));
  CHECK_THAT(error_of([&] { mixup(inputs, torch::rand({2, 4})); }), contains("targets must be [3, L]"));
  CHECK_THAT(error_of([&] { mixup(inputs, torch::rand({3})); }), contains("targets must be [3, L]"));
  CHECK_THAT(error_of([&] { mixup(inputs, targets, MixUpOptions().alpha(-1)); }),
             contains("alpha must be finite and >= 0, got -1"));
  CHECK_THAT(error_of([&] { mixup(inputs, targets, MixUpOptions().alpha(std::nan(""))); }),
             contains("alpha"));
  CHECK_THAT(error_of([&] { mixup(Tensor(), targets); }), contains("got undefined"));
}
