#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/program/train_classifier.hpp>
#include <mixmatch/run/metrics_table.hpp>
#include <mixmatch/run/training_run.hpp>
#include <mixmatch/step/train_state.hpp>
#include <mixmatch/step/trainer.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <cmath>
#include <memory>

namespace mm = mixmatch;
using mm::training::StepOn;
using mm::training::TrainingOptions;
using torch::Tensor;

namespace {

TrainingOptions trainer_options() {
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

mm::training::TrainingData trainer_data() {
  torch::manual_seed(5);
  mm::data::ImageDataset set;
  set.labels = at::arange(60, at::kLong).remainder(3);
  set.images = ((set.labels * 90 + 20).view({60, 1, 1, 1}) + at::randint(0, 30, {60, 3, 8, 8})).to(at::kByte);
  set.class_names = {"a", "b", "c"};
  return {mm::data::ImagePool({set}), {at::arange(15, at::kLong), at::arange(15, 60, at::kLong), {}}, {}, {}};
}

template <class Method>
struct TrainerProgram {
  TrainerProgram(const TrainingOptions& o, Method method, StepOn where, const std::string& file = "",
                 mm::training::TrainingData images = trainer_data())
      : data(std::move(images)),
        state(mm::training::make_wide_resnet(o, 3, torch::kCPU), data.split.labeled, data.split.unlabeled,
              mm::training::train_state_options(o)),
        trainer(state, std::move(method), o, data, torch::kCPU, where),
        checkpoint(file) {
    state.register_in(checkpoint);
    trainer.register_in(checkpoint);
    checkpoint.add("step", state.step);
  }

  mm::training::TrainingData data;
  mm::training::TrainState<mm::models::WideResNet> state;
  mm::training::Trainer<mm::models::WideResNet, Method> trainer;
  mm::training::Checkpoint checkpoint;
};

struct MixMatchProgram : TrainerProgram<mm::methods::MixMatch> {
  MixMatchProgram(const TrainingOptions& o, StepOn where, const std::string& file = "",
                  mm::training::TrainingData images = trainer_data())
      : TrainerProgram(
            o, mm::methods::MixMatch(mm::training::mixmatch_options(o), mm::training::ramped_loss_options(o)),
            where, file, std::move(images)) {}
};

double value_of(const mm::StepMeans& means, const std::string& name) {
  for (size_t i = 0; i < means.names.size(); ++i) {
    if (means.names[i] == name) {
      return means.values[i];
    }
  }
  FAIL("no value " << name);
  return 0;
}

}  // namespace

TEST_CASE("Trainer: device steps report the means of what each step would") {
  const auto o = trainer_options();
  MixMatchProgram together(o, StepOn::device), apart(o, StepOn::device);
  const auto mean = together.trainer.run(4);
  CHECK(mean.names == std::vector<std::string>{"loss", "loss_labeled", "loss_unlabeled", "lambda_u",
                                               "guess_confidence", "guess_entropy", "guess_accuracy"});
  std::vector<double> sums(mean.values.size(), 0.0);
  for (int i = 0; i < 4; ++i) {
    const auto loss = apart.trainer.run(1);
    CHECK(loss.finite);
    for (size_t k = 0; k < sums.size(); ++k) {
      sums[k] += loss.values[k] / 4;
    }
  }
  for (size_t k = 0; k < sums.size(); ++k) {
    INFO(mean.names[k]);
    CHECK(std::isfinite(sums[k]));
    CHECK(mean.values[k] == Approx(sums[k]));
    CHECK(mean.counts[k] == 4);
  }
  CHECK(together.state.step == 4);
  CHECK(together.state.ema.num_updates() == 4);
  CHECK_FALSE(together.trainer.is_graphed());
}

TEST_CASE("Trainer: host steps come one at a time") {
  const auto o = trainer_options();
  MixMatchProgram program(o, StepOn::host);
  const auto mean = program.trainer.run(4);
  CHECK(program.state.step == 1);
  CHECK(mean.counts.front() == 1);
  CHECK(value_of(mean, "lambda_u") == 0);
  program.trainer.run(1);
  CHECK(program.state.ema.num_updates() == 2);
}

TEST_CASE("Trainer: every method's steps resume from a checkpoint bit for bit") {
  const auto run = [](auto& program, int64_t until) {
    while (program.state.step < until) {
      program.trainer.run(until - program.state.step);
    }
  };
  for (const auto& name : mm::training::method_names()) {
    auto o = trainer_options();
    o.method = name;
    o.threshold = 0.4;
    o.rampup_steps = 4;
    for (const auto where : {StepOn::host, StepOn::device}) {
      INFO(name << " on the " << mm::training::name_of(where));
      mm::training::with_method(o, where, [&](auto method) {
        TempDir dir;
        const std::string file = dir / "checkpoint.pt";
        TrainerProgram whole(o, method, where, file), resumed(o, method, where, file);
        run(whole, 6);
        whole.checkpoint.save();
        run(whole, 12);
        resumed.checkpoint.load();
        CHECK(resumed.state.step == 6);
        run(resumed, 12);
        const auto expected = mm::detail::model_state(whole.state.model);
        const auto found = mm::detail::model_state(resumed.state.model);
        for (size_t i = 0; i < expected.size(); ++i) {
          INFO(expected[i].name);
          CHECK(found[i].tensor.equal(expected[i].tensor));
        }
        const Tensor images = mm::augment::normalize(whole.data.pool.gather(at::arange(60, at::kLong)));
        CHECK(resumed.state.ema.forward(images).equal(whole.state.ema.forward(images)));
      });
    }
  }
}

TEST_CASE("Trainer: an unknown label leaves the accuracy of guesses out") {
  const auto o = trainer_options();
  for (const auto where : {StepOn::host, StepOn::device}) {
    auto data = trainer_data();
    data.pool.labels.narrow(0, 15, 45).fill_(-1);
    MixMatchProgram program(o, where, "", std::move(data));
    const auto means = program.trainer.run(2);
    CHECK(std::isnan(value_of(means, "guess_accuracy")));
    CHECK(means.counts.back() == 0);
    CHECK(std::isfinite(means.values.front()));
  }
}

TEST_CASE("Trainer: a row's mean weighs every step alike, however long the runs were that it comes from") {
  TempDir dir;
  auto o = trainer_options();
  o.steps = 10;
  o.log_every = 5;
  o.eval_every = 10;
  const auto rows = [&](const std::string& name, int64_t checkpoint_every) {
    o.checkpoint_every = checkpoint_every;
    MixMatchProgram program(o, StepOn::device);
    mm::training::TrainingRun run(
        mm::training::RunDirectory::create(dir / name),
        mm::training::training_run_options(o, mm::training::config_of(o), program.data, torch::kCPU),
        program.state.step);
    run.start();
    while (run.running()) {
      run.record(program.trainer.run(run.steps_until_due()));
      run.finish_step();
    }
    run.finish();
    return mm::training::read_metrics(run.directory().metrics());
  };
  // Runs of 3, 2, 1, 3, 1 steps, and of 5 and 5.
  const auto cut = rows("cut", 3), whole = rows("whole", 10);
  REQUIRE(cut.rows.size() == 2);
  REQUIRE(whole.rows.size() == 2);
  for (const auto& column : whole.columns) {
    if (whole.column(column)[0] == whole.column(column)[0]) {  // an error that was not asked for is NaN
      INFO(column);
      for (size_t row = 0; row < 2; ++row) {
        CHECK(cut.column(column)[row] == Approx(whole.column(column)[row]).epsilon(1e-9));
      }
    }
  }
  CHECK(whole.column("lambda_u")[1] > whole.column("lambda_u")[0]);
}

TEST_CASE("Trainer: a method of one's own, with names of its own, from a lambda") {
  auto o = trainer_options();
  o.num_augmentations = 1;
  const auto entropy = [](auto& model, const mm::Batch& batch, const Tensor& step, const at::Generator&) {
    const Tensor logits = model(batch.labeled);
    const auto frozen = mm::freeze_batch_norm(model);
    const Tensor log_p = torch::log_softmax(model(batch.weak.front()), 1);
    const Tensor unsure = -(log_p.exp() * log_p).sum(1).mean();
    const Tensor ramp = mm::linear_rampup(step, 4);
    return mm::StepLoss{
        mm::soft_cross_entropy(logits, mm::one_hot(batch.labels, 3)) + ramp.to(at::kFloat) * unsure,
        {{"entropy", unsure}, {"ramp", ramp}}};
  };
  for (const auto where : {StepOn::host, StepOn::device}) {
    TrainerProgram program(o, entropy, where);
    program.trainer.run(1);
    const auto means = program.trainer.run(1);
    CHECK(means.names == std::vector<std::string>{"loss", "entropy", "ramp"});
    CHECK(value_of(means, "ramp") == 0.25);
    CHECK(value_of(means, "entropy") > 0);
  }
}

namespace {

/// A method as a user would write it, with state of its own: labels that the model is surer of than it was on
/// average so far train it on a second view.
class SurerThanBefore {
 public:
  template <class Model>
  mm::StepLoss operator()(Model& model, const mm::Batch& batch, const Tensor&, const at::Generator&) {
    const Tensor labeled = mm::soft_cross_entropy(model(batch.labeled), mm::one_hot(batch.labels, kClasses));
    const auto frozen = mm::freeze_batch_norm(model);  // one pass a step moves the statistics
    const Tensor guess = mm::guess_labels(model, {batch.weak[0]}, mm::GuessLabelsOptions().temperature(1));
    const auto [sure, label] = guess.max(1);
    const Tensor mask = sure.ge(threshold_).to(at::kFloat);
    threshold_.mul_(0.9).add_(sure.mean(), 0.1);
    const Tensor log_p = torch::log_softmax(model(batch.weak[1]), 1);
    const Tensor unlabeled = -(mask * log_p.gather(1, label.unsqueeze(1)).squeeze(1)).mean();
    return {labeled + unlabeled,
            {{"loss_labeled", labeled}, {"mask_rate", mask.mean()}, {"threshold", threshold_.clone()}}};
  }

