#include <mixmatch/guess_labels.hpp>
#include <mixmatch/sharpen.hpp>

#include "catch.hpp"
#include "cuda_emulation.hpp"

#include <limits>
#include <vector>

using torch::Tensor;

namespace cuda_emulation {
#include "cuda_sharpen.inc"
}

namespace {

namespace emulated = cuda_emulation;

Tensor run(const std::vector<Tensor>& views, bool softmax, double temperature, at::ScalarType out_type) {
  const Tensor& first = views.front();
  Tensor out = at::empty(first.sizes(), first.options().dtype(out_type));
  emulated::Views data{};
  for (size_t k = 0; k < views.size(); ++k) {
    data.data[k] = views[k].data_ptr();
  }
  const double exponent = 1.0 / temperature;
  emulated::dispatch(first.scalar_type(), [&](auto scalar) {
    emulated::dispatch(out_type, [&](auto result) {
      using Scalar = decltype(scalar);
      using Out = decltype(result);
      if constexpr (std::is_same_v<Scalar, double> == std::is_same_v<Out, double>) {
        emulated::launch(static_cast<unsigned>(first.size(0)), 1, 8, emulated::sharpen_views<Scalar, Out>,
                         emulated::pointer<Out>(out), data, static_cast<int>(views.size()), softmax ? 1 : 0,
                         first.size(1), exponent, std::isinf(exponent) ? 1 : 0);
      }
    });
  });
  return out;
}

Tensor exact_guess(const std::vector<Tensor>& views, double temperature) {
  Tensor mean = at::zeros(views.front().sizes(), at::kDouble);
  for (const Tensor& view : views) {
    mean += at::softmax(view.to(at::kDouble), -1);
  }
  return mixmatch::detail::sharpen_composite(mean / static_cast<double>(views.size()), temperature, -1);
}

}  // namespace

TEST_CASE("the sharpen kernel averages views and sharpens as the formula says") {
  torch::manual_seed(1);
  for (const auto type : emulated::all_types) {
    for (const int64_t classes : {1, 2, 10, 37}) {
      for (const size_t count : {size_t{1}, size_t{2}, size_t{5}}) {
        std::vector<Tensor> views;
        for (size_t k = 0; k < count; ++k) {
          views.push_back((at::randn({3, classes}) * 4).to(type));
        }
        const std::vector<double> temperatures = type == at::kFloat
                                                     ? std::vector<double>{0.5, 1.0, 0.3, 0.01, 0.0}
                                                     : std::vector<double>{0.5, 0.0};
        for (const double temperature : temperatures) {
          INFO(type << ", " << classes << " classes, " << count << " views, T " << temperature);
          const auto out_type = type == at::kDouble ? at::kDouble : at::kFloat;
          const Tensor result = run(views, true, temperature, out_type);
          // A small temperature multiplies the rounding of probabilities.
          const double tolerance = (type == at::kDouble ? 1e-12 : 1e-5) / std::max(temperature, 0.005);
          if (temperature == 0.0) {  // ties of rounded means go either way
            CHECK(at::allclose(result.sum(-1).to(at::kDouble), at::ones({3}, at::kDouble)));
            CHECK(at::equal(result.argmax(-1), exact_guess(views, 1).argmax(-1)));
          } else {
            CHECK(
                at::allclose(result.to(at::kDouble), exact_guess(views, temperature), tolerance, tolerance));
          }
        }
      }
    }
  }
}

TEST_CASE("the sharpen kernel sharpens probabilities as sharpen() does") {
  torch::manual_seed(2);
  for (const auto type : emulated::all_types) {
    Tensor rows = at::rand({6, 11}).to(type);
    rows[1].zero_();
    rows[2][3] = std::numeric_limits<float>::quiet_NaN();
    rows[3].zero_()[4] = 0.5;
    rows[4].fill_(0.25);
    for (const double temperature : {0.5, 1.0, 0.4, 0.01, 0.0}) {
      INFO(type << ", T " << temperature);
      const Tensor exact = mixmatch::detail::sharpen_composite(rows.to(at::kDouble), temperature, /*dim=*/-1);
      const double tolerance = emulated::rounding_of(type) / std::max(temperature, 0.005);
      CHECK(at::allclose(run({rows}, false, temperature, type).to(at::kDouble), exact, tolerance, tolerance,
                         /*equal_nan=*/true));
    }
  }
}

