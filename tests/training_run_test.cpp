#include <mixmatch/run/training_run.hpp>
#include <mixmatch/step/train_state.hpp>

#include <csignal>
#include <limits>

#include "catch.hpp"
#include "model_zoo.hpp"
#include "test_util.hpp"

using mixmatch::StepMeans;
using mixmatch::Tensor;
using mixmatch::training::MetricsCsv;
using mixmatch::training::NonFiniteError;
using mixmatch::training::RunDirectory;
using mixmatch::training::TrainingRun;
using mixmatch::training::TrainingRunOptions;
using mixmatch::training::TrainState;
using mixmatch::training::TrainStateOptions;

namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

TrainingRunOptions options(int64_t steps = 6) {
  return TrainingRunOptions()
      .steps(steps)
      .eval_every(4)
      .log_every(2)
      .checkpoint_every(3)
      .errors({"validation_error", "test_error"})
      .config({{"depth", "10"}})
      .surroundings({{"data", "a \"dir\""}});
}

/// Steps whose loss is the step's number, and whose quality is known at odd steps only.
void train(TrainingRun& run, int64_t& step, int64_t until) {
  while (run.running() && step < until) {
    ++step;
    run.record(StepMeans::of_step({{"loss", static_cast<double>(step)},
                                   {"quality", step % 2 == 1 ? static_cast<double>(10 * step) : kNone}}));
    if (run.evaluation_due()) {
      run.record_errors({kNone, static_cast<double>(100 - step)});
    }
    run.finish_step();
  }
}

}  // namespace

TEST_CASE("TrainingRun: rows hold means since the row before, errors where there was an evaluation") {
  TempDir dir;
  int64_t step = 0;
  TrainingRun run(RunDirectory::create(dir / "run"), options(), step);
  run.start();
  train(run, step, 6);
  run.finish();
  CHECK(read_file(dir / "run" / "metrics.csv") ==
        "step,loss,quality,validation_error,test_error\n"
        "2,1.5,10,,\n"
        "4,3.5,30,,96\n"
        "6,5.5,50,,94\n");
  CHECK(run.errors("test_error") == std::vector<double>{96, 94});
  CHECK(std::isnan(run.errors("validation_error")[0]));
  CHECK_THAT(error_of([&] { run.errors("loss"); }), contains("no column 'loss'"));
  CHECK(run.seconds_per_step() >= 0);
  CHECK_FALSE(run.interrupted());
  const std::string config = read_file(dir / "run" / "config.json");
  CHECK_THAT(config, contains("\"depth\": \"10\""));
  CHECK_THAT(config, contains("\"data\": \"a \\\"dir\\\"\""));
}

TEST_CASE("TrainingRun: resumed equals never stopped") {
  TempDir dir;
  int64_t whole = 0;
  {
    TrainingRun run(RunDirectory::create(dir / "whole"), options(), whole);
    run.start();
    train(run, whole, 6);
  }
  int64_t step = 0;
  {
    TrainingRun run(RunDirectory::create(dir / "run"), options(), step);
    run.start();
    train(run, step, 5);  // the last checkpoint is that of step 3
  }
  step = 0;
  TrainingRun run(RunDirectory::resume(dir / "run"), options(), step);
  run.resume();
  CHECK(step == 3);
  CHECK(run.seconds_per_step() >= 0);  // of the process that saved it
  train(run, step, 6);
  CHECK(read_file(dir / "run" / "metrics.csv") == read_file(dir / "whole" / "metrics.csv"));
  CHECK(run.errors("test_error") == std::vector<double>{96, 94});
}

