#include <mixmatch/guess_labels.hpp>
#include <mixmatch/nn/precision.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "catch.hpp"
#include "model_zoo.hpp"
#include "simd_levels.hpp"
#include "test_util.hpp"

using namespace mixmatch;

static_assert(Model<PlainNet> && Model<HeldNet> && Model<std::shared_ptr<PlainNet>> &&
              Model<torch::nn::Sequential>);
static_assert(Model<torch::nn::AnyModule> && Model<torch::jit::Module> && Model<Tensor (*)(const Tensor&)>);
static_assert(!Model<int> && !Model<torch::nn::Module> && !Model<std::string>);
static_assert(ModuleModel<HeldNet> && !ModuleModel<Tensor (*)(const Tensor&)>);

TEST_CASE("guess_labels_from_logits: average of softmaxes, sharpened, against double loops") {
  const double logits[2][2][3] = {{{1.0, 2.0, 0.5}, {0.0, 0.0, 3.0}}, {{-1.0, 0.3, 0.2}, {1.0, -2.0, 0.1}}};
  double expected[2][3];
  for (int n = 0; n < 2; ++n) {
    double mean[3] = {0, 0, 0};
    for (int k = 0; k < 2; ++k) {
      double sum = 0;
      for (int c = 0; c < 3; ++c) {
        sum += std::exp(logits[k][n][c]);
      }
      for (int c = 0; c < 3; ++c) {
        mean[c] += std::exp(logits[k][n][c]) / sum / 2;
      }
    }
    double sum = 0;
    for (double p : mean) {
      sum += p * p;
    }
    for (int c = 0; c < 3; ++c) {
      expected[n][c] = mean[c] * mean[c] / sum;
    }
  }
  std::vector<Tensor> views;
  for (const auto& view : logits) {
    views.push_back(torch::from_blob(const_cast<double*>(&view[0][0]), {2, 3}, at::kDouble).clone());
  }
  const Tensor want = torch::from_blob(&expected[0][0], {2, 3}, at::kDouble);
  CHECK(torch::allclose(guess_labels_from_logits(views, 0.5), want, 1e-12, 1e-14));
  CHECK(torch::allclose(
      guess_labels_from_logits({views[0].to(at::kFloat), views[1].to(at::kFloat)}).to(at::kDouble), want,
      1e-5, 1e-6));
  const Tensor half = guess_labels_from_logits({views[0].to(at::kBFloat16), views[1].to(at::kBFloat16)});
  CHECK(half.scalar_type() == at::kFloat);
  CHECK(torch::allclose(half.to(at::kDouble), want, 5e-2, 1e-2));
  CHECK(torch::equal(views[0], torch::from_blob(const_cast<double*>(&logits[0][0][0]), {2, 3}, at::kDouble)));
}

TEST_CASE("guess_labels_from_logits: the kernel equals the composite in double, all types, sizes, levels") {
  torch::manual_seed(6);
  for (const auto level : simd_levels()) {
    const SimdLevelGuard guard(level);
    for (const int64_t classes : {1, 2, 7, 8, 9, 10, 15, 16, 17, 33, 100, 5000}) {
      for (const int64_t rows : {1, 5, 16, 17, 40}) {
        for (const int64_t num_views : {1, 2, 3}) {
          const double temperature = std::array{0.5, 0.3, 1.0, 2.0}[static_cast<size_t>(rows + classes) % 4];
          for (const auto type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
            std::vector<Tensor> views, exact;
            for (int64_t k = 0; k < num_views; ++k) {
              views.push_back((torch::randn({rows, classes}) * 6).to(type));
              exact.push_back(views.back().to(at::kDouble));
            }
            const Tensor guess = guess_labels_from_logits(views, temperature);
            Tensor fused = torch::empty_like(guess);
            REQUIRE(mixmatch::detail::guess_fused(fused, views, temperature));
            CHECK(torch::equal(fused, guess));
            const Tensor want = mixmatch::detail::guess_composite(exact, temperature);
            INFO(classes << " classes, " << rows << " rows, T " << temperature << ", " << type);
            CHECK(guess.scalar_type() == (type == at::kDouble ? at::kDouble : at::kFloat));
            // A logit's distance to the largest, 60 at most, is rounded once: 4e-6 of the power, times 1/T.
            const double close = (type == at::kDouble ? 1e-12 : 1e-5) * std::max(1.0, 1 / temperature);
            CHECK(torch::allclose(guess.to(at::kDouble), want, close, close * 1e-3));
          }
        }
      }
    }
  }
}

