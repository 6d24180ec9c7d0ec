#include <mixmatch/ema_model.hpp>
#include <mixmatch/evaluation/evaluate.hpp>
#include <mixmatch/evaluation/update_bn.hpp>

#include <memory>

#include "catch.hpp"
#include "model_zoo.hpp"
#include "test_util.hpp"

using namespace mixmatch;
using training::UpdatedBatchNorm;
using training::update_bn;
using training::UpdateBnOptions;

namespace {

/// Everything of a model that a recalibration could touch.
std::vector<Tensor> all_tensors(torch::nn::Module& module) {
  std::vector<Tensor> list;
  for (const auto& tensor : module.parameters()) {
    list.push_back(tensor.detach().clone());
  }
  for (const auto& tensor : module.buffers()) {
    list.push_back(tensor.clone());
  }
  return list;
}

bool same(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Tensor& x, const Tensor& y) { return torch::equal(x, y); });
}

/// Mean over batches of each batch's mean and unbiased variance, in float64, of rows [N, C].
std::pair<Tensor, Tensor> averages(const Tensor& rows, const std::vector<std::vector<int64_t>>& batches) {
  Tensor mean = torch::zeros({rows.size(1)}, at::kDouble), var = mean.clone();
  for (const auto& batch : batches) {
    const Tensor part = rows.to(at::kDouble).index_select(0, torch::tensor(batch, at::kLong));
    mean += part.mean(0);
    var += (part - part.mean(0)).square().sum(0) / static_cast<double>(part.size(0) - 1);
  }
  const auto count = static_cast<double>(batches.size());
  return {mean / count, var / count};
}

/// A batch norm behind a dropout, over images of 2 x 1 pixels.
struct DropoutNetImpl : torch::nn::Module {
  DropoutNetImpl() {
    dropout = register_module("dropout", torch::nn::Dropout(0.5));
    norm = register_module("norm", torch::nn::BatchNorm2d(torch::nn::BatchNorm2dOptions(3).momentum(0.001)));
    untracked = register_module(
        "untracked", torch::nn::BatchNorm2d(torch::nn::BatchNorm2dOptions(3).track_running_stats(false)));
  }
  Tensor forward(const Tensor& x) {
    ++passes;
    gradient = gradient || at::GradMode::is_enabled();
    return untracked(norm(dropout(x))).mean({2, 3});
  }
  torch::nn::Dropout dropout{nullptr};
  torch::nn::BatchNorm2d norm{nullptr}, untracked{nullptr};
  int passes = 0;
  bool gradient = false;
};
TORCH_MODULE(DropoutNet);

}  // namespace

TEST_CASE("update_bn: plain averages over batches spread over the whole set") {
  torch::manual_seed(3);
  const Tensor rows = torch::randn({11, 3}) * 2 + 1;
  HeldNet model;
  model->norm->options.momentum(0.25);
  const auto gather = [&](const Tensor& indices) { return rows.index_select(0, indices); };
  update_bn(model, 11, gather, UpdateBnOptions().batch_size(4));
  const Tensor inputs = model->dense(rows).detach();
  // Three batches of every third row.
  const auto [mean, var] = averages(inputs, {{0, 3, 6, 9}, {1, 4, 7, 10}, {2, 5, 8}});
  CHECK(torch::allclose(model->norm->running_mean.to(at::kDouble), mean, 1e-5, 1e-6));
  CHECK(torch::allclose(model->norm->running_var.to(at::kDouble), var, 1e-5, 1e-6));
  CHECK(model->norm->num_batches_tracked.item<int64_t>() == 3);
  CHECK(model->norm->options.momentum() == 0.25);
  CHECK(model->is_training());
  CHECK(model->norm->is_training());

  // A part of the set is spread over it, too: rows floor(i * 11 / 4).
  update_bn(model, 11, gather, UpdateBnOptions().batch_size(2).num_images(4));
  const auto [few_mean, few_var] = averages(inputs, {{0, 5}, {2, 8}});
  CHECK(torch::allclose(model->norm->running_mean.to(at::kDouble), few_mean, 1e-5, 1e-6));
  CHECK(torch::allclose(model->norm->running_var.to(at::kDouble), few_var, 1e-5, 1e-6));
}

