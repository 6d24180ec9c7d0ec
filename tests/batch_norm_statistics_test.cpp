#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/nn/batch_norm_statistics.hpp>

#include "catch.hpp"
#include "cuda_emulation.hpp"
#include "test_util.hpp"

#include <stdexcept>
#include <string>
#include <vector>

using mixmatch::training::BatchNormStatistics;
using torch::Tensor;

namespace cuda_emulation {
#include "cuda_statistics.inc"
}

namespace {

torch::nn::Sequential two_norms() {
  torch::manual_seed(1);
  return torch::nn::Sequential(
      torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 4, 3)), torch::nn::BatchNorm2d(4), torch::nn::ReLU(),
      torch::nn::Conv2d(torch::nn::Conv2dOptions(4, 5, 3)), torch::nn::BatchNorm2d(5));
}

std::vector<Tensor> buffers_of(torch::nn::Sequential& model) {
  std::vector<Tensor> list;
  for (const Tensor& buffer : model->buffers()) {
    list.push_back(buffer.clone());
  }
  return list;
}

}  // namespace

TEST_CASE("running statistics move by a momentum that is a tensor as by one that is a number") {
  auto model = two_norms(), expected = two_norms();
  BatchNormStatistics statistics(model);
  for (int64_t step = 0; step < 4; ++step) {
    const double momentum = mixmatch::batch_norm_momentum(step, 0.3);
    const Tensor as_tensor = mixmatch::batch_norm_momentum(at::full({}, step, at::kLong), 0.3);
    CHECK(as_tensor.item<double>() == momentum);
    const Tensor images = at::randn({6, 3, 8, 8}) + static_cast<double>(step);
    mixmatch::set_batch_norm_momentum(expected, momentum);
    const Tensor output = expected->forward(images);
    {
      const auto scope = statistics.update(as_tensor);
      CHECK(model->forward(images).equal(output));
    }
    const auto mine = buffers_of(model), theirs = buffers_of(expected);
    for (size_t i = 0; i < mine.size(); ++i) {
      CHECK(at::allclose(mine[i].to(at::kDouble), theirs[i].to(at::kDouble), 1e-5, 1e-6));
    }
  }
  // Nothing but the statistics has changed.
  CHECK(model[1]->as<torch::nn::BatchNorm2d>()->options.momentum() == 0.1);
  CHECK(model->named_buffers()["1.num_batches_tracked"].item<int64_t>() == 4);
}

TEST_CASE("passes whose statistics are discarded leave no trace, and a backward pass may follow") {
  auto model = two_norms(), expected = two_norms();
  BatchNormStatistics statistics(model);
  const Tensor images = at::randn({6, 3, 8, 8});
  const auto before = buffers_of(model);
  Tensor output;
  {
    const auto scope = statistics.discard();
    output = model->forward(images * 2) + model->forward(images);
  }
  const auto after = buffers_of(model);
  for (size_t i = 0; i < before.size(); ++i) {
    CHECK(after[i].equal(before[i]));
  }
  output.square().sum().backward();
  (expected->forward(images * 2) + expected->forward(images)).square().sum().backward();
  for (size_t i = 0; i < model->parameters().size(); ++i) {
    CHECK(at::allclose(model->parameters()[i].grad(), expected->parameters()[i].grad(), 1e-4, 1e-4));
  }
}

TEST_CASE("a batch that is not a number does not stay in discarded statistics") {
  auto model = two_norms();
  BatchNormStatistics statistics(model);
  {
    const auto scope = statistics.discard();
    model->forward(at::full({2, 3, 8, 8}, std::numeric_limits<float>::quiet_NaN()));
  }
  {
    const auto scope = statistics.update(at::full({}, 0.5));
    model->forward(at::randn({2, 3, 8, 8}));
  }
  for (const Tensor& buffer : model->buffers()) {
    CHECK(buffer.isfinite().all().item<bool>());
  }
}

