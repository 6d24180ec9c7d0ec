#include <mixmatch/training/device_training.hpp>
#include <mixmatch/training/metrics_table.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <cmath>
#include <memory>

namespace mm = mixmatch;
using mm::training::TrainingOptions;
using torch::Tensor;

namespace {

TrainingOptions small_options() {
  TrainingOptions o(mm::presets::cifar10);
  o.steps = 12;
  o.batch = 4;
  o.depth = 10;
  o.widen = 1;
  o.padding = 2;
  o.log_every = 4;
  o.eval_every = 6;
  o.precision = "fp32";
  return o;
}

mm::training::TrainingData make_data() {
  torch::manual_seed(5);
  mm::data::ImageDataset set;
  set.labels = at::arange(60, at::kLong).remainder(3);
  set.images = ((set.labels * 90 + 20).view({60, 1, 1, 1}) + at::randint(0, 30, {60, 3, 8, 8})).to(at::kByte);
  set.class_names = {"a", "b", "c"};
  return {mm::data::ImagePool({set}), {at::arange(15, at::kLong), at::arange(15, 60, at::kLong), {}}, {}, {}};
}

struct Program {
  explicit Program(const TrainingOptions& o, const std::string& file = "")
      : data(make_data()),
        state(mm::training::make_wide_resnet(o, 3, torch::kCPU), data.split.labeled, data.split.unlabeled,
              mm::training::train_state_options(o)),
        training(state, o, data, torch::kCPU),
        checkpoint(file) {
    state.register_in(checkpoint);
    training.register_in(checkpoint);
    checkpoint.add("step", state.step);
  }

  mm::training::TrainingData data;
  mm::training::TrainState<mm::models::WideResNet> state;
  mm::training::DeviceTraining<mm::models::WideResNet> training;
  mm::training::Checkpoint checkpoint;
};

}  // namespace

TEST_CASE("a program's device steps end where it looks at its numbers") {
  auto o = small_options();
  std::vector<int64_t> ends;
  for (int64_t done = 0; done < o.steps;) {
    done += mm::training::steps_until_due(o, done);
    ends.push_back(done);
  }
  CHECK(ends == std::vector<int64_t>{4, 6, 8, 12});
  o.checkpoint_every = 5;
  CHECK(mm::training::steps_until_due(o, 4) == 1);
  CHECK(mm::training::steps_until_due(o, 10) == 2);
}

TEST_CASE("a program's device steps report the means of what each step would") {
  const auto o = small_options();
  Program together(o), apart(o);
  const auto mean = together.training.run(4);
  std::vector<double> sums(mean.values().size(), 0.0);
  for (int i = 0; i < 4; ++i) {
    const auto loss = apart.training.run(1);
    CHECK(loss.finite);
    for (size_t k = 0; k < sums.size(); ++k) {
      sums[k] += loss.values()[k] / 4;
    }
  }
  for (size_t k = 0; k < sums.size(); ++k) {
    INFO(mm::training::StepLoss::columns()[k]);
    CHECK(std::isfinite(sums[k]));
    CHECK(mean.values()[k] == Approx(sums[k]));
  }
  CHECK(together.state.step == 4);
  CHECK(together.state.ema.num_updates() == 4);
  CHECK_FALSE(together.training.is_graphed());
}

TEST_CASE("a program's device steps resume from a checkpoint bit for bit") {
  const auto dir = temp_dir();
  const auto o = small_options();
  Program whole(o, dir / "checkpoint.pt");
  whole.training.run(6);
  whole.checkpoint.save();
  whole.training.run(6);

  Program resumed(o, dir / "checkpoint.pt");
  resumed.checkpoint.load();
  CHECK(resumed.state.step == 6);
  resumed.training.run(6);
  const auto expected = mm::detail::model_state(whole.state.model);
  const auto found = mm::detail::model_state(resumed.state.model);
  for (size_t i = 0; i < expected.size(); ++i) {
    INFO(expected[i].name);
    CHECK(found[i].tensor.equal(expected[i].tensor));
  }
  const Tensor images = mm::augment::normalize(whole.data.pool.gather(at::arange(60, at::kLong)));
  CHECK(resumed.state.ema.forward(images).equal(whole.state.ema.forward(images)));
}

TEST_CASE("an unknown label leaves the accuracy of guesses out") {
  auto o = small_options();
  Program program(o);
  program.data.pool.labels.narrow(0, 15, 45).fill_(-1);
  mm::training::TrainState<mm::models::WideResNet> state(
      mm::training::make_wide_resnet(o, 3, torch::kCPU), program.data.split.labeled,
      program.data.split.unlabeled, mm::training::train_state_options(o));
  mm::training::DeviceTraining<mm::models::WideResNet> training(state, o, program.data, torch::kCPU);
  const auto loss = training.run(2);
  CHECK(std::isnan(loss.guesses.accuracy));
  CHECK(std::isfinite(loss.total.item<double>()));
}

TEST_CASE("a row's mean weighs every step alike, however long the runs were that it comes from") {
  const auto dir = temp_dir();
  auto o = small_options();
  o.steps = 10;
  o.log_every = 5;
  o.eval_every = 10;
  const auto rows = [&](const std::string& name, int64_t checkpoint_every) {
    o.checkpoint_every = checkpoint_every;
    Program program(o);
    mm::training::TrainingRun run(
        mm::training::RunDirectory::create(dir / name),
        mm::training::training_run_options(o, mm::training::config_of(o), program.data, torch::kCPU),
        program.state.step);
    run.start();
    while (run.running()) {
      const auto loss = program.training.run(mm::training::steps_until_due(o, program.state.step));
      run.record(loss.values(), loss.finite, loss.counts);
      run.finish_step();
    }
    run.finish();
    return mm::training::read_metrics(run.directory().metrics());
  };
  // Runs of 3, 2, 1, 3, 1 steps, and of 5 and 5.
  const auto cut = rows("cut", 3), whole = rows("whole", 10);
  REQUIRE(cut.rows.size() == 2);
  REQUIRE(whole.rows.size() == 2);
  for (const auto& column : mm::training::StepLoss::columns()) {
    INFO(column);
    for (size_t row = 0; row < 2; ++row) {
      CHECK(cut.column(column)[row] == Approx(whole.column(column)[row]).epsilon(1e-9));
    }
  }
  CHECK(whole.column("lambda_u")[1] > whole.column("lambda_u")[0]);
}

TEST_CASE("TrainingRun::record: means are weighed by their counts, and a count of none adds nothing") {
  const auto dir = temp_dir();
  int64_t step = 0;
  mm::training::TrainingRun run(
      mm::training::RunDirectory::create(dir / "run"),
      mm::training::TrainingRunOptions().steps(4).log_every(4).values({"loss", "accuracy"}), step);
  run.start();
  step = 3;
  run.record({1, std::nan("")}, true, {3, 0});
  run.finish_step();
  step = 4;
  run.record({5, 0.5}, true, {1, 1});
  run.finish_step();
  CHECK(read_file(dir / "run" / "metrics.csv") == "step,loss,accuracy\n4,2,0.5\n");
  CHECK_THAT(error_of([&] { run.record({1, 2}, true, {1}); }), contains("expected 2 counts or none, got 1"));
}
