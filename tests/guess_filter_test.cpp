// What stands between predictions and guessed labels: the energy gate, the filter that joins it with
// alignment, and logit adjustment; golden values from double-precision arithmetic by hand.

#include <mixmatch/guess_filter.hpp>
#include <mixmatch/logit_adjustment.hpp>
#include <mixmatch/losses.hpp>

#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "model_zoo.hpp"
#include "test_util.hpp"

namespace mm = mixmatch;
using torch::Tensor;

namespace {

/// The gate's formulas in plain loops; scores of one row are the mean over views.
struct GateByHand {
  double decay = 0.95, low = 0, high = 0;
  bool seen = false;

  std::vector<bool> keep(const std::vector<std::vector<std::vector<double>>>& views) {
    std::vector<double> scores(views[0].size(), 0);
    for (const auto& view : views) {
      for (size_t i = 0; i < view.size(); ++i) {
        double sum = 0;
        for (const double logit : view[i]) {
          sum += std::exp(logit);
        }
        scores[i] += std::log(sum) / static_cast<double>(views.size());
      }
    }
    const auto rows = static_cast<double>(scores.size());
    double mean = 0, square = 0;
    for (const double score : scores) {
      mean += score / rows;
    }
    for (double& score : scores) {
      score -= mean;
      square += score * score / rows;
    }
    if (!seen) {
      low = -std::sqrt(square);
      high = std::sqrt(square);
      seen = true;
    }
    std::vector<bool> kept;
    double sums[2] = {0, 0}, counts[2] = {0, 0};
    for (const double score : scores) {
      kept.push_back(score > low);
      const int group = score > (low + high) / 2 ? 1 : 0;
      sums[group] += score;
      counts[group] += 1;
    }
    low = counts[0] > 0 ? decay * low + (1 - decay) * sums[0] / counts[0] : low;
    high = counts[1] > 0 ? decay * high + (1 - decay) * sums[1] / counts[1] : high;
    return kept;
  }
};

std::vector<std::vector<double>> rows_of(const Tensor& logits) {
  std::vector<std::vector<double>> rows;
  for (int64_t i = 0; i < logits.size(0); ++i) {
    const Tensor row = logits[i].to(at::kDouble).contiguous();
    rows.emplace_back(row.data_ptr<double>(), row.data_ptr<double>() + row.numel());
  }
  return rows;
}

template <class T>
std::string archived(const T& part) {
  torch::serialize::OutputArchive out;
  part.save(out);
  std::ostringstream file;
  out.save_to(file);
  return file.str();
}

template <class T>
void load_bytes(T& part, const std::string& bytes) {
  std::istringstream file(bytes);
  torch::serialize::InputArchive in;
  in.load_from(file);
  part.load(in);
}

Tensor some_logits(int64_t seed, int64_t rows = 7) {
  return 2 * torch::randn({rows, 3}, seeded(static_cast<uint64_t>(seed)), at::TensorOptions(at::kFloat));
}

mm::GuessFilterOptions both_parts() {
  return mm::GuessFilterOptions()
      .prior(torch::tensor({.6, .3, .1}))
      .alignment(mm::DistributionAlignmentOptions().window(3))
      .open_set(true);
}

}  // namespace

TEST_CASE("EnergyGate: rows above the lower of two means that follow the batch, over all views, as by hand") {
  mm::EnergyGate gate;
  GateByHand expected;
  double left_out = 0;
  for (int64_t batch = 0; batch < 40; ++batch) {
    const std::vector<Tensor> views{some_logits(2 * batch) + 0.1 * static_cast<double>(batch),
                                    some_logits(2 * batch + 1) + 0.1 * static_cast<double>(batch)};
    const Tensor kept = gate.keep(views);
    const auto by_hand = expected.keep({rows_of(views[0]), rows_of(views[1])});
    CHECK(kept.scalar_type() == at::kFloat);
    REQUIRE(kept.sizes() == at::IntArrayRef({7}));
    for (int64_t i = 0; i < 7; ++i) {
      CHECK((kept[i].item<double>() == 1) == by_hand[static_cast<size_t>(i)]);
    }
    CHECK(gate.offsets()[0].item<double>() == Approx(expected.low).epsilon(1e-5));
    CHECK(gate.offsets()[1].item<double>() == Approx(expected.high).epsilon(1e-5));
    left_out += (1 - kept).sum().item<double>();
  }
  CHECK(left_out > 0);
}

TEST_CASE("EnergyGate: two groups of rows are told apart whatever their shares are") {
  for (const int64_t foreign : {2, 8, 14}) {
    mm::EnergyGate gate;
    double left_out = 0;
    for (int64_t batch = 0; batch < 200; ++batch) {
      Tensor logits = 0.3 * some_logits(batch, 16);
      logits.narrow(0, foreign, 16 - foreign).select(1, 1) += 6;  // sure of a class
      const Tensor kept = gate.keep({logits});
      if (batch >= 100) {  // the means have settled
        CHECK(kept.narrow(0, foreign, 16 - foreign).min().item<double>() == 1);
        left_out += 1 - kept.narrow(0, 0, foreign).mean().item<double>();
      }
    }
    CHECK(left_out > 35);  // about half of the foreign ones
    CHECK(left_out < 75);
  }
}

