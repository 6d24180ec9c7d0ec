#include <mixmatch/sharpen.hpp>

#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <vector>

#include "catch.hpp"
#include "simd_levels.hpp"
#include "test_util.hpp"

using mixmatch::sharpen;
using mixmatch::sharpen_;
using mixmatch::sharpen_out;
using torch::Tensor;

namespace {

/// exp((log p - log max p) / T), normalised, in double precision: not the way the library goes. Last
/// dimension.
Tensor reference(const Tensor& probabilities, double temperature) {
  const Tensor p = probabilities.to(at::kDouble).contiguous();
  Tensor out = at::zeros_like(p);
  const int64_t classes = p.size(-1);
  const double* from = p.data_ptr<double>();
  double* to = out.data_ptr<double>();
  for (int64_t row = 0; row < p.numel() / classes; ++row, from += classes, to += classes) {
    double largest = 0, sum = 0;
    for (int64_t c = 0; c < classes; ++c) {
      largest = std::max(largest, from[c]);
    }
    for (int64_t c = 0; c < classes; ++c) {
      if (largest == 0) {
        to[c] = 1;
      } else if (temperature == 0) {
        to[c] = from[c] == largest ? 1 : 0;
      } else {
        to[c] = from[c] == 0 ? 0 : std::exp((std::log(from[c]) - std::log(largest)) / temperature);
      }
      sum += to[c];
    }
    for (int64_t c = 0; c < classes; ++c) {
      to[c] /= sum;
    }
  }
  return out;
}

Tensor distribution(at::IntArrayRef sizes, at::ScalarType type = at::kFloat) {
  return torch::softmax(torch::randn(sizes, at::kDouble) * 2, -1).to(type);
}

/// Relative and absolute error that rounding to the type may cost.
double tolerance(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return 1e-13;
    case at::kFloat:
      return 3e-6;
    case at::kHalf:
      return 1e-3;
    default:
      return 8e-3;
  }
}

bool close(const Tensor& a, const Tensor& b, double tolerance) {
  return torch::allclose(a.to(at::kDouble), b.to(at::kDouble), tolerance, tolerance);
}

}  // namespace

TEST_CASE("sharpen: worked by hand") {
  // (.5^2, .3^2, .2^2) / .38
  const Tensor p = torch::tensor({{.5, .3, .2}}, at::kDouble);
  const Tensor q = torch::tensor({{.25 / .38, .09 / .38, .04 / .38}}, at::kDouble);
  CHECK(close(sharpen(p), q, 1e-15));
  CHECK(close(sharpen(p.to(at::kFloat)), q, 1e-6));
  // sqrt softens: T = 2.
  const double sum = std::sqrt(.5) + std::sqrt(.3) + std::sqrt(.2);
  const Tensor soft =
      torch::tensor({{std::sqrt(.5) / sum, std::sqrt(.3) / sum, std::sqrt(.2) / sum}}, at::kDouble);
  CHECK(close(sharpen(p, 2), soft, 1e-14));
}

TEST_CASE("sharpen: every temperature, width and dtype against double precision") {
  torch::manual_seed(1);
  for (const auto level : simd_levels()) {
    SimdLevelGuard guard(level);
    for (const auto type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
      for (const int64_t classes : {1, 2, 3, 7, 8, 9, 10, 15, 16, 17, 31, 33, 100, 1000}) {
        for (const int64_t rows : {1, 2, 15, 16, 37}) {
          const Tensor p = distribution({rows, classes}, type);
          for (const double temperature : {0.0, 0.01, 0.1, 0.3, 0.5, 0.75, 1.0, 1.7, 4.0}) {
            const Tensor q = sharpen(p, temperature);
            INFO("level " << static_cast<int>(level) << ", " << type << " [" << rows << ", " << classes
                          << "], T = " << temperature);
            REQUIRE(q.scalar_type() == type);
            // An error of p's rounding grows by 1/T; the reference has the rounded p, so only ours counts.
            REQUIRE(close(q, reference(p, temperature), tolerance(type)));
          }
        }
      }
    }
  }
}

TEST_CASE("sharpen: no temperature gives NaN or 0/0") {
  const Tensor hard = torch::tensor({{1e-30f, 1e-38f, 0.f}, {1.f, 1e-7f, 0.f}, {.1f, .1f, .1f}});
  for (const auto level : simd_levels()) {
    SimdLevelGuard guard(level);
    for (const double temperature : {0.0, 1e-300, 1e-9, 0.01, 0.5, 1.0, 100.0}) {
      for (const Tensor& p : {hard, distribution({64, 10}), distribution({64, 1000})}) {
        const Tensor q = sharpen(p, temperature);
        INFO("T = " << temperature);
        CHECK(q.isfinite().all().item<bool>());
        CHECK(q.ge(0).all().item<bool>());
        CHECK(torch::allclose(q.sum(-1), torch::ones({p.size(0)}), 1e-5, 1e-5));
      }
    }
  }
}

