#include <mixmatch/distributed/c10d_process_group.hpp>
#include <mixmatch/distributed/launch_environment.hpp>
#include <mixmatch/methods/fixmatch.hpp>
#include <mixmatch/methods/ict.hpp>
#include <mixmatch/methods/mean_teacher.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/methods/mixup.hpp>
#include <mixmatch/methods/pi_model.hpp>
#include <mixmatch/methods/pseudo_label.hpp>
#include <mixmatch/methods/supervised.hpp>
#include <mixmatch/methods/uda.hpp>
#include <mixmatch/methods/vat.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/nn/sync_batch_norm.hpp>
#include <mixmatch/step/data_parallel.hpp>
#include <mixmatch/step/trainer.hpp>

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "rank_processes.hpp"
#include "test_util.hpp"
#include "thread_group.hpp"

namespace mm = mixmatch;
namespace mt = mixmatch::training;
using torch::Tensor;

namespace {

constexpr int64_t kClasses = 3;

/// f(name, make) for each method, which make() returns, with state of its own, at a step and with thresholds
/// at which every term of its loss counts.
template <class F>
void for_each_parallel_method(const F& f) {
  const auto ramp = mm::RampedLossOptions().lambda_u(3).rampup_steps(10);
  const auto filter = [] {
    return mm::GuessFilter(
        mm::GuessFilterOptions().prior(at::tensor({0.5, 0.25, 0.25}, at::kDouble)).open_set(true));
  };
  f("supervised", [=] { return mm::methods::Supervised(); });
  f("mixmatch", [=] { return mm::methods::MixMatch(mm::MixMatchOptions(), ramp); });
  f("mixmatch, filtered", [=] { return mm::methods::MixMatch(mm::MixMatchOptions(), ramp, filter()); });
  f("pseudo_label", [=] { return mm::methods::PseudoLabel(0.36, ramp); });
  f("pi_model", [=] { return mm::methods::PiModel(ramp); });
  f("mean_teacher", [=] { return mm::methods::MeanTeacher(ramp); });
  f("mixup", [=] { return mm::methods::MixUp(mm::MixUpOptions().alpha(0.75), 2); });
  f("ict", [=] { return mm::methods::Ict(mm::MixUpOptions().alpha(0.75).keep_dominant(false), ramp); });
  f("vat", [=] { return mm::methods::Vat(mm::methods::VatOptions().radius(2), ramp); });
  f("uda", [=] { return mm::methods::Uda(mm::methods::UdaOptions().threshold(0.35).total_steps(20)); });
  f("fixmatch",
    [=] { return mm::methods::FixMatch(mm::methods::FixMatchOptions().threshold(0.36), filter()); });
}

mm::Batch random_batch() {
  auto generator = seeded(3);
  const auto images = [&](int64_t rows) {
    return at::randn({rows, 3, 8, 8}, generator, at::TensorOptions(at::kDouble));
  };
  mm::Batch batch;
  batch.labeled = images(8);
  batch.labels = at::arange(8, at::kLong).remainder(kClasses);
  batch.weak = {images(8), images(8)};
  batch.strong = {images(8)};
  batch.hidden_labels = at::arange(8, at::kLong).remainder(kClasses);
  batch.unlabeled_rows = at::arange(8, at::kLong);
  return batch;
}

/// Its part of a batch, rows rank, rank + world_size, …: what own_rows() gives the network.
mm::Batch part_of(const mm::Batch& batch, int64_t rank, int64_t world_size) {
  const auto part = [&](const Tensor& rows) {
    return rows.slice(0, rank, rows.size(0), world_size).contiguous();
  };
  mm::Batch own = batch;
  own.labeled = part(batch.labeled);
  own.labels = part(batch.labels);
  for (auto* views : {&own.weak, &own.strong}) {
    for (Tensor& view : *views) {
      view = part(view);
    }
  }
  own.hidden_labels = part(batch.hidden_labels);
  own.unlabeled_rows = part(batch.unlabeled_rows);
  return own;
}

mm::models::WideResNet double_network() {
  static std::mutex mutex;  // of LibTorch's generator, which all threads draw from
  const std::lock_guard<std::mutex> lock(mutex);
  torch::manual_seed(7);
  mm::models::WideResNet model(mm::models::WideResNetOptions(kClasses).depth(10).widen_factor(1));
  model->to(at::kDouble);
  return model;
}

/// One step's loss, gradients and statistics.
struct StepResult {
  double loss = 0;
  std::vector<std::pair<std::string, double>> values;
  std::vector<Tensor> gradients, buffers;
};

/// A network that sends the rows of each of `towers` ranks through it apart, as their processes do.
struct Towers : torch::nn::Module {
  Towers(mm::models::WideResNet of, int64_t count) : network(std::move(of)), towers(count) {
    register_module("network", network);
  }
  Tensor forward(const Tensor& x) {
    std::vector<Tensor> outputs;
    for (int64_t rank = 0; rank < towers; ++rank) {
      outputs.push_back(network(x.slice(0, rank, x.size(0), towers).contiguous()));
    }
    return at::stack(outputs, 1).flatten(0, 1);
  }
  mm::models::WideResNet network;
  int64_t towers;
};

template <class Network, class Method>
StepResult one_step(Network& network, Method method, const mm::Batch& batch, mt::ProcessGroup* group,
                    mt::RankBatches batches = mt::RankBatches::joint, uint64_t draws = 11) {
  mt::TrainState<Network> state(network, mt::TrainStateOptions().seed(draws));
  mt::LearnerOptions learning;
  if (group != nullptr && batches == mt::RankBatches::joint) {
    learning.joint_group(group);
  }
  mt::Learner<Network> learner(state.model, state.ema, learning);
  mt::DataParallel<Network> parallel(state, learner, group, mt::DataParallelOptions().batches(batches));
  const Tensor step = at::full({}, 5, at::kLong);
  parallel.begin_step();
  if (batches == mt::RankBatches::separate) {
    state.generator.set_current_seed(draws);
  }
  mm::StepLoss loss;
  {
    const auto statistics = learner.training_step(step);
    loss = method(learner, batch, step, state.generator);
  }
  parallel.backward(loss.total);
  StepResult result;
  result.loss = loss.total.template item<double>();
  for (const auto& [name, value] : loss.values) {
    result.values.emplace_back(name, value.template item<double>());
  }
  for (const auto& item : mm::detail::model_parameters(state.model)) {
    result.gradients.push_back(item.tensor.grad().clone());
  }
  for (const auto& item : mm::detail::model_buffers(state.model)) {
    result.buffers.push_back(item.tensor.clone());
  }
  return result;
}

void check_close(const std::vector<Tensor>& found, const std::vector<Tensor>& expected,
                 double tolerance = 1e-9) {
  REQUIRE(found.size() == expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    INFO("tensor " << i << ": " << (found[i] - expected[i]).abs().max().item<double>() << " of "
                   << expected[i].abs().max().item<double>());
    CHECK(at::allclose(found[i], expected[i], tolerance, tolerance));
  }
}

void check_same_step(const StepResult& found, const StepResult& expected, double tolerance) {
  CHECK(found.loss == Approx(expected.loss).epsilon(tolerance));
  REQUIRE(found.values.size() == expected.values.size());
  for (size_t i = 0; i < found.values.size(); ++i) {
    INFO(found.values[i].first);
    const double a = found.values[i].second, b = expected.values[i].second;
    CHECK(((std::isnan(a) && std::isnan(b)) || a == Approx(b).epsilon(tolerance).margin(1e-12)));
  }
  check_close(found.gradients, expected.gradients, tolerance);
}

/// All ranks' results of body(group).
std::vector<StepResult> results_of(int64_t world_size, const std::function<StepResult(ThreadGroup&)>& body) {
  std::vector<StepResult> results(static_cast<size_t>(world_size));
  on_ranks(world_size, [&](ThreadGroup& group) { results[static_cast<size_t>(group.rank())] = body(group); });
  return results;
}

}  // namespace