TEST_CASE("EnergyGate: no gradient, any dtype, a NaN, one row and rows all alike") {
  mm::EnergyGate gate;
  Tensor logits = some_logits(1).set_requires_grad(true);
  CHECK_FALSE(gate.keep({logits}).requires_grad());
  for (const auto type : {at::kHalf, at::kBFloat16, at::kDouble}) {
    CHECK(gate.keep({some_logits(2).to(type)}).scalar_type() == at::kFloat);
  }
  mm::EnergyGate fresh;
  CHECK(fresh.keep({some_logits(1, 1)}).sizes() == at::IntArrayRef({1}));
  CHECK(fresh.offsets().isfinite().all().item<bool>());
  mm::EnergyGate same;
  CHECK(same.keep({at::ones({4, 3})}).sum().item<double>() == 0);  // none is above their mean
  Tensor broken = some_logits(3);
  gate.keep({some_logits(1)});
  broken[2][1] = std::numeric_limits<float>::quiet_NaN();
  const Tensor before = gate.offsets().clone();
  CHECK(gate.keep({broken}).sum().item<double>() == 0);
  CHECK(gate.offsets().equal(before));
  mm::EnergyGate later;  // the first batch without one is the first
  later.keep({broken});
  CHECK(later.keep({some_logits(1)}).equal(mm::EnergyGate().keep({some_logits(1)})));
}

TEST_CASE("EnergyGate: bad input") {
  CHECK_THAT(error_of([] { mm::EnergyGate(mm::EnergyGateOptions().decay(1)); }),
             contains("EnergyGate: decay must be in [0, 1), got 1"));
  CHECK_THAT(error_of([] { mm::EnergyGate(mm::EnergyGateOptions().decay(-.5)); }), contains("got -0.5"));
  mm::EnergyGate gate;
  CHECK_THAT(error_of([&] { gate.keep({}); }), contains("must hold at least one view, got none"));
  CHECK_THAT(error_of([&] { gate.keep({at::ones({3})}); }),
             contains("logits must be a floating-point [N, L]"));
  CHECK_THAT(error_of([&] {
               gate.keep({at::ones({3, 2}), at::ones({2, 2})});
             }),
             contains("one shape [N, L] of at least one row, got [2, 2]"));
  CHECK_THAT(error_of([&] { gate.keep({at::ones({0, 2})}); }), contains("got [0, 2]"));
}

TEST_CASE("GuessFilter: empty, it is the mean of the softmaxes, and says so") {
  mm::GuessFilter filter;
  CHECK(filter.empty());
  CHECK(filter.state().empty());
  const Tensor a = some_logits(1), b = some_logits(2);
  const auto one = filter({a}), two = filter({a, b});
  CHECK(one.probabilities.equal(torch::softmax(a, 1)));
  CHECK(two.probabilities.allclose((torch::softmax(a, 1) + torch::softmax(b, 1)) / 2, 1e-5, 1e-6));
  CHECK_FALSE(one.weights.defined());
  const Tensor mask = torch::tensor({1., 0., 1., 1., 0., 1., 1.});
  CHECK(one.kept(mask).is_same(mask));
  struct Loss {
    std::vector<std::pair<std::string, Tensor>> values;
  };
  CHECK(one.reported(Loss{}).values.empty());
}

TEST_CASE("GuessFilter: aligned as DistributionAlignment does, gated as EnergyGate does") {
  mm::GuessFilter filter(both_parts());
  CHECK_FALSE(filter.empty());
  CHECK(filter.state().size() == 4);
  mm::DistributionAlignment alignment(torch::tensor({.6, .3, .1}),
                                      mm::DistributionAlignmentOptions().window(3));
  mm::EnergyGate gate;
  for (int64_t batch = 0; batch < 5; ++batch) {
    const Tensor logits = some_logits(batch);
    const auto guess = filter({logits});
    const Tensor kept = gate.keep({logits});
    CHECK(guess.probabilities.equal(alignment.align(torch::softmax(logits, 1))));
    CHECK(guess.weights.equal(kept));
    const Tensor mask = torch::tensor({1., 0., 1., 1., 0., 1., 1.}, at::kDouble);
    CHECK(guess.kept(mask).equal(mask * kept));
    struct Loss {
      std::vector<std::pair<std::string, Tensor>> values;
    };
    const auto loss = guess.reported(Loss{});
    REQUIRE(loss.values.size() == 1);
    CHECK(loss.values[0].first == "open_set_rate");
    CHECK(loss.values[0].second.item<double>() == Approx(1 - kept.mean().item<double>()));
  }
}