TEST_CASE("guess_labels_from_logits: extreme logits, by row") {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  for (const auto level : simd_levels()) {
    const SimdLevelGuard guard(level);
    for (const int64_t classes : {3, 10, 40}) {
      Tensor logits = torch::zeros({20, classes});
      logits[0][1] = 1e30f;
      logits.narrow(0, 1, 1).fill_(-3e38f);  // equal, so all tie
      logits[2][0] = -infinity;
      logits[3][2] = nan;
      logits.narrow(0, 4, 1).fill_(-200).narrow(1, 0, 1).fill_(0);  // e^-200 is no float32
      const Tensor guess = guess_labels_from_logits({logits, logits});
      CHECK(guess[0][1].item<float>() == 1);
      CHECK(torch::allclose(guess[1], torch::full({classes}, 1.f / static_cast<float>(classes))));
      CHECK(guess[2][0].item<float>() == 0);
      CHECK(guess[2][1].item<float>() == Approx(1.0 / static_cast<double>(classes - 1)));
      CHECK(guess[3].isnan().all().item<bool>());
      CHECK(guess[4][0].item<float>() == 1);
      CHECK(guess[4].sum().item<float>() == 1);
      CHECK(torch::allclose(guess.narrow(0, 5, 15),
                            torch::full({15, classes}, 1.f / static_cast<float>(classes))));
    }
  }
}

TEST_CASE("guess_labels_from_logits: any strides, unequal types, the same bits on any number of threads") {
  torch::manual_seed(7);
  Tensor a = torch::randn({3000, 12});
  const Tensor b = torch::randn({3000, 12});
  const Tensor want = guess_labels_from_logits({a, b});
  CHECK(torch::allclose(guess_labels_from_logits({a.t().contiguous().t(), b}), want, 1e-5, 1e-8));
  CHECK(torch::allclose(guess_labels_from_logits({a.to(at::kDouble), b}).to(at::kFloat), want, 1e-5, 1e-8));
  // A NaN among them changes its own row alone.
  a[1500][3] = std::nan("");
  const int threads = at::get_num_threads();
  for (const int count : {1, 2, 3}) {
    at::set_num_threads(count);
    Tensor guess = guess_labels_from_logits({a, b});
    CHECK(guess[1500].isnan().all().item<bool>());
    guess[1500] = want[1500];
    CHECK(torch::equal(guess, want));
  }
  at::set_num_threads(threads);
  // A row does not depend on those beside it.
  CHECK(torch::equal(guess_labels_from_logits({a.narrow(0, 7, 1), b.narrow(0, 7, 1)})[0], want[7]));
}

TEST_CASE("guess_labels: limits of T, K = 1, one class, one row, zero rows") {
  auto identity = [](const Tensor& x) { return x; };
  const Tensor logits = torch::tensor({{0.f, 1.f, 2.f}, {5.f, 5.f, 0.f}});
  const Tensor hard = guess_labels(identity, {logits}, GuessLabelsOptions().temperature(0));
  CHECK(torch::equal(hard, torch::tensor({{0.f, 0.f, 1.f}, {.5f, .5f, 0.f}})));
  CHECK(torch::allclose(guess_labels(identity, {logits}, GuessLabelsOptions().temperature(1)),
                        torch::softmax(logits, 1)));
  CHECK(guess_labels(identity, {torch::randn({4, 10}) * 50, torch::randn({4, 10}) * 50},
                     GuessLabelsOptions().temperature(0.01))
            .isfinite()
            .all()
            .item<bool>());
  CHECK(torch::equal(guess_labels(identity, {torch::randn({3, 1})}), torch::ones({3, 1})));
  CHECK(guess_labels(identity, {torch::zeros({0, 10})}).sizes() == torch::IntArrayRef({0, 10}));
  CHECK(guess_labels(identity, {torch::zeros({1, 10})}).sum().item<float>() == Approx(1));
}