TEST_CASE("joint batches with synchronised batch norm are one process's step, for each method") {
  const mm::Batch batch = random_batch();
  for_each_parallel_method([&](const char* name, const auto& make) {
    INFO(name);
    // VAT's direction is a difference of passes that are 1e-6 apart.
    const double tolerance = std::string(name) == "vat" ? 1e-6 : 1e-9;
    auto whole = double_network();
    const auto expected = one_step(whole, make(), batch, nullptr);
    for (const int64_t world_size : {2, 4}) {
      INFO(world_size << " ranks");
      const auto results = results_of(world_size, [&](ThreadGroup& group) {
        auto network = double_network();
        mt::synchronize_batch_norm(network, &group);
        return one_step(network, make(), batch, &group);
      });
      for (const auto& result : results) {
        check_same_step(result, expected, tolerance);
        check_close(result.buffers, expected.buffers, tolerance);
        for (size_t i = 0; i < result.gradients.size(); ++i) {
          CHECK(result.gradients[i].equal(results[0].gradients[i]));
        }
      }
    }
  });
}

#ifdef MIXMATCH_HAS_GLOO
TEST_CASE("a step of processes over Gloo is one process's step for each method") {
  if (std::getenv("MIXMATCH_TEST_RANK") != nullptr) {  // a process that the test has started
    at::set_num_threads(1);
    const auto group = mt::C10dProcessGroup::join(mt::launch_environment().value());
    const mm::Batch batch = random_batch();
    for_each_parallel_method([&](const char* name, const auto& make) {
      INFO(name);
      auto whole = double_network(), network = double_network();
      mt::synchronize_batch_norm(network, group.get());
      check_same_step(one_step(network, make(), batch, group.get()), one_step(whole, make(), batch, nullptr),
                      1e-6);
    });
    group->leave();
    return;
  }
  for (const int ranks : {2, 4}) {
    const auto processes =
        start_processes(ranks, {"MIXMATCH_TEST_RANK=1", std::filesystem::canonical("/proc/self/exe").string(),
                                "a step of processes over Gloo is one process's step for each method"});
    for (const auto& process : processes) {
      const Finished finished = process->wait();
      INFO(finished.out << finished.err);
      CHECK(finished.status == 0);
      CHECK_THAT(finished.out, contains("assertions in 1 test case"));
    }
  }
}
#endif