TEST_CASE("the sharpen kernel may write where it reads") {
  torch::manual_seed(3);
  const Tensor rows = at::rand({5, 20});
  const Tensor expected = run({rows}, false, 0.5, at::kFloat);
  Tensor in_place = rows.clone();
  emulated::Views data{};
  data.data[0] = in_place.data_ptr();
  emulated::launch(5, 1, 8, emulated::sharpen_views<float, float>, emulated::pointer<float>(in_place), data,
                   1, 0, int64_t{20}, 2.0, 0);
  CHECK(in_place.equal(expected));
}

TEST_CASE("the kernels' half precision is LibTorch's") {
  const auto words = at::arange(-32768, 32768, at::kInt).to(at::kShort);
  for (const auto type : {at::kHalf, at::kBFloat16}) {
    const Tensor values = words.view(type);
    const Tensor wide = values.to(at::kFloat);
    // Between two neighbours, and on them.
    const Tensor tests =
        at::cat({wide, wide * 1.0001F, wide * 0.9999F, (wide + wide.roll(1)) * 0.5F, at::randn({1000})});
    const Tensor rounded = tests.to(type);
    const auto check = [&](auto scalar) {
      using Scalar = decltype(scalar);
      if constexpr (sizeof(Scalar) == 2) {
        bool widened = true, narrowed = true;
        const auto* from = emulated::pointer<Scalar>(values);
        for (int64_t i = 0; i < values.numel(); ++i) {
          const float expected = emulated::pointer<float>(wide)[i];
          const float result = emulated::widen(from[i]);
          widened = widened && (std::isnan(expected) ? std::isnan(result) : result == expected);
        }
        for (int64_t i = 0; i < tests.numel(); ++i) {
          Scalar result;
          emulated::narrow(result, emulated::pointer<float>(tests)[i]);
          const float expected = emulated::widen(emulated::pointer<Scalar>(rounded)[i]);
          narrowed =
              narrowed && (std::isnan(expected) ? std::isnan(emulated::widen(result))
                                                : result.bits == emulated::pointer<Scalar>(rounded)[i].bits);
        }
        CHECK(widened);
        CHECK(narrowed);
      }
    };
    emulated::dispatch(type, check);
  }
}

TEST_CASE("the library launches the sharpen kernel with what it expects") {
  torch::manual_seed(4);
  emulated::EmulatedDevice device;
  device.add("sharpen_views<float, float>", emulated::sharpen_views<float, float>);
  device.add("sharpen_views<BFloat16, float>", emulated::sharpen_views<emulated::BFloat16, float>);
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    std::vector<Tensor> views;
    for (int k = 0; k < 3; ++k) {
      views.push_back(at::randn({4, 40}).to(type));
    }
    Tensor guess = at::empty({4, 40});
    REQUIRE(mixmatch::detail::sharpen_views_on_cuda(guess, views, 0.5));
    CHECK(at::allclose(guess.to(at::kDouble), exact_guess(views, 0.5), 1e-4, 1e-5));
  }
  Tensor rows = at::rand({2, 3, 7});
  const Tensor expected = mixmatch::detail::sharpen_composite(rows.to(at::kDouble), 0.3, -1);
  REQUIRE(mixmatch::detail::sharpen_on_cuda(rows, rows, 0.3, -1));
  CHECK(at::allclose(rows.to(at::kDouble), expected, 1e-4, 1e-5));
  CHECK(device.launches() == 3);
  // Other layouts are left to the composite.
  CHECK_FALSE(mixmatch::detail::sharpen_on_cuda(rows, rows, 0.3, 0));
  Tensor strided = at::rand({5, 4}).t();
  CHECK_FALSE(mixmatch::detail::sharpen_on_cuda(strided, strided, 0.3, -1));
  CHECK_FALSE(mixmatch::detail::sharpen_views_on_cuda(rows, std::vector<Tensor>(17, rows), 0.5));
}