TEST_CASE("guess_labels: bad input") {
  auto identity = [](const Tensor& x) { return x; };
  CHECK_THAT(error_of([&] { guess_labels(identity, {}); }), contains("views must hold at least one"));
  CHECK_THAT(error_of([&] { guess_labels_from_logits({}); }), contains("at least one view"));
  CHECK_THAT(error_of([&] { guess_labels(identity, {torch::zeros({3})}); }), contains("[N, L]"));
  CHECK_THAT(error_of([&] {
               guess_labels(identity, {torch::zeros({3, 2}), torch::zeros({3, 4})});
             }),
             contains("[3, 4]"));
  CHECK_THAT(error_of([&] {
               guess_labels(identity, {torch::zeros({3, 2})}, GuessLabelsOptions().temperature(-1));
             }),
             contains("temperature must be >= 0, got -1"));
}

namespace {

template <class M>
std::vector<Tensor> copies_of_buffers(M& model) {
  std::vector<Tensor> list;
  for (const auto& item : mixmatch::detail::model_buffers(model)) {
    list.push_back(item.tensor.clone());
  }
  return list;
}

template <class M>
void check_leaves_no_trace(M model) {
  const Tensor x = torch::randn({8, 3}) * 3 + 1;
  const auto before = copies_of_buffers(model);
  REQUIRE(before.size() == 3);
  const Tensor q = guess_labels(model, {x, x + 0.1});
  CHECK(q.sizes() == torch::IntArrayRef({8, 2}));
  CHECK_FALSE(q.requires_grad());
  CHECK(torch::allclose(q.sum(1), torch::ones({8})));
  auto after = copies_of_buffers(model);
  for (size_t i = 0; i < before.size(); ++i) {
    CHECK(torch::equal(before[i], after[i]));
  }
  // Training mode was in effect: batch statistics make the answer differ from the running ones'.
  {
    mixmatch::detail::EvaluationModeGuard evaluation(model);
    CHECK_FALSE(torch::allclose(guess_labels(model, {x, x + 0.1}), q, 1e-3, 1e-3));
  }
  guess_labels(model, {x}, GuessLabelsOptions().update_batch_norm(true));
  after = copies_of_buffers(model);
  CHECK_FALSE(torch::equal(before[0], after[0]));
  CHECK(after[2].template item<int64_t>() == before[2].template item<int64_t>() + 1);
}

}  // namespace

TEST_CASE("guess_labels: mode and running statistics of every kind of model are untouched") {
  torch::manual_seed(2);
  SECTION("shared_ptr to a module that cannot be cloned") {
    check_leaves_no_trace(std::make_shared<PlainNet>());
  }
  SECTION("ModuleHolder") { check_leaves_no_trace(HeldNet()); }
  SECTION("Sequential") { check_leaves_no_trace(sequential_net()); }
  SECTION("AnyModule") { check_leaves_no_trace(torch::nn::AnyModule(HeldNet())); }
  SECTION("TorchScript") { check_leaves_no_trace(script_net()); }
  SECTION("a module by reference, with mixed modes") {
    PlainNet net;
    net.norm->eval();
    guess_labels(net, {torch::randn({4, 3})});
    CHECK(net.is_training());
    CHECK_FALSE(net.norm->is_training());
    CHECK(net.dense1->is_training());
  }
}

TEST_CASE(
    "guess_labels: between a forward and its backward pass, in autocast too, the gradient is that without "
    "it") {
  torch::manual_seed(4);
  HeldNet model;
  const Tensor x = torch::randn({8, 3});
  const auto gradient = [&](bool guess_before, bool guess_between, at::ScalarType precision) {
    model->zero_grad();
    training::Autocast autocast(torch::kCPU, precision);
    if (guess_before) {
      guess_labels(model, {x});
    }
    Tensor loss = model->forward(x).square().to(at::kFloat).mul(torch::arange(16.f).view({8, 2})).sum();
    if (guess_between) {
      guess_labels(model, {x * 2});
    }
    loss.backward();
    REQUIRE(model->dense->weight.grad().defined());
    return model->dense->weight.grad().clone();
  };
  for (const auto precision : {at::kFloat, at::kBFloat16}) {
    const Tensor plain = gradient(false, false, precision);
    CHECK(plain.abs().sum().item<double>() > 0);
    CHECK(torch::equal(gradient(true, false, precision), plain));
    CHECK(torch::equal(gradient(false, true, precision), plain));
  }
}