TEST_CASE("joint batches with a rank's own batch norm are one process's step through towers") {
  const mm::Batch batch = random_batch();
  for_each_parallel_method([&](const char* name, const auto& make) {
    INFO(name);
    const double tolerance = std::string(name) == "vat" ? 1e-6 : 1e-9;
    auto towers = std::make_shared<Towers>(double_network(), 2);
    const auto expected = one_step(towers, make(), batch, nullptr);
    const auto results = results_of(2, [&](ThreadGroup& group) {
      auto network = double_network();
      return one_step(network, make(), batch, &group);
    });
    for (const auto& result : results) {
      check_same_step(result, expected, tolerance);
      CHECK(result.buffers[0].equal(results[0].buffers[0]));  // statistics: the same on every rank
    }
  });
}

TEST_CASE("separate batches are the mean of the ranks' own steps") {
  const mm::Batch batch = random_batch();
  for_each_parallel_method([&](const char* name, const auto& make) {
    INFO(name);
    std::vector<StepResult> alone;
    for (int64_t rank = 0; rank < 2; ++rank) {
      auto network = double_network();
      alone.push_back(one_step(network, make(), part_of(batch, rank, 2), nullptr, mt::RankBatches::joint,
                               20 + static_cast<uint64_t>(rank)));
    }
    const auto results = results_of(2, [&](ThreadGroup& group) {
      auto network = double_network();
      return one_step(network, make(), part_of(batch, group.rank(), 2), &group, mt::RankBatches::separate,
                      20 + static_cast<uint64_t>(group.rank()));
    });
    std::vector<Tensor> gradients;
    for (size_t i = 0; i < alone[0].gradients.size(); ++i) {
      gradients.push_back((alone[0].gradients[i] + alone[1].gradients[i]) / 2);
    }
    check_close(results[0].gradients, gradients);
    check_close(results[1].gradients, gradients);
  });
}

