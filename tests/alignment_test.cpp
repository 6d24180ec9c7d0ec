#include <mixmatch/alignment.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <sstream>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

namespace mm = mixmatch;
using torch::Tensor;

namespace {

using Row = std::array<double, 3>;

/// The formula of the header in double arithmetic, with the model's distribution of `window` made_batches.
struct ByHand {
  Row prior;
  std::vector<Row> means;
  size_t counted = 0;

  std::vector<Row> align(const std::vector<Row>& batch) {
    Row model{}, mean{};
    for (const Row& row : means) {
      for (size_t c = 0; c < 3; ++c) {
        model[c] += row[c] / static_cast<double>(means.size());
      }
    }
    std::vector<Row> result;
    for (const Row& p : batch) {
      Row aligned{};
      double sum = 0;
      for (size_t c = 0; c < 3; ++c) {
        aligned[c] = p[c] * (prior[c] + 1e-6) / (model[c] + 1e-6);
        sum += aligned[c];
        mean[c] += p[c] / static_cast<double>(batch.size());
      }
      for (double& value : aligned) {
        value /= sum;
      }
      result.push_back(aligned);
    }
    means[counted++ % means.size()] = mean;
    return result;
  }
};

const std::vector<std::vector<Row>> made_batches{{{.7, .2, .1}, {.1, .8, .1}},
                                                 {{.9, .05, .05}, {.6, .1, .3}},
                                                 {{.2, .2, .6}, {.98, .01, .01}},
                                                 {{.5, .3, .2}, {.3, .4, .3}}};

Tensor tensor_of(const std::vector<Row>& rows) {
  Tensor tensor = torch::empty({static_cast<int64_t>(rows.size()), 3}, at::kDouble);
  for (size_t i = 0; i < rows.size(); ++i) {
    for (size_t c = 0; c < 3; ++c) {
      tensor[static_cast<int64_t>(i)][static_cast<int64_t>(c)] = rows[i][c];
    }
  }
  return tensor;
}

mm::DistributionAlignment three_classes() {
  return mm::DistributionAlignment(torch::tensor({1.0, 1.0, 2.0}),
                                   mm::DistributionAlignmentOptions().window(3));
}

}  // namespace

TEST_CASE("DistributionAlignment: the paper's formula over a window of made_batches, that of before") {
  auto alignment = three_classes();
  ByHand expected{{.25, .25, .5}, std::vector<Row>(3, Row{1.0 / 3, 1.0 / 3, 1.0 / 3})};
  for (const auto& batch : made_batches) {
    const Tensor found = alignment.align(tensor_of(batch));
    CHECK(found.scalar_type() == at::kDouble);
    CHECK(torch::allclose(found, tensor_of(expected.align(batch)), 1e-5, 1e-6));
  }
  CHECK(torch::allclose(alignment.model_distribution().sum(), torch::ones({})));
}

TEST_CASE("DistributionAlignment: guesses of one class alone are spread as the prior is") {
  mm::DistributionAlignment alignment(torch::tensor({.5, .3, .2}),
                                      mm::DistributionAlignmentOptions().window(4));
  const Tensor sure = torch::tensor({{.96, .02, .02}, {.9, .06, .04}, {.92, .03, .05}});
  Tensor aligned;
  for (int i = 0; i < 5; ++i) {
    aligned = alignment.align(sure);
  }
  CHECK(aligned.sum(1).allclose(torch::ones({3})));
  CHECK((aligned.mean(0) - torch::tensor({.5, .3, .2})).abs().max().item<double>() < 0.06);
  CHECK(aligned[1][1].item<double>() > 0.4);  // the row that is least sure of the first class
}

TEST_CASE("DistributionAlignment: no gradient; dtype kept; an empty prior's class stays empty") {
  mm::DistributionAlignment alignment(torch::tensor({1.0, 0.0}));
  const Tensor p = torch::tensor({{.5, .5}}, at::kHalf).set_requires_grad(true);
  const Tensor aligned = alignment.align(p);
  CHECK_FALSE(aligned.requires_grad());
  CHECK(aligned.scalar_type() == at::kHalf);
  CHECK(aligned[0][0].item<double>() == Approx(1).margin(1e-3));
}

TEST_CASE(
    "DistributionAlignment: saved and loaded, it goes on bit for bit, and its state is changed in place") {
  auto whole = three_classes(), resumed = three_classes();
  const auto state = whole.state();
  whole.align(tensor_of(made_batches[0]));
  whole.align(tensor_of(made_batches[1]));
  CHECK(state[1].item<int64_t>() == 2);
  torch::serialize::OutputArchive out;
  whole.save(out);
  std::stringstream file;
  out.save_to(file);
  torch::serialize::InputArchive in;
  in.load_from(file);
  resumed.load(in);
  for (size_t i = 2; i < 4; ++i) {
    CHECK(resumed.align(tensor_of(made_batches[i])).equal(whole.align(tensor_of(made_batches[i]))));
  }
  mm::DistributionAlignment other(torch::ones({3}));
  std::stringstream again(file.str());
  torch::serialize::InputArchive second;
  second.load_from(again);
  CHECK_THAT(error_of([&] { other.load(second); }),
             contains("expected means [128, 3] [window, L], got [3, 3]"));
}

TEST_CASE("DistributionAlignment: bad input") {
  const auto make = [](const Tensor& prior, int64_t window = 2) {
    return error_of(
        [&] { mm::DistributionAlignment(prior, mm::DistributionAlignmentOptions().window(window)); });
  };
  CHECK_THAT(make(Tensor()), contains("prior must be floating-point [L], got undefined"));
  CHECK_THAT(make(torch::ones({2, 2})), contains("got Float [2, 2]"));
  CHECK_THAT(make(torch::tensor({1, 2})), contains("prior must be floating-point"));
  CHECK_THAT(make(torch::zeros({2})), contains("not all 0"));
  CHECK_THAT(make(torch::tensor({1.0, -1.0, 3.0})), contains(">= 0"));
  CHECK_THAT(make(torch::tensor({1.0, std::numeric_limits<double>::quiet_NaN()})), contains("finite"));
  CHECK_THAT(make(torch::ones({2}), 0), contains("window must be >= 1, got 0"));
  auto alignment = three_classes();
  CHECK_THAT(error_of([&] {
               alignment.align(torch::ones({2, 4}));
             }),
             contains("probabilities must be floating-point [N, 3], got Float [2, 4]"));
}