TEST_CASE("sharpen: T = 0 is one-hot at the arg-max, ties share equally") {
  const Tensor p = torch::tensor({{.2f, .5f, .3f}, {.4f, .4f, .2f}, {1.f, 1.f, 1.f}, {0.f, 0.f, 0.f}});
  const float third = 1.f / 3;
  const Tensor q =
      torch::tensor({{0.f, 1.f, 0.f}, {.5f, .5f, 0.f}, {third, third, third}, {third, third, third}});
  for (const auto level : simd_levels()) {
    SimdLevelGuard guard(level);
    CHECK(torch::allclose(sharpen(p, 0), q));
    CHECK(torch::allclose(mixmatch::detail::sharpen_composite(p, 0, -1), q));
  }
}

TEST_CASE("sharpen: rows of zeros tie at every temperature, and NaN stays within its row") {
  Tensor p = torch::full({3, 10}, .1f);
  p[0].zero_();
  p[1][4] = std::numeric_limits<float>::quiet_NaN();
  for (const auto level : simd_levels()) {
    SimdLevelGuard guard(level);
    for (const double temperature : {0.0, 0.3, 0.5, 1.0}) {
      for (const Tensor& q :
           {sharpen(p, temperature), mixmatch::detail::sharpen_composite(p, temperature, -1)}) {
        CHECK(torch::allclose(q[0], torch::full({10}, .1f)));
        CHECK(q[1].isnan().all().item<bool>());
        CHECK(torch::allclose(q[2], torch::full({10}, .1f)));
      }
    }
  }
}

TEST_CASE("sharpen: keeps the order of classes and lowers the entropy for T < 1") {
  torch::manual_seed(2);
  const Tensor p = distribution({200, 10}, at::kDouble);
  const auto entropy = [](const Tensor& q) { return -(q * q.clamp_min(1e-300).log()).sum(-1); };
  Tensor before = entropy(p);
  CHECK(close(sharpen(p, 1), p, 1e-14));
  for (const double temperature : {0.75, 0.5, 0.25}) {
    const Tensor q = sharpen(p, temperature);
    CHECK(torch::equal(q.argsort(-1, false), p.argsort(-1, false)));
    CHECK(entropy(q).lt(before).all().item<bool>());
    before = entropy(q);
  }
}

TEST_CASE("sharpen: any strides, any dim, and whole numbers of dimensions") {
  torch::manual_seed(3);
  for (const auto type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    const Tensor p = distribution({6, 5, 4, 10}, type);
    const Tensor want = reference(p, 0.5);
    const Tensor wide = at::empty({6, 5, 4, 20}, p.options());
    Tensor strided = wide.slice(3, 0, 20, 2);
    strided.copy_(p);
    INFO(type);
    CHECK(close(sharpen(strided), want, tolerance(type)));
    CHECK(close(sharpen(p.contiguous(at::MemoryFormat::ChannelsLast)), want, tolerance(type)));
    CHECK(close(sharpen(p.transpose(0, 3), 0.5, 0).transpose(0, 3), want, tolerance(type)));
    CHECK(close(sharpen(p.permute({0, 3, 1, 2}), 0.5, 1).permute({0, 2, 3, 1}), want, tolerance(type)));
    CHECK(close(sharpen(p.flip({0})), want.flip({0}), tolerance(type)));
    CHECK(close(sharpen(p.select(3, 0).expand({3, 6, 5, 4}), 0.5, -1),
                reference(p.select(3, 0).expand({3, 6, 5, 4}), 0.5), tolerance(type)));
  }
  CHECK(sharpen(torch::tensor(.3f)).item<float>() == 1);
  CHECK(close(sharpen(torch::tensor({.5f, .5f})), torch::tensor({.5f, .5f}), 0));
  CHECK(sharpen(torch::zeros({0, 10})).sizes() == at::IntArrayRef({0, 10}));
  CHECK(sharpen(torch::zeros({3, 0})).sizes() == at::IntArrayRef({3, 0}));
  CHECK(torch::equal(sharpen(torch::rand({5, 1}) + .1), torch::ones({5, 1})));
}

TEST_CASE("sharpen: the kernel and the composite agree, on any number of threads to the bit") {
  torch::manual_seed(4);
  for (const auto& sizes : {std::vector<int64_t>{64, 10}, {65536, 10}, {4096, 1000}, {300, 17}}) {
    const Tensor p = distribution(sizes);
    for (const double temperature : {0.3, 0.5, 1.0}) {
      const Tensor q = sharpen(p, temperature);
      CHECK(torch::allclose(q, mixmatch::detail::sharpen_composite(p, temperature, -1), 2e-6, 1e-9));
      const int threads = at::get_num_threads();
      at::set_num_threads(1);
      CHECK(torch::equal(q, sharpen(p, temperature)));
      at::set_num_threads(threads);
    }
  }
}