namespace {

/// Images of one gray level a class, with noise.
mt::TrainingData gray_images() {
  auto generator = seeded(5);
  mm::data::ImageDataset set;
  set.labels = at::arange(60, at::kLong).remainder(kClasses);
  const Tensor noise = at::randint(0, 30, {60, 3, 8, 8}, generator, at::TensorOptions(at::kFloat));
  set.images = ((set.labels * 90 + 20).view({60, 1, 1, 1}) + noise).to(at::kByte);
  set.class_names = {"a", "b", "c"};
  return {mm::data::ImagePool({set}), {at::arange(15, at::kLong), at::arange(15, 60, at::kLong), {}}, {}, {}};
}

mm::models::WideResNet small_network() {
  auto model = double_network();
  model->to(at::kFloat);
  return model;
}

struct RunResult {
  std::vector<Tensor> weights;
  mm::StepMeans last;
};

template <class Method>
RunResult run_steps(int64_t steps, const Method& method, mt::ProcessGroup* group,
                    mt::RankBatches batches = mt::RankBatches::joint, bool synchronized = false) {
  auto network = small_network();
  if (synchronized) {
    mt::synchronize_batch_norm(network, group);
  }
  mt::TrainState<mm::models::WideResNet> state(network);
  auto options =
      mt::TrainerOptions()
          .feed(mt::FeedOptions().batch_size(8).augmentation(mm::augment::RandomCropFlipOptions().padding(2)))
          .data_parallel(mt::DataParallelOptions().batches(batches).check_every(1));
  const auto data = gray_images();
  mt::Trainer trainer(state, method(), data, mt::use_processes(options, group));
  RunResult result;
  for (int64_t i = 0; i < steps; ++i) {
    result.last = trainer.run(1);
  }
  for (const auto& item : mm::detail::model_state(network)) {
    result.weights.push_back(item.tensor.clone());
  }
  for (const auto& item : state.ema.named_parameters()) {
    result.weights.push_back(item.second.clone());
  }
  return result;
}

mm::methods::MixMatch mixmatch_method() {
  return mm::methods::MixMatch(mm::MixMatchOptions(), mm::RampedLossOptions().lambda_u(10).rampup_steps(100));
}

}  // namespace

TEST_CASE("after 200 steps all ranks have the same weights and averages, bit for bit") {
  for (const auto batches : {mt::RankBatches::joint, mt::RankBatches::separate}) {
    std::vector<RunResult> results(2);
    on_ranks(2, [&](ThreadGroup& group) {
      results[static_cast<size_t>(group.rank())] = run_steps(200, mixmatch_method, &group, batches);
    });
    REQUIRE(results[0].weights.size() == results[1].weights.size());
    for (size_t i = 0; i < results[0].weights.size(); ++i) {
      CHECK(results[0].weights[i].equal(results[1].weights[i]));
    }
    CHECK(results[0].last.values == results[1].last.values);
    CHECK(std::isfinite(results[0].last.values[0]));
  }
}

TEST_CASE("a Trainer of several ranks takes one process's steps") {
  const auto alone = run_steps(10, mixmatch_method, nullptr);
  std::vector<RunResult> results(2);
  on_ranks(2, [&](ThreadGroup& group) {
    results[static_cast<size_t>(group.rank())] =
        run_steps(10, mixmatch_method, &group, mt::RankBatches::joint, /*synchronized=*/true);
  });
  for (size_t i = 0; i < alone.weights.size(); ++i) {
    CHECK(at::allclose(results[0].weights[i].to(at::kDouble), alone.weights[i].to(at::kDouble), 1e-2, 2e-3));
  }
  CHECK(results[0].last.values[0] == Approx(alone.last.values[0]).epsilon(1e-3));
}

namespace {

/// Supervised, with state of every kind, which follows from the steps' rows alone.
struct Remembering {
  Tensor mean = at::zeros({2}), steps = at::zeros({}, at::kLong);       // of means over rows; of steps
  Tensor counts = at::zeros({kClasses}, at::kLong);                     // of rows by class
  Tensor latest = at::zeros({60}), flips = at::zeros({60}, at::kBool);  // by image
  Tensor bytes = at::zeros({60}, at::kByte);