TEST_CASE("a pass that throws moves no running statistics") {
  auto model = two_norms();
  BatchNormStatistics statistics(model);
  const auto before = buffers_of(model);
  const auto fails = [&] {
    const auto scope = statistics.update(torch::full({}, 0.5));
    model->forward(torch::randn({2, 3, 8, 8}));
    throw std::runtime_error("half way");
  };
  CHECK_THROWS_AS(fails(), std::runtime_error);
  const auto after = buffers_of(model);
  for (size_t i = 0; i < before.size(); ++i) {
    CHECK(after[i].equal(before[i]));
  }
  // And the next pass is a pass like any other.
  {
    const auto scope = statistics.update(torch::full({}, 0.5));
    model->forward(torch::randn({2, 3, 8, 8}));
  }
  CHECK_FALSE(buffers_of(model)[0].equal(before[0]));
}

TEST_CASE("running statistics keep their names and can be saved, and evaluation sees them") {
  auto model = two_norms();
  BatchNormStatistics statistics(model);
  const Tensor images = at::randn({8, 3, 8, 8}) * 3;
  {
    const auto scope = statistics.update(at::full({}, 1.0, at::kDouble));
    model->forward(images);
  }
  auto copy = two_norms();
  std::stringstream file;
  torch::save(model, file);
  torch::load(copy, file);
  model->eval();
  copy->eval();
  CHECK(model->forward(images).equal(copy->forward(images)));
  CHECK(statistics.state().size() == 2);
  CHECK(statistics.state()[0].numel() == 2 * (4 + 5));
}

TEST_CASE("batch-norm statistics name a wrong use") {
  auto model = two_norms();
  BatchNormStatistics statistics(model);
  CHECK_THAT(error_of([&] { auto scope = statistics.update(at::ones({2})); }),
             contains("momentum must be a floating-point scalar tensor, got Float [2]"));
  {
    const auto scope = statistics.discard();
    CHECK_THAT(error_of([&] { auto inner = statistics.update(at::full({}, 0.5)); }),
               contains("update() stands in no other scope"));
  }
  model->to(at::kDouble);
  CHECK_THAT(error_of([&] { auto scope = statistics.discard(); }),
             contains("no longer lie where they were put"));
  torch::nn::Sequential without(torch::nn::Linear(2, 2));
  BatchNormStatistics none(without);
  const auto scope = none.update(at::full({}, 0.5));
  CHECK(none.state().empty());
}

TEST_CASE("running statistics move at a step by its momentum, in one kernel too") {
  const Tensor images = at::randn({6, 3, 8, 8});
  const auto run = [&](bool at_step) {
    auto model = two_norms();
    BatchNormStatistics statistics(model);
    for (int64_t step = 0; step < 5; ++step) {  // momenta above 1/2, below it and the least
      const Tensor counter = at::full({}, step, at::kLong);
      const auto scope = at_step ? statistics.update_at(counter, 0.3)
                                 : statistics.update(mixmatch::batch_norm_momentum(counter, 0.3));
      model->forward(images + static_cast<double>(step));
    }
    return buffers_of(model);
  };
  const auto expected = run(false), found = run(true);
  cuda_emulation::EmulatedDevice device;
  device.add("move_statistics<float>", cuda_emulation::move_statistics<float>);
  const auto by_kernel = run(true);
  CHECK(device.launches() == 5);
  for (size_t i = 0; i < expected.size(); ++i) {
    CHECK(found[i].equal(expected[i]));
    CHECK(at::allclose(by_kernel[i].to(at::kDouble), expected[i].to(at::kDouble), 1e-6, 1e-7));
  }
  CHECK(by_kernel[2].item<int64_t>() == 5);
}

TEST_CASE("the kernel of running statistics moves many, of several blocks, and counts each layer once") {
  cuda_emulation::EmulatedDevice device;
  device.add("move_statistics<double>", cuda_emulation::move_statistics<double>);
  for (const int64_t layers : {3, 400}) {  // fewer than a block's, more than all statistics
    torch::manual_seed(2);
    const Tensor before = at::randn({300}, at::kDouble), batch = at::randn({300}, at::kDouble);
    Tensor running = before.clone(), counts = at::arange(layers, at::kLong);
    mixmatch::detail::move_statistics_on_cuda(running, batch, counts, at::full({}, 9, at::kLong), 0.01);
    CHECK(at::allclose(running, before * 0.9 + batch * 0.1, 1e-12, 1e-12));
    CHECK(counts.equal(at::arange(1, layers + 1, at::kLong)));
  }
}
