#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/nn/forward_each.hpp>

#include <memory>
#include <vector>

#include "catch.hpp"
#include "model_zoo.hpp"

using namespace mixmatch;
using models::WideResNet;
using models::WideResNetOptions;

namespace {

WideResNet make_network() {
  torch::manual_seed(3);
  WideResNet model(WideResNetOptions(5).depth(10).widen_factor(1));
  model->to(at::kDouble);
  return model;
}

std::vector<Tensor> make_batches(int64_t count, int64_t rows) {
  torch::manual_seed(4);
  std::vector<Tensor> batches;
  for (int64_t k = 0; k < count; ++k) {
    batches.push_back(
        torch::randn({rows, 3, 16, 16}, at::kDouble).contiguous(at::MemoryFormat::ChannelsLast));
  }
  return batches;
}

/// One pass after the other, the statistics held by hand from the second on.
template <class M>
std::vector<Tensor> one_by_one(M& model, const std::vector<Tensor>& batches) {
  std::vector<Tensor> outputs{forward(model, batches[0])};
  const BatchNormFreeze freeze(model);
  for (size_t k = 1; k < batches.size(); ++k) {
    outputs.push_back(forward(model, batches[k]));
  }
  return outputs;
}

static_assert(GroupedModel<WideResNet>);
static_assert(GroupedModel<models::WideResNetImpl>);
static_assert(GroupedModel<std::shared_ptr<models::WideResNetImpl>>);
static_assert(!GroupedModel<torch::nn::Sequential>);
static_assert(!GroupedModel<torch::nn::AnyModule>);

}  // namespace

TEST_CASE("forward_each: one pass in groups equals separate passes, gradients and statistics too") {
  auto grouped = make_network(), separate = make_network();
  const auto batches = make_batches(3, 4);
  const auto a = forward_each(grouped, batches), b = one_by_one(separate, batches);
  REQUIRE(a.size() == 3);
  for (size_t k = 0; k < 3; ++k) {
    CHECK(torch::allclose(a[k], b[k], 1e-9, 1e-11));
  }
  (a[0].square().sum() + a[2].sum()).backward();
  (b[0].square().sum() + b[2].sum()).backward();
  for (size_t i = 0; i < grouped->parameters().size(); ++i) {
    CHECK(torch::allclose(grouped->parameters()[i].grad(), separate->parameters()[i].grad(), 1e-7, 1e-9));
  }
  for (size_t i = 0; i < grouped->buffers().size(); ++i) {
    CHECK(torch::allclose(grouped->buffers()[i], separate->buffers()[i], 1e-9, 1e-12));
  }
  // The next pass is one batch again.
  CHECK(torch::allclose(grouped->forward(batches[1]), separate->forward(batches[1]), 1e-9, 1e-11));
}

TEST_CASE("forward_each: other models, unequal batches, evaluation mode, one batch, none") {
  auto network = make_network(), twin = make_network();
  auto batches = make_batches(2, 4);
  batches.push_back(make_batches(1, 3)[0]);
  auto a = forward_each(network, batches);
  auto b = one_by_one(twin, batches);
  for (size_t k = 0; k < 3; ++k) {
    CHECK(torch::equal(a[k], b[k]));
  }
  CHECK(torch::equal(network->bn1->running_mean, twin->bn1->running_mean));

  torch::nn::AnyModule any(network);
  a = forward_each(any, make_batches(2, 4));
  b = one_by_one(twin, make_batches(2, 4));
  CHECK(torch::equal(a[1], b[1]));
  CHECK(torch::equal(network->bn1->running_var, twin->bn1->running_var));

  network->eval();
  twin->eval();
  a = forward_each(network, make_batches(2, 4));
  CHECK(torch::allclose(a[1], twin->forward(make_batches(2, 4)[1]), 1e-9, 1e-11));
  CHECK(forward_each(network, make_batches(1, 2)).size() == 1);
  CHECK(forward_each(network, {}).empty());

  int calls = 0;
  auto callable = [&calls](const Tensor& x) {
    ++calls;
    return x.flatten(1);
  };
  CHECK(forward_each(callable, make_batches(3, 2)).size() == 3);
  CHECK(calls == 3);
}

TEST_CASE("forward_each: a callable may take groups too; batches of two dtypes are two passes") {
  struct Grouped {
    std::vector<int64_t> groups, rows;
    void set_batch_norm_groups(int64_t count) { groups.push_back(count); }
    Tensor operator()(const Tensor& x) {
      rows.push_back(x.size(0));
      return x.flatten(1);
    }
  };
  static_assert(GroupedModel<Grouped>);
  Grouped model;
  auto batches = make_batches(3, 2);
  CHECK(torch::equal(forward_each(model, batches)[2], batches[2].flatten(1)));
  CHECK(model.groups == std::vector<int64_t>{3, 1});
  CHECK(model.rows == std::vector<int64_t>{6});
  batches[1] = batches[1].to(at::kFloat);
  CHECK(forward_each(model, batches)[1].scalar_type() == at::kFloat);
  CHECK(model.rows.size() == 4);
}

TEST_CASE("forward_each: an exception leaves the network in one group") {
  auto network = make_network();
  std::vector<Tensor> bad{torch::zeros({2, 1, 16, 16}, at::kDouble),
                          torch::zeros({2, 1, 16, 16}, at::kDouble)};
  CHECK_THROWS_AS(forward_each(network, bad), c10::Error);
  CHECK(network->bn1->groups() == 1);
}