TEST_CASE("update_bn: each image once, in batches that differ by one at most") {
  const Tensor rows = torch::randn({200, 3});
  for (const int64_t size : {1, 7, 64, 65, 200}) {
    for (const int64_t images : {5, 16384}) {
      HeldNet model;
      std::vector<Tensor> asked;
      int64_t smallest = 1000, largest = 0;
      update_bn(
          model, size,
          [&](const Tensor& indices) {
            asked.push_back(indices);
            smallest = std::min(smallest, indices.size(0));
            largest = std::max(largest, indices.size(0));
            // Two rows an image: batch norm wants more than one value.
            return torch::cat({rows.index_select(0, indices), rows.index_select(0, indices) + 1});
          },
          UpdateBnOptions().batch_size(16).num_images(images));
      const Tensor all = std::get<0>(torch::cat(asked).sort());
      INFO(size << " " << images);
      CHECK(all.size(0) == std::min(size, images));
      CHECK(std::get<0>(at::_unique(all)).size(0) == all.size(0));
      CHECK(all[0].item<int64_t>() == 0);
      CHECK(all[-1].item<int64_t>() < size);
      CHECK(largest <= 16);
      CHECK(largest - smallest <= 1);
    }
  }
}

TEST_CASE("update_bn: images are normalised or augmented; dropout draws nothing") {
  const Tensor images = torch::randint(0, 256, {6, 3, 2, 1}, torch::kByte);
  DropoutNet model;
  model->dropout->train();
  model->norm->eval();
  const Tensor generator_state = at::detail::getDefaultCPUGenerator().get_state();
  update_bn(model, images);
  CHECK(torch::equal(at::detail::getDefaultCPUGenerator().get_state(), generator_state));
  const Tensor values = (images.to(at::kDouble) * 2 / 255 - 1).permute({0, 2, 3, 1}).reshape({12, 3});
  CHECK(torch::allclose(model->norm->running_mean.to(at::kDouble), values.mean(0), 1e-5, 1e-6));
  CHECK(torch::allclose(model->norm->running_var.to(at::kDouble), values.var(0), 1e-5, 1e-6));
  CHECK(model->passes == 1);
  CHECK_FALSE(model->gradient);
  // Modes and momentum as they were.
  CHECK(model->is_training());
  CHECK(model->dropout->is_training());
  CHECK_FALSE(model->norm->is_training());
  CHECK(model->norm->options.momentum() == 0.001);

  update_bn(
      model, images, [](const Tensor& batch) { return batch.to(at::kFloat) + 5; },
      UpdateBnOptions().batch_size(6));
  CHECK(torch::allclose(model->norm->running_mean, images.to(at::kFloat).mean(at::IntArrayRef{0, 2, 3}) + 5,
                        1e-5, 1e-4));
}

TEST_CASE("update_bn: every kind of nn::Module, and one without batch norms") {
  const Tensor rows = torch::randn({8, 3});
  const auto gather = [&](const Tensor& indices) { return rows.index_select(0, indices); };
  const auto check = [&](auto& model, const torch::nn::BatchNorm1d& norm) {
    update_bn(model, 8, gather);
    CHECK(norm->num_batches_tracked.template item<int64_t>() == 1);
    CHECK_FALSE(torch::equal(norm->running_mean, torch::zeros_like(norm->running_mean)));
  };
  PlainNet plain;
  check(plain, plain.norm);
  HeldNet held;
  check(held, held->norm);
  auto shared = std::make_shared<PlainNet>();
  check(shared, shared->norm);
  torch::nn::Linear dense(3, 4);
  torch::nn::BatchNorm1d norm(4);
  torch::nn::Sequential sequential(dense, norm);
  check(sequential, norm);
  HeldNet inner;
  torch::nn::AnyModule any(inner);
  check(any, inner->norm);

  torch::nn::Linear without(3, 2);
  bool asked = false;
  update_bn(without, 8, [&](const Tensor& indices) {
    asked = true;
    return gather(indices);
  });
  CHECK_FALSE(asked);
}