TEST_CASE("GuessFilter: saved and loaded, it goes on bit for bit; a filter of other parts is refused") {
  mm::GuessFilter whole(both_parts()), resumed(both_parts());
  const auto state = whole.state();
  whole({some_logits(1)});
  whole({some_logits(2)});
  CHECK(state[1].item<int64_t>() == 2);  // changed in place
  const std::string saved = archived(whole);
  load_bytes(resumed, saved);
  for (int64_t batch = 3; batch < 6; ++batch) {
    const auto a = whole({some_logits(batch)}), b = resumed({some_logits(batch)});
    CHECK(a.probabilities.equal(b.probabilities));
    CHECK(a.weights.equal(b.weights));
  }
  mm::GuessFilter nothing, gated(mm::GuessFilterOptions().open_set(true));
  CHECK_THAT(error_of([&] { load_bytes(nothing, saved); }),
             contains("the saved filter has \"aligned\" on, this one off"));
  CHECK_THAT(error_of([&] { load_bytes(gated, archived(mm::GuessFilter())); }),
             contains("the saved filter has \"gated\" off, this one on"));
  CHECK_THAT(error_of([&] { load_bytes(gated, archived(mm::EnergyGate())); }), contains("holds no filter"));
  load_bytes(nothing, archived(mm::GuessFilter()));
}

TEST_CASE("guess_labels with a filter: aligned before it is sharpened; with an empty one the same bits") {
  torch::manual_seed(3);
  HeldNet model;
  const std::vector<Tensor> views{torch::randn({5, 3}), torch::randn({5, 3})};
  const auto options = mm::GuessLabelsOptions().temperature(0.5);
  mm::GuessFilter nothing;
  CHECK(mm::guess_labels(model, views, options, nothing)
            .probabilities.equal(mm::guess_labels(model, views, options)));
  mm::GuessFilter filter(mm::GuessFilterOptions().prior(torch::tensor({.9, .1})).open_set(true));
  const auto guess = mm::guess_labels(model, views, options, filter);
  const Tensor mean = mm::guess_labels(model, views, mm::GuessLabelsOptions().temperature(1));
  const Tensor scaled = mean * torch::tensor({.9 / .5, .1 / .5});
  const Tensor squared = (scaled / scaled.sum(1, true)).square();
  CHECK(guess.probabilities.allclose(squared / squared.sum(1, true), 1e-4, 1e-5));
  CHECK_FALSE(guess.probabilities.requires_grad());
  CHECK(guess.weights.sizes() == at::IntArrayRef({5}));
  CHECK_THAT(error_of([&] { mm::guess_labels(model, {}, options, filter); }),
             contains("guess_labels: views must hold at least one augmented batch"));
}

TEST_CASE("logit_adjustment: the logarithm of the shares, times tau; the loss and gradient that follow") {
  const Tensor counts = torch::tensor({60., 30., 10.}, at::kDouble);
  for (const double tau : {0.0, 0.5, 1.0, 2.0}) {
    const Tensor found = mm::logit_adjustment(counts, tau);
    CHECK(found.scalar_type() == at::kFloat);
    for (int64_t c = 0; c < 3; ++c) {
      CHECK(found[c].item<double>() ==
            Approx(tau * std::log(counts[c].item<double>() / 100)).epsilon(1e-5).margin(1e-6));
    }
  }
  CHECK(mm::logit_adjustment(torch::tensor({1., 0.}))[1].item<double>() ==
        Approx(std::log(1e-12)).epsilon(1e-5));
  // -log of p(y) prior(y) / sum_l p(l) prior(l), at a row of class 2.
  Tensor logits = torch::tensor({{0.5, -1.0, 0.25}}, at::kDouble).set_requires_grad(true);
  const Tensor loss = mm::masked_cross_entropy(logits + mm::logit_adjustment(counts),
                                               at::full({1}, 2, at::kLong), at::ones({1}, at::kDouble));
  loss.backward();
  const double terms[] = {std::exp(0.5) * .6, std::exp(-1.0) * .3, std::exp(0.25) * .1};
  const double sum = terms[0] + terms[1] + terms[2];
  CHECK(loss.item<double>() == Approx(-std::log(terms[2] / sum)).epsilon(1e-6));
  for (int64_t c = 0; c < 3; ++c) {
    CHECK(logits.grad()[0][c].item<double>() == Approx(terms[c] / sum - (c == 2 ? 1 : 0)).epsilon(1e-6));
  }
  CHECK_THAT(error_of([] { mm::logit_adjustment(torch::ones({2}), -1); }),
             contains("logit_adjustment: tau must be finite and >= 0, got -1"));
  CHECK_THAT(error_of([] { mm::logit_adjustment(torch::zeros({2})); }),
             contains("logit_adjustment: prior must hold finite shares >= 0 that are not all 0"));
  CHECK_THAT(error_of([] { mm::logit_adjustment(at::ones({2}, at::kLong)); }),
             contains("prior must be floating-point [L], got Long [2]"));
}