  void see(const Tensor& rows, const Tensor& classes, int64_t step) {
    const torch::NoGradGuard no_grad;
    const Tensor numbers = rows.to(at::kFloat);
    mean.mul_(0.75).add_(at::stack({numbers.mean(), numbers.square().mean()}), 0.25);
    steps.add_(1);
    counts.add_(at::bincount(classes, {}, kClasses));
    latest.index_put_({rows}, numbers / 7 + static_cast<double>(step));
    flips.index_put_({rows}, flips.index({rows}).logical_not());
    bytes.index_put_({rows}, (rows + 100 * step).remainder(251).to(at::kByte));
  }

  template <class Model>
  mm::StepLoss operator()(Model& model, const mm::Batch& batch, const Tensor& step,
                          const at::Generator& generator) {
    see(batch.unlabeled_rows, batch.hidden_labels, step.item<int64_t>());
    return mm::methods::Supervised()(model, batch, step, generator);
  }
  std::vector<Tensor> state() const { return {mean, steps, counts, latest, flips, bytes}; }
  std::vector<Tensor> row_state() const { return {counts, latest, flips, bytes}; }
  void save(torch::serialize::OutputArchive&) const {}
  void load(torch::serialize::InputArchive&) {}
};

}  // namespace

TEST_CASE("separate batches: a method's state is that of one that has seen all ranks' rows") {
  const auto data = gray_images();
  const auto feeding = mt::FeedOptions().batch_size(9).weak_views(1);  // of 45 images: no epoch ends within
  constexpr int64_t kSteps = 12, kRanks = 3;
  Remembering expected;
  const mt::Feed whole(data, feeding);
  for (int64_t step = 0; step < kSteps; ++step) {
    const auto batch = whole(at::full({}, step, at::kLong));
    expected.see(batch.unlabeled_rows, batch.hidden_labels, step);
  }
  std::vector<Remembering> found(kRanks);
  on_ranks(kRanks, [&](ThreadGroup& group) {
    auto network = small_network();
    mt::TrainState<mm::models::WideResNet> state(network);
    const Remembering method;
    found[static_cast<size_t>(group.rank())] = method;  // the same tensors
    const auto options = mt::TrainerOptions().feed(feeding).data_parallel(
        mt::DataParallelOptions().batches(mt::RankBatches::separate).check_every(1));
    mt::Trainer trainer(state, method, data, mt::use_processes(options, &group));
    for (int64_t i = 0; i < kSteps; ++i) {
      trainer.run(1);
    }
  });
  CHECK(expected.flips.any().item<bool>());
  CHECK(!expected.flips.all().item<bool>());
  for (const auto& rank : found) {
    CHECK(at::allclose(rank.mean, expected.mean, 1e-5, 1e-5));
    CHECK(rank.mean.equal(found[0].mean));
    CHECK(rank.steps.item<int64_t>() == kSteps);
    CHECK(rank.counts.equal(expected.counts));
    CHECK(rank.latest.equal(expected.latest));
    CHECK(rank.flips.equal(expected.flips));
    CHECK(rank.bytes.equal(expected.bytes));
  }
}

TEST_CASE("separate batches: alignment and gate are the same on every rank after each step") {
  on_ranks(2, [](ThreadGroup& group) {
    const auto fixmatch = [] {
      return mm::methods::FixMatch(
          mm::methods::FixMatchOptions().threshold(0.36),
          mm::GuessFilter(
              mm::GuessFilterOptions().prior(at::tensor({0.5, 0.25, 0.25}, at::kDouble)).open_set(true)));
    };
    run_steps(5, fixmatch, &group, mt::RankBatches::separate);  // checks it before each
  });
}