TEST_CASE("TrainingRun: a run that cannot be resumed stays as it is") {
  TempDir dir;
  int64_t step = 0;
  {
    TrainingRun run(RunDirectory::create(dir / "run"), options(), step);
    run.start();
    train(run, step, 6);
  }
  const std::string metrics = read_file(dir / "run" / "metrics.csv");
  {
    int64_t other = 0;
    TrainingRun run(RunDirectory::resume(dir / "run"), options(5), other);
    CHECK_THAT(error_of([&] { run.resume(); }),
               contains("the run has done 6 steps already, more than the 5 asked for"));
    CHECK(other == 0);
  }
  {
    int64_t other = 0;
    TrainingRun run(RunDirectory::resume(dir / "run"), options().config({{"depth", "16"}}), other);
    CHECK_THAT(error_of([&] { run.resume(); }),
               contains("run: depth is 16 now, but the run was started with 10"));
    CHECK(other == 0);
  }
  CHECK(read_file(dir / "run" / "metrics.csv") == metrics);
}

TEST_CASE("TrainingRun: what is only for reading keeps no run from going on") {
  TempDir dir;
  int64_t whole = 0;
  {
    TrainingRun run(RunDirectory::create(dir / "whole"), options(), whole);
    run.start();
    train(run, whole, 6);
  }
  // Lost by a power cut, damaged by an editor, removed.
  for (const std::string left :
       {"step,loss\n", "", "step,loss,quality,validation_error,test_error\n2,x,10,,\n", "none"}) {
    TempDir copy;
    int64_t step = 0;
    {
      TrainingRun run(RunDirectory::create(copy / "run"), options(), step);
      run.start();
      train(run, step, 5);
    }
    if (left == "none") {
      std::filesystem::remove(copy / "run" / "metrics.csv");
      std::filesystem::remove(copy / "run" / "config.json");
    } else {
      write_file(copy / "run" / "metrics.csv", left);
    }
    TrainingRun run(RunDirectory::resume(copy / "run"), options(), step);
    run.resume();
    train(run, step, 6);
    CHECK(read_file(copy / "run" / "metrics.csv") == read_file(dir / "whole" / "metrics.csv"));
    CHECK(run.metrics().column("step") == std::vector<double>{2, 4, 6});
    CHECK(std::filesystem::exists(copy / "run" / "config.json"));
  }
}

TEST_CASE("TrainingRun: a damaged last checkpoint is refused, and the one before it taken") {
  TempDir dir;
  int64_t step = 0;
  {
    TrainingRun run(RunDirectory::create(dir / "run"), options(), step);
    run.start();
    train(run, step, 6);  // checkpoints of steps 3 and 6 are left
  }
  const std::string whole = read_file(dir / "run" / "metrics.csv");
  std::string bytes = read_file(dir / "run" / "checkpoint.pt");
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  write_file(dir / "run" / "checkpoint.pt", bytes);
  for (int i = 0; i < 2; ++i) {  // the good one outlives the bad one's replacement
    TrainingRun run(RunDirectory::resume(dir / "run"), options(), step);
    run.resume();
    CHECK(step == 3);
  }
  TrainingRun run(RunDirectory::resume(dir / "run"), options(), step);
  run.resume();
  train(run, step, 6);
  CHECK(read_file(dir / "run" / "metrics.csv") == whole);
}

TEST_CASE("TrainingRun: a loss or gradient that is not finite names the last good checkpoint, which stays") {
  TempDir dir;
  int64_t step = 0;
  TrainingRun run(RunDirectory::create(dir / "run"), options(), step);
  run.start();
  train(run, step, 3);
  const std::string checkpoint = read_file(dir / "run" / "checkpoint.pt");
  ++step;
  const auto message = [&](double loss, bool finite) -> std::string {
    try {
      run.record(StepMeans::of_step({{"loss", loss}, {"quality", 0}}, finite));
    } catch (const NonFiniteError& error) {
      return error.what();
    }
    return "";
  };
  const std::string where = (dir / "run" / "checkpoint.pt").string() + " of step 3";
  CHECK(message(kNone, true) == "the loss is nan at step 4; the last good checkpoint is " + where);
  CHECK(message(1, false) == "a gradient is not finite at step 4; the last good checkpoint is " + where);
  CHECK(message(1, true).empty());
  CHECK(read_file(dir / "run" / "checkpoint.pt") == checkpoint);
}