TEST_CASE("update_bn: a batch norm used twice averages all its calls") {
  struct Twice : torch::nn::Module {
    Twice() { norm = register_module("norm", torch::nn::BatchNorm1d(3)); }
    Tensor forward(const Tensor& x) { return norm(x) + norm(x + 6); }
    torch::nn::BatchNorm1d norm{nullptr};
  } model;
  const Tensor rows = torch::randn({10, 3});
  update_bn(model, 10, [&](const Tensor& indices) { return rows.index_select(0, indices); });
  CHECK(torch::allclose(model.norm->running_mean, rows.mean(0) + 3, 1e-5, 1e-5));
  CHECK(model.norm->num_batches_tracked.item<int64_t>() == 2);
}

TEST_CASE("UpdatedBatchNorm: other statistics while it lives, the former ones bit for bit after") {
  torch::manual_seed(5);
  DropoutNet model;
  const Tensor images = torch::randint(0, 256, {20, 3, 2, 1}, torch::kByte);
  model->forward(torch::randn({16, 3, 2, 1}));
  const auto before = all_tensors(*model);
  const void* memory = model->norm->running_mean.data_ptr();
  {
    UpdatedBatchNorm recalibration(model, images, UpdateBnOptions().batch_size(20));
    const Tensor values = (images.to(at::kFloat) * 2 / 255 - 1).permute({0, 2, 3, 1}).reshape({40, 3});
    CHECK(torch::allclose(model->norm->running_mean, values.mean(0), 1e-5, 1e-6));
    CHECK(model->is_training());
    const data::ImageDataset dataset{images, torch::zeros({20}, at::kLong), {"a", "b", "c"}};
    training::evaluate_model(model, dataset);
    CHECK(torch::allclose(model->norm->running_mean, values.mean(0), 1e-5, 1e-6));
  }
  CHECK(same(all_tensors(*model), before));
  CHECK(model->norm->running_mean.data_ptr() == memory);
}

TEST_CASE("UpdatedBatchNorm: averaged weights get statistics of their own, the live model stays") {
  torch::manual_seed(6);
  HeldNet model;
  EmaModel ema(model, EmaModelOptions().decay(0.5));
  const Tensor rows = torch::randn({12, 3});
  const auto gather = [&](const Tensor& indices) { return rows.index_select(0, indices); };
  model(rows);
  {
    torch::NoGradGuard no_grad;
    model->dense->weight.mul_(3);
  }
  ema.update();
  const auto live = all_tensors(*model);
  const Tensor averaged_output = ema.forward(rows);
  {
    auto average = ema.average_parameters();
    UpdatedBatchNorm recalibration(model, 12, gather);
    torch::NoGradGuard no_grad;
    CHECK(torch::allclose(model->norm->running_mean, model->dense(rows).mean(0), 1e-5, 1e-6));
  }
  CHECK(same(all_tensors(*model), live));
  CHECK(torch::equal(ema.forward(rows), averaged_output));
}

TEST_CASE("update_bn: what throws leaves the model as it was") {
  HeldNet model;
  const Tensor rows = torch::randn({12, 3});
  model(rows);
  model->norm->options.momentum(0.125);
  const auto before = all_tensors(*model);
  int calls = 0;
  const auto failing = [&](const Tensor& indices) -> Tensor {
    TORCH_CHECK(++calls < 2, "no more data");
    return rows.index_select(0, indices);
  };
  CHECK_THAT(
      error_of([&] { update_bn(model, 12, failing, UpdateBnOptions().batch_size(4)); }),
      contains("no more data"));
  calls = 0;
  CHECK_THAT(error_of([&] {
               const UpdatedBatchNorm recalibration(model, 12, failing,
                                                          UpdateBnOptions().batch_size(4));
             }),
             contains("no more data"));
  CHECK(same(all_tensors(*model), before));
  CHECK(model->norm->options.momentum() == 0.125);
  CHECK(model->is_training());

  CHECK_THAT(error_of([&] { update_bn(model, Tensor()); }),
             contains("the data set holds no images"));
  CHECK_THAT(error_of([&] { update_bn(model, 0, failing); }), contains("holds no images"));
  CHECK_THAT(error_of([&] { update_bn(model, 1, failing, UpdateBnOptions().num_images(0)); }),
             contains("num_images must be >= 1, got 0"));
  CHECK_THAT(error_of([&] { update_bn(model, 1, failing, UpdateBnOptions().batch_size(0)); }),
             contains("batch_size must be >= 1, got 0"));
}