TEST_CASE("separate batches with synchronised batch norm: a mean over rows is one process's") {
  const mm::Batch batch = random_batch();
  auto network = double_network();
  const auto expected = one_step(network, mm::methods::Supervised(), batch, nullptr);
  const auto results = results_of(2, [&](ThreadGroup& group) {
    auto own = double_network();
    mt::synchronize_batch_norm(own, &group);
    return one_step(own, mm::methods::Supervised(), part_of(batch, group.rank(), 2), &group,
                    mt::RankBatches::separate);
  });
  for (const auto& result : results) {
    check_close(result.gradients, expected.gradients);
    check_close(result.buffers, expected.buffers);
  }
}

TEST_CASE("the ranks' parts of a batch are the batch of one process, for any number of ranks") {
  const auto data = gray_images();
  const auto options = mt::FeedOptions().batch_size(12).unlabeled_ratio(2).strong_views(1).seed(4);
  const Tensor step = at::full({}, 3, at::kLong);
  const auto whole = mt::Feed(data, options)(step);
  for (const int64_t ranks : {2, 3, 4}) {
    std::vector<mm::Batch> parts;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      parts.push_back(mt::Feed(data, mt::FeedOptions(options).rank(rank).world_size(ranks))(step));
    }
    const auto joined = [&](const auto& of) {
      std::vector<Tensor> tensors;
      for (const auto& part : parts) {
        tensors.push_back(of(part));
      }
      return at::cat(tensors);
    };
    CHECK(joined([](const mm::Batch& b) { return b.labeled; }).equal(whole.labeled));
    CHECK(joined([](const mm::Batch& b) { return b.labels; }).equal(whole.labels));
    CHECK(joined([](const mm::Batch& b) { return b.weak[0]; }).equal(whole.weak[0]));
    CHECK(joined([](const mm::Batch& b) { return b.weak[1]; }).equal(whole.weak[1]));
    CHECK(joined([](const mm::Batch& b) { return b.strong[0]; }).equal(whole.strong[0]));
    CHECK(joined([](const mm::Batch& b) { return b.unlabeled_rows; }).equal(whole.unlabeled_rows));
  }
  CHECK_THROWS_WITH(mt::Feed(data, mt::FeedOptions(options).world_size(5)), contains("multiple of 5"));
}

TEST_CASE("GradientReducer: buckets and overlap change no bit; unused and frozen parameters") {
  struct Two : torch::nn::Module {
    Two() {
      a = register_parameter("a", at::arange(100, at::kDouble));
      unused = register_parameter("unused", at::ones({7}, at::kDouble));
      frozen = register_parameter("frozen", at::ones({3}, at::kDouble), /*requires_grad=*/false);
      b = register_parameter("b", at::ones({40, 2}, at::kDouble));
    }
    Tensor forward(const Tensor& x) { return (a * x).sum() + b.square().sum() * x + frozen.sum(); }
    Tensor a, unused, frozen, b;
  };
  for (const bool overlap : {false, true}) {
    for (const int64_t bucket_bytes : {int64_t{1}, int64_t{600}, int64_t{1} << 20}) {
      on_ranks(3, [&](ThreadGroup& group) {
        auto model = std::make_shared<Two>();
        mt::GradientReducer reducer(model, group,
                                    mt::GradientReducerOptions().bucket_bytes(bucket_bytes).overlap(overlap));
        CHECK_ON_RANK(reducer.buckets() == (bucket_bytes == 1 ? 3 : bucket_bytes == 600 ? 2 : 1));
        for (int i = 0; i < 2; ++i) {  // gradients add up, as without
          reducer.begin();
          model->forward(at::full({}, static_cast<double>(group.rank() + 1), at::kDouble)).backward();
          reducer.finish();
          CHECK_ON_RANK(model->a.grad().equal(at::full({100}, 2.0 + (i == 0 ? 0.0 : 2.0), at::kDouble)));
          CHECK_ON_RANK(model->b.grad().equal(at::full({40, 2}, 4.0 + (i == 0 ? 0.0 : 4.0), at::kDouble)));
          CHECK_ON_RANK(model->unused.grad().equal(at::zeros({7}, at::kDouble)));
          CHECK_ON_RANK(!model->frozen.grad().defined());
        }
        CHECK_ON_RANK(thrown_by([&] { reducer.finish(); }).find("begin()") != std::string::npos);
      });
    }
  }
}