TEST_CASE("TrainingRun: Ctrl-C ends the loop between two steps, and leave() saves") {
  TempDir dir;
  int64_t step = 0;
  {
    TrainingRun run(RunDirectory::create(dir / "run"), options(100), step);
    run.start();
    train(run, step, 4);
    std::raise(SIGINT);
    CHECK_FALSE(run.running());
    CHECK(run.interrupted());
    CHECK(run.leave() == 130);
  }
  step = 0;
  TrainingRun run(RunDirectory::resume(dir / "run"), options(100), step);
  run.resume();
  CHECK(step == 4);
}

TEST_CASE(
    "TrainingRun: each signal's status; one that comes before the first step or after the last is not lost") {
  for (const auto& [number, status] :
       {std::pair(SIGINT, 130), std::pair(SIGTERM, 143), std::pair(SIGHUP, 129)}) {
    for (const int64_t done : {0, 6}) {
      TempDir dir;
      int64_t step = 0;
      TrainingRun run(RunDirectory::create(dir / "run"), options(), step);
      // Once: a second signal, more than a moment later, ends the process.
      if (done == 0) {
        std::raise(number);
      }
      run.start();
      train(run, step, done);
      if (done > 0) {
        std::raise(number);
      }
      CHECK_FALSE(run.running());
      REQUIRE(run.interrupted());
      CHECK(run.leave() == status);
      CHECK_FALSE(run.interrupted());
      CHECK(step == done);
    }
  }
}

TEST_CASE("TrainingRun: means are weighed by their counts, and a count of none adds nothing") {
  TempDir dir;
  int64_t step = 0;
  TrainingRun run(RunDirectory::create(dir / "run"), TrainingRunOptions().steps(4).log_every(4), step);
  run.start();
  CHECK(read_file(dir / "run" / "metrics.csv").empty());  // the method names the columns
  step = 3;
  run.record({{"loss", "accuracy"}, {1, kNone}, {3, 0}});
  run.finish_step();
  step = 4;
  run.record({{"loss", "accuracy"}, {5, 0.5}, {1, 1}});
  run.finish_step();
  CHECK(read_file(dir / "run" / "metrics.csv") == "step,loss,accuracy\n4,2,0.5\n");
}

TEST_CASE("TrainingRun: steps until something is due") {
  TempDir dir;
  int64_t step = 0;
  const auto ends = [&](const std::string& name, int64_t checkpoint_every) {
    step = 0;
    TrainingRun run(
        RunDirectory::create(dir / name),
        TrainingRunOptions().steps(12).log_every(4).eval_every(6).checkpoint_every(checkpoint_every), step);
    std::vector<int64_t> list;
    while (step < 12) {
      list.push_back(step += run.steps_until_due());
    }
    return list;
  };
  CHECK(ends("a", 0) == std::vector<int64_t>{4, 6, 8, 12});
  CHECK(ends("b", 5) == std::vector<int64_t>{4, 5, 6, 8, 10, 12});
}

TEST_CASE("TrainingRun: options out of range") {
  TempDir dir;
  int64_t step = 0;
  const auto refused = [&](const TrainingRunOptions& bad) {
    return error_of([&] { TrainingRun(RunDirectory::create(dir / "run"), bad, step); });
  };
  CHECK_THAT(refused(options(0)), contains("steps must be >= 1, got 0"));
  CHECK_THAT(refused(options().eval_every(0)), contains("eval_every"));
  CHECK_THAT(refused(options().log_every(0)), contains("log_every"));
  CHECK_THAT(refused(options().checkpoint_every(-1)), contains("checkpoint_every"));
  TrainingRun run(RunDirectory::create(dir / "run"), options(), step);
  run.start();
  CHECK_THAT(error_of([&] { run.record({}); }), contains("for each of 0 names, at least one, got 0 and 0"));
  run.record(StepMeans::of_step({{"loss", 1}}));
  CHECK_THAT(error_of([&] {
               run.record(StepMeans::of_step({{"loss", 1}, {"quality", 1}}));
             }),
             contains("the names are not those of the steps before"));
  CHECK_THAT(error_of([&] { run.record_errors({1}); }), contains("expected 2 values, got 1"));
}