TEST_CASE("sharpen: gradient by finite differences") {
  torch::manual_seed(5);
  for (const double temperature : {0.5, 0.3, 1.0}) {
    Tensor p = distribution({3, 5}, at::kDouble).requires_grad_();
    const Tensor weights = torch::randn({3, 5}, at::kDouble);
    (sharpen(p, temperature) * weights).sum().backward();
    const double step = 1e-6;
    for (int64_t row = 0; row < 3; ++row) {
      for (int64_t c = 0; c < 5; ++c) {
        const auto value = [&](double change) {
          Tensor moved = p.detach().clone();
          moved[row][c] += change;
          return (reference(moved, temperature) * weights).sum().item<double>();
        };
        const double slope = (value(step) - value(-step)) / (2 * step);
        CHECK(p.grad()[row][c].item<double>() == Approx(slope).margin(1e-6));
      }
    }
  }
  // A row of zeros ties whatever its neighbours do, and sends no NaN upstream.
  Tensor zeros = torch::zeros({2, 3}, torch::requires_grad());
  (sharpen(zeros) * torch::rand({2, 3})).sum().backward();
  CHECK(zeros.grad().isfinite().all().item<bool>());
  // At T = 0 the result is constant almost everywhere: the gradient is there, and 0.
  Tensor p = distribution({3, 5}).requires_grad_();
  const Tensor limit = sharpen(p, 0);
  REQUIRE(limit.requires_grad());
  (limit * torch::rand({3, 5})).sum().backward();
  CHECK(torch::equal(p.grad(), torch::zeros({3, 5})));
  // Without a need for it, none is recorded.
  CHECK_FALSE(sharpen(torch::rand({2, 3})).requires_grad());
}

TEST_CASE("sharpen: in place and into a preallocated result") {
  torch::manual_seed(6);
  for (const auto type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    for (const int64_t classes : {1, 10, 16, 17, 100}) {
      for (const double temperature : {0.0, 0.3, 0.5, 1.0, 2.0}) {
        const Tensor p = distribution({37, classes}, type);
        const Tensor q = sharpen(p, temperature);
        Tensor in_place = p.clone();
        Tensor& returned = sharpen_(in_place, temperature);
        CHECK(&returned == &in_place);
        CHECK(torch::equal(in_place, q));
        Tensor out = at::empty_like(p);
        const void* memory = out.data_ptr();
        CHECK(&sharpen_out(out, p, temperature) == &out);
        CHECK(out.data_ptr() == memory);
        CHECK(torch::equal(out, q));
        Tensor strided = at::empty({37, classes, 2}, p.options()).select(2, 1);
        CHECK(torch::equal(sharpen_out(strided, p, temperature), q));
      }
    }
  }
  Tensor none = at::empty({0});
  CHECK(sharpen_out(none, torch::rand({2, 3})).sizes() == at::IntArrayRef({2, 3}));
  // In place in a graph: the gradient is that of sharpen.
  Tensor leaf = distribution({2, 3}, at::kDouble).requires_grad_();
  Tensor copy = leaf * 1;
  sharpen_(copy).select(1, 0).sum().backward();
  const Tensor in_place_gradient = leaf.grad().clone();
  leaf.mutable_grad() = Tensor();
  sharpen(leaf).select(1, 0).sum().backward();
  CHECK(close(in_place_gradient, leaf.grad(), 1e-14));
}

TEST_CASE("sharpen: refuses what it cannot do") {
  const Tensor p = torch::full({2, 3}, 1.f / 3);
  CHECK_THAT(error_of([&] { sharpen(p, -0.5); }), contains("sharpen: temperature must be >= 0, got -0.5"));
  CHECK_THAT(error_of([&] { sharpen(p, std::nan("")); }), contains("temperature must be >= 0, got nan"));
  CHECK_THAT(error_of([&] { sharpen(p.to(at::kLong)); }), contains("floating-point tensor, got Long"));
  CHECK_THAT(error_of([] { sharpen(Tensor()); }), contains("got undefined"));
  CHECK_THAT(error_of([&] { sharpen(p, 0.5, 2); }), contains("dim must be in [-2, 1], got 2"));
  Tensor other = at::empty({3, 2});
  CHECK_THAT(error_of([&] { sharpen_out(other, p); }), contains("out must have shape [2, 3], got [3, 2]"));
  Tensor wrong_type = at::empty({2, 3}, at::kDouble);
  CHECK_THAT(error_of([&] { sharpen_out(wrong_type, p); }), contains("out must be Float"));
  Tensor square = torch::rand({4, 4});
  Tensor turned = square.t();
  CHECK_THAT(error_of([&] { sharpen_out(turned, square); }),
             contains("out must be probabilities itself or share no memory with it"));
  const Tensor buffer = torch::rand({10, 8});
  Tensor shifted = buffer.narrow(0, 1, 9).narrow(1, 0, 2);
  CHECK_THAT(error_of([&] { sharpen_out(shifted, buffer.narrow(0, 0, 9).narrow(1, 0, 2)); }),
             contains("share no memory with it"));
  Tensor leaf = torch::rand({2, 3}, torch::requires_grad());
  Tensor out = at::empty({2, 3});
  CHECK_THAT(error_of([&] { sharpen_out(out, leaf); }), contains("no gradient is recorded"));
  Tensor expanded = torch::rand({1, 3}).expand({2, 3});
  CHECK_THAT(error_of([&] { sharpen_(expanded); }), contains("expanded tensor"));
}