  std::vector<Tensor> state() const { return {threshold_}; }
  void save(torch::serialize::OutputArchive& archive) const { archive.write("threshold", threshold_, true); }
  void load(torch::serialize::InputArchive& archive) {
    Tensor stored;
    archive.read("threshold", stored, true);
    threshold_.copy_(stored);
  }

 private:
  static constexpr int64_t kClasses = 3;
  Tensor threshold_ = at::full({}, 1.0 / kClasses);
};

}  // namespace

TEST_CASE("Trainer: a method of one's own with state resumes bit for bit, eagerly and as a graph's step") {
  const auto o = trainer_options();
  for (const auto where : {StepOn::host, StepOn::device}) {
    TempDir dir;
    const std::string file = dir / "checkpoint.pt";
    TrainerProgram whole(o, SurerThanBefore(), where, file);
    std::vector<double> thresholds;
    for (int step = 0; step < 12; ++step) {
      if (step == 6) {
        whole.checkpoint.save();
      }
      thresholds.push_back(value_of(whole.trainer.run(1), "threshold"));
    }
    CHECK(thresholds[11] > thresholds[0]);
    TrainerProgram resumed(o, SurerThanBefore(), where, file);
    resumed.checkpoint.load();
    for (size_t step = 6; step < 12; ++step) {
      CHECK(value_of(resumed.trainer.run(1), "threshold") == thresholds[step]);
    }
    const auto expected = mm::detail::model_state(whole.state.model);
    const auto found = mm::detail::model_state(resumed.state.model);
    for (size_t i = 0; i < expected.size(); ++i) {
      CHECK(found[i].tensor.equal(expected[i].tensor));
    }
  }
}