TEST_CASE("TrainState: a model with dropout goes on bit for bit") {
  TempDir dir;
  const auto net = [] {
    return torch::nn::Sequential(torch::nn::Linear(3, 16), torch::nn::Dropout(0.5), torch::nn::Linear(16, 1));
  };
  using State = TrainState<torch::nn::Sequential>;
  const auto make = [&] { return std::make_unique<State>(net()); };
  const auto steps = [](State& state, int count) {
    for (int i = 0; i < count; ++i) {
      state.model->forward(torch::ones({4, 3})).square().sum().backward();
      state.optimizer.step();
    }
  };
  auto whole = make();
  steps(*whole, 3);
  mixmatch::training::Checkpoint save(dir / "c.pt");
  whole->register_in(save);
  save.save();
  steps(*whole, 3);
  torch::manual_seed(99);
  auto resumed = make();
  mixmatch::training::Checkpoint load(dir / "c.pt");
  resumed->register_in(load);
  load.load();
  steps(*resumed, 3);
  for (size_t i = 0; i < whole->model->parameters().size(); ++i) {
    CHECK(torch::equal(whole->model->parameters()[i], resumed->model->parameters()[i]));
  }
}

TEST_CASE("TrainState: everything comes back from a checkpoint") {
  TempDir dir;
  const auto make = [&](uint64_t seed) {
    torch::manual_seed(seed);
    return std::make_unique<TrainState<HeldNet>>(
        HeldNet(), TrainStateOptions()
                       .seed(1)
                       .ema(mixmatch::EmaModelOptions(0.9))
                       .optimizer(mixmatch::training::OptimizerOptions(.1).weight_decay(.02)));
  };
  const auto steps = [](TrainState<HeldNet>& state, int count) {
    for (int i = 0; i < count; ++i) {
      const Tensor x = at::full({4, 3}, state.step) + torch::randn({4, 3}, state.generator);
      state.model->forward(x).square().sum().backward();
      state.optimizer.step();
      ++state.step;
    }
  };
  auto whole = make(1);
  steps(*whole, 3);
  mixmatch::training::Checkpoint save(dir / "c.pt");
  whole->register_in(save);
  save.add("step", whole->step);
  save.save();
  steps(*whole, 3);
  auto resumed = make(2);
  mixmatch::training::Checkpoint load(dir / "c.pt");
  resumed->register_in(load);
  load.add("step", resumed->step);
  load.load();
  CHECK(resumed->ema.num_updates() == 3);
  steps(*resumed, 3);
  CHECK(torch::equal(whole->model->dense->weight, resumed->model->dense->weight));
  CHECK(torch::equal(whole->model->norm->running_mean, resumed->model->norm->running_mean));
  CHECK(torch::equal(whole->ema.named_parameters()[0].second, resumed->ema.named_parameters()[0].second));
  CHECK_FALSE(torch::equal(whole->ema.named_parameters()[0].second, whole->model->dense->weight));
  CHECK(resumed->ema.num_updates() == 6);
}

TEST_CASE("TrainState: draws by its seed, and takes a model with parameters alone") {
  const auto drawn = [](uint64_t seed) {
    TrainState<HeldNet> state(HeldNet(), TrainStateOptions().seed(seed));
    return torch::randn({4}, state.generator);
  };
  CHECK(torch::equal(drawn(3), torch::randn({4}, seeded(3))));
  CHECK_FALSE(torch::equal(drawn(3), drawn(4)));
  CHECK_THAT(error_of([] { TrainState<torch::nn::Sequential>(torch::nn::Sequential(torch::nn::ReLU())); }),
             contains("TrainState: the model has no parameter"));
}