TEST_CASE("a rank that starts with other weights takes rank 0's; one that changes them is found") {
  on_ranks(2, [](ThreadGroup& group) {
    auto network = small_network();
    const torch::NoGradGuard no_grad;
    network->conv1->weight.add_(static_cast<double>(group.rank()));
    const Tensor before = network->conv1->weight.sum();
    mt::TrainState<mm::models::WideResNet> state(network);
    mt::Learner<mm::models::WideResNet> learner(state.model, state.ema);
    mt::DataParallel<mm::models::WideResNet> parallel(state, learner, &group);
    CHECK_ON_RANK(network->conv1->weight.sum().equal(group.gather(before)[0]));
    parallel.check_replicas();
    network->conv1->weight.add_(static_cast<double>(group.rank()));
    CHECK_ON_RANK(thrown_by([&] {
                    parallel.check_replicas();
                  }).find("rank 1 has other weights than rank 0") != std::string::npos);
  });
}

TEST_CASE("a rank whose method has another state is found; with joint batches roundings may differ") {
  for (const auto batches : {mt::RankBatches::joint, mt::RankBatches::separate}) {
    on_ranks(2, [&](ThreadGroup& group) {
      auto network = small_network();
      mt::TrainState<mm::models::WideResNet> state(network);
      mt::Learner<mm::models::WideResNet> learner(state.model, state.ema);
      mt::DataParallel<mm::models::WideResNet> parallel(state, learner, &group,
                                                        mt::DataParallelOptions().batches(batches));
      const Tensor steps = at::full({}, 5, at::kLong);
      const auto refusal = [&](double difference) {
        const Tensor own = at::ones({3}).mul_(1 + difference * static_cast<double>(group.rank()));
        return thrown_by([&] { parallel.check_replicas({own, steps}); });
      };
      const std::string expected = "at step 0 rank 1 has another state of its method than rank 0";
      CHECK_ON_RANK(refusal(0).empty());
      CHECK_ON_RANK(refusal(0.5).find(expected) == 0);
      CHECK_ON_RANK(refusal(1e-5).find(expected) ==
                    (batches == mt::RankBatches::joint ? std::string::npos : 0));
    });
  }
}

TEST_CASE("layers that draw draw other numbers on each rank, and the same when a run is resumed") {
  std::vector<Tensor> drawn(4);
  on_ranks(2, [&](ThreadGroup& group) {
    auto network = small_network();
    for (const int64_t again : {0, 1}) {
      mt::TrainState<mm::models::WideResNet> state(network);
      state.default_generator = seeded(99);  // of this thread alone
      mt::Learner<mm::models::WideResNet> learner(state.model, state.ema);
      mt::DataParallel<mm::models::WideResNet> parallel(state, learner, &group);
      state.step = 7;
      parallel.begin_step();
      drawn[static_cast<size_t>(2 * group.rank() + again)] =
          at::rand({5}, state.default_generator, at::TensorOptions(at::kFloat));
    }
  });
  CHECK(drawn[0].equal(drawn[1]));
  CHECK(drawn[2].equal(drawn[3]));
  CHECK(!drawn[0].equal(drawn[2]));
}

TEST_CASE("what several processes cannot do is refused") {
  on_ranks(2, [](ThreadGroup& group) {
    CHECK_ON_RANK(thrown_by([&] {
                    mt::own_rows(at::zeros({3, 2}), group);
                  }).find("3 rows cannot be shared evenly") != std::string::npos);
    CHECK_ON_RANK(thrown_by([&] {
                    mt::use_processes(mt::TrainerOptions().feed(mt::FeedOptions().batch_size(9)), &group);
                  }).find("multiple of the 2 processes, got 9") != std::string::npos);
    torch::nn::Sequential plain(torch::nn::BatchNorm2d(3));
    CHECK_ON_RANK(thrown_by([&] {
                    mt::synchronize_batch_norm(plain, &group);
                  }).find("LibTorch's own batch norm") != std::string::npos);
  });
}
